"""StreamFormer configuration."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class StreamFormerConfig(PreTrainedConfig):
    """Configuration of [`StreamFormerModel`] (Yan et al., 2504.20041), base size by default.

    Args:
        image_size: side in pixels of the square frames that the stored position embeddings are for. Frames of any
            other size and shape work: the embeddings are interpolated.
        patch_size: side of a square patch in pixels.
        num_channels: colour channels of a frame.
        num_frames: number of learned time embeddings; no limit to the length of a video.
        hidden_size: width D of a token.
        num_hidden_layers: number of blocks.
        num_attention_heads: heads of every attention.
        intermediate_size: width of the MLPs.
        hidden_act: activation of the MLPs.
        hidden_dropout_prob: dropout of embeddings and of the output of every attention and MLP.
        attention_probs_dropout_prob: dropout of attention weights.
        initializer_range: standard deviation of fresh weights.
        layer_norm_eps: epsilon of the layer norms.
        qkv_bias: give the query, key and value projections a bias.
        enable_causal_temporal: a frame attends to itself and to earlier frames. `False`: to all frames of a clip,
            which cannot be streamed.
        temporal_position: `"rotary"` over the absolute frame index in the temporal attention, or `"learned"`, the
            authors' embeddings, which their weights need.
        temporal_rope_theta: base of the rotary frequencies.
        time_embedding_policy: learned embeddings beyond `num_frames`: `"clamp"` repeats the last one, `"stretch"`
            stretches all of them over the clip as the authors do, which cannot be streamed.
        sliding_window: how many frames a frame attends to over time, itself included; `None`: all.
        lora_rank: rank of the LoRA beside the projections of the spatial attention; 0: none.
        use_pooling_head: build the head that summarises each frame; without it `pooler_output` is `None`.
        transposed_position_grid: exchange rows and columns of interpolated position embeddings as the authors'
            code does; it matters for frames that are not square.
        fold_temporal_projection: the temporal projection and gate are folded into the output projection of the
            temporal attention; set by [`StreamFormerModel.fold_temporal_projection`].

    Raises:
        ValueError: if sizes do not divide, or options exclude each other.
    """

    model_type = "streamformer"
    base_config_key = "vision_config"
    keys_to_ignore_at_inference = ["past_key_values"]

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    enable_causal_temporal: bool = True
    temporal_position: Literal["rotary", "learned"] = "rotary"
    temporal_rope_theta: float | int = 10000.0
    time_embedding_policy: Literal["clamp", "stretch"] = "clamp"
    sliding_window: int | None = None
    lora_rank: int = 32
    use_pooling_head: bool = True
    transposed_position_grid: bool = False
    fold_temporal_projection: bool = False

    def validate_architecture(self):
        """Checks that the numbers fit each other."""
        super().validate_architecture()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.num_frames < 1 or self.lora_rank < 0:
            raise ValueError(
                f"num_frames={self.num_frames} must be at least 1 and lora_rank={self.lora_rank} at least 0"
            )
        if self.temporal_position == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                f"rotary positions need an even head size, not {self.hidden_size // self.num_attention_heads}"
            )
        if self.time_embedding_policy == "stretch" and self.temporal_position != "learned":
            raise ValueError("time_embedding_policy='stretch' needs temporal_position='learned'")
        if self.sliding_window is not None:
            if self.sliding_window < 1:
                raise ValueError(f"sliding_window={self.sliding_window} must be at least 1 or None")
            if not self.enable_causal_temporal:
                raise ValueError("sliding_window needs enable_causal_temporal=True")


StreamFormerConfig.register_for_auto_class()
