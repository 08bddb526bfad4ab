import json
import sys
from pathlib import Path

import pytest

import live_protocol

ROOT = Path(__file__).parents[2]
MEASURED = json.loads((ROOT / "benchmarks" / "live_protocol.json").read_text())


def test_the_page_shows_what_was_measured():
    assert live_protocol.table(MEASURED["rows"]) in (ROOT / "docs" / "benchmarks.md").read_text()
    assert MEASURED["verdict"] == live_protocol.verdict(MEASURED["rows"])
    assert MEASURED["verdict"] == {"loses_live": True, "same_on_clips": True}


def test_the_shares_are_those_of_the_answers():
    for row in MEASURED["rows"]:
        answers = [dict(zip(MEASURED["columns"], answer, strict=True)) for answer in row["answers"]]
        assert len(answers) == row["n"] == live_protocol.CLIPS
        for name in ("in_time", "true_when_spoken"):
            assert sum(answer[name] for answer in answers) / len(answers) == row[name]
        assert row["in_time"] <= row["possible"]
        if row["protocol"] == "streaming":
            assert all(answer["spoken"] < answer["deadline"] for answer in answers if answer["in_time"])


def test_faster_is_better_live_and_no_matter_on_clips():
    by = {(row["protocol"], row["tokens_per_second"]): row for row in MEASURED["rows"]}
    live = [by["streaming", speed]["in_time"] for speed in (1.0, 2.0, 4.0)]
    assert live == sorted(live) and len(set(live)) == 3
    assert by["official", 1.0]["in_time"] == by["official", 2.0]["in_time"]


def test_each_verdict_can_break():
    def row(protocol, speed, in_time, answers=()):
        return {"protocol": protocol, "tokens_per_second": speed, "in_time": in_time, "answers": list(answers)}

    full, half = live_protocol.FULL, live_protocol.HALF
    clips, live = [row("official", full, 0.9, "a"), row("official", half, 0.9, "a")], row("streaming", full, 0.7)
    assert all(live_protocol.verdict([*clips, live, row("streaming", half, 0.5)]).values())
    assert not live_protocol.verdict([*clips, live, row("streaming", half, 0.7)])["loses_live"]
    clips[1] = row("official", half, 0.9, "b")
    assert not live_protocol.verdict([*clips, live, row("streaming", half, 0.5)])["same_on_clips"]


@pytest.mark.slow
def test_from_the_command_to_the_page(tmp_path, monkeypatch):
    result, page = tmp_path / "rows.json", tmp_path / "page.md"
    words = ["live_protocol.py", "--clips", "2", "--runs", tmp_path / "runs", "--json", result]
    monkeypatch.setattr(live_protocol, "PAGE", page)
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    live_protocol.main()
    first = result.read_text()
    live_protocol.main()  # nothing is answered again
    assert result.read_text() == first
    page.write_text(f"# Page\n\n{live_protocol.BEGIN}stale\n{live_protocol.END}")
    monkeypatch.setattr(sys, "argv", ["live_protocol.py", "--render", str(result)])
    live_protocol.main()
    assert "stale" not in page.read_text() and "| streaming | 1 |" in page.read_text()
