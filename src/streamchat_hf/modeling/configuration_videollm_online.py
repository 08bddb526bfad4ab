"""VideoLLM-online configuration: a language model, a vision tower, and the tokens that stand for frames."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_streamformer import StreamFormerConfig

_LLAMA_3_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 128000,
    "eos_token_id": 128009,
}
_SIGLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
}


@strict
class VideoLLMOnlineConfig(PreTrainedConfig):
    """Configuration of [`VideoLLMOnlineForConditionalGeneration`] (Chen et al., CVPR 2024, section 3).

    Defaults of both backbones and of all token ids are Llama 3's and SigLIP large's, as in the published model; with
    another tokenizer, `VideoLLMOnlineProcessor.token_ids()` gives the ids.

    Args:
        vision_config: vision tower, a `siglip_vision_model` (default), `clip_vision_model` or `streamformer`
            configuration.
        text_config: language model, a `llama` (default), `qwen2` or any other decoder that `AutoModelForCausalLM`
            knows.
        frame_token_cls: a frame's first token is its pooled feature.
        frame_token_pooled: `[rows, columns]` of further tokens, the grid of patches averaged down to that size;
            `None`: none.
        v_placeholder_id: id of `<v>`, which stands where a frame's tokens go. It may lie outside the vocabulary: it is
            never embedded nor predicted.
        frame_token_interval_id: token between two frames; `None`: none.
        eos_token_id: ends an answer. Without a token between frames it also means silence.
        stream_start_ids: tokens that open a run of frames.
        response_start_ids: tokens that close a run of frames and begin an answer.
        stream_loss_weight: weight of what is learned at frames, against 1 of text (w of equation 5).
        silence_threshold: a frame passes in silence if the silence token is at least this probable; 0: if it is the
            most probable token.
        frame_fps: frames per second the model is trained on.
        max_context: tokens a stream keeps; `None`: `text_config.max_position_embeddings`.

    Raises:
        ValueError: if a frame would have no token, an id lies outside the vocabulary, a number is out of its range, or
            the vision tower is of another type.
    """

    model_type = "videollm_online"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(
            config_class=AutoConfig, model_type="siglip_vision_model", init_kwargs=_SIGLIP_LARGE
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama", init_kwargs=_LLAMA_3_8B),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    frame_token_cls: bool = True
    frame_token_pooled: list[int] | tuple[int, ...] | None = None
    v_placeholder_id: int = 128256
    frame_token_interval_id: int | None = None
    eos_token_id: int = 128009
    stream_start_ids: list[int] | tuple[int, ...] = (198, 58)
    response_start_ids: list[int] | tuple[int, ...] = (933, 72803, 25)
    stream_loss_weight: float | int = 1.0
    silence_threshold: float | int = 0.725
    frame_fps: float | int = 2.0
    max_context: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        # As remote code, the Auto classes do not know our own model type.
        if isinstance(self.vision_config, dict) and self.vision_config.get("model_type") == "streamformer":
            self.vision_config = StreamFormerConfig(**self.vision_config)
        super().__post_init__(**kwargs)

    @property
    def frame_num_tokens(self) -> int:
        """Tokens of a frame, K."""
        rows, columns = self.frame_token_pooled or (0, 0)
        return int(self.frame_token_cls) + rows * columns

    @property
    def silence_token_id(self) -> int:
        """The token that a frame's last position predicts where there is nothing to say."""
        return self.eos_token_id if self.frame_token_interval_id is None else self.frame_token_interval_id

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
        if self.frame_num_tokens == 0:
            raise ValueError("a frame needs a token: set frame_token_cls=True or frame_token_pooled=[rows, columns]")
        vocabulary = self.text_config.vocab_size
        for name in ("eos_token_id", "frame_token_interval_id", "stream_start_ids", "response_start_ids"):
            value = getattr(self, name)
            tokens = value if isinstance(value, list | tuple) else [value]
            if not all(token is None or 0 <= token < vocabulary for token in tokens):
                raise ValueError(
                    f"{name}={value} lies outside the text model's vocabulary of {vocabulary}: "
                    "give the ids of its tokenizer, VideoLLMOnlineProcessor.token_ids()"
                )
        if self.frame_fps <= 0 or self.stream_loss_weight < 0 or not 0 <= self.silence_threshold <= 1:
            raise ValueError(
                f"frame_fps={self.frame_fps} must be positive, stream_loss_weight={self.stream_loss_weight} not "
                f"negative, silence_threshold={self.silence_threshold} within 0 and 1"
            )
        if self.max_context is not None and self.max_context < 1:
            raise ValueError(f"max_context={self.max_context} must be positive or None")


VideoLLMOnlineConfig.register_for_auto_class()
