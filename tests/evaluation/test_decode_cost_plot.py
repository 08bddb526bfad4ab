import pytest
from matplotlib.figure import Figure
from PIL import Image

from streamchat_hf.evaluation.decode_cost_plot import plot_decode_cost

SECONDS = {"fresh": 0.05, "frozen": 0.04, "reprefill": 0.5}
RESULT = {
    "settings": {"window": 2, "device": "cpu", "machine": "a machine", "dtype": "float32"},
    "steps": [
        {"mode": mode, "frames_seen": frames, "repeat": repeat, "seconds": seconds * frames * (1, 2, 9)[repeat]}
        for mode, seconds in SECONDS.items()
        for frames in (1, 2, 4)
        for repeat in range(3)
    ]
    + [{"mode": "append", "frames_seen": 2, "repeat": 0, "seconds": 77.0}],
}


def test_a_picture_is_written(tmp_path):
    plot_decode_cost(RESULT, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (960, 540) and len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_medians_are_lines_and_raw_rows_are_dots_in_milliseconds(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    plot_decode_cost(RESULT, tmp_path / "plot.png")
    [axes] = drawn[0].axes
    named = {str(line.get_label()).split(":")[0]: line for line in axes.lines}
    for label, mode in (("fresh", "fresh"), ("frozen", "frozen"), ("re-prefill", "reprefill")):
        assert list(named[label].get_xdata()) == [1, 2, 4]
        assert list(named[label].get_ydata()) == pytest.approx([2000 * SECONDS[mode] * n for n in (1, 2, 4)])
    assert list(named["window full (2 frames)"].get_xdata()) == [2, 2]
    dots = [value for line in axes.lines if line.get_linestyle() == "None" for value in line.get_ydata()]
    assert sorted(dots) == pytest.approx(
        sorted(1000 * row["seconds"] for row in RESULT["steps"] if row["mode"] in SECONDS)
    )
