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
import yaml
from peft import get_peft_model
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from trl import ModelConfig, TrlParser, get_peft_config

from streamchat_hf import (
    StreamFormerVideoProcessor,
    VideoLLMOnlineForConditionalGeneration,
    VideoLLMOnlineProcessor,
    tiny_checkpoint,
)
from streamchat_hf.data.live_streamworld import build_live_tokenizer
from streamchat_hf.evaluation.videollm_online import dialogue_metrics
from streamchat_hf.hub.staging import without_folders
from streamchat_hf.modeling.backbones_videollm_online import load_vision_backbone
from streamchat_hf.training.checkpoints import (
    WholeCheckpoints,
    checkpoints,
    last_whole_checkpoint,
    remove_broken_checkpoints,
)
from streamchat_hf.training.commit import code_commit
from streamchat_hf.training.live_rows import FrozenFeatures, LiveRows, MethodCollator, load_source
from streamchat_hf.training.mixture import mixture_order
from streamchat_hf.training.online_detection_features import load_tower
from streamchat_hf.training.sft import PATIENCE, NonFiniteError

logger = logging.getLogger(__name__)

# Rows become tensors in the collator, in the order of the mixture.
DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
    "ddp_find_unused_parameters": False,
    "logging_nan_inf_filter": False,
}


@dataclass
class LiveRecipe:
    """What a run is made of, besides `TrainingArguments` and the LoRA fields of TRL's `ModelConfig`.

    The model comes from `model_name_or_path`, a VideoLLM-online; or from a language model and a vision tower, with a
    fresh connector. Without `text_backbone` the language model is a fresh one that speaks StreamWorld's words, and
    without `vision_backbone` the tower is that of the shipped tiny checkpoint.

    Attributes:
        datasets: sources of rows, see [`load_source`], each with a `weight` or all without.
        eval_datasets: the same, of held-out rows on which LM-PPL, TimeDiff and Fluency are measured.
        trainer: `"live"`: which of the package's trainers reads this recipe.
        method: `"streaming"`; or a baseline of table 1a, see `data/live_methods.py`.
        text_backbone: folder or Hub id of a causal language model, and of its tokenizer.
        text_config: fields of the configuration of a fresh language model, `model_type` among them.
        vision_backbone: folder or Hub id of a SigLIP, CLIP or StreamFormer.
        model_config: fields of `VideoLLMOnlineConfig`; not for `model_name_or_path`.
        frame_token_interval: text of the token between frames, which means silence; empty: none, the end of an answer
            means it.
        stream_loss_weight: w of equation 5; `None`: as the model has it.
        train_vision: whether the vision tower learns too.
        keep_features: keep what a frozen vision tower makes of frames in memory, for rows that come again.
        augmentation: spoil an answer of each row, so that words before tell less about words after.
        fps: frames per second of rows; it goes into processor and configuration.
        max_frames: the most frames of a sample; `None`: no limit.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one.
    """

    datasets: list[dict[str, Any]] | str | None = None
    eval_datasets: list[dict[str, Any]] | str | None = None
    trainer: str = "live"
    method: Literal["streaming", "interleaved", "per-frame"] = "streaming"
    text_backbone: str | None = None
    text_config: dict[str, Any] | str | None = None
    vision_backbone: str | None = None
    model_config: dict[str, Any] | str | None = None
    frame_token_interval: str = ","
    stream_loss_weight: float | None = None
    train_vision: bool = False
    keep_features: bool = False
    augmentation: bool = False
    fps: float = 2.0
    max_frames: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        for name in ("datasets", "eval_datasets", "text_config", "model_config"):
            if isinstance(getattr(self, name), str):  # from the command line
                setattr(self, name, yaml.safe_load(getattr(self, name)))
        if self.text_backbone is not None and self.text_config is not None:
            raise ValueError("text_config is for a fresh language model: that of text_backbone has its own")
        if self.train_vision and self.keep_features:
            raise ValueError("keep_features is for a frozen vision tower: leave out train_vision")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[LiveRecipe, TrainingArguments, ModelConfig]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`LiveRecipe`], `TrainingArguments` and `ModelConfig`.
        overrides: words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: if a field is unknown.
    """
    parser = TrlParser(
        (LiveRecipe, TrainingArguments, ModelConfig), allow_abbrev=False, usage="train RECIPE [--key value ...]"
    )
    parser.set_defaults_with_config(**DEFAULTS, use_cpu=not torch.accelerator.is_available())
    recipe, arguments, model_arguments = parser.parse_args_and_config(["--config", str(path), *overrides])
    return recipe, arguments, model_arguments


def load_model(
    recipe: LiveRecipe, model_arguments: ModelConfig
) -> tuple[VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor]:
    """The model a run begins with, all of it trainable, and its processor.

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    path, dtype = model_arguments.model_name_or_path, model_arguments.dtype
    if path is not None:
        if recipe.text_backbone or recipe.vision_backbone or recipe.model_config:
            raise ValueError("model_name_or_path is a whole model: leave out backbones and model_config")
        loading = {"attn_implementation": model_arguments.attn_implementation, "dtype": dtype}
        model = VideoLLMOnlineForConditionalGeneration.from_pretrained(path, **loading)
        processor = VideoLLMOnlineProcessor.from_pretrained(path)
    else:
        model, processor = _from_parts(recipe)
        if dtype != "auto":
            model = model.to(getattr(torch, dtype))
        if model_arguments.attn_implementation is not None:
            model.set_attn_implementation(model_arguments.attn_implementation)
    if recipe.stream_loss_weight is not None:
        model.config.stream_loss_weight = recipe.stream_loss_weight
    return model, processor


def _from_parts(recipe: LiveRecipe) -> tuple[VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor]:
    """A language model and a vision tower, each loaded or fresh, with a fresh connector."""
    fields: Any = recipe.model_config or {}
    text_fields: Any = recipe.text_config or {}
    tokenizer: Any
    if recipe.vision_backbone is None:
        vision, video_processor = load_tower(tiny_checkpoint())
    else:
        vision = load_vision_backbone(recipe.vision_backbone)
        side = vision.config.image_size
        video_processor = StreamFormerVideoProcessor(size={"height": side, "width": side}, do_pad=True)
    video_processor.fps = recipe.fps
    tokenizer = AutoTokenizer.from_pretrained(recipe.text_backbone) if recipe.text_backbone else build_live_tokenizer()
    rows, columns = fields.get("frame_token_pooled") or (0, 0)
    processor = VideoLLMOnlineProcessor(
        video_processor,
        tokenizer,
        frame_num_tokens=int(fields.get("frame_token_cls", True)) + rows * columns,
        frame_token_interval=recipe.frame_token_interval,
        frame_fps=recipe.fps,
    )
    text: Any = recipe.text_backbone
    if recipe.text_backbone is None:
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(**{**text_fields, "vocab_size": len(tokenizer), **special})
        text = AutoModelForCausalLM.from_config(config)
    model = VideoLLMOnlineForConditionalGeneration.from_backbones(
        text, vision, **{**processor.token_ids(), "frame_fps": recipe.fps, **fields}
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
    sources, weights = load_sources(recipe.datasets, recipe)
    eval_sources, _ = load_sources(recipe.eval_datasets, recipe)
    if not sources:
        raise ValueError("there is nothing to train on: give at least one source in datasets")
    at_once = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    sizes = [len(source) for source in sources]
    if arguments.max_steps <= 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * sum(sizes) / at_once)
    order = mixture_order(sizes, weights, arguments.max_steps * at_once, arguments.seed)
    features = None
    if recipe.keep_features:
        if arguments.dataloader_num_workers:
            raise ValueError("keep_features makes features where the model is: leave out dataloader_num_workers")
        features = FrozenFeatures(model.model.to(arguments.device))
    lora = get_peft_config(model_arguments)
    return LiveTrainer(
        model if lora is None else get_peft_model(model, lora),
        arguments,
        data_collator=MethodCollator(processor, recipe.max_frames, recipe.method, features),
        train_dataset=LiveRows(sources, order, recipe.augmentation, arguments.seed),
        eval_dataset={},  # not None: the trainer would not evaluate
        eval_rows=[row for source in eval_sources for row in source],
        processing_class=processor,
    )


def load_sources(sources: Any, recipe: LiveRecipe) -> tuple[list[Any], list[float] | None]:
    """The rows that a recipe names, source by source, and the weights of the sources, `None` if there are none.

    Raises:
        ValueError: if only some sources have weights, or a weight is not positive.
    """
    weights = [source.get("weight") for source in sources or []]
    given = [weight for weight in weights if weight is not None]
    if len(given) not in (0, len(weights)) or any(not weight > 0 for weight in given):
        raise ValueError(f"give all sources a positive weight, or none, not {weights}")
    rows: list[Dataset] = [load_source(source, recipe.fps, recipe.max_frames) for source in sources or []]
    return rows, given or None


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a recipe; an interrupted run goes on where it stopped, exactly.

    Args:
        recipe_path: see [`load_recipe`].
        overrides: see [`load_recipe`].

    Returns:
        The folder of the trained model, its processor and `training_log.json`: `final` in the output folder. With LoRA
        the adapter is merged into the model, and lies by itself in `adapter` beside it.

    Raises:
        ValueError: if parts of the recipe do not fit together, or a run is to begin in a folder that holds one.
        NonFiniteError: if training went wrong; [`LiveTrainer`] says more.
    """
    recipe, arguments, model_arguments = load_recipe(recipe_path, overrides)
    output_dir = Path(arguments.output_dir)
    if not recipe.resume and checkpoints(output_dir):
        raise ValueError(f"{output_dir} holds checkpoints of another run: remove them, or leave out no_resume")
    trainer = build_trainer(recipe, arguments, model_arguments)
    if arguments.should_save:
        remove_broken_checkpoints(output_dir)
    last = last_whole_checkpoint(output_dir)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    final = output_dir / "final"
    if model_arguments.use_peft:
        trainer.save_model(str(output_dir / "adapter"), _internal_call=True)
        if arguments.should_save:
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(final)
            trainer.processing_class.save_pretrained(final)
    else:
        trainer.save_model(str(final), _internal_call=True)
    if arguments.should_save:
        (final / "training_log.json").write_text(json.dumps(_log(trainer, recipe, model_arguments), indent=1))
    return final


def _log(trainer: LiveTrainer, recipe: LiveRecipe, model_arguments: ModelConfig) -> dict[str, Any]:
    """How the result came about, in the layout of the other trainers, without paths of this machine."""
    fields = asdict(recipe) | {"stage": "live", "eval_datasets": recipe.eval_datasets or []}
    log = {
        "recipe": fields,
        "model": {"model_name_or_path": model_arguments.model_name_or_path},
        "arguments": trainer.args.to_dict(),
        "commit": code_commit(),
        "log": trainer.state.log_history,
    }
    return without_folders(log)
