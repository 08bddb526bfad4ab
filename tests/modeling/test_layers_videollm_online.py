"""Attention in groups is attention."""

from types import SimpleNamespace

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from streamchat_hf.modeling.layers_videollm_online import GROUPED, group_attention, grouped_attention
from videollm_online_helpers import tiny_model


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize(("length", "past"), [(11, 40), (1, 40), (5, 0)])
def test_grouped_attention_equals_transformers_own(heads, length, past):
    generator = torch.Generator().manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=4 // heads, is_causal=True)
    query = torch.randn(1, 4, length, 8, generator=generator)
    key, value = torch.randn(2, 1, heads, past + length, 8, generator=generator)
    mask = torch.ones(1, 1, length, past + length, dtype=torch.bool).tril(past)
    for given in (mask, None):
        ours, expected = (
            attend(module, query, key, value, given, scaling=0.3)[0]
            for attend in (grouped_attention, sdpa_attention_forward)
        )
        torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_a_models_choice_of_attention_is_its_own_and_never_saved(tmp_path):
    for own, expected in (("sdpa", GROUPED), ("eager", "eager")):
        model = tiny_model()
        model.set_attn_implementation(own)
        group_attention(model.model.language_model)
        assert model.model.language_model.config._attn_implementation == expected
        model.config.save_pretrained(tmp_path)
        assert GROUPED not in (tmp_path / "config.json").read_text()
