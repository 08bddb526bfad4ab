"""Trains a VideoLLM-online with transformers' trainer, on accelerate (2406.11816, section 3.3).

streamchat train recipes/videollm_online/tiny_alerts.yaml
accelerate launch -m streamchat_hf.training recipes/videollm_online/sft.yaml
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from peft import get_peft_model
from transformers import Trainer, TrainingArguments, set_seed
from trl import ModelConfig, get_peft_config

from streamchat_hf import (
    VideoLLMOnlineForConditionalGeneration,
    VideoLLMOnlineProcessor,
)
from streamchat_hf.evaluation.videollm_online import dialogue_metrics
from streamchat_hf.training.adapters import untie_adapted_ends
from streamchat_hf.training.checkpoints import (
    WholeCheckpoints,
    refuse_another_run,
    train_from_last,
)
from streamchat_hf.training.live_rows import LiveRows, MethodCollator
from streamchat_hf.training.recipe import read_recipe, training_log
from streamchat_hf.training.sft import PATIENCE, NonFiniteError
from streamchat_hf.training.video_llm import VideoLLMRecipe, as_asked, load_parts, load_rows, refuse_parts

logger = logging.getLogger(__name__)

# Rows become tensors in the collator, in the order of the mixture.
DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
    "ddp_find_unused_parameters": False,
    "logging_nan_inf_filter": False,
}


@dataclass
class LiveRecipe(VideoLLMRecipe):
    """What a run is made of, besides `TrainingArguments` and the LoRA fields of TRL's `ModelConfig`.

    `model_name_or_path` is a VideoLLM-online; on `eval_datasets` LM-PPL, TimeDiff and Fluency are measured.

    Attributes:
        trainer: `"live"`: which of the package's trainers reads this recipe.
        method: `"streaming"`; or a baseline of table 1a, see `data/live_methods.py`.
        frame_token_interval: text of the token between frames, which means silence; empty: none, the end of an answer
            means it.
        stream_loss_weight: w of equation 5; `None`: as the model has it.
        augmentation: spoil an answer of each row, so that words before tell less about words after.
    """

    trainer: str = "live"
    method: Literal["streaming", "interleaved", "per-frame"] = "streaming"
    frame_token_interval: str = ","
    stream_loss_weight: float | None = None
    augmentation: bool = False


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[LiveRecipe, TrainingArguments, ModelConfig]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`LiveRecipe`], `TrainingArguments` and `ModelConfig`.
        overrides: words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: if a field is unknown.
    """
    return read_recipe((LiveRecipe, TrainingArguments, ModelConfig), DEFAULTS, path, overrides)


def load_model(
    recipe: LiveRecipe, model_arguments: ModelConfig
) -> tuple[VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor]:
    """The model a run begins with, all of it trainable, and its processor.

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    path = model_arguments.model_name_or_path
    if path is not None:
        refuse_parts(recipe)
        loading = {"attn_implementation": model_arguments.attn_implementation, "dtype": model_arguments.dtype}
        model = VideoLLMOnlineForConditionalGeneration.from_pretrained(path, **loading)
        processor = VideoLLMOnlineProcessor.from_pretrained(path)
    else:
        model, processor = _from_parts(recipe)
        model = as_asked(model, model_arguments)
    if recipe.stream_loss_weight is not None:
        model.config.stream_loss_weight = recipe.stream_loss_weight
    return model, processor


def _from_parts(recipe: LiveRecipe) -> tuple[VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor]:
    """A language model and a vision tower, each loaded or fresh, with a fresh connector."""
    fields: Any = recipe.model_config or {}
    parts = load_parts(recipe)
    rows, columns = fields.get("frame_token_pooled") or (0, 0)
    processor = VideoLLMOnlineProcessor(
        parts.video_processor,
        parts.tokenizer,
        frame_num_tokens=int(fields.get("frame_token_cls", True)) + rows * columns,
        frame_token_interval=recipe.frame_token_interval,
        frame_fps=recipe.fps,
    )
    model = VideoLLMOnlineForConditionalGeneration.from_backbones(
        parts.text, parts.vision, **{**processor.token_ids(), "frame_fps": recipe.fps, **fields}
    )
    return model.requires_grad_(True), processor


class LiveTrainer(WholeCheckpoints, Trainer):
    """transformers' trainer with the model's own loss; it names rows that are skipped or not finite.

    Args:
        *args: as `Trainer`, with a [`MethodCollator`].
        eval_rows: held-out rows for the metrics of an evaluation.
        **kwargs: as `Trainer`.

    Raises:
        NonFiniteError: while training, naming the step and the rows.
        RuntimeError: while training, if no row could be used for several updates in a row.
    """

    def __init__(self, *args: Any, eval_rows: Sequence[Any] = (), **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.eval_rows = eval_rows
        self._rows: list[str] = []
        self._skipped = self._useless_updates = 0

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one update, without what is not for the model."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        skipped = [reason for batch in batches for reason in batch.pop("skipped")]
        self._rows = [name for batch in batches for name in batch.pop("rows")]
        for reason in skipped:
            logger.warning("skipped: %s", reason)
        self._skipped += len(skipped)
        self._useless_updates = 0 if num_items else self._useless_updates + 1
        if self._useless_updates >= PATIENCE:
            step = self.state.global_step + 1
            reason = next(iter(skipped), "nothing in them is learned, or they are in another process")
            raise RuntimeError(f"no row of {PATIENCE} updates up to step {step} could be used: {reason}")
        return batches, num_items

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # All processes have the same gradient, so all stop, before the update.
        if not math.isfinite(float(grad_norm)):
            raise NonFiniteError(
                f"the gradient of step {self.state.global_step + 1} is not finite; the rows of this process are "
                f"{', '.join(self._rows)}. The step was not taken; look at these rows or lower the learning rate, and "
                f"go on from the last checkpoint in {self.args.output_dir}"
            )
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers, with the number of rows skipped so far, if any were."""
        skipped = self.accelerator.gather(torch.tensor([self._skipped], device=self.args.device)).sum().item()
        super().log(logs | ({"skipped_rows": skipped} if skipped else {}), start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """The metrics of VideoLLM-online on the held-out rows; every process computes all of them."""
        model, collator = self.accelerator.unwrap_model(self.model), self.data_collator
        with self.compute_loss_context_manager():
            result = dialogue_metrics(model, self.processing_class, self.eval_rows, method=collator.method)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in result.items() if value is not None}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_trainer(recipe: LiveRecipe, arguments: TrainingArguments, model_arguments: ModelConfig) -> LiveTrainer:
    """Everything of a run, ready to train.

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    set_seed(arguments.seed)  # before anything is drawn
    model, processor = load_model(recipe, model_arguments)
    if not recipe.train_vision:
        model.model.vision_tower.requires_grad_(False)
    rows = load_rows(recipe, arguments, model)
    lora = get_peft_config(model_arguments)
    if lora is not None:
        untie_adapted_ends(model, lora)
    return LiveTrainer(
        model if lora is None else get_peft_model(model, lora),
        arguments,
        data_collator=MethodCollator(processor, recipe.max_frames, recipe.method, rows.features),
        train_dataset=LiveRows(rows.sources, rows.order, recipe.augmentation, arguments.seed),
        eval_dataset={},  # not None: the trainer would not evaluate
        eval_rows=rows.held_out,
        processing_class=processor,
    )


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a recipe; an interrupted run goes on where it stopped, exactly.

    Args:
        recipe_path: see [`load_recipe`].
        overrides: see [`load_recipe`].

    Returns:
        The folder of the trained model, its processor and `training_log.json`: `final` in the output folder. With LoRA
        the adapter is merged into the model, and lies by itself in `adapter` beside it. A model that ties head and
        embedding ends with two matrices if it has adapters on either.

    Raises:
        ValueError: if parts of the recipe do not fit together, or a run is to begin in a folder that holds one.
        NonFiniteError: if training went wrong; [`LiveTrainer`] says more.
    """
    recipe, arguments, model_arguments = load_recipe(recipe_path, overrides)
    output_dir = Path(arguments.output_dir)
    refuse_another_run(output_dir, recipe.resume)
    trainer = build_trainer(recipe, arguments, model_arguments)
    train_from_last(trainer)
    final = output_dir / "final"
    if model_arguments.use_peft:
        trainer.save_model(str(output_dir / "adapter"), _internal_call=True)
        if arguments.should_save:
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(final)
            trainer.processing_class.save_pretrained(final)
    else:
        trainer.save_model(str(final), _internal_call=True)
    if arguments.should_save:
        fields = asdict(recipe) | {"stage": "live", "eval_datasets": recipe.eval_datasets or []}
        log = training_log(trainer, fields, model_arguments.model_name_or_path)
        (final / "training_log.json").write_text(json.dumps(log, indent=1))
    return final
