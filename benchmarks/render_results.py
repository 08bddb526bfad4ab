"""Writes the tiny checkpoint's scores into README.md, between its markers, and the checkpoint's own card.

The numbers are those of `eval.json` and `training_log.json`, written when the checkpoint was made:

    python benchmarks/render_results.py
"""

import json
import math
import sys
from pathlib import Path

from safetensors import safe_open

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "src" / "streamchat_hf" / "assets" / "tiny-streamchat"
SCORES = CHECKPOINT / "eval.json"
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
        "*Blind*: with every frame grey.",
        "",
        "| words about | watching on | frozen | blind | chance | words |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, row in rows:
        shares = " | ".join(_share(row[viewer]) for viewer in ("fresh", "frozen", "grey", "chance"))
        lines.append(f"| {kind} | {shares} | {row['n']} |")
    settings = f"--split {scores['split']} --seed {scores['seed']} --clips {scores['clips']}"
    lines += ["", _details(scores), "", f"From `streamchat eval streamworld {settings}`.", ""]
    return "\n".join(lines)


DETAILS = """A perfect viewer of the frozen picture would be right in {oracle} of the words. Where the state has moved
since the question: {moved_fresh} watching on, {moved_frozen} frozen; where it has not: {unmoved_fresh} and
{unmoved_frozen}. In combinations never shown in training: {held} of {held_n} words. Changes while it speaks:
{reported} of {events} are reported within two seconds, and {false} of {reports} reports are false."""


def _details(scores: dict) -> str:
    """What the pooled numbers hide."""
    changes, held = scores["changes"]["fresh"], scores["in_heldout_combo"]["fresh"]
    parts = {
        f"{part}_{viewer}": _share(scores[part][viewer]["accuracy"])
        for part in ("moved", "unmoved")
        for viewer in ("fresh", "frozen")
    }
    return DETAILS.format(
        oracle=_share(scores["state_accuracy"]["oracle"]),
        held=_share(held["accuracy"]),
        held_n=held["n"],
        reported=_share(changes["reported"]),
        events=changes["n"],
        false=_share(changes["false_reports"]),
        reports=changes["reports"],
        **parts,
    )


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


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: video-text-to-text
tags:
- video
- streaming
- streamchat
- streamworld
---

# A tiny StreamChat that learned StreamWorld

{parameters:,} parameters: a StreamFormer that sees {image} pixel frames and a {layers}-layer Qwen2 with
cross-attention at layers {cross}. It knows the {vocabulary} words of StreamWorld and nothing of the real world; it is
there to show and to test how a model keeps watching while it talks.

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{folder}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{folder}", trust_remote_code=True)
```

## Training

`streamchat train recipes/streamchat/streamworld.yaml --output_dir runs/streamworld`, at commit `{commit}`,
seed {seed}. Stage 1 (vision tower, {align_steps} steps) took {align_minutes:.0f} minutes, stage 2 (text model,
{talk_steps} steps) {talk_minutes:.0f} minutes on a CPU with {threads} threads. The recipe and the whole loss curve
are in `training_log.json`. Data: StreamWorld, rendered while training; no combination of the held-out split is ever
shown.
Weights are stored as bfloat16 and computed in float32.

{table}"""


def card(scores: dict, log: dict, config: dict, parameters: int) -> str:
    """The checkpoint's model card, every number of it from a file."""
    recipe, curve = log["recipe"], log["log"]
    minutes = {
        stage: next(row["train_runtime"] for row in rows if "train_runtime" in row) / 60
        for stage, rows in curve.items()
    }
    return CARD.format(
        parameters=parameters,
        image=f"{config['vision_config']['image_size']} x {config['vision_config']['image_size']}",
        layers=config["text_config"]["num_hidden_layers"],
        cross=", ".join(map(str, config["cross_attention_layers"])),
        vocabulary=config["text_config"]["vocab_size"],
        folder="path/to/tiny-streamchat",
        commit=log["commit"],
        seed=recipe["seed"],
        align_steps=sum(recipe[stage]["trainer"]["max_steps"] for stage in ("align", "refine")),
        talk_steps=sum(recipe[stage]["trainer"]["max_steps"] for stage in ("talk", "practise")),
        align_minutes=minutes["align"] + minutes["refine"],
        talk_minutes=minutes["talk"] + minutes["practise"],
        threads=recipe["threads"],
        table=table(scores),
    )


def shipped_card() -> str:
    """The card of the shipped checkpoint."""
    with safe_open(CHECKPOINT / "model.safetensors", "pt") as weights:
        parameters = sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118 -- not a dict
    scores, log, config = (
        json.loads((CHECKPOINT / name).read_text()) for name in ("eval.json", "training_log.json", "config.json")
    )
    return card(scores, log, config, parameters)


def main() -> None:
    """Writes both documents."""
    if not SCORES.is_file():
        sys.exit(f"{SCORES} does not exist: run benchmarks/ship_tiny.py")
    readme = ROOT / "README.md"
    readme.write_text(rendered(readme.read_text(), json.loads(SCORES.read_text())))
    (CHECKPOINT / "README.md").write_text(shipped_card())


if __name__ == "__main__":
    main()
