import json
import sys
from pathlib import Path

import pytest
import torch

import live_alerts
from live_training_runs import TEXT, source

ROOT = Path(__file__).parents[2]


def row(learned, on_time=0.9, false_alarms=0.05, fluency=0.9, **numbers):
    live = {"live_on_time": on_time, "live_false_alarms": false_alarms, "live_events": 4, "live_responses": 5}
    return {"learned": learned, "fluency": fluency, **live, **numbers}


def test_verdict_holds_every_bound_and_each_can_break():
    others = [row("interleaved", fluency=0.5), row("per-frame", fluency=0.6)]
    assert live_alerts.verdict([row("streaming"), *others]) == dict.fromkeys(
        ("on_time", "false_alarms", "fluency"), True
    )
    for name, broken in (
        ("on_time", row("streaming", on_time=0.79)),
        ("false_alarms", row("streaming", false_alarms=0.11)),
        ("fluency", row("streaming", fluency=0.55)),
    ):
        assert [key for key, holds in live_alerts.verdict([broken, *others]).items() if not holds] == [name]
    assert not live_alerts.verdict([row("streaming"), others[0]])["fluency"]


def test_shuffling_keeps_every_frame_and_not_their_order():
    frames = torch.arange(12.0)
    turned = live_alerts.shuffled(frames)
    assert sorted(turned.tolist()) == frames.tolist() and not torch.equal(turned, frames)
    assert torch.equal(live_alerts.shuffled(frames), turned)


def test_table_has_a_line_for_each_row():
    rows = [row("streaming", live_correct=1.0), {**row("streaming, shuffled frames"), "fluency": None}]
    lines = live_alerts.table(rows, 200).splitlines()
    assert lines[0] == "| learned | on time | false alarms | right words | Fluency | events | responses |"
    assert lines[2:4] == [
        "| streaming | 90.0 | 5.0 | 100.0 | 90.0 | 4 | 5 |",
        "| streaming, shuffled frames | 90.0 | 5.0 | – | – | 4 | 5 |",
    ]
    assert lines[-1].startswith("Of 200 held-out worlds")


def test_the_page_shows_what_was_measured():
    result = ROOT / "benchmarks" / "live_alerts.json"
    measured = json.loads(result.read_text())
    assert live_alerts.table(measured["rows"], measured["worlds"]) in (ROOT / "docs/videollm_online.md").read_text()
    assert measured["verdict"] == live_alerts.verdict(measured["rows"])
    assert measured["rows"][1]["live_on_time"] < 0.5 < measured["rows"][0]["live_on_time"]  # vision matters


@pytest.mark.slow
def test_from_the_command_to_the_page(tmp_path, monkeypatch):
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "text_config": TEXT, "bf16": False}
    changes |= {"datasets": [source(4)]}
    result, page = tmp_path / "rows.json", tmp_path / "page.md"
    words = ["--methods", "streaming", "per-frame", "--worlds", "2", "--set", json.dumps(changes)]
    words += ["--runs", tmp_path / "runs", "--json", result]
    monkeypatch.setattr(live_alerts, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["live_alerts.py", *map(str, words)])
    live_alerts.main()
    first = json.loads(result.read_text())
    assert [row["learned"] for row in first["rows"]] == ["streaming", "streaming, shuffled frames", "per-frame"]
    weights = tmp_path / "runs" / "streaming" / "final" / "model.safetensors"
    when = weights.stat().st_mtime_ns
    live_alerts.main()  # nothing is trained again
    assert json.loads(result.read_text()) == first and weights.stat().st_mtime_ns == when
    page.write_text(f"# Page\n\n{live_alerts.BEGIN}old\n{live_alerts.END}")
    monkeypatch.setattr(sys, "argv", ["live_alerts.py", "--render", str(result)])
    live_alerts.main()
    assert "old" not in page.read_text() and "| per-frame |" in page.read_text()
