"""VideoLLM-online: a language model that reads frames between words and learns when to stay silent.

Chen et al., CVPR 2024, section 3. Letters: B conversations, L tokens, T frames, N frames of all conversations
together, K tokens of a frame, P patches of a frame, C channels, D_v width of the vision tower, H that of the language
model.
"""

import copy

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .backbones_videollm_online import load_text_backbone, load_vision_backbone
from .configuration_videollm_online import VideoLLMOnlineConfig
from .generation_videollm_online import LiveGenerationMixin
from .loss_videollm_online import streaming_loss
from .modeling_streamformer import StreamFormerModel


class VideoLLMOnlineConnector(nn.Sequential):
    """Two-layer GELU MLP from the vision tower's width to the language model's: `(..., D_v)` to `(..., H)`."""

    # A Sequential, because its names, connector.0 and connector.2, are those of the published weights.
    def __init__(self, vision_size: int, text_size: int):
        super().__init__(nn.Linear(vision_size, text_size), nn.GELU(), nn.Linear(text_size, text_size))


class VideoLLMOnlinePreTrainedModel(PreTrainedModel):
    """What both VideoLLM-online models share: configuration and capabilities."""

    config: VideoLLMOnlineConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("video", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True


class VideoLLMOnlineModel(VideoLLMOnlinePreTrainedModel):
    """The base model: tokens and frames in, hidden states out."""

    def __init__(self, config: VideoLLMOnlineConfig):
        super().__init__(config)
        # Not through AutoModel: as remote code, the Auto classes do not know our own model type.
        if config.vision_config.model_type == "streamformer":
            self.vision_tower = StreamFormerModel._from_config(config.vision_config)
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        self.connector = VideoLLMOnlineConnector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The text embedding."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the text embedding."""
        self.language_model.set_input_embeddings(value)

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, vision_cache=None, use_cache: bool = False
    ) -> tuple[torch.Tensor, object]:
        """The vision tower's features of frames, one per token.

        Args:
            pixel_values_videos: `(B, T, C, height, width)` normalised frames.
            vision_cache: the vision tower's state after the frames before these; only StreamFormer keeps one.
            use_cache: return that state.

        Returns:
            `(B, T, K, D_v)`: the pooled feature if `frame_token_cls`, then the averaged patches, row by row; and the
            state or `None`.
        """
        pixels, kind = pixel_values_videos.to(self.dtype), self.config.vision_config.model_type
        if kind == "streamformer":
            output = self.vision_tower(pixels, past_key_values=vision_cache, use_cache=use_cache)
            pooled, patches = output.pooler_output, output.last_hidden_state  # (B, T, D_v), (B, T, P, D_v)
            vision_cache = output.past_key_values
        else:
            output = self.vision_tower(pixels.flatten(0, 1))  # (B, T, ...) -> (B*T, ...)
            pooled, patches = (
                tensor if tensor is None else tensor.unflatten(0, pixels.shape[:2])
                for tensor in (output.pooler_output, output.last_hidden_state)
            )
        if kind == "clip_vision_model":
            patches = patches[:, :, 1:]  # the first is its class token
        tokens = []
        if self.config.frame_token_cls:
            if pooled is None:
                raise ValueError("frame_token_cls=True needs a vision tower with a pooling head")
            tokens.append(pooled[:, :, None])
        if self.config.frame_token_pooled is not None:
            side = self.config.vision_config.patch_size
            grid = (pixels.shape[-2] // side, pixels.shape[-1] // side)
            # (B, T, P, D_v) -> (B*T, D_v, rows, columns) -> averaged -> (B, T, h*w, D_v)
            grid = patches.flatten(0, 1).transpose(1, 2).unflatten(2, grid)
            spatial = nn.functional.adaptive_avg_pool2d(grid, tuple(self.config.frame_token_pooled))
            tokens.append(spatial.flatten(2).transpose(1, 2).unflatten(0, pixels.shape[:2]))
        return torch.cat(tokens, dim=2), vision_cache

    def encode_frames(self, pixel_values: torch.Tensor, vision_cache=None) -> tuple[torch.Tensor, object]:
        """Embeddings of the next frames of one stream.

        Args:
            pixel_values: `(T, C, height, width)` normalised frames.
            vision_cache: what this returned for the frames before these; `None` for the first.

        Returns:
            `(T, K, H)`, and the vision tower's state: StreamFormer looks back in time, the others keep none.
        """
        features, vision_cache = self.get_video_features(pixel_values[None], vision_cache, use_cache=True)
        return self.connector(features[0]), vision_cache

    def joint_embed(self, input_ids: torch.LongTensor, frame_embeds: torch.Tensor | None) -> torch.Tensor:
        """Token embeddings `(B, L, H)`, those of `<v>` taken in order from frames `(N, K, H)`.

        Raises:
            ValueError: if there are not as many `<v>` as frame tokens.
        """
        is_frame = input_ids == self.config.v_placeholder_id
        places, count = int(is_frame.sum()), 0 if frame_embeds is None else frame_embeds.shape[:2].numel()
        if places != count:
            raise ValueError(
                f"input_ids have {places} frame tokens (id {self.config.v_placeholder_id}), but "
                f"{count // self.config.frame_num_tokens} frames of {self.config.frame_num_tokens} tokens are given"
            )
        # <v> may lie outside the vocabulary; its embedding is never used.
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_frame, 0))
        if frame_embeds is None:
            return embeds
        return embeds.masked_scatter(is_frame[..., None], frame_embeds.to(embeds.device, embeds.dtype))

    def _frame_embeds(self, input_ids, pixel_values_videos, frame_mask, frame_features) -> torch.Tensor | None:
        """Embeddings `(N, K, H)` of all frames, row by row, if there are any."""
        if pixel_values_videos is not None:
            features, _ = self.get_video_features(pixel_values_videos)
            if frame_mask is None:
                frame_mask = torch.ones(features.shape[:2], dtype=torch.bool)
            frame_mask = frame_mask.bool().to(features.device)
            self._check_rows(input_ids, frame_mask)
            frame_features = features[frame_mask]
        if frame_features is None:
            return None
        return self.connector(frame_features.to(self.dtype))

    def _check_rows(self, input_ids: torch.LongTensor, frame_mask: torch.BoolTensor) -> None:
        if (frame_mask[:, 1:] > frame_mask[:, :-1]).any():
            raise ValueError("frame_mask must be 1 for a row's frames and 0 for the padding behind them")
        places = (input_ids == self.config.v_placeholder_id).sum(1).tolist()
        expected = (frame_mask.sum(1) * self.config.frame_num_tokens).tolist()
        for row, (found, wanted) in enumerate(zip(places, expected, strict=True)):
            if found != wanted:
                raise ValueError(
                    f"row {row} has {found} frame tokens (id {self.config.v_placeholder_id}) in input_ids, but its "
                    f"{wanted // self.config.frame_num_tokens} frames need {wanted}"
                )

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        frame_features: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Runs tokens with the frames among them, after those in the cache.

        Args:
            input_ids: `(B, L)` tokens, `<v>` where a frame's tokens go; or `inputs_embeds (B, L, H)`, frames included.
            attention_mask: `(B, past + L)`, 0 for padding.
            position_ids: `(B, L)`. Default: counted on from the cache.
            past_key_values: any cache of transformers' kind.
            pixel_values_videos: `(B, T, C, height, width)` frames, in the order of their `<v>`.
            frame_mask: `(B, T)`, 0 for padding behind the frames of a row that has fewer. Default: no padding.
            frame_features: `(N, K, D_v)` instead of pixels: features that `get_video_features` gave before, the
                frames of all rows one after the other.
            use_cache: return the cache.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what the language model knows.

        Raises:
            ValueError: if inputs contradict each other, or `<v>` and frames do not match.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if pixel_values_videos is not None and frame_features is not None:
            raise ValueError("give frames as pixel_values_videos or as frame_features, not both")
        if inputs_embeds is None:
            frame_embeds = self._frame_embeds(input_ids, pixel_values_videos, frame_mask, frame_features)
            inputs_embeds = self.joint_embed(input_ids, frame_embeds)
        elif pixel_values_videos is not None or frame_features is not None:
            raise ValueError("frames go where input_ids have <v>: give input_ids with them, not inputs_embeds")
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


class VideoLLMOnlineForConditionalGeneration(VideoLLMOnlinePreTrainedModel, LiveGenerationMixin):
    """VideoLLM-online with a language model head, and `generate(frames=...)`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    accepts_loss_kwargs = True

    def __init__(self, config: VideoLLMOnlineConfig):
        super().__init__(config)
        # A causal LM's loss shifts labels, and Trainer leaves out position 0 when it counts them; ours are shifted
        # already and every one counts.
        self.loss_type = None
        self.model = VideoLLMOnlineModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_backbones(cls, text, vision, **config):
        """Builds a model from a language model and a vision tower; only the connector between them is fresh.

        Args:
            text: folder, Hub id or loaded causal language model. A folder may hold a single GGUF file. A loaded model
                becomes part of this one, it is not copied.
            vision: folder, Hub id or loaded SigLIP, CLIP or StreamFormer model; likewise.
            **config: further fields of [`VideoLLMOnlineConfig`].

        Raises:
            ValueError: if a backbone is of another architecture.
        """
        text, vision = load_text_backbone(text), load_vision_backbone(vision)
        for backbone in (text, vision):
            vars(backbone.config).pop("_name_or_path", None)  # would be saved, and may be a folder of this machine
        config.setdefault("tie_word_embeddings", getattr(text.config, "tie_word_embeddings", False))
        configuration = VideoLLMOnlineConfig(text_config=text.config, vision_config=vision.config, **config)
        with torch.device("meta"):
            model = cls(configuration)
        connector = VideoLLMOnlineConnector(vision.config.hidden_size, text.config.hidden_size)
        model.model.connector = connector.apply(model._init_weights)
        model.model.vision_tower = vision
        model.model.language_model = text.base_model
        model.lm_head = text.get_output_embeddings()
        if text.generation_config is not None:
            model.generation_config = copy.deepcopy(text.generation_config)
        return model.to(text.dtype).eval()

    def get_video_features(
        self, pixel_values_videos: torch.Tensor, vision_cache=None, use_cache: bool = False
    ) -> tuple[torch.Tensor, object]:
        """As [`VideoLLMOnlineModel.get_video_features`]."""
        return self.model.get_video_features(pixel_values_videos, vision_cache, use_cache)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.FloatTensor | None = None,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        frame_features: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """As [`VideoLLMOnlineModel.forward`], with logits.

        Args:
            labels: `(B, L)` tokens to predict, **pre-shifted**: `labels[:, j]` is the target of `logits[:, j]`; -100
                where there is nothing to learn. They need `input_ids` and all logits.
            logits_to_keep: compute only the last so many logits, 0 for all, or those at these positions.
            num_items_in_batch: learned positions of all batches whose gradients are summed. Default: of this one.

        Returns:
            `loss` with labels ([`streaming_loss`]), `logits (B, L, vocabulary)`, `past_key_values`.
        """
        if labels is not None and input_ids is None:
            raise ValueError("labels need input_ids: what is learned at <v> is weighted by stream_loss_weight")
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            pixel_values_videos=pixel_values_videos,
            frame_mask=frame_mask,
            frame_features=frame_features,
            use_cache=use_cache,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            is_frame = input_ids == self.config.v_placeholder_id
            loss = streaming_loss(logits, labels, is_frame, self.config.stream_loss_weight, num_items_in_batch)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(self, input_ids, is_first_iteration=False, **kwargs):
        """Stored features are read once, unless nothing is cached, as transformers does with pixels."""
        if not is_first_iteration and kwargs.get("use_cache", True):
            kwargs.pop("frame_features", None)
        return super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)

    def _expand_inputs_for_generation(self, expand_size=1, is_encoder_decoder=False, input_ids=None, **model_kwargs):
        """Several sequences per prompt: stored features of a row's frames are repeated as a whole, like the row."""
        features = model_kwargs.pop("frame_features", None)
        if features is not None:
            places = (input_ids == self.config.v_placeholder_id).sum(1).cumsum(0)
            ends = places[:-1].cpu() // self.config.frame_num_tokens  # of all rows but the last, which takes the rest
            features = torch.cat([row.repeat(expand_size, 1, 1) for row in features.tensor_split(ends)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **model_kwargs
        )
        return input_ids, model_kwargs if features is None else model_kwargs | {"frame_features": features}

    def save_pretrained(self, save_directory, **kwargs):
        """Saves model and code, so that all four Auto classes below load the class that has `generate`."""
        reference = "modeling_videollm_online.VideoLLMOnlineForConditionalGeneration"
        automatic = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
        self.config.auto_map = {
            **(getattr(self.config, "auto_map", None) or {}),
            **dict.fromkeys(automatic, reference),
        }
        super().save_pretrained(save_directory, **kwargs)


VideoLLMOnlineForConditionalGeneration.register_for_auto_class("AutoModel")
