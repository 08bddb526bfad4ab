"""VideoLLM-onlines put together from a language model and a vision tower."""

import copy

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaModel,
    SiglipConfig,
    SiglipModel,
)

from streamchat_hf import StreamFormerConfig, StreamFormerModel, VideoLLMOnlineForConditionalGeneration
from videollm_online_helpers import TEXT, VISION, conversation, pixels, tiny_config

SIZES = {k: v for k, v in VISION.items() if k != "model_type"}
SMALL_TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
SMALL_TEXT |= {"num_attention_heads": 2}
VISIONS = {
    "siglip_vision_model": lambda: AutoModel.from_config(AutoConfig.for_model("siglip_vision_model", **SIZES)),
    "siglip": lambda: SiglipModel(SiglipConfig(vision_config=SIZES, text_config=SMALL_TEXT)),
    "clip_vision_model": lambda: AutoModel.from_config(AutoConfig.for_model("clip_vision_model", **SIZES)),
    "clip": lambda: CLIPModel(CLIPConfig(vision_config=SIZES, text_config=SMALL_TEXT)),
    "streamformer": lambda: StreamFormerModel(StreamFormerConfig(**SIZES, lora_rank=2)),
}
IDS = ("frame_token_pooled", "v_placeholder_id", "frame_token_interval_id", "eos_token_id", "stream_start_ids")
FIELDS = {name: getattr(tiny_config(), name) for name in (*IDS, "response_start_ids")}


def language_model(model_type="llama", **changes):
    sizes = {name: value for name, value in TEXT.items() if name != "model_type"}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | changes)).eval()


@pytest.mark.parametrize("kind", VISIONS)
@pytest.mark.parametrize("from_folder", [False, True])
@torch.no_grad()
def test_the_parts_keep_their_weights(kind, from_folder, tmp_path):
    vision, text = VISIONS[kind]().eval(), language_model()
    ids = torch.tensor([conversation()])
    expected = text(ids).logits
    tower = copy.deepcopy(getattr(vision, "vision_model", vision)).state_dict()
    if from_folder:
        vision.save_pretrained(tmp_path / "vision")
        text.save_pretrained(tmp_path / "text")
        vision, text = tmp_path / "vision", tmp_path / "text"
    model = VideoLLMOnlineForConditionalGeneration.from_backbones(text, vision, **FIELDS)
    assert not model.training
    assert torch.equal(model(ids).logits, expected)
    found = model.model.vision_tower.state_dict()
    assert found.keys() == tower.keys() and all(torch.equal(found[name], tower[name]) for name in tower)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())
    frames = torch.tensor([conversation(2)])
    seen = model(frames, pixel_values_videos=pixels(2)[None]).logits
    model.save_pretrained(tmp_path / "ours")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(loaded(frames, pixel_values_videos=pixels(2)[None]).logits, seen, atol=1e-5, rtol=1e-5)
    loaded.set_attn_implementation("eager")
    model.set_attn_implementation("eager")
    assert model.model.language_model.config._attn_implementation == "eager"


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_stays_tied(tied, tmp_path):
    text = language_model("qwen2", tie_word_embeddings=tied)
    model = VideoLLMOnlineForConditionalGeneration.from_backbones(text, VISIONS["siglip_vision_model"](), **FIELDS)
    assert model.config.tie_word_embeddings == tied
    model.save_pretrained(tmp_path)
    for one in (model, VideoLLMOnlineForConditionalGeneration.from_pretrained(tmp_path)):
        assert (one.lm_head.weight is one.get_input_embeddings().weight) == tied


def test_the_connector_is_fresh_and_of_the_text_models_type():
    text = language_model().to(torch.bfloat16)
    model = VideoLLMOnlineForConditionalGeneration.from_backbones(text, VISIONS["clip"](), **FIELDS)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    weight, bias = model.model.connector[0].weight, model.model.connector[0].bias
    assert 0.01 < weight.float().std() < 0.03 and not bias.any()
    assert model.generation_config.eos_token_id == text.generation_config.eos_token_id


def test_other_architectures_are_refused():
    vision = VISIONS["siglip_vision_model"]
    gptj = GPTJForCausalLM(GPTJConfig(vocab_size=61, n_embd=16, n_layer=1, n_head=2, rotary_dim=4, n_positions=32))
    for text in (gptj, LlamaModel(LlamaConfig(**{**TEXT, "num_hidden_layers": 1}))):
        with pytest.raises(
            ValueError, match="takes a causal language model whose head is a linear layer without bias"
        ):
            VideoLLMOnlineForConditionalGeneration.from_backbones(text, vision(), **FIELDS)
    with pytest.raises(ValueError, match="'llama' does not fit: VideoLLM-online needs SigLIP, CLIP or StreamFormer"):
        VideoLLMOnlineForConditionalGeneration.from_backbones(language_model(), language_model(), **FIELDS)
