"""What is measured and how it is counted; never how long it takes."""

import json
from statistics import median

import pytest
import torch

from streamchat_hf.evaluation import streamformer_cost
from streamchat_hf.evaluation.streamformer_cost import (
    BASE,
    FULL,
    MODES,
    RATIOS,
    SMALL,
    check_ways,
    concatenated_frame,
    curves,
    make_model,
    measure_streamformer_cost,
)
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel

REPEATS = 7


@pytest.fixture(scope="module")
def result():
    return measure_streamformer_cost(SMALL, repeats=REPEATS, progress=False)


@pytest.fixture
def model():
    with torch.no_grad():
        yield make_model(SMALL.config, SMALL.window)


def test_every_ratio_is_that_of_the_medians_of_its_raw_rows(result):
    modes = {
        "full_over_first": ("full", "first"),
        "full_over_concatenated": ("full", "concatenated"),
        "folded_over_plain": ("folded", "plain"),
        "late_over_full": ("late", "early"),
    }
    assert set(modes) == set(RATIOS) == set(result["bounds"])
    for name, (above, below) in modes.items():
        seconds = {m: [row["seconds"] for row in result["steps"] if row["mode"] == m] for m in (above, below)}
        assert len(seconds[above]) == len(seconds[below]) == REPEATS
        assert result[name] == median(seconds[above]) / median(seconds[below])
        bound = RATIOS[name].bound
        assert result["bounds"][name] == {"bound": bound, "holds": result[name] <= bound}
    assert all(RATIOS[name].holds(result[name]) or name in result["measured_again"] for name in RATIOS)


def test_the_curves_have_a_row_per_mode_type_and_history(result):
    found = [(row["mode"], row["dtype"], row["history"]) for row in result["rows"]]
    expected = [("cache", dtype, n) for dtype in ("float32", "bfloat16") for n in SMALL.cached]
    expected += [(m, dtype, n) for m in MODES[1:] for dtype in ("float32", "bfloat16") for n in SMALL.recomputed]
    assert sorted(found) == sorted(expected)
    for row in result["rows"]:
        assert row["cpu_seconds_per_frame"] == median(row["seconds"]) > 0
        assert len(row["seconds"]) == (7 if row["mode"] == "cache" or row["history"] == 1 else 3)
    assert list(curves(result["rows"], "float32")) == [1, 2, 4, 8]
    assert set(curves(result["rows"], "bfloat16")[2]) == set(MODES)
    assert curves(result["rows"], "bfloat16")[2]["cache"]["dtype"] == "bfloat16"


def test_the_cache_has_the_size_of_its_window_however_long_it_watched(result):
    layers, patches, width = 2, 4, 16
    for row in result["rows"]:
        size = {"float32": 4, "bfloat16": 2}[row["dtype"]]
        assert row["cache_bytes"] == (
            2 * layers * patches * SMALL.window * width * size if row["mode"] == "cache" else 0
        )
    assert [row["frames_seen"] for row in result["memory"]] == [16, 31]
    assert len({row["cache_bytes"] for row in result["memory"]}) == 1


def test_all_of_it_can_be_written_as_json(result):
    value = json.loads(json.dumps(result))
    assert value["rows"] == result["rows"]
    assert value["settings"]["window"] == SMALL.window and value["settings"]["repeats"] == REPEATS
    assert {row["history"] for row in value["steps"] if row["mode"] == "late"} == {SMALL.late}


def test_sizes_are_the_papers_and_more_points_are_more():
    assert BASE.config == {} and BASE.window == 64 and max(BASE.cached) == 4096
    assert set(BASE.cached) < set(FULL.cached) and set(BASE.recomputed) < set(FULL.recomputed)


def test_concatenating_is_the_model(model):
    pixels, past = torch.randn(1, 4, 3, 16, 16), []
    whole = model(pixels)
    for t, frame in enumerate(pixels.split(1, dim=1)):
        hidden, pooled, past = concatenated_frame(model, frame, past, t)
        torch.testing.assert_close(hidden[:, 0], whole.last_hidden_state[:, t], atol=1e-5, rtol=0)
        torch.testing.assert_close(pooled[:, 0], whole.pooler_output[:, t], atol=1e-5, rtol=0)
        assert [keys.shape[2] for keys, _ in past] == [t + 1] * 2


def test_a_measured_frame_sees_what_its_history_says(model):
    for history, held in ((1, 1), (3, 3), (4, 4), (9, 4)):
        way, cache = streamformer_cost._cached_way("cache", model, SMALL.window, history)
        for _ in range(2):  # each time from the same place
            way.run(way.prepare())
            assert cache.frames_seen.tolist() == [history]
        way.prepare()
        assert cache.step(1, 1).key_frames.shape[1] == held
        assert way.frames_seen == history


def test_a_bidirectional_clip_sees_the_future_and_leaves_the_model_causal(model):
    causal = streamformer_cost._recomputing_way("recompute", model, 3)
    other = streamformer_cost._recomputing_way("bidirectional", model, 3)
    first, second = (way.run(None).last_hidden_state for way in (causal, other))
    assert first.shape == second.shape == (1, 3, 4, 16)
    assert (first - second)[:, 0].abs().max() > 1e-3
    assert torch.equal(causal.run(None).last_hidden_state, first)


def test_a_ratio_that_breaks_its_bound_is_measured_again(monkeypatch):
    seconds, turns = {"full": 1.3, "first": 1.0, "concatenated": 9.0}, []

    def timed(ways, repeats, device):
        turns.append(repeats)
        slower = 1.0 if len(turns) == 1 else 0.5
        return [
            {"mode": m, "frames_seen": 1, "tokens": 1, "repeat": 0, "seconds": s * (slower if m == "full" else 1)}
            for m, s in seconds.items()
        ]

    monkeypatch.setattr(streamformer_cost, "time_in_turn", timed)
    result = {"measured_again": [], "bounds": {}, "steps": []}
    streamformer_cost._judge(["full_over_first", "full_over_concatenated"], [], 7, result)
    assert turns == [7, 7] and result["measured_again"] == ["full_over_first"]
    assert result["bounds"]["full_over_first"] == {"ratio": 0.65, "bound": 1.2, "holds": True}
    assert len(result["steps"]) == 3


@pytest.mark.parametrize("broken", ["merge_lora", "fold_temporal_projection"])
def test_ways_that_differ_are_not_measured(model, monkeypatch, broken):
    check_ways(model, SMALL.window)
    honest = getattr(StreamFormerModel, broken)

    def careless(model):
        honest(model)
        model.norm.weight.mul_(1.001)
        return model

    monkeypatch.setattr(StreamFormerModel, broken, careless)
    with pytest.raises(RuntimeError, match="differ by"):
        check_ways(model, SMALL.window)


def test_too_few_repeats_are_refused():
    with pytest.raises(ValueError, match="6 repeats are too few"):
        measure_streamformer_cost(SMALL, repeats=6, progress=False)


def test_where_the_system_does_not_tell_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(streamformer_cost.Path, "read_text", lambda path: (_ for _ in ()).throw(FileNotFoundError()))
    assert streamformer_cost._status("VmRSS") is None
