from matplotlib.figure import Figure
from PIL import Image

from streamchat_hf.evaluation.bridge_cost_plot import plot_bridge_cost

RESULT = {
    "settings": {"machine": "a machine"},
    "rows": [
        {"mode": mode, "max_length": longest, "frames_seen": seen, "first_token_seconds": seen / scale, "bytes": 2**20}
        for mode, scale in (("reuse", 1000), ("re-prefill", 500))
        for longest in (512, None)
        for seen in (1, 2, 4)
    ],
}


def test_a_picture_is_written(tmp_path):
    plot_bridge_cost(RESULT, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.size == (1200, 600) and len(picture.convert("RGB").getcolors(1 << 20)) > 20


def test_every_way_is_a_line_of_time_and_every_length_one_of_memory(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(figure))
    plot_bridge_cost(RESULT, tmp_path / "plot.png")
    time, memory = ({str(line.get_label()): line for line in axes.lines} for axes in drawn[0].axes)
    assert set(memory) == {"512, reuse", "uncompressed, reuse"}
    assert set(time) == {*memory, "512, re-prefill", "uncompressed, re-prefill"}
    for label, line in time.items():
        assert list(line.get_xdata()) == [1, 2, 4]
        scale, style = (1, "-") if label.endswith("reuse") else (2, "--")
        assert list(line.get_ydata()) == [scale, 2 * scale, 4 * scale]
        assert line.get_linestyle() == style
    assert list(memory["uncompressed, reuse"].get_ydata()) == [1, 1, 1]
