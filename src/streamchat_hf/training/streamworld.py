"""Trains the small StreamChat that ships with the package: StreamWorld, two stages, one recipe.

streamchat train recipes/streamchat/streamworld.yaml --output_dir runs/streamworld
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Dataset
from transformers import TrainingArguments
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer

from streamchat_hf import (
    StreamChatConfig,
    StreamChatForConditionalGeneration,
    StreamChatProcessor,
    StreamFormerVideoProcessor,
)
from streamchat_hf.data.streamworld_dataset import StreamWorldCollator, StreamWorldDataset, StreamWorldMix
from streamchat_hf.data.streamworld_dialogue import VALUES, build_tokenizer
from streamchat_hf.training.commit import code_commit
from streamchat_hf.training.tower_alignment import GateTrainer, TowerAlignment

TALK_INPUTS = [
    "input_ids",
    "attention_mask",
    "token_times",
    "turn_starts",
    "labels",
    "pixel_values_videos",
    "frame_times",
]
ALIGNMENT_INPUTS = ("pixel_values_videos", "frame_targets", "centres")
OPEN_GATE = 0.5


@dataclass
class Recipe:
    """What a StreamWorld run is made of; the YAML files in `recipes/` hold exactly these fields.

    Attributes:
        seed: of weights, worlds and order.
        model: fields of `StreamChatConfig`; the vocabulary is StreamWorld's.
        align: stage 1: number of `frames` of a clip, `mix` of the samples, and arguments of the `trainer`.
        refine: the same once more, with another mix.
        talk, practise, untie, settle: the same for stage 2.
        fps: frame rate of the clips, and the processor's default.
        threads: CPU threads of a process, 0 for torch's choice.
        trainer: names this trainer among those of `streamchat train`.
    """

    seed: int
    model: dict[str, Any]
    align: dict[str, Any]
    refine: dict[str, Any]
    talk: dict[str, Any]
    practise: dict[str, Any]
    untie: dict[str, Any]
    settle: dict[str, Any]
    fps: float = 2.0
    threads: int = 0
    trainer: str = "streamworld"

    @classmethod
    def load(cls, path: str | Path) -> "Recipe":
        """Reads a recipe file.

        Raises:
            TypeError: if a field is missing or unknown.
        """
        return cls(**yaml.safe_load(Path(path).read_text()))


def build_model(recipe: Recipe) -> tuple[StreamChatForConditionalGeneration, StreamChatProcessor]:
    """A new model and its processor for StreamWorld's language."""
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "left"
    special = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }
    fields = dict(recipe.model)
    config = StreamChatConfig(**{**fields, "text_config": {**fields["text_config"], **special}})
    model = StreamChatForConditionalGeneration(config)
    with torch.no_grad():  # a tower without pretrained weights has nothing to protect: its temporal gates start open
        for layer in model.model.vision_tower.layers:
            layer.temporal_gate.fill_(OPEN_GATE)
    side = config.vision_config.image_size
    video_processor = StreamFormerVideoProcessor(size={"height": side, "width": side}, fps=recipe.fps)
    return model, StreamChatProcessor(video_processor, tokenizer, chat_template=tokenizer.chat_template)


class Inputs:
    """Collates the samples that rows of a [`datasets.Dataset`] number, and keeps the inputs that a stage reads.

    TRL takes no dataset but that class; a sample depends on its number alone, so numbers are all it has to hold.
    """

    def __init__(self, samples: StreamWorldDataset, size: int, names: Sequence[str]):
        self.samples, self.collate, self.names = samples, StreamWorldCollator(size=size), names

    def numbers(self) -> Dataset:
        """The dataset for the trainer."""
        return Dataset.from_dict({"number": range(len(self.samples))})

    def __call__(self, rows: list[dict[str, int]]) -> dict[str, Any]:
        """Rows of `numbers` to a batch."""
        batch = self.collate([self.samples[row["number"]] for row in rows])
        return {name: batch[name] for name in self.names}


def _inputs(recipe: Recipe, stage: dict[str, Any], seed: int, model, names: Sequence[str]) -> Inputs:
    arguments = stage["trainer"]
    length = arguments["max_steps"] * arguments["per_device_train_batch_size"]
    mix = StreamWorldMix(**stage["mix"])
    samples = StreamWorldDataset(length, seed=seed, mix=mix, num_frames=stage["frames"], fps=recipe.fps)
    return Inputs(samples, model.config.vision_config.image_size, names)


def _common(recipe: Recipe, output_dir: Path) -> dict[str, Any]:
    return {
        "output_dir": str(output_dir),
        "seed": recipe.seed,
        "remove_unused_columns": False,
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 20,
        "logging_nan_inf_filter": False,
        "save_total_limit": 1,
        "save_strategy": "steps",
        "dataloader_num_workers": 1,
    }


def align(recipe: Recipe, name: str, seed: int, model, output_dir: Path, resume: bool) -> list[dict]:
    """Stage 1: the tower and the projector learn to name what they see. Returns the log."""
    stage = getattr(recipe, name)
    tokenizer = build_tokenizer()
    slots = {
        slot: tokenizer.convert_tokens_to_ids(list(VALUES[slot]))
        for slot in ("colour", "shape", "digit", "motion", "count")
    }
    inputs = _inputs(recipe, stage, seed, model, ALIGNMENT_INPUTS)
    trainer = GateTrainer(
        TowerAlignment(model, slots),
        TrainingArguments(**_common(recipe, output_dir), **stage["trainer"]),
        train_dataset=inputs.numbers(),
        data_collator=inputs,
    )
    trainer.train(resume_from_checkpoint=_checkpoint(output_dir, resume))
    return trainer.state.log_history


def talk(recipe: Recipe, name: str, seed: int, model, output_dir: Path, resume: bool) -> list[dict]:
    """Stage 2: the text model learns to talk about what the frozen tower shows. Returns the log."""
    stage = getattr(recipe, name)
    model.model.vision_tower.requires_grad_(False)
    model.model.projector.requires_grad_(False)
    arguments = SFTConfig(
        **_common(recipe, output_dir),
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        gradient_checkpointing=False,
        **{"bf16": False, **stage["trainer"]},
    )
    if arguments.bf16:
        model.set_attn_implementation("eager")  # the fastest in bfloat16 on a CPU, by far
    inputs = _inputs(recipe, stage, seed, model, TALK_INPUTS)
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=inputs.numbers(),
        data_collator=inputs,
        processing_class=build_tokenizer(),
    )
    trainer.train(resume_from_checkpoint=_checkpoint(output_dir, resume))
    return trainer.state.log_history


STAGES = {"align": align, "refine": align, "talk": talk, "practise": talk, "untie": talk, "settle": talk}


def _checkpoint(output_dir: Path, resume: bool) -> str | None:
    return get_last_checkpoint(str(output_dir)) if resume and output_dir.is_dir() else None


def train(recipe_path: str | Path, output_dir: str | Path, resume: bool = True) -> Path:
    """Runs all stages and writes model, processor, recipe and log; an interrupted run goes on where it stopped.

    Args:
        recipe_path: YAML file with the fields of [`Recipe`].
        output_dir: where checkpoints and, in `final/`, the result go.
        resume: continue from the last whole checkpoint in `output_dir`.

    Returns:
        The folder of the trained model and processor.
    """
    recipe, output_dir, commit = Recipe.load(recipe_path), Path(output_dir), code_commit()
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    model, processor = build_model(recipe)
    log: dict[str, list] = {}
    for i, (name, run) in enumerate(STAGES.items()):
        done = output_dir / name / "done"
        if resume and (done / "log.json").exists():
            model = StreamChatForConditionalGeneration.from_pretrained(done)
            log[name] = json.loads((done / "log.json").read_text())
        else:
            log[name] = run(recipe, name, recipe.seed + i, model, output_dir / name, resume)
            model.save_pretrained(done)
            (done / "log.json").write_text(json.dumps(log[name]))
    final = output_dir / "final"
    model.save_pretrained(final)
    processor.save_pretrained(final)
    state = {"recipe": yaml.safe_load(Path(recipe_path).read_text()), "commit": commit, "log": log}
    (final / "training_log.json").write_text(json.dumps(state, indent=1))
    return final
