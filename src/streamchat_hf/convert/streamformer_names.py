"""Where each weight of a StreamFormer lies in the authors' checkpoint and in SigLIP's, and fitting them in."""

import re
from collections.abc import Mapping, Sequence

import torch

from streamchat_hf.convert.weight_files import list_problems

Rules = Sequence[tuple[str, str]]

_HEAD: Rules = (
    (r"^norm\.", "post_layernorm."),
    (r"^head\.norm\.", "head.layernorm."),
    (r"^head\.out_proj\.", "head.attention.out_proj."),
    (r"^head\.k?[qv]_proj\.", "head.attention.in_proj_"),
)
# Our name → theirs; the first rule that matches counts.
AUTHORS: Rules = (
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^layers\.(\d+)\.temporal_norm\.", r"encoder.layer.\1.temporal_layernorm."),
    (r"^layers\.(\d+)\.temporal_attention\.qkv\.", r"encoder.layer.\1.temporal_attention.attention.qkv."),
    (r"^layers\.(\d+)\.temporal_attention\.out_proj\.", r"encoder.layer.\1.temporal_attention.output.dense."),
    (r"^layers\.(\d+)\.temporal_projection\.", r"encoder.layer.\1.temporal_dense."),
    (r"^layers\.(\d+)\.temporal_gate$", r"encoder.layer.\1.temporal_attention_gating"),
    (r"^layers\.(\d+)\.spatial_norm\.", r"encoder.layer.\1.layernorm_before."),
    (
        r"^layers\.(\d+)\.spatial_attention\.qkv\.lora_(a|b)$",
        r"encoder.layer.\1.attention.attention.qkv_lora_\2.weight",
    ),
    (r"^layers\.(\d+)\.spatial_attention\.qkv\.", r"encoder.layer.\1.attention.attention.qkv."),
    (
        r"^layers\.(\d+)\.spatial_attention\.out_proj\.lora_(a|b)$",
        r"encoder.layer.\1.attention.output.dense_lora_\2.weight",
    ),
    (r"^layers\.(\d+)\.spatial_attention\.out_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.mlp_norm\.", r"encoder.layer.\1.layernorm_after."),
    (r"^layers\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    *_HEAD,
)
# `{}` stands for q, k and v: three matrices there, one here.
SIGLIP: Rules = (
    (r"^embeddings\.position_embeddings$", "embeddings.position_embedding.weight"),
    (r"^layers\.(\d+)\.spatial_norm\.", r"encoder.layers.\1.layer_norm1."),
    (r"^layers\.(\d+)\.spatial_attention\.qkv\.", r"encoder.layers.\1.self_attn.{}_proj."),
    (r"^layers\.(\d+)\.spatial_attention\.out_proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^layers\.(\d+)\.mlp_norm\.", r"encoder.layers.\1.layer_norm2."),
    (r"^layers\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
    *_HEAD,
)


def fit(
    expected: Mapping[str, torch.Size], weights: Mapping[str, torch.Tensor], rules: Rules, source: str
) -> dict[str, torch.Tensor]:
    """Finds every weight of ours among theirs.

    Args:
        expected: our shapes by our names.
        weights: tensors by their names.
        rules: how our names become theirs: [`AUTHORS`] or [`SIGLIP`].
        source: whose weights these are, for the error.

    Returns:
        Tensors of our shapes by our names.

    Raises:
        ValueError: naming the first weights that are missing, of another shape, or find no place.
    """
    fitted, missing, misshapen, used = {}, [], [], set()
    for name, shape in expected.items():
        parts = _names(name, rules)
        used.update(parts)
        if absent := [part for part in parts if part not in weights]:
            missing += absent
            continue
        wanted = _shape_there(name, shape, len(parts))
        tensors = [weights[part] for part in parts]
        if wrong := [part for part in parts if _without_batch(weights[part].shape) != _without_batch(wanted)]:
            misshapen += [f"{part} is {tuple(weights[part].shape)}, expected {tuple(wanted)}" for part in wrong]
        else:
            fitted[name] = _rows_for(name, torch.cat(tensors) if len(tensors) > 1 else tensors[0]).reshape(shape)
    unknown = [name for name in weights if name not in used]
    problems = {"missing": missing, "of another shape": misshapen, "unknown": unknown}
    if any(problems.values()):
        raise ValueError(f"{source} does not fit StreamFormer: {list_problems(problems)}. {_advice(problems)}")
    return fitted


def _names(ours: str, rules: Rules) -> list[str]:
    for pattern, there in rules:
        name, count = re.subn(pattern, there, ours)
        if count:
            return [name.format(part) for part in "qkv"] if "{}" in name else [name]
    return [ours]


def _shape_there(ours: str, shape: torch.Size, parts: int) -> torch.Size:
    """Theirs: projections of a block in one or in three, those of the head all in one."""
    if ours.startswith("head.q_proj."):
        return torch.Size([3 * shape[0], *shape[1:]])
    if ours.startswith("head.kv_proj."):
        return torch.Size([3 * shape[0] // 2, *shape[1:]])
    return torch.Size([shape[0] // parts, *shape[1:]])


def _rows_for(ours: str, tensor: torch.Tensor) -> torch.Tensor:
    third = len(tensor) // 3 if tensor.ndim else 0
    if ours.startswith("head.q_proj."):
        return tensor[:third]
    return tensor[third:] if ours.startswith("head.kv_proj.") else tensor


def _without_batch(shape: torch.Size) -> tuple[int, ...]:
    """Embeddings and probe have batch dimensions of 1 there, and a gate has no dimension."""
    sizes = list(shape)
    while sizes and sizes[0] == 1:
        del sizes[0]
    return tuple(sizes)


def _advice(problems: dict[str, list[str]]) -> str:
    named = [*problems["missing"], *problems["of another shape"]]
    if named and all("lora" in name for name in named):
        return "LoRA must be of one rank, in every layer: merge it into the weights first where it is not"
    return "Take config.json and weights of one and the same model, whole; download both again if they should be"
