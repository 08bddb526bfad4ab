"""Which tasks need time, and which tasks help which: tables 4 and 5 of StreamFormer in miniature, on StreamWorld.

    python benchmarks/streamformer_tasks.py --seeds 0 1 2 --json benchmarks/streamformer_tasks.json
    python benchmarks/render_streamformer_tasks.py

Every variant is trained by `recipes/streamformer/tiny_multitask.yaml`, once per seed, and measured on held-out worlds,
on all six tasks. What is finished in `--runs` is not trained again, and rows of earlier calls stay in the JSON.
"""

import argparse
import json
import statistics
from pathlib import Path

import yaml

from streamchat_hf.data.task_records import TASKS
from streamchat_hf.training.__main__ import find_recipe
from streamchat_hf.training.multitask_evaluation import METRICS

RECIPE = "streamformer/tiny_multitask.yaml"
LEVELS = {"global": TASKS[:2], "temporal": TASKS[2:4], "spatial": TASKS[4:]}
# Of a single frame nobody could tell these; what is where, one can.
TASKS_OF_TIME = TASKS[:4]
# What differs from the recipe: how frames see each other (table 5), and which tasks are trained (table 4).
VARIANTS: dict[str, dict] = {
    "image only": {"temporal": "none"},
    "bidirectional": {"temporal": "bidirectional"},
    "causal": {"temporal": "causal"},
    **{level: {"tasks": tasks} for level, tasks in LEVELS.items()},
    "global + temporal": {"tasks": LEVELS["global"] + LEVELS["temporal"]},
}


def variant_recipe(variant: str, seed: int, output_dir: Path, overrides: dict) -> dict:
    """The recipe of one run: held-out metrics of all six tasks once, at the end.

    Args:
        variant: of `VARIANTS`.
        seed: of weights and order, and of the training worlds.
        output_dir: where it goes.
        overrides: fields that win over the recipe's.
    """
    recipe = yaml.safe_load(find_recipe(RECIPE).read_text()) | overrides
    change = VARIANTS[variant]
    recipe["datasets"] = {task: {**recipe["datasets"][task], "seed": seed} for task in change.get("tasks", TASKS)}
    recipe |= {"temporal": change.get("temporal", "causal"), "seed": seed, "output_dir": str(output_dir)}
    return recipe | {"eval_strategy": "steps", "eval_steps": recipe["max_steps"], "disable_tqdm": True}


def run(variant: str, seed: int, runs: Path, overrides: dict) -> dict:
    """Trains one variant with one seed, unless that is done, and gives its row."""
    from streamchat_hf.training.multitask_trainer import train

    name = f"{variant.replace(' ', '_')}_{seed}"
    runs.mkdir(parents=True, exist_ok=True)
    path, log_file = runs / f"{name}.yaml", runs / name / "final" / "training_log.json"
    recipe = yaml.safe_dump(variant_recipe(variant, seed, runs / name, overrides))
    if not log_file.is_file() or path.read_text() != recipe:
        path.write_text(recipe)
        train(path)
    log = json.loads(log_file.read_text())
    last = next(entry for entry in reversed(log["log"]) if any(key.startswith("eval_") for key in entry))
    metrics = {task: last[f"eval_{task}_{METRICS[task]}"] for task in TASKS}
    return {"variant": variant, "seed": seed, "steps": last["step"], "commit": log["commit"], "metrics": metrics}


def spread(rows: list[dict], variant: str, task: str) -> tuple[float, float]:
    """Mean and standard deviation of a metric over the seeds of a variant; of one seed alone the latter is 0."""
    values = [row["metrics"][task] for row in rows if row["variant"] == variant]
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def verdict(rows: list[dict]) -> dict[str, dict]:
    """Is the causal tower's mean above that of image only by more than two deviations, or elsewhere not below it?"""
    answer = {}
    for task in TASKS:
        (causal, _), (image, deviation) = spread(rows, "causal", task), spread(rows, "image only", task)
        holds = causal > image + 2 * deviation if task in TASKS_OF_TIME else causal >= image
        answer[task] = {"causal": causal, "image_only": image, "deviation": deviation, "holds": holds}
    return answer


def table(rows: list[dict]) -> str:
    """All variants as a Markdown table, mean ± standard deviation over seeds, in per cent."""
    header = [
        "trained on",
        "seeds",
        *(f"{task.replace('_', ' ')} ({METRICS[task].replace('_', ' ')})" for task in TASKS),
    ]
    lines = [header, ["---"] + ["---:"] * (len(TASKS) + 1)]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        seeds = len({row["seed"] for row in rows if row["variant"] == variant})
        spreads = [spread(rows, variant, task) for task in TASKS]
        cells = [f"{100 * mean:.1f}" + f" ± {100 * deviation:.1f}" * (seeds > 1) for mean, deviation in spreads]
        lines.append([variant if "tasks" in VARIANTS[variant] else f"all six, {variant}", str(seeds), *cells])
    steps = ", ".join(str(count) for count in sorted({row["steps"] for row in rows}))
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\nSteps: {steps}."


def earlier_rows(options: argparse.Namespace) -> list[dict]:
    """What the JSON holds of earlier calls with the same recipe, and this one does not run."""
    if options.json is None or not options.json.is_file():
        return []
    earlier = json.loads(options.json.read_text())
    rows = earlier["rows"] if earlier["set"] == options.set else []
    return [row for row in rows if row["seed"] not in options.seeds or row["variant"] not in options.variants]


def main() -> None:
    """Runs what has not been run yet and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="fields of the recipe, such as {max_steps: 20}")
    parser.add_argument("--runs", type=Path, default=Path("runs/streamformer_tasks"))
    parser.add_argument("--json", type=Path, help="where the rows go, after every run, beside those of earlier calls")
    options = parser.parse_args()
    rows = earlier_rows(options)
    for seed in options.seeds:
        for variant in options.variants:
            rows.append(run(variant, seed, options.runs, options.set))
            rows.sort(key=lambda row: (list(VARIANTS).index(row["variant"]), row["seed"]))
            result: dict = {"recipe": RECIPE, "set": options.set, "rows": rows}
            if {"causal", "image only"} <= {row["variant"] for row in rows}:
                result["verdict"] = verdict(rows)
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
