"""Does it speak when it should: StreamWorld's alerts, watched live, by all three learning methods.

    python benchmarks/live_alerts.py --json benchmarks/live_alerts.json
    python benchmarks/live_alerts.py --render benchmarks/live_alerts.json

Every method is trained by `recipes/videollm_online/tiny_alerts.yaml`, unless that is done in `--runs`, and asked to
tell when something happens in held-out worlds; the streaming one also with the frames of every world shuffled. With
`--render` the table goes into docs/videollm_online.md.
"""

import argparse
import json
from pathlib import Path

import torch
import yaml
from transformers import AutoModel, AutoProcessor

from markers import between
from streamchat_hf.data.live_methods import METHODS
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.evaluation.videollm_online import dialogue_metrics
from streamchat_hf.evaluation.videollm_online_alerts import alert_metrics
from streamchat_hf.training.__main__ import find_recipe

RECIPE = "videollm_online/tiny_alerts.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "videollm_online.md"
BEGIN = "<!-- alerts: written by benchmarks/live_alerts.py -->\n"
END = "<!-- end of alerts -->\n"
WORLDS = 200
SEED = 1000  # of the held-out worlds
TOLERANCE = 1  # frames
ON_TIME, FALSE_ALARMS = 0.80, 0.10  # at least, at most


def held_out(worlds: int, num_frames: int) -> list:
    """Rows of one alert each, every fifth of which never comes, in worlds of held-out combinations."""
    rows = LiveStreamWorld(
        worlds, seed=SEED, split="heldout", num_frames=num_frames, kinds={"alert": 1.0}, max_queries=1
    )
    return [rows[i] for i in range(worlds)]


def shuffled(pixels: torch.Tensor) -> torch.Tensor:
    """Frames in another order, always the same for as many."""
    return pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))]


def measure(folder: Path, method: str, rows: list) -> list[dict]:
    """The row of one method, and of the streaming one another with shuffled frames."""
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    written = dialogue_metrics(model, processor, rows, method)
    ways = {method: None, f"{method}, shuffled frames": shuffled}
    found = []
    for name, see in list(ways.items())[: 2 if method == "streaming" else 1]:
        live = alert_metrics(model, processor, rows, TOLERANCE, method=method, see=see, max_new_tokens=16)
        said = live.pop("rows")
        teacher_forced = {} if see else written
        found.append({"learned": name, **teacher_forced, **{f"live_{key}": live[key] for key in live}, "rows": said})
    return found


def verdict(rows: list[dict]) -> dict[str, bool]:
    """Whether the streaming model keeps to the bounds, and its Fluency is above those of the others."""
    by_name = {row["learned"]: row for row in rows}
    ours = by_name["streaming"]
    fluencies = [by_name[method]["fluency"] for method in METHODS[1:] if method in by_name]
    return {
        "on_time": ours["live_on_time"] >= ON_TIME,
        "false_alarms": ours["live_false_alarms"] <= FALSE_ALARMS,
        "fluency": len(fluencies) == 2 and ours["fluency"] > max(fluencies),
    }


def table(rows: list[dict], worlds: int) -> str:
    """All rows as a Markdown table, in per cent."""
    columns = {
        "live_on_time": "on time",
        "live_false_alarms": "false alarms",
        "live_correct": "right words",
        "fluency": "Fluency",
    }
    lines = [["learned", *columns.values(), "events", "responses"], ["---"] + ["---:"] * (len(columns) + 2)]
    for row in rows:
        shares = ("–" if row.get(name) is None else f"{100 * row[name]:.1f}" for name in columns)
        lines.append([row["learned"], *shares, str(row["live_events"]), str(row["live_responses"])])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\nOf {worlds} held-out worlds, in per cent; on time is within {TOLERANCE} frame.\n"


def main() -> None:
    """Trains and measures, or renders what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="fields of the recipe, such as {max_steps: 20}")
    parser.add_argument("--runs", type=Path, default=Path("runs/live_alerts"))
    parser.add_argument("--json", type=Path, help="where the rows go, after every method")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        result = json.loads(options.render.read_text())
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(result["rows"], result["worlds"])))
        return
    from streamchat_hf.training.live import train

    rows = []
    for method in options.methods:
        recipe = yaml.safe_load(find_recipe(RECIPE).read_text()) | options.set
        recipe |= {"method": method, "output_dir": str(options.runs / method), "disable_tqdm": True}
        recipe["eval_strategy"] = "no"
        final, path = options.runs / method / "final", options.runs / f"{method}.yaml"
        options.runs.mkdir(parents=True, exist_ok=True)
        if not final.is_dir() or path.read_text() != yaml.safe_dump(recipe):
            path.write_text(yaml.safe_dump(recipe))
            train(path)
        rows += measure(final, method, held_out(options.worlds, recipe["datasets"][0]["num_frames"]))
        result = {"recipe": RECIPE, "set": options.set, "worlds": options.worlds, "rows": rows}
        if rows[0]["learned"] == "streaming":
            result["verdict"] = verdict(rows)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows, options.worlds))


if __name__ == "__main__":
    main()
