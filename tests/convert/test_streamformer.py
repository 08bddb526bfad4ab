"""The authors' own outputs, made with random weights by their code (Go2Heart/StreamFormer at ae3523b)."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from streamchat_hf.convert.streamformer import convert_streamformer, streamformer_from_siglip
from streamchat_hf.modeling.cache_streamformer import StreamFormerCache
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel

CASE = Path(__file__).parents[1] / "fixtures" / "streamformer_case_a"
INPUTS, EXPECTED = load_file(CASE / "inputs.safetensors"), load_file(CASE / "outputs.safetensors")
CLOSE = {"atol": 2e-5, "rtol": 0}


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert_streamformer(CASE, folder)
    return folder


def load(folder: Path, **changes) -> StreamFormerModel:
    return StreamFormerModel.from_pretrained(folder, **changes).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("tag", "pixels", "changes"),
    [
        ("main", "pixel_values", {}),
        ("short", "pixel_values_short", {}),
        ("single", "pixel_values_single", {}),
        ("hires", "pixel_values_hires", {}),
        ("nonsquare", "pixel_values_nonsquare", {"transposed_position_grid": True}),
        ("long", "pixel_values_long", {"time_embedding_policy": "stretch"}),
        ("CLAMPED_long", "pixel_values_long", {}),
        ("bidirectional", "pixel_values", {"enable_causal_temporal": False}),
    ],
)
@torch.no_grad()
def test_gives_the_authors_outputs(converted, tag, pixels, changes, attention):
    output = load(converted, attn_implementation=attention, **changes)(INPUTS[pixels])
    torch.testing.assert_close(output.last_hidden_state, EXPECTED[f"{tag}.last_hidden_state"], **CLOSE)
    torch.testing.assert_close(output.pooler_output, EXPECTED[f"{tag}.pooler_output"], **CLOSE)
    if f"{tag}.global" in EXPECTED:
        torch.testing.assert_close(output.pooler_output[:, -1], EXPECTED[f"{tag}.global"], **CLOSE)


@torch.no_grad()
def test_closed_gates_give_the_authors_outputs(converted):
    model = load(converted)
    for layer in model.layers:
        layer.temporal_gate.zero_()
    output = model(INPUTS["pixel_values"])
    torch.testing.assert_close(output.last_hidden_state, EXPECTED["gates_zero.last_hidden_state"], **CLOSE)
    torch.testing.assert_close(output.pooler_output, EXPECTED["gates_zero.pooler_output"], **CLOSE)


@torch.no_grad()
def test_every_hidden_state_is_the_authors(converted):
    output = load(converted)(INPUTS["pixel_values"], output_hidden_states=True)
    assert len(output.hidden_states) == 4
    for i, hidden in enumerate(output.hidden_states):
        # The authors keep tokens patch by patch: (B, T, N, D) -> (B, N*T, D)
        torch.testing.assert_close(hidden.transpose(1, 2).flatten(1, 2), EXPECTED[f"main.hidden_states.{i}"], **CLOSE)


@pytest.mark.parametrize(
    ("tag", "pixels", "sizes"),
    [
        ("stream_1x", "pixel_values", 1),
        ("stream_chunked", "pixel_values", [3, 1, 4]),
        ("PATCHED_stream_long_1x", "pixel_values_long", 1),
    ],
)
@torch.no_grad()
def test_streams_as_the_authors_do(converted, tag, pixels, sizes):
    model, cache = load(converted), StreamFormerCache()
    outputs = [model(chunk, past_key_values=cache) for chunk in INPUTS[pixels].split(sizes, dim=1)]
    for name in ("last_hidden_state", "pooler_output"):
        if f"{tag}.{name}" in EXPECTED:
            got = torch.cat([getattr(output, name) for output in outputs], 1)
            torch.testing.assert_close(got, EXPECTED[f"{tag}.{name}"], **CLOSE)
    if tag == "stream_1x":
        for i in range(3):
            torch.testing.assert_close(cache._keys[i][:, :, :8], EXPECTED[f"{tag}.final_key.{i}"], **CLOSE)
            torch.testing.assert_close(cache._values[i][:, :, :8], EXPECTED[f"{tag}.final_value.{i}"], **CLOSE)


@torch.no_grad()
def test_merging_and_folding_keep_the_authors_outputs(converted):
    output = load(converted).merge_lora().fold_temporal_projection()(INPUTS["pixel_values"])
    torch.testing.assert_close(output.last_hidden_state, EXPECTED["main.last_hidden_state"], **CLOSE)


def rewritten(folder: Path, change_weights=lambda w: w, **config) -> Path:
    """The authors' checkpoint, changed."""
    folder.mkdir()
    weights = change_weights(load_file(CASE / "model.safetensors"))
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(json.loads((CASE / "config.json").read_text()) | config))
    return folder


def same(model: StreamFormerModel, folder: Path) -> bool:
    expected = load(folder).state_dict()
    return expected.keys() == model.state_dict().keys() and all(
        torch.equal(value, expected[name]) for name, value in model.state_dict().items()
    )


def test_the_training_class_around_the_backbone_is_read_too(tmp_path, converted):
    def wrap(weights):
        extra = {
            "text_encoder.embeddings.weight": torch.ones(2),
            "task_heads.VTR.head.probe": torch.ones(2),
            "logit_scale": torch.ones(()),
            "logit_bias": torch.ones(()),
        }
        return {f"timesformer.{name}": value for name, value in weights.items()} | extra

    assert same(convert_streamformer(rewritten(tmp_path / "source", wrap), tmp_path / "ours"), converted)


@pytest.mark.parametrize("said", [True, False])
def test_lora_is_known_by_its_weights_not_by_what_the_config_says(tmp_path, converted, said):
    assert same(
        convert_streamformer(rewritten(tmp_path / "source", add_lora_spatial=said), tmp_path / "ours"), converted
    )
    bare = rewritten(
        tmp_path / "bare", lambda w: {k: v for k, v in w.items() if "_lora_" not in k}, add_lora_spatial=said
    )
    assert convert_streamformer(bare, tmp_path / "plain").config.lora_rank == 0


def test_rank_frames_and_data_type_come_from_the_weights(tmp_path):
    def cut(weights):
        for name in weights:
            if name.endswith("_lora_a.weight"):
                weights[name] = weights[name][:5].clone()
            elif name.endswith("_lora_b.weight"):
                weights[name] = weights[name][:, :5].clone()
            elif name == "embeddings.time_embeddings":
                weights[name] = weights[name][:, :6].clone()
        return {name: value.to(torch.bfloat16) for name, value in weights.items() if not name.endswith(".mask")}

    convert_streamformer(rewritten(tmp_path / "source", cut), tmp_path / "ours")
    model = load(tmp_path / "ours")
    assert (model.config.lora_rank, model.config.num_frames, model.dtype) == (5, 6, torch.bfloat16)


def test_a_checkpoint_without_the_pooling_head(tmp_path):
    source = rewritten(tmp_path / "source", lambda w: {k: v for k, v in w.items() if not k.startswith("head.")})
    assert convert_streamformer(source, tmp_path / "ours").head is None


def test_the_config_says_what_is_ours(converted):
    config = load(converted).config
    assert config.model_type == "streamformer"
    assert (config.temporal_position, config.time_embedding_policy, config.sliding_window) == (
        "learned",
        "clamp",
        None,
    )
    assert (config.enable_causal_temporal, config.lora_rank, config.num_frames) == (True, 32, 8)


def test_what_is_not_streamformer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="attention_type='space_only'"):
        convert_streamformer(rewritten(tmp_path / "a", attention_type="space_only"), tmp_path / "ours")
    with pytest.raises(ValueError, match="not a StreamFormer checkpoint"):
        convert_streamformer(rewritten(tmp_path / "b", lambda w: {"x": torch.ones(1)}), tmp_path / "ours")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.fc1\.bias"):
        without = rewritten(
            tmp_path / "c", lambda w: {k: v for k, v in w.items() if k != "encoder.layer.1.intermediate.dense.bias"}
        )
        convert_streamformer(without, tmp_path / "ours")
    with pytest.raises(ValueError, match="surprise"):
        convert_streamformer(rewritten(tmp_path / "d", lambda w: w | {"surprise": torch.ones(1)}), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_pickled_weights_are_refused_with_the_conversion_named_and_the_conversion_works(tmp_path, monkeypatch):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(CASE / "config.json", source)
    torch.save({"model": load_file(CASE / "model.safetensors")}, source / "WEIGHTS.bin")
    with pytest.raises(OSError, match="Convert them once: python -c") as error:
        convert_streamformer(source, tmp_path / "ours")
    monkeypatch.chdir(source)
    exec(str(error.value).split('python -c "')[1].rsplit('"', 1)[0])
    convert_streamformer(source, tmp_path / "ours")
    assert load(tmp_path / "ours").num_parameters() == load_and_count()


def load_and_count() -> int:
    weights = load_file(CASE / "model.safetensors")
    return sum(value.numel() for name, value in weights.items() if not name.endswith(".mask"))


def siglip(**changes) -> SiglipVisionModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=4, **sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("config", [{}, {"lora_rank": 0}, {"temporal_position": "learned", "sliding_window": 3}])
@torch.no_grad()
def test_streamformer_from_siglip_starts_with_siglips_features(config):
    backbone = siglip()
    model = streamformer_from_siglip(backbone, **config)
    assert {name: getattr(model.config, name) for name in config} == config
    assert model.config.hidden_act == backbone.config.hidden_act == "gelu_pytorch_tanh"
    frames = torch.randn(4, 3, 16, 16)
    expected = backbone(frames)
    for output in (model(frames[:, None]), model(frames[None])):  # four clips of one frame, one clip of four
        torch.testing.assert_close(output.last_hidden_state.flatten(0, 1), expected.last_hidden_state, **CLOSE)
        torch.testing.assert_close(output.pooler_output.flatten(0, 1), expected.pooler_output, **CLOSE)


@torch.no_grad()
def test_streamformer_from_siglip_can_learn_time():
    backbone = siglip()
    model = streamformer_from_siglip(backbone)
    assert all(layer.temporal_attention.qkv.weight.std() > 0.01 for layer in model.layers)
    model.layers[0].temporal_gate.fill_(1)
    frames = torch.randn(4, 3, 16, 16)
    assert (model(frames[None]).pooler_output[0] - backbone(frames).pooler_output).abs().max() > 1e-3
    model.embeddings.position_embeddings.zero_()
    assert backbone.embeddings.position_embedding.weight.abs().max() > 0, "the backbone is copied, not shared"


def test_streamformer_from_siglip_without_its_head():
    assert streamformer_from_siglip(siglip(vision_use_head=False)).head is None


def test_only_siglip_becomes_streamformer(converted):
    with pytest.raises(ValueError, match="'streamformer'"):
        streamformer_from_siglip(load(converted))
