"""The loss of VideoLLM-online: text, and silence at frames (Chen et al., CVPR 2024, equation 5)."""

import torch
from torch import nn


def streaming_loss(
    logits: torch.Tensor,
    labels: torch.LongTensor,
    is_frame: torch.BoolTensor,
    stream_weight: float,
    num_items: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """L = 1/n * sum over the n learned positions j of -log P(label_j | <= j) * (w if j is a frame token, else 1).

    Args:
        logits: `(..., vocabulary)`, of any float type.
        labels: `(...)` pre-shifted: `labels[..., j]` is what `logits[..., j]` predict; -100 where nothing is learned.
        is_frame: `(...)` which positions are frame tokens.
        stream_weight: w.
        num_items: n, where it counts the positions of several batches (gradient accumulation). Default: those of this
            one. Nothing learned: the loss is 0.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if not logits.shape[:-1] == labels.shape == is_frame.shape:
        raise ValueError(
            f"logits of shape {tuple(logits.shape)} need labels and is_frame of shape {tuple(logits.shape[:-1])}, not "
            f"{tuple(labels.shape)} and {tuple(is_frame.shape)}"
        )
    learned = labels != -100
    # In float32: bfloat16 has 8 bits, and only learned rows are cast, most of a stream is not.
    negative_log_likelihood = nn.functional.cross_entropy(logits[learned].float(), labels[learned], reduction="none")
    weights = torch.where(is_frame[learned], stream_weight, 1.0)
    count = learned.sum() if num_items is None else torch.as_tensor(num_items, device=logits.device)
    return (negative_log_likelihood * weights).sum() / count.clamp(min=1)  # 0 / 1 where nothing is learned
