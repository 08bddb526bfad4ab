"""The order of a mixture: by weight, fair to every row, the same everywhere, and longer only at its end."""

import json
from collections import Counter

import numpy as np
import pytest

from streamchat_hf.training.mixture import load_mixture, load_source, mixture_order
from training_runs import row, turn, write_rows


def test_weights_are_shares():
    order = mixture_order([10, 1000, 100], [3, 1, 1], 20000, seed=0)
    source = np.searchsorted([10, 1010, 1110], order, side="right")
    assert np.bincount(source) / 20000 == pytest.approx([0.6, 0.2, 0.2], abs=0.02)


def test_no_row_comes_again_before_all_others_have_come():
    order = mixture_order([7, 50], [1.0, 2.0], 1000, seed=3)
    for rows, size in ((order[order < 7], 7), (order[order >= 7], 50)):
        for begin in range(0, len(rows) - size, size):
            assert len(set(rows[begin : begin + size].tolist())) == size
        assert rows[:size].tolist() != rows[size : 2 * size].tolist()


def test_without_weights_an_epoch_has_every_row_once():
    order = mixture_order([7, 50, 3], None, 120, seed=1)
    assert Counter(order[:60].tolist()) == Counter(order[60:].tolist()) == Counter(range(60))


@pytest.mark.parametrize("weights", [None, [2.0, 1.0]])
def test_a_longer_run_begins_like_a_shorter_one(weights):
    long, short = (mixture_order([11, 20], weights, length, seed=5) for length in (500, 123))
    assert long[:123].tolist() == short.tolist()
    assert mixture_order([11, 20], weights, 123, seed=6).tolist() != short.tolist()


def test_sources_are_cut_and_concatenated(tmp_path):
    write_rows(tmp_path, 10)
    turns = [turn("what ?", "red blue", [float(start), start + 3.0]) for start in range(0, 40, 4)]
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps(row("dense", "long.mp4", *turns, name="long")) + "\n")
    first, second = (
        {"path": "json", "data_files": str(tmp_path / f"{name}.jsonl"), "cache_dir": str(tmp_path / "cache")}
        for name in ("rows", "long")
    )
    rows, sizes, weights = load_mixture([{**first, "weight": 0.3}, {**second, "weight": 0.7}], 1.0, 16)
    assert sizes == [10, 3] and weights == [0.3, 0.7] and len(rows) == 13
    assert rows["id"][10:] == ["long#0", "long#1", "long#2"]
    assert rows[10]["turns"][0] == turns[0]
    assert load_mixture([first, second], 1.0, 16)[2] is None


def test_a_configuration_of_the_loader_is_a_source(tmp_path):
    rows = load_source({"name": "streamworld", "clips": 2, "cache_dir": str(tmp_path)}, 2.0, 16)
    assert {line["kind"] for line in rows} == {"dense"} and len(rows) >= 2


def test_what_is_wrong_with_sources_is_said(tmp_path):
    rows = {"path": "json", "data_files": str(write_rows(tmp_path, 5)), "cache_dir": str(tmp_path / "cache")}
    for sources in ([], [{**rows, "weight": 1.0}, rows], [{**rows, "weight": 0.0}]):
        with pytest.raises(ValueError, match="weight"):
            load_mixture(sources, 1.0, 16)
    (tmp_path / "other.jsonl").write_text('{"text": "no row"}\n')
    with pytest.raises(ValueError, match="other.jsonl.*turns"):
        load_source({**rows, "data_files": str(tmp_path / "other.jsonl")}, 1.0, 16)
