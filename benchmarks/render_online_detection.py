"""Writes what streamed features are worth to online action detection into docs/online_detection.md.

The numbers are those of `online_detection_streamworld.json`, which `benchmarks/online_detection.py` writes.
"""

import json
import sys
from pathlib import Path

from markers import between

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "online_detection_streamworld.json"
PAGE = ROOT / "docs" / "online_detection.md"
BEGIN = "<!-- online detection: written by benchmarks/render_online_detection.py -->\n"
END = "<!-- end of online detection -->\n"


def table(result: dict) -> str:
    """The means and every action's average precision, in per cent, as Markdown."""
    actions = list(result["rows"][0]["by_class"])
    known, settings = result["chance"], result["settings"]
    train, held_out = settings["dataset"], settings["eval_dataset"]
    rows = [["features of a frame", "mAP", "mcAP", *(f"AP {name}" for name in actions)]]
    rows.append(["---", *["---:"] * (2 + len(actions))])
    for row in result["rows"]:
        numbers = [row["mAP"], row["mcAP"], *(row["by_class"][name]["AP"] for name in actions)]
        rows.append([row["features"], *(f"{100 * number:.1f}" for number in numbers)])
    numbers = [f"{100 * known[name]:.1f}" for name in ("mAP", "mcAP")]
    rows.append(["scores that know nothing", *numbers, *["–"] * len(actions)])
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    details = [
        f"Trained on {train['videos']} worlds of {train['seconds']:g} s, measured on {held_out['videos']} of",
        f"the split `{held_out['split']}` ({result['rows'][0]['n']:,} frames at {settings['fps']:g} per second).",
        f"{settings['max_steps']:,} steps, seed {settings['seed']}; {versions}.",
    ]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *details, ""])


def rendered(page: str, result: dict) -> str:
    """The text of the page with the numbers in their place."""
    return between(page, BEGIN, END, table(result))


def main() -> None:
    """Writes the page's numbers."""
    if not RESULT.is_file():
        sys.exit(f"{RESULT} does not exist: run python benchmarks/online_detection.py --json {RESULT}")
    PAGE.write_text(rendered(PAGE.read_text(), json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
