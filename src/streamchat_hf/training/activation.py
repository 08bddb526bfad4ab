"""Trains StreamBridge's activation model with transformers' trainer, on accelerate (2505.05467, section 3.2.3).

streamchat train recipes/streambridge/tiny_activation.yaml
accelerate launch -m streamchat_hf.training recipes/streambridge/activation.yaml
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from peft import get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    TrainingArguments,
    set_seed,
)
from trl import ModelConfig, TrlParser, get_peft_config

from streamchat_hf import (
    StreamFormerVideoProcessor,
    VideoLLMOnlineConfig,
    VideoLLMOnlineForConditionalGeneration,
    VideoLLMOnlineProcessor,
    tiny_checkpoint,
)
from streamchat_hf.data.live_streamworld import build_live_tokenizer
from streamchat_hf.evaluation.activation import calibrate, watch_rows
from streamchat_hf.hub.staging import without_folders
from streamchat_hf.modeling.backbones_videollm_online import load_vision_backbone
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel
from streamchat_hf.training.activation_rows import (
    POSITIVE_SHARE,
    ActivationCollator,
    ActivationRows,
)
from streamchat_hf.training.checkpoints import checkpoints, last_whole_checkpoint, remove_broken_checkpoints
from streamchat_hf.training.commit import code_commit
from streamchat_hf.training.live import DEFAULTS, LiveTrainer, load_sources
from streamchat_hf.training.live_rows import FrozenFeatures
from streamchat_hf.training.mixture import mixture_order
from streamchat_hf.training.online_detection_features import load_tower


@dataclass
class ActivationRecipe:
    """What a run is made of, besides `TrainingArguments` and the LoRA fields of TRL's `ModelConfig`.

    The model comes from `model_name_or_path`, an activation model, or a VideoLLM-online whose head is taken off; or
    from a language model and a vision tower. Without `text_backbone` the language model is a fresh one that reads
    StreamWorld's words, and without `vision_backbone` the tower is that of the shipped tiny checkpoint.

    Attributes:
        datasets: sources of rows, see [`load_source`], each with a `weight` or all without.
        eval_datasets: the same, of validation rows: on them the threshold is calibrated when training has ended.
        trainer: `"activation"`: which of the package's trainers reads this recipe.
        text_backbone: folder or Hub id of a causal language model, and of its tokenizer.
        text_config: fields of the configuration of a fresh language model, `model_type` among them.
        vision_backbone: folder or Hub id of a SigLIP, CLIP or StreamFormer.
        model_config: fields of `StreamBridgeActivationConfig`; not for `model_name_or_path`.
        system_prompt: what every row begins with; `None`: as the processor has it.
        positive_share: P is drawn from 0 to this share of a segment, anew for each row whenever it comes.
        connector_learning_rate: learning rate of the connector; `None`: that of everything else.
        train_vision: whether the vision tower learns too.
        keep_features: keep what a frozen vision tower makes of frames in memory, for rows that come again.
        fps: frames per second of rows; it goes into processor and configuration.
        max_frames: the most frames of a sample; `None`: no limit.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one.
    """

    datasets: list[dict[str, Any]] | str | None = None
    eval_datasets: list[dict[str, Any]] | str | None = None
    trainer: str = "activation"
    text_backbone: str | None = None
    text_config: dict[str, Any] | str | None = None
    vision_backbone: str | None = None
    model_config: dict[str, Any] | str | None = None
    system_prompt: str | None = None
    positive_share: float = POSITIVE_SHARE
    connector_learning_rate: float | None = None
    train_vision: bool = False
    keep_features: bool = False
    fps: float = 1.0
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
        if not 0 <= self.positive_share <= 1:
            raise ValueError(f"positive_share={self.positive_share} is a share of a segment, within 0 and 1")


def load_recipe(
    path: str | Path, overrides: Sequence[str] = ()
) -> tuple[ActivationRecipe, TrainingArguments, ModelConfig]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`ActivationRecipe`], `TrainingArguments` and `ModelConfig`.
        overrides: words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: if a field is unknown.
    """
    parser = TrlParser(
        (ActivationRecipe, TrainingArguments, ModelConfig), allow_abbrev=False, usage="train RECIPE [--key value ...]"
    )
    parser.set_defaults_with_config(**DEFAULTS, use_cpu=not torch.accelerator.is_available())
    recipe, arguments, model_arguments = parser.parse_args_and_config(["--config", str(path), *overrides])
    return recipe, arguments, model_arguments


def load_model(
    recipe: ActivationRecipe, model_arguments: ModelConfig
) -> tuple[StreamBridgeActivationModel, VideoLLMOnlineProcessor]:
    """The model a run begins with, all of it trainable, and its processor.

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    path, dtype = model_arguments.model_name_or_path, model_arguments.dtype
    if path is not None:
        if recipe.text_backbone or recipe.vision_backbone or recipe.model_config:
            raise ValueError("model_name_or_path is a whole model: leave out backbones and model_config")
        loading = {"attn_implementation": model_arguments.attn_implementation, "dtype": dtype}
        model, processor = _from_checkpoint(path, loading)
    else:
        model, processor = _from_parts(recipe)
        if dtype != "auto":
            model = model.to(getattr(torch, dtype))
        if model_arguments.attn_implementation is not None:
            model.set_attn_implementation(model_arguments.attn_implementation)
    if recipe.system_prompt is not None:
        processor.system_prompt = recipe.system_prompt
    return model.requires_grad_(True), processor


def _from_checkpoint(
    path: str, loading: dict[str, Any]
) -> tuple[StreamBridgeActivationModel, VideoLLMOnlineProcessor]:
    """An activation model, or a VideoLLM-online made into one."""
    processor = VideoLLMOnlineProcessor.from_pretrained(path)
    if PreTrainedConfig.get_config_dict(path)[0]["model_type"] != VideoLLMOnlineConfig.model_type:
        return StreamBridgeActivationModel.from_pretrained(path, **loading), processor
    speaker = VideoLLMOnlineForConditionalGeneration.from_pretrained(path, **loading)
    model = StreamBridgeActivationModel.from_videollm_online(speaker)
    silent = VideoLLMOnlineProcessor(
        processor.video_processor,
        processor.tokenizer,
        frame_num_tokens=model.config.frame_num_tokens,
        frame_token_interval=None,
        frame_fps=processor.frame_fps,
        system_prompt=processor.system_prompt,
    )
    return model, silent


def _from_parts(recipe: ActivationRecipe) -> tuple[StreamBridgeActivationModel, VideoLLMOnlineProcessor]:
    """A language model and a vision tower, each loaded or fresh, with a fresh connector, <ACT> and score."""
    fields: Any = recipe.model_config or {}
    if recipe.vision_backbone is None:
        vision, video_processor = load_tower(tiny_checkpoint())
    else:
        vision = load_vision_backbone(recipe.vision_backbone)
        side = vision.config.image_size
        video_processor = StreamFormerVideoProcessor(size={"height": side, "width": side}, do_pad=True)
    video_processor.fps = recipe.fps
    text: Any = recipe.text_backbone
    tokenizer: Any
    if recipe.text_backbone is None:
        tokenizer = build_live_tokenizer()
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        text_fields: Any = recipe.text_config or {}
        config = AutoConfig.for_model(**{**text_fields, "vocab_size": len(tokenizer), **special})
        text = AutoModelForCausalLM.from_config(config)
    else:
        tokenizer = AutoTokenizer.from_pretrained(recipe.text_backbone)
    rows, columns = fields.get("frame_token_pooled", (4, 4)) or (0, 0)
    places = int(fields.get("frame_token_cls", False)) + rows * columns + 1  # the last is <ACT>
    processor = VideoLLMOnlineProcessor(
        video_processor,
        tokenizer,
        frame_num_tokens=places,
        frame_token_interval=None,
        frame_fps=recipe.fps,
    )
    ids = processor.token_ids()
    del ids["frame_token_interval_id"]
    model = StreamBridgeActivationModel.from_backbones(text, vision, **{**ids, "frame_fps": recipe.fps, **fields})
    return model, processor


class ActivationTrainer(LiveTrainer):
    """[`LiveTrainer`] with the activation model's measure, and a learning rate of its own for the connector.

    Args:
        *args: as `Trainer`, with an [`ActivationCollator`].
        connector_learning_rate: see [`ActivationRecipe`].
        **kwargs: as [`LiveTrainer`].
    """

    def __init__(self, *args: Any, connector_learning_rate: float | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._connector_learning_rate = connector_learning_rate

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As transformers; what of the connector learns, but not <ACT>, in groups of its own."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self._connector_learning_rate is not None:
            named = self.model.named_parameters()
            connector = {id(p) for name, p in named if "connector" in name and "act_embedding" not in name}
            for group in list(optimizer.param_groups):
                own = [p for p in group["params"] if id(p) in connector]
                group["params"] = [p for p in group["params"] if id(p) not in connector]
                optimizer.add_param_group({**group, "params": own, "lr": self._connector_learning_rate})
        return optimizer

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Event F1 on the validation rows at the model's threshold; every process computes all of it."""
        with self.compute_loss_context_manager():
            result = watch_rows(self.accelerator.unwrap_model(self.model), self.processing_class, self.eval_rows)
        metrics = {f"{metric_key_prefix}_{name}": result[name] for name in ("f1", "precision", "recall")}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_trainer(
    recipe: ActivationRecipe, arguments: TrainingArguments, model_arguments: ModelConfig
) -> ActivationTrainer:
    """Everything of a run, ready to train.

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    set_seed(arguments.seed)  # before anything is drawn
    model, processor = load_model(recipe, model_arguments)
    if not recipe.train_vision:
        model.vision_tower.requires_grad_(False)
    sources, weights = load_sources(recipe.datasets, cast(Any, recipe))
    eval_sources, _ = load_sources(recipe.eval_datasets, cast(Any, recipe))
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
        features = FrozenFeatures(model.to(arguments.device))
    lora = get_peft_config(model_arguments)
    if lora is not None:
        lora.task_type = None  # TRL's is a language model with a head
    return ActivationTrainer(
        model if lora is None else get_peft_model(model, lora),
        arguments,
        data_collator=ActivationCollator(processor, recipe.max_frames, features, recipe.positive_share),
        train_dataset=ActivationRows(sources, order, seed=arguments.seed),
        eval_dataset={},  # not None: the trainer would not evaluate
        eval_rows=[row for source in eval_sources for row in source],
        processing_class=processor,
        connector_learning_rate=recipe.connector_learning_rate,
    )


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a recipe and calibrates the threshold; an interrupted run goes on where it stopped, exactly.

    Args:
        recipe_path: see [`load_recipe`].
        overrides: see [`load_recipe`].

    Returns:
        The folder of the trained model, its processor and `training_log.json`: `final` in the output folder. With LoRA
        the adapter is merged into the model, and lies by itself in `adapter` beside it. With validation rows the
        model's threshold is the one of the best event F1 on them; the log says what every other gave.

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
    begun = time.process_time()
    trainer.train(resume_from_checkpoint=None if last is None else str(last))
    seconds = {"training": time.process_time() - begun}
    final = output_dir / "final"
    if arguments.should_save:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if model_arguments.use_peft:
            trainer.save_model(str(output_dir / "adapter"), _internal_call=True)
            model = model.merge_and_unload()
        model.save_pretrained(final)
        trainer.processing_class.save_pretrained(final)
        begun = time.process_time()  # what goes wrong from here on costs no training
        tried = calibrate(model, trainer.processing_class, trainer.eval_rows) if trainer.eval_rows else []
        seconds["calibration"] = time.process_time() - begun
        model.config.save_pretrained(final)
        log = {"calibration": tried, "cpu_seconds": seconds, **_log(trainer, recipe, model_arguments)}
        (final / "training_log.json").write_text(json.dumps(log, indent=1))
    return final


def _log(trainer: ActivationTrainer, recipe: ActivationRecipe, model_arguments: ModelConfig) -> dict[str, Any]:
    """How the result came about, in the layout of the other trainers, without paths of this machine."""
    log = {
        "recipe": asdict(recipe) | {"stage": "activation", "eval_datasets": recipe.eval_datasets or []},
        "model": {"model_name_or_path": model_arguments.model_name_or_path},
        "arguments": trainer.args.to_dict(),
        "commit": code_commit(),
        "log": trainer.state.log_history,
    }
    return without_folders(log)
