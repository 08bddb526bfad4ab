"""Trains a StreamFormer on its six tasks with transformers' trainer, on accelerate (2504.20041, section 3.4).

streamchat train recipes/streamformer/tiny_multitask.yaml
accelerate launch -m streamchat_hf.training recipes/streamformer/tiny_multitask.yaml
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoTokenizer,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
    Trainer,
    TrainingArguments,
    set_seed,
)

from streamchat_hf import StreamFormerConfig, StreamFormerModel, StreamFormerVideoProcessor
from streamchat_hf.convert.streamformer import streamformer_from_siglip
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.data.streamworld_tasks import StreamWorldTasks, collate_tasks
from streamchat_hf.training.checkpoints import (
    WholeCheckpoints,
    refuse_another_run,
    train_from_last,
)
from streamchat_hf.training.multitask import (
    ACTION_TEMPLATES,
    TASKS,
    FrozenTexts,
    LossOptions,
    MultitaskAlignment,
    freeze,
)
from streamchat_hf.training.multitask_evaluation import evaluate as measure
from streamchat_hf.training.multitask_rounds import TaskData, TaskRounds, plan_round, rounds_per_epoch
from streamchat_hf.training.recipe import read_recipe, read_yaml_fields, training_log
from streamchat_hf.training.sft import NonFiniteError
from streamchat_hf.training.streamworld import OPEN_GATE

# How rounds go through the trainer: in their order, and no micro-batch uses all scales and biases.
DEFAULTS: dict[str, Any] = {
    "remove_unused_columns": False,
    "train_sampling_strategy": "sequential",
    "ddp_find_unused_parameters": True,
    "logging_nan_inf_filter": False,
}
# How many times larger a fresh text tower's words are than its places, so that texts differ by what they say.
WORD_SCALE = 4.0
# The least variance along an axis of text embeddings, as a share of the largest, that whitening makes equal to it.
WHITENING_FLOOR = 1e-3


@dataclass
class MultitaskRecipe:
    """What a run is made of, besides `TrainingArguments`, which a recipe holds too.

    The tower and the texts come from `siglip`; or the tower alone from `model_name_or_path`. Without `siglip`, texts
    are StreamWorld's, read by a tower of random weights that stays as it is; without either, the tower is new too.

    Attributes:
        datasets: for each task its rows: `name: streamworld` and arguments of `StreamWorldTasks`. `None`: they are
            given to [`train`]. The tasks trained are those that stand here, in that order.
        eval_datasets: the same, held-out rows of the tasks that are measured.
        trainer: `"multitask"`: which of the package's trainers reads this recipe.
        siglip: folder or Hub id of a SigLIP, both towers of it.
        model_name_or_path: folder or Hub id of a StreamFormer to go on with.
        model_config: fields of `StreamFormerConfig`; not for `model_name_or_path`.
        text_config: fields of `SiglipTextConfig` for a text tower of random weights.
        logit_scale: s at the beginning, as a logarithm; `None`: SigLIP's.
        logit_bias: b at the beginning; `None`: SigLIP's.
        temporal: `"causal"`; `"bidirectional"`: frames see the future too; `"none"`: frames see only themselves, gates
            stay at 0 (table 5).
        trained: what learns, see [`multitask.trainable_names`].
        losses: fields of [`multitask.LossOptions`]: where the authors' code leaves the paper.
        action_templates: what names of actions are put into; `None`: the authors' 28.
        rounds: what an update is made of, see [`multitask_rounds.plan_round`].
        global_batch_size: videos of one micro-batch, over all processes; `per_device_train_batch_size` follows from
            it. `None`: the other way round.
        num_frames: of a clip.
        fps: frames per second of a clip.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one.
    """

    datasets: dict[str, Any] | str | None = None
    eval_datasets: dict[str, Any] | str | None = None
    trainer: str = "multitask"
    siglip: str | None = None
    model_name_or_path: str | None = None
    model_config: dict[str, Any] | str | None = None
    text_config: dict[str, Any] | str | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    temporal: Literal["causal", "bidirectional", "none"] = "causal"
    trained: Literal["temporal_and_lora", "all_but_spatial_attention", "everything"] = "temporal_and_lora"
    losses: dict[str, Any] | str | None = None
    action_templates: list[str] | None = None
    rounds: Literal["one_each", "proportional"] = "one_each"
    global_batch_size: int | None = None
    num_frames: int = 16
    fps: float = 2.0
    resume: bool = True

    def __post_init__(self) -> None:
        read_yaml_fields(self, "datasets", "eval_datasets", "model_config", "text_config", "losses")
        if self.model_name_or_path is not None and self.model_config is not None:
            raise ValueError("model_config is for a new tower: that of model_name_or_path has its own")
        if self.siglip is not None and self.text_config is not None:
            raise ValueError("text_config is for a text tower of random weights: that of siglip has its own")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[MultitaskRecipe, TrainingArguments]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`MultitaskRecipe`] and `TrainingArguments`.
        overrides: words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: if a field is unknown.
    """
    return read_recipe((MultitaskRecipe, TrainingArguments), DEFAULTS, path, overrides)


def build_module(recipe: MultitaskRecipe) -> MultitaskAlignment:
    """The towers a run begins with, and what of them learns.

    Raises:
        ValueError: if they do not fit each other.
    """
    fields = dict(recipe.model_config or {})
    if recipe.temporal == "bidirectional":
        fields |= {"enable_causal_temporal": False, "sliding_window": None}
    siglip = None if recipe.siglip is None else SiglipModel.from_pretrained(recipe.siglip)
    if recipe.model_name_or_path is not None:
        model = StreamFormerModel.from_pretrained(recipe.model_name_or_path)
        if model.config.enable_causal_temporal != (recipe.temporal != "bidirectional"):
            raise ValueError(f"temporal={recipe.temporal!r} is not how {recipe.model_name_or_path} was made")
    elif siglip is not None:
        model = streamformer_from_siglip(siglip.vision_model, **fields)
    else:
        model = StreamFormerModel(StreamFormerConfig(**fields))
        with torch.no_grad():  # nothing pretrained to protect: gates start open
            for layer in model.layers:
                layer.temporal_gate.fill_(OPEN_GATE)
    if recipe.temporal == "none":
        with torch.no_grad():
            for layer in model.layers:
                layer.temporal_gate.zero_()
    texts, scale, bias = _texts(recipe, siglip)
    module = MultitaskAlignment(
        model,
        texts,
        scale if recipe.logit_scale is None else recipe.logit_scale,
        bias if recipe.logit_bias is None else recipe.logit_bias,
        LossOptions(**recipe.losses or {}),
        recipe.action_templates or ACTION_TEMPLATES,
    )
    freeze(module, recipe.trained, temporal=recipe.temporal != "none")
    return module


def _texts(recipe: MultitaskRecipe, siglip: SiglipModel | None) -> tuple[FrozenTexts, float, float]:
    """The text tower, and SigLIP's scale (a logarithm) and bias: those it was trained to, or begins with."""
    if siglip is not None:
        texts = FrozenTexts(siglip.text_model, AutoTokenizer.from_pretrained(recipe.siglip))
        return texts, siglip.logit_scale.item(), siglip.logit_bias.item()
    tokenizer = build_tokenizer()
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = SiglipTextConfig(vocab_size=len(tokenizer), **special, **recipe.text_config or {})
    text_model = SiglipTextModel(config)
    _spread(text_model, tokenizer.pad_token_id)
    return FrozenTexts(text_model, tokenizer), math.log(10.0), -10.0


@torch.no_grad()
def _spread(text_model: SiglipTextModel, pad: int) -> None:
    """Lets a tower of random weights tell texts apart: its head makes the embeddings of texts of all lengths white.

    Those of a fresh tower all lie on one side of the origin, and single words differ by a few degrees.
    """
    words = text_model.get_input_embeddings().weight.mul_(WORD_SCALE)
    words[pad] = 0.0  # short texts are not mostly padding
    count, length = 4096, text_model.config.max_position_embeddings
    texts = torch.randint(len(words), (count, length))
    lengths = 1 + ((length - 1) * torch.rand(count, 1).square()).long()  # names are more often short
    texts[torch.arange(length) >= lengths] = pad
    embeddings = text_model.eval()(input_ids=texts).pooler_output  # (count, D)
    variances, axes = torch.linalg.eigh(torch.cov(embeddings.T))
    whiten = axes * variances.clamp(min=WHITENING_FLOOR * variances.max()).rsqrt() @ axes.T  # (D, D)
    text_model.head.bias.copy_(whiten @ (text_model.head.bias - embeddings.mean(0)))
    text_model.head.weight.copy_(whiten @ text_model.head.weight)


def load_data(
    sources: Mapping[str, Mapping[str, Any]] | None, recipe: MultitaskRecipe, size: int
) -> dict[str, TaskData]:
    """The rows that a recipe names.

    Args:
        sources: `datasets` or `eval_datasets` of the recipe.
        recipe: for the clips.
        size: side of a frame in pixels.

    Raises:
        ValueError: for an unknown task, or rows that are not StreamWorld's.
    """
    data = {}
    for task, source in (sources or {}).items():
        arguments = dict(source)
        if task not in TASKS:
            raise ValueError(f"task {task!r} must be one of {', '.join(TASKS)}")
        if (name := arguments.pop("name", None)) != "streamworld":
            raise ValueError(f"{task}: name={name!r}, only streamworld is built in; give other data to train()")
        clips = {"num_frames": recipe.num_frames, "fps": recipe.fps, "size": size}
        data[task] = TaskData(StreamWorldTasks(task, **{**clips, **arguments}), collate_tasks)
    return data


class MultitaskTrainer(WholeCheckpoints, Trainer):
    """transformers' trainer; an update is a round of micro-batches, and every task's loss and metric is logged.

    Args:
        module: a [`multitask.MultitaskAlignment`].
        arguments: whose `gradient_accumulation_steps` is the number of micro-batches of a round.
        rounds: what to read.
        eval_data: what to measure at each evaluation.

    Raises:
        NonFiniteError: while training, naming the step and the tasks.
    """

    def __init__(
        self,
        module: MultitaskAlignment,
        arguments: TrainingArguments,
        rounds: TaskRounds,
        eval_data: Mapping[str, TaskData],
    ):
        # Not None: the trainer would not evaluate.
        super().__init__(module, arguments, train_dataset=rounds, eval_dataset={}, data_collator=rounds.collate)
        self.eval_data = eval_data
        self._sums = {task: torch.zeros(2, device=arguments.device) for task in TASKS}  # loss, micro-batches
        self._last: dict[str, float] = {}

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimizer that `optim` names; what is no matrix (norms, biases, gates, scales) does not decay."""
        if self.optimizer is None:
            learns = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
            groups = [
                {"params": [p for p in learns if p.ndim > 1], "weight_decay": self.args.weight_decay},
                {"params": [p for p in learns if p.ndim <= 1], "weight_decay": 0.0},
            ]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of one micro-batch."""
        loss = model(**inputs)["loss"]
        value = loss.detach().float()
        self._sums[inputs["task"]] += torch.stack([value, torch.ones_like(value)])
        self._last[inputs["task"]] = value
        return (loss, {}) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm)
        # All processes have the same gradient, so all stop, before the update.
        if not math.isfinite(float(grad_norm)):
            here = ", ".join(f"{task} {float(value):.4g}" for task, value in self._last.items())
            raise NonFiniteError(
                f"the gradient of step {self.state.global_step + 1} is not finite (losses here: {here}). The step was "
                f"not taken; lower the learning rate, and go on from the last checkpoint in {self.args.output_dir}"
            )
        return grad_norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As transformers, with the mean loss of every task since the last time."""
        if "loss" in logs:
            for task, total in self._sums.items():
                value, count = self.accelerator.gather(total[None]).sum(0).tolist()
                if count:
                    logs[f"loss_{task}"] = round(value / count, 4)
                total.zero_()
        super().log(logs, start_time)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """The metric of every task that has held-out rows; every process computes all of it."""
        module = self.accelerator.unwrap_model(self.model)
        with self.compute_loss_context_manager():
            metrics = measure(module, self.eval_data, self.args.per_device_eval_batch_size)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def build_trainer(
    recipe: MultitaskRecipe,
    arguments: TrainingArguments,
    data: Mapping[str, TaskData] | None = None,
    eval_data: Mapping[str, TaskData] | None = None,
) -> MultitaskTrainer:
    """Everything of a run, ready to train; arguments as for [`train`].

    Raises:
        ValueError: if parts of the recipe do not fit together.
    """
    set_seed(arguments.seed)
    module = build_module(recipe)
    size = module.model.config.image_size
    data = load_data(recipe.datasets, recipe, size) if data is None else dict(data)
    eval_data = load_data(recipe.eval_datasets, recipe, size) if eval_data is None else dict(eval_data)
    if not data:
        raise ValueError("there is nothing to train on: the recipe names no datasets, and none were given to train()")
    sizes = {task: len(source.dataset) for task, source in data.items()}
    tasks = plan_round(sizes, recipe.rounds)
    micro_batch = _plan_steps(recipe, arguments, sizes, tasks)
    rounds = TaskRounds(data, tasks, arguments.max_steps, micro_batch, arguments.seed)
    return MultitaskTrainer(module, arguments, rounds, eval_data)


def _plan_steps(
    recipe: MultitaskRecipe, arguments: TrainingArguments, sizes: Mapping[str, int], tasks: Sequence[str]
) -> int:
    """Sets the micro-batches of a step and the steps of the run; gives the rows of a micro-batch."""
    if recipe.global_batch_size is not None:
        arguments.per_device_train_batch_size, rest = divmod(recipe.global_batch_size, arguments.world_size)
        if rest or not arguments.per_device_train_batch_size:
            raise ValueError(
                f"global_batch_size={recipe.global_batch_size} is no multiple of {arguments.world_size} processes"
            )
    micro_batch = arguments.per_device_train_batch_size * arguments.world_size
    arguments.gradient_accumulation_steps = len(tasks)
    if arguments.max_steps <= 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * rounds_per_epoch(sizes, tasks, micro_batch))
    return micro_batch


def train(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    data: Mapping[str, TaskData] | None = None,
    eval_data: Mapping[str, TaskData] | None = None,
) -> Path:
    """Runs a recipe; an interrupted run goes on where it stopped, exactly.

    Args:
        recipe_path: see [`load_recipe`].
        overrides: see [`load_recipe`].
        data: for each task its rows, instead of those that the recipe names. Names other than the tasks' are possible,
            for several data sets of one task with classes of their own: a round goes through data sets then.
        eval_data: held-out rows of each task.

    Returns:
        The folder of the trained StreamFormer, its video processor and `training_log.json`: `final` in the output
        folder.

    Raises:
        ValueError: if parts of the recipe do not fit together, or a run is to begin in a folder that holds one.
        NonFiniteError: if training went wrong.
    """
    recipe, arguments = load_recipe(recipe_path, overrides)
    output_dir = Path(arguments.output_dir)
    refuse_another_run(output_dir, recipe.resume)
    trainer = build_trainer(recipe, arguments, data, eval_data)
    train_from_last(trainer)
    final = output_dir / "final"
    if arguments.should_save:
        model = trainer.accelerator.unwrap_model(trainer.model).model
        model.save_pretrained(final)
        side = model.config.image_size
        StreamFormerVideoProcessor(size={"height": side, "width": side}, fps=recipe.fps).save_pretrained(final)
        (final / "training_log.json").write_text(json.dumps(_log(trainer, recipe), indent=1))
    return final


def _log(trainer: MultitaskTrainer, recipe: MultitaskRecipe) -> dict[str, Any]:
    """How the result came about, in the layout of the other trainers, without paths of this machine."""
    fields = asdict(recipe)
    for name in ("datasets", "eval_datasets"):
        fields[name] = [{"task": task, **source} for task, source in (fields[name] or {}).items()]
    # What the card of a checkpoint is written from.
    fields |= {"stage": "multitask", "text_backbone": recipe.siglip, "vision_backbone": recipe.siglip}
    return training_log(trainer, fields, recipe.model_name_or_path)
