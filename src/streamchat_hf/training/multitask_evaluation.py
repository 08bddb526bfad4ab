"""How well a StreamFormer does its six tasks on held-out data: one number per task, each from 0 to 1.

Frames and pixels are ranked (average precision) rather than thresholded: a tower that has not trained a task, or not
for long, has no calibrated scale and bias for it either.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streamchat_hf.training.multitask_rounds import TaskData

# What is measured of each task.
METRICS = {
    "action_recognition": "accuracy",  # top 1
    "video_text_retrieval": "recall_at_1",  # among all held-out texts
    "temporal_localization": "frame_map",  # mean over classes of the average precision over all frames
    "temporal_grounding": "frame_ap",  # mean over queries of the average precision over the video's frames
    "video_object_segmentation": "pixel_map",  # mean over classes of the average precision over all pixels
    "referring_segmentation": "pixel_ap",  # mean over expressions of the average precision over the video's pixels
}


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Mean, over the positives, of the share of positives among what scores at least as much.

    Args:
        scores: `(n,)`.
        positive: `(n,)` bool with a positive.
    """
    order = scores.argsort(descending=True)
    scores, positive = scores[order], positive[order]
    _, group, sizes = scores.unique_consecutive(return_inverse=True, return_counts=True)
    at_least = sizes.cumsum(0)  # what scores at least as much as each group of equals
    precision = positive.cumsum(0)[at_least - 1] / at_least
    return float(precision[group][positive].mean())


def evaluate(module: nn.Module, data: Mapping[str, TaskData], batch_size: int) -> dict[str, float]:
    """Measures a [`multitask.MultitaskAlignment`] on one dataset per task.

    Args:
        module: it is left in the mode it was in.
        data: of the tasks to measure.
        batch_size: videos at once; it does not change a number.

    Returns:
        For each task `{task}_{metric}`, see `METRICS`.
    """
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return {
                f"{task}_{METRICS[task]}": _MEASURES[task](module, task, source, batch_size)
                for task, source in data.items()
            }
    finally:
        module.train(training)


def _batches(module: nn.Module, data: TaskData, batch_size: int) -> Iterator[dict[str, Any]]:
    device = next(module.parameters()).device
    dataset, collate = data
    for start in range(0, len(dataset), batch_size):
        batch = collate([dataset[i] for i in range(start, min(start + batch_size, len(dataset)))])
        yield {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _accuracy(module: nn.Module, task: str, data: TaskData, batch_size: int) -> float:
    right = 0
    for batch in _batches(module, data, batch_size):
        logits = module.logits(task, batch["pixel_values_videos"], batch["texts"])  # (B, C)
        right += int((logits.argmax(-1) == batch["labels"]).sum())
    return right / len(data.dataset)


def _recall_at_1(module: nn.Module, task: str, data: TaskData, batch_size: int) -> float:
    """How often the best of all different texts is true of a video: its own, or by `labels` that of a neighbour."""
    visual: list[Tensor] = []
    owned: list[set[str]] = []
    for batch in _batches(module, data, batch_size):
        visual.append(module.visual(task, batch["pixel_values_videos"]))
        for i, text in enumerate(batch["texts"]):
            others = [] if batch["labels"] is None else batch["labels"][i].nonzero()[:, 0].tolist()
            owned.append({text, *(batch["texts"][other] for other in others)})
    texts = sorted(set().union(*owned))
    embedded = torch.cat([module.text(task, texts[i : i + batch_size]) for i in range(0, len(texts), batch_size)])
    first = (torch.cat(visual) @ embedded.T).argmax(-1).tolist()
    return sum(texts[best] in own for best, own in zip(first, owned, strict=True)) / len(owned)


def _class_ap(module: nn.Module, task: str, data: TaskData, batch_size: int) -> float:
    """Background is a negative of every class; classes that never occur do not count."""
    scores: dict[str, list[Tensor]] = defaultdict(list)
    shown: dict[str, list[Tensor]] = defaultdict(list)
    for batch in _batches(module, data, batch_size):
        logits = module.logits(task, batch["pixel_values_videos"], batch["texts"])  # (B, T, C) or (B, T, C, H, W)
        for c, name in enumerate(batch["texts"]):
            scores[name].append(logits[:, :, c].flatten())
            shown[name].append((batch["labels"] == c).flatten())
    precisions = [
        average_precision(torch.cat(scores[name]), positive)
        for name in scores
        if (positive := torch.cat(shown[name])).any()
    ]
    return _mean(precisions)


def _text_ap(module: nn.Module, task: str, data: TaskData, batch_size: int) -> float:
    """Texts that hold nowhere in their video, or everywhere, say nothing about where and do not count."""
    precisions = []
    for batch in _batches(module, data, batch_size):
        logits = module.logits(task, batch["pixel_values_videos"], batch["texts"])  # (B, T, B) or (B, T, B, H, W)
        for i, inside in enumerate(batch["labels"]):
            if inside.any() and not inside.all():
                precisions.append(average_precision(logits[i, :, i].flatten(), inside.flatten()))
    return _mean(precisions)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


_MEASURES = {
    "action_recognition": _accuracy,
    "video_text_retrieval": _recall_at_1,
    "temporal_localization": _class_ap,
    "temporal_grounding": _text_ap,
    "video_object_segmentation": _class_ap,
    "referring_segmentation": _text_ap,
}
