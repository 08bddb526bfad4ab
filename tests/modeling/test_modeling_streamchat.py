"""StreamChat as a transformers model: saving, devices, attention, gradients, and Qwen2 when there is no video."""

import copy

import pytest
import torch
from transformers import Qwen2Config, SiglipVisionConfig

from streamchat_helpers import at_rate, frames_at, pad_frames, qwen_twin, tiny_config, tiny_model
from streamchat_hf import StreamChatConfig, StreamChatForConditionalGeneration, StreamChatModel
from streamchat_hf.modeling.rotary_streamchat import rotate, text_index_3d, visual_index_3d
from streamchat_hf.modeling.timeline_streamchat import timeline

VISIONS = ["streamformer", "siglip_vision_model"]


def batch():
    """Two conversations with different numbers of frames, right-padded text, two turns in the first."""
    pixels, frame_times = pad_frames([frames_at(at_rate(2, 4)), frames_at(at_rate(1, 5), seed=3)])
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12], [13, 14, 15, 16, 17, 18, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 8, [1] * 6 + [0] * 2]),
        "pixel_values_videos": pixels,
        "frame_times": frame_times,
        "token_times": torch.tensor(
            [[500, 500, 500, 1000, 1500, 3000, 3000, 3500], [0, 0, 0, 2000, 4000, 4500, 4500, 4500]]
        ),
        "turn_starts": torch.tensor([[1, 0, 0, 0, 0, 1, 0, 0], [1] + [0] * 7], dtype=torch.bool),
    }


def logits(model, **changes):
    with torch.no_grad():
        return model(**{**batch(), **changes}).logits


def test_whole_forward_against_a_naive_twin():
    """Token by token with the layer's own parts: the frames it may see, its position, figure 3's order."""
    model = tiny_model()
    inputs, text_model = batch(), model.model.language_model
    text_index, frame_index, seen = timeline(
        inputs["token_times"], inputs["frame_times"], inputs["turn_starts"], inputs["attention_mask"]
    )
    expected = logits(model)
    with torch.no_grad():
        for row in range(2):
            length = int(inputs["attention_mask"][row].sum())
            features, _ = model.model.get_video_features(inputs["pixel_values_videos"][row : row + 1])
            x = text_model.embed_tokens(inputs["input_ids"][row : row + 1, :length])
            rotary = text_model.angles(text_index_3d(text_index[row : row + 1, :length]), x.dtype)
            v = features[0]  # (T, N, D)
            places = [text_model.angles(visual_index_3d(p, 2, 2), x.dtype) for p in frame_index[row]]
            for layer in text_model.layers:
                if layer.cross_attn is not None:
                    y = x.clone()
                    for i in range(length):
                        last = int(seen[row, i])
                        window = range(max(0, last - 5), last)
                        if window:
                            pairs = [layer.visual_key_values(v[f : f + 1]) for f in window]
                            keys = torch.cat(
                                [rotate(k, *places[f]) for f, (k, _) in zip(window, pairs, strict=True)], dim=2
                            )
                            values = torch.cat([value for _, value in pairs], dim=2)
                            here = tuple(angle[:, i : i + 1] for angle in rotary)
                            branch = layer.cross_attn(
                                layer.input_layernorm(x[:, i : i + 1]), here, keys, values, None, layer.self_attn
                            )
                            y[:, i : i + 1] += layer.cross_attn_gate * branch
                    x = y
                    v = layer.update_visual(v)
                causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
                x = (
                    x
                    + layer.self_attn(
                        layer.input_layernorm(x),
                        position_embeddings=rotary,
                        attention_mask=causal,
                        past_key_values=None,
                    )[0]
                )
                x = x + layer.mlp(layer.post_attention_layernorm(x))
            twin = model.lm_head(text_model.norm(x))
            torch.testing.assert_close(expected[row : row + 1, :length], twin, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("padded", [False, True])
def test_without_frames_the_model_is_qwen2(padded):
    model = tiny_model()
    qwen = qwen_twin(model)
    tokens = torch.randint(2, 61, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    if padded:
        mask[1, :7] = 0
    with torch.no_grad():
        ours, theirs = (m(input_ids=tokens, attention_mask=mask) for m in (model, qwen))
        assert (ours.logits - theirs.logits)[mask.bool()].abs().max() == 0
        step = [m(tokens[:, -1:], past_key_values=out.past_key_values) for m, out in ((model, ours), (qwen, theirs))]
    assert (step[0].logits - step[1].logits).abs().max() == 0


def test_sliding_window_text_is_qwen2s_too():
    sliding = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}
    model = tiny_model(text_config=sliding)
    tokens = torch.randint(2, 61, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (model(tokens).logits - qwen_twin(model)(tokens).logits).abs().max() == 0


def test_video_reaches_the_base_model():
    """Trainers call the base model and compute their own loss: it must see the video."""
    model, inputs = tiny_model(), batch()
    with torch.no_grad():
        seen = model.base_model(**inputs).last_hidden_state
        other = model.base_model(
            **{**inputs, "pixel_values_videos": inputs["pixel_values_videos"] + 1}
        ).last_hidden_state
    assert isinstance(model.base_model, StreamChatModel)
    assert (seen - other).abs().max() > 1e-3


def test_padding_and_batching_change_nothing():
    model, inputs = tiny_model(), batch()
    together = logits(model)
    alone = model(
        input_ids=inputs["input_ids"][1:, :6],
        pixel_values_videos=inputs["pixel_values_videos"][1:, :6],
        frame_times=inputs["frame_times"][1:, :6],
        token_times=inputs["token_times"][1:, :6],
    ).logits
    torch.testing.assert_close(together[1:, :6], alone, atol=1e-5, rtol=1e-5)
    shifted = {
        name: torch.cat((torch.zeros_like(value[:, :3]), value), dim=1)
        for name, value in inputs.items()
        if name not in ("pixel_values_videos", "frame_times")
    }
    left = model(
        **shifted, pixel_values_videos=inputs["pixel_values_videos"], frame_times=inputs["frame_times"]
    ).logits
    torch.testing.assert_close(
        left[:, 3:][inputs["attention_mask"].bool()], together[inputs["attention_mask"].bool()], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("vision", VISIONS)
def test_eager_equals_sdpa(vision):
    model = tiny_model(vision=vision)
    sdpa = logits(model)
    model.set_attn_implementation("eager")
    assert model.config.text_config._attn_implementation == "eager"
    torch.testing.assert_close(logits(model), sdpa, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_equals_loaded(tmp_path, vision, tied):
    model = tiny_model(vision=vision, tie_word_embeddings=tied)
    before = logits(model)
    model.save_pretrained(tmp_path)
    loaded, info = StreamChatForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (logits(loaded) - before).abs().max() == 0
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    half = StreamChatForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    assert StreamChatForConditionalGeneration.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16


def test_tuple_and_dict_outputs_agree_and_inputs_are_not_touched():
    model, inputs = tiny_model(), batch()
    before = {name: value.clone() for name, value in inputs.items()}
    with torch.no_grad():
        as_dict = model(**inputs, labels=inputs["input_ids"], output_hidden_states=True)
        as_tuple = model(**inputs, labels=inputs["input_ids"], return_dict=False)
    assert torch.equal(as_dict.loss, as_tuple[0]) and torch.equal(as_dict.logits, as_tuple[1])
    assert len(as_dict.hidden_states) == 5
    assert all(torch.equal(before[name], value) for name, value in inputs.items())


def loss_of(model):
    inputs = batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return model(**inputs, labels=labels).loss


@pytest.mark.parametrize("share, visual_ffn", [(True, True), (False, True), (True, False)])
def test_every_parameter_of_the_talker_gets_a_gradient(share, visual_ffn):
    model = tiny_model(share_cross_attention=share, visual_ffn=visual_ffn).train()
    loss_of(model).backward()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen and all(name.startswith("model.vision_tower.head.") for name in frozen)
    without = [
        name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    # A key bias shifts all scores of a query alike where keys are not rotated apart; ours are, so nothing is exempt.
    assert without == []


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
        loss_of(model).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


def test_loss_is_the_mean_cross_entropy_of_the_next_token():
    model, inputs = tiny_model(), batch()
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[0, :4] = -100
    with torch.no_grad():
        out = model(**inputs, labels=labels)
        by_hand = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].reshape(-1, 61), labels[:, 1:].reshape(-1), ignore_index=-100
        )
        halved = model(**inputs, labels=labels, num_items_in_batch=2 * int((labels[:, 1:] != -100).sum())).loss
    torch.testing.assert_close(out.loss, by_hand)
    torch.testing.assert_close(halved, by_hand / 2)


def test_resize_embeddings_keeps_the_old_rows():
    model = tiny_model()
    before = logits(model)
    model.resize_token_embeddings(70)
    assert model.config.text_config.vocab_size == 70 and logits(model).shape[-1] == 70
    torch.testing.assert_close(logits(model)[..., :61], before, atol=1e-6, rtol=0)


def test_gates_start_where_the_config_says():
    linear = StreamChatForConditionalGeneration(tiny_config(gate_init=0.1))
    tanh = StreamChatForConditionalGeneration(tiny_config(gate="tanh"))
    gates = {name: p for name, p in linear.named_parameters() if name.endswith(("attn_gate", "visual_gate"))}
    assert len(gates) == 5 and all((p == 0.1).all() for p in gates.values())
    assert all((p == 0).all() for name, p in tanh.named_parameters() if name.endswith(("attn_gate", "visual_gate")))


def test_pooling_averages_patches():
    model = tiny_model(visual_pooling=2)
    pixels = torch.stack([p for _, p in frames_at([0.0, 1.0])])[None]
    with torch.no_grad():
        pooled, _ = model.model.get_video_features(pixels)
        patches = model.model.vision_tower(pixels).last_hidden_state.mean(2, keepdim=True)
    torch.testing.assert_close(pooled, model.model.projector(patches), atol=1e-5, rtol=1e-5)


def test_contradicting_inputs_are_refused():
    model, inputs = tiny_model(), batch()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="int64 milliseconds"):
        model(**{**inputs, "token_times": inputs["token_times"].float()})
    with pytest.raises(ValueError, match="frame_times has shape"):
        model(**{**inputs, "frame_times": inputs["frame_times"][:, :3]})


def published(hidden, layers, heads, kv_heads, intermediate):
    """The shapes of section 3: Qwen2.5 with the SigLIP so400m/14 tower of PaliGemma, 224 pixels."""
    text = Qwen2Config(
        vocab_size=152064,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
    )
    vision = SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        patch_size=14,
        image_size=224,
        vision_use_head=False,
    )
    return StreamChatConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


@pytest.mark.parametrize(
    "shape, text_parameters",
    [((3584, 28, 28, 4, 18944), 7_615_616_512), ((5120, 48, 40, 8, 13824), 14_770_033_664)],
    ids=["7B", "14B"],
)
def test_published_shapes(shape, text_parameters):
    config = published(*shape)
    with torch.device("meta"):
        model = StreamChatForConditionalGeneration(config)
    hidden, layers, *_, intermediate = shape
    count = {name: p.numel() for name, p in model.named_parameters()}
    ours = {name: n for name, n in count.items() if "visual_" in name or "cross_attn" in name}
    language = sum(n for name, n in count.items() if "language_model" in name or "lm_head" in name)
    assert language - sum(ours.values()) == text_parameters  # Qwen2.5's own published count
    chosen = len(config.cross_attention_layers)
    assert chosen == layers // 4
    expert = 3 * hidden * intermediate + hidden  # FFN and norm
    assert sum(ours.values()) == chosen * hidden + (chosen - 1) * (expert + hidden)
    assert count["model.projector.linear_1.weight"] == 1152 * hidden
    assert sum(n for name, n in count.items() if "vision_tower" in name) == 412_442_352
    assert model.model.visual_grid(torch.empty(3, 224, 224, device="meta")) == (16, 16)


def test_meta_initialised_buffers_are_filled_on_loading(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        hollow = StreamChatForConditionalGeneration(copy.deepcopy(model.config))
    assert hollow.device.type == "meta"
    loaded = StreamChatForConditionalGeneration.from_pretrained(tmp_path)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(loaded.named_buffers())[name], buffer, msg=name)
