"""Table 3 of StreamChat in miniature, and of its figure 5 a model that answers from what it had seen, on StreamWorld.

    python benchmarks/ablations.py --seeds 0 1 2 --json benchmarks/ablations.json
    python benchmarks/ablations.py --render benchmarks/ablations.json

Every variant is trained by its recipe in `recipes/ablations/`, once per seed, on the same clips and questions, and
asked the same questions about held-out worlds while they play. What is finished in `--runs` is not done again: two of
these may run beside each other, each with its seeds and without `--json`; a last one with all seeds collects the rows.
With `--render` table and picture go into docs/ablations.md.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml
from scipy.stats import ttest_1samp

from markers import between
from streamchat_hf import StreamChatProcessor
from streamchat_hf.data.dense_instruction import load_dense_instruction
from streamchat_hf.data.streamworld_dataset import StreamWorldDataset, StreamWorldMix
from streamchat_hf.data.streamworld_dialogue import answer, can_answer
from streamchat_hf.evaluation.streamworld import evaluate, mean_of_attributes
from streamchat_hf.training.__main__ import find_recipe

PAGE = Path(__file__).parents[1] / "docs" / "ablations.md"
PICTURE = PAGE.parent / "images" / "ablations.png"
BEGIN = "<!-- ablations: written by benchmarks/ablations.py -->\n"
END = "<!-- end of ablations -->\n"
FULL = "full"
# Recipe, what it is called, and how often (in percent) the paper has it win, tie and lose against the full model:
# table 3, and for the last one figure 5, 7B against LLaVA-Video-7B, seen from the other side.
VARIANTS: dict[str, tuple[str, tuple[int, int, int] | None]] = {
    FULL: ("StreamChat", None),
    "no_v_ffn": ("no V-FFN", (18, 46, 36)),
    "tanh_gate": ("tanh gate", (25, 45, 30)),
    "own_parameters": ("own cross-attention parameters", (20, 33, 47)),
    "no_dense_instructions": ("no dense instructions", (25, 34, 41)),
    "interleaved": ("interleaved, fixed context", (34, 22, 44)),
}
OUTCOMES = {"win": "#0072b2", "tie": "#bbbbbb", "loss": "#d55e00"}  # told apart without red or green, too
CLIPS, EVAL_SEED = 150, 0
LOSSES = 5  # of the log, every ten steps


def variant_recipe(variant: str, seed: int, output_dir: Path, overrides: dict) -> dict:
    """The recipe of one run.

    Args:
        variant: of `VARIANTS`.
        seed: of weights and order, and of the training worlds.
        output_dir: where it goes.
        overrides: fields that win over the recipe's; `clips` is the number of training worlds.
    """
    recipe = yaml.safe_load(find_recipe(f"ablations/{variant}.yaml").read_text())
    full = yaml.safe_load(find_recipe(f"ablations/{FULL}.yaml").read_text())
    clips = overrides.get("clips", full["datasets"][0]["clips"])
    if variant == "interleaved":
        recipe["datasets"] = [write_conversations(output_dir / "rows.json", clips, seed)]
        overrides = dict(overrides)
        batch = overrides.pop("global_batch_size", full["global_batch_size"])
        here = overrides.get("per_device_train_batch_size", recipe["per_device_train_batch_size"])
        recipe["gradient_accumulation_steps"] = batch // here
    else:
        recipe["datasets"] = [{**source, "clips": clips, "seed": seed} for source in recipe["datasets"]]
    recipe |= {key: value for key, value in overrides.items() if key != "clips"}
    return recipe | {"seed": seed, "output_dir": str(output_dir), "disable_tqdm": True}


def write_conversations(path: Path, clips: int, seed: int) -> dict[str, str]:
    """The questions of the other variants, each answered from what has been seen by then, with as many words.

    Returns:
        The source of these rows, for a recipe of the trainer `live`.
    """
    source = {"name": "streamworld", "clips": clips, "seed": seed}
    folder = Path(load_dense_instruction(**source)[0]["media"]).parent
    samples, rows = StreamWorldDataset(clips, seed, "train", StreamWorldMix(stalled=0.0)), []
    for index in range(clips):
        sample, said = samples[index], []
        for turn in sample.turns:
            times = [turn.ask_time] * len(turn.words)
            if can_answer(sample.world, turn.question, times, sample.frame_times):
                words = answer(sample.world, turn.question, turn.ask_time, times, sample.frame_times)
                said.append({"role": "user", "content": turn.question.text, "time": turn.ask_time})
                text = " ".join(word.text for word in words)
                said.append({"role": "assistant", "content": text, "time": turn.ask_time})
        if said:
            rows.append({"video_uid": f"{index:06}", "conversation": said})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return {"name": "livechat", "path": str(path), "folder": str(folder), "from_start": True}


class FixedContext:
    """A VideoLLM-online as [`evaluate`] asks a model: it answers from the frames up to the question.

    Args:
        model: the VideoLLM-online.
        processor: its processor.
    """

    def __init__(self, model: Any, processor: Any):
        self.model, self.processor, self.device = model, processor, model.device

    def asker(self) -> StreamChatProcessor:
        """A processor that hands over nothing but the question."""
        template = "{{ messages[0]['content'] }}"
        return StreamChatProcessor(self.processor.video_processor, self.processor.tokenizer, chat_template=template)

    @torch.no_grad()
    def generate(self, input_ids, attention_mask, frames, start_time, tokens_per_second, max_new_tokens, **how):
        """As StreamChat's, without looking up: `sequences`, and `token_times` and `frame_age` in seconds."""
        seen = [[frame for frame in stream if frame.t_sec <= start_time] for stream in frames]
        prompts = [
            [
                {"role": "system", "content": self.processor.system_prompt},
                {"role": "stream", "num_frames": len(shown)},
                {"role": "user", "content": question},
            ]
            for question, shown in zip(
                self.processor.tokenizer.batch_decode(input_ids, skip_special_tokens=True), seen, strict=True
            )
        ]
        inputs = self.processor.apply_chat_template(
            prompts, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.device)
        pixels = torch.stack([torch.stack([frame.pixel_values for frame in shown]) for shown in seen])
        spoken = self.model.generate(
            **inputs,
            pixel_values_videos=pixels.to(self.device),
            frame_mask=torch.ones(pixels.shape[:2], dtype=torch.long, device=self.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )[:, inputs["input_ids"].shape[1] :]
        times = start_time + torch.arange(spoken.shape[1], dtype=torch.float64) / tokens_per_second
        newest = torch.tensor([[shown[-1].t_sec] for shown in seen], dtype=torch.float64)
        return SimpleNamespace(
            sequences=torch.cat((input_ids, spoken), dim=1),
            token_times=times.expand(len(seen), -1),
            frame_age=times - newest,
        )


def build(variant: str, path: Path) -> Any:
    """The trainer of a recipe."""
    if variant == "interleaved":
        from streamchat_hf.training import live

        return live.build_trainer(*live.load_recipe(path))
    from streamchat_hf.training import sft

    return sft.build_trainer(*sft.load_recipe(path))


def measure(trainer: Any, variant: str, clips: int) -> dict[str, Any]:
    """How true the words of a trained model are when they are spoken, on held-out worlds.

    Returns:
        `score` and `case_scores`, the `streaming_score` of all and of each question; and the share of true words
        spoken `fresh` and `frozen`, mean over attributes.
    """
    model, processor = trainer.model.eval(), trainer.processing_class
    if variant == "interleaved":
        model = FixedContext(model, processor)
        processor = model.asker()
    result = evaluate(model, processor, seed=EVAL_SEED, split="heldout", clips=clips, progress=False)
    row = {"score": result["streaming_score"]["fresh"]["score"], "case_scores": result["case_scores"]}
    return row | {viewer: mean_of_attributes(result["by_kind"], viewer) for viewer in ("fresh", "frozen")}


def run(variant: str, seed: int, runs: Path, overrides: dict, clips: int) -> dict:
    """Trains and measures one variant with one seed, unless that is done, and gives its row."""
    folder = runs / f"{variant}_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    path, done = folder / "recipe.yaml", folder / "row.json"
    recipe = yaml.safe_dump(variant_recipe(variant, seed, folder, overrides))
    if done.is_file() and path.read_text() == recipe and (row := json.loads(done.read_text()))["clips"] == clips:
        return row
    done.unlink(missing_ok=True)  # or an interrupted run with another recipe would count as finished
    path.write_text(recipe)
    trainer = build(variant, path)
    began = time.process_time()
    trainer.train()
    row = {
        "variant": variant,
        "seed": seed,
        "steps": trainer.state.global_step,
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "clips": clips,
        "cpu_seconds": round(time.process_time() - began),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][:LOSSES],
        **measure(trainer, variant, clips),
    }
    done.write_text(json.dumps(row, indent=1) + "\n")
    return row


def outcomes(rows: list[dict], variant: str) -> list[dict[str, float]]:
    """For each seed, how often (in percent) a variant's answer is better than the full model's, as good, or worse."""
    of = {(row["variant"], row["seed"]): row["case_scores"] for row in rows}
    counted = []
    for seed in sorted(seed for name, seed in of if name == variant and (FULL, seed) in of):
        pairs = [((a or 0.0), (b or 0.0)) for a, b in zip(of[variant, seed], of[FULL, seed], strict=True)]
        wins, losses = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
        share = 100 / len(pairs)
        counted.append({"win": share * wins, "tie": share * (len(pairs) - wins - losses), "loss": share * losses})
    return counted


def spread(values: list[float], form: str) -> str:
    """Mean ± standard deviation over seeds."""
    mean = form.format(statistics.fmean(values))
    return mean if len(values) < 2 else f"{mean} ± {form.format(statistics.stdev(values))}"


def chance_of(wins: int, losses: int) -> float:
    """How probable it is that so many comparisons or more go the same way by chance: a sign test."""
    comparisons, most = wins + losses, max(wins, losses)
    tail = sum(math.comb(comparisons, k) for k in range(most, comparisons + 1)) / 2**comparisons
    return min(1.0, 2 * tail)


def chance_of_mean(differences: list[float]) -> float:
    """How probable so large a mean or a larger one is by chance: Student's t test, two-sided; 1 for fewer than two."""
    if len(differences) < 2 or not any(differences):
        return 1.0
    return float(ttest_1samp(differences, 0.0).pvalue)


def verdict(title: str, against: list[dict[str, float]], paper: tuple[int, int, int]) -> str:
    """Whether a variant loses to the full model as it does in the paper, if that is clear at all."""
    behind = [seed["loss"] - seed["win"] for seed in against]
    mean, chance = statistics.fmean(behind), chance_of_mean(behind)
    said = ("as in the paper" if mean > 0 else "**unlike in the paper**") if chance < 0.05 else "no clear difference"
    here, there = (f"{p:.3f}" if p >= 0.001 else "less than 0.001" for p in (chance, chance_of(paper[0], paper[2])))
    return f"- {title}: {said}. By chance a difference as large has a probability of {here}, the paper's own {there}."


def table(rows: list[dict], overrides: dict | None = None) -> str:
    """All variants as a Markdown table, mean ± standard deviation over seeds; and whether the paper says the same."""
    lines = [
        "| model | parameters | score | fresh, % | frozen, % | win / tie / loss, % | loss − win | in the paper |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    said = []
    for variant, (title, paper) in VARIANTS.items():
        mine = [row for row in rows if row["variant"] == variant]
        if not mine:
            continue
        cells = [title, f"{mine[0]['parameters'] / 1e6:.2f} M", spread([row["score"] for row in mine], "{:.3f}")]
        cells += [spread([100 * row[viewer] for row in mine], "{:.1f}") for viewer in ("fresh", "frozen")]
        against = outcomes(rows, variant) if paper else []
        if against and paper:
            means = {name: statistics.fmean(seed[name] for seed in against) for name in OUTCOMES}
            cells += [" / ".join(f"{means[name]:.0f}" for name in OUTCOMES)]
            cells += [spread([seed["loss"] - seed["win"] for seed in against], "{:.1f}"), " / ".join(map(str, paper))]
            said.append(verdict(title, against, paper))
        else:
            cells += ["–", "–", "–"]
        lines.append(f"| {' | '.join(cells)} |")
    seeds, steps = len({row["seed"] for row in rows}), sorted({row["steps"] for row in rows})
    asked = len(rows[0]["case_scores"])
    hours = sum(row["cpu_seconds"] for row in rows) / 3600
    note = f"Seeds: {seeds}. Steps: {', '.join(map(str, steps))}. Questions: {asked}. Training: {hours:.1f} CPU hours."
    note += f" Unlike in the recipes: `{json.dumps(overrides)}`." if overrides else ""
    return "\n".join([*lines, "", note, "", *said, ""])


def plot(rows: list[dict], path: Path) -> None:
    """Wins, ties and losses against the full model as bars, ours above the paper's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    labels = []
    for variant, (title, paper) in VARIANTS.items():
        against = outcomes(rows, variant)
        if paper is None or not against:
            continue
        ours = tuple(statistics.fmean(seed[name] for seed in against) for name in OUTCOMES)
        for who, shares in (("here", ours), ("paper", paper)):
            left = 0.0
            for (outcome, colour), width in zip(OUTCOMES.items(), shares, strict=True):
                label = None if labels else outcome
                axes.barh(len(labels), width, left=left, color=colour, label=label, alpha=1 if who == "here" else 0.5)
                left += width
            labels.append(f"{title}, {who}")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent of the questions")
    axes.set_title("Against StreamChat as it is")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs, or renders what was run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument(
        "--set", type=yaml.safe_load, default={}, help="fields of the recipes, such as {max_steps: 20}"
    )
    parser.add_argument("--clips", type=int, default=CLIPS, help="questions to each model")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"))
    parser.add_argument("--json", type=Path, help="where the rows go, after every run")
    parser.add_argument("--render", type=Path, help="write such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        result = json.loads(options.render.read_text())
        plot(result["rows"], PICTURE)
        text = f"{table(result['rows'], result['set'])}\n![wins, ties, losses](images/ablations.png)\n"
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, text))
        return
    rows = []
    for seed in options.seeds:
        for variant in options.variants:
            rows.append(run(variant, seed, options.runs, options.set, options.clips))
            if options.json:
                options.json.write_text(json.dumps({"set": options.set, "rows": rows}, indent=1) + "\n")
    print(table(rows, options.set))


if __name__ == "__main__":
    main()
