"""The authors' StreamFormer checkpoint, or any SigLIP vision model, becomes a [`StreamFormerModel`]."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers.utils.hub import cached_file

from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel

_SAME_FIELDS = (
    *("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
    *("layer_norm_eps", "qkv_bias"),
)
# What the authors' files hold beside the backbone: causal masks of the first num_frames frames, the text tower and
# task heads of the training class, and its loss's scale and bias.
_IGNORED = re.compile(r"\.temporal_attention\.attention\.mask$|^text_encoder\.|^task_heads\.|^logit_(scale|bias)$")
_LAYER = r"^encoder\.layer\.(\d+)\."
_RENAMED = (
    (r"^embeddings\.patch_embeddings\.projection\.", "embeddings.patch_embedding."),
    (_LAYER + r"temporal_layernorm\.", r"layers.\1.temporal_norm."),
    (_LAYER + r"temporal_attention\.attention\.qkv\.", r"layers.\1.temporal_attention.qkv."),
    (_LAYER + r"temporal_attention\.output\.dense\.", r"layers.\1.temporal_attention.out_proj."),
    (_LAYER + r"temporal_dense\.", r"layers.\1.temporal_projection."),
    (_LAYER + r"temporal_attention_gating$", r"layers.\1.temporal_gate"),
    (_LAYER + r"layernorm_before\.", r"layers.\1.spatial_norm."),
    (_LAYER + r"attention\.attention\.qkv_lora_(a|b)\.weight$", r"layers.\1.spatial_attention.qkv.lora_\2"),
    (_LAYER + r"attention\.attention\.qkv\.", r"layers.\1.spatial_attention.qkv."),
    (_LAYER + r"attention\.output\.dense_lora_(a|b)\.weight$", r"layers.\1.spatial_attention.out_proj.lora_\2"),
    (_LAYER + r"attention\.output\.dense\.", r"layers.\1.spatial_attention.out_proj."),
    (_LAYER + r"layernorm_after\.", r"layers.\1.mlp_norm."),
    (_LAYER + r"intermediate\.dense\.", r"layers.\1.mlp.fc1."),
    (_LAYER + r"output\.dense\.", r"layers.\1.mlp.fc2."),
    (r"^post_layernorm\.", "norm."),
    (r"^head\.layernorm\.", "head.norm."),
    (r"^head\.attention\.out_proj\.", "head.out_proj."),
)
_SIGLIP_LAYER = r"^encoder\.layers\.(\d+)\."
_SIGLIP_RENAMED = (
    (_SIGLIP_LAYER + r"layer_norm1\.", r"layers.\1.spatial_norm."),
    (_SIGLIP_LAYER + r"layer_norm2\.", r"layers.\1.mlp_norm."),
    (_SIGLIP_LAYER + r"self_attn\.out_proj\.", r"layers.\1.spatial_attention.out_proj."),
    (_SIGLIP_LAYER + r"self_attn\.(q|k|v)_proj\.", r"layers.\1.spatial_attention.\2."),
    (_SIGLIP_LAYER + r"mlp\.", r"layers.\1.mlp."),
    (r"^embeddings\.position_embedding\.weight$", "embeddings.position_embeddings"),
    (r"^post_layernorm\.", "norm."),
    (r"^head\.layernorm\.", "head.norm."),
    (r"^head\.attention\.out_proj\.", "head.out_proj."),
)


def convert_streamformer(source: str | Path, dest: str | Path) -> StreamFormerModel:
    """Rewrites a checkpoint of the authors' code (Go2Heart/StreamFormer) as ours, with the same features.

    Args:
        source: folder or Hub id with `config.json` and `model.safetensors`; the backbone alone or the training class
            around it.
        dest: folder to write; `StreamFormerModel.from_pretrained(dest)` reads it.

    Returns:
        The model that was written, with LoRA unmerged, clamped learned time embeddings and no window.

    Raises:
        OSError: if there is no `config.json` or no `model.safetensors` (pickled weights are not read).
        ValueError: if the checkpoint is of another architecture.
    """
    config_file, weights_file = _find(source)
    config = json.loads(config_file.read_text())
    if config.get("attention_type", "divided_space_time") != "divided_space_time":
        raise ValueError(
            f"{source}: attention_type={config['attention_type']!r}, only divided_space_time is StreamFormer"
        )
    weights = {name.removeprefix("timesformer."): tensor for name, tensor in load_file(weights_file).items()}
    weights = {name: tensor for name, tensor in weights.items() if not _IGNORED.search(name)}
    weights = _tidy({_rename(name, _RENAMED): tensor for name, tensor in weights.items()})
    for name in ("embeddings.time_embeddings", "embeddings.position_embeddings"):
        if name not in weights:
            raise ValueError(f"{source} is not a StreamFormer checkpoint: it has no {name}")

    rank = weights.get("layers.0.spatial_attention.qkv.lora_a", torch.empty(0)).shape[0]
    model = StreamFormerModel(
        StreamFormerConfig(
            **{field: config[field] for field in _SAME_FIELDS if field in config},
            num_frames=weights["embeddings.time_embeddings"].shape[0],
            enable_causal_temporal=config.get("enable_causal_temporal", False),
            temporal_position="learned",
            lora_rank=rank,
            use_pooling_head="head.probe" in weights,
        )
    )
    _load(model, weights, str(source)).save_pretrained(dest)
    return model


def streamformer_from_siglip(siglip_vision_model, **config) -> StreamFormerModel:
    """A StreamFormer that starts from SigLIP, and until it is trained gives every frame SigLIP's own features.

    Time is added by fresh temporal attention behind gates of 0; fresh LoRA starts at B = 0, and learned time
    embeddings, which no gate guards, at 0.

    Args:
        siglip_vision_model: a `SiglipVisionModel`.
        **config: fields of [`StreamFormerConfig`] that SigLIP does not decide, such as `lora_rank`,
            `temporal_position` or `sliding_window`.

    Returns:
        The model, with SigLIP's data type.

    Raises:
        ValueError: if the model is not a SigLIP vision model, or does not have the chosen shape.
    """
    siglip = siglip_vision_model.config
    if siglip.model_type != "siglip_vision_model":
        raise ValueError(f"needs a SiglipVisionModel, not a model of type {siglip.model_type!r}")
    weights = siglip_vision_model.state_dict()
    weights = _tidy({_rename(name, _SIGLIP_RENAMED): tensor for name, tensor in weights.items()})
    fields = [field for field in _SAME_FIELDS if hasattr(siglip, field)]
    from_siglip = {field: getattr(siglip, field) for field in fields} | {
        "attention_probs_dropout_prob": siglip.attention_dropout,
        "use_pooling_head": siglip.vision_use_head,
    }
    model = StreamFormerModel(StreamFormerConfig(**from_siglip | config))
    fresh = {
        name: torch.zeros_like(tensor) if name == "embeddings.time_embeddings" else tensor
        for name, tensor in model.state_dict().items()
        if re.search(r"\.temporal_|\.lora_|\.time_embeddings$", name)
    }
    return _load(model, fresh | weights, "the SigLIP model")


def _find(source: str | Path) -> tuple[Path, Path]:
    """Paths of `config.json` and `model.safetensors` in a folder or on the Hub."""
    config = cached_file(str(source), "config.json")
    weights = cached_file(str(source), "model.safetensors", _raise_exceptions_for_missing_entries=False)
    if weights is None:
        raise FileNotFoundError(
            f'{source} has no model.safetensors; pickled weights are not read. Convert them once: python -c "import '
            "torch, safetensors.torch as s; w = torch.load('WEIGHTS.bin', map_location='cpu', weights_only=True); "
            "s.save_file({k: v.clone() for k, v in w.get('model', w).items()}, 'model.safetensors')\""
        )
    return Path(config), Path(weights)


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, ours in rules:
        renamed, count = re.subn(pattern, ours, name)
        if count:
            return renamed
    return name


def _tidy(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Shapes and fused projections as ours: no batch dimension, q|k|v of a block in one, k|v of the head in one."""
    tidy = {}
    for name, tensor in weights.items():
        if name == "head.probe":
            tidy[name] = tensor.flatten()
        elif name in ("embeddings.position_embeddings", "embeddings.time_embeddings"):
            tidy[name] = tensor.reshape(-1, tensor.shape[-1])
        elif name.endswith(".temporal_gate"):
            tidy[name] = tensor.reshape(1)
        elif match := re.fullmatch(r"head\.attention\.in_proj_(weight|bias)", name):
            query, key, value = tensor.chunk(3)
            tidy[f"head.q_proj.{match[1]}"], tidy[f"head.kv_proj.{match[1]}"] = query, torch.cat([key, value])
        elif match := re.fullmatch(r"(layers\.\d+\.spatial_attention\.)q\.(weight|bias)", name):
            prefix, kind = match.groups()
            tidy[f"{prefix}qkv.{kind}"] = torch.cat([weights[f"{prefix}{part}.{kind}"] for part in "qkv"])
        elif not re.search(r"\.spatial_attention\.[kv]\.", name):
            tidy[name] = tensor
    return tidy


def _load(model: StreamFormerModel, weights: dict[str, torch.Tensor], source: str) -> StreamFormerModel:
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != got:
        wrong = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        raise ValueError(f"{source} does not fit StreamFormer: {len(wrong)} weights differ, such as {wrong[:5]}")
    model.to(weights["norm.weight"].dtype).load_state_dict(weights)
    return model.eval()
