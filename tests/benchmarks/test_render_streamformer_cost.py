import json
from pathlib import Path

import pytest
from PIL import Image

import render_streamformer_cost as render

ROOT = Path(__file__).parents[2]

SECONDS = {
    **{"full": 0.7, "first": 0.5, "concatenated": 1.4, "plain": 0.5, "folded": 0.45},
    **{"late": 0.0521, "early": 0.05},
}
RESULT = {
    "full_over_first": 1.4,
    "full_over_concatenated": 0.5,
    "folded_over_plain": 0.9,
    "late_over_full": 1.042,
    "measured_again": ["full_over_first"],
    "memory": [
        {"frames_seen": 512, "cache_bytes": 2**20, "resident_bytes": 2**30},
        {"frames_seen": 4095, "cache_bytes": 2**20, "resident_bytes": 2**30 + 2**19},
    ],
    "rows": [
        {"mode": mode, "dtype": dtype, "history": history, "cpu_seconds_per_frame": seconds, "cache_bytes": size}
        for dtype in ("float32", "bfloat16")
        for mode, history, seconds, size in (
            ("cache", 8, 0.5, 2**21),
            ("recompute", 8, 3.0, 0),
            ("bidirectional", 8, 3.1, 0),
            ("cache", 4096, 0.5, 2**21),
        )
    ],
    "settings": {"window": 64, "repeats": 9, "device": "cpu", "machine": "a machine"},
    "versions": {"python": "3.11.1", "torch": "2.13.0"},
    "steps": [{"mode": mode, "history": 8, "repeat": 0, "seconds": seconds} for mode, seconds in SECONDS.items()],
}


def test_the_page_shows_the_numbers_of_the_stored_run():
    page = render.PAGE.read_text()
    assert page == render.rendered(page, json.loads(render.RESULT.read_text()))


def test_the_stored_numbers_are_those_of_the_stored_rows():
    result = json.loads(render.RESULT.read_text())
    for name, ratio in render.RATIOS.items():
        assert result[name] == ratio.of(result["steps"])
        assert result["bounds"][name] == {"bound": ratio.bound, "holds": ratio.holds(result[name])}


def test_every_ratio_stands_beside_its_bound_and_every_point_in_its_row():
    lines = render.table(RESULT).splitlines()
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in lines if line.startswith("| ")]
    assert rows[1:5] == [
        ["1.400", "≤ 1.20", "**no**", "700.0 / 500.0"],
        ["0.500", "≤ 0.65", "yes", "700.0 / 1400.0"],
        ["0.900", "≤ 0.97", "yes", "450.0 / 500.0"],
        ["1.042", "≤ 1.15", "yes", "52.1 / 50.0"],
    ]
    assert lines.count("| 8 | 500 | 3000 | 3100 | 2 |") == lines.count("| 4096 | 500 | – | – | 2 |") == 2


def test_details_say_where_and_how():
    text = " ".join(render.table(RESULT).split())
    assert (
        "After 512 and after 4,095 frames the cache of the small model takes 1.0 MiB and 1.0 MiB, the process" in text
    )
    assert "One run, 9 repeats, on cpu (a machine); python 3.11.1, torch 2.13.0." in text
    assert "Ratios measured again: full_over_first." in text
    assert "Ratios measured again: none." in render.table({**RESULT, "measured_again": []})
    memory = [{**row, "resident_bytes": None} for row in RESULT["memory"]]
    assert "the process" not in render.table({**RESULT, "memory": memory})


def test_main_writes_the_page_and_draws(tmp_path, monkeypatch):
    paths = {"RESULT": tmp_path / "result.json", "PAGE": tmp_path / "page.md", "PLOT": tmp_path / "cost.png"}
    for name, path in paths.items():
        monkeypatch.setattr(render, name, path)
    with pytest.raises(SystemExit, match="does not exist"):
        render.main()
    paths["RESULT"].write_text(json.dumps(RESULT))
    paths["PAGE"].write_text(f"{render.BEGIN}{render.END}")
    render.main()
    assert "| 8 | 500 | 3000 | 3100 | 2 |" in paths["PAGE"].read_text()
    assert Image.open(paths["PLOT"]).format == "PNG"
