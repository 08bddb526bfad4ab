"""Text models and vision towers that a StreamChat can be built from."""

import copy
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, Qwen2Config

from .configuration_streamformer import StreamFormerConfig
from .modeling_streamformer import StreamFormerModel

# What a Llama configuration shares with Qwen2's.
_LLAMA_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_dropout",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def text_files(name) -> tuple[str, dict[str, str]]:
    """Where a text model and its tokenizer lie, for `from_pretrained`.

    Args:
        name: a folder, a Hub id, a GGUF file, or a folder with a single GGUF file and no other model.

    Returns:
        The folder or Hub id, and `gguf_file` if that is what is to be read in it.

    Raises:
        ValueError: if a folder holds several GGUF files and nothing that says which.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir() and not (path / "config.json").is_file():
        quantised = sorted(file.name for file in path.glob("*.gguf"))
        if len(quantised) > 1:
            raise ValueError(f"{name} holds several models, name the file of one: {', '.join(quantised)}")
        if quantised:
            return str(path), {"gguf_file": quantised[0]}
    return str(name), {}


def load_text_backbone(text) -> tuple[PreTrainedModel, Qwen2Config]:
    """Loads a text model and gives the Qwen2 configuration with the same computation.

    Args:
        text: as [`text_files`] takes it, or a loaded causal language model.

    Raises:
        ValueError: if the model is neither Qwen2 nor shaped like Llama, or a folder does not say which of several.
    """
    if not isinstance(text, torch.nn.Module):
        source, options = text_files(text)
        text = AutoModelForCausalLM.from_pretrained(source, **options)
    config = text.config
    if config.model_type == "qwen2":
        return text, Qwen2Config(**{**config.to_dict(), "dtype": None})
    if config.model_type == "llama" and not config.attention_bias and not config.mlp_bias:
        # A Llama without biases is a Qwen2 whose query, key and value biases are zero.
        return text, Qwen2Config(**{name: getattr(config, name) for name in _LLAMA_FIELDS if hasattr(config, name)})
    raise ValueError(
        f"text model type {config.model_type!r} does not fit: StreamChat takes Qwen2, Qwen2.5, or Llama without biases"
    )


def load_vision_backbone(vision) -> PreTrainedModel:
    """Loads a vision tower: StreamFormer, SigLIP (whole or vision part), or the SigLIP inside PaliGemma.

    Raises:
        ValueError: if the model is of another architecture.
    """
    if not isinstance(vision, torch.nn.Module):
        model_type = _model_type(vision)
        vision = (StreamFormerModel if model_type == StreamFormerConfig.model_type else AutoModel).from_pretrained(
            vision
        )
    model_type = vision.config.model_type
    if model_type == "siglip":
        vision = vision.vision_model
    elif model_type == "paligemma":
        vision = getattr(vision, "model", vision).vision_tower
    if vision.config.model_type not in ("siglip_vision_model", StreamFormerConfig.model_type):
        raise ValueError(f"vision model type {model_type!r} does not fit: StreamChat needs StreamFormer or SigLIP")
    return vision


def _model_type(source) -> str:
    from_dict, _ = StreamFormerConfig.get_config_dict(source)
    return from_dict.get("model_type", "") or AutoConfig.from_pretrained(source).model_type


@torch.no_grad()
def copy_backbones(model, text: PreTrainedModel, vision: PreTrainedModel) -> None:
    """Copies the weights of both backbones, and each V-FFN from the FFN of its layer (StreamChat, section 2.1).

    Raises:
        ValueError: if a weight of a backbone finds no place, or a place finds no weight.
    """
    _load(model.model.vision_tower, vision.state_dict(), "vision tower")

    weights = dict(text.base_model.state_dict())
    for i, layer in enumerate(model.model.language_model.layers):
        attention = layer.self_attn
        for projection in ("q_proj", "k_proj", "v_proj"):
            bias = getattr(attention, projection).bias
            weights.setdefault(f"layers.{i}.self_attn.{projection}.bias", torch.zeros_like(bias))
    _load(model.model.language_model, weights, "text model", ours=("cross_attn", "visual_"))
    if not model.config.tie_word_embeddings:
        model.lm_head.load_state_dict(text.get_output_embeddings().state_dict())

    for layer in model.model.language_model.cross_layers:
        if layer.cross_attn.own_projections:
            layer.cross_attn.load_state_dict(layer.self_attn.state_dict())
            layer.cross_attn_layernorm.load_state_dict(layer.input_layernorm.state_dict())
        if layer.visual_mlp is not None:
            layer.visual_mlp.load_state_dict(layer.mlp.state_dict())
            layer.visual_layernorm.load_state_dict(layer.post_attention_layernorm.state_dict())
    if text.generation_config is not None:
        model.generation_config = copy.deepcopy(text.generation_config)


def _load(module: torch.nn.Module, weights: dict, what: str, ours: tuple[str, ...] = ()) -> None:
    missing, unexpected = module.load_state_dict(weights, strict=False)
    missing = [name for name in missing if not any(part in name for part in ours)]
    if missing or unexpected:
        raise ValueError(f"{what} does not fit: missing {missing[:3]}, unexpected {unexpected[:3]}")
