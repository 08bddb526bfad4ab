"""The time of a decoding step against frames seen, drawn."""

from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f"a plot needs {error.name}: pip install 'streamchat-hf[bench]'") from None

from streamchat_hf.evaluation.decode_cost import median_curve

# Mode: label, colour, marker; colours that also those tell apart who see no red or no green.
LINES = {
    "reprefill": ("re-prefill: frames in the window and text anew", "#d55e00", "s"),
    "fresh": ("fresh: takes over a new frame, its rows ready", "#0072b2", "o"),
    "frozen": ("frozen: takes over no frame", "#009e73", "x"),
}


def plot_decode_cost(result: dict[str, Any], path: Path) -> None:
    """Draws what [`measure_decode_cost`] returns.

    Args:
        result: its curve is drawn: every raw row as a dot, the medians as lines, both axes logarithmic.
        path: the picture; its suffix decides the format.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the suffix is none of matplotlib's formats.
    """
    settings, curve = result["settings"], median_curve(result["steps"])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for mode, (label, colour, marker) in LINES.items():
        rows = [row for row in result["steps"] if row["mode"] == mode]
        dots = [row["frames_seen"] for row in rows], [1000 * row["seconds"] for row in rows]
        axes.plot(*dots, ".", color=colour, alpha=0.25, markeredgewidth=0)
        medians = [1000 * seconds[mode] for seconds in curve.values()]
        axes.plot(list(curve), medians, color=colour, marker=marker, label=label)
    axes.axvline(settings["window"], color="grey", linestyle=":", label=f"window full ({settings['window']} frames)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.set_xlabel("frames seen")
    axes.set_ylabel("ms per token")
    axes.set_title(f"Speaking one token, {settings['device']} ({settings['machine']}), {settings['dtype']}")
    figure.legend(loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
