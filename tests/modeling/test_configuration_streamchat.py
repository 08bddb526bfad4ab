"""StreamChatConfig: defaults, round trip, and every refusal."""

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import AutoConfig

from streamchat_helpers import tiny_config
from streamchat_hf import StreamChatConfig


def test_defaults():
    config = StreamChatConfig()
    assert config.vision_config.model_type == "streamformer"
    assert config.text_config.model_type == "qwen2"
    assert config.visual_window == 32 and config.gate == "linear" and config.gate_init == 0.1
    assert config.share_cross_attention and config.visual_ffn


@pytest.mark.parametrize("layers, chosen", [(28, [3, 7, 11, 15, 19, 23, 27]), (30, [3, 7, 11, 15, 19, 23, 27, 29])])
def test_every_fourth_layer_and_the_last(layers, chosen):
    assert StreamChatConfig(text_config={"num_hidden_layers": layers}).cross_attention_layers == chosen


@pytest.mark.parametrize("vision", ["streamformer", "siglip_vision_model"])
def test_json_round_trip(tmp_path, vision):
    config = tiny_config(vision=vision, gate="tanh", visual_pooling=2)
    config.save_pretrained(tmp_path)
    for loaded in (StreamChatConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert {**loaded.to_dict(), "_name_or_path": ""} == StreamChatConfig.from_dict(config.to_dict()).to_dict()
        assert loaded.vision_config.model_type == vision
        assert loaded.get_text_config(decoder=True).vocab_size == 61


@pytest.mark.parametrize(
    "change, message",
    [
        ({"cross_attention_layers": [4]}, r"cross_attention_layers=\[4\].*4 layers"),
        ({"cross_attention_layers": []}, "at least one"),
        ({"gate": "sigmoid"}, "gate='sigmoid'"),
        ({"visual_window": 0}, "visual_window=0"),
        ({"visual_pooling": 0}, "visual_pooling=0"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        tiny_config(**change)
