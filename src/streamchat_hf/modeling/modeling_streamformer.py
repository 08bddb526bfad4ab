"""StreamFormer: a SigLIP ViT whose blocks also attend over time, causally (Yan et al., 2504.20041, section 3.2).

Each block, on tokens x of shape (B, T, N, D):

    x <- x + tanh(g) * W_t(TemporalAttn(norm_t(x)))     # every patch position attends to its own past
    x <- x + SpatialAttn(norm_s(x))                     # every frame attends within itself
    x <- x + MLP(norm_m(x))

Letters: B streams (`1|B`: 1 where all stand at the same frame), T frames, N patches of a frame, D hidden size, H
heads, d head size (D = H * d), S frames attended to, F learned time embeddings, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .cache_streamformer import StreamFormerCache, StreamFormerStep, may_look, per_patch
from .configuration_streamformer import StreamFormerConfig


@dataclass
class StreamFormerModelOutput(ModelOutput):
    """What [`StreamFormerModel`] returns.

    Attributes:
        last_hidden_state: `(B, T, N, D)` features of every patch of every frame.
        pooler_output: `(B, T, D)` feature of every frame; that of the last frame is the global one. `None` without
            a pooling head.
        past_key_values: the streaming state, if one was given or asked for.
        hidden_states: `(B, T, N, D)` before the first and after every block, with `output_hidden_states=True`.
        attentions: `(B*T, H, N, N)` spatial weights of every block, with `output_attentions=True` and eager attention.
        temporal_attentions: `(B*N, H, T, S)` temporal weights of every block, with `output_temporal_attentions=True`
            and eager attention.
    """

    last_hidden_state: torch.FloatTensor | None = None
    pooler_output: torch.FloatTensor | None = None
    past_key_values: StreamFormerCache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    temporal_attentions: tuple[torch.FloatTensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(q k^T * scaling) v, heads second in and third out; `attention_mask` is `True` where q may look at k."""
    weights = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        weights = weights.masked_fill(~attention_mask, float("-inf"))
    weights = weights.softmax(-1).to(value.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return (weights @ value).transpose(1, 2), weights


def attend(module: nn.Module, query, key, value, mask=None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Runs the attention the configuration names: `(rows, H, length, d)` in, `(rows, length, D)` and weights out."""
    config = module.config
    attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager_attention_forward)
    if config._attn_implementation == "sdpa" and query.shape[2] == 1 and query.device.type == "cpu":
        # The blocked kernel of a CPU is made for many queries. Streams bring one per frame, and for one the plain
        # products need 0.6 of its time in float32 and 0.2 in bfloat16.
        attention = eager_attention_forward
    output, weights = attention(
        module,
        query,
        key,
        value,
        mask,
        scaling=query.shape[-1] ** -0.5,
        dropout=config.attention_probs_dropout_prob if module.training else 0.0,
        is_causal=False,  # the mask says it all
    )
    return output.flatten(2), weights


def temporal_rotation(frames: torch.Tensor, head_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary cosines and sines `(..., T, d)` float32 of absolute frame indices `(..., T)`.

    Angles are float64: in float32, neighbouring frames would blur after hours of a stream.
    """
    inv_freq = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = frames.to("cpu", torch.float64)[..., None] * inv_freq  # (..., T, d/2)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().float(), angles.sin().float()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (i, i + d/2) of `(..., T, d)` by the angles of `temporal_rotation`."""
    cos, sin = cos.to(states.dtype), sin.to(states.dtype)
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


class StreamFormerLoRALinear(nn.Linear):
    """y = W x + b + B A x: a linear layer with a low-rank update beside it (scale 1)."""

    def __init__(self, in_features: int, out_features: int, bias: bool, rank: int):
        super().__init__(in_features, out_features, bias)
        self.lora_a = nn.Parameter(torch.empty(rank, in_features))
        self.lora_b = nn.Parameter(torch.empty(out_features, rank))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """`(..., in)` to `(..., out)`."""
        update = nn.functional.linear(nn.functional.linear(input, self.lora_a), self.lora_b)
        return super().forward(input) + update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The same map as one plain linear layer."""
        linear = nn.Linear(
            self.in_features, self.out_features, self.bias is not None, self.weight.device, self.weight.dtype
        )
        linear.weight.copy_(self.weight.double() + self.lora_b.double() @ self.lora_a.double())
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear


class StreamFormerTemporalAttention(nn.Module):
    """Every patch position attends to itself in the frames it may see."""

    def __init__(self, config: StreamFormerConfig, layer: int):
        super().__init__()
        self.config = config
        self.layer = layer
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states, mask=None, rotation=None, step=None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(B, T, N, D)` to the same shape, and weights `(B*N, H, T, S)` if the attention gives any."""
        streams, _, patches, _ = hidden_states.shape
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.config.num_attention_heads, -1))
        # (B, T, N, 3, H, d) -> (3, B*N, H, T, d)
        qkv = qkv.permute(3, 0, 2, 4, 1, 5).flatten(1, 2)
        query_key, value = qkv[:2], qkv[2]
        if rotation is not None:
            query_key = rotate(query_key, *rotation)
        query, key = query_key
        if step is not None:
            key, value = step.update(key, value, self.layer)
        output, weights = attend(self, query, key, value, mask)
        # (B*N, T, D) -> (B, T, N, D)
        output = output.unflatten(0, (streams, patches)).transpose(1, 2)
        return self.dropout(self.out_proj(output)), weights


class StreamFormerSpatialAttention(nn.Module):
    """Every patch attends to all patches of its frame."""

    def __init__(self, config: StreamFormerConfig):
        super().__init__()
        self.config = config
        size, rank = config.hidden_size, config.lora_rank
        if rank:
            self.qkv = StreamFormerLoRALinear(size, 3 * size, config.qkv_bias, rank)
            self.out_proj = StreamFormerLoRALinear(size, size, True, rank)
        else:
            self.qkv = nn.Linear(size, 3 * size, bias=config.qkv_bias)
            self.out_proj = nn.Linear(size, size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """`(B, T, N, D)` to the same shape, and weights `(B*T, H, N, N)` if the attention gives any."""
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.config.num_attention_heads, -1))
        # (B, T, N, 3, H, d) -> (3, B*T, H, N, d)
        query, key, value = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)
        output, weights = attend(self, query, key, value)
        return self.dropout(self.out_proj(output.view_as(hidden_states))), weights


class StreamFormerMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: StreamFormerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(..., D)` to the same shape."""
        return self.dropout(self.fc2(self.activation(self.fc1(hidden_states))))


class StreamFormerLayer(GradientCheckpointingLayer):
    """One block: over time, over space, MLP."""

    def __init__(self, config: StreamFormerConfig, layer: int):
        super().__init__()
        self.temporal_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.temporal_attention = StreamFormerTemporalAttention(config, layer)
        self.folded = config.fold_temporal_projection
        if not self.folded:
            self.temporal_projection = nn.Linear(config.hidden_size, config.hidden_size)
            # One element and not a scalar: FSDP2 cannot shard zero dimensions.
            self.temporal_gate = nn.Parameter(torch.empty(1))
        self.spatial_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.spatial_attention = StreamFormerSpatialAttention(config)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = StreamFormerMLP(config)

    # Not named past_key_values: under gradient checkpointing the base class would drop it, and with it the stream.
    def forward(self, hidden_states: torch.Tensor, mask=None, rotation=None, step=None) -> torch.Tensor:
        """`(B, T, N, D)` to the same shape."""
        temporal, _ = self.temporal_attention(self.temporal_norm(hidden_states), mask, rotation, step)
        if not self.folded:
            temporal = self.temporal_gate.tanh() * self.temporal_projection(temporal)
        hidden_states = hidden_states + temporal
        spatial, _ = self.spatial_attention(self.spatial_norm(hidden_states))
        hidden_states = hidden_states + spatial
        return hidden_states + self.mlp(self.mlp_norm(hidden_states))


class StreamFormerEmbeddings(nn.Module):
    """Patches to tokens, with their place in the frame and, if learned, their frame in the video."""

    def __init__(self, config: StreamFormerConfig):
        super().__init__()
        self.config = config
        patch, grid = config.patch_size, config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)
        self.position_embeddings = nn.Parameter(torch.empty(grid * grid, config.hidden_size))
        if config.temporal_position == "learned":
            self.time_embeddings = nn.Parameter(torch.empty(config.num_frames, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, frame_index: torch.Tensor) -> torch.Tensor:
        """`(B, T, C, height, width)`, absolute indices of the frames `(1|B, T)`, to tokens `(B, T, N, D)`."""
        streams, frames = pixel_values.shape[:2]
        # (B, T, C, height, width) -> (B*T, D, rows, columns) -> (B, T, N, D)
        grid = self.patch_embedding(pixel_values.flatten(0, 1).to(self.patch_embedding.weight.dtype))
        tokens = grid.flatten(2).transpose(1, 2).contiguous().unflatten(0, (streams, frames))
        tokens = self.dropout(tokens + self._positions(*grid.shape[2:]))
        if self.config.temporal_position == "learned":
            tokens = self.dropout(tokens + self._times(frame_index)[:, :, None])
        return tokens

    def _positions(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings `(rows * columns, D)`."""
        side = self.config.image_size // self.config.patch_size
        if (rows, columns) == (side, side):
            return self.position_embeddings
        size = (columns, rows) if self.config.transposed_position_grid else (rows, columns)
        stored = self.position_embeddings.float().T.unflatten(1, (side, side))  # (D, side, side)
        resized = nn.functional.interpolate(stored[None], size, mode="bicubic", antialias=True)[0]
        return resized.flatten(1).T.to(self.position_embeddings.dtype)

    def _times(self, frame_index: torch.Tensor) -> torch.Tensor:
        """Time embeddings `(1|B, T, D)`."""
        stored, frames = self.time_embeddings, frame_index.shape[1]
        if self.config.time_embedding_policy == "stretch" and frames > len(stored):
            # The published weights were made with this very rounding; floor(i * F / T) differs for some lengths.
            return nn.functional.interpolate(stored.T[None], size=frames, mode="nearest").transpose(1, 2)
        return stored[frame_index.clamp(max=len(stored) - 1).to(stored.device)]


class StreamFormerPoolingHead(nn.Module):
    """SigLIP's attention pooling: a learned probe asks all patches of a frame."""

    def __init__(self, config: StreamFormerConfig):
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.probe = nn.Parameter(torch.empty(size))
        self.q_proj = nn.Linear(size, size)
        self.kv_proj = nn.Linear(size, 2 * size)
        self.out_proj = nn.Linear(size, size)
        self.norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = StreamFormerMLP(config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`(B, T, N, D)` to `(B, T, D)`."""
        streams, frames = hidden_states.shape[:2]
        heads = self.config.num_attention_heads
        # (B, T, N, 2, H, d) -> (2, B*T, H, N, d)
        key, value = self.kv_proj(hidden_states).flatten(0, 1).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        query = self.q_proj(self.probe).view(1, heads, 1, -1).expand(len(key), -1, -1, -1)
        pooled, _ = attend(self, query, key, value)
        pooled = self.out_proj(pooled).view(streams, frames, -1)
        return pooled + self.mlp(self.norm(pooled))


class StreamFormerPreTrainedModel(PreTrainedModel):
    """What every StreamFormer model shares: configuration, initialisation, capabilities."""

    config: StreamFormerConfig
    base_model_prefix = "streamformer"
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["StreamFormerEmbeddings", "StreamFormerLayer", "StreamFormerPoolingHead"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _can_record_outputs = {
        "hidden_states": StreamFormerLayer,
        "attentions": StreamFormerSpatialAttention,
        "temporal_attentions": StreamFormerTemporalAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Fresh weights: a fresh block ignores time (gate 0), and fresh LoRA changes nothing (B = 0)."""
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, StreamFormerLoRALinear):
            init.normal_(module.lora_a, std=std)
            init.zeros_(module.lora_b)
        elif isinstance(module, StreamFormerLayer) and not module.folded:
            init.zeros_(module.temporal_gate)
        elif isinstance(module, StreamFormerEmbeddings):
            init.normal_(module.position_embeddings, std=std)
            if self.config.temporal_position == "learned":
                init.normal_(module.time_embeddings, std=std)
        elif isinstance(module, StreamFormerPoolingHead):
            init.normal_(module.probe, std=std)


class StreamFormerModel(StreamFormerPreTrainedModel):
    """The backbone: frames in, features of every patch and every frame out; whole clips or streams."""

    def __init__(self, config: StreamFormerConfig):
        super().__init__(config)
        self.embeddings = StreamFormerEmbeddings(config)
        self.layers = nn.ModuleList([StreamFormerLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = StreamFormerPoolingHead(config) if config.use_pooling_head else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The patch embedding."""
        return self.embeddings.patch_embedding

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values_videos: torch.FloatTensor,
        past_key_values: StreamFormerCache | None = None,
        use_cache: bool | None = None,
        streams: Sequence[int] | torch.Tensor | None = None,
        **kwargs,
    ) -> StreamFormerModelOutput:
        """Encodes a clip, or the next frames of streams.

        Frames given one by one, in chunks of any sizes, or at once have the same features.

        Args:
            pixel_values_videos: `(B, T, C, height, width)` normalised frames, any T ≥ 1; with a cache, the frames
                that follow those it has seen.
            past_key_values: the state after the frames before these. It is advanced in place and returned. Its own
                window counts. Streaming computes no gradient.
            use_cache: start a new state, with the configuration's window, if none is given.
            streams: `(B,)` which rows of the state these frames belong to; the other rows sit this pass out. `None`:
                all of them, in order.
            **kwargs: `output_hidden_states`, `output_attentions`, `output_temporal_attentions`, `return_dict`.

        Returns:
            [`StreamFormerModelOutput`].

        Raises:
            ValueError: if the pixels have another number of dimensions or no frame, do not continue the streams, if
                streams are named without a state, or the configuration cannot be streamed.
        """
        if pixel_values_videos.ndim != 5 or pixel_values_videos.shape[1] == 0:
            raise ValueError(
                f"pixel_values_videos must be (streams, frames >= 1, channels, height, width), "
                f"not {tuple(pixel_values_videos.shape)}"
            )
        if use_cache and past_key_values is None:
            past_key_values = StreamFormerCache(self.config.sliding_window)
        if past_key_values is None and streams is not None:
            raise ValueError("streams are rows of a state: give past_key_values with them")
        step = None
        if past_key_values is not None:
            self._check_streamable()
            step = past_key_values.step(*pixel_values_videos.shape[:2], streams)
        # Rings are written in place: a gradient through them would be wrong, and keep every past frame alive.
        with torch.set_grad_enabled(torch.is_grad_enabled() and step is None):
            hidden_states = self._encode(pixel_values_videos, step)
            pooler_output = None if self.head is None else self.head(hidden_states)
        if step is not None:
            step.finish()
        return StreamFormerModelOutput(hidden_states, pooler_output, past_key_values)

    def _encode(self, pixel_values: torch.Tensor, step: StreamFormerStep | None) -> torch.Tensor:
        """Features of every patch `(B, T, N, D)`."""
        frames = torch.arange(pixel_values.shape[1])[None] if step is None else step.frames  # (1|B, T)
        hidden_states = self.embeddings(pixel_values, frames)
        device, patches = hidden_states.device, hidden_states.shape[2]
        mask = self._temporal_mask(frames) if step is None else step.mask(patches)
        mask = None if mask is None else mask.to(device)
        rotation = None
        if self.config.temporal_position == "rotary":
            head_dim = self.config.hidden_size // self.config.num_attention_heads
            rotation = temporal_rotation(frames, head_dim, self.config.temporal_rope_theta)
            rotation = tuple(per_patch(angles.to(device), patches)[:, None] for angles in rotation)  # (1|B*N, 1, T, d)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, rotation, step)
        return self.norm(hidden_states)

    def _temporal_mask(self, frames: torch.Tensor) -> torch.Tensor | None:
        """`(1, 1, T, T)` of whole clips, `True` where a frame may look; `None` if it may look everywhere."""
        if frames.shape[1] == 1 or not self.config.enable_causal_temporal:
            return None
        return may_look(frames, frames, self.config.sliding_window)[:, None]

    def _check_streamable(self) -> None:
        if not self.config.enable_causal_temporal:
            raise ValueError("enable_causal_temporal=False lets frames see the future: it cannot be streamed")
        if self.config.temporal_position == "learned" and self.config.time_embedding_policy == "stretch":
            raise ValueError("time_embedding_policy='stretch' needs the whole clip: stream with 'clamp'")

    def merge_lora(self) -> "StreamFormerModel":
        """Adds every LoRA update to the weight beside it, for good: the same features, less work. Returns `self`."""
        for layer in self.layers:
            attention = layer.spatial_attention
            if self.config.lora_rank:
                attention.qkv = attention.qkv.merged()
                attention.out_proj = attention.out_proj.merged()
        self.config.lora_rank = 0
        return self

    @torch.no_grad()
    def fold_temporal_projection(self) -> "StreamFormerModel":
        """Folds gate and temporal projection into the temporal attention's output projection, for good.

        tanh(g) (W_t (W_o z + b_o) + b_t) = W z + b: the same features, one matrix product less per block. For
        inference: a folded block has no gate to train. Returns `self`.
        """
        for layer in self.layers:
            if layer.folded:
                continue
            inner, outer, gate = layer.temporal_attention.out_proj, layer.temporal_projection, layer.temporal_gate
            gate = gate.double().tanh()
            weight = gate * (outer.weight.double() @ inner.weight.double())
            bias = gate * (outer.weight.double() @ inner.bias.double() + outer.bias.double())
            inner.weight.copy_(weight)
            inner.bias.copy_(bias)
            del layer.temporal_projection, layer.temporal_gate
            layer.folded = True
        self.config.fold_temporal_projection = True
        return self


StreamFormerModel.register_for_auto_class("AutoModel")
