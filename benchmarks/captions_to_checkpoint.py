"""Runs `examples/captions_to_checkpoint.py` with a scripted language model; its scores go into docs/training.md.

    make train-captions

The scripted model answers from the captions in its prompt alone. The scores lie in `captions_to_checkpoint.json`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from markers import between

ROOT = Path(__file__).parents[1]
SCORES = Path(__file__).with_suffix(".json")
PAGE = ROOT / "docs" / "training.md"
BEGIN = "<!-- scores: written by benchmarks/captions_to_checkpoint.py -->\n"
END = "<!-- end of scores -->\n"


def table(result: dict[str, Any]) -> str:
    """What was run and the scores of both models, kind by kind."""
    settings, scores = result["settings"], result["scores"]
    lines = [
        f"With {settings['videos']} rendered videos and {result['segments']['kept']} instructions,",
        f"the `streaming_score` ([metrics.md](metrics.md)) on {settings['clips']} new clips:",
        "",
        "| words about | untrained | trained |",
        "|---|---:|---:|",
    ]
    kinds = sorted(scores["trained"]["by_kind"])
    for kind in kinds:
        shares = (scores[name]["by_kind"].get(kind, {}).get("score", 0.0) for name in scores)
        lines.append(f"| {kind} | {' | '.join(f'{share:.2f}' for share in shares)} |")
    lines.append(f"| **all** | {scores['untrained']['score']:.2f} | {scores['trained']['score']:.2f} |")
    return "\n".join([*lines, ""])


def rendered(page: str, result: dict[str, Any]) -> str:
    """The text of the page with the numbers in their place."""
    return between(page, BEGIN, END, table(result))


def main() -> None:
    """Trains, then writes JSON and page."""
    sys.path.insert(0, str(ROOT / "tests"))
    from scripted_endpoint import ScriptedEndpoint, streamworld_script

    folder = ROOT / "runs" / "captions"
    online = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}  # else none is called
    script = ROOT / "examples" / "captions_to_checkpoint.py"
    with ScriptedEndpoint(streamworld_script) as endpoint:
        command = [sys.executable, script, folder, "--model", "scripted", "--base-url", endpoint.url]
        subprocess.run(command, env=online, check=True)
    shutil.copy(folder / "scores.json", SCORES)
    PAGE.write_text(rendered(PAGE.read_text(), json.loads(SCORES.read_text())))


if __name__ == "__main__":
    main()
