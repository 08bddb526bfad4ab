"""StreamChat from a pretrained language model: trained by `recipes/smollm2/`, and measured with and without video.

    python benchmarks/real_language_model.py --json benchmarks/real_language_model.json
    python benchmarks/real_language_model.py --render benchmarks/real_language_model*.json

The language model, SmolLM2-135M-Instruct, first writes its own answers to the prompts beside this file. Then the
vision tower is aligned with its words, and the three stages are trained; what the same recipes have finished in
`runs/` is not done again. Three questions: does an untrained StreamChat say the same without video, word for word?
How does the perplexity of those answers change with training? How much more often is a word about a held-out
StreamWorld true when spoken if the model watches on, instead of looking once?
"""

import argparse
import hashlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from markers import between
from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor
from streamchat_hf.evaluation.streamworld import VIEWERS, evaluate, mean_of_attributes
from streamchat_hf.training import alignment, sft
from streamchat_hf.training.__main__ import find_recipe
from streamchat_hf.training.__main__ import main as train
from streamchat_hf.training.model_recipe import load_model, text_source

PROMPTS = Path(__file__).with_name("real_language_model_prompts.txt")
PAGE = Path(__file__).parents[1] / "docs" / "real_language_model.md"
BEGIN = "<!-- scores: written by benchmarks/real_language_model.py -->\n"
END = "<!-- end of scores -->\n"
STAGES = ("alignment", "stage1", "stage2", "sft")
# What the first stage builds the model from, and the others go on with.
PARTS = ("text_backbone", "vision_backbone", "model_config")
MOST_TOKENS = 32  # of an answer
EVAL_SEED, OTHER_SEED = 0, 1


@torch.no_grad()
def answers(model: Any, tokenizer: Any, prompts: list[str], most_tokens: int = MOST_TOKENS) -> list[list[int]]:
    """What a model says to each prompt, greedily: the tokens of the answer."""
    said = []
    for prompt in prompts:
        ids = torch.tensor([prompt_tokens(tokenizer, prompt)], device=model.device)
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most_tokens, do_sample=False)
        said.append(output[0, ids.shape[1] :].tolist())
    return said


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """A prompt by the chat template, up to where the answer begins."""
    message = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def perplexity(model: Any, tokenizer: Any, prompts: list[str], said: list[list[int]]) -> float:
    """Of given answers to the prompts: the exponential of the mean surprise of their tokens."""
    total, count = 0.0, 0
    for prompt, answer in zip(prompts, said, strict=True):
        before = prompt_tokens(tokenizer, prompt)
        read = torch.tensor([before + answer], device=model.device)
        logits = model(read).logits[0, len(before) - 1 : -1].float()
        total += float(cross_entropy(logits, read[0, len(before) :], reduction="sum"))
        count += len(answer)
    return math.exp(total / count)


def train_stages(parts: list[str], words: list[str]) -> dict[str, dict[str, Any]]:
    """Runs the recipes, each from what the one before left behind; what is finished stays as it is.

    Args:
        parts: `--key value` that differ from the first recipe.
        words: The same, that differ from all.

    Returns:
        By stage the folder of the `model`, `steps`, and the `seconds` that it took since it was last interrupted.

    Raises:
        ValueError: If something else was begun where a stage is to be trained.
    """
    made: dict[str, dict[str, Any]] = {}
    before = ""  # what the stage before left behind
    for stage in STAGES:
        is_first = stage == STAGES[0]
        path, mine = find_recipe(f"smollm2/{stage}.yaml"), [*parts, *words] if is_first else words
        _, arguments, _ = (alignment if is_first else sft).load_recipe(path, mine)
        final = Path(arguments.output_dir) / "final"
        log_file, begun = final / "training_log.json", Path(arguments.output_dir) / "begun.json"
        asked = {"recipe": yaml.safe_load(path.read_text()), "words": mine, "before": before}
        if begun.parent.exists() and not (begun.is_file() and json.loads(begun.read_text()) == asked):
            raise ValueError(f"{begun.parent} holds a run of another recipe, or after another stage: remove it")
        if not log_file.is_file():
            begun.parent.mkdir(parents=True, exist_ok=True)
            begun.write_text(json.dumps(asked, indent=1))
            train([str(path), *mine])
        before = hashlib.sha256(log_file.read_bytes()).hexdigest()
        log = json.loads(log_file.read_text())["log"]
        made[stage] = {
            "model": str(final),
            "steps": max(entry["step"] for entry in log),
            "seconds": round(sum(entry.get("train_runtime", 0.0) for entry in log)),
        }
    return made


def measure(parts: list[str], words: list[str], prompts: list[str], clips: int) -> dict[str, Any]:
    """Everything that goes into the page.

    Args:
        parts: See [`train_stages`].
        words: See [`train_stages`].
        prompts: of the talk without video.
        clips: questions about held-out worlds.
    """
    first = find_recipe(f"smollm2/{STAGES[0]}.yaml")
    recipe, arguments, model_arguments = alignment.load_recipe(first, [*parts, *words])
    torch.manual_seed(arguments.seed)
    model_arguments.attn_implementation = None  # the same for both, or ties may be broken differently
    untrained, processor = load_model(recipe, model_arguments)
    source, options = text_source(recipe.text_backbone)
    original = AutoModelForCausalLM.from_pretrained(source, dtype=untrained.dtype, **options)
    original, untrained = (each.to(arguments.device).eval() for each in (original, untrained))
    said = answers(original, processor.tokenizer, prompts)
    same = sum(a == b for a, b in zip(said, answers(untrained, processor.tokenizer, prompts), strict=True))
    own = perplexity(original, processor.tokenizer, prompts, said)
    del original, untrained
    stages = train_stages(parts, words)
    model = StreamChatForConditionalGeneration.from_pretrained(stages["sft"]["model"]).to(arguments.device).eval()
    processor = StreamChatProcessor.from_pretrained(stages["sft"]["model"])
    result, others = (
        evaluate(model, processor, seed=seed, split="heldout", clips=clips, progress=False)
        for seed in (EVAL_SEED, OTHER_SEED)
    )
    return {
        "prompts": len(prompts),
        "identical_before": same,
        "perplexity": {"language model": own, "trained": perplexity(model, processor.tokenizer, prompts, said)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "stages": {stage: {key: row[key] for key in ("steps", "seconds")} for stage, row in stages.items()},
        "threads": torch.get_num_threads(),
        "clips": clips,
        "by_kind": result["by_kind"],
        "others_by_kind": {
            name: {key: kind[key] for key in ("fresh", "frozen", "n")} for name, kind in others["by_kind"].items()
        },
        "score": {viewer: result["streaming_score"][viewer]["score"] for viewer in VIEWERS},
        "answers": processor.tokenizer.batch_decode(said),
    }


def means(by_kind: dict[str, dict[str, Any]], viewer: str) -> tuple[float, float]:
    """The percentage of true words, mean over all kinds, and over the attributes that can be asked for."""
    whole = statistics.fmean(kind[viewer] or 0.0 for kind in by_kind.values())
    return 100 * whole, 100 * mean_of_attributes(by_kind, viewer)


def ahead(by_kind: dict[str, dict[str, Any]]) -> str:
    """By how many points who watches on is ahead of who looks once, in both means."""
    fresh, frozen = (means(by_kind, viewer) for viewer in VIEWERS[:2])
    return " and ".join(f"{on - once:+.1f}" for on, once in zip(fresh, frozen, strict=True))


def table(result: dict[str, Any]) -> str:
    """The measured numbers as Markdown."""
    before, after = result["perplexity"]["language model"], result["perplexity"]["trained"]
    minutes = sum(stage["seconds"] for stage in result["stages"].values()) / 60
    steps = " + ".join(str(stage["steps"]) for stage in result["stages"].values())
    lines = [
        f"{result['parameters'] / 1e6:.0f} million parameters, {steps} steps in {minutes:.0f} minutes; "
        f"torch's threads: {result['threads']}.",
        "",
        f"Without video: {result['identical_before']} of {result['prompts']} answers are the same before training, "
        f"token for token. The perplexity of the language model's own answers is {before:.4f} to itself and "
        f"{after:.4f} after all stages: {100 * (after / before - 1):+.2f} %.",
        "",
        f"With video, {result['clips']} questions about held-out worlds; true when spoken, in percent:",
        "",
        "| words about | watching on | looking once | grey frames | by chance | words, watching on |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, kind in sorted(result["by_kind"].items()):
        shares = " | ".join("–" if kind[key] is None else f"{100 * kind[key]:.1f}" for key in (*VIEWERS, "chance"))
        lines.append(f"| {name} | {shares} | {kind['n']} |")
    columns = [means(result["by_kind"], viewer) for viewer in VIEWERS]
    for name, row in zip(("mean", "mean without presence"), zip(*columns, strict=True), strict=True):
        lines.append(f"| **{name}** | {' | '.join(f'{mean:.1f}' for mean in row)} | | |")
    scores = " and ".join(f"{result['score'][viewer]:.3f}" for viewer in VIEWERS[:2])
    lines += [
        "",
        f"Watching on is {ahead(result['by_kind'])} points ahead of looking once; on as many other questions "
        f"{ahead(result['others_by_kind'])}. The `streaming_score` of the two is {scores}.",
    ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Trains and measures, or renders what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--prompts", type=int, default=200, help="how many")
    parser.add_argument("--clips", type=int, default=200, help="how many questions with video")
    parser.add_argument("--render", type=Path, nargs="+", help="write such files into the page, do nothing else")
    for part in PARTS:
        parser.add_argument(f"--{part}", help="in place of the first recipe's")
    options, words = parser.parse_known_args()
    if options.render:
        text = "\n".join(table(json.loads(path.read_text())) for path in options.render)
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, text))
        return
    parts = [word for part in PARTS if (given := getattr(options, part)) for word in (f"--{part}", given)]
    result = measure(parts, words, PROMPTS.read_text().splitlines()[: options.prompts], options.clips)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
