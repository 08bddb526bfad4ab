"""StreamChat: Qwen2.5 that looks at a video through cross-attention (Liu et al., 2412.08646, section 2.1).

Letters: B text rows, S streams, L text tokens, T frames, N visual tokens per frame, M = T * N, D hidden size,
K key/value heads, d head dimension.
"""

import torch
from torch import nn
from transformers import AutoModel, DynamicCache, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.qwen2.modeling_qwen2 import (
    Qwen2Attention,
    Qwen2PreTrainedModel,
    Qwen2RMSNorm,
    Qwen2RotaryEmbedding,
)
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .backbones_streamchat import copy_backbones, load_text_backbone, load_vision_backbone
from .configuration_streamchat import StreamChatConfig
from .generation_streamchat import StreamingGenerationMixin
from .layers_streamchat import StreamChatDecoderLayer, VisualContext
from .modeling_streamformer import StreamFormerModel
from .rotary_streamchat import rotary_angles, text_index_3d, visual_index_3d
from .timeline_streamchat import NEVER, timeline


class StreamChatProjector(nn.Module):
    """Two-layer GELU MLP from the vision tower's width to the text model's."""

    def __init__(self, vision_size: int, text_size: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_size, text_size)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(text_size, text_size)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """`(..., vision_size)` to `(..., text_size)`."""
        return self.linear_2(self.act(self.linear_1(features)))


class StreamChatTextModel(Qwen2PreTrainedModel):
    """Qwen2.5's layers, each taking the visual tokens along."""

    _no_split_modules = ["StreamChatDecoderLayer"]
    _can_record_outputs = {"hidden_states": StreamChatDecoderLayer, "attentions": Qwen2Attention}

    def __init__(self, config: StreamChatConfig):
        text = config.text_config
        super().__init__(text)
        self.embed_tokens = nn.Embedding(text.vocab_size, text.hidden_size, text.pad_token_id)
        self.layers = nn.ModuleList([StreamChatDecoderLayer(config, i) for i in range(text.num_hidden_layers)])
        self.norm = Qwen2RMSNorm(text.hidden_size, eps=text.rms_norm_eps)
        self.rotary_emb = Qwen2RotaryEmbedding(config=text)
        self.has_sliding_layers = "sliding_attention" in text.layer_types
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if hasattr(module, "gate_init"):
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("_gate"):
                    init.constant_(parameter, module.gate_init)

    @property
    def cross_layers(self) -> list[StreamChatDecoderLayer]:
        """The chosen layers, in order."""
        return [layer for layer in self.layers if layer.cross_attn is not None]

    def visual_rows(self, visual_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys (not rotated) and values of visual tokens `(S, M, D)` at every chosen layer: `(layers, S, K, M, d)`."""
        keys, values, device = [], [], visual_states.device
        for layer in self.cross_layers:
            (layer_keys, layer_values), visual_states = layer(None, visual_states)
            keys.append(layer_keys.to(device))  # layers may lie on several devices
            values.append(layer_values.to(device))
        return torch.stack(keys), torch.stack(values)

    def angles(self, index: torch.LongTensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines `(..., d)` of three-component indices `(..., 3)`."""
        return rotary_angles(index, self.rotary_emb.inv_freq, self.rotary_emb.attention_scaling, dtype)

    def forward(
        self,
        inputs_embeds,
        attention_mask,
        position_ids,
        mask_position_ids,
        past_key_values,
        visual,
        context,
        **kwargs,
    ) -> torch.Tensor:
        """Text `(B, L, D)` to `(B, L, D)`; with a `context`, beside visual tokens `(S, M, D)` or cached rows."""
        mask_arguments = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "position_ids": mask_position_ids,
        }
        masks = attention_mask
        if not isinstance(attention_mask, dict):
            masks = {"full_attention": create_causal_mask(**mask_arguments)}
            if self.has_sliding_layers:
                masks["sliding_attention"] = create_sliding_window_causal_mask(**mask_arguments)
        if context is None:
            rotary = self.rotary_emb(inputs_embeds, position_ids)
        else:
            rotary = self.angles(text_index_3d(position_ids), inputs_embeds.dtype)

        hidden_states, cross_layer = inputs_embeds, 0
        for i, layer in enumerate(self.layers):
            cached = None
            if layer.cross_attn is not None and context is not None and context.keys is not None:
                cached = (context.keys[cross_layer], context.values[cross_layer])
                cross_layer += 1
            hidden_states, visual = layer(
                hidden_states,
                visual,
                context,
                cached,
                position_embeddings=rotary,
                attention_mask=masks[self.config.layer_types[i]],
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return self.norm(hidden_states)


class StreamChatPreTrainedModel(PreTrainedModel):
    """What every StreamChat model shares: configuration, initialisation, capabilities."""

    config: StreamChatConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["StreamChatDecoderLayer", "StreamFormerLayer", "SiglipEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": StreamChatDecoderLayer, "attentions": Qwen2Attention}


class StreamChatModel(StreamChatPreTrainedModel):
    """The base model: text and video in, text hidden states out."""

    def __init__(self, config: StreamChatConfig):
        super().__init__(config)
        # Not through AutoModel: as remote code, the Auto classes do not know our own model type.
        if config.vision_config.model_type == "streamformer":
            self.vision_tower = StreamFormerModel._from_config(config.vision_config)
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        # The pooling head summarises a frame; the talker reads patches, so nothing would ever train it here.
        for name, module in self.vision_tower.named_modules():
            if name == "head" or name.endswith(".head"):
                module.requires_grad_(False)
        self.projector = StreamChatProjector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = StreamChatTextModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text embedding."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the text embedding."""
        self.language_model.embed_tokens = value

    def visual_grid(self, pixel_values_videos: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of visual tokens of a frame of `(..., C, H, W)` pixels."""
        side = self.config.vision_config.patch_size * self.config.visual_pooling
        return pixel_values_videos.shape[-2] // side, pixel_values_videos.shape[-1] // side

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, vision_cache=None, use_cache: bool = False
    ) -> tuple[torch.Tensor, object]:
        """Visual tokens of frames.

        Args:
            pixel_values_videos: `(S, T, C, H, W)` normalised frames.
            vision_cache: the vision tower's state after the frames before these; only StreamFormer keeps one.
            use_cache: return that state.

        Returns:
            `(S, T, N, D)` projected visual tokens, and the state or `None`.
        """
        streams, frames = pixel_values_videos.shape[:2]
        pixels = pixel_values_videos.to(self.dtype)
        if self.config.vision_config.model_type == "streamformer":
            output = self.vision_tower(pixels, past_key_values=vision_cache, use_cache=use_cache)
            features, vision_cache = output.last_hidden_state, output.past_key_values
        else:  # (S, T, C, H, W) -> (S*T, C, H, W) -> (S*T, N, D_v) -> (S, T, N, D_v)
            features = self.vision_tower(pixels.flatten(0, 1)).last_hidden_state.unflatten(0, (streams, frames))
        return self.projector(self._pool(features, pixels)), vision_cache

    def _pool(self, features: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        side = self.config.visual_pooling
        if side == 1:
            return features
        rows, columns = (size * side for size in self.visual_grid(pixels))
        # (S, T, N, D_v) -> (S*T, D_v, rows, columns) -> averaged -> (S, T, N / side^2, D_v)
        grid = features.flatten(0, 1).transpose(1, 2).unflatten(2, (rows, columns))
        pooled = nn.functional.avg_pool2d(grid, side)
        return pooled.flatten(2).transpose(1, 2).unflatten(0, features.shape[:2])

    @torch.no_grad()
    def frame_rows(self, pixel_values: torch.Tensor, vision_cache=None):
        """Everything a decoding step will need of new frames of one stream, computed once, when they arrive.

        Args:
            pixel_values: `(T, C, H, W)` normalised frames.
            vision_cache: the vision tower's state after the frames before these.

        Returns:
            Keys (not rotated) and values `(T, layers, K, N, d)`, and the vision tower's new state.
        """
        visual, vision_cache = self.get_video_features(
            pixel_values[None], vision_cache, use_cache=self.config.vision_config.model_type == "streamformer"
        )
        frames = visual.shape[1]
        keys, values = self.language_model.visual_rows(visual.flatten(1, 2))  # (layers, 1, K, T*N, d)
        split = (frames, -1)
        keys, values = (rows[:, 0].unflatten(2, split).permute(2, 0, 1, 3, 4) for rows in (keys, values))
        return keys, values, vision_cache

    def _whole_context(self, visual, grid, token_times, frame_times, turn_starts, attention_mask):
        """Positions and visibility of a whole sequence: `position_ids (B, L)` and the context of its frames."""
        text_index, frame_index, seen = timeline(token_times, frame_times, turn_starts, attention_mask)
        frame = torch.arange(frame_times.shape[1], device=seen.device)
        visible = (frame < seen[..., None]) & (frame >= seen[..., None] - self.config.visual_window)  # (B, L, T)
        any_visible = visible.any(-1, keepdim=True)  # (B, L, 1)
        # A softmax over nothing is never taken: rows that see nothing look everywhere, and their result is dropped.
        mask = (visible | ~any_visible).repeat_interleave(grid[0] * grid[1], dim=-1)[:, None]  # (B, 1, L, M)
        index = visual_index_3d(frame_index, *grid).flatten(1, 2)  # (B, M, 3)
        cos, sin = self.language_model.angles(index, visual.dtype)
        return text_index, VisualContext(mask, any_visible, rotary=(cos[:, None], sin[:, None]))

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        token_times: torch.LongTensor | None = None,
        frame_times: torch.LongTensor | None = None,
        turn_starts: torch.BoolTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Runs a whole sequence with its video, or a step of a stream whose video is in the cache.

        Args:
            input_ids: `(B, L)` tokens, or `inputs_embeds (B, L, D)`.
            attention_mask: `(B, past + L)`, 0 for padding.
            position_ids: `(B, L)` positions of the text. Default: those of a streaming cache's timeline, else counted.
            past_key_values: a [`StreamingCache`] brings the frames of its streams; any other cache holds text alone.
            pixel_values_videos: `(B, T, C, H, W)` frames of a whole sequence. Excludes a cache.
            token_times: `(B, L)` int64 milliseconds when each token is spoken. Default: after the last frame.
            frame_times: `(B, T)` int64 milliseconds; padded frames hold the largest int64. Default: one per second.
            turn_starts: `(B, L)` bool, first token of each turn the model did not speak. Default: one turn.
            use_cache: return the cache; never with `pixel_values_videos`, use `generate(frames=...)` to go on.

        Raises:
            ValueError: if inputs contradict each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        visual, context, mask_position_ids = None, None, position_ids
        use_cache = self.config.text_config.use_cache if use_cache is None else use_cache

        if pixel_values_videos is not None:
            if past_key_values is not None:
                raise ValueError("pixel_values_videos is for whole sequences; give a stream's frames to generate()")
            use_cache = False
            frame_times, token_times = self._default_times(
                pixel_values_videos, frame_times, token_times, inputs_embeds.shape[:2]
            )
            features, _ = self.get_video_features(pixel_values_videos)
            visual = features.flatten(1, 2)  # (B, T, N, D) -> (B, M, D)
            position_ids, context = self._whole_context(
                visual, self.visual_grid(pixel_values_videos), token_times, frame_times, turn_starts, attention_mask
            )
        elif getattr(past_key_values, "is_streaming", False):
            if position_ids is None:
                position_ids = past_key_values.read_tokens(inputs_embeds, attention_mask)
            mask_position_ids = None  # they jump where a turn starts
            context = past_key_values.visual_context(inputs_embeds.shape[0])
        else:
            if use_cache and past_key_values is None:
                past_key_values = DynamicCache(config=self.config.text_config)
            if position_ids is None:
                past = past_key_values.get_seq_length() if past_key_values is not None else 0
                position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past)[None]
                mask_position_ids = position_ids

        hidden_states = self.language_model(
            inputs_embeds, attention_mask, position_ids, mask_position_ids, past_key_values, visual, context, **kwargs
        )
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states, past_key_values=past_key_values if use_cache else None
        )

    @staticmethod
    def _default_times(pixel_values_videos, frame_times, token_times, text_shape):
        device = pixel_values_videos.device
        if frame_times is None:
            frame_times = torch.arange(pixel_values_videos.shape[1], device=device) * 1000
            frame_times = frame_times.expand(pixel_values_videos.shape[0], -1)
        if frame_times.shape != pixel_values_videos.shape[:2]:
            raise ValueError(
                f"frame_times has shape {tuple(frame_times.shape)} but pixel_values_videos brings "
                f"{tuple(pixel_values_videos.shape[:2])} (batch, frames)"
            )
        if token_times is None:
            last = torch.where(frame_times == NEVER, 0, frame_times).amax(1, keepdim=True)
            token_times = last.expand(text_shape)
        if frame_times.is_floating_point() or token_times.is_floating_point():
            raise ValueError("frame_times and token_times are int64 milliseconds, not floating point")
        return frame_times, token_times


class StreamChatForConditionalGeneration(StreamChatPreTrainedModel, StreamingGenerationMixin):
    """StreamChat with a language model head, and `generate(frames=...)`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: StreamChatConfig):
        super().__init__(config)
        self.model = StreamChatModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_backbones(cls, text, vision, **config):
        """Builds a talker from a text model and a vision tower, gates small, V-FFNs copied from the FFNs.

        Args:
            text: folder, Hub id or loaded Qwen2, Qwen2.5 or Llama-shaped model (Llama becomes Qwen2 with zero biases).
                It may be a GGUF file, or a folder with a single one.
            vision: folder, Hub id or loaded StreamFormer, SigLIP or PaliGemma model.
            **config: further fields of [`StreamChatConfig`].

        Raises:
            ValueError: if a backbone is of another architecture.
        """
        text, text_config = load_text_backbone(text)
        vision = load_vision_backbone(vision)
        tied = getattr(text.config, "tie_word_embeddings", False)
        model = cls(
            StreamChatConfig(
                text_config=text_config, vision_config=vision.config.to_dict(), tie_word_embeddings=tied, **config
            )
        ).to(text.dtype)
        copy_backbones(model, text, vision)
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        token_times: torch.LongTensor | None = None,
        frame_times: torch.LongTensor | None = None,
        turn_starts: torch.BoolTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As [`StreamChatModel.forward`], with logits.

        Args:
            labels: `(B, L)` tokens to predict, unshifted, -100 where there is nothing to learn.
            logits_to_keep: compute only the last so many logits, 0 for all.

        Returns:
            `loss` with labels (mean cross-entropy of the next token), `logits (B, L, vocabulary)`, `past_key_values`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            token_times=token_times,
            frame_times=frame_times,
            turn_starts=turn_starts,
            use_cache=use_cache,
            **{key: value for key, value in kwargs.items() if key != "num_items_in_batch"},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=kwargs.get("num_items_in_batch"),
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and code, so that all four Auto classes below load the class that has `generate`."""
        reference = "modeling_streamchat.StreamChatForConditionalGeneration"
        automatic = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            **dict.fromkeys(automatic, reference),
        }
        super().save_pretrained(save_directory, **kwargs)


StreamChatForConditionalGeneration.register_for_auto_class("AutoModel")
