"""What a clock changes: StreamWorld with deadlines, the same model on clips and live, at full and at half speed.

    python benchmarks/live_protocol.py --json benchmarks/live_protocol.json
    python benchmarks/live_protocol.py --render benchmarks/live_protocol.json

The shipped tiny checkpoint is asked for facts that are true for a while. A run that was cut off goes on from `--runs`.
With `--render` the table goes into docs/benchmarks.md.
"""

import argparse
import json
from pathlib import Path

from transformers import AutoModel, AutoProcessor

from markers import between
from streamchat_hf import tiny_checkpoint
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Viewer
from streamchat_hf.evaluation.benchmark_run import run
from streamchat_hf.evaluation.benchmark_streamworld import FPS, MAX_NEW_TOKENS, StreamWorldBenchmark

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN = "<!-- live protocol: written by benchmarks/live_protocol.py -->\n"
END = "<!-- end of live protocol -->\n"
CLIPS = 300
FULL, HALF = 2.0, 1.0  # tokens per second; what most of the checkpoint's training was spoken at, and half of it
RUNS = (("official", FULL), ("official", HALF), ("streaming", 2 * FULL), ("streaming", FULL), ("streaming", HALF))
COLUMNS = ("clip", "slot", "deadline", "word", "spoken", "in_time", "true_when_spoken")


def load() -> Viewer:
    """The shipped checkpoint."""
    path = tiny_checkpoint()
    return Viewer(AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path))


def measure(protocol: str, speed: float, clips: int, folder: Path) -> dict:
    """One row of the table, with the answers behind it."""
    how = Conditions(protocol, FPS, tokens_per_second=speed, max_new_tokens=MAX_NEW_TOKENS)
    results = run(StreamWorldBenchmark(how, "streamchat-tiny", clips=clips), load, folder / f"{protocol}_{speed:g}")
    scores = {key: results["scores"][key] for key in ("n", "in_time", "true_when_spoken", "possible")}
    answers = [[row[column] for column in COLUMNS] for row in results["rows"]]
    return {"protocol": protocol, "tokens_per_second": speed, **scores, "answers": answers}


def verdict(rows: list[dict]) -> dict[str, bool]:
    """Whether half the speed costs something live, and nothing on clips."""
    by = {(row["protocol"], row["tokens_per_second"]): row for row in rows}
    return {
        "loses_live": by["streaming", HALF]["in_time"] < by["streaming", FULL]["in_time"],
        "same_on_clips": by["official", HALF]["answers"] == by["official", FULL]["answers"],
    }


def table(rows: list[dict]) -> str:
    """All rows as a Markdown table, in per cent."""
    columns = {"in_time": "told in time", "possible": "possible at this speed", "true_when_spoken": "true when spoken"}
    lines = [["protocol", "tokens per second", *columns.values()], ["---"] + ["---:"] * (1 + len(columns))]
    for row in rows:
        shares = (f"{100 * row[name]:.1f}" for name in columns)
        lines.append([row["protocol"], f"{row['tokens_per_second']:g}", *shares])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\nIn per cent of {rows[0]['n']} questions, held-out worlds, the shipped tiny checkpoint.\n"


def main() -> None:
    """Measures, or renders what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--runs", type=Path, default=Path("runs/live_protocol"))
    parser.add_argument("--json", type=Path, help="where the rows go")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        rows = json.loads(options.render.read_text())["rows"]
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(rows)))
        return
    rows = [measure(protocol, speed, options.clips, options.runs) for protocol, speed in RUNS]
    if options.json:
        result = {"columns": COLUMNS, "verdict": verdict(rows), "rows": rows}
        options.json.write_text(json.dumps(result) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
