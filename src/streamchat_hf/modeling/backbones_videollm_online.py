"""Language models and vision towers that a VideoLLM-online can be built from."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel

from .configuration_streamformer import StreamFormerConfig
from .modeling_streamformer import StreamFormerModel


def load_text_backbone(text) -> PreTrainedModel:
    """Loads a causal language model.

    Args:
        text: a folder, a Hub id, a folder with a single GGUF file, or a loaded causal language model.

    Raises:
        ValueError: if its head is not a plain matrix.
    """
    if not isinstance(text, torch.nn.Module):
        quantised = sorted(Path(text).glob("*.gguf")) if Path(text).is_dir() else []
        options = {"gguf_file": quantised[0].name} if len(quantised) == 1 else {}
        text = AutoModelForCausalLM.from_pretrained(text, **options)
    head = text.get_output_embeddings()
    if getattr(head, "bias", None) is not None or text.base_model is text:
        raise ValueError(
            f"text model type {text.config.model_type!r} does not fit: VideoLLM-online takes a causal language model "
            "whose head is a linear layer without bias, such as Llama's or Qwen2's"
        )
    return text


def load_vision_backbone(vision) -> PreTrainedModel:
    """Loads a vision tower: StreamFormer, SigLIP or CLIP, the last two whole or their vision part.

    Raises:
        ValueError: if the model is of another architecture.
    """
    if not isinstance(vision, torch.nn.Module):
        stored, _ = StreamFormerConfig.get_config_dict(vision)
        model_type = stored.get("model_type") or AutoConfig.from_pretrained(vision).model_type
        kind = StreamFormerModel if model_type == "streamformer" else AutoModel
        vision = kind.from_pretrained(vision)
    model_type = vision.config.model_type
    if model_type in ("siglip", "clip"):
        vision = vision.vision_model
    if vision.config.model_type not in ("siglip_vision_model", "clip_vision_model", "streamformer"):
        raise ValueError(
            f"vision model type {model_type!r} does not fit: VideoLLM-online needs SigLIP, CLIP or StreamFormer"
        )
    return vision
