"""Parallel 3D-RoPE: figure 4's indices, one-dimensional for text, exact after days."""

import math

import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding, apply_rotary_pos_emb

from streamchat_hf.modeling.rotary_streamchat import (
    rotary_angles,
    rotary_sections,
    rotate,
    text_index_3d,
    visual_index_3d,
)

ROTARY = Qwen2RotaryEmbedding(Qwen2Config(hidden_size=64, num_attention_heads=4, num_key_value_heads=4))


def test_sections_are_a_quarter_and_twice_three_eighths():
    assert rotary_sections(64) == (16, 24, 24)
    assert rotary_sections(32) == (8, 12, 12)
    assert rotary_sections(10) == (4, 3, 3)


def test_indices_of_figure_4():
    assert text_index_3d(torch.tensor([[5]])).tolist() == [[[5, 5, 5]]]
    index = visual_index_3d(torch.tensor([0, 1]), 3, 3)
    assert index[0].tolist() == [[0, r, c] for r in range(3) for c in range(3)]
    assert index[1].tolist() == [[1, 1 + r, 1 + c] for r in range(3) for c in range(3)]
    assert visual_index_3d(torch.tensor(7), 1, 2).tolist() == [[7, 7, 7], [7, 7, 8]]


def test_text_turns_as_in_qwen2():
    position = torch.arange(50)[None]
    cos, sin = rotary_angles(text_index_3d(position), ROTARY.inv_freq, ROTARY.attention_scaling, torch.float32)
    reference = ROTARY(torch.zeros(1), position)
    torch.testing.assert_close(cos, reference[0], atol=2e-6, rtol=0)
    torch.testing.assert_close(sin, reference[1], atol=2e-6, rtol=0)
    states = torch.randn(1, 4, 50, 16)
    torch.testing.assert_close(
        rotate(states, cos[:, None], sin[:, None]), apply_rotary_pos_emb(states, states, *reference)[0]
    )


def test_each_chunk_turns_with_its_own_component():
    """A naive twin, frequency by frequency."""
    index, inv_freq = (3, 5, 9), ROTARY.inv_freq.tolist()
    time, height, _ = rotary_sections(len(inv_freq))
    cos, _ = rotary_angles(torch.tensor(index), ROTARY.inv_freq, 1.0, torch.float32)
    for i, frequency in enumerate(inv_freq):
        component = index[0] if i < time else index[1] if i < time + height else index[2]
        assert abs(cos[i].item() - math.cos(component * frequency)) < 1e-6
        assert cos[i] == cos[i + len(inv_freq)]


def test_scores_depend_on_distance_alone_even_after_days():
    torch.manual_seed(0)
    query, key = torch.randn(16), torch.randn(16)

    def score(base):
        angles = [
            rotary_angles(index, ROTARY.inv_freq, 1.0, torch.float32)
            for index in (text_index_3d(torch.tensor([[base + 4]]))[0, 0], torch.tensor((base, base + 2, base + 1)))
        ]
        return rotate(query, *angles[0]) @ rotate(key, *angles[1])

    two_days_at_30_fps = 2 * 24 * 3600 * 30
    torch.testing.assert_close(score(0), score(two_days_at_30_fps), atol=1e-5, rtol=0)
