import json
from pathlib import Path

import pytest
from PIL import Image

import render_decode_cost

ROOT = Path(__file__).parents[2]

SECONDS = {
    **{"text_only": 0.5, "qwen2": 0.5, "new_frame": 0.06, "no_frame": 0.05, "reprefill_window": 1.3, "append": 0.1},
    **{"late": 0.0521, "full": 0.05, "fresh": 0.04, "frozen": 0.03, "reprefill": 0.2},
}
RESULT = {
    "text_only_over_qwen2": 1.0,
    "new_frame_over_none": 1.2,
    "reprefill_over_append": 13.0,
    "late_over_full": 1.042,
    "measured_again": ["late_over_full"],
    "memory": [
        {"frames_seen": 32, "visual_bytes": 2**20, "resident_bytes": 2**30, "cuda_bytes": None},
        {"frames_seen": 10_000, "visual_bytes": 2**20, "resident_bytes": 2**30 + 2**19, "cuda_bytes": None},
    ],
    "reprefill_logit_difference": 2.1e-6,
    "settings": {"window": 32, "repeats": 15, "device": "cpu", "machine": "a machine", "dtype": "float32"},
    "versions": {"python": "3.11.1", "torch": "2.13.0"},
    "steps": [
        {"mode": mode, "frames_seen": 8, "tokens": 1, "repeat": 0, "seconds": seconds}
        for mode, seconds in SECONDS.items()
    ],
}


def test_the_page_shows_the_numbers_of_the_stored_run():
    page = render_decode_cost.PAGE.read_text()
    assert page == render_decode_cost.rendered(page, json.loads(render_decode_cost.RESULT.read_text()))


def test_the_stored_ratios_are_those_of_the_stored_rows():
    result = json.loads(render_decode_cost.RESULT.read_text())
    for name, ratio in render_decode_cost.RATIOS.items():
        assert result[name] == ratio.of(result["steps"])


def test_every_ratio_stands_beside_its_bound():
    lines = render_decode_cost.table(RESULT).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("| ")]
    assert rows[1:5] == [
        ["1.000", "≥ 0.97", "yes", "500.0 / 500.0"],
        ["1.200", "≤ 1.10", "**no**", "60.0 / 50.0"],
        ["13.000", "≥ 12.00", "yes", "1300.0 / 100.0"],
        ["1.042", "≤ 1.05", "yes", "52.1 / 50.0"],
    ]
    assert "| 8 | 40.0 | 30.0 | 200.0 |" in lines


def test_details_say_where_and_how():
    text = " ".join(render_decode_cost.table(RESULT).split())
    assert "After 32 and after 10,000 frames the visual rows take 1.0 MiB and 1.0 MiB, the process 1024.0 MiB" in text
    assert "sees the same frames: 2.1e-06." in text
    assert "One run, 15 repeats, on cpu (a machine), float32; python 3.11.1, torch 2.13.0." in text
    assert "Ratios measured again: late_over_full." in text
    assert "Ratios measured again: none." in render_decode_cost.table({**RESULT, "measured_again": []})


def test_where_the_system_does_not_tell_the_process_is_left_out():
    memory = [{**row, "resident_bytes": None} for row in RESULT["memory"]]
    assert "the process" not in render_decode_cost.table({**RESULT, "memory": memory})


def test_main_writes_the_page_and_draws(tmp_path, monkeypatch):
    paths = {"RESULT": tmp_path / "result.json", "PAGE": tmp_path / "cost.md", "PLOT": tmp_path / "cost.png"}
    for name, path in paths.items():
        monkeypatch.setattr(render_decode_cost, name, path)
    with pytest.raises(SystemExit, match="does not exist"):
        render_decode_cost.main()
    paths["RESULT"].write_text(json.dumps(RESULT))
    paths["PAGE"].write_text(f"{render_decode_cost.BEGIN}{render_decode_cost.END}")
    render_decode_cost.main()
    assert "| 8 | 40.0 | 30.0 | 200.0 |" in paths["PAGE"].read_text()
    assert Image.open(paths["PLOT"]).format == "PNG"
