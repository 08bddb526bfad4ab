"""Writes what towers with and without time answer into docs/video_qa.md, between its markers.

The numbers are those of `video_qa.json`, every row of one run:

    python benchmarks/video_qa.py --json benchmarks/video_qa.json
    python benchmarks/render_video_qa.py
"""

import json
import statistics
import sys
from pathlib import Path

from markers import between

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "video_qa.json"
PAGE = ROOT / "docs" / "video_qa.md"
BEGIN = "<!-- video qa: written by benchmarks/render_video_qa.py -->\n"
END = "<!-- end of video qa -->\n"
NAMES = {"streamchat": "StreamChat", "llava": "LLaVA-NeXT-Video"}


def table(result: dict) -> str:
    """Accuracies in per cent, a row for each model and tower, the mean over seeds, as Markdown."""
    kinds = [*result["settings"]["kinds"], "mean"]
    lines = [["model", "tower", *(kind.replace("_", " ") for kind in kinds)], ["---", "---"] + ["---:"] * len(kinds)]
    rows = result["rows"]
    for architecture, tower in dict.fromkeys((row["architecture"], row["tower"]) for row in rows):
        same = [row["accuracy"] for row in rows if (row["architecture"], row["tower"]) == (architecture, tower)]
        shares = (f"{100 * statistics.mean(scores[kind] for scores in same):.1f}" for kind in kinds)
        lines.append([NAMES[architecture], tower, *shares])
    chance = f"{100 * result['chance']:.1f}"
    lines.append(["chance", "", *[chance] * len(kinds)])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{_details(result)}\n"


def _details(result: dict) -> str:
    settings, rows = result["settings"], result["rows"]
    seeds = sorted({row["seed"] for row in rows})
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    tower = "The tower of the shipped tiny checkpoint" if settings["tower"] == "shipped" else "A tower of one's own"
    asked = f"{settings['questions']} questions about new worlds, of each seed ({', '.join(map(str, seeds))})"
    return (
        f"Per cent of {asked}. {tower},\n"
        f"{settings['frames']} frames, visual tokens of a frame: {settings['visual_tokens']}, {settings['steps']} "
        f"updates of 32 questions. On cpu ({settings['machine']}); {versions}."
    )


def rendered(page: str, result: dict) -> str:
    """The text of the page with the numbers in their place."""
    return between(page, BEGIN, END, table(result))


def main() -> None:
    """Writes the page's numbers."""
    if not RESULT.is_file():
        sys.exit(f"{RESULT} does not exist: run benchmarks/video_qa.py --json {RESULT}")
    PAGE.write_text(rendered(PAGE.read_text(), json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
