"""What is measured of a bridged model: everything but the seconds is known beforehand."""

from itertools import pairwise

import pytest
import torch

from streamchat_hf.bridge.rounds import Frame
from streamchat_hf.evaluation.bridge_cost import GRID, measure_bridge_cost, random_bridge


@pytest.fixture(scope="module")
def result() -> dict:
    return measure_bridge_cost(frames=40, every=10, max_lengths=(100, 150), repeats=2)


def of(result: dict, mode: str, longest: int | None) -> list[dict]:
    return [row for row in result["rows"] if (row["mode"], row["max_length"]) == (mode, longest)]


def test_there_is_a_row_for_every_way_length_and_question(result):
    for mode in ("reuse", "re-prefill"):
        for longest in (100, 150, None):
            rows = of(result, mode, longest)
            assert [row["frames_seen"] for row in rows] == [1, 10, 20, 30, 40]
            for row in rows:
                assert len(row["seconds"]) == 2
                assert min(row["seconds"]) <= row["first_token_seconds"] <= max(row["seconds"])
    assert len(result["rows"]) == 30
    assert result["settings"]["tokens_per_frame"] == 4


@pytest.mark.parametrize("mode", ["reuse", "re-prefill"])
def test_the_input_is_as_long_as_it_may_be_and_no_longer(result, mode):
    for longest in (100, 150):
        lengths = [row["input_tokens"] for row in of(result, mode, longest)]
        assert max(lengths) <= longest
        assert min(lengths[3:]) > longest - 22  # so much is a round of one frame, which may have been forgotten
    uncompressed = of(result, mode, None)[-1]["input_tokens"]
    assert uncompressed > 40 * 4


def test_only_what_is_new_is_read_while_nothing_is_compressed(result):
    for row in of(result, "re-prefill", None):
        assert row["read_tokens"] == row["input_tokens"]
    rows = of(result, "reuse", None)
    for before, row in pairwise(rows[1:]):
        assert row["read_tokens"] == row["input_tokens"] - before["input_tokens"] - 3  # an answer of 4: one is unread
    for mode in ("reuse", "re-prefill"):
        assert [row["bytes"] for row in of(result, mode, None)] == sorted(
            row["bytes"] for row in of(result, mode, None)
        )


def test_memory_is_the_same_at_any_time_once_it_is_full(result):
    for longest in (100, 150):
        held = [row["bytes"] for row in of(result, "re-prefill", longest)[3:]]
        assert max(held) <= 1.1 * min(held)


def test_the_random_model_watches_and_answers():
    bridge = random_bridge(200)
    buffer = bridge.new_cache()
    buffer.see([Frame(0.0, torch.zeros(GRID[0] * GRID[1], 128), GRID)])
    output = bridge.generate("what now ?", past_key_values=buffer, tokens_per_second=4.0, max_new_tokens=3)
    assert output.shape[1] == buffer.get_seq_length()
