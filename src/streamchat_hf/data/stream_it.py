"""Stream-IT's two formats (StreamBridge, 2505.05467, section 4): dense annotations as streaming conversations.

    proactive     <Q> <V1> <A1> <V2> <A2> ...    asked once, then answered at the end of every segment
    multi-turn    <V1> <Q1> <A1> <V2> <Q2> <A2>  asked at the end of every segment, and answered at once

A segment V_i is what is seen between two answers; A_i comes at the end of its annotated interval. What is random is
drawn when a row is loaded, anew in every epoch: the format, which questions of a multi-turn row are dropped, so that
nobody asks about a segment, and which are asked before their segment instead of behind it: `<V> <Q> <A>` becomes
`<Q> <V> <A>`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

from safetensors.numpy import load_file
from torch.utils.data import Dataset

from streamchat_hf.data.dense_instruction import load_dense_instruction
from streamchat_hf.data.live_conversation import LiveSample, LiveTurn, frame_grid, lay_out, seen_when_asked
from streamchat_hf.data.stream_it_join import CLIPS, join_clips

# What a user says who wants to hear of everything; five wordings each, as in the paper's table 7.
CAPTIONING = (
    "Identify the events of the video and describe each of them when it is over.",
    "Watch the video, detect all events and tell me in a sentence what happened in each.",
    "List the events while you watch: whenever one ends, describe it.",
    "Describe every event of the video as soon as you have seen it to its end.",
    "Keep watching, and after each event tell me what it was.",
)
STEPS = (
    "Identify the key steps of what is done, and name each one when it is finished.",
    "Break the activity down into steps: tell me each of them as soon as it is done.",
    "Watch, and whenever a step is completed, say in a few words which it was.",
    "List the steps of this procedure while you watch, each one at its end.",
    "After every step tell me what has just been done.",
)

DROP = 0.55
SHIFT = 0.1
PROACTIVE = 0.2

Turns = Sequence[dict[str, Any]]


def proactive_turns(turns: Turns, question: str, frame_times: Sequence[float]) -> list[LiveTurn]:
    """Write `<Q> <V1> <A1> <V2> <A2> ...`.

    Args:
        turns: Of a dense row, in their order; of each its `answer` and `end` are used.
        question: Asked before the first frame.
        frame_times: Of the frames, in seconds. What ends before the first frame comes with it, and the answers that
            come with the same frame are said together.
    """
    due: dict[int, list[str]] = {}
    for turn in turns:
        due.setdefault(_seen(turn, frame_times), []).append(turn["answer"])
    answers = [LiveTurn("assistant", " ".join(texts), seen) for seen, texts in due.items()]
    return [LiveTurn("user", question, 0), *answers]


def multi_turns(
    turns: Turns, frame_times: Sequence[float], rng: random.Random, drop: float = DROP, shift: float = SHIFT
) -> list[LiveTurn]:
    """Write `<V1> <Q1> <A1> <V2> <Q2> <A2> ...`, with questions left out and asked earlier at random.

    Args:
        turns: Of a dense row, in their order; of each its `instruction`, `answer`, `start` and `end` are used.
        frame_times: Of the frames, in seconds.
        rng: Where randomness comes from; equal states give equal conversations.
        drop: Probability of a question to be left out with its answer. At least one is kept.
        shift: Probability of a question to be asked when its segment starts, at the earliest right after the answer
            before, instead of when it ends.
    """
    kept = [turn for turn in turns if rng.random() >= drop] or [rng.choice(list(turns))]
    said: list[LiveTurn] = []
    for turn in kept:
        seen = asked = _seen(turn, frame_times)
        if rng.random() < shift:
            start = sum(time < turn["start"] for time in frame_times)
            asked = max(start, said[-1].seen if said else 0)
        said += [LiveTurn("user", turn["instruction"], asked), LiveTurn("assistant", turn["answer"], seen)]
    return said


def _seen(turn: dict[str, Any], frame_times: Sequence[float]) -> int:
    """How many frames there are up to the end of a turn's interval."""
    return max(seen_when_asked(frame_times, turn["end"]), 1)


class StreamIt(Dataset):
    """Dense rows in Stream-IT's formats, as rows of a live training.

    Row i depends on the annotations, (seed, epoch, i) and the arguments below alone. Its frames begin with the first
    segment and end with the last one. The answers of every row are learned, and of its frames all that nobody's
    question follows. The activation model learns from proactive rows: give `proactive=1.0`.

    Args:
        rows: Dense rows of `load_dense_instruction`, or of `join_clips`.
        fps: Frames per second.
        proactive: Probability of a row to be in the proactive format; else it is in the multi-turn one.
        drop: Of the multi-turn format, see `multi_turns`.
        shift: Likewise.
        questions: Of the proactive format, one is drawn for each row.
        seed: Any integer.

    Raises:
        ValueError: For a probability outside of 0 to 1, no questions, or a row that is not dense; it is named.

    Example:
    ```python
    rows = load_dense_instruction("activitynet_captions", annotations="train.json", media_folder="videos")
    dataset = StreamIt(rows, fps=2.0)
    dataset.set_epoch(1)
    ```
    """

    def __init__(
        self,
        rows: Sequence[dict[str, Any]],
        fps: float = 2.0,
        proactive: float = PROACTIVE,
        drop: float = DROP,
        shift: float = SHIFT,
        questions: Sequence[str] = CAPTIONING,
        seed: int = 0,
    ):
        for name, share in (("proactive", proactive), ("drop", drop), ("shift", shift)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name}={share} is a probability, from 0 to 1")
        if not questions:
            raise ValueError("there is no question for the proactive format")
        self.rows, self.fps, self.proactive, self.drop, self.shift = rows, fps, proactive, drop, shift
        self.questions, self.seed, self.epoch = tuple(questions), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Have everything drawn anew."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> LiveSample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = self.rows[index]
        turns = row["turns"]
        if row["kind"] != "dense" or not turns:
            raise ValueError(f"row {row['id']}: Stream-IT is made of dense rows, whose turns have times")
        rng = random.Random(f"stream-it/{self.seed}/{self.epoch}/{index}")
        frame_times = frame_grid(turns[0]["start"], max(turn["end"] for turn in turns), self.fps)
        if rng.random() < self.proactive:
            said = proactive_turns(turns, rng.choice(self.questions), frame_times)
        else:
            said = multi_turns(turns, frame_times, rng, self.drop, self.shift)
        return LiveSample(conversation=lay_out(said, frame_times), frame_times=frame_times, media=row["media"])


def load_stream_it(
    dataset: str,
    annotations: str | os.PathLike | Sequence[str | os.PathLike],
    media_folder: str | os.PathLike | None = None,
    max_seconds: float | None = None,
    embeddings: str | os.PathLike | None = None,
    clips: int = CLIPS,
    fps: float = 2.0,
    seed: int = 0,
    **options: Any,
) -> StreamIt:
    """Load annotations in Stream-IT's formats, as a recipe names them.

    Args:
        dataset: Name of their layout, see `load_dense_instruction`.
        annotations: A file, a folder, a glob pattern, or several of these.
        media_folder: Where the videos lie; `None`: beside the annotations.
        max_seconds: A row lasts no longer; what does not fit goes into further rows.
        embeddings: A safetensors file with a vector for each row, by its `id`: similar clips are joined. `None`: every
            row is a video of its own.
        clips: How many clips are joined to a video.
        fps: Frames per second.
        seed: Of everything that is random.
        **options: More of `StreamIt`.

    Raises:
        ValueError: As `StreamIt`, `load_dense_instruction` and `join_clips`.
        FileNotFoundError: There is no annotation file.
    """
    rows: Any = load_dense_instruction(
        dataset, annotations=annotations, media_folder=media_folder, max_seconds=max_seconds
    )
    if embeddings is not None:
        rows = join_clips(list(rows), load_file(embeddings), fps, clips, seed)
    return StreamIt(rows, fps, seed=seed, **options)
