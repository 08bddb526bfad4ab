"""Writes which task needs time, and which tasks help which, into docs/multitask.md.

The numbers are those of `streamformer_tasks.json`, which `benchmarks/streamformer_tasks.py` writes.
"""

import json
import sys
from pathlib import Path

from markers import between
from streamformer_tasks import TASKS_OF_TIME, table

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "streamformer_tasks.json"
PAGE = ROOT / "docs" / "multitask.md"
BEGIN = "<!-- tasks: written by benchmarks/render_streamformer_tasks.py -->\n"
END = "<!-- end of tasks -->\n"


def findings(verdict: dict[str, dict]) -> list[str]:
    """What the comparison of the causal with the image-only tower says, a line per outcome that occurred."""
    told = {
        (True, True): "Needs time, and the causal tower is more than two standard deviations above image only",
        (True, False): "Needs time, and the causal tower is **not** that far above image only",
        (False, True): "Needs no time, and the causal tower is not below image only",
        (False, False): "Needs no time, and the causal tower is **below** image only",
    }
    lines = []
    for (needs_time, holds), text in told.items():
        found = [
            f"{task.replace('_', ' ')} ({100 * row['causal']:.1f} against {100 * row['image_only']:.1f})"
            for task, row in verdict.items()
            if (task in TASKS_OF_TIME, row["holds"]) == (needs_time, holds)
        ]
        if found:
            lines.append(f"- {text}: {', '.join(found)}.")
    return lines


def rendered(page: str, result: dict) -> str:
    """The text of the page with the numbers in their place."""
    commits = ", ".join(sorted({row["commit"] for row in result["rows"]}))
    lines = [table(result["rows"]) + f" Code: {commits}.", "", *findings(result["verdict"]), ""]
    return between(page, BEGIN, END, "\n".join(lines))


def main() -> None:
    """Writes the page's numbers."""
    if not RESULT.is_file():
        sys.exit(f"{RESULT} does not exist: run python benchmarks/streamformer_tasks.py --json {RESULT}")
    PAGE.write_text(rendered(PAGE.read_text(), json.loads(RESULT.read_text())))


if __name__ == "__main__":
    main()
