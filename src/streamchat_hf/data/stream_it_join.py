"""Short clips joined to long videos (StreamBridge, 2505.05467, algorithm 2: StreamingQA-120K).

Clips are put in a chain in which each is followed by the one most like it, by the cosine similarity of their
embeddings, and ten in a row make a video. Nothing is written: a joined video is the list of its clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamchat_hf.data.annotations import video_seconds
from streamchat_hf.data.live_conversation import Clip, last_frame

CLIPS = 10


def similarity_chain(embeddings: np.ndarray, seed: int = 0) -> list[int]:
    """Put clips in a greedy chain without replacement: each is followed by the most similar one that is left.

    It compares every clip with all that are left, N² / 2 products in all.

    Args:
        embeddings: `(N, D)`, one for each clip, such as an image encoder's of its middle frame; of any length.
        seed: Of the clip that it begins with.

    Returns:
        The N numbers of the clips in the order of the chain; of equally similar ones the first comes first.

    Raises:
        ValueError: For embeddings of another shape, or one that is zero or not finite.
    """
    embeddings = np.asarray(embeddings, dtype=np.float64)
    if embeddings.ndim != 2 or not len(embeddings):
        raise ValueError(f"embeddings are (N, D), not {embeddings.shape}")
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not np.isfinite(lengths).all() or not lengths.all():
        raise ValueError("an embedding is zero or not finite: it is similar to nothing")
    directions = embeddings / lengths
    left = np.ones(len(directions), dtype=bool)
    chain = [int(np.random.default_rng(seed).integers(len(directions)))]
    left[chain[0]] = False
    while left.any():
        similarity = np.where(left, directions @ directions[chain[-1]], -np.inf)  # (N,)
        chain.append(int(similarity.argmax()))
        left[chain[-1]] = False
    return chain


def join_clips(
    rows: Sequence[dict[str, Any]],
    embeddings: Mapping[str, Any],
    fps: float = 2.0,
    clips: int = CLIPS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Join the videos of dense rows, and what is said of them.

    Each clip begins with a frame, so that all frames of a joined video are frames of its clips.

    Args:
        rows: Dense rows of `load_dense_instruction`, one for each clip.
        embeddings: Of each clip, `(D,)`, by the `id` of its row.
        fps: Frames per second that the joined videos are seen with.
        clips: How many make a video; the last one has what is left.
        seed: Of the clip that the chain begins with.

    Returns:
        Dense rows, whose `media` is a tuple of `Clip`s.

    Raises:
        ValueError: If a clip has no embedding, is not dense, or less than one clip makes a video.
        BadRow: If the header of a clip cannot be read.
    """
    if clips < 1:
        raise ValueError(f"clips={clips}: a video is made of at least one")
    if lost := [row["id"] for row in rows if row["id"] not in embeddings]:
        raise ValueError(f"no embedding of {len(lost)} clips, the first is {lost[0]!r}")
    chain = similarity_chain(np.stack([np.asarray(embeddings[row["id"]]) for row in rows]), seed)
    return [_join([rows[i] for i in chain[k : k + clips]], fps) for k in range(0, len(chain), clips)]


def _join(rows: Sequence[dict[str, Any]], fps: float) -> dict[str, Any]:
    media, turns, begin = [], [], 0.0
    for row in rows:
        if row["kind"] != "dense":
            raise ValueError(f"row {row['id']}: clips are joined of dense rows, whose turns have times")
        media.append(Clip(row["media"], begin))
        last = last_frame(video_seconds(row["media"]), fps)
        for turn in row["turns"]:
            # What ends with the clip, ends with its last frame, not with the next clip's first one.
            shown = {"start": begin + turn["start"], "end": begin + min(turn["end"], last)}
            turns.append({**turn, **shown, "word_times": []})
        begin += last + 1 / fps
    names = [row["id"] for row in rows]
    return {
        "id": " + ".join(names),
        "source": rows[0]["source"],
        "kind": "dense",
        "media": tuple(media),
        "turns": turns,
    }
