"""StreamChat configuration: a text model, a vision tower, and how the one looks at the other."""

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_streamformer import StreamFormerConfig


@strict
class StreamChatConfig(PreTrainedConfig):
    """Configuration of [`StreamChatForConditionalGeneration`] (Liu et al., 2412.08646, section 2.1).

    Args:
        vision_config: vision tower, a `streamformer` (default) or `siglip_vision_model` configuration.
        text_config: language model, a `qwen2` configuration.
        cross_attention_layers: indices of the decoder layers whose text attends to visual tokens.
            `None`: every fourth layer and the last.
        share_cross_attention: the cross-attention reuses the projections and the input norm of its layer's
            self-attention, as in the paper; `False` gives it its own.
        visual_ffn: carry the visual tokens from one chosen layer to the next through a V-FFN expert.
        gate: `"linear"`, one learnable number per channel (CaiT), or `"tanh"`, the tanh of one scalar per block
            (Flamingo).
        gate_init: initial value of a linear gate; a tanh gate starts at 0.
        visual_window: how many of the newest visible frames a token attends to, in training as while streaming.
        visual_pooling: side of the square of patches averaged into one visual token; 1 keeps every patch.

    Raises:
        ValueError: if a chosen layer does not exist, the gate is unknown, or a size is not positive.
    """

    model_type = "streamchat"
    sub_configs_defaults = {
        # A class, not a name: as remote code, the Auto classes do not know our own model type.
        "vision_config": StreamFormerConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2", init_kwargs={}),
    }

    vision_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    cross_attention_layers: list[int] | tuple[int, ...] | None = None
    share_cross_attention: bool = True
    visual_ffn: bool = True
    gate: str = "linear"
    gate_init: float | int = 0.1
    visual_window: int = 32
    visual_pooling: int = 1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if isinstance(self.vision_config, dict):
            model_type = self.vision_config.get("model_type", StreamFormerConfig.model_type)
            if model_type != StreamFormerConfig.model_type:
                self.vision_config = AutoConfig.for_model(**self.vision_config)
        super().__post_init__(**kwargs)
        if self.cross_attention_layers is None:
            count = self.text_config.num_hidden_layers
            self.cross_attention_layers = [i for i in range(count) if (i + 1) % 4 == 0 or i == count - 1]
        self.cross_attention_layers = sorted(set(self.cross_attention_layers))

    def validate_architecture(self):
        """Checks that the numbers fit each other."""
        super().validate_architecture()
        layers = self.text_config.num_hidden_layers
        if not self.cross_attention_layers or not all(0 <= i < layers for i in self.cross_attention_layers):
            raise ValueError(
                f"cross_attention_layers={self.cross_attention_layers} must name at least one of the text model's "
                f"{layers} layers, counted from 0"
            )
        if self.gate not in ("linear", "tanh"):
            raise ValueError(f"gate={self.gate!r} must be 'linear' or 'tanh'")
        if self.visual_window < 1 or self.visual_pooling < 1:
            raise ValueError(
                f"visual_window={self.visual_window} and visual_pooling={self.visual_pooling} must be at least 1"
            )
        if self.text_config.model_type != "qwen2":
            raise ValueError(f"text_config.model_type={self.text_config.model_type!r} must be 'qwen2'")


StreamChatConfig.register_for_auto_class()
