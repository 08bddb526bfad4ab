"""The paper's three stages on TRL and accelerate (StreamChat, section 3): one recipe, one run.

streamchat train recipes/streamchat/sft.yaml --learning_rate 1e-5
accelerate launch -m streamchat_hf.training recipes/streamchat/sft.yaml
"""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import set_seed
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config

from streamchat_hf.evaluation.streamworld import evaluate as ask_streamworld
from streamchat_hf.hub.card import render_card
from streamchat_hf.training.adapters import untie_adapted_ends
from streamchat_hf.training.checkpoints import (
    WholeCheckpoints,
    refuse_another_run,
    train_from_last,
)
from streamchat_hf.training.dense_collator import DenseCollator
from streamchat_hf.training.mixture import load_mixture, mixture_order
from streamchat_hf.training.model_recipe import ModelRecipe, load_model
from streamchat_hf.training.recipe import read_recipe, read_yaml_fields, training_log
from streamchat_hf.training.stages import VISION_TOWER, freeze_for_stage

logger = logging.getLogger(__name__)

# After so many updates in a row without a single usable row the media are not where they should be.
PATIENCE = 3
# How our rows have to go through TRL's trainer: they become tensors in the collator, in the order of the mixture, and
# every parameter of a stage takes part in every batch.
DEFAULTS: dict[str, Any] = {
    "dataset_kwargs": {"skip_prepare_dataset": True},
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
    "ddp_find_unused_parameters": False,
    "activation_checkpointing": True,
    "max_length": None,
    "logging_nan_inf_filter": False,
    "hub_strategy": "end",
}
# Arguments of `datasets.load_dataset` that a log does not repeat.
CREDENTIALS = ("token", "storage_options")


@dataclass
class SFTRecipe(ModelRecipe):
    """What a run is made of, besides the arguments of TRL's `SFTConfig` and `ModelConfig`, which a recipe holds too.

    Attributes, besides those of the model:
        stage: `"pretrain_stage1"`, `"pretrain_stage2"` or `"sft"`: what is trained, see `stages.py`.
        datasets: Sources of rows, see `mixture.load_source`, each with a `weight` or all without.
        eval_datasets: The same, of rows whose loss is measured.
        trainer: `"sft"`: which of the package's trainers reads this recipe.
        train_text: Whether the text model's own weights learn in the stage `"sft"`.
        vision_learning_rate: Of the vision tower; `None`: as everything else.
        max_frames: The most frames of a sample.
        global_batch_size: Rows of one update, over all processes; the steps of accumulation follow from it. `None`:
            as `gradient_accumulation_steps` has it.
        eval_clips: Questions about held-out StreamWorld clips asked at each evaluation, one each.
        resume: Go on from the last whole checkpoint in `output_dir`, if there is one.
    """

    stage: str
    datasets: list[dict[str, Any]] | str | None = None
    eval_datasets: list[dict[str, Any]] | str | None = None
    trainer: str = "sft"
    train_text: bool = True
    vision_learning_rate: float | None = None
    max_frames: int = 32
    global_batch_size: int | None = None
    eval_clips: int = 0
    resume: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        read_yaml_fields(self, "datasets", "eval_datasets")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[SFTRecipe, SFTConfig, ModelConfig]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`SFTRecipe`], `SFTConfig` and `ModelConfig`.
        overrides: Words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: If a field is unknown.
    """
    return read_recipe((SFTRecipe, SFTConfig, ModelConfig), DEFAULTS, path, overrides)


class NonFiniteError(RuntimeError):
    """A loss or gradient is NaN or infinite: the step that has it is not taken, nothing is saved after it."""


class StreamChatTrainer(WholeCheckpoints, SFTTrainer):
    """TRL's trainer, which also names rows that are skipped or not finite, and evaluates on streaming questions.

    Args:
        *args: As `SFTTrainer`, with a [`DenseCollator`].
        eval_clips: Questions about held-out StreamWorld clips asked at each evaluation.
        vision_learning_rate: Of the vision tower; `None`: as everything else.
        **kwargs: As `SFTTrainer`.

    Raises:
        ValueError: If checkpoints would be pushed to the Hub.
        NonFiniteError: While training, naming the step and the rows.
        RuntimeError: While training, if no row could be used for several updates in a row.
    """

    def __init__(self, *args: Any, eval_clips: int = 0, vision_learning_rate: float | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.eval_clips, self.vision_learning_rate = eval_clips, vision_learning_rate
        self._skipped, self._useless_updates = 0, 0
        self._rows: list[str] = []

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """As transformers, for the result of a run only: its checkpoints hold optimizer states and pickles."""
        if self.args.push_to_hub and self.args.hub_strategy != "end":
            strategy = self.args.hub_strategy.value
            raise ValueError(f'hub_strategy="{strategy}" would push checkpoints: only "end" is possible')
        super().init_hf_repo(token, private)

    def create_optimizer(self, model=None):
        """As transformers, with a learning rate of its own for the vision tower, if it is to have one."""
        created = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if created or self.vision_learning_rate is None:
            return optimizer
        named = (self.model if model is None else model).named_parameters()
        tower = {id(parameter) for name, parameter in named if VISION_TOWER in name.split(".")}
        for group in list(optimizer.param_groups):
            seeing = [parameter for parameter in group["params"] if id(parameter) in tower]
            if seeing:
                group["params"] = [parameter for parameter in group["params"] if id(parameter) not in tower]
                optimizer.add_param_group({**group, "params": seeing, "lr": self.vision_learning_rate})
        return optimizer

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """The batches of one update."""
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._rows = [name for batch in batches for name in batch["rows"]]
        self._useless_updates = 0 if num_items else self._useless_updates + 1
        if self._useless_updates >= PATIENCE:
            reasons = (reason for batch in batches for reason in batch["skipped"])
            raise RuntimeError(
                f"no row of {PATIENCE} updates up to step {self.state.global_step + 1} could be used: "
                f"{next(reasons, 'their answers lie behind max_length, or are in another process')}"
            )
        return batches, num_items

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """TRL's loss, checked before it can do harm; rows that could not be used are named and counted."""
        rows, skipped = inputs.pop("rows"), inputs.pop("skipped")
        for reason in skipped:
            logger.warning("skipped: %s", reason)
        result = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.model.training:
            self._skipped += len(skipped)
            self._check("loss", result[0] if return_outputs else result, rows)
        return result

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        self._check("gradient", torch.tensor(float(grad_norm), device=self.args.device), self._rows)
        return grad_norm

    def _check(self, what: str, value: torch.Tensor, rows: list[str]) -> None:
        """Stops all processes together, so that none goes on to change or save anything."""
        value = value.detach().float().reshape(1)
        if not self.accelerator.gather(value).isfinite().all():
            here = f"{float(value)} on the rows {', '.join(rows)}" if not value.isfinite() else "in another process"
            raise NonFiniteError(
                f"the {what} of step {self.state.global_step + 1} is not finite: {here}. The step was not taken; look "
                f"at these rows or lower the learning rate, and go on from the last checkpoint in "
                f"{self.args.output_dir}"
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As TRL, with the number of rows skipped so far, if any were."""
        skipped = self.accelerator.gather(torch.tensor([self._skipped], device=self.args.device)).sum().item()
        if skipped:
            logs["skipped_rows"] = skipped
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """As TRL; also, how often a word is true when it is spoken, watching on or frozen at the question."""
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if self.eval_clips:
            # Every process asks the same: where the model is sharded, all of them have to take part in each step.
            self.model.eval()
            with self.compute_loss_context_manager():
                result = ask_streamworld(self.model, self.processing_class, clips=self.eval_clips, progress=False)
            # Who says no word about the state of the world has none right.
            streamed = {
                f"{metric_key_prefix}_streamworld_{viewer}": result["state_accuracy"][viewer] or 0.0
                for viewer in ("fresh", "frozen")
            }
            self.log(streamed)
            if not metrics:  # without rows the trainer does not take note that it has evaluated, and would do so again
                self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, streamed)
            metrics.update(streamed)
        return metrics


def build_trainer(recipe: SFTRecipe, arguments: SFTConfig, model_arguments: ModelConfig) -> StreamChatTrainer:
    """Everything of a run, ready to train.

    Raises:
        ValueError: If parts of the recipe do not fit together.
    """
    if model_arguments.use_peft and recipe.stage != "sft":
        raise ValueError(f"use_peft goes with the stage sft: in {recipe.stage} the adapters would be all that learns")
    if model_arguments.use_peft and not recipe.train_text:
        raise ValueError("use_peft trains the text model by adapters: leave out train_text")
    set_seed(arguments.seed)  # before a projector is drawn
    model, processor = load_model(recipe, model_arguments)
    freeze_for_stage(model, recipe.stage, recipe.train_text)
    lora = get_peft_config(model_arguments)
    if lora is not None:
        untie_adapted_ends(model, lora)
    collator = DenseCollator(processor, recipe.fps, recipe.max_frames, arguments.max_length)
    with arguments.main_process_first(desc="loading rows"):
        rows, sizes, weights = load_mixture(recipe.datasets or [], recipe.fps, recipe.max_frames)
        eval_rows: Any = {}
        if recipe.eval_datasets:
            eval_rows, _, _ = load_mixture(recipe.eval_datasets, recipe.fps, recipe.max_frames)
    window = model.config.visual_window
    if recipe.max_frames > window and "video" in rows.unique("kind"):
        raise ValueError(
            f"a video shows max_frames={recipe.max_frames} frames, of which a token sees the last {window}: lower it, "
            "or raise visual_window in model_config when the model is built"
        )
    batch = _plan_steps(recipe, arguments, len(rows))
    order = mixture_order(sizes, weights, arguments.max_steps * batch, arguments.seed)
    trainer = StreamChatTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=rows.select(order),
        eval_dataset=eval_rows,
        processing_class=processor,
        peft_config=lora,
        eval_clips=recipe.eval_clips,
        vision_learning_rate=recipe.vision_learning_rate,
    )
    _check_end_of_turn(trainer.model, collator)
    return trainer


def _plan_steps(recipe: SFTRecipe, arguments: SFTConfig, rows: int) -> int:
    """Sets the steps of accumulation and of the run, all of them full; gives the rows of one step."""
    at_once = arguments.per_device_train_batch_size * arguments.world_size
    if recipe.global_batch_size is not None:
        arguments.gradient_accumulation_steps, rest = divmod(recipe.global_batch_size, at_once)
        if rest or not arguments.gradient_accumulation_steps:
            raise ValueError(
                f"global_batch_size={recipe.global_batch_size} is no multiple of per_device_train_batch_size="
                f"{arguments.per_device_train_batch_size} times {arguments.world_size} processes"
            )
    batch = at_once * arguments.gradient_accumulation_steps
    if arguments.max_steps <= 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * rows / batch)
    return batch


def _check_end_of_turn(model: torch.nn.Module, collator: DenseCollator) -> None:
    """Raises a `ValueError` if the model would learn to end its turn with a token at which `generate` goes on."""
    known = model.generation_config.eos_token_id
    # The trainer adds the tokenizer's own to those of the model.
    ends = {collator.tokenizer.eos_token_id, *(known if isinstance(known, list) else [known])}
    if collator.end_of_turn not in ends:
        token = collator.tokenizer.convert_ids_to_tokens(collator.end_of_turn)
        raise ValueError(
            f"the chat template ends an answer with {token!r}, at which the model would not stop: set eos_token to it"
        )


def train(recipe_path: str | Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a stage; an interrupted run goes on where it stopped, exactly.

    Args:
        recipe_path: See [`load_recipe`].
        overrides: See [`load_recipe`].

    Returns:
        The folder of the trained model and processor, `final` in the output folder. With LoRA the adapter is merged
        into the model, and lies by itself in `adapter` beside it. With `push_to_hub` the Hub has what is in `final`.

    Raises:
        ValueError: If parts of the recipe do not fit together, or a run is to begin in a folder that holds one.
        NonFiniteError: If training went wrong; [`StreamChatTrainer`] says more.
    """
    recipe, arguments, model_arguments = load_recipe(recipe_path, overrides)
    output_dir = Path(arguments.output_dir)
    refuse_another_run(output_dir, recipe.resume)
    trainer = build_trainer(recipe, arguments, model_arguments)
    train_from_last(trainer)
    return _finish(trainer, recipe, model_arguments)


def _finish(trainer: StreamChatTrainer, recipe: SFTRecipe, model_arguments: ModelConfig) -> Path:
    """Writes the result: model, processor, and how it came about; and pushes it if that is wanted."""
    output_dir = Path(trainer.args.output_dir)
    final = output_dir / "final"
    if model_arguments.use_peft:
        trainer.save_model(str(output_dir / "adapter"), _internal_call=True)  # else all of output_dir is pushed
        if trainer.args.should_save:
            trainer.accelerator.unwrap_model(trainer.model).merge_and_unload().save_pretrained(final)
            trainer.processing_class.save_pretrained(final)
    else:
        trainer.save_model(str(final), _internal_call=True)
    if trainer.args.should_save:
        log = _log(trainer, recipe, model_arguments)
        (final / "training_log.json").write_text(json.dumps(log, indent=1))
    if trainer.args.push_to_hub and trainer.is_world_process_zero():
        repository, arguments = trainer.hub_model_id, trainer.args
        render_card(final, repository).save(final / "README.md")
        HfApi(token=arguments.hub_token).upload_folder(
            repo_id=repository, folder_path=final, commit_message="End of training", revision=arguments.hub_revision
        )
    return final


def _log(trainer: StreamChatTrainer, recipe: SFTRecipe, model_arguments: ModelConfig) -> dict[str, Any]:
    """How the result came about, without paths of this machine and without credentials."""
    fields = asdict(recipe)
    for name in ("datasets", "eval_datasets"):
        sources = fields[name] or []
        fields[name] = [{key: source[key] for key in source if key not in CREDENTIALS} for source in sources]
    return training_log(trainer, fields, model_arguments.model_name_or_path)
