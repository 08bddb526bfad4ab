"""Writes the tiny checkpoint's scores into README.md, between its markers, and the checkpoint's own card.

The numbers are those of `eval.json` and `training_log.json`, written when the checkpoint was made:

    python benchmarks/render_results.py
"""

import json
import sys
from pathlib import Path

from markers import between
from streamchat_hf.hub.card import render_card
from streamchat_hf.hub.results import results_table

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "src" / "streamchat_hf" / "assets" / "tiny-streamchat"
SCORES = CHECKPOINT / "eval.json"
BEGIN = "<!-- results: written by benchmarks/render_results.py -->\n"
END = "<!-- end of results -->\n"


def table(scores: dict) -> str:
    """The README's section."""
    return f"### The tiny checkpoint on combinations it never saw together\n\n{results_table(scores)}\n"


def rendered(readme: str, scores: dict) -> str:
    """The text of the README with the numbers in their place."""
    return between(readme, BEGIN, END, table(scores))


def shipped_card() -> str:
    """The card of the shipped checkpoint."""
    return render_card(CHECKPOINT, license="apache-2.0").content


def main() -> None:
    """Writes both documents."""
    if not SCORES.is_file():
        sys.exit(f"{SCORES} does not exist: run benchmarks/ship_tiny.py")
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(), json.loads(SCORES.read_text())))
    (CHECKPOINT / "README.md").write_text(shipped_card())


if __name__ == "__main__":
    main()
