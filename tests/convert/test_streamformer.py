"""The authors' own outputs, made with random weights by their code (Go2Heart/StreamFormer at ae3523b); SigLIP's."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimesformerModel,
)

from authors_streamformer import Authors, authors_outputs, write_restated_case
from siglip_folders import SIGLIPS, save_siglip, siglips_features
from streamchat_hf.convert.streamformer import convert_streamformer, streamformer_from_siglip
from streamchat_hf.modeling.cache_streamformer import StreamFormerCache
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

CASE = Path(__file__).parents[1] / "fixtures" / "streamformer_case_a"
INPUTS, EXPECTED = load_file(CASE / "inputs.safetensors"), load_file(CASE / "outputs.safetensors")
TAGS = sorted({name.split(".")[0] for name in EXPECTED})
CLOSE = {"atol": 2e-5, "rtol": 0}


class Case:
    """A checkpoint of the authors, inputs, what they have to give, and the checkpoint converted."""

    def __init__(self, folder: Path, converted: Path):
        self.folder, self.converted = folder, converted
        self.inputs = load_file(folder / "inputs.safetensors")
        self.expected = load_file(folder / "outputs.safetensors")
        convert_streamformer(folder, converted)


@pytest.fixture(scope="module", params=["golden", "restated"])
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    if request.param == "golden":
        return Case(CASE, folder / "converted")
    write_restated_case(CASE, folder / "source")  # other sizes, another activation, two clips at once
    return Case(folder / "source", folder / "converted")


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    convert_streamformer(CASE, folder)
    return folder


def load(folder: Path, **changes) -> StreamFormerModel:
    return StreamFormerModel.from_pretrained(folder, **changes).eval()


def aligned(model):
    """Weights that were just read lie where they lay in the file, and the last bits of a product depend on where."""
    return copy.deepcopy(model)


def stream(model, pixels, sizes) -> dict[str, torch.Tensor]:
    cache = StreamFormerCache()
    outputs = [model(chunk, past_key_values=cache) for chunk in pixels.split(sizes, dim=1)]
    names = ("last_hidden_state", "pooler_output")
    found = {name: torch.cat([getattr(output, name) for output in outputs], 1) for name in names}
    for i, (keys, values) in enumerate(zip(cache._keys, cache._values, strict=True)):
        # Both rows are B times N, the patches of a stream together; ours may have room for more frames.
        frames = slice(pixels.shape[1])
        found |= {f"final_key.{i}": keys[:, :, frames], f"final_value.{i}": values[:, :, frames]}
    return found


def by_patch(hidden: torch.Tensor) -> torch.Tensor:
    """The authors keep tokens patch by patch: `(B, T, N, D)` to `(B, N*T, D)`."""
    return hidden.transpose(1, 2).flatten(1, 2)


@torch.no_grad()
def computed(case: Case, tag: str, attention: str) -> dict[str, torch.Tensor]:
    """What we compute for a tag of the golden file, by the names there."""
    changes = {
        "bidirectional": {"enable_causal_temporal": False},
        "long": {"time_embedding_policy": "stretch"},
        "nonsquare": {"transposed_position_grid": True},
    }
    model = load(case.converted, attn_implementation=attention, **changes.get(tag, {}))
    pixels, long = case.inputs["pixel_values"], case.inputs["pixel_values_long"]
    if tag == "stream_1x":
        return stream(model, pixels, 1)
    if tag == "stream_chunked":
        return stream(model, pixels, 3)
    if tag == "PATCHED_stream_long_1x":
        return stream(model, long, 1)
    if tag == "gates_zero":
        for layer in model.layers:
            layer.temporal_gate.zero_()
    tagged = f"pixel_values_{tag.removeprefix('CLAMPED_')}"
    output = model(case.inputs.get(tagged, pixels), output_hidden_states=True)
    found = {f"hidden_states.{i}": by_patch(hidden) for i, hidden in enumerate(output.hidden_states)}
    return found | {
        "embeddings": found["hidden_states.0"],
        "last_hidden_state": output.last_hidden_state,
        "pooler_output": output.pooler_output,
        "global": output.pooler_output[:, -1],
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("tag", TAGS)
def test_gives_all_that_the_authors_give(case, tag, attention):
    expected = {name.split(".", 1)[1]: value for name, value in case.expected.items() if name.split(".")[0] == tag}
    assert expected
    got = computed(case, tag, attention)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **CLOSE, msg=lambda text, name=name: f"{tag}.{name}: {text}")


def test_both_cases_have_the_same_outputs_and_every_one_has_a_test(case):
    tags = {name.split(".")[0] for name in case.expected}
    assert tags == set(TAGS)
    layers = sum(name.startswith("main.hidden_states.") for name in case.expected) - 1
    assert len(load(case.converted).layers) == layers
    assert {name for name in EXPECTED if name[-1].isalpha()} == {name for name in case.expected if name[-1].isalpha()}


def test_the_restatement_gives_what_the_authors_code_gave():
    authors = Authors(load_file(CASE / "model.safetensors"), json.loads((CASE / "config.json").read_text()))
    found = authors_outputs(authors, INPUTS)
    assert found.keys() == EXPECTED.keys()
    for name, value in EXPECTED.items():
        torch.testing.assert_close(found[name], value, atol=5e-6, rtol=0, msg=name)


@torch.no_grad()
def test_frames_that_are_not_square_have_their_grid_upright_by_default(case):
    authors = Authors(
        load_file(case.folder / "model.safetensors"), json.loads((case.folder / "config.json").read_text())
    )
    pixels = case.inputs["pixel_values_nonsquare"]
    upright = authors(pixels, transposed=False)
    assert (upright["pooler_output"] - case.expected["nonsquare.pooler_output"]).abs().max() > 0.05
    output = load(case.converted)(pixels)
    torch.testing.assert_close(output.last_hidden_state, upright["last_hidden_state"], **CLOSE)
    torch.testing.assert_close(output.pooler_output, upright["pooler_output"], **CLOSE)


@torch.no_grad()
def test_merging_and_folding_keep_the_features(case):
    pixels = case.inputs["pixel_values"]
    whole, merged = load(case.converted)(pixels), load(case.converted).merge_lora().fold_temporal_projection()(pixels)
    for name in ("last_hidden_state", "pooler_output"):
        torch.testing.assert_close(getattr(merged, name), getattr(whole, name), atol=1e-5, rtol=0)
        torch.testing.assert_close(getattr(merged, name), case.expected[f"main.{name}"], **CLOSE)


@torch.no_grad()
def test_saved_and_loaded_again_it_gives_the_same_features(case, tmp_path):
    model = convert_streamformer(case.folder, tmp_path / "ours").model
    expected = model(case.inputs["pixel_values"])
    model.save_pretrained(tmp_path / "again")
    for folder in ("ours", "again"):
        output = aligned(load(tmp_path / folder))(case.inputs["pixel_values"])
        assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(output.pooler_output, expected.pooler_output)


@torch.no_grad()
def test_no_lora_is_lora_of_zero(case, tmp_path):
    weights = load_file(case.folder / "model.safetensors")
    for name, value in weights.items():
        if "_lora_b" in name:
            value.zero_()
    for folder, kept in (("zero", weights), ("none", {k: v for k, v in weights.items() if "_lora_" not in k})):
        (tmp_path / folder).mkdir()
        save_file(kept, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text((case.folder / "config.json").read_text())
    models = [convert_streamformer(tmp_path / name, tmp_path / f"{name}-ours").model for name in ("zero", "none")]
    assert [model.config.lora_rank for model in models] == [32, 0]
    zero, none = (model(case.inputs["pixel_values"]) for model in models)
    assert torch.equal(zero.last_hidden_state, none.last_hidden_state)
    assert torch.equal(zero.pooler_output, none.pooler_output)


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

    found = convert_streamformer(rewritten(tmp_path / "source", wrap), tmp_path / "ours")
    assert same(found.model, converted)
    assert found.origin == "StreamFormer"
    assert found.ignored == {"causal masks": 3, "text tower": 1, "task heads": 1, "loss scale and bias": 2}


@pytest.mark.parametrize("said", [True, False])
def test_lora_is_known_by_its_weights_not_by_what_the_config_says(tmp_path, converted, said):
    source = rewritten(tmp_path / "source", add_lora_spatial=said)
    assert same(convert_streamformer(source, tmp_path / "ours").model, converted)
    bare = rewritten(
        tmp_path / "bare", lambda w: {k: v for k, v in w.items() if "_lora_" not in k}, add_lora_spatial=said
    )
    assert convert_streamformer(bare, tmp_path / "plain").model.config.lora_rank == 0


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


@torch.no_grad()
def test_a_checkpoint_that_was_trained_on_whole_clips_stays_so(tmp_path):
    source = rewritten(tmp_path / "source", without(".mask"), enable_causal_temporal=False)
    found = convert_streamformer(source, tmp_path / "ours")
    assert found.ignored == {}
    output = found.model(INPUTS["pixel_values"])
    torch.testing.assert_close(output.pooler_output, EXPECTED["bidirectional.pooler_output"], **CLOSE)


def test_a_checkpoint_without_the_pooling_head(tmp_path):
    source = rewritten(tmp_path / "source", lambda w: {k: v for k, v in w.items() if not k.startswith("head.")})
    assert convert_streamformer(source, tmp_path / "ours").model.head is None


def test_the_config_says_what_is_ours(converted):
    config = load(converted).config
    assert config.model_type == "streamformer"
    assert (config.temporal_position, config.time_embedding_policy, config.sliding_window) == (
        "learned",
        "clamp",
        None,
    )
    assert (config.enable_causal_temporal, config.lora_rank, config.num_frames) == (True, 32, 8)


def test_the_folder_runs_by_itself(converted):
    processor = StreamFormerVideoProcessor.from_pretrained(converted)
    assert dict(processor.size) == {"height": 32, "width": 32}
    assert {*processor.image_mean, *processor.image_std} == {0.5}
    clip = processor(torch.randint(256, (3, 3, 40, 50), dtype=torch.uint8), do_sample_frames=False)
    model = AutoModel.from_pretrained(converted)
    assert model(clip["pixel_values_videos"]).pooler_output.shape == (1, 3, 64)


def without(*endings: str):
    return lambda weights: {name: value for name, value in weights.items() if not name.endswith(endings)}


def cut(ending: str):
    """One column less."""
    return lambda weights: {
        name: value[..., :-1].clone() if name.endswith(ending) else value for name, value in weights.items()
    }


def other_rank(weights):
    weights["encoder.layer.1.attention.attention.qkv_lora_a.weight"] = torch.ones(8, 64)
    weights["encoder.layer.1.attention.attention.qkv_lora_b.weight"] = torch.ones(192, 8)
    return weights


WRONG_WEIGHTS = {
    "one missing": (
        without("layer.1.intermediate.dense.bias"),
        r"1 missing \(encoder\.layer\.1\.intermediate\.dense\.bias\)\. Take config",
    ),
    "a layer missing": (
        lambda weights: {name: value for name, value in weights.items() if "layer.2." not in name},
        r"25 missing \(encoder\.layer\.2\.temporal_.*, …\)\. Take config",
    ),
    "no time": (without("time_embeddings"), r"1 missing \(embeddings\.time_embeddings\)"),
    "half a head": (without("probe"), r"1 missing \(head\.probe\)"),
    "narrow": (
        cut("layer.0.output.dense.weight"),
        r"1 of another shape \(encoder\.layer\.0\.output\.dense\.weight is \(64, 159\), expected \(64, 160\)\)",
    ),
    "a narrow head": (
        cut("in_proj_weight"),
        r"head\.attention\.in_proj_weight is \(192, 63\), expected \(192, 64\)",
    ),
    "unknown": (lambda weights: weights | {"surprise": torch.ones(1)}, r"1 unknown \(surprise\)"),
    "something else": (
        lambda weights: {"x": torch.ones(1)},
        r"missing \(embeddings\.position_embeddings, .*unknown \(x\)",
    ),
    "another rank": (
        other_rank,
        r"qkv_lora_a\.weight is \(8, 64\), expected \(32, 64\), .*qkv_lora_b\.weight is .*one rank, in every layer",
    ),
    "LoRA in some layers": (
        without("layer.0.attention.output.dense_lora_a.weight"),
        r"1 missing \(encoder\.layer\.0\.attention\.output\.dense_lora_a\.weight\).*LoRA must be of one rank",
    ),
    "both with and without a prefix": (
        lambda weights: weights | {"timesformer.post_layernorm.bias": weights["post_layernorm.bias"].clone()},
        "has both post_layernorm.bias and timesformer.post_layernorm.bias",
    ),
}


@pytest.mark.parametrize("kind", WRONG_WEIGHTS)
def test_wrong_weights_are_named(tmp_path, kind):
    change, message = WRONG_WEIGHTS[kind]
    source = rewritten(tmp_path / "source", change)
    with pytest.raises(ValueError, match=message) as error:
        convert_streamformer(source, tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


WRONG_CONFIGS = {
    "attention_type='space_only'": {"attention_type": "space_only"},
    r"lacks num_attention_heads, hidden_act, which": {"hidden_act": None, "num_attention_heads": None},
    "hidden_act='swoosh'": {"hidden_act": "swoosh"},
    "hidden_size=64 must be a multiple of num_attention_heads=5": {"num_attention_heads": 5},
    "'hidden_size' expected int, got str": {"hidden_size": "64"},
    "model type 'bert'": {"model_type": "bert"},
    "model type 'streamformer'": {"model_type": "streamformer"},
    r"25 missing \(encoder\.layer\.3": {"num_hidden_layers": 4},
    r"position_embeddings is \(1, 16, 64\), expected \(4, 64\)": {"patch_size": 16},
}


@pytest.mark.parametrize("message", WRONG_CONFIGS)
def test_a_wrong_config_is_said_to_be_so(tmp_path, message):
    with pytest.raises(ValueError, match=message) as error:
        convert_streamformer(rewritten(tmp_path / "source", **WRONG_CONFIGS[message]), tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_a_config_without_fields_is_said_to_lack_them(tmp_path):
    source = rewritten(tmp_path / "source")
    (source / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match="config.json lacks model_type, image_size, patch_size, .*which the weights do"
    ):
        convert_streamformer(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("kind", [TimesformerModel, TimesformerForVideoClassification])
def test_a_stock_timesformer_is_refused(tmp_path, kind):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind(TimesformerConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "stock")
    with pytest.raises(
        ValueError, match="stock TimeSformer: it has embeddings.cls_token and no temporal_attention_ga"
    ):
        convert_streamformer(tmp_path / "stock", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_another_model_is_refused(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="model type 'bert': this converts timesformer .* and siglip, "):
        convert_streamformer(tmp_path / "bert", tmp_path / "ours")


@pytest.mark.parametrize("field", ["temporal_position", "num_frames", "lora_rank"])
def test_what_the_weights_decide_is_not_for_the_caller(tmp_path, field):
    with pytest.raises(ValueError, match=f"decides {field} by its weights"):
        convert_streamformer(CASE, tmp_path / "ours", **{field: 8})
    assert not (tmp_path / "ours").exists()


@torch.no_grad()
def test_a_window_can_be_chosen(tmp_path):
    convert_streamformer(CASE, tmp_path / "ours", sliding_window=3)
    model = load(tmp_path / "ours")
    output = model(INPUTS["pixel_values"])
    torch.testing.assert_close(output.pooler_output[:, :3], EXPECTED["main.pooler_output"][:, :3], **CLOSE)
    assert (output.pooler_output - EXPECTED["main.pooler_output"])[:, 3].abs().max() > 1e-3


def test_only_a_streamformer_of_ours_is_overwritten(tmp_path, converted):
    ours = tmp_path / "ours"
    ours.mkdir()
    convert_streamformer(CASE, ours)
    assert same(convert_streamformer(CASE, ours).model, converted)
    for kind, text in (("notes", None), ("other", '{"model_type": "bert"}'), ("broken", "{"), ("list", "[]")):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "notes.txt").write_text("mine")
        if text is not None:
            (tmp_path / kind / "config.json").write_text(text)
        before = {path.name: path.read_text() for path in (tmp_path / kind).iterdir()}
        with pytest.raises(FileExistsError, match="not a StreamFormer of ours: name an empty or a new folder"):
            convert_streamformer(CASE, tmp_path / kind)
        assert {path.name: path.read_text() for path in (tmp_path / kind).iterdir()} == before
    with pytest.raises(FileExistsError):
        convert_streamformer(CASE, tmp_path / "notes" / "notes.txt")


def test_the_source_is_not_overwritten(tmp_path):
    source = rewritten(tmp_path / "source")
    with pytest.raises(FileExistsError):
        convert_streamformer(source, source)


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
        assert torch.equal(output.last_hidden_state.flatten(0, 1), expected.last_hidden_state)
        torch.testing.assert_close(output.pooler_output.flatten(0, 1), expected.pooler_output, **CLOSE)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", SIGLIPS)
@torch.no_grad()
def test_a_siglip_folder_becomes_a_streamformer_with_its_features(tmp_path, kind, attention):
    tower = save_siglip(kind, tmp_path / "source")
    found = convert_streamformer(tmp_path / "source", tmp_path / "ours")
    assert (found.origin, found.ignored) == ("SigLIP", SIGLIPS[kind][2])
    tower.set_attn_implementation(attention)
    model = aligned(load(tmp_path / "ours", attn_implementation=attention))
    assert all(layer.temporal_gate.item() == 0 for layer in model.layers)
    assert (model.config.hidden_act, model.config.temporal_position) == ("gelu_pytorch_tanh", "rotary")
    assert dict(StreamFormerVideoProcessor.from_pretrained(tmp_path / "ours").size) == {"height": 32, "width": 32}

    frame = torch.randn(1, 3, 32, 32)
    expected, output = siglips_features(tower, frame), model(frame[None])
    if "siglip2" in kind:  # multiplies where we convolve
        torch.testing.assert_close(output.last_hidden_state[0], expected.last_hidden_state, **CLOSE)
        torch.testing.assert_close(output.pooler_output[0], expected.pooler_output, **CLOSE)
        return
    assert torch.equal(output.last_hidden_state[0], expected.last_hidden_state)
    if kind == "paligemma":
        assert output.pooler_output is expected.pooler_output is None
    elif attention == "eager":
        assert torch.equal(output.pooler_output[0], expected.pooler_output)
    else:  # SigLIP's head never runs SDPA
        torch.testing.assert_close(output.pooler_output[0], expected.pooler_output, **CLOSE)


def test_siglip_with_a_prefix_and_position_ids_as_older_versions_saved_it(tmp_path):
    save_siglip("siglip_vision_model", tmp_path / "new")
    weights = load_file(tmp_path / "new" / "model.safetensors")
    names = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in weights.items()}
    (tmp_path / "old").mkdir()
    save_file(
        names | {"vision_model.embeddings.position_ids": torch.arange(16)[None]}, tmp_path / "old/model.safetensors"
    )
    (tmp_path / "old" / "config.json").write_text((tmp_path / "new" / "config.json").read_text())
    found = convert_streamformer(tmp_path / "old", tmp_path / "ours")
    assert found.ignored == {"position ids": 1}
    torch.manual_seed(1)  # fresh weights too are the same every time
    assert same(convert_streamformer(tmp_path / "new", tmp_path / "again").model, tmp_path / "ours")


def test_what_siglip_does_not_decide_can_be_chosen(tmp_path):
    save_siglip("siglip_vision_model", tmp_path / "source")
    chosen = {"temporal_position": "learned", "num_frames": 5, "lora_rank": 2, "sliding_window": 3}
    model = convert_streamformer(tmp_path / "source", tmp_path / "ours", **chosen).model
    assert {name: getattr(load(tmp_path / "ours").config, name) for name in chosen} == chosen
    assert model.embeddings.time_embeddings.shape == (5, 64)
    with pytest.raises(ValueError, match="sliding_window=0 must be at least 1"):
        convert_streamformer(tmp_path / "source", tmp_path / "other", sliding_window=0)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("layers.1.self_attn.k_proj.bias"), r"1 missing \(encoder\.layers\.1\.self_attn\.k_proj\.bias\)"),
        (cut("layers.0.self_attn.v_proj.weight"), r"v_proj\.weight is \(64, 63\), expected \(64, 64\)"),
        (without("patch_embedding.weight"), "0 weights named embeddings.patch_embedding.weight, expected 1"),
        (cut("patch_embedding.weight"), r"patch_embedding\.weight is .*, expected \(64, 3, 8, 8\)"),
        (
            lambda weights: {f"{name}{'' if 'patch' in name else '.x'}": v for name, v in weights.items()},
            "missing .*unknown",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["siglip_vision_model", "siglip2_vision_model"])
def test_wrong_siglip_weights_are_named(tmp_path, kind, change, message):
    source = tmp_path / "source"
    save_siglip(kind, source)
    weights = load_file(source / "model.safetensors")
    prefix = "vision_model."  # which some versions write
    save_file(change({k.removeprefix(prefix): v for k, v in weights.items()}), source / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        convert_streamformer(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


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
