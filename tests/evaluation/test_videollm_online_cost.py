"""What watching costs: every method reads the conversation that it should, and only such numbers come out."""

import pytest
import torch

from streamchat_hf.data.live_methods import METHODS
from streamchat_hf.evaluation.videollm_online_cost import (
    SMALL,
    measure_live_cost,
    method_row,
    random_model,
    watch_by_script,
)
from streamchat_hf.modeling.cache_videollm_online import LiveFrame

PROMPT, WORDS, END, COMMA, V = [20, 21], [30, 31], 1, 11, 64
OPEN, CLOSE, K = [2, 3], [4, 5, 6], 5


@pytest.fixture(scope="module")
def model():
    return random_model(SMALL)


@pytest.fixture(scope="module")
def frames():
    return [LiveFrame(i / 2, torch.randn(K, 16)) for i in range(4)]


def test_what_each_method_reads(model, frames):
    answers = {1: WORDS, 2: [40]}
    frame = [V] * K

    def read(method):
        cache = watch_by_script(model, PROMPT, frames, answers, method)
        return cache.ids + cache.pending

    said, other, silent = [*CLOSE, *WORDS, END], [*CLOSE, 40, END], [*CLOSE, END]
    turn = [*OPEN, *frame]
    expected = {
        "streaming": [*turn, COMMA, *frame, *said, *turn, *other, *turn],
        "interleaved": [*turn, COMMA, *frame, *said, *turn, *other, *turn, *other],
        "per-frame": [*turn, *silent, *turn, *said, *turn, *other, *turn, *silent],
    }
    assert {method: read(method) for method in METHODS} == {name: PROMPT + ids for name, ids in expected.items()}
    with pytest.raises(ValueError, match="unknown learning method"):
        read("ours")


def test_memory_is_that_of_the_tokens_held(model, frames):
    row = method_row(model, PROMPT, frames, {}, "streaming")
    assert row["tokens"] == len(PROMPT) + len(OPEN) + 4 * K + 3 and row["frames"] == 4
    assert row["cache_bytes"] == row["tokens"] * 2 * 2 * 8 * 4  # two layers, keys and values, 8 numbers of 4 bytes
    assert row["frames_per_second"] == pytest.approx(4 / row["cpu_seconds"])


def test_everything_that_is_measured():
    result = measure_live_cost(SMALL, repeats=7, progress=False)
    assert [row["frames_seen"] for row in result["silent_frame"]] == list(SMALL.frames_seen)
    first, second = (row["tokens"] for row in result["silent_frame"])
    assert second - first == 4 * (K + 1) and all(row["cpu_seconds"] > 0 for row in result["silent_frame"])
    tokens = {row["method"]: row["tokens"] for row in result["methods"]}
    assert list(tokens) == list(METHODS)
    assert tokens["streaming"] < tokens["per-frame"] and tokens["streaming"] < tokens["interleaved"]
    assert len(result["steps"]) == 7 * len(SMALL.frames_seen)
    with pytest.raises(ValueError, match="6 repeats are too few"):
        measure_live_cost(SMALL, repeats=6)


def test_a_silent_frame_is_read_from_the_same_state_every_time(model, frames):
    from streamchat_hf.evaluation.videollm_online_cost import _silent_frame

    way, length = _silent_frame(model, PROMPT, frames)
    kept = []
    for _ in range(2):
        cache = way.prepare()
        assert cache.get_seq_length() == length == len(cache.ids)
        way.run(cache)
        kept.append((cache.silence, cache.get_seq_length()))
    assert kept[0] == kept[1] and kept[0][1] == length + K + 1
