"""Writes the tiny checkpoint's scores into README.md, between its markers.

The numbers are those that `streamchat eval streamworld --json` wrote when the checkpoint was made:

    python benchmarks/render_results.py
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCORES = ROOT / "src" / "streamchat_hf" / "assets" / "tiny-streamchat" / "eval.json"
BEGIN = "<!-- results: written by benchmarks/render_results.py -->\n"
END = "<!-- end of results -->\n"


def table(scores: dict) -> str:
    """The score as a Markdown table, watching on against frozen at the question, kind by kind."""
    rows = [*scores["by_kind"].items(), ("**all**", {**scores["state_accuracy"], "n": scores["n"]})]
    lines = [
        "### The tiny checkpoint on combinations it never saw together",
        "",
        "How often a word is true of the world when it is spoken, in clips of colours and shapes that were never",
        "shown together in training. *Frozen*: the same model and clips, with the video stopped at the question.",
        "*Blind*: with every frame black.",
        "",
        "| words about | watching on | frozen | blind | chance | words |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, row in rows:
        shares = " | ".join(_share(row[viewer]) for viewer in ("fresh", "frozen", "grey", "chance"))
        lines.append(f"| {kind} | {shares} | {row['n']} |")
    settings = f"--split {scores['split']} --seed {scores['seed']} --clips {scores['clips']}"
    return "\n".join([*lines, "", f"From `streamchat eval streamworld {settings}`.", ""])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def rendered(readme: str, scores: dict) -> str:
    """The text of the README with the table in its place.

    Raises:
        ValueError: A marker is missing.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md needs the lines {BEGIN.strip()!r} and {END.strip()!r}")
    return f"{before}{begin}{table(scores)}{end}{after}"


if __name__ == "__main__":
    if not SCORES.is_file():
        sys.exit(f"{SCORES} does not exist: run streamchat eval streamworld --json {SCORES}")
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(), json.loads(SCORES.read_text())))
