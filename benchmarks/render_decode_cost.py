"""Writes what a decoding step costs into docs/cost.md, between its markers, and draws the picture there.

The numbers are those of `decode_cpu.json`, the raw rows of one run:

    streamchat bench decode --json benchmarks/decode_cpu.json
    python benchmarks/render_decode_cost.py
"""

import json
import sys
from pathlib import Path

from markers import between
from streamchat_hf.evaluation.decode_cost import CURVE, RATIOS, median_curve
from streamchat_hf.evaluation.decode_cost_plot import plot_decode_cost
from streamchat_hf.evaluation.timing import median_seconds

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "decode_cpu.json"
PAGE = ROOT / "docs" / "cost.md"
PLOT = ROOT / "docs" / "images" / "decode_cost.png"
BEGIN = "<!-- decode cost: written by benchmarks/render_decode_cost.py -->\n"
END = "<!-- end of decode cost -->\n"


def table(result: dict) -> str:
    """The ratios beside their bounds, the curve, and memory, as Markdown."""
    lines = ["| one over the other | ratio | bound | holds | medians, ms |", "|---|---:|---:|---|---:|"]
    for name, ratio in RATIOS.items():
        above, below = (1000 * median_seconds(result["steps"], mode) for mode in (ratio.above, ratio.below))
        bound, holds = f"{'≥' if ratio.at_least else '≤'} {ratio.bound:.2f}", ratio.holds(result[name])
        cells = (f"{result[name]:.3f}", bound, "yes" if holds else "**no**", f"{above:.1f} / {below:.1f}")
        lines.append(f"| {ratio.what} | {' | '.join(cells)} |")
    lines += ["", f"| frames seen | {', ms | '.join(CURVE)}, ms |", "|---:|---:|---:|---:|"]
    for frames, seconds in median_curve(result["steps"]).items():
        lines.append(f"| {frames} | {' | '.join(f'{1000 * seconds[mode]:.1f}' for mode in CURVE)} |")
    return "\n".join([*lines, "", _details(result), ""])


DETAILS = """{memory}
The largest difference in the logits of a streamed step and a re-prefill that sees the same frames: {difference:.1e}.

One run, {repeats} repeats, on {device} ({machine}), {dtype}; {versions}. Ratios measured again: {again}."""


def _details(result: dict) -> str:
    def megabytes(kind: str) -> str:
        return " and ".join(f"{row[kind] / 2**20:.1f} MiB" for row in result["memory"])

    full, late = (row["frames_seen"] for row in result["memory"])
    memory = f"After {full} and after {late:,} frames the visual rows take {megabytes('visual_bytes')}"
    if result["memory"][0]["resident_bytes"] is not None:
        memory += f",\nthe process {megabytes('resident_bytes')}"
    settings = {name: result["settings"][name] for name in ("repeats", "device", "machine", "dtype")}
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    return DETAILS.format(
        memory=f"{memory}.",
        difference=result["reprefill_logit_difference"],
        versions=versions,
        again=", ".join(result["measured_again"]) or "none",
        **settings,
    )


def rendered(page: str, result: dict) -> str:
    """The text of the page with the numbers in their place."""
    return between(page, BEGIN, END, table(result))


def main() -> None:
    """Writes the page's numbers and its picture."""
    if not RESULT.is_file():
        sys.exit(f"{RESULT} does not exist: run streamchat bench decode --json {RESULT}")
    result = json.loads(RESULT.read_text())
    PAGE.write_text(rendered(PAGE.read_text(), result))
    plot_decode_cost(result, PLOT)


if __name__ == "__main__":
    main()
