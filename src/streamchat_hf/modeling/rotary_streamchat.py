"""Parallel 3D-RoPE (StreamChat, section 2.1 and figure 4).

The rotary half-dimension is split into three chunks (time, height, width). A text token at index p sits at (p, p, p),
a visual token of frame index p at (p, p + row, p + column). Angles are computed in float64, because a stream that runs
for days reaches indices whose float32 products have lost the small distances that attention is about.

Letters: B batch, L tokens, d head dimension.
"""

import torch


def rotary_sections(half: int) -> tuple[int, int, int]:
    """Splits `half` rotary frequencies into the (time, height, width) chunks: 1/4, 3/8, 3/8."""
    space = half * 3 // 8
    return half - 2 * space, space, space


def rotary_angles(
    index: torch.LongTensor, inv_freq: torch.Tensor, scaling: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of three-component indices.

    Args:
        index: `(..., 3)` integer (time, height, width) indices.
        inv_freq: `(d / 2,)` inverse frequencies of the text model's rotary embedding.
        scaling: attention scaling of that embedding, 1.0 for plain RoPE.
        dtype: type of the result.

    Returns:
        `cos (..., d)` and `sin (..., d)`.
    """
    device = index.device
    place = torch.device("cpu") if device.type == "mps" else device  # Apple's GPUs have no float64
    # Each frequency turns with its own component of the index. Split, not repeated by a tensor of section sizes: one
    # made from numbers of the host has no place in a CUDA graph.
    components = index.to(place, torch.float64).split(1, dim=-1)  # three of (..., 1)
    frequencies = inv_freq.to(place, torch.float64).split(rotary_sections(inv_freq.shape[0]))
    parts = [component * own for component, own in zip(components, frequencies, strict=True)]
    angles = torch.cat(parts * 2, dim=-1)  # (..., d)
    return (angles.cos() * scaling).to(device, dtype), (angles.sin() * scaling).to(device, dtype)


def text_index_3d(text_index: torch.LongTensor) -> torch.LongTensor:
    """`(B, L)` text indices to `(B, L, 3)`: (p, p, p)."""
    return text_index[..., None].expand(*text_index.shape, 3)


def visual_index_3d(frame_index: torch.LongTensor, rows: int, columns: int) -> torch.LongTensor:
    """`(...,)` frame indices to `(..., rows * columns, 3)`: (p, p + row, p + column), row-major."""
    device = frame_index.device
    row = torch.arange(rows, device=device).repeat_interleave(columns)
    column = torch.arange(columns, device=device).repeat(rows)
    offset = torch.stack((torch.zeros_like(row), row, column), dim=-1)
    return frame_index[..., None, None] + offset


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates `states (..., d)` by angles that broadcast against it, halves paired as in Qwen2."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat((-second, first), dim=-1) * sin
