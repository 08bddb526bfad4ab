import json

import pytest
from PIL import Image

import bridge_latency as render

RESULT = {
    "settings": {"every": 50, "repeats": 3, "tokens_per_frame": 4, "machine": "a machine"},
    "versions": {"python": "3.11.1", "torch": "2.13.0"},
    "rows": [
        {
            **{"mode": mode, "max_length": longest, "frames_seen": seen, "first_token_seconds": seen * scale / 1000},
            **{"input_tokens": 4 * seen, "bytes": seen * 2**20, "seconds": [1.0]},
        }
        for mode, scale in (("reuse", 1), ("re-prefill", 2))
        for longest in (512, None)
        for seen in (1, 50, 150, 2000)
    ],
}


def test_the_page_shows_the_numbers_of_the_stored_run():
    page = render.PAGE.read_text()
    result = json.loads(render.RESULT.read_text())
    assert page == render.between(page, render.BEGIN, render.END, render.table(result))


def test_latency_is_flat_and_memory_constant_once_the_buffer_is_full():
    """Counted in tokens, not in seconds: what is read for an answer does not grow any more, nor what is held."""
    rows = json.loads(render.RESULT.read_text())["rows"]
    lengths = {row["max_length"] for row in rows} - {None}
    assert len(lengths) >= 3
    for longest in lengths:
        for mode in ("reuse", "re-prefill"):
            late = [
                row
                for row in rows
                if (row["mode"], row["max_length"]) == (mode, longest) and 4 * row["frames_seen"] > longest
            ]
            assert late[-1]["frames_seen"] == 2000
            assert max(row["input_tokens"] for row in late) <= longest
            assert max(row["bytes"] for row in late) == pytest.approx(late[0]["bytes"], rel=0.05)
    [last] = [row for row in rows if (row["mode"], row["max_length"], row["frames_seen"]) == ("reuse", None, 2000)]
    assert last["input_tokens"] > 8000


def test_every_number_of_frames_has_its_line():
    lines = render.table(RESULT).splitlines()
    assert lines[0] == "| frames seen | 512: ms | uncompressed: ms | 512: MiB | uncompressed: MiB |"
    assert lines[2:5] == [
        "| 1 | 1 / 2 | 1 / 2 | 1.0 | 1.0 |",
        "| 50 | 50 / 100 | 50 / 100 | 50.0 | 50.0 |",
        "| 2000 | 2000 / 4000 | 2000 / 4000 | 2000.0 | 2000.0 |",
    ]
    assert "the input has 8,000 tokens at the end. One thread of cpu (a machine); python 3.11.1" in lines[6]


def test_main_measures_or_renders(tmp_path, monkeypatch, capsys):
    paths = {"PAGE": tmp_path / "page.md", "PLOT": tmp_path / "plot.png"}
    for name, path in paths.items():
        monkeypatch.setattr(render, name, path)
    measured = []
    monkeypatch.setattr(render, "measure_bridge_cost", lambda frames, repeats: measured.append(frames) or RESULT)
    monkeypatch.setattr("sys.argv", ["bridge_latency.py", "--frames", "7", "--json", str(tmp_path / "result.json")])
    render.main()
    assert measured == [7]
    assert json.loads((tmp_path / "result.json").read_text())["rows"] == RESULT["rows"]
    assert "| 50 | 50 / 100 |" in capsys.readouterr().out
    paths["PAGE"].write_text(f"{render.BEGIN}{render.END}")
    monkeypatch.setattr("sys.argv", ["bridge_latency.py", "--render", str(tmp_path / "result.json")])
    render.main()
    assert "| 50 | 50 / 100 |" in paths["PAGE"].read_text()
    assert Image.open(paths["PLOT"]).format == "PNG"
    monkeypatch.setattr("sys.argv", ["bridge_latency.py", "--render", str(tmp_path / "none.json")])
    with pytest.raises(FileNotFoundError):
        render.main()
