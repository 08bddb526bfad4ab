"""Attention of a few new tokens to a long past, without a copy of the past for every group of query heads."""

from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_grouped"


def grouped_attention(module: nn.Module, query, key, value, attention_mask, dropout=0.0, scaling=None, **kwargs):
    """As transformers' `sdpa`, which repeats keys and values for each of the G query heads that share them.

    Here the queries of a group lie one after the other instead, and share its keys and values as they are:
    `(B, K * G, L, d)` is read as `(B, K, G * L, d)`, under the mask `(B, 1, L, past + L)` G times.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    if groups == 1 or attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    batch, heads, length, head_dim = query.shape
    output = nn.functional.scaled_dot_product_attention(
        query.reshape(batch, heads // groups, groups * length, head_dim),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, groups, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    # (B, K, G * L, d) -> (B, K * G, L, d) -> (B, L, K * G, d)
    return output.reshape(batch, heads, length, value.shape[-1]).transpose(1, 2).contiguous(), None


def group_attention(language_model: nn.Module) -> None:
    """Lets a language model that attends by `sdpa` do so in groups; the result is the same to rounding."""
    if language_model.config._attn_implementation == "sdpa":
        language_model.config._attn_implementation = GROUPED


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
