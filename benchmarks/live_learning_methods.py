"""Which way to learn when to speak: tables 1a, 1c and 1d of VideoLLM-online in miniature, on StreamWorld.

    python benchmarks/live_learning_methods.py --json benchmarks/live_learning_methods.json
    python benchmarks/live_learning_methods.py --render benchmarks/live_learning_methods.json

Every variant is trained by `recipes/videollm_online/tiny_narration.yaml`, once per seed, and measured on held-out
worlds; then it watches a world of five minutes. What is finished in `--runs` is not done again. With `--render` the
table goes into docs/videollm_online.md.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import yaml

from markers import between
from streamchat_hf.data.live_streamworld import SYSTEM_PROMPT, frame_facts, watch_answers
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.evaluation.videollm_online import dialogue_metrics
from streamchat_hf.evaluation.videollm_online_cost import method_row
from streamchat_hf.training.__main__ import find_recipe

RECIPE = "videollm_online/tiny_narration.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "videollm_online.md"
BEGIN = "<!-- learning methods: written by benchmarks/live_learning_methods.py -->\n"
END = "<!-- end of learning methods -->\n"
# What differs from the recipe; without a method nothing is trained.
VARIANTS: dict[str, dict] = {
    "untrained": {},
    "interleaved": {"method": "interleaved"},
    "per-frame": {"method": "per-frame"},
    "streaming, w = 0.5": {"method": "streaming", "stream_loss_weight": 0.5},
    "streaming, w = 1": {"method": "streaming", "stream_loss_weight": 1.0},
    "streaming, w = 2": {"method": "streaming", "stream_loss_weight": 2.0},
    "streaming, w = 3": {"method": "streaming", "stream_loss_weight": 3.0},
}
OURS = "streaming, w = 1"  # the paper's default
WATCHING = ("interleaved", "per-frame", OURS)  # whose memory and speed are measured
SECONDS = 300.0
TOKEN_ROWS = 200  # of which the training tokens are counted
# Column, whether less is better, and how it is written.
COLUMNS = {
    "lm_ppl": ("LM-PPL ↓", True, "{:.2f}"),
    "time_diff": ("TimeDiff, s ↓", True, "{:.2f}"),
    "fluency": ("Fluency, % ↑", False, "{:.1f}"),
    "loud": ("silent frames answered, % ↓", True, "{:.1f}"),
    "training_tokens": ("training tokens ↓", True, "{:.0f}"),
    "cache_bytes": ("memory, MiB ↓", True, "{:.2f}"),
    "frames_per_second": ("frames a second ↑", False, "{:.0f}"),
}
SCALE = {"fluency": 100, "loud": 100, "cache_bytes": 2**-20}
# Ahead of each baseline on these (the paper's table 1a and 1d).
CLAIMS = {
    "per-frame": ("lm_ppl", "training_tokens", "cache_bytes", "frames_per_second"),
    "interleaved": ("time_diff", "fluency"),
}


def variant_recipe(variant: str, seed: int, output_dir: Path, overrides: dict) -> dict:
    """The recipe of one run.

    Args:
        variant: of `VARIANTS`.
        seed: of weights and order, and of the training worlds.
        output_dir: where it goes.
        overrides: fields that win over the recipe's.
    """
    recipe = yaml.safe_load(find_recipe(RECIPE).read_text()) | overrides | VARIANTS[variant]
    recipe["datasets"] = [{**source, "seed": seed} for source in recipe["datasets"]]
    return recipe | {"seed": seed, "output_dir": str(output_dir), "disable_tqdm": True}


def run(variant: str, seed: int, runs: Path, overrides: dict, features: dict | None = None) -> dict:
    """Trains and measures one variant with one seed, unless that is done, and gives its row.

    Args:
        variant: of `VARIANTS`.
        seed: of weights and order, and of the training worlds.
        runs: where it goes, into a folder of its own.
        overrides: fields that win over the recipe's.
        features: by seed, what the frozen tower has made of the training worlds; it is kept here for other variants.
    """
    from streamchat_hf.training.live import build_trainer, load_recipe

    name = variant.replace(" = ", "").replace(", ", "_")
    folder = runs / f"{name}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path, done = folder / "recipe.yaml", folder / "row.json"
    recipe = yaml.safe_dump(variant_recipe(variant, seed, folder, overrides))
    if done.is_file() and path.read_text() == recipe:
        return json.loads(done.read_text())
    path.write_text(recipe)
    trainer = build_trainer(*load_recipe(path))
    if features is not None:
        trainer.data_collator.features = features.setdefault(seed, trainer.data_collator.features)
    if VARIANTS[variant]:
        trainer.train()
    rows = [
        trainer.data_collator.sample(trainer.train_dataset[i])
        for i in range(min(TOKEN_ROWS, len(trainer.train_dataset)))
    ]
    method = VARIANTS[variant].get("method", "streaming")
    model, processor = trainer.model.eval(), trainer.processing_class
    row = {
        "variant": variant,
        "seed": seed,
        "steps": trainer.state.global_step,
        "training_tokens": statistics.mean(len(sample.ids) for sample in rows),
        **dialogue_metrics(model, processor, trainer.eval_rows, method),
    }
    if variant in WATCHING:
        row |= watch(model, processor, seed, method, SECONDS)
    if not VARIANTS[variant]:
        del row["training_tokens"]
    done.write_text(json.dumps(row, indent=1) + "\n")
    return row


def watch(model, processor, seed: int, method: str, seconds: float) -> dict:
    """What a world of five minutes costs: `tokens` and `cache_bytes` at the end, `frames_per_second` of CPU time."""
    fps = model.config.frame_fps
    world = World.sample(seed, "heldout", seconds)
    times = [i / fps for i in range(int(seconds * fps))]
    answers = watch_answers(world.kind, frame_facts(world, times), 1)
    images = render([world], [times], processor.video_processor.size["height"])[0]
    frames = [
        (time, processor.video_processor.preprocess_frame(image)) for time, image in zip(times, images, strict=True)
    ]
    prompt = processor.apply_chat_template(
        [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "what is happening ?"}],
        add_stream_prompt=True,
        tokenize=True,
        return_dict=True,
    )["input_ids"]
    said = {frame: processor.tokenizer(text, add_special_tokens=False)["input_ids"] for frame, text in answers}
    with torch.no_grad():
        return method_row(model, prompt[0] if isinstance(prompt[0], list) else prompt, frames, said, method)


def spread(rows: list[dict], variant: str, column: str) -> tuple[float, float] | None:
    """Mean and standard deviation over the seeds of a variant, as written; `None` if it has no such number."""
    values = [SCALE.get(column, 1) * row[column] for row in rows if row["variant"] == variant and column in row]
    if not values:
        return None
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def verdict(rows: list[dict]) -> dict[str, dict[str, bool]]:
    """Is the mean of streaming dialogue ahead of each baseline's, where the paper has it ahead?"""
    answer: dict[str, dict[str, bool]] = {}
    for baseline, columns in CLAIMS.items():
        answer[baseline] = {}
        for column in columns:
            ours, theirs = (spread(rows, variant, column) for variant in (OURS, baseline))
            if ours and theirs:
                answer[baseline][column] = ours[0] < theirs[0] if COLUMNS[column][1] else ours[0] > theirs[0]
    return answer


def table(rows: list[dict]) -> str:
    """All variants as a Markdown table, mean ± standard deviation over seeds; and what the paper says of them."""
    lines = [["learned", *(title for title, _, _ in COLUMNS.values())], ["---"] + ["---:"] * len(COLUMNS)]
    seeds = len({row["seed"] for row in rows})
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = []
        for column, (_, _, form) in COLUMNS.items():
            found = spread(rows, variant, column)
            shown = (found or ())[: 2 if seeds > 1 else 1]
            cells.append(" ± ".join(form.format(value) for value in shown) or "–")
        lines.append([variant, *cells])
    steps = ", ".join(str(count) for count in sorted({row["steps"] for row in rows if row["steps"]}))
    said = [
        f"{'ahead of' if holds else '**behind**'} {baseline} on {COLUMNS[column][0].split(',')[0].rstrip(' ↓↑')}"
        for baseline, columns in verdict(rows).items()
        for column, holds in columns.items()
    ]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{OURS.capitalize()}, is {'; '.join(said)}. Seeds: {seeds}. Steps: {steps}.\n"


def main() -> None:
    """Runs, or renders what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="fields of the recipe, such as {max_steps: 20}")
    parser.add_argument("--runs", type=Path, default=Path("runs/live_learning_methods"))
    parser.add_argument("--json", type=Path, help="where the rows go, after every run")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        text = table(json.loads(options.render.read_text())["rows"])
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, text))
        return
    rows = []
    for seed in options.seeds:
        features: dict = {}
        for variant in options.variants:
            rows.append(run(variant, seed, options.runs, options.set, features))
            result = {"recipe": RECIPE, "set": options.set, "verdict": verdict(rows), "rows": rows}
            if options.json:
                options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
