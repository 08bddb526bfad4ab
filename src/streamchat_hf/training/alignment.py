"""Before the three stages: tower and projector learn to name StreamWorld's frames in a text model's words.

streamchat train recipes/smollm2/alignment.yaml
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from trl import ModelConfig

from streamchat_hf.data.streamworld_dataset import (
    IGNORED,
    TARGET_SLOTS,
    StreamWorldCollator,
    StreamWorldDataset,
    StreamWorldMix,
)
from streamchat_hf.data.streamworld_dialogue import VALUES, build_tokenizer
from streamchat_hf.data.streamworld_english import english_answer
from streamchat_hf.training.model_recipe import ModelRecipe, load_model
from streamchat_hf.training.recipe import read_recipe, training_log
from streamchat_hf.training.tower_alignment import TowerAlignment

# Half of the objects lack an attribute that has a name, so that no word is known by another.
MIX = StreamWorldMix(one_attribute=0.5, tints=0.8, stalled=0.0)
# A feature's length is the root of its size, about 24 for 576 channels: with words of this length a feature that
# points at one of them is sure of it.
WORD_LENGTH = 4.0


@dataclass
class AlignmentRecipe(ModelRecipe):
    """What a run is made of, besides transformers' `TrainingArguments` and TRL's `ModelConfig`.

    Attributes, besides those of the model:
        trainer: `"alignment"`: which of the package's trainers reads this recipe.
        max_frames: Frames of a clip.
    """

    trainer: str = "alignment"
    max_frames: int = 10


def load_recipe(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[AlignmentRecipe, TrainingArguments, ModelConfig]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`AlignmentRecipe`], `TrainingArguments` and `ModelConfig`.
        overrides: Words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: If a field is unknown, or asks for what this trainer does not do.
    """
    defaults = {"remove_unused_columns": False, "save_strategy": "no"}
    recipe, arguments, model_arguments = read_recipe(
        (AlignmentRecipe, TrainingArguments, ModelConfig), defaults, path, overrides
    )
    if arguments.max_steps <= 0:
        raise ValueError("samples are drawn while they are needed: max_steps has to say how many steps")
    if arguments.save_strategy != "no" or arguments.push_to_hub:
        raise ValueError(
            "alignment takes minutes: it keeps no checkpoints and pushes nothing, only its end is written"
        )
    if model_arguments.use_peft:
        raise ValueError("alignment trains the vision tower and the projector themselves: leave out use_peft")
    return recipe, arguments, model_arguments


def english_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, dict[int, int]]:
    """For each attribute the first token of its values' words in English, by their token in StreamWorld's language.

    Raises:
        ValueError: If two words of an attribute begin with the same token: then it cannot be learned which is shown.
    """
    own, tokens = build_tokenizer(), {}
    for slot in TARGET_SLOTS:
        words = english_answer(VALUES[slot])
        first = [_first_token(tokenizer, word) for word in words]
        for (one, token), (other, same) in combinations(zip(words, first, strict=True), 2):
            if token == same:
                raise ValueError(
                    f"to {tokenizer.name_or_path or 'this tokenizer'} the words {one!r} and {other!r} begin alike, "
                    f"with {tokenizer.decode([token])!r}: leave alignment out, or take another text model"
                )
        tokens[slot] = dict(zip(own.convert_tokens_to_ids(list(VALUES[slot])), first, strict=True))
    return tokens


def _first_token(tokenizer: PreTrainedTokenizerBase, word: str) -> int:
    """The token with which a word begins behind another one."""
    before = "a"
    read = tokenizer(f"{before} {word}", add_special_tokens=False, return_offsets_mapping=True)
    # A space may be part of the word's first token, or a token of its own.
    starts = len(before) + len(" ")
    return next(
        token for token, (_, end) in zip(read["input_ids"], read["offset_mapping"], strict=True) if end > starts
    )


class NamedFrames:
    """Collates numbered samples to frames, and what they show as tokens of a text model: `collator(rows)`."""

    def __init__(self, samples: StreamWorldDataset, size: int, tokens: dict[str, dict[int, int]]):
        self.samples, self.collate, self.tokens = samples, StreamWorldCollator(size=size), tokens

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Numbers of samples to `pixel_values_videos`, `frame_targets` and `centres`, as the collator has them."""
        batch = self.collate([self.samples[row] for row in rows])
        targets = {}
        for slot, known in self.tokens.items():
            shown = batch["frame_targets"][slot]  # (B, T)
            targets[slot] = torch.tensor([[known.get(token, IGNORED) for token in row] for row in shown.tolist()])
        return {
            "pixel_values_videos": batch["pixel_values_videos"],
            "frame_targets": targets,
            "centres": batch["centres"],
        }


def frozen_words(model: nn.Module) -> nn.Embedding:
    """The word embeddings of a text model, which do not learn here, at a length at which they can be told apart."""
    words = model.get_input_embeddings().weight.detach()
    return nn.Embedding.from_pretrained(words * WORD_LENGTH / words.norm(dim=-1).mean())


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Aligns; samples are drawn by the seed, `max_frames` frames each, and the text model stays as it is.

    Args:
        recipe_path: See [`load_recipe`].
        overrides: See [`load_recipe`].

    Returns:
        The folder of the model and its processor, `final` in the output folder.

    Raises:
        ValueError: If the recipe asks for something else, the text model's tokenizer cannot tell an attribute's words
            apart, or what a patch shows does not reach the text model as one token.
    """
    recipe, arguments, model_arguments = load_recipe(recipe_path, overrides)
    set_seed(arguments.seed)
    model, processor = load_model(recipe, model_arguments)
    tower, pooling = model.config.vision_config.model_type, model.config.visual_pooling
    if tower != "streamformer" or pooling > 1:
        raise ValueError(f"alignment is for a StreamFormer with visual_pooling=1, not {tower!r} with {pooling}")
    tokens = english_tokens(processor.tokenizer)
    slots = {slot: list(known.values()) for slot, known in tokens.items()}
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    length = arguments.max_steps * rows
    samples = StreamWorldDataset(length, arguments.seed, mix=MIX, num_frames=recipe.max_frames, fps=recipe.fps)
    trainer = Trainer(
        TowerAlignment(model, slots, embeddings=frozen_words(model)),
        arguments,
        train_dataset=range(length),
        data_collator=NamedFrames(samples, model.config.vision_config.image_size, tokens),
    )
    trainer.train()
    final = Path(arguments.output_dir) / "final"
    if arguments.should_save:
        model.save_pretrained(final)
        processor.save_pretrained(final)
        fields = asdict(recipe) | {"stage": "alignment", "datasets": [], "eval_datasets": []}
        log = training_log(trainer, fields, model_arguments.model_name_or_path)
        (final / "training_log.json").write_text(json.dumps(log, indent=1))
    return final
