"""What a new frame costs StreamFormer, in time and memory, drawn against the frames seen."""

from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f"a plot needs {error.name}: pip install 'streamchat-hf[bench]'") from None

# Mode: label, colour, marker; colours that also those tell apart who see no red or no green.
LINES = {
    "bidirectional": ("bidirectional: the clip computed again", "#d55e00", "s"),
    "recompute": ("causal: the clip computed again", "#e69f00", "x"),
    "cache": ("causal, with the cache", "#0072b2", "o"),
}
STYLES = {"float32": "-", "bfloat16": "--"}


def plot_streamformer_cost(result: dict[str, Any], path: Path) -> None:
    """Draws the curves of what [`measure_streamformer_cost`] returns.

    Args:
        result: its rows are drawn: seconds per new frame at the left, memory of the cache at the right;
            float32 solid and bfloat16 dashed.
        path: the picture; its suffix decides the format.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the suffix is none of matplotlib's formats.
    """
    settings = result["settings"]
    figure = Figure(figsize=(10, 5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for mode, (label, colour, marker) in LINES.items():
        for dtype, style in STYLES.items():
            rows = [row for row in result["rows"] if (row["mode"], row["dtype"]) == (mode, dtype)]
            look = {"color": colour, "marker": marker, "linestyle": style, "label": f"{label}, {dtype}"}
            time.plot([row["history"] for row in rows], [row["cpu_seconds_per_frame"] for row in rows], **look)
            if mode == "cache":  # the others keep nothing
                memory.plot([row["history"] for row in rows], [row["cache_bytes"] / 2**20 for row in rows], **look)
    for axes, name in ((time, "CPU seconds per new frame"), (memory, "MiB of the cache")):
        axes.axvline(settings["window"], color="grey", linestyle=":")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"frames seen (dotted: window of {settings['window']} full)")
        axes.set_ylabel(name)
    time.set_yscale("log")
    time.yaxis.set_major_formatter("{x:g}")
    memory.set_ylim(bottom=0)
    figure.suptitle(f"StreamFormer, one new frame, one thread of {settings['device']} ({settings['machine']})")
    figure.legend(*time.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
