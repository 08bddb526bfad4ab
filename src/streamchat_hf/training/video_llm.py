"""What trainings of video language models that read frames as text share: the recipe, the parts, the rows.

VideoLLM-online (`live.py`) and StreamBridge's activation model (`activation.py`) are such models.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainingArguments
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.video_processing_utils import BaseVideoProcessor
from trl import ModelConfig

from streamchat_hf import StreamFormerVideoProcessor, tiny_checkpoint
from streamchat_hf.data.live_streamworld import build_live_tokenizer
from streamchat_hf.modeling.backbones_videollm_online import load_vision_backbone
from streamchat_hf.training.live_rows import FrozenFeatures, load_source
from streamchat_hf.training.mixture import mixture_order
from streamchat_hf.training.online_detection_features import load_tower
from streamchat_hf.training.recipe import read_yaml_fields


@dataclass
class VideoLLMRecipe:
    """What both recipes hold.

    The model comes from `model_name_or_path`; or from a language model and a vision tower, with a fresh connector.
    Without `text_backbone` the language model is a fresh one that speaks StreamWorld's words, and without
    `vision_backbone` the tower is that of the shipped tiny checkpoint.

    Attributes:
        datasets: sources of rows, see [`load_source`], each with a `weight` or all without.
        eval_datasets: the same, of held-out rows.
        text_backbone: folder or Hub id of a causal language model, and of its tokenizer.
        text_config: fields of the configuration of a fresh language model, `model_type` among them.
        vision_backbone: folder or Hub id of a SigLIP, CLIP or StreamFormer. Mean and deviation of its frames are those
            of the image or video processor beside it; without one, those of its kind.
        model_config: fields of the model's configuration; not for `model_name_or_path`.
        train_vision: whether the vision tower learns too.
        keep_features: keep what a frozen vision tower makes of frames in memory, for rows that come again.
        fps: frames per second of rows; it goes into processor and configuration.
        max_frames: the most frames of a sample; `None`: no limit.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one.
    """

    datasets: list[dict[str, Any]] | str | None = None
    eval_datasets: list[dict[str, Any]] | str | None = None
    text_backbone: str | None = None
    text_config: dict[str, Any] | str | None = None
    vision_backbone: str | None = None
    model_config: dict[str, Any] | str | None = None
    train_vision: bool = False
    keep_features: bool = False
    fps: float = 2.0
    max_frames: int | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        read_yaml_fields(self, "datasets", "eval_datasets", "text_config", "model_config")
        if self.text_backbone is not None and self.text_config is not None:
            raise ValueError("text_config is for a fresh language model: that of text_backbone has its own")
        if self.train_vision and self.keep_features:
            raise ValueError("keep_features is for a frozen vision tower: leave out train_vision")


class Parts(NamedTuple):
    """What a model is made of.

    Attributes:
        text: a fresh language model, or where one lies.
        tokenizer: its tokenizer.
        vision: the vision tower.
        video_processor: makes frames ready for it.
    """

    text: Any
    tokenizer: Any
    vision: Any
    video_processor: Any


def load_parts(recipe: VideoLLMRecipe) -> Parts:
    """A language model and a vision tower, each as the recipe names it or fresh."""
    if recipe.vision_backbone is None:
        vision, video_processor = load_tower(tiny_checkpoint())
    else:
        vision = load_vision_backbone(recipe.vision_backbone)
        side = vision.config.image_size
        normalisation = _normalisation(recipe.vision_backbone, vision.config.model_type)
        video_processor = StreamFormerVideoProcessor(
            size={"height": side, "width": side}, do_pad=True, **normalisation
        )
    video_processor.fps = recipe.fps
    if recipe.text_backbone is not None:
        tokenizer: Any = AutoTokenizer.from_pretrained(recipe.text_backbone)
        return Parts(recipe.text_backbone, tokenizer, vision, video_processor)
    tokenizer = build_live_tokenizer()
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields: Any = recipe.text_config or {}
    config = AutoConfig.for_model(**{**fields, "vocab_size": len(tokenizer), **special})
    return Parts(AutoModelForCausalLM.from_config(config), tokenizer, vision, video_processor)


def _normalisation(source: str, model_type: str) -> dict[str, Any]:
    """`image_mean` and `image_std` of the frames that a tower knows; those left out are our video processor's own."""
    of_kind = {"image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}
    known: dict[str, Any] = of_kind if model_type == "clip_vision_model" else {}
    for read in (BaseImageProcessor.get_image_processor_dict, BaseVideoProcessor.get_video_processor_dict):
        try:
            stored, _ = read(source)
        except OSError:  # there is none
            continue
        return known | {name: stored[name] for name in ("image_mean", "image_std") if stored.get(name) is not None}
    return known


def refuse_parts(recipe: VideoLLMRecipe) -> None:
    """Raises `ValueError` if a recipe with `model_name_or_path` also names what a model is made of."""
    if recipe.text_backbone or recipe.vision_backbone or recipe.model_config:
        raise ValueError("model_name_or_path is a whole model: leave out backbones and model_config")


def as_asked(model: Any, model_arguments: ModelConfig) -> Any:
    """A model made of parts, in the type and with the attention that the recipe asks for."""
    if model_arguments.dtype != "auto":
        model = model.to(getattr(torch, model_arguments.dtype))
    if model_arguments.attn_implementation is not None:
        model.set_attn_implementation(model_arguments.attn_implementation)
    return model


class Rows(NamedTuple):
    """What is trained on.

    Attributes:
        sources: rows, source by source.
        order: which row of which comes when.
        held_out: rows to evaluate on.
        features: keeps what a frozen tower makes of them; `None`: nothing is kept.
    """

    sources: list[Any]
    order: Any
    held_out: list[Any]
    features: FrozenFeatures | None


def load_rows(recipe: VideoLLMRecipe, arguments: TrainingArguments, base_model: Any) -> Rows:
    """The rows of a run in their order; sets `arguments.max_steps` where epochs were asked for.

    Args:
        recipe: which rows.
        arguments: how many of them.
        base_model: the model; what is kept of frames is what its `get_video_features` makes.

    Raises:
        ValueError: if there are none, or parts of the recipe do not fit together.
    """
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
        features = FrozenFeatures(base_model.to(arguments.device))
    return Rows(sources, order, [row for source in eval_sources for row in source], features)


def load_sources(sources: Any, recipe: VideoLLMRecipe) -> tuple[list[Any], list[float] | None]:
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
