"""The decoder layer against figure 3, written out naively."""

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from streamchat_helpers import tiny_config, tiny_model
from streamchat_hf.modeling.layers_streamchat import StreamChatDecoderLayer, VisualContext
from streamchat_hf.modeling.rotary_streamchat import rotate


def random_case(layer, length=4, tokens=6, rows=2):
    generator = torch.Generator().manual_seed(1)
    config = layer.self_attn.config
    head_dim = config.hidden_size // config.num_attention_heads

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    text, visual = draw(rows, length, config.hidden_size), draw(rows, tokens, config.hidden_size)
    angles = [draw(rows, n, head_dim) for n in (length, length, tokens, tokens)]
    visible = torch.rand(rows, length, tokens, generator=generator) > 0.4
    visible[0, 1] = False  # one token that sees nothing
    return text, visual, tuple(angles[:2]), tuple(angles[2:]), visible


def naive_cross_attention(layer, text, visual, text_angles, visual_angles, visible):
    """Token by token, head by head: softmax over what is visible, nothing where nothing is."""
    attn = layer.cross_attn if layer.cross_attn.own_projections else layer.self_attn
    norm = layer.cross_attn_layernorm if layer.cross_attn.own_projections else layer.input_layernorm
    heads, kv_heads = attn.config.num_attention_heads, attn.config.num_key_value_heads
    q, k, v = attn.q_proj(norm(text)), attn.k_proj(norm(visual)), attn.v_proj(norm(visual))
    d = q.shape[-1] // heads
    out = torch.zeros(*text.shape[:2], heads * d)
    for b in range(text.shape[0]):
        for i in range(text.shape[1]):
            seen = visible[b, i].nonzero()[:, 0].tolist()
            for h in range(heads if seen else 0):
                g = h // (heads // kv_heads)
                query = rotate(q[b, i, h * d : (h + 1) * d], text_angles[0][b, i], text_angles[1][b, i])
                keys = [
                    rotate(k[b, m, g * d : (g + 1) * d], visual_angles[0][b, m], visual_angles[1][b, m]) for m in seen
                ]
                weights = torch.stack([query @ key / d**0.5 for key in keys]).softmax(0)
                out[b, i, h * d : (h + 1) * d] = weights @ v[b, seen, g * d : (g + 1) * d]
    out = attn.o_proj(out)
    out[~visible.any(-1)] = 0
    return out


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("gate", ["linear", "tanh"])
def test_layer_is_figure_3(implementation, share, gate):
    model = tiny_model(share_cross_attention=share, gate=gate)
    model.set_attn_implementation(implementation)
    layer = model.model.language_model.layers[0]
    with torch.no_grad():
        layer.cross_attn_gate.add_(torch.rand_like(layer.cross_attn_gate))
        layer.visual_gate.add_(torch.rand_like(layer.visual_gate))
    text, visual, text_angles, visual_angles, visible = random_case(layer)
    any_visible = visible.any(-1, keepdim=True)
    context = VisualContext(
        (visible | ~any_visible)[:, None], any_visible, rotary=tuple(angle[:, None] for angle in visual_angles)
    )
    causal = torch.full((text.shape[1],) * 2, torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        got, got_visual = layer(
            text, visual, context, position_embeddings=text_angles, attention_mask=causal, past_key_values=None
        )
        scale = (lambda g, x: g * x) if gate == "linear" else (lambda g, x: g.tanh() * x)
        x = text + scale(
            layer.cross_attn_gate,
            naive_cross_attention(layer, text, visual, text_angles, visual_angles, visible),
        )
        x = (
            x
            + layer.self_attn(
                layer.input_layernorm(x), position_embeddings=text_angles, attention_mask=causal, past_key_values=None
            )[0]
        )
        x = x + layer.mlp(layer.post_attention_layernorm(x))
        v = visual + scale(layer.visual_gate, layer.visual_mlp(layer.visual_layernorm(visual)))
    torch.testing.assert_close(got, x, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(got_visual, v, atol=1e-6, rtol=1e-6)


def test_a_token_that_sees_nothing_gets_exactly_nothing():
    layer = tiny_model().model.language_model.layers[0]
    text, visual, text_angles, visual_angles, visible = random_case(layer)
    any_visible = visible.any(-1, keepdim=True)
    context = VisualContext(
        (visible | ~any_visible)[:, None], any_visible, rotary=tuple(a[:, None] for a in visual_angles)
    )
    keys, values = layer.visual_key_values(visual)
    out = layer.cross_attend(text, text_angles, rotate(keys, *context.rotary), values, context)
    assert (out[0, 1] - text[0, 1]).abs().max() == 0
    assert (out[0, 0] - text[0, 0]).abs().max() > 0
    out.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


def test_layers_that_are_not_chosen_are_qwen2s():
    config = tiny_config()
    layers = [StreamChatDecoderLayer(config, i) for i in range(4)]
    plain = set(dict(Qwen2DecoderLayer(config.text_config, 1).named_parameters()))
    assert set(dict(layers[1].named_parameters())) == plain
    assert set(dict(layers[0].named_parameters())) - plain == {
        "cross_attn_gate",
        "visual_gate",
        "visual_layernorm.weight",
        "visual_mlp.gate_proj.weight",
        "visual_mlp.up_proj.weight",
        "visual_mlp.down_proj.weight",
    }
    # After the last chosen layer nobody would read an updated visual token.
    assert set(dict(layers[3].named_parameters())) - plain == {"cross_attn_gate"}
    assert layers[0].cross_attn_gate.shape == (32,)
    assert StreamChatDecoderLayer(tiny_config(gate="tanh"), 0).cross_attn_gate.shape == ()
