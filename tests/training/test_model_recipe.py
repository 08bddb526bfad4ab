"""The model a recipe begins with: a whole one, or built from parts that lie in folders, packages and GGUF files."""

import json

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoModelForCausalLM, Qwen2Config
from trl import ModelConfig

from streamchat_hf import StreamFormerConfig, StreamFormerModel, tiny_checkpoint
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.evaluation.streamworld import evaluate
from streamchat_hf.training.model_recipe import ModelRecipe, load_model, text_source
from training_runs import bpe_tokenizer, small_model

SIZE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def text_folder(tmp_path):
    """A small text model and its tokenizer, which has nothing to pad with."""
    tokenizer = bpe_tokenizer()
    tokenizer.pad_token = None
    special = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text = AutoModelForCausalLM.from_config(Qwen2Config(**SIZE, **special, num_key_value_heads=2))
    for part in (text, tokenizer):
        part.save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def test_a_fresh_text_model_looks_through_the_eye_of_the_tiny_checkpoint():
    recipe = ModelRecipe(text_config=SIZE, model_config={"visual_window": 8}, fps=2.0)
    models = [load_model(recipe, ModelConfig()) for _ in range(2)]
    (model, processor), (other, _) = models
    tiny = AutoModel.from_pretrained(tiny_checkpoint())
    for name, value in tiny.model.vision_tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], value), name
    assert processor.tokenizer.get_vocab() == build_tokenizer().get_vocab() and processor.video_processor.fps == 2.0
    assert processor.video_processor.size["height"] == 48 == model.config.vision_config.image_size
    layers = [one.model.language_model.layers[0].self_attn.q_proj.weight for one in (model, other)]
    assert not torch.equal(*layers) and model.config.text_config.hidden_size == 32
    assert model.config.visual_window == 8


def test_a_whole_model_is_no_part_of_a_new_one(tmp_path, text_folder):
    for part in small_model():
        part.save_pretrained(tmp_path / "model")
    whole = ModelConfig(model_name_or_path=str(tmp_path / "model"))
    with pytest.raises(ValueError, match="model_name_or_path is a whole model, text_backbone is to build a new one"):
        load_model(ModelRecipe(text_backbone=str(text_folder)), whole)
    with pytest.raises(ValueError, match="model_name_or_path is a whole model, text_config is to build a new one"):
        load_model(ModelRecipe(text_config=SIZE), whole)
    model, _ = load_model(ModelRecipe(), whole)
    assert model.config.visual_window == 8  # that of the small one, not of the tiny


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vision_backbone": "a"}, "vision_backbone needs a text model beside it"),
        ({"model_config": "{visual_window: 2}"}, "model_config needs a text model beside it"),
        ({"text_backbone": "a", "text_config": {}}, "text_config is for a fresh text model"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ModelRecipe(**fields)


def test_a_text_model_that_cannot_pad_pads_with_its_end(tmp_path, text_folder):
    size = {**SIZE, "image_size": 16, "patch_size": 8}
    StreamFormerModel(StreamFormerConfig(**size)).save_pretrained(tmp_path / "vision")
    recipe = ModelRecipe(text_backbone=str(text_folder), vision_backbone=str(tmp_path / "vision"))
    model, processor = load_model(recipe, ModelConfig())
    tokenizer = processor.tokenizer
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>" and tokenizer.padding_side == "left"
    result = evaluate(model.eval(), processor, clips=2, progress=False)  # which pads questions of different length
    assert result["by_kind"]


def test_a_tokenizer_that_begins_texts_is_asked_as_it_was_trained():
    tokenizer = bpe_tokenizer()
    begin = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    model, processor = small_model(tokenizer)
    read = []
    model.register_forward_pre_hook(lambda module, args, inputs: read.append(inputs["input_ids"]), with_kwargs=True)
    evaluate(model.eval(), processor, clips=1, progress=False)
    first = read[0][0]
    first = first[first != tokenizer.pad_token_id]
    assert first[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_a_package_can_carry_the_text_model(tmp_path, monkeypatch):
    (tmp_path / "some_llm").mkdir()
    (tmp_path / "some_llm" / "__init__.py").write_text("raise ImportError('what it needs itself is not there')")
    assert not text_source("some_llm")[1]
    (tmp_path / "some_llm" / "small.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert text_source("some_llm") == (str(tmp_path / "some_llm"), {"gguf_file": "small.gguf"})
    assert text_source(str(tmp_path / "some_llm")) == (str(tmp_path / "some_llm"), {"gguf_file": "small.gguf"})
    (tmp_path / "some_llm" / "large.gguf").touch()
    with pytest.raises(ValueError, match="holds several models, name the file of one: large.gguf, small.gguf"):
        text_source("some_llm")
    one = str(tmp_path / "some_llm" / "large.gguf")
    assert text_source(one) == (str(tmp_path / "some_llm"), {"gguf_file": "large.gguf"})
    assert text_source("gpt2") == ("gpt2", {}) and text_source("me/some_llm") == ("me/some_llm", {})
    assert text_source("json") == ("json", {})  # a package, but without a model


def test_a_package_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match="text_backbone: neither a package nor a folder some_llm is here"):
        load_model(ModelRecipe(text_backbone="some_llm"), ModelConfig())
    (tmp_path / "some_llm").mkdir()
    (tmp_path / "some_llm" / "config.json").write_text(json.dumps({}))
    with pytest.raises((OSError, ValueError)) as error:
        load_model(ModelRecipe(text_backbone="./some_llm"), ModelConfig())
    assert "neither a package" not in str(error.value)
