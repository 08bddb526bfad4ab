import pytest
from huggingface_hub.errors import StrictDataclassError

from streamchat_hf import VideoLLMOnlineConfig
from videollm_online_helpers import END, INTERVAL, tiny_config


def test_defaults_are_the_published_models_backbones():
    config = VideoLLMOnlineConfig()
    text, vision = config.text_config, config.vision_config
    assert (text.model_type, text.vocab_size, text.hidden_size, text.rope_parameters["rope_theta"]) == (
        *("llama", 128256, 4096),
        500000.0,
    )
    assert (vision.model_type, vision.hidden_size, vision.image_size // vision.patch_size) == (
        "siglip_vision_model",
        1024,
        24,
    )
    assert config.eos_token_id == text.eos_token_id == 128009


@pytest.mark.parametrize(
    "cls, pooled, tokens", [(True, None, 1), (True, [3, 3], 10), (False, [3, 3], 9), (True, (1, 2), 3)]
)
def test_tokens_of_a_frame(cls, pooled, tokens):
    assert tiny_config(frame_token_cls=cls, frame_token_pooled=pooled).frame_num_tokens == tokens


def test_the_silence_token_is_the_interval_or_the_end():
    assert tiny_config().silence_token_id == INTERVAL
    assert tiny_config(frame_token_interval_id=None).silence_token_id == END


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model", "streamformer"])
@pytest.mark.parametrize("text", ["llama", "qwen2", "mistral"])
def test_saved_equals_loaded(tmp_path, vision, text):
    config = tiny_config(vision=vision, text=text, stream_loss_weight=2, max_context=64)
    config.save_pretrained(tmp_path)
    loaded = VideoLLMOnlineConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.vision_config.model_type, loaded.text_config.model_type) == (vision, text)
    assert loaded.get_text_config() is loaded.text_config


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("a frame needs a token", {"frame_token_cls": False, "frame_token_pooled": None}),
        (r"must be \[rows, columns\] or None", {"frame_token_pooled": [3]}),
        (r"must be \[rows, columns\] or None", {"frame_token_pooled": [3, 0]}),
        ("eos_token_id=61 lies outside the text model's vocabulary of 61", {"eos_token_id": 61}),
        ("frame_token_interval_id=99 lies outside", {"frame_token_interval_id": 99}),
        (r"response_start_ids=\(933, 72803, 25\) lies outside", {"response_start_ids": (933, 72803, 25)}),
        (r"stream_start_ids=\[-1\] lies outside", {"stream_start_ids": [-1]}),
        ("stream_loss_weight=-1 not negative", {"stream_loss_weight": -1}),
        ("silence_threshold=2 within 0 and 1", {"silence_threshold": 2}),
        ("frame_fps=0 must be positive", {"frame_fps": 0}),
        ("max_context=0 must be positive or None", {"max_context": 0}),
        ("'siglip2_vision_model' must be one of siglip_vision_model, clip", {"vision": "siglip2_vision_model"}),
    ],
)
def test_what_does_not_fit_is_refused(message, changes):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        tiny_config(**changes)
