import numpy as np
import pytest

from streamchat_hf.data.live_conversation import Clip
from streamchat_hf.data.stream_it_join import join_clips, similarity_chain
from video_files import write_video


def naive_chain(embeddings, first):
    """Algorithm 2 as it reads: take the most similar clip that is left, put it at the end."""
    chain, left = [first], [i for i in range(len(embeddings)) if i != first]
    while left:
        newest = embeddings[chain[-1]]
        cosines = [
            float(newest @ embeddings[i] / np.linalg.norm(newest) / np.linalg.norm(embeddings[i])) for i in left
        ]
        chain.append(left.pop(cosines.index(max(cosines))))
    return chain


@pytest.mark.parametrize("seed", range(5))
def test_each_clip_is_followed_by_the_most_similar_one_that_is_left(seed):
    embeddings = np.random.default_rng(seed).normal(size=(40, 8)) * np.random.default_rng(9).uniform(0.1, 9, (40, 1))
    chain = similarity_chain(embeddings, seed)
    assert chain == naive_chain(embeddings, chain[0])
    assert sorted(chain) == list(range(40))
    assert chain == similarity_chain(embeddings.astype(np.float32) * 3, seed), "how long they are does not count"


def test_the_chain_begins_anywhere():
    embeddings = np.random.default_rng(0).normal(size=(10, 4))
    assert len({similarity_chain(embeddings, seed)[0] for seed in range(30)}) > 5


@pytest.mark.parametrize(
    ("embeddings", "error"),
    [(np.ones(3), r"\(N, D\)"), (np.ones((0, 2)), r"\(N, D\)"), ([[1, 0], [0, 0]], "zero"), ([[np.nan, 1]], "finite")],
)
def test_embeddings_that_are_none_are_refused(embeddings, error):
    with pytest.raises(ValueError, match=error):
        similarity_chain(embeddings)


def rows_of(folder, seconds):
    rows = []
    for k, length in enumerate(seconds):
        path = write_video(folder / f"{k}.mp4", range(0, round(1000 * length), 100), codec_options={"g": "5"})
        turns = [{"instruction": "Q", "answer": f"A{k}", "start": 0.0, "end": length, "word_times": [0.0]}]
        rows.append({"id": f"c{k}", "source": f"f:{k}", "kind": "dense", "media": str(path), "turns": turns})
    return rows


def test_joined_clips_follow_each_other_frame_by_frame_with_what_is_said_of_them(tmp_path):
    rows = rows_of(tmp_path, [2.0, 1.2, 3.0])
    embeddings = {"c0": [1.0, 0.0], "c1": [0.9, 0.1], "c2": [0.8, 0.9]}
    [joined] = join_clips(rows, embeddings, fps=2.0, clips=5, seed=2)
    order = [int(name[1:]) for name in joined["id"].split(" + ")]
    assert order == similarity_chain(np.array(list(embeddings.values())), 2)
    frames = {0: 4, 1: 3, 2: 6}  # at two per second, the last one within the clip
    begins = np.cumsum([0, *(frames[k] / 2 for k in order[:-1])]).tolist()
    assert joined["media"] == tuple(Clip(rows[k]["media"], begin) for k, begin in zip(order, begins, strict=True))
    assert [turn["answer"] for turn in joined["turns"]] == [f"A{k}" for k in order]
    assert [turn["start"] for turn in joined["turns"]] == begins
    # What lasts to the end of its clip ends with the clip's last frame, before the next clip's first one.
    ends = [begin + (frames[k] - 1) / 2 for k, begin in zip(order, begins, strict=True)]
    assert [turn["end"] for turn in joined["turns"]] == ends


def test_clips_are_counted_off(tmp_path):
    rows = rows_of(tmp_path, [1.0] * 5)
    embeddings = {f"c{k}": [1.0, 0.1 * k] for k in range(5)}
    joined = join_clips(rows, embeddings, clips=2)
    assert [len(row["media"]) for row in joined] == [2, 2, 1]
    assert len({clip.path for row in joined for clip in row["media"]}) == 5


def test_what_cannot_be_joined_is_named(tmp_path):
    rows = rows_of(tmp_path, [1.0, 1.0])
    with pytest.raises(ValueError, match="no embedding of 1 clips, the first is 'c1'"):
        join_clips(rows, {"c0": [1.0]})
    with pytest.raises(ValueError, match="at least one"):
        join_clips(rows, {"c0": [1.0], "c1": [1.0]}, clips=0)
    rows[1]["kind"] = "video"
    with pytest.raises(ValueError, match="row c1: clips are joined of dense rows"):
        join_clips(rows, {"c0": [1.0], "c1": [1.0]})
