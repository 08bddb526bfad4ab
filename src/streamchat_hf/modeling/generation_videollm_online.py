"""The loop of VideoLLM-online: watch, decide at every frame whether to speak, speak, watch on (LIVE, section 3.4).

Frames that have come since the last decision are read in one forward pass, and only the logits at the last token of
each are computed. While the model speaks, frames wait; they are the next backlog.
"""

from collections.abc import Callable, Iterable
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation import GenerateDecoderOnlyOutput

from .cache_videollm_online import LiveCache, LiveFrame
from .clock_streamchat import open_clock
from .layers_videollm_online import group_attention
from .reader_streamchat import ENCODE_CHUNK, StreamingError
from .timeline_streamchat import to_milliseconds

# Where an answer is cut if nobody says otherwise.
MAX_NEW_TOKENS = 100
# Settings of transformers that a stream leaves alone, and the values that do.
ALONE: dict[str, tuple] = {
    "num_beams": (None, 1),
    "num_return_sequences": (None, 1),
    "prompt_lookup_num_tokens": (None,),
    "output_scores": (None, False),
    "output_logits": (None, False),
    "output_attentions": (None, False),
    "output_hidden_states": (None, False),
    "use_cache": (None, True),
    "cache_implementation": (None, "dynamic"),
    "max_time": (None,),
    "stop_strings": (None,),
}


@dataclass
class LiveGenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns for a stream.

    Attributes:
        sequences: `(1, length)` the conversation, `<v>` and all that stands between turns included. One forward pass
            over it gives every logit again, as long as nothing has been forgotten.
        past_key_values: the [`LiveCache`], for the next call.
        token_times: `(1, new tokens)` float64 seconds, when each token of the answers was spoken.
        newest_frame_times: `(1, new tokens)` float64 seconds, presentation time of the newest frame it could see.
        frame_age: `(1, new tokens)` float64 seconds between the two.
        responses: for each answer when it began, in seconds, and its tokens.
        frame_log: `(t_sec, read_sec)` of every frame, in a list for the one stream. Replaying the second as frame
            times reproduces a wall-clock run.
        dropped_frames: frames dropped by the backpressure policy.
    """

    token_times: torch.Tensor | None = None
    newest_frame_times: torch.Tensor | None = None
    frame_age: torch.Tensor | None = None
    responses: list[tuple[float, list[int]]] | None = None
    frame_log: list[list[tuple[float, float]]] | None = None
    dropped_frames: list[int] | None = None


class LiveVoice:
    """How answers are chosen, token by token: transformers' settings, prepared for all answers of a conversation.

    Attributes:
        config: the prepared `GenerationConfig`.
        ends: tokens that end an answer.
        max_new_tokens: where one is cut that does not end.
    """

    def __init__(self, config, generation_config, processors: LogitsProcessorList):
        self.config, self._processors = generation_config, processors
        ends = generation_config.eos_token_id
        self.ends = {config.eos_token_id, *([] if ends is None else torch.as_tensor(ends).flatten().tolist())}
        self.max_new_tokens = generation_config.max_new_tokens or MAX_NEW_TOKENS
        self._frame_id = config.v_placeholder_id

    def choose(self, said: list[int], logits: torch.Tensor) -> int:
        """The next token of an answer that began with `said`, from `logits (1, vocabulary)`."""
        scores = logits.to(dtype=torch.float32, copy=True)
        if self._frame_id < scores.shape[-1]:
            scores[:, self._frame_id] = -torch.inf  # frames are seen, not said
        scores = self._processors(torch.tensor([said], dtype=torch.long, device=scores.device), scores)
        if self.config.do_sample:
            return int(torch.multinomial(scores.softmax(-1), 1))
        return int(scores.argmax(-1))


class StreamCall:
    """One call of `generate` about one stream, and what it gathers on its way."""

    def __init__(self, model, cache, clock, voice: LiveVoice, streamer, stopping_criteria):
        self.model, self.cache, self.clock, self.voice = model, cache, clock, voice
        self.streamer, self.criteria = streamer, StoppingCriteriaList(stopping_criteria or [])
        self.responses: list[tuple[float, list[int]]] = []
        self.times: list[float] = []
        self.newest: list[float] = []
        self.frame_log: list[tuple[float, float]] = []

    @property
    def sequences(self) -> torch.LongTensor:
        """`(1, length)` the conversation so far."""
        return self.cache.said

    @contextmanager
    def told(self, close_source: bool):
        """Whatever happens within, the streamer hears the end; an error of the source knows what was said by then."""
        try:
            yield
        except StreamingError as error:
            error.partial = self.sequences
            if close_source:
                for reader in self.clock.readers:
                    reader.close()
                    reader.close_source()
            raise
        finally:
            if self.streamer is not None:
                self.streamer.end()

    def see(self, frames: list, now: int, *how) -> None:
        """Takes frames over at `now`, in milliseconds; `how` as `refresh_visual` knows it."""
        self.model.refresh_visual(self.cache, frames, *how)
        self.cache.clock = max(self.cache.clock, now)
        self.frame_log += [(frame.t_sec, now / 1000) for frame in frames]
        if hasattr(self.streamer, "put_frames"):
            self.streamer.put_frames([[frame.t_sec for frame in frames]], now / 1000)

    def speak(self, start: int) -> None:
        """Gives one answer, from `start` on in milliseconds."""
        said: list[int] = []
        self.responses.append((start / 1000, said))
        self.clock.ask(start)
        newest = self.cache.streams[0].newest_frame_time

        def spoke(token: int, now: int) -> bool:
            time = now / 1000
            said.append(token)
            self.times.append(time)
            self.newest.append(newest)
            if hasattr(self.streamer, "put_times"):
                self.streamer.put_times([time], [newest], [time - newest])
            if self.streamer is not None:
                self.streamer.put(torch.tensor([token]))
            return bool(self.criteria) and bool(self.criteria(torch.tensor([said]), None).all())

        self.model.speak(self.cache, self.clock, self.voice, spoke)

    def output(self, dropped: int) -> LiveGenerateOutput:
        """All of it as `generate` returns it."""
        times, newest = (torch.tensor([values], dtype=torch.float64) for values in (self.times, self.newest))
        return LiveGenerateOutput(
            sequences=self.sequences,
            past_key_values=self.cache,
            token_times=times,
            newest_frame_times=newest,
            frame_age=times - newest,
            responses=self.responses,
            frame_log=[self.frame_log],
            dropped_frames=[dropped],
        )


class LiveCall(StreamCall):
    """The loop: watch, decide, speak, watch on."""

    def __init__(self, *args):
        super().__init__(*args)
        self._journal = self.cache.journal = list(self.cache.ids)

    @property
    def sequences(self) -> torch.LongTensor:
        """`(1, length)` the conversation so far, also what the cache has forgotten since the call began."""
        return torch.tensor([self._journal + self.cache.pending])

    def run(self, input_ids: torch.LongTensor | None, start: int, threshold: float | None, close_source: bool) -> None:
        """Watches until the source ends; whatever happens, no half-told turn is left behind."""
        try:
            with self.told(close_source):
                self.clock.ask(start)
                if input_ids is not None:
                    if self.streamer is not None:
                        self.streamer.put(input_ids.cpu())
                    if self.cache.hear(input_ids[0].tolist()):
                        self.speak(start)
                while (arrivals := self.clock.watch(None, lambda: False)) is not None:
                    [frames], now = arrivals
                    self.see(frames, now, threshold)
                    if self.cache.speaks:
                        self.speak(now)
        finally:
            self.cache.journal = None


class StreamVoiceMixin(GenerationMixin):
    """What models share that speak about one stream: their voice, and which stream that is."""

    @property
    def voice_ids(self):
        """Has `eos_token_id`, which ends an answer, and `v_placeholder_id`, which cannot be said."""
        return self.config

    def voice(self, generation_config=None, logits_processor=None, **kwargs) -> LiveVoice:
        """How this model's answers are chosen; arguments are those of transformers' `generate`.

        Raises:
            ValueError: for one that does not go with a stream.
        """
        config, rest = self._prepare_generation_config(generation_config, **kwargs)
        for name, allowed in ALONE.items():
            if getattr(config, name, None) not in allowed:
                raise ValueError(f"{name}={getattr(config, name)!r} does not work with frames")
        if "max_length" in kwargs:
            raise ValueError("a stream has no max_length: give max_new_tokens, for each answer")
        if rest:
            raise ValueError(f"generate(frames=...) does not take {', '.join(rest)}")
        self._prepare_special_tokens(config, device=self.device)
        own = LogitsProcessorList(logits_processor or [])
        processors = self._get_logits_processor(config, 0, logits_processor=own, device=self.device)
        return LiveVoice(self.voice_ids, config, processors)


def one_stream(frames) -> list:
    """Frames as a list of their one stream, which may be empty.

    Raises:
        ValueError: if there are more.
    """
    batch = isinstance(frames, list) and frames and all(hasattr(item, "__next__") for item in frames)
    streams = frames if batch else [() if frames is None else frames]
    if len(streams) != 1:
        raise ValueError(f"{len(streams)} streams of frames: this model watches one, call it once for each")
    return streams


def start_of(cache, start_time: float | None) -> int:
    """When a call begins, in milliseconds; by itself at the cache's clock.

    Raises:
        ValueError: if that has passed.
    """
    start = cache.clock if start_time is None else to_milliseconds(start_time)
    if start < cache.clock:
        raise ValueError(f"start_time={start / 1000} lies before the stream's clock, {cache.clock / 1000} s")
    return start


class LiveGenerationMixin(StreamVoiceMixin):
    """Generation that watches a stream and speaks when it has something to say.

    Attributes:
        policies: when a session with this model may speak; the first is the default.
    """

    policies = ("streaming-eos", "on-question")

    def new_cache(self, max_context: int | None = None) -> LiveCache:
        """An empty cache for a conversation about one stream; `max_context` as in the configuration."""
        group_attention(self.model.language_model)
        return LiveCache(self.config, max_context)

    def encode_frames(self, frames: list, vision_cache) -> tuple[list[LiveFrame], object]:
        """Embeds new frames `(t_sec, pixel_values (C, H, W))`, after those in `vision_cache`.

        Returns:
            The frames, ready to be read, and the vision tower's new state.
        """
        pixels = torch.stack([frame[1] for frame in frames]).to(self._input_device)  # (T, C, H, W)
        embeds, vision_cache = self.model.encode_frames(pixels, vision_cache)  # (T, K, D)
        return [LiveFrame(float(frame[0]), rows) for frame, rows in zip(frames, embeds, strict=True)], vision_cache

    @property
    def _input_device(self) -> torch.device:
        """Where inputs are brought to. Offloaded weights lie nowhere: who brings them in brings their inputs along."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    @torch.no_grad()
    def refresh_visual(self, cache: LiveCache, frames, threshold: float | None = None) -> None:
        """Reads the backlog in one forward pass and decides: `cache.speaks`, from `cache.silence` after each frame.

        A frame passes in silence if P(silence) >= `threshold`; with a threshold of 0, if silence is the most probable.
        A backlog that would fill more than half of what the window can free is read in parts.

        Args:
            cache: the conversation's state.
            frames: new frames, in order: tuples `(t_sec, pixel_values (C, H, W))`, or [`LiveFrame`]s.
            threshold: default `config.silence_threshold`.
        """
        state, frames = cache.streams[0], list(frames)
        if frames and not hasattr(frames[0], "embeds"):
            raw, frames = frames, []
            for begin in range(0, len(raw), ENCODE_CHUNK):
                ready, state.vision_cache = self.encode_frames(raw[begin : begin + ENCODE_CHUNK], state.vision_cache)
                frames += ready
        threshold = self.config.silence_threshold if threshold is None else threshold
        cache.silence, cache.speaks = [], False
        while frames:
            at_once = cache.frames_at_once() if len(frames) > 1 else 1
            backlog, frames = frames[:at_once], frames[at_once:]
            ids, last_of_frame = cache.next_frames(len(backlog))
            logits = self._read(cache, ids, last_of_frame, backlog)  # (T, vocabulary)
            probabilities = logits.float().softmax(-1)
            silence = probabilities[:, self.config.silence_token_id]
            silent = silence >= (threshold or probabilities.amax(-1))
            cache.silence += silence.tolist()
            cache.speaks |= not bool(silent.all())
            state.frames_taken += len(backlog)
            state.newest_frame_time = backlog[-1].t_sec
            cache.clock = max(cache.clock, to_milliseconds(backlog[-1].t_sec))

    def _read(self, cache: LiveCache, ids: list[int], keep: list[int], frames: list[LiveFrame] = ()) -> torch.Tensor:
        """Reads the pending tokens and frames, all of them `ids`; logits `(len(keep), vocabulary)` at `keep`."""
        cache.make_room(len(ids), getattr(self.model.language_model, "rotary_emb", None))
        tokens = torch.tensor([ids], device=self._input_device)
        embeds = self.model.joint_embed(tokens, torch.stack([frame.embeds for frame in frames]) if frames else None)
        kept = 1 if keep == [len(ids) - 1] else torch.tensor(keep, device=embeds.device)
        output = self(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=kept)
        cache.was_read(ids, len(frames))
        return output.logits[0]

    @torch.no_grad()
    def speak(self, cache: LiveCache, clock, voice: LiveVoice, spoke: Callable[[int, int], bool]) -> None:
        """Gives one answer: to what `cache.hear` has taken, or about the frame read last.

        Whatever happens, the turn is closed in the cache, and holds what was delivered and no more.

        Args:
            cache: the conversation's state.
            clock: tells when each token is spoken.
            voice: chooses the tokens.
            spoke: called as `spoke(token, time in milliseconds)` with each token; ends the answer by returning True.
                If it raises, the token has not been said.
        """
        cache.begin_response()
        said: list[int] = []
        try:
            while True:
                now = clock.next_token()
                logits = self._read(cache, cache.pending, [len(cache.pending) - 1])  # (1, vocabulary)
                token = voice.choose(said, logits)
                stopped = spoke(token, now)
                said.append(token)
                cache.pending, cache.clock = [token], max(cache.clock, now)
                if stopped or token in voice.ends or len(said) == voice.max_new_tokens:
                    break
        finally:
            cache.end_response()

    def open_clock(self, frames, cache: LiveCache, *how, **more) -> Any:
        """The clock that shows the frames of one stream to a cache.

        Args:
            frames: an iterable of frames, or a list with one iterator of them.
            cache: the conversation's state.
            *how, **more: `fps`, `tokens_per_second`, `backpressure` and `frame_timeout` as in [`generate`].

        Raises:
            ValueError: if there is more than one stream, or an argument is out of range.
        """
        return open_clock(one_stream(frames), cache.streams, self.encode_frames, self.device.type, *how, **more)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config=None,
        *args,
        frames: Iterable | None = None,
        fps: float | None = None,
        start_time: float | None = None,
        tokens_per_second: float | None = None,
        backpressure: str = "block",
        frame_timeout: float = 30.0,
        threshold: float | None = None,
        streamer=None,
        **kwargs,
    ):
        """Watches until the source ends and says what it has to say. Without frames, transformers' own `generate`.

        Args:
            inputs: `(1, L)` prompt tokens, also as `input_ids`. A prompt that begins an answer is answered at
                `start_time`; any other is watched for. With `past_key_values` of an earlier call only what is new, or
                nothing: `past_key_values.open_run` tells whether a run of frames is to be closed first.
            generation_config: as in transformers.
            frames: an iterable of `(t_sec, pixel_values (C, H, W))` items, by position or attribute. A clock of
                [`open_clock`] is used as it is and stays open.
            fps: frame rate of bare tensors without times.
            start_time: seconds of stream time at which it begins. Default: the cache's clock, 0.0 when new.
            tokens_per_second: a simulated clock: answer token i is spoken i / tokens_per_second after the answer
                begins. `None`: the wall clock.
            backpressure: what happens under the wall clock when frames arrive faster than they are encoded:
                `"block"` the source, `"drop_oldest"`, or keep only the `"latest"`.
            frame_timeout: seconds that a source may take for one frame under the wall clock.
            threshold: how probable silence must be for a frame to pass in silence; 0: more than anything else.
                Default: `config.silence_threshold`. Between 0 and 0.5 this probability alone decides, where the paper
                and its metrics also speak if another token is more probable; from 0.5 up both are the same.
            streamer: as in transformers; its methods `put_frames` and `put_times`, if it has them, are called as
                StreamChat's `generate` does.
            **kwargs: `max_new_tokens` of each answer (default 100), sampling options, `logits_processor` and
                `stopping_criteria`, which see the tokens of an answer alone.

        Returns:
            `(1, length)` the whole conversation; with `return_dict_in_generate=True` a [`LiveGenerateOutput`].

        Raises:
            StreamingError: if the source fails; its `partial` holds the conversation so far.
            ValueError: for arguments that do not go together.
        """
        cache = kwargs.get("past_key_values")
        if frames is None and not getattr(cache, "is_streaming", False):
            return super().generate(inputs, generation_config, *args, streamer=streamer, **kwargs)
        kwargs.pop("past_key_values", None)
        input_ids, mask = (
            kwargs.pop("input_ids", None) if inputs is None else inputs,
            kwargs.pop("attention_mask", None),
        )
        criteria = kwargs.pop("stopping_criteria", None)
        voice = self.voice(generation_config, kwargs.pop("logits_processor", None), **kwargs)
        cache = self._checked(cache, input_ids, mask)
        start = start_of(cache, start_time)
        lasting = hasattr(frames, "next_token")  # a clock that its owner opened and will close
        clock: Any = frames
        if not lasting:
            clock = self.open_clock(frames, cache, fps, tokens_per_second, backpressure, frame_timeout)
        dropped = clock.readers[0].dropped
        call = LiveCall(self, cache, clock, voice, streamer, criteria)
        with nullcontext() if lasting else closing(clock):
            call.run(input_ids, start, threshold, close_source=not lasting)
        if not voice.config.return_dict_in_generate:
            return call.sequences
        return call.output(clock.readers[0].dropped - dropped)

    def _checked(self, cache, input_ids, mask) -> LiveCache:
        """The cache of the call, a new one if none was given."""
        if cache is not None and not hasattr(cache, "hear"):
            raise ValueError(f"frames need a LiveCache, not a {type(cache).__name__}")
        if input_ids is None and not (cache is not None and cache.ids):
            raise ValueError("frames need a prompt in input_ids")
        if input_ids is not None and (input_ids.ndim != 2 or len(input_ids) != 1):
            raise ValueError(f"input_ids {tuple(input_ids.shape)} must be one row: this model watches one stream")
        if mask is not None and not mask.all():
            raise ValueError("a prompt for a stream has no padding, but attention_mask has zeros")
        return self.new_cache() if cache is None else cache
