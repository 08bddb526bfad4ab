"""An adapter of exactly the published layout, made by PEFT on a tiny Llama, against PEFT's own forward."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    GenerationConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from live_tokenizers import merging
from published_adapter import HIDDEN, RANK, REGEX, WIDTH, language_model, published
from streamchat_hf import VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor
from streamchat_hf.convert.videollm_online import convert_videollm_online


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("published")
    adapted, tower, tokenizer = published(folder)
    converted = convert_videollm_online(folder / "adapter", folder / "ours", vision=folder / "siglip")
    return folder, adapted, tower, tokenizer, converted


def adapter_copy(folder, to, change=lambda weights: weights, **said):
    """A copy of the adapter with other weights, and other words in its configuration."""
    shutil.copytree(folder / "adapter", to)
    path = to / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    stored = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(stored | said))
    return to


def conversation(frames: int) -> list[dict]:
    return [
        {"role": "system", "content": "it is"},
        {"role": "user", "content": "what is it?"},
        {"role": "stream", "num_frames": frames},
        {"role": "assistant", "content": "it is red now."},
    ]


@torch.no_grad()
def by_hand(adapted, tower, ids, pixels, v_id):
    """The authors' joint_embed and PEFT's unmerged forward: pooled and 3 x 3 averaged tokens of every frame."""
    seen = tower(pixels)
    grid = seen.last_hidden_state.view(-1, 4, 4, WIDTH).permute(0, 3, 1, 2)
    spatial = nn.functional.adaptive_avg_pool2d(grid, (3, 3)).flatten(2).transpose(1, 2)
    llama = adapted.base_model.model
    frames = llama.connector(torch.cat([seen.pooler_output[:, None], spatial], dim=1))  # (T, 10, H)
    embeds = llama.get_input_embeddings()(ids.clamp(max=llama.config.vocab_size - 1))
    embeds[ids == v_id] = frames.view(-1, HIDDEN)
    return adapted(inputs_embeds=embeds).logits


def compare(folder, adapted, tower):
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    text = processor.apply_chat_template(conversation(3))
    ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    assert (ids == model.config.v_placeholder_id).sum() == 30
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = by_hand(adapted, tower, ids, pixels, model.config.v_placeholder_id)
    with torch.no_grad():
        logits = model(ids, pixel_values_videos=pixels[None]).logits
        features, _ = model.model.get_video_features(pixels[None])
        stored = model(ids, frame_features=features[0]).logits
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(stored, logits)
    return model, expected


def test_the_layout_is_the_published_one(original):
    weights = load_file(original[0] / "adapter" / "adapter_model.safetensors")
    layer = r"base_model\.model\.model\.layers\.[012]\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj\.lora_[AB]\.weight"
    head = ["lora_A.weight", "lora_B.weight", "base_layer.weight"]
    rest = {f"base_model.model.lm_head.{name}" for name in head}
    rest |= {f"base_model.model.connector.{k}.{kind}" for k in (0, 2) for kind in ("weight", "bias")}
    assert {name for name in weights if not re.fullmatch(layer, name)} == rest
    assert len(weights) == 3 * 7 * 2 + 7
    said = json.loads((original[0] / "adapter" / "adapter_config.json").read_text())
    assert (said["target_modules"], said["modules_to_save"]) == (REGEX, ["connector"])


def test_the_forward_is_that_of_base_and_adapter(original):
    folder, adapted, tower, _, _ = original
    model, expected = compare(folder / "ours", adapted, tower)
    assert type(model) is VideoLLMOnlineForConditionalGeneration
    assert not any("lora" in name for name in model.state_dict())
    with adapted.disable_adapter():
        processor = AutoProcessor.from_pretrained(folder / "ours")
        text = processor.apply_chat_template(conversation(3))
        ids = processor.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        plain = by_hand(adapted, tower, ids, pixels, model.config.v_placeholder_id)
    assert (plain - expected).abs().max() > 0.1, "the adapter does nothing: the test could not fail"


def test_what_the_adapter_does_not_say_is_that_of_v1_plus(original):
    folder, _, _, tokenizer, converted = original
    config = AutoModelForCausalLM.from_pretrained(folder / "ours").config
    vocabulary = len(tokenizer) - 1
    assert (config.frame_token_cls, config.frame_token_pooled, config.frame_num_tokens) == (True, [3, 3], 10)
    assert config.frame_fps == 2 and config.stream_loss_weight == 1 and config.silence_threshold == 0.725
    assert config.v_placeholder_id == vocabulary == config.text_config.vocab_size  # outside, as published
    assert config.frame_token_interval_id == tokenizer.convert_tokens_to_ids(",") == config.silence_token_id
    assert config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(config.stream_start_ids) == "\n["
    assert tokenizer.decode(config.response_start_ids) == "]\nAssistant:"
    processor = AutoProcessor.from_pretrained(folder / "ours")
    assert type(processor) is VideoLLMOnlineProcessor
    assert (processor.frame_num_tokens, processor.frame_token_interval, processor.frame_fps) == (10, ",", 2)
    video = processor.video_processor
    assert dict(video.size) == {"height": 32, "width": 32} and video.do_pad and set(video.image_mean) == {0.5}
    assert str(folder) not in (folder / "ours" / "config.json").read_text()
    assert (converted.base, converted.rank, converted.merged) == (str(folder / "base"), RANK, 3 * 7 + 1)


def test_answers_are_greedy_though_the_base_samples(original, tmp_path):
    folder = original[0]
    shutil.copytree(folder / "base", tmp_path / "base")
    chat = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20, eos_token_id=[1, 2], max_length=64)
    chat.save_pretrained(tmp_path / "base")
    converted = convert_videollm_online(folder / "adapter", tmp_path / "ours", tmp_path / "base", folder / "siglip")
    loaded = VideoLLMOnlineForConditionalGeneration.from_pretrained(tmp_path / "ours")
    for model in (converted.model, loaded):
        own = model.generation_config
        assert (own.do_sample, own.temperature, own.top_p, own.top_k) == (False, None, None, None)
        assert own.eos_token_id == [1, 2] and not model.voice().config.do_sample
    ids = torch.tensor([[0, 3, 4]])
    one, other = (loaded.generate(ids, max_new_tokens=12) for _ in range(2))
    assert torch.equal(one, other)


def test_a_list_of_names_and_another_base_folder(tmp_path):
    said = {"target_modules": ["q_proj", "down_proj"], "lora_alpha": 3}
    adapted, tower, _ = published(tmp_path, **said)
    (tmp_path / "base").rename(tmp_path / "moved")
    converted = convert_videollm_online(
        tmp_path / "adapter", tmp_path / "ours", tmp_path / "moved", tmp_path / "siglip"
    )
    assert converted.merged == 6
    compare(tmp_path / "ours", adapted, tower)


def test_a_tied_base_is_untied_where_the_head_was_trained(tmp_path):
    adapted, tower, _ = published(tmp_path, tied=True)
    convert_videollm_online(tmp_path / "adapter", tmp_path / "ours", vision=tmp_path / "siglip")
    model, _ = compare(tmp_path / "ours", adapted, tower)
    assert not model.config.tie_word_embeddings
    assert (model.lm_head.weight - model.get_input_embeddings().weight).abs().max() > 1e-3


def test_the_head_that_the_adapter_brings_counts(original, tmp_path):
    """As when PEFT loads it; an adapter without one is merged into the base's."""
    folder, name = original[0], "base_model.model.lm_head.base_layer.weight"
    moved = adapter_copy(folder, tmp_path / "moved", lambda weights: weights | {name: weights[name] + 1})
    bare = adapter_copy(folder, tmp_path / "bare", without("lm_head.base_layer.weight"))
    expected = original[4].model.lm_head.weight
    for source, shift in ((moved, 1), (bare, 0)):
        model = convert_videollm_online(source, tmp_path / "ours", vision=folder / "siglip").model
        torch.testing.assert_close(model.lm_head.weight, expected + shift)


def test_the_data_type_is_that_of_the_base(original, tmp_path):
    folder = original[0]
    language_model(original[4].model.config.text_config.vocab_size).to(torch.bfloat16).save_pretrained(tmp_path / "b")
    model = convert_videollm_online(folder / "adapter", tmp_path / "ours", tmp_path / "b", folder / "siglip").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_without_its_own_tokenizer_the_bases_is_taken(original, tmp_path):
    folder = original[0]
    source = adapter_copy(folder, tmp_path / "adapter")
    for path in source.glob("tokenizer*"):
        path.unlink()
    shutil.copytree(folder / "base", tmp_path / "base")
    merging().save_pretrained(tmp_path / "base")
    converted = convert_videollm_online(source, tmp_path / "ours", tmp_path / "base", folder / "siglip")
    assert converted.processor.token_ids() == original[4].processor.token_ids()


def without(name):
    return lambda weights: {key: value for key, value in weights.items() if key != f"base_model.model.{name}"}


def shorter(name):
    def change(weights):
        key = f"base_model.model.{name}"
        return weights | {key: weights[key][:-1].contiguous()}

    return change


Q = "model.layers.1.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("message", "change", "said"),
    [
        (rf"1 missing \(base_model\.model\.{re.escape(Q)}\)", without(Q), {}),
        (r"1 missing \(base_model\.model\.connector\.2\.bias\)", without("connector.2.bias"), {}),
        (r"1 of another shape \(.*q_proj\.lora_A\.weight is \(3, 32\), expected \(4, 32\)\)", shorter(Q), {}),
        (r"44 of another shape \(.*lora_A\.weight is \(4, 32\), expected \(8, 32\), .*, …\)", None, {"r": 8}),
        (r"1 of another shape \(.*connector\.0\.weight is \(31, 16\)", shorter("connector.0.weight"), {}),
        (r"1 unknown \(base_model\.model\.extra\)", lambda w: w | {"base_model.model.extra": torch.zeros(1)}, {}),
        (
            r"model\.norm\.weight does not begin with base_model",
            lambda w: w | {"model.norm.weight": w.popitem()[1]},
            {},
        ),
        (
            r"33 unknown \(base_model\.model\.lm_head\.base_layer\.weight, ",
            None,
            {"target_modules": ["q_proj", "k_proj"]},
        ),
        ("says use_dora=True, only False is read", None, {"use_dora": True}),
        ("says peft_type='LOHA', only 'LORA' is read", None, {"peft_type": "LOHA"}),
        (r"says rank_pattern=\{'q_proj': 2\}, only", None, {"rank_pattern": {"q_proj": 2}}),
        ("lacks r, target_modules", None, {"r": None, "target_modules": None}),
        ("does not name its language model", None, {"base_model_name_or_path": None}),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(original, tmp_path, message, change, said):
    folder = original[0]
    source = adapter_copy(folder, tmp_path / "adapter", change or (lambda weights: weights), **said)
    with pytest.raises(ValueError, match=message) as error:
        convert_videollm_online(source, tmp_path / "ours", vision=folder / "siglip")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_another_base_or_tower_is_named(original, tmp_path):
    folder, vocabulary = original[0], original[4].model.config.text_config.vocab_size
    adapter, ours = folder / "adapter", tmp_path / "ours"
    language_model(vocabulary + 5).save_pretrained(tmp_path / "larger")
    with pytest.raises(ValueError, match=r"lm_head\.base_layer\.weight is \(\d+, 32\), expected \(\d+, 32\)"):
        convert_videollm_online(adapter, ours, tmp_path / "larger", folder / "siglip")
    sizes = {"hidden_size": 24, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "wide")
    with pytest.raises(ValueError, match=r"connector\.0\.weight is \(32, 16\), expected \(32, 24\)"):
        convert_videollm_online(adapter, ours, vision=tmp_path / "wide")
    CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="of type 'clip_vision_model': adapters were trained on SigLIP's features"):
        convert_videollm_online(adapter, ours, vision=tmp_path / "clip")
    assert not ours.exists()


def test_files_that_are_missing_or_pickled_are_named(original, tmp_path):
    folder = original[0]
    (tmp_path / "empty").mkdir()
    with pytest.raises(OSError, match="adapter_config.json"):
        convert_videollm_online(tmp_path / "empty", tmp_path / "ours", vision=folder / "siglip")
    source = adapter_copy(folder, tmp_path / "adapter")
    (source / "adapter_model.safetensors").rename(source / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="no adapter_model.safetensors; pickled weights are not read"):
        convert_videollm_online(source, tmp_path / "ours", vision=folder / "siglip")


def test_only_a_videollm_online_of_ours_is_overwritten(original, tmp_path):
    folder = original[0]
    shutil.copytree(folder / "ours", tmp_path / "ours")
    convert_videollm_online(folder / "adapter", tmp_path / "ours", vision=folder / "siglip")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    for other in ("notes", "notes/notes.txt"):
        with pytest.raises(FileExistsError, match="not a VideoLLM-online of ours: name an empty or a new folder"):
            convert_videollm_online(folder / "adapter", tmp_path / other, vision=folder / "siglip")
    with pytest.raises(FileExistsError):
        convert_videollm_online(folder / "adapter", folder / "base", vision=folder / "siglip")
    assert (tmp_path / "notes" / "notes.txt").read_text() == "mine"
