"""StreamChat's decoder layer: cross-attention to the video, Qwen2.5 untouched, V-FFN (StreamChat, figure 3).

    x       <- x + g_c * CrossAttn(q: norm1(x), kv: norm1(v_l))
    x       <- x + SelfAttn(norm1(x))
    x       <- x + FFN(norm2(x))
    v_{l+1} <- v_l + g_v * VFFN(norm_v(v_l))

Letters: B text rows, S streams (B = S * r, r rows per stream), L text tokens, M visual tokens, D hidden size,
H query heads, K key/value heads (H = K * G), d head dimension.
"""

from typing import NamedTuple

import torch
from torch import nn
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2MLP, Qwen2RMSNorm

from .rotary_streamchat import rotate


class VisualContext(NamedTuple):
    """What every chosen layer needs to know about the video, besides the visual tokens themselves.

    Attributes:
        mask: `(S, 1, L or 1, M)` bool, True where a token may look; `None`: everywhere.
        any_visible: `(B, L or 1, 1)` bool, False where a token sees no frame at all; `None`: all see one.
        rotary: `cos, sin (S, 1, M, d)` of the visual tokens, where keys still have to be rotated.
        keys, values: `(layers, S, K, M, d)` of every chosen layer, rotated, where a cache holds them.
    """

    mask: torch.Tensor | None
    any_visible: torch.Tensor | None
    rotary: tuple[torch.Tensor, torch.Tensor] | None = None
    keys: torch.Tensor | None = None
    values: torch.Tensor | None = None


class VisualCrossAttention(nn.Module):
    """Attention from text to visual tokens; without own projections it borrows those of the self-attention."""

    def __init__(self, text_config, own_projections: bool):
        super().__init__()
        self.config = text_config
        self.own_projections = own_projections
        if own_projections:
            hidden, head_dim = text_config.hidden_size, _head_dim(text_config)
            self.q_proj = nn.Linear(hidden, text_config.num_attention_heads * head_dim, bias=True)
            self.k_proj = nn.Linear(hidden, text_config.num_key_value_heads * head_dim, bias=True)
            self.v_proj = nn.Linear(hidden, text_config.num_key_value_heads * head_dim, bias=True)
            self.o_proj = nn.Linear(text_config.num_attention_heads * head_dim, hidden, bias=False)

    def key_values(self, visual: torch.Tensor, self_attn: Qwen2Attention) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (not rotated) and values `(S, K, M, d)` of normalised visual tokens `(S, M, D)`."""
        projections = self if self.own_projections else self_attn
        heads = (*visual.shape[:-1], -1, _head_dim(self.config))  # (S, M, K, d)
        keys = projections.k_proj(visual).view(heads).transpose(1, 2)
        values = projections.v_proj(visual).view(heads).transpose(1, 2)
        return keys, values

    def forward(
        self,
        text: torch.Tensor,
        text_rotary: tuple[torch.Tensor, torch.Tensor],
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        self_attn: Qwen2Attention,
    ) -> torch.Tensor:
        """`text (B, L, D)` normalised, `text_rotary (B or 1, L, d)`, rotated `keys` and `values (S, K, M, d)`."""
        projections = self if self.own_projections else self_attn
        rows, length = text.shape[:2]
        streams, kv_heads, _, head_dim = keys.shape
        per_stream, groups = rows // streams, self.config.num_attention_heads // kv_heads

        cos, sin = (angles[:, :, None] for angles in text_rotary)  # (B, L, 1, d)
        query = rotate(projections.q_proj(text).view(rows, length, -1, head_dim), cos, sin)
        # Rows of one stream and heads of one key/value head share keys: fold both into the query length.
        # (B, L, H, d) -> (S, r, L, K, G, d) -> (S, K, r, G, L, d) -> (S, K, r*G*L, d)
        query = query.view(streams, per_stream, length, kv_heads, groups, head_dim).permute(0, 3, 1, 4, 2, 5)
        query = query.reshape(streams, kv_heads, per_stream * groups * length, head_dim)
        if mask is not None and mask.shape[2] > 1:  # (S, 1, L, M) -> (S, 1, r*G*L, M)
            mask = mask.repeat(1, 1, per_stream * groups, 1)

        out = self._attend(query, keys, values, mask)
        # (S, K, r*G*L, d) -> (S, K, r, G, L, d) -> (S, r, L, K, G, d) -> (B, L, H*d)
        out = out.view(streams, kv_heads, per_stream, groups, length, head_dim).permute(0, 2, 4, 1, 3, 5)
        return projections.o_proj(out.reshape(rows, length, -1))

    def _attend(self, query, keys, values, mask):
        dropout = self.config.attention_dropout if self.training else 0.0
        scaling = query.shape[-1] ** -0.5
        if self.config._attn_implementation != "eager":
            return nn.functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, dropout_p=dropout, scale=scaling
            )
        scores = torch.matmul(query, keys.transpose(2, 3)) * scaling
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(nn.functional.dropout(weights, p=dropout), values)


class StreamChatDecoderLayer(Qwen2DecoderLayer):
    """One layer of figure 3. Layers that are not chosen are Qwen2.5's own."""

    def __init__(self, config, layer_idx: int):
        super().__init__(config.text_config, layer_idx)
        text_config = config.text_config
        self.gate = config.gate
        self.gate_init = config.gate_init if config.gate == "linear" else 0.0
        self.cross_attn, self.visual_mlp = None, None
        if layer_idx in config.cross_attention_layers:
            self.cross_attn = VisualCrossAttention(text_config, own_projections=not config.share_cross_attention)
            if not config.share_cross_attention:
                self.cross_attn_layernorm = Qwen2RMSNorm(text_config.hidden_size, eps=text_config.rms_norm_eps)
            self.cross_attn_gate = nn.Parameter(self._new_gate())
            if config.visual_ffn and layer_idx != config.cross_attention_layers[-1]:
                self.visual_mlp = Qwen2MLP(text_config)
                self.visual_layernorm = Qwen2RMSNorm(text_config.hidden_size, eps=text_config.rms_norm_eps)
                self.visual_gate = nn.Parameter(self._new_gate())

    def _new_gate(self) -> torch.Tensor:
        return torch.empty(self.hidden_size) if self.gate == "linear" else torch.empty(())

    def _scale(self, gate: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        return (gate if self.gate == "linear" else gate.tanh()) * branch

    def _cross_norm(self, states: torch.Tensor) -> torch.Tensor:
        return (self.cross_attn_layernorm if self.cross_attn.own_projections else self.input_layernorm)(states)

    def visual_key_values(self, visual_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (not rotated) and values `(S, K, M, d)` of visual tokens `(S, M, D)` at this layer."""
        return self.cross_attn.key_values(self._cross_norm(visual_states), self.self_attn)

    def update_visual(self, visual_states: torch.Tensor) -> torch.Tensor:
        """Visual tokens `(S, M, D)` as the next chosen layer sees them: `v + g_v * VFFN(norm_v(v))`."""
        if self.visual_mlp is None:
            return visual_states
        return visual_states + self._scale(self.visual_gate, self.visual_mlp(self.visual_layernorm(visual_states)))

    def cross_attend(self, hidden_states, text_rotary, keys, values, context: VisualContext) -> torch.Tensor:
        """`x + g_c * CrossAttn(norm1(x), kv)`; exactly `x` where no frame is visible."""
        seen = self.cross_attn(
            self._cross_norm(hidden_states), text_rotary, keys, values, context.mask, self.self_attn
        )
        branch = self._scale(self.cross_attn_gate, seen)
        if context.any_visible is not None:
            branch = torch.where(context.any_visible, branch, 0)
        return hidden_states + branch

    def forward(
        self,
        hidden_states: torch.Tensor | None,
        visual_states: torch.Tensor | None = None,
        context: VisualContext | None = None,
        cached: tuple[torch.Tensor, torch.Tensor] | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], torch.Tensor | None]:
        """Text `(B, L, D)` and visual tokens `(S, M, D)` in, both out.

        Visual keys and values come from `cached (S, K, M, d)` while streaming, else from `visual_states`. Without text
        (`None`) they are what comes out in its place, not rotated: a frame has arrived. All of it happens in here,
        since weights that are sharded or offloaded are gathered for a layer when that is called.
        """
        if hidden_states is None:
            return self.visual_key_values(visual_states), self.update_visual(visual_states)
        if self.cross_attn is not None and context is not None:
            if cached is None:
                keys, values = self.visual_key_values(visual_states)
                keys = rotate(keys, *context.rotary)
            else:
                keys, values = cached
            hidden_states = self.cross_attend(hidden_states, position_embeddings, keys, values, context)
            if visual_states is not None:
                visual_states = self.update_visual(visual_states)
        hidden_states = super().forward(hidden_states, position_embeddings=position_embeddings, **kwargs)
        return hidden_states, visual_states


def _head_dim(text_config) -> int:
    return getattr(text_config, "head_dim", None) or text_config.hidden_size // text_config.num_attention_heads
