"""What the first token of an answer costs a bridged model, in time and memory, drawn against the frames seen."""

from pathlib import Path
from typing import Any

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(f"a plot needs {error.name}: pip install 'streamchat-hf[bench]'") from None

# Colours that also those tell apart who see no red or no green; the first one is for what is not compressed.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
STYLES = {"reuse": "-", "re-prefill": "--"}


def plot_bridge_cost(result: dict[str, Any], path: Path) -> None:
    """Draws the curves of what [`measure_bridge_cost`] returns.

    Args:
        result: its rows are drawn: milliseconds to the first token at the left, memory at the right.
        path: the picture; its suffix decides the format.

    Raises:
        OSError: if the file cannot be written.
        ValueError: if the suffix is none of matplotlib's formats.
    """
    settings = result["settings"]
    figure = Figure(figsize=(10, 5), layout="constrained")
    time, memory = figure.subplots(1, 2)
    lengths = sorted({row["max_length"] or 0 for row in result["rows"]})
    for colour, longest in zip(COLOURS, lengths, strict=False):
        label = str(longest or "uncompressed")
        for mode, style in STYLES.items():
            rows = [row for row in result["rows"] if (row["mode"], row["max_length"] or 0) == (mode, longest)]
            seen = [row["frames_seen"] for row in rows]
            look = {"color": colour, "linestyle": style, "label": f"{label}, {mode}"}
            time.plot(seen, [1000 * row["first_token_seconds"] for row in rows], **look)
            if mode == "reuse":  # both hold the same
                memory.plot(seen, [row["bytes"] / 2**20 for row in rows], **look)
    for axes, name in ((time, "CPU milliseconds to the first token"), (memory, "MiB of tokens, keys and values")):
        axes.grid(alpha=0.3)
        axes.set_xlabel("frames seen")
        axes.set_ylabel(name)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    figure.suptitle(f"A bridged model of random weights, one thread of cpu ({settings['machine']})")
    handles = time.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=len(lengths), title="max_length")
    figure.savefig(path, dpi=120)
