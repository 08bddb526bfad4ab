"""The twin sees what our loop sees, and the table says who was quicker."""

import json
import sys

import pytest

import live_silent_frame_twin as benchmark


def test_both_ways_are_timed_in_turn():
    result = benchmark.measure(repeats=1, frames_seen=(2,))
    assert sorted(row["mode"] for row in result["rows"]) == ["ours_2", "twin_2"]
    assert all(row["seconds"] > 0 for row in result["rows"])


def test_a_twin_that_sees_something_else_is_an_error(monkeypatch):
    monkeypatch.setattr(benchmark.NaiveTwin, "is_silent", lambda self, frame: (True, 0.5))
    with pytest.raises(RuntimeError, match="the two differ"):
        benchmark.ways_at(1, *benchmark.build_models())


@pytest.mark.parametrize(("seconds", "verdict"), [(0.5, "holds"), (0.9, "BROKEN")])
def test_the_table(monkeypatch, capsys, tmp_path, seconds, verdict):
    rows = [{"mode": mode, "seconds": seconds if "ours" in mode else 1.0} for mode in ("ours_10", "twin_10")]
    rows += [{"mode": mode, "seconds": seconds if "ours" in mode else 1.0} for mode in ("ours_600", "twin_600")]
    ratios = {name: ratio.of(rows) for name, ratio in benchmark.RATIOS.items()}
    monkeypatch.setattr(benchmark, "measure", lambda repeats: {**ratios, "rows": rows})
    path = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["twin", "--json", str(path)])
    benchmark.main()
    output = capsys.readouterr().out
    assert output.count(verdict) == 2
    assert f"{seconds:.3f}" in output
    assert json.loads(path.read_text())["rows"] == rows
