import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig

REJECTED = (StrictDataclassClassValidationError, StrictDataclassFieldValidationError, ValueError)


def test_defaults_are_the_published_size_made_streamable():
    config = StreamFormerConfig()
    assert (config.image_size, config.patch_size, config.num_frames) == (224, 16, 16)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (768, 12, 12)
    assert (config.hidden_act, config.layer_norm_eps, config.lora_rank) == ("gelu", 1e-6, 32)
    assert config.enable_causal_temporal
    assert (config.temporal_position, config.time_embedding_policy, config.sliding_window) == ("rotary", "clamp", None)


def test_round_trip(tmp_path):
    config = StreamFormerConfig(
        temporal_position="learned", time_embedding_policy="stretch", sliding_window=7, lora_rank=0
    )
    config.save_pretrained(tmp_path)
    loaded = StreamFormerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.model_type == "streamformer"
    assert loaded.sliding_window == 7


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"hidden_size": 70}, "num_attention_heads"),
        ({"image_size": 225}, "patch_size"),
        ({"num_frames": 0}, "num_frames"),
        ({"lora_rank": -1}, "lora_rank"),
        ({"hidden_size": 36}, "even"),
        ({"temporal_position": "sinus"}, "temporal_position"),
        ({"time_embedding_policy": "repeat"}, "time_embedding_policy"),
        ({"time_embedding_policy": "stretch"}, "learned"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"sliding_window": 4, "enable_causal_temporal": False}, "enable_causal_temporal"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong, named):
    with pytest.raises(REJECTED) as error:
        StreamFormerConfig(**wrong)
    assert named in f"{error.value} {error.value.__cause__}"


def test_an_odd_head_size_is_fine_without_rotation():
    assert StreamFormerConfig(hidden_size=36, temporal_position="learned").hidden_size == 36
