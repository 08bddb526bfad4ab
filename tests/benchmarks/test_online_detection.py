import json
import sys
from pathlib import Path

import pytest
import torch

import online_detection
import render_online_detection as render
from streamchat_hf.training.online_detection import WatchedVideo

ROW = {"mAP": 0.5, "mcAP": 0.75, "n": 4800, "by_class": {"left": {"AP": 0.25}, "gone": {"AP": 0.75}}}
RESULT = {
    "settings": {
        "dataset": {"videos": 160, "seconds": 60.0},
        "eval_dataset": {"videos": 40, "seconds": 60.0, "split": "heldout"},
        **{"fps": 2.0, "max_steps": 1000, "seed": 0},
    },
    "chance": {"mAP": 0.125, "mcAP": 0.5},
    "rows": [{"features": "streamed", **ROW}],
    "versions": {"torch": "2.13.0"},
}


def test_the_page_shows_the_numbers_of_the_stored_run():
    page = render.PAGE.read_text()
    assert page == render.rendered(page, json.loads(render.RESULT.read_text()))


def test_the_stored_run_shows_what_time_is_worth():
    result = json.loads(render.RESULT.read_text())
    rows = {row["features"]: row for row in result["rows"]}
    streamed, alone, shuffled = (rows[name] for name in (*online_detection.VARIANTS, online_detection.SHUFFLED))
    assert streamed["mAP"] > alone["mAP"] + 0.1 and streamed["mcAP"] > alone["mcAP"] + 0.05
    assert abs(shuffled["mAP"] - result["chance"]["mAP"]) < 0.02 and abs(shuffled["mcAP"] - 0.5) < 0.02


def test_the_table():
    lines = render.table(RESULT).splitlines()
    assert lines[:4] == [
        "| features of a frame | mAP | mcAP | AP left | AP gone |",
        "| --- | ---: | ---: | ---: | ---: |",
        "| streamed | 50.0 | 75.0 | 25.0 | 75.0 |",
        "| scores that know nothing | 12.5 | 50.0 | – | – |",
    ]
    assert "(4,800 frames at 2 per second). 1,000 steps, seed 0; torch 2.13.0." in " ".join(lines)


def test_main_writes_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(render, "PAGE", tmp_path / "page.md")
    with pytest.raises(SystemExit, match="does not exist"):
        render.main()
    render.RESULT.write_text(json.dumps(RESULT))
    render.PAGE.write_text(f"before\n{render.BEGIN}old\n{render.END}after\n")
    render.main()
    assert render.PAGE.read_text() == f"before\n{render.BEGIN}{render.table(RESULT)}{render.END}after\n"


def test_shuffled_features_are_the_same_ones_elsewhere():
    videos = [WatchedVideo(torch.randn(5, 2), [[0]] * 5), WatchedVideo(torch.randn(3, 2), [[1]] * 3)]
    mixed = online_detection.shuffled(videos)
    assert [len(video.features) for video in mixed] == [5, 3]
    assert [video.labels for video in mixed] == [video.labels for video in videos]
    one, two = (torch.cat([video.features for video in some]) for some in (videos, mixed))
    assert not torch.equal(one, two) and torch.equal(one.sort(0).values, two.sort(0).values)


def test_chance_counts_actions_alone():
    videos = [WatchedVideo(torch.zeros(4, 1), [[0], [1, 2], [1], [0]])]
    assert online_detection.chance(videos, 3) == (2 / 4 + 1 / 4) / 2


def test_a_short_run_writes_all_rows_and_trains_nothing_twice(tmp_path, monkeypatch, capsys):
    short = {"name": "streamworld", "videos": 2, "seconds": 20.0}
    changes = {"max_steps": 1, "dataset": short, "eval_dataset": short | {"split": "heldout"}, "use_cpu": True}
    words = ["--set", json.dumps(changes), "--runs", tmp_path / "runs", "--json", tmp_path / "result.json"]
    monkeypatch.setattr(sys, "argv", ["online_detection.py", *map(str, words)])
    online_detection.main()
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["features"] for row in result["rows"]] == [*online_detection.VARIANTS, online_detection.SHUFFLED]
    assert str(tmp_path) not in json.dumps(result)
    render.table(result)
    weights = Path(tmp_path, "runs", "each_frame_alone", "final", "model.safetensors")
    when = weights.stat().st_mtime_ns
    online_detection.main()
    assert weights.stat().st_mtime_ns == when and json.loads((tmp_path / "result.json").read_text()) == result
