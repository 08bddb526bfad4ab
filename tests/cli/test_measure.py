import json

import pytest
from PIL import Image

from cli_helpers import run, table_rows
from streamchat_hf.evaluation import streamformer_cost
from streamchat_hf.evaluation.streamformer_cost import BASE, FULL, RATIOS, SMALL, measure_streamformer_cost


@pytest.fixture(scope="module")
def cost():
    return measure_streamformer_cost(SMALL, repeats=7, progress=False)


@pytest.fixture
def measured(cost, monkeypatch):
    calls = []
    monkeypatch.setattr(
        streamformer_cost, "measure_streamformer_cost", lambda *args, **kwargs: calls.append(args) or cost
    )
    monkeypatch.setenv("COLUMNS", "160")
    return calls


def test_bench_streamformer_prints_tables_and_writes_rows_and_plot(cost, measured, tmp_path):
    path, plot = tmp_path / "cost.json", tmp_path / "cost.png"
    output = run("bench", "streamformer", "--small", "--repeats", 8, "--json", path, "--plot", plot).output
    assert measured == [(SMALL, 8)]
    assert json.loads(path.read_text()) == json.loads(json.dumps(cost))
    assert Image.open(plot).format == "PNG" and f"plot: {plot}" in output.replace("\n", "")
    table = table_rows(output)
    assert [row[1] for row in table[:4]] == [f"{cost[name]:.3f}" for name in RATIOS]
    assert [row[2:4] for row in table[:4]] == [["≤ 1.20", "–"], ["≤ 0.65", "–"], ["≤ 0.97", "–"], ["≤ 1.15", "–"]]
    assert [row[0] for row in table[4:12]] == [str(history) for history in SMALL.cached] * 2
    assert table[7][2:4] == ["–", "–"] and table[7][1] != "–"  # a clip of 8 is not computed again at this size
    assert table[-1][0] == str(SMALL.late - 1)


@pytest.mark.parametrize(("options", "size"), [([], BASE), (["--full"], FULL)])
def test_bench_streamformer_says_which_bounds_hold(cost, measured, options, size):
    cost["folded_over_plain"], before = 1.5, cost["folded_over_plain"]
    try:
        verdicts = [row[3] for row in table_rows(run("bench", "streamformer", *options).output)[:4]]
    finally:
        cost["folded_over_plain"] = before
    assert measured == [(size, 9)]
    assert verdicts == [
        "no" if name == "folded_over_plain" or not RATIOS[name].holds(cost[name]) else "yes" for name in RATIOS
    ]


def test_bench_streamformer_refuses_what_it_cannot_do_before_it_measures(measured):
    assert "no such folder" in run("bench", "streamformer", "--json", "/no/such/folder/x.json", code=1).stderr
    assert "exclude each other" in run("bench", "streamformer", "--small", "--full", code=2).stderr
    assert measured == []


def test_bench_videollm_online_prints_tables_and_writes_rows(tmp_path, monkeypatch):
    from streamchat_hf.evaluation import videollm_online_cost

    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "cost.json"
    output = run("bench", "videollm-online", "--small", "--repeats", 7, "--json", path).output
    result = json.loads(path.read_text())
    table = table_rows(output)
    assert [row[0] for row in table] == ["2", "6", "streaming", "interleaved", "per-frame"]
    assert [row[1] for row in table[2:]] == [str(row["tokens"]) for row in result["methods"]]
    assert result["settings"]["frames"] == videollm_online_cost.SMALL.frames
