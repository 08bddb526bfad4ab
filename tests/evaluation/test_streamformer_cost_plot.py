import pytest
from matplotlib.figure import Figure
from PIL import Image

from streamchat_hf.evaluation.streamformer_cost_plot import plot_streamformer_cost

SECONDS = {"cache": 0.5, "recompute": 2.0, "bidirectional": 3.0}
RESULT = {
    "settings": {"window": 2, "device": "cpu", "machine": "a machine"},
    "rows": [
        {
            **{"mode": mode, "dtype": dtype, "history": history, "cpu_seconds_per_frame": seconds * history * scale},
            **{"cache_bytes": history * 2**20},
        }
        for mode, seconds in SECONDS.items()
        for dtype, scale in (("float32", 1), ("bfloat16", 0.25))
        for history in (1, 2, 4)
    ],
}


def test_a_picture_is_written(tmp_path):
    plot_streamformer_cost(RESULT, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (1200, 600) and len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_every_mode_and_type_is_a_line_of_seconds_and_the_cache_one_of_memory(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    plot_streamformer_cost(RESULT, tmp_path / "plot.png")
    time, memory = ({str(line.get_label()): line for line in axes.lines} for axes in drawn[0].axes)
    for label, mode in (
        ("causal, with the cache", "cache"),
        ("causal: the clip computed again", "recompute"),
        ("bidirectional: the clip computed again", "bidirectional"),
    ):
        for dtype, scale, style in (("float32", 1, "-"), ("bfloat16", 0.25, "--")):
            line = time[f"{label}, {dtype}"]
            assert line.get_linestyle() == style and list(line.get_xdata()) == [1, 2, 4]
            assert list(line.get_ydata()) == pytest.approx([SECONDS[mode] * scale * n for n in (1, 2, 4)])
            held = memory.get(f"{label}, {dtype}")
            assert (held is not None) == (mode == "cache")
            assert held is None or (list(held.get_xdata()), list(held.get_ydata())) == ([1, 2, 4], [1, 2, 4])
