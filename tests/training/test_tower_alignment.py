"""Stage 1 of the StreamWorld recipe: its losses against plain sums, and that it learns."""

import math

import pytest
import torch

from streamchat_helpers import tiny_model
from streamchat_hf.training.tower_alignment import (
    TowerAlignment,
    alignment_loss,
    at_patch,
    gate_groups,
    object_patch,
)

SLOTS = {"colour": [5, 6, 7], "shape": [9, 10]}


def test_object_patch_finds_the_place():
    centres = torch.tensor([[[0.1, 0.1], [0.9, 0.1], [0.5, 0.99], [math.nan, math.nan], [1.0, 1.0]]])
    patch, offset = object_patch(centres, 9)
    assert patch.tolist() == [[0, 2, 7, 0, 8]]  # row-major: y picks the row
    torch.testing.assert_close(offset[0, 0], torch.tensor([0.3, 0.3]))
    torch.testing.assert_close(offset[0, 2], torch.tensor([0.5, 0.97]))
    features = torch.arange(5 * 9.0).view(1, 5, 9, 1)
    assert at_patch(features, patch)[0, :, 0].tolist() == [0, 9 + 2, 18 + 7, 27, 36 + 8]


def test_alignment_loss_by_hand():
    torch.manual_seed(0)
    features, words = torch.randn(2, 3, 8), torch.randn(12, 8)
    targets = {"colour": torch.tensor([[5, -100, 7], [6, 6, -100]]), "shape": torch.full((2, 3), -100)}
    targets["shape"][1, 2] = 10
    expected = 0.0
    for slot, tokens in SLOTS.items():
        losses = []
        for b in range(2):
            for t in range(3):
                if targets[slot][b, t] != -100:
                    f = features[b, t] / features[b, t].pow(2).mean().add(torch.finfo(torch.float32).eps).sqrt()
                    scores = [float(f @ words[token]) for token in tokens]
                    right = scores[tokens.index(int(targets[slot][b, t]))]
                    losses.append(math.log(sum(math.exp(s) for s in scores)) - right)
        expected += sum(losses) / len(losses)
    assert float(alignment_loss(features, words, targets, SLOTS)) == pytest.approx(expected, abs=1e-5)


def test_nothing_shown_costs_nothing():
    targets = {slot: torch.full((1, 2), -100) for slot in SLOTS}
    assert alignment_loss(torch.randn(1, 2, 8), torch.randn(12, 8), targets, SLOTS) == 0


def test_gates_learn_ten_times_faster_and_do_not_decay():
    model = tiny_model()
    groups = gate_groups(model, 1e-3, 0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            gate = names[id(parameter)].endswith("_gate")
            assert group["lr"] == pytest.approx(1e-2 if gate else 1e-3)
            assert group["weight_decay"] == (0.01 if parameter.ndim > 1 and not gate else 0.0)
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())


def test_it_learns_and_leaves_the_text_layers_alone():
    model = tiny_model()
    alignment = TowerAlignment(model, SLOTS)
    pixels = torch.randn(4, 3, 3, 16, 16)
    targets = {"colour": torch.tensor([[5] * 3, [6] * 3, [7] * 3, [5] * 3]), "shape": torch.full((4, 3), -100)}
    centres = torch.rand(4, 3, 2)
    optimizer = torch.optim.AdamW(alignment.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = alignment(pixels, targets, centres)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is None for p in model.model.language_model.layers.parameters())
