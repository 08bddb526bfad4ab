"""Writes what a new frame costs StreamFormer into docs/streamformer.md, between its markers, and draws the picture.

The numbers are those of `streamformer_cpu.json`, the raw rows of one run:

    streamchat bench streamformer --json benchmarks/streamformer_cpu.json
    python benchmarks/render_streamformer_cost.py
"""

import json
import sys
from pathlib import Path

from markers import between
from streamchat_hf.evaluation.streamformer_cost import MODES, RATIOS, curves
from streamchat_hf.evaluation.streamformer_cost_plot import plot_streamformer_cost
from streamchat_hf.evaluation.timing import median_seconds

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "streamformer_cpu.json"
PAGE = ROOT / "docs" / "streamformer.md"
PLOT = ROOT / "docs" / "images" / "streamformer_cost.png"
BEGIN = "<!-- streamformer cost: written by benchmarks/render_streamformer_cost.py -->\n"
END = "<!-- end of streamformer cost -->\n"

DETAILS = """{memory}
One run, {repeats} repeats, on {device} ({machine}); {versions}. Ratios measured again: {again}."""


def table(result: dict) -> str:
    """The ratios beside their bounds, the curves of both types, and memory, as Markdown."""
    lines = ["| one over the other | ratio | bound | holds | medians, ms |", "|---|---:|---:|---|---:|"]
    for name, ratio in RATIOS.items():
        above, below = (1000 * median_seconds(result["steps"], mode) for mode in (ratio.above, ratio.below))
        holds = "yes" if ratio.holds(result[name]) else "**no**"
        lines.append(
            f"| {ratio.what} | {result[name]:.3f} | ≤ {ratio.bound:.2f} | {holds} | {above:.1f} / {below:.1f} |"
        )
    for dtype in ("float32", "bfloat16"):
        lines += [
            "",
            f"| frames seen, {dtype} | {', ms | '.join(MODES)}, ms | cache, MiB |",
            "|---:|---:|---:|---:|---:|",
        ]
        for history, modes in curves(result["rows"], dtype).items():
            times = (f"{1000 * modes[mode]['cpu_seconds_per_frame']:.0f}" if mode in modes else "–" for mode in MODES)
            held = f"{modes['cache']['cache_bytes'] / 2**20:.0f}" if "cache" in modes else "–"
            lines.append(f"| {history} | {' | '.join(times)} | {held} |")
    return "\n".join([*lines, "", _details(result), ""])


def _details(result: dict) -> str:
    def sizes(kind: str) -> str:
        return " and ".join(f"{row[kind] / 2**20:.1f} MiB" for row in result["memory"])

    early, late = (row["frames_seen"] for row in result["memory"])
    memory = f"After {early:,} and after {late:,} frames the cache of the small model takes {sizes('cache_bytes')}"
    if result["memory"][0]["resident_bytes"] is not None:
        memory += f",\nthe process {sizes('resident_bytes')}"
    return DETAILS.format(
        memory=f"{memory}.\n",
        versions=", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        again=", ".join(result["measured_again"]) or "none",
        **{name: result["settings"][name] for name in ("repeats", "device", "machine")},
    )


def rendered(page: str, result: dict) -> str:
    """The text of the page with the numbers in their place."""
    return between(page, BEGIN, END, table(result))


def main() -> None:
    """Writes the page's numbers and its picture."""
    if not RESULT.is_file():
        sys.exit(f"{RESULT} does not exist: run streamchat bench streamformer --json {RESULT}")
    result = json.loads(RESULT.read_text())
    PAGE.write_text(rendered(PAGE.read_text(), result))
    plot_streamformer_cost(result, PLOT)


if __name__ == "__main__":
    main()
