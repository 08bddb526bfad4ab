"""The twin sees what our loop sees, and the table says who was quicker."""

import json
import sys

import pytest

import live_silent_frame_twin as benchmark

RESULT = benchmark.Path(benchmark.__file__).with_name("live_silent_frame.json")


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


def test_the_page_shows_what_was_measured(monkeypatch, tmp_path):
    result = json.loads(RESULT.read_text())
    assert {name: ratio.of(result["rows"]) for name, ratio in benchmark.RATIOS.items()} == {
        name: result[name] for name in benchmark.RATIOS
    }
    shown = benchmark.PAGE.read_text().partition(benchmark.BEGIN)[2].partition(benchmark.END)[0]
    assert shown == benchmark.table(result)
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{benchmark.BEGIN}old\n{benchmark.END}")
    monkeypatch.setattr(benchmark, "PAGE", page)
    monkeypatch.setattr(benchmark, "measure", None)
    monkeypatch.setattr(sys, "argv", ["twin", "--render", str(RESULT)])
    benchmark.main()
    assert page.read_text() == f"# Page\n\n{benchmark.BEGIN}{shown}{benchmark.END}"
