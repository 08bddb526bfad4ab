"""StreamFormer's six losses (Yan et al., 2504.20041, section 3.4): visual features against texts, as pure functions.

All of them compare unit vectors: the logit of a feature f and a text t is s * (f . t) + b, with scale s and bias b as
in SigLIP's code. (Equations 6 to 8 write the bias with the opposite sign; it is learned, and starts from SigLIP's.) A
pair that belongs together costs -log sigmoid(logit), one that does not -log sigmoid(-logit).

By default a loss is the paper's equation. Where the authors' code (Go2Heart/StreamFormer) computes something else, an
argument named for what it changes gives that.

Letters: B videos, T frames, N patches of a frame, D embedding size, C classes, Q texts, H x W pixels of a frame.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate, normalize, softplus

from streamchat_hf.data.task_records import BACKGROUND

SegmentationObjective = Literal["sigmoid", "softmax_over_foreground"]


def class_embeddings(prompts: Tensor, renormalize: bool = True) -> Tensor:
    """One text embedding per class, from those of its prompts (section 3.3).

    Args:
        prompts: `(C, P, D)` embeddings of P prompts of each class, of any length.
        renormalize: make the means of unit vectors unit vectors again. `False`: leave them shorter, the more so the
            less the prompts agree, as the authors' code does.

    Returns:
        `(C, D)`.
    """
    mean = normalize(prompts, dim=-1).mean(1)
    return normalize(mean, dim=-1) if renormalize else mean


def alignment_logits(visual: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Features `(..., D)` against texts `(Q, D)`: s * (f . t) + b, `(..., Q)`."""
    return scale * visual @ texts.T + bias


def pair_costs(logits: Tensor, positive: Tensor) -> Tensor:
    """-log sigmoid(±logit), + where `positive` is true: the summand of equations 6 to 8, in the shape of both."""
    return softplus(torch.where(positive, -logits, logits))


def action_recognition_loss(visual: Tensor, classes: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Equation 6: every class is a pair of its own; summed over classes, averaged over videos.

    Args:
        visual: `(B, D)` feature of the last frame of each video.
        classes: `(C, D)`; see [`class_embeddings`] for the authors' shorter ones.
        labels: `(B,)` class of each video.
        scale: s.
        bias: b.

    Returns:
        A scalar.
    """
    logits = alignment_logits(visual, classes, scale, bias)
    return pair_costs(logits, _one_of(labels, len(classes))).sum(-1).mean()


def video_text_retrieval_loss(visual: Tensor, texts: Tensor, own: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Equation 6 with free descriptions: those of the other videos of the mini-batch are the negatives.

    Texts come from a frozen encoder. So a process that sees its own videos and the texts of all processes computes its
    share of the loss of the whole mini-batch, and the mean of the processes' gradients is the gradient of that loss:
    the authors' exchange of features between neighbours is not needed.

    Args:
        visual: `(B, D)` feature of the last frame of each video.
        texts: `(Q, D)` descriptions of the whole mini-batch.
        own: `(B, Q)` bool, which descriptions are true of a video: its own and equal ones.
        scale: s.
        bias: b.

    Returns:
        A scalar.
    """
    return pair_costs(alignment_logits(visual, texts, scale, bias), own).sum(-1).mean()


def temporal_localization_loss(visual: Tensor, classes: Tensor, labels: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Equation 7: summed over classes, averaged over frames; in a background frame every class is a negative.

    Args:
        visual: `(B, T, D)` feature of every frame.
        classes: `(C, D)`.
        labels: `(B, T)` class of each frame, -1 for background.
        scale: s.
        bias: b.

    Returns:
        A scalar.
    """
    logits = alignment_logits(visual, classes, scale, bias)
    return pair_costs(logits, _one_of(labels, len(classes))).sum(-1).mean()


def temporal_grounding_loss(
    visual: Tensor,
    texts: Tensor,
    inside: Tensor,
    own: Tensor,
    scale: Tensor,
    bias: Tensor,
    in_batch_negatives: bool = True,
    mean_over_frames: bool = True,
) -> Tensor:
    """Equation 7 with free queries: a frame belongs to its own query, if it lies inside what that describes.

    Args:
        visual: `(B, T, D)` feature of every frame.
        texts: `(Q, D)` queries of the whole mini-batch.
        inside: `(B, T)` bool, which frames show what the video's own query describes.
        own: `(B, Q)` bool, which queries are a video's own: it, and equal ones.
        scale: s.
        bias: b.
        in_batch_negatives: queries of other videos are negatives of every frame. `False`: frames meet their own query
            alone, as in the authors' code.
        mean_over_frames: divide by T. `False`: do not, as the authors' code.

    Returns:
        A scalar.
    """
    logits = alignment_logits(visual, texts, scale, bias)  # (B, T, Q)
    costs = pair_costs(logits, inside[:, :, None] & own[:, None])
    if in_batch_negatives:
        total = costs.sum(-1)
    else:
        first = own.int().argmax(-1)  # equal queries have equal costs
        total = costs.gather(2, first[:, None, None].expand(-1, costs.shape[1], 1))[..., 0]
    return total.mean() if mean_over_frames else total.sum(1).mean()


def pixel_logits(patches: Tensor, texts: Tensor, size: tuple[int, int], scale: Tensor, bias: Tensor) -> Tensor:
    """Patches against texts, up-sampled bilinearly to pixels (section 3.4).

    Args:
        patches: `(B, T, N, D)`, rows of the grid one after the other.
        texts: `(Q, D)`.
        size: height and width of a frame in pixels.
        scale: s.
        bias: b.

    Returns:
        `(B, T, Q, H, W)`.

    Raises:
        ValueError: if N patches do not cover a frame of that shape.
    """
    videos, frames, count, _ = patches.shape
    rows = round((count * size[0] / size[1]) ** 0.5)
    if rows == 0 or count % rows:
        raise ValueError(f"{count} patches are no grid over a frame of {size[0]} x {size[1]} pixels")
    logits = alignment_logits(patches, texts, scale, bias)  # (B, T, N, Q)
    grids = logits.flatten(0, 1).transpose(1, 2).unflatten(2, (rows, count // rows))  # (B*T, Q, rows, columns)
    return interpolate(grids, size=size, mode="bilinear").unflatten(0, (videos, frames))


def video_object_segmentation_loss(
    patches: Tensor,
    classes: Tensor,
    labels: Tensor,
    scale: Tensor,
    bias: Tensor,
    objective: SegmentationObjective = "sigmoid",
) -> Tensor:
    """Equation 8: summed over classes, averaged over pixels; in a background pixel every class is a negative.

    Args:
        patches: `(B, T, N, D)` feature of every patch.
        classes: `(C, D)`.
        labels: `(B, T, H, W)` class of each pixel, -1 for background.
        scale: s.
        bias: b.
        objective: `"sigmoid"`, or `"softmax_over_foreground"`: the authors' cross-entropy over the classes, averaged
            over the pixels that have one and then over videos. Nothing there says what background looks like.

    Returns:
        A scalar.
    """
    logits = pixel_logits(patches, classes, labels.shape[2:], scale, bias)
    if objective == "softmax_over_foreground":
        return _foreground_cross_entropy(logits, labels)
    return pair_costs(logits, _one_of(labels, len(classes)).movedim(-1, 2)).sum(2).mean()


def referring_segmentation_loss(
    patches: Tensor,
    texts: Tensor,
    inside: Tensor,
    own: Tensor,
    scale: Tensor,
    bias: Tensor,
    objective: SegmentationObjective = "sigmoid",
) -> Tensor:
    """Equation 8 with free expressions: a pixel belongs to its video's own expression, if the object covers it.

    Args:
        patches: `(B, T, N, D)` feature of every patch.
        texts: `(Q, D)` expressions of the whole mini-batch.
        inside: `(B, T, H, W)` bool, the pixels of the object that the video's own expression names.
        own: `(B, Q)` bool, which expressions are a video's own: it, and equal ones.
        scale: s.
        bias: b.
        objective: `"sigmoid"`, or `"softmax_over_foreground"`: the authors' cross-entropy over all expressions of the
            mini-batch, averaged over the object's pixels and then over videos.

    Returns:
        A scalar.
    """
    logits = pixel_logits(patches, texts, inside.shape[2:], scale, bias)
    if objective == "softmax_over_foreground":
        first = own.int().argmax(-1)[:, None, None, None]
        return _foreground_cross_entropy(logits, torch.where(inside, first, BACKGROUND))
    return pair_costs(logits, inside[:, :, None] & own[:, None, :, None, None]).sum(2).mean()


def limit_classes(labels: Tensor, classes: int, limit: int) -> tuple[Tensor, Tensor]:
    """Which classes to segment among, where a data set has more than fit: those shown, filled up with random others.

    The authors' code takes 100 of them. Draws from torch's global generator.

    Args:
        labels: of any shape, -1 for background.
        classes: C.
        limit: the most classes to keep; those shown are kept in any case.

    Returns:
        The kept classes `(K,)` in order, and the labels as indices into them.
    """
    shown = labels.unique()
    shown = shown[shown != BACKGROUND]
    chosen = torch.zeros(classes, dtype=torch.bool, device=labels.device)
    chosen[shown] = True
    others = (~chosen).nonzero()[:, 0]
    more = max(0, min(limit - len(shown), len(others)))
    chosen[others[torch.randperm(len(others))[:more].to(labels.device)]] = True
    place = chosen.cumsum(0) - 1  # (C,)
    return chosen.nonzero()[:, 0], torch.where(labels == BACKGROUND, BACKGROUND, place[labels.clamp(min=0)])


def _one_of(labels: Tensor, classes: int) -> Tensor:
    """Labels `(...)` as bool `(..., C)`, nowhere true for background."""
    return labels[..., None] == torch.arange(classes, device=labels.device)


def _foreground_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of `(B, T, Q, H, W)` over Q where labels `(B, T, H, W)` are not background, mean per video.

    A video of nothing but background costs 0.
    """
    costs = cross_entropy(logits.movedim(2, 1), labels, ignore_index=BACKGROUND, reduction="none")  # (B, T, H, W)
    pixels = (labels != BACKGROUND).flatten(1).sum(1)
    return (costs.flatten(1).sum(1) / pixels.clamp(min=1)).mean()
