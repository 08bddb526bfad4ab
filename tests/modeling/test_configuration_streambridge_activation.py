import pytest
from huggingface_hub.errors import StrictDataclassError

from activation_helpers import tiny_config
from streamchat_hf.modeling.configuration_streambridge_activation import StreamBridgeActivationConfig


def test_defaults_are_the_papers():
    """LLaVA-OneVision 0.5B's backbones, 16 visual tokens and <ACT>, alpha = 0.35, one frame per second."""
    config = StreamBridgeActivationConfig()
    text, vision = config.text_config, config.vision_config
    assert (text.model_type, text.hidden_size, text.num_hidden_layers) == ("qwen2", 896, 24)
    assert (vision.model_type, vision.hidden_size, vision.image_size // vision.patch_size) == (
        "siglip_vision_model",
        1152,
        27,
    )
    assert (config.frame_num_tokens, config.threshold, config.frame_fps) == (17, 0.35, 1.0)


@pytest.mark.parametrize("cls, pooled, places", [(True, None, 2), (True, [3, 3], 11), (False, (1, 2), 3)])
def test_a_frame_has_a_place_for_act(cls, pooled, places):
    assert tiny_config(frame_token_cls=cls, frame_token_pooled=pooled).frame_num_tokens == places


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model", "streamformer"])
@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_saved_equals_loaded(tmp_path, vision, text):
    config = tiny_config(vision=vision, text=text, threshold=0.6, max_context=64)
    config.save_pretrained(tmp_path)
    loaded = StreamBridgeActivationConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and loaded.threshold == 0.6
    assert (loaded.vision_config.model_type, loaded.text_config.model_type) == (vision, text)
    assert loaded.get_text_config() is loaded.text_config


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("a frame needs a visual token", {"frame_token_pooled": None}),
        (r"must be \[rows, columns\] or None", {"frame_token_pooled": [3, 0]}),
        ("eos_token_id=61 lies outside the text model's vocabulary of 61", {"eos_token_id": 61}),
        (r"stream_start_ids=\[-1\] lies outside", {"stream_start_ids": [-1]}),
        (r"response_start_ids=\(921, 71703, 25\) lies outside", {"response_start_ids": (921, 71703, 25)}),
        ("threshold=2 within 0 and 1", {"threshold": 2}),
        ("frame_fps=0 must be positive", {"frame_fps": 0}),
        ("max_context=0 must be positive or None", {"max_context": 0}),
        ("'siglip2_vision_model' must be one of siglip_vision_model, clip", {"vision": "siglip2_vision_model"}),
    ],
)
def test_what_does_not_fit_is_refused(message, changes):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(**changes)
