"""Configuration of StreamBridge's activation model: a small video language model that scores every frame."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_streamformer import StreamFormerConfig

_QWEN2_05B = {
    "vocab_size": 151936,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
_SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}


@strict
class StreamBridgeActivationConfig(PreTrainedConfig):
    """Configuration of [`StreamBridgeActivationModel`] (Wang et al., NeurIPS 2025, section 3.2.3).

    Defaults are the paper's: the backbones of LLaVA-OneVision 0.5B, 16 visual tokens a frame at one frame per second,
    a threshold of 0.35. Ids are those of Qwen2's tokenizer; for another one `VideoLLMOnlineProcessor.token_ids()`
    gives them.

    Args:
        vision_config: vision tower, a `siglip_vision_model` (default), `clip_vision_model` or `streamformer`
            configuration.
        text_config: language model, a `qwen2` (default), `llama` or any other decoder that `AutoModel` knows.
        frame_token_cls: a frame's first token is its pooled feature.
        frame_token_pooled: `[rows, columns]` of further tokens, the grid of patches averaged down to that size;
            `None`: none.
        v_placeholder_id: id of `<v>`, which stands where a frame's tokens and its `<ACT>` go. It may lie outside the
            vocabulary: it is never embedded.
        eos_token_id: ends an answer.
        stream_start_ids: tokens that open a run of frames.
        response_start_ids: tokens that close a run of frames and begin an answer.
        threshold: it is time to answer if the score of the newest frame is at least this (alpha).
        frame_fps: frames per second the model is trained on.
        max_context: tokens a stream keeps; `None`: `text_config.max_position_embeddings`.

    Raises:
        ValueError: if a frame would have no visual token, an id lies outside the vocabulary, a number is out of its
            range, or the vision tower is of another type.
    """

    model_type = "streambridge_activation"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="siglip_vision_model", init_kwargs=_SIGLIP_SO400M
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2", init_kwargs=_QWEN2_05B),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    frame_token_cls: bool = False
    frame_token_pooled: list[int] | tuple[int, ...] | None = (4, 4)
    v_placeholder_id: int = 151646
    eos_token_id: int = 151645
    stream_start_ids: list[int] | tuple[int, ...] = (198, 58)
    response_start_ids: list[int] | tuple[int, ...] = (921, 71703, 25)
    threshold: float | int = 0.35
    frame_fps: float | int = 1.0
    max_context: int | None = None

    def __post_init__(self, **kwargs):
        # As remote code, the Auto classes do not know our own model type.
        if isinstance(self.vision_config, dict) and self.vision_config.get("model_type") == "streamformer":
            self.vision_config = StreamFormerConfig(**self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def frame_num_tokens(self) -> int:
        """Places of a frame among the tokens: K visual tokens and one `<ACT>`."""
        rows, columns = self.frame_token_pooled or (0, 0)
        return int(self.frame_token_cls) + rows * columns + 1

    @property
    def frame_token_interval_id(self) -> None:
        """No token stands between frames: `<ACT>` already does."""
        return None

    def validate_architecture(self):
        """Checks that the numbers fit each other."""
        super().validate_architecture()
        kinds = ("siglip_vision_model", "clip_vision_model", "streamformer")
        if self.vision_config.model_type not in kinds:
            raise ValueError(
                f"vision_config.model_type={self.vision_config.model_type!r} must be one of {', '.join(kinds)}"
            )
        if self.frame_token_pooled is not None and (
            len(self.frame_token_pooled) != 2 or min(self.frame_token_pooled) < 1
        ):
            raise ValueError(f"frame_token_pooled={self.frame_token_pooled} must be [rows, columns] or None")
        if self.frame_num_tokens == 1:
            raise ValueError(
                "a frame needs a visual token: set frame_token_cls=True or frame_token_pooled=[rows, columns]"
            )
        vocabulary = self.text_config.vocab_size
        for name in ("eos_token_id", "stream_start_ids", "response_start_ids"):
            value = getattr(self, name)
            tokens = value if isinstance(value, list | tuple) else [value]
            if not all(0 <= token < vocabulary for token in tokens):
                raise ValueError(
                    f"{name}={value} lies outside the text model's vocabulary of {vocabulary}: "
                    "give the ids of its tokenizer, VideoLLMOnlineProcessor.token_ids()"
                )
        if self.frame_fps <= 0 or not 0 <= self.threshold <= 1:
            raise ValueError(f"frame_fps={self.frame_fps} must be positive, threshold={self.threshold} within 0 and 1")
        if self.max_context is not None and self.max_context < 1:
            raise ValueError(f"max_context={self.max_context} must be positive or None")


StreamBridgeActivationConfig.register_for_auto_class()
