"""StreamBridge's activation model: a video language model that says of every frame whether it is time to answer.

Wang et al., NeurIPS 2025, section 3.2.3. A learnable <ACT> follows the visual tokens of each frame, and a score takes
the place of the language model's head:

    D_t = [ sigmoid(w . LLM(<Q>, V_1, <ACT>, ..., V_t, <ACT>)_last + b) >= alpha ]

Letters: B conversations, L tokens, T frames, N frames of all conversations together, K visual tokens of a frame, D_v
width of the vision tower, H that of the language model.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .backbones_videollm_online import load_text_backbone, load_vision_backbone
from .cache_videollm_online import LiveCache
from .configuration_streambridge_activation import StreamBridgeActivationConfig
from .layers_videollm_online import group_attention
from .modeling_videollm_online import VideoLLMOnlineConnector, VideoLLMOnlineModel
from .reader_streamchat import ENCODE_CHUNK
from .timeline_streamchat import to_milliseconds


@dataclass
class StreamBridgeActivationOutput(ModelOutput):
    """What the activation model returns.

    Attributes:
        loss: binary cross entropy over the learned frames, with labels.
        logits: `(B, T)` of each frame, its sigmoid the probability that it is time to answer; -inf behind the frames
            of a row that has fewer.
        past_key_values: the cache.
        hidden_states: of the language model, if asked for.
        attentions: of the language model, if asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class StreamBridgeActivationConnector(VideoLLMOnlineConnector):
    """Brings features to the language model's width and adds <ACT>: `(..., K, D_v)` to `(..., K + 1, H)`."""

    def __init__(self, vision_size: int, text_size: int):
        super().__init__(vision_size, text_size)
        self.act_embedding = nn.Parameter(torch.empty(text_size))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """V_t and <ACT> of every frame."""
        visual = super().forward(features)
        act = self.act_embedding.expand(*visual.shape[:-2], 1, -1)
        return torch.cat([visual, act], dim=-2)


class StreamBridgeActivationModel(VideoLLMOnlineModel):
    """Scores frames. It reads conversations as VideoLLM-online does, but its last token of a frame is <ACT>."""

    config: StreamBridgeActivationConfig
    accepts_loss_kwargs = True

    def __init__(self, config: StreamBridgeActivationConfig):
        super().__init__(config)
        self.loss_type = None  # or Trainer would count labels as a causal language model's, without the first
        text_size = config.text_config.hidden_size
        self.connector = StreamBridgeActivationConnector(config.vision_config.hidden_size, text_size)
        self.score = nn.Linear(text_size, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "act_embedding"):
            deviation = getattr(self.config.text_config, "initializer_range", 0.02)
            init.normal_(module.act_embedding, mean=0.0, std=deviation)

    @classmethod
    def from_backbones(cls, text, vision, **config):
        """Builds a model from a language model, whose head is left out, and a vision tower.

        The connector with its <ACT> and the score are fresh.

        Args:
            text: folder, Hub id or loaded causal language model. A folder may hold a single GGUF file. A loaded model
                becomes part of this one, it is not copied.
            vision: folder, Hub id or loaded SigLIP, CLIP or StreamFormer model; likewise.
            **config: further fields of [`StreamBridgeActivationConfig`].

        Raises:
            ValueError: if a backbone is of another architecture.
        """
        text, vision = load_text_backbone(text), load_vision_backbone(vision)
        for backbone in (text, vision):
            vars(backbone.config).pop("_name_or_path", None)  # would be saved, and may be a folder of this machine
        return cls._of_parts(text.base_model, vision, config).to(text.dtype).eval()

    @classmethod
    def from_videollm_online(cls, model, **config):
        """Builds a model from a VideoLLM-online, which already reads frames; <ACT> and the score are fresh.

        Args:
            model: a loaded [`VideoLLMOnlineForConditionalGeneration`]. Its vision tower and its language model become
                part of this one, its connector is copied, its head is left out.
            **config: fields of [`StreamBridgeActivationConfig`] that differ from those it shares with the model.
        """
        shared = ("frame_token_cls", "frame_token_pooled", "v_placeholder_id", "eos_token_id", "stream_start_ids")
        shared += ("response_start_ids", "frame_fps", "max_context")
        fields = {name: getattr(model.config, name) for name in shared} | config
        base = model.model
        built = cls._of_parts(base.language_model, base.vision_tower, fields)
        built.connector.load_state_dict(base.connector.state_dict(), strict=False)  # it has no <ACT>
        return built.to(model.dtype).eval()

    @classmethod
    def _of_parts(cls, language_model, vision_tower, fields: dict):
        text_config, vision_config = language_model.config, vision_tower.config
        configuration = StreamBridgeActivationConfig(text_config=text_config, vision_config=vision_config, **fields)
        with torch.device("meta"):
            model = cls(configuration)
        model.connector = StreamBridgeActivationConnector(vision_config.hidden_size, text_config.hidden_size)
        model.score = nn.Linear(text_config.hidden_size, 1)
        for fresh in (model.connector, model.score):
            fresh.apply(model._init_weights)
        model.vision_tower, model.language_model = vision_tower, language_model
        return model

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        pixel_values_videos: torch.FloatTensor | None = None,
        frame_mask: torch.Tensor | None = None,
        frame_features: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> StreamBridgeActivationOutput:
        """Scores every frame of written conversations.

        Args:
            input_ids: `(B, L)` tokens, K + 1 times `<v>` for each frame.
            attention_mask: `(B, past + L)`, 0 for padding.
            position_ids: `(B, L)`. Default: counted on from the cache.
            past_key_values: any cache of transformers' kind.
            pixel_values_videos: `(B, T, C, height, width)` frames, in the order of their `<v>`.
            frame_mask: `(B, T)`, 0 for padding behind the frames of a row that has fewer. Default: no padding.
            frame_features: `(N, K, D_v)` instead of pixels: features that `get_video_features` gave before, the
                frames of all rows one after the other.
            labels: `(B, T)`, T the most frames of a row: 1 where it is time to answer, 0 where not, -100 where nothing
                is learned.
            use_cache: return the cache.
            num_items_in_batch: learned frames of all batches whose gradients are summed. Default: of this one.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and what the language model knows.

        Raises:
            ValueError: if inputs contradict each other, or `<v>` and frames do not match.
        """
        outputs = super().forward(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            pixel_values_videos=pixel_values_videos,
            frame_mask=frame_mask,
            frame_features=frame_features,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        is_frame = input_ids == self.config.v_placeholder_id
        is_act = is_frame & (is_frame.cumsum(1) % self.config.frame_num_tokens == 0)
        scores = self.score(outputs.last_hidden_state[is_act])[:, 0].float()  # (N,)
        counts = is_act.sum(1)
        # A row's frames are its first; behind them there is no frame to answer.
        shown = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]  # (B, T)
        logits = scores.new_full(shown.shape, -torch.inf).masked_scatter(shown, scores)
        loss = None if labels is None else activation_loss(logits, labels, num_items_in_batch)
        return StreamBridgeActivationOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def new_cache(self, max_context: int | None = None) -> LiveCache:
        """An empty cache for watching one stream; `max_context` as in the configuration.

        `cache.hear(token_ids)` takes the question, which is never forgotten.
        """
        group_attention(self.language_model)
        return LiveCache(self.config, max_context)

    @torch.no_grad()
    def watch(self, cache: LiveCache, frames) -> torch.Tensor:
        """Reads frames in one forward pass, those that would fill more than half of what the window can free in parts.

        What is pending in the cache, a question or an answer, is read before them.

        Args:
            cache: the stream's state.
            frames: new frames, in order: tuples `(t_sec, pixel_values (C, H, W))`, or [`LiveFrame`]s.

        Returns:
            `(T,)` float32, for each frame the probability that it is time to answer.
        """
        state, frames = cache.streams[0], list(frames)
        most = len(frames) if all(hasattr(frame, "embeds") for frame in frames) else ENCODE_CHUNK
        scores = [torch.empty(0, device=self.device)]
        while frames:
            at_once = min(cache.frames_at_once(), most) if len(frames) > 1 else 1
            backlog, frames = frames[:at_once], frames[at_once:]
            if hasattr(backlog[0], "embeds"):
                embeds = torch.stack([frame.embeds for frame in backlog])  # (T, K + 1, H)
            else:
                pixels = torch.stack([frame[1] for frame in backlog]).to(self.device)
                embeds, state.vision_cache = self.encode_frames(pixels, state.vision_cache)
            ids, act = cache.next_frames(len(backlog))
            cache.make_room(len(ids), getattr(self.language_model, "rotary_emb", None))
            inputs = self.joint_embed(torch.tensor([ids], device=self.device), embeds)
            hidden = super().forward(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state
            cache.was_read(ids, len(backlog))
            scores.append(self.score(hidden[0, act])[:, 0].float().sigmoid())
            state.frames_taken += len(backlog)
            state.newest_frame_time = float(backlog[-1][0])
            cache.clock = max(cache.clock, to_milliseconds(state.newest_frame_time))
        return torch.cat(scores)


def activation_loss(
    logits: torch.Tensor, labels: torch.Tensor, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """L = -1/n * sum over the n learned frames of log sigmoid(z) if it is time to answer, else log(1 - sigmoid(z)).

    The authors have two logits and their softmax, of which only the difference matters: z.

    Args:
        logits: `(B, T)`, z.
        labels: `(B, T)` 1 or 0, or -100 where nothing is learned.
        num_items: n, where it counts the frames of several batches (gradient accumulation). Default: those of this
            one. Nothing learned: the loss is 0.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: if the shapes do not fit.
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} must have one for each frame, logits are {tuple(logits.shape)}"
        )
    learned = labels != -100
    count = learned.sum().clamp(min=1) if num_items is None else torch.as_tensor(num_items, device=logits.device)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits[learned].float(), labels[learned].float(), reduction="sum"
    )
    return losses / count


StreamBridgeActivationModel.register_for_auto_class("AutoModel")
