"""The streaming loss: the authors' own values, a twin that reads as equation 5, and what sums over batches."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from streamchat_hf.modeling.loss_videollm_online import streaming_loss

GOLDEN = Path(__file__).parents[1] / "fixtures" / "videollm_online_loss"
EXPECTED, CASE = json.loads((GOLDEN / "C_loss.json").read_text()), load_file(GOLDEN / "C_loss.safetensors")


def made_up(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 9, 7, generator=generator).to(dtype)
    labels = torch.randint(0, 7, (2, 9), generator=generator)
    labels[0, [0, 3, 4]] = labels[1, 5:] = -100
    return logits, labels, torch.rand(2, 9, generator=generator) < 0.5


@pytest.mark.parametrize("weight", EXPECTED["loss_by_stream_loss_weight"])
def test_the_authors_values(weight):
    is_frame = CASE["input_ids"] == EXPECTED["v_placeholder_id"]
    loss = streaming_loss(CASE["logits"], CASE["labels"], is_frame, float(weight))
    assert loss.item() == pytest.approx(EXPECTED["loss_by_stream_loss_weight"][weight], abs=1e-6)


def test_the_authors_batch():
    is_frame = CASE["batch_input_ids"] == EXPECTED["v_placeholder_id"]
    loss = streaming_loss(CASE["batch_logits"], CASE["batch_labels"], is_frame, 1.0)
    assert loss.item() == pytest.approx(EXPECTED["batch_loss_w1"], abs=1e-6)


def test_against_equation_5_position_by_position():
    logits, labels, is_frame = made_up()
    terms = [
        -logits[b, j].softmax(-1)[labels[b, j]].log() * (3.0 if is_frame[b, j] else 1.0)
        for b in range(2)
        for j in range(9)
        if labels[b, j] != -100
    ]
    torch.testing.assert_close(streaming_loss(logits, labels, is_frame, 3.0), sum(terms) / len(terms))


def test_batches_add_up_to_the_whole_when_they_are_told_its_count():
    logits, labels, is_frame = made_up()
    count = (labels != -100).sum()
    parts = [streaming_loss(logits[b], labels[b], is_frame[b], 2.0, count) for b in range(2)]
    torch.testing.assert_close(sum(parts), streaming_loss(logits, labels, is_frame, 2.0))
    assert sum(streaming_loss(logits[b], labels[b], is_frame[b], 2.0) for b in range(2)) / 2 != sum(parts)


def test_bfloat16_is_compared_in_float32():
    logits, labels, is_frame = made_up(torch.bfloat16)
    loss = streaming_loss(logits, labels, is_frame, 2.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, streaming_loss(logits.float(), labels, is_frame, 2.0))


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0)], ids=["its own", "int", "tensor"])
def test_nothing_to_learn_is_a_loss_of_zero_with_a_gradient_of_zero(num_items):
    logits, labels, is_frame = made_up()
    logits.requires_grad_()
    loss = streaming_loss(logits, labels.fill_(-100), is_frame, 2.0, num_items)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_other_shapes_are_refused():
    logits, labels, is_frame = made_up()
    with pytest.raises(ValueError, match=r"need labels and is_frame of shape \(2, 1\), not \(2, 9\)"):
        streaming_loss(logits[:, -1:], labels, is_frame, 1.0)
