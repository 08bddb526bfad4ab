"""Latency of an answer's first token and memory of a bridged model, against the frames it has seen.

    python benchmarks/bridge_latency.py --json benchmarks/bridge_latency.json
    python benchmarks/bridge_latency.py --render benchmarks/bridge_latency.json

A model of random weights watches 2000 frames and is asked after every 50: with several `max_length`, uncompressed
beside them, with keys and values used again and with everything read for every answer. It takes a few minutes of one
CPU thread. With `--render` the table goes into docs/streambridge.md, and the picture beside it.
"""

import argparse
import json
from pathlib import Path

from markers import between
from streamchat_hf.evaluation.bridge_cost import WAYS, measure_bridge_cost
from streamchat_hf.evaluation.bridge_cost_plot import plot_bridge_cost
from streamchat_hf.training.commit import code_commit

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "bridge_latency.json"
PAGE = ROOT / "docs" / "streambridge.md"
PLOT = ROOT / "docs" / "images" / "bridge_latency.png"
BEGIN = "<!-- latency: written by benchmarks/bridge_latency.py -->\n"
END = "<!-- end of latency -->\n"
SHOWN = (1, 50, 100, 200, 500, 1000, 1500, 2000)


def table(result: dict) -> str:
    """Milliseconds of each way, and memory, as a Markdown table with a line for each number of frames."""
    rows = {(row["mode"], row["max_length"], row["frames_seen"]): row for row in result["rows"]}
    lengths = [*sorted({row["max_length"] for row in result["rows"] if row["max_length"]}), None]
    seen = [number for number in SHOWN if (WAYS[0], None, number) in rows]
    names = ["uncompressed" if longest is None else str(longest) for longest in lengths]
    lines = [["frames seen", *(f"{name}: ms" for name in names), *(f"{name}: MiB" for name in names)]]
    lines += [["---:"] * len(lines[0])]
    for number in seen:
        cells = []
        for longest in lengths:
            times = [f"{1000 * rows[way, longest, number]['first_token_seconds']:.0f}" for way in WAYS]
            cells.append(" / ".join(times))
        held = [f"{rows[WAYS[0], longest, number]['bytes'] / 2**20:.1f}" for longest in lengths]
        lines.append([str(number), *cells, *held])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    settings, versions = result["settings"], result["versions"]
    last = [rows[way, None, seen[-1]] for way in WAYS]
    return (
        f"{body}\n\n"
        f"Milliseconds of CPU time from the question to the first token: {' / '.join(WAYS)}, medians of "
        f"{settings['repeats']} streams. A question after every {settings['every']} frames; "
        f"{settings['tokens_per_frame']} visual tokens a frame; uncompressed, the input has "
        f"{last[0]['input_tokens']:,} tokens at the end. One thread of cpu ({settings['machine']}); "
        f"python {versions['python']}, torch {versions['torch']}.\n"
    )


def main() -> None:
    """Measures and writes the JSON; or renders one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        result = json.loads(options.render.read_text())
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(result)))
        plot_bridge_cost(result, PLOT)
        return
    result = {"commit": code_commit(), **measure_bridge_cost(options.frames, repeats=options.repeats)}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
