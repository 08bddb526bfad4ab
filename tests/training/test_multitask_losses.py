"""The six losses: the paper's equations as plain loops, and the authors' code by its own numbers."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import gelu, layer_norm, linear, normalize

from streamchat_hf.training.multitask_losses import (
    action_recognition_loss,
    alignment_logits,
    class_embeddings,
    limit_classes,
    pixel_logits,
    referring_segmentation_loss,
    temporal_grounding_loss,
    temporal_localization_loss,
    video_object_segmentation_loss,
    video_text_retrieval_loss,
)

GOLDEN = Path(__file__).parents[1] / "fixtures" / "streamformer_losses"
S, BIAS = torch.tensor([6.0]), torch.tensor([-2.5])
B, T, D = 3, 4, 8


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def integers(low, high, shape, seed=5):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def pair(feature, text, together) -> float:
    """The summand of equations 6 to 8: log 1 / (1 + e^(-y (s f.t + b))), negated."""
    y = 1 if together else -1
    return -math.log(1 / (1 + math.exp(-y * (float(S) * float(feature @ text) + float(BIAS)))))


def own_of(texts):
    return torch.tensor([[text == other for other in texts] for text in texts])


def close(loss, expected):
    assert loss.shape == () and float(loss) == pytest.approx(expected, rel=1e-5)


# --- the paper ------------------------------------------------------------------------------------------------------


def test_equation_6_action_recognition():
    v, t, labels = unit(B, D), unit(5, D, seed=1), torch.tensor([4, 0, 0])
    total = 0.0
    for i in range(B):
        for c in range(5):
            total += pair(v[i], t[c], labels[i] == c)
    close(action_recognition_loss(v, t, labels, S, BIAS), total / B)


def test_equation_6_video_text_retrieval():
    v, texts = unit(B, D), ["one", "two", "one"]
    t = unit(2, D, seed=1)[[0, 1, 0]]
    total = 0.0
    for i in range(B):
        for j in range(B):
            total += pair(v[i], t[j], texts[i] == texts[j])
    close(video_text_retrieval_loss(v, t, own_of(texts), S, BIAS), total / B)


def test_equation_7_temporal_localization():
    f, t, labels = unit(B, T, D), unit(5, D, seed=1), integers(-1, 5, (B, T))
    assert (labels == -1).any()
    total = 0.0
    for i in range(B):
        for frame in range(T):
            for c in range(5):
                total += pair(f[i, frame], t[c], labels[i, frame] == c)
    close(temporal_localization_loss(f, t, labels, S, BIAS), total / (B * T))


def test_equation_7_temporal_grounding():
    f, t, inside = unit(B, T, D), unit(B, D, seed=1), integers(0, 2, (B, T)).bool()
    total = 0.0
    for i in range(B):
        for frame in range(T):
            for j in range(B):
                total += pair(f[i, frame], t[j], j == i and inside[i, frame])
    close(temporal_grounding_loss(f, t, inside, own_of("abc"), S, BIAS), total / (B * T))


def up_sampled(grid, y, x, size):
    """Bilinear value at a pixel's centre, of a grid of values at its cells' centres, held at the border."""
    value = 0.0
    rows, columns = grid.shape
    v, u = (y + 0.5) * rows / size[0] - 0.5, (x + 0.5) * columns / size[1] - 0.5
    v, u = min(max(v, 0.0), rows - 1), min(max(u, 0.0), columns - 1)
    for r in range(rows):
        for c in range(columns):
            value += float(grid[r, c]) * max(0.0, 1 - abs(v - r)) * max(0.0, 1 - abs(u - c))
    return value


@pytest.mark.parametrize("task", ["object", "referring"])
def test_equation_8(task):
    size, grid = (4, 6), (2, 3)
    patches, t = unit(2, 2, 6, D), unit(3 if task == "object" else 2, D, seed=1)
    labels = integers(-1, 3, (2, 2, *size))
    total = 0.0
    for i in range(2):
        for frame in range(2):
            for c in range(len(t)):
                logits = (float(S) * patches[i, frame] @ t[c] + float(BIAS)).view(grid)
                for y in range(size[0]):
                    for x in range(size[1]):
                        label = labels[i, frame, y, x]
                        together = label == c if task == "object" else label > 0 and c == i
                        logit = up_sampled(logits, y, x, size)
                        total += math.log(1 + math.exp(-logit if together else logit))
    if task == "object":
        loss = video_object_segmentation_loss(patches, t, labels, S, BIAS)
    else:
        loss = referring_segmentation_loss(patches, t, labels > 0, own_of("ab"), S, BIAS)
    close(loss, total / (2 * 2 * size[0] * size[1]))


@pytest.mark.parametrize("task", ["grounding", "referring"])
def test_an_equal_text_of_another_video_is_as_true_as_ones_own(task):
    """Where two videos share a query, frames inside count it twice as a positive and outside twice as a negative."""
    t = unit(2, D, seed=1)[[0, 1, 0]]
    if task == "grounding":
        f, inside = unit(B, T, D), integers(0, 2, (B, T)).bool()
        loss = temporal_grounding_loss(f, t, inside, own_of("aba"), S, BIAS)
        total = sum(
            pair(f[i, k], t[j], "aba"[i] == "aba"[j] and inside[i, k])
            for i in range(B)
            for k in range(T)
            for j in range(B)
        )
        close(loss, total / (B * T))
    else:
        f, inside = unit(B, T, 1, D), integers(0, 2, (B, T, 1, 1)).bool()
        loss = referring_segmentation_loss(f, t, inside, own_of("aba"), S, BIAS)
        close(loss, float(temporal_grounding_loss(f[:, :, 0], t, inside[..., 0, 0], own_of("aba"), S, BIAS)))


def test_shares_of_two_processes_have_the_gradient_of_the_whole():
    """Each sees its own videos and the texts of both: nothing but the mean of gradients has to be exchanged."""
    t, own = unit(4, D, seed=1), own_of(["a", "b", "a", "c"])
    raw = torch.randn(4, D, generator=torch.Generator().manual_seed(2)).requires_grad_()
    scale = S.clone().requires_grad_()
    whole = video_text_retrieval_loss(normalize(raw, dim=-1), t, own, scale, BIAS)
    expected = torch.autograd.grad(whole, [raw, scale])
    shares = [
        video_text_retrieval_loss(normalize(raw, dim=-1)[part], t, own[part], scale, BIAS)
        for part in (slice(0, 2), slice(2, 4))
    ]
    for got, value in zip(torch.autograd.grad(sum(shares) / 2, [raw, scale]), expected, strict=True):
        torch.testing.assert_close(got, value)


# --- the authors' code ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden():
    inputs, outputs = load_file(GOLDEN / "inputs.safetensors"), load_file(GOLDEN / "outputs.safetensors")
    for name in ("VOS.mask_target", "RVOS.mask_target"):  # run lengths: masks are blocks
        values, lengths = inputs.pop(f"{name}.values"), inputs.pop(f"{name}.run_lengths")
        inputs[name] = values.long().repeat_interleave(lengths.long()).view(3, 4, 224, 224)
    inputs["pooled"] = normalize(inputs["pooler_output"], dim=-1)
    inputs["patches"] = normalize(outputs["VOS.dense_features"], dim=-1)
    inputs["s_b"] = inputs["logit_scale"].exp(), inputs["logit_bias"]
    return inputs, outputs


def matches(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_golden_action_recognition(golden):
    inputs, outputs = golden
    v, classes = inputs["pooled"][:, -1], inputs["AR.label_embeddings"]
    assert (classes.norm(dim=-1) < 0.3).all()  # means of unit vectors, left as short as they are
    matches(alignment_logits(v, classes, *inputs["s_b"]), outputs["AR.logits"])
    matches(action_recognition_loss(v, classes, inputs["AR.label"], *inputs["s_b"]), outputs["AR.loss"])


def test_golden_video_text_retrieval(golden):
    inputs, outputs = golden
    texts = normalize(inputs["VTR.text_embeds"], dim=-1)
    own = torch.eye(3, dtype=torch.bool)
    matches(video_text_retrieval_loss(inputs["pooled"][:, -1], texts, own, *inputs["s_b"]), outputs["VTR.loss"])


def test_golden_temporal_localization(golden):
    inputs, outputs = golden
    losses = [
        temporal_localization_loss(
            inputs["pooled"][[i]], inputs[f"TAL.label_embeddings.{name}"], inputs["TAL.label"][[i]], *inputs["s_b"]
        )
        for i, name in enumerate(["HACS", "FineAction", "HACS"])  # every video with the classes of its data set
    ]
    matches(torch.stack(losses).mean(), outputs["TAL.loss"])


def test_golden_temporal_grounding(golden):
    inputs, outputs = golden
    f, texts = inputs["pooled"], normalize(inputs["TVG.text_embeds"], dim=-1)
    inside, own = inputs["TVG.label"].bool(), torch.eye(3, dtype=torch.bool)
    logits = alignment_logits(f, texts, *inputs["s_b"])  # (B, T, Q)
    matches(logits[range(3), :, range(3)], outputs["TVG.logits"])
    options = {"in_batch_negatives": False, "mean_over_frames": False}
    matches(temporal_grounding_loss(f, texts, inside, own, *inputs["s_b"], **options), outputs["TVG.loss"])
    # What the authors wrote and do not use is the paper's equation.
    loss = temporal_grounding_loss(f, texts, inside, own, *inputs["s_b"])
    matches(loss, outputs["TVG_contrastive_UNUSED.loss"])


def test_golden_segmentation(golden):
    inputs, outputs = golden
    labels = torch.where(inputs["VOS.mask_target"] == 0, -1, inputs["VOS.mask_target"])
    softmax = "softmax_over_foreground"
    classes = inputs["VOS.label_embeddings"]
    loss = video_object_segmentation_loss(inputs["patches"], classes, labels, *inputs["s_b"], softmax)
    matches(loss, outputs["VOS.loss"])
    texts, own = normalize(inputs["RVOS.text_embeds"], dim=-1), torch.eye(3, dtype=torch.bool)
    inside = inputs["RVOS.mask_target"] > 0
    loss = referring_segmentation_loss(inputs["patches"], texts, inside, own, *inputs["s_b"], softmax)
    matches(loss, outputs["RVOS.loss"])


def test_golden_dense_features_are_the_value_path(golden):
    """As plain matrices here; `test_multitask.py` has them out of a `StreamFormerPoolingHead`."""
    inputs, outputs = golden
    size = 32
    weight, bias = (inputs[f"head.attention.in_proj_{kind}"][2 * size :] for kind in ("weight", "bias"))
    x = linear(inputs["last_hidden_state"], weight, bias)
    x = linear(x, inputs["head.attention.out_proj.weight"], inputs["head.attention.out_proj.bias"])
    y = layer_norm(x, (size,), inputs["head.layernorm.weight"], inputs["head.layernorm.bias"], 1e-6)
    for name, act in (("fc1", gelu), ("fc2", lambda z: z)):
        y = act(linear(y, inputs[f"head.mlp.{name}.weight"], inputs[f"head.mlp.{name}.bias"]))
    matches(x + y, outputs["VOS.dense_features"])


# --- options --------------------------------------------------------------------------------------------------------


def test_class_embeddings_are_means_of_unit_vectors():
    prompts = 3 * torch.randn(4, 5, D)
    mean = torch.stack([torch.stack([p / p.norm() for p in one]).mean(0) for one in prompts])
    torch.testing.assert_close(class_embeddings(prompts, renormalize=False), mean)
    torch.testing.assert_close(class_embeddings(prompts), mean / mean.norm(dim=-1, keepdim=True))


def test_background_teaches_in_equation_8_and_nothing_in_the_softmax():
    patches, classes = unit(1, 1, 4, D), unit(3, D, seed=1)
    background = torch.full((1, 1, 4, 4), -1)
    sigmoid = video_object_segmentation_loss(patches, classes, background, S, BIAS)
    assert sigmoid > 0
    assert video_object_segmentation_loss(patches, classes, background, S, BIAS, "softmax_over_foreground") == 0
    inside = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    own = torch.ones(1, 1, dtype=torch.bool)
    assert referring_segmentation_loss(patches, classes[:1], inside, own, S, BIAS, "softmax_over_foreground") == 0


def test_the_softmax_over_foreground_as_plain_sums():
    """Mean over the pixels that show something, then over videos; one shows a single pixel, one nothing."""
    patches, t, labels = unit(3, 1, 4, D), unit(3, D, seed=1), integers(0, 3, (3, 1, 2, 2))
    labels[1], labels[2] = -1, -1
    labels[1, 0, 0, 1] = 2
    videos = []
    for i in range(3):
        costs = []
        for y in range(2):
            for x in range(2):
                if labels[i, 0, y, x] >= 0:  # as many pixels as patches: nothing to up-sample
                    logits = (float(S) * t @ patches[i, 0, 2 * y + x] + float(BIAS)).tolist()
                    costs.append(math.log(sum(map(math.exp, logits))) - logits[labels[i, 0, y, x]])
        videos.append(sum(costs) / len(costs) if costs else 0.0)
    loss = video_object_segmentation_loss(patches, t, labels, S, BIAS, "softmax_over_foreground")
    close(loss, sum(videos) / 3)


def test_limited_classes_hold_all_that_is_shown():
    labels = torch.tensor([[-1, 90, 3], [7, 3, -1]])
    torch.manual_seed(0)
    kept, moved = limit_classes(labels, 120, 10)
    assert len(kept) == 10 and kept.tolist() == sorted(set(kept.tolist())) and kept.max() < 120
    assert [int(kept[label]) if label >= 0 else -1 for label in moved.flatten()] == labels.flatten().tolist()
    other, _ = limit_classes(labels, 120, 10)
    assert other.tolist() != kept.tolist()  # drawn anew
    kept, moved = limit_classes(labels, 120, 2)
    assert kept.tolist() == [3, 7, 90] and moved.tolist() == [[-1, 2, 0], [1, 0, -1]]


def test_patches_have_to_be_a_grid():
    with pytest.raises(ValueError, match="5 patches are no grid over a frame of 16 x 16 pixels"):
        pixel_logits(unit(1, 1, 5, D), unit(2, D), (16, 16), S, BIAS)
