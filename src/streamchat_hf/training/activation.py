"""Trains StreamBridge's activation model with transformers' trainer, on accelerate (2505.05467, section 3.2.3).

streamchat train recipes/streambridge/tiny_activation.yaml
accelerate launch -m streamchat_hf.training recipes/streambridge/activation.yaml
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from transformers import (
    PreTrainedConfig,
    TrainingArguments,
    set_seed,
)
from trl import ModelConfig, get_peft_config

from streamchat_hf import (
    VideoLLMOnlineConfig,
    VideoLLMOnlineForConditionalGeneration,
    VideoLLMOnlineProcessor,
)
from streamchat_hf.evaluation.activation import calibrate, watch_rows
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel
from streamchat_hf.training.activation_rows import (
    POSITIVE_SHARE,
    ActivationCollator,
    ActivationRows,
)
from streamchat_hf.training.checkpoints import (
    refuse_another_run,
    train_from_last,
)
from streamchat_hf.training.live import DEFAULTS, LiveTrainer
from streamchat_hf.training.recipe import read_recipe, training_log
from streamchat_hf.training.video_llm import VideoLLMRecipe, as_asked, load_parts, load_rows, refuse_parts


@dataclass
class ActivationRecipe(VideoLLMRecipe):
    """What a run is made of, besides `TrainingArguments` and the LoRA fields of TRL's `ModelConfig`.

    `model_name_or_path` is an activation model, or a VideoLLM-online whose head is taken off; on `eval_datasets` the
    threshold is calibrated when training has ended.

    Attributes:
        trainer: `"activation"`: which of the package's trainers reads this recipe.
        system_prompt: what every row begins with; `None`: as the processor has it.
        positive_share: P is drawn from 0 to this share of a segment, anew for each row whenever it comes.
        connector_learning_rate: learning rate of the connector; `None`: that of everything else.
        fps: the paper's rate.
    """

    trainer: str = "activation"
    system_prompt: str | None = None
    positive_share: float = POSITIVE_SHARE
    connector_learning_rate: float | None = None
    fps: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
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
    return read_recipe((ActivationRecipe, TrainingArguments, ModelConfig), DEFAULTS, path, overrides)


def load_model(
    recipe: ActivationRecipe, model_arguments: ModelConfig
) -> tuple[StreamBridgeActivationModel, VideoLLMOnlineProcessor]:
    """The model a run begins with, all of it trainable, and its processor.

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    path = model_arguments.model_name_or_path
    if path is not None:
        refuse_parts(recipe)
        loading = {"attn_implementation": model_arguments.attn_implementation, "dtype": model_arguments.dtype}
        model, processor = _from_checkpoint(path, loading)
    else:
        model, processor = _from_parts(recipe)
        model = as_asked(model, model_arguments)
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
    parts = load_parts(recipe)
    rows, columns = fields.get("frame_token_pooled", (4, 4)) or (0, 0)
    places = int(fields.get("frame_token_cls", False)) + rows * columns + 1  # the last is <ACT>
    processor = VideoLLMOnlineProcessor(
        parts.video_processor,
        parts.tokenizer,
        frame_num_tokens=places,
        frame_token_interval=None,
        frame_fps=recipe.fps,
    )
    ids = processor.token_ids()
    del ids["frame_token_interval_id"]
    model = StreamBridgeActivationModel.from_backbones(
        parts.text, parts.vision, **{**ids, "frame_fps": recipe.fps, **fields}
    )
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
    rows = load_rows(recipe, arguments, model)
    lora = get_peft_config(model_arguments)
    if lora is not None:
        lora.task_type = None  # TRL's is a language model with a head
    return ActivationTrainer(
        model if lora is None else get_peft_model(model, lora),
        arguments,
        data_collator=ActivationCollator(processor, recipe.max_frames, rows.features, recipe.positive_share),
        train_dataset=ActivationRows(rows.sources, rows.order, seed=arguments.seed),
        eval_dataset={},  # not None: the trainer would not evaluate
        eval_rows=rows.held_out,
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
    refuse_another_run(output_dir, recipe.resume)
    trainer = build_trainer(recipe, arguments, model_arguments)
    begun = time.process_time()
    train_from_last(trainer)
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
        fields = asdict(recipe) | {"stage": "activation", "eval_datasets": recipe.eval_datasets or []}
        log = training_log(trainer, fields, model_arguments.model_name_or_path)
        log |= {"calibration": tried, "cpu_seconds": seconds}
        (final / "training_log.json").write_text(json.dumps(log, indent=1))
    return final
