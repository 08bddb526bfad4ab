"""`generate(frames=...)`: every decoding step sees the newest frame (StreamChat, section 2.3, "Inference")."""

import math
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import GenerationMixin
from transformers.generation import GenerateDecoderOnlyOutput

from .cache_static_streamchat import StaticStreamingCache
from .cache_streamchat import ReadyFrame, StreamingCache, StreamingCacheMixin
from .clock_streamchat import open_clock
from .reader_streamchat import ENCODE_CHUNK, StreamingError
from .timeline_streamchat import NEVER, to_milliseconds


@dataclass
class StreamingGenerateOutput(GenerateDecoderOnlyOutput):
    """What `generate` returns for a stream: transformers' output, and the frame behind every token.

    Attributes:
        token_times: `(batch, new tokens)` float64 seconds, when each token was spoken: the moment at which the frames
            it could see were fixed. NaN after a row's end.
        newest_frame_times: `(batch, new tokens)` float64 seconds, presentation time of the newest frame seen.
        frame_age: `(batch, new tokens)` float64 seconds between the two.
        frame_log: for each stream, `(t_sec, taken_sec)` of every frame taken over during the call. Replaying the
            second as frame times reproduces a wall-clock run exactly.
        dropped_frames: frames dropped by the backpressure policy, per stream.
        sequences_scores, beam_indices: as transformers returns them for beams.
    """

    token_times: torch.Tensor | None = None
    newest_frame_times: torch.Tensor | None = None
    frame_age: torch.Tensor | None = None
    frame_log: list[list[tuple[float, float]]] | None = None
    dropped_frames: list[int] | None = None
    sequences_scores: torch.Tensor | None = None
    beam_indices: torch.Tensor | None = None


class StreamFeed:
    """One call's view of its streams: the clock, and the frame behind every token.

    It travels through transformers' generation loop as the `frames` argument and holds no state beyond the call.
    """

    def __init__(self, model, cache, clock, prompt_mask, end_ids, streamer):
        self.model, self.cache, self.clock = model, cache, clock
        self.prompt_mask, self.end_ids, self.streamer = prompt_mask, end_ids, streamer
        self.prompt_length = prompt_mask.shape[1]
        self.dropped_before = [reader.dropped for reader in clock.readers]
        self.tokens: torch.LongTensor | None = None
        self.times: list[int] = []
        self.newest: list[list[float]] = []
        self.frame_log: list[list[tuple[float, float]]] = [[] for _ in cache.streams]

    def __deepcopy__(self, memo) -> "StreamFeed":
        raise ValueError("frames cannot be shared between candidates: assisted decoding does not work with frames")

    def before_step(self, tokens: torch.LongTensor) -> None:
        """Shows the model what it may see before it speaks the next token of `tokens (batch, length)`."""
        step = max(tokens.shape[1] - self.prompt_length, 0)
        self.tokens = tokens
        if step < len(self.times):  # another chunk of a prompt that is prefilled in chunks
            return
        self._mark_ended(tokens, step)
        frames, now = self.clock.next_step()
        self.model.refresh_visual(self.cache, frames)
        for log, arrived in zip(self.frame_log, frames, strict=True):
            log.extend((frame.t_sec, now / 1000) for frame in arrived)
        if hasattr(self.streamer, "put_frames"):
            self.streamer.put_frames([[frame.t_sec for frame in arrived] for arrived in frames], now / 1000)
        self.times.append(now)
        self.newest.append([state.newest_frame_time for state in self.cache.streams])
        if hasattr(self.streamer, "put_times"):
            ages = [now / 1000 - newest for newest in self.newest[-1]]
            self.streamer.put_times([now / 1000] * len(ages), self.newest[-1], ages)

    def _mark_ended(self, tokens: torch.LongTensor, step: int) -> None:
        if step < 1 or not self.end_ids or len(tokens) != len(self.cache.streams):
            return
        for stream, token in enumerate(tokens[:, -1].tolist()):
            if token in self.end_ids and not self.cache.streams[stream].idle:
                self.cache.end_turn(stream)
                self.cache.streams[stream].idle = True

    def finish(self, sequences: torch.LongTensor | None) -> None:
        """Closes the turn in the cache: what was said is history, what comes next happens in silence."""
        cache = self.cache
        said = sequences if sequences is not None else self.tokens
        if said is None or not self.times:
            return
        history = said.clone()
        mask = torch.ones_like(history)
        per_prompt = len(said) // len(self.prompt_mask)
        mask[:, : self.prompt_length] = self.prompt_mask.repeat_interleave(per_prompt, dim=0)
        for row, state in enumerate(cache.streams):
            if state.idle:
                # The end-of-turn token is read with the next prompt, as it is for a stream that runs alone.
                answer = said[row, self.prompt_length :].tolist()
                end = self.prompt_length + next(i for i, token in enumerate(answer) if token in self.end_ids)
                mask[row, end:-1] = 0
                history[row, -1] = said[row, end]
        cache.said, cache.history, cache.history_mask = said, history, mask
        for stream, state in enumerate(cache.streams):
            if not state.idle:
                cache.end_turn(stream, unread=said.shape[1] > cache.get_seq_length())
            state.idle = False
        cache.clock = max(cache.clock, self.times[-1])

    def with_times(self, output, skip: int):
        """The output as the caller asked for it: with times, without the `skip` tokens of history they left out."""
        if isinstance(output, torch.Tensor):
            return output[:, skip:]
        answer = output.sequences[:, self.prompt_length :].cpu()
        rows, count = answer.shape
        times = torch.tensor(self.times, dtype=torch.float64)[:count] / 1000
        newest = torch.tensor(self.newest, dtype=torch.float64)[:count]  # (steps, streams)
        newest = newest.T.repeat_interleave(rows // len(self.cache.streams), dim=0)  # (rows, steps)
        is_end = torch.isin(answer, torch.tensor(sorted(self.end_ids), dtype=answer.dtype))
        after_end = is_end.cumsum(1) > is_end  # what follows a row's first end
        times = times.expand_as(newest).masked_fill(after_end, math.nan)
        newest = newest.masked_fill(after_end, math.nan)
        output.sequences = output.sequences[:, skip:]
        return StreamingGenerateOutput(
            **{name: output.get(name) for name in StreamingGenerateOutput.__dataclass_fields__ if name in output},
            token_times=times,
            newest_frame_times=newest,
            frame_age=times - newest,
            frame_log=self.frame_log,
            dropped_frames=[
                reader.dropped - before for reader, before in zip(self.clock.readers, self.dropped_before, strict=True)
            ],
        )


class StreamingGenerationMixin(GenerationMixin):
    """Generation whose visual context is refreshed at every decoding step."""

    def refresh_visual(self, cache: StreamingCache, frames) -> None:
        """The visual-refresh hook: shows new frames to the streams of a cache.

        While a turn is under way the frames share the index of the position being read; in silence each takes one of
        its own.

        Args:
            cache: the conversation's state.
            frames: the new frames of its stream, or one such list per stream. A frame is a tuple `(t_sec, pixel_values
                (C, H, W))`, or a [`ReadyFrame`] whose rows are computed.

        Raises:
            ValueError: if the lists are not as many as the streams, or a frame's size differs from those before.
        """
        if len(cache.streams) == 1 and not (len(frames) == 1 and isinstance(frames[0], list)):
            frames = [list(frames)]
        if len(frames) != len(cache.streams):
            raise ValueError(f"frames for {len(frames)} streams, but the cache holds {len(cache.streams)}")
        for stream, arrived in enumerate(frames):
            state = cache.streams[stream]
            for begin in range(0, len(arrived), ENCODE_CHUNK):
                chunk = arrived[begin : begin + ENCODE_CHUNK]
                if not hasattr(chunk[0], "keys"):
                    chunk, state.vision_cache = self.encode_frames(chunk, state.vision_cache)
                for frame in chunk:
                    cache.take_over(stream, frame, self.model.language_model.rotary_emb)
                    cache.clock = max(cache.clock, to_milliseconds(frame.t_sec))

    def encode_frames(self, frames: list, vision_cache) -> tuple[list[ReadyFrame], object]:
        """Computes the rows of new frames `(t_sec, pixel_values)` of one stream, after those in `vision_cache`.

        Returns:
            The frames, ready to be taken over, and the vision tower's new state.
        """
        pixels = torch.stack([frame[1] for frame in frames]).to(self._frame_device)
        keys, values, vision_cache = self.model.frame_rows(pixels, vision_cache)
        grid = self.model.visual_grid(pixels)
        ready = [ReadyFrame(float(frames[i][0]), keys[i], values[i], grid) for i in range(len(frames))]
        return ready, vision_cache

    @property
    def _frame_device(self) -> torch.device:
        """Where frames are brought to. Offloaded weights lie nowhere: who brings them in brings their inputs along."""
        return torch.device("cpu") if self.device.type == "meta" else self.device

    def new_cache(self, streams: int = 1, max_cache_len: int | None = None) -> StreamingCacheMixin:
        """An empty cache for a conversation about `streams` streams side by side.

        Returns:
            A [`StreamingCache`]; with `max_cache_len` a [`StaticStreamingCache`] for that many tokens of text.
        """
        if max_cache_len is None:
            return StreamingCache(self.config, streams)
        return StaticStreamingCache(self.config, max_cache_len, streams)

    def _room_for_text(self, length: int, setting: Callable) -> int | None:
        """The `max_cache_len` of a conversation that begins with `length` tokens; `None` if it is not to be static."""
        if setting("cache_implementation") != "static":
            return None
        # As transformers does: no less than any before, so that what was compiled for it fits.
        before = getattr(self, "_previous_max_cache_length", 0)
        room = max(_longest_text(length, setting), setting("max_cache_len") or 0, before)
        self._previous_max_cache_length = room
        return room

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, generation_mode, batch_size, max_length):
        cache = model_kwargs.get("past_key_values")
        if getattr(cache, "is_streaming", False):
            cache._is_user_defined = True  # it outlives the call
            return
        dynamic = generation_config.cache_implementation in (None, "dynamic")
        if cache is None and generation_config.use_cache is not False and dynamic:
            model_kwargs["past_key_values"] = StreamingCache(self.config, streams=batch_size)
            return
        super()._prepare_cache_for_generation(generation_config, model_kwargs, generation_mode, batch_size, max_length)

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, frames=None, **kwargs
    ):
        """Shows the newest frames to the cache, then prepares the step, at the positions of the cache's timeline."""
        if isinstance(frames, StreamFeed):
            frames.before_step(input_ids)
        inputs = super().prepare_inputs_for_generation(
            input_ids, past_key_values=past_key_values, attention_mask=attention_mask, **kwargs
        )
        if getattr(past_key_values, "is_streaming", False):
            # Not left to the forward pass: it may be compiled, and the timeline is the host's.
            inputs["position_ids"] = past_key_values.read_tokens(inputs["input_ids"], attention_mask)
        return inputs

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
        streamer=None,
        **kwargs,
    ):
        """Answers while it watches. Without frames, this is transformers' own `generate`.

        Args:
            inputs: `(B, L)` prompt tokens, also as `input_ids`. With `past_key_values` of an earlier call either the
                whole conversation or only what is new.
            generation_config: as in transformers.
            frames: an iterable of `(t_sec, pixel_values (C, H, W))` items, by position or attribute; a list of
                iterators is one stream per row. `pixel_values_videos (B, T, C, H, W)` with `frame_times` is a clip
                that has already been seen. A [`SimulatedClock`] or [`WallClock`] is used as it is and stays open.
            fps: frame rate of bare tensors without times.
            start_time: seconds of stream time at which the question is asked. Default: the cache's clock, 0.0 when
                new; the end of the clip with `pixel_values_videos`.
            tokens_per_second: a simulated clock: answer token i is spoken at `start_time + i / tokens_per_second` and
                sees exactly the frames up to then. `None`: the wall clock.
            backpressure: what happens under the wall clock when frames arrive faster than they are encoded:
                `"block"` the source, `"drop_oldest"`, or keep only the `"latest"`.
            frame_timeout: seconds that a source may take for one frame under the wall clock.
            streamer: as in transformers. Its method `put_times(token_times, newest_frame_times, frame_ages)`, if it
                has one, is called before each token with a list over streams, in seconds; `put_frames(frame_times,
                time)` before that, with the frames that each stream has taken over at `time`.
            **kwargs: everything else `generate` takes. `cache_implementation="static"` makes a
                [`StaticStreamingCache`], with which transformers compiles the decoding step; it has room for this
                answer, or for `max_cache_len` tokens in all.

        Returns:
            As transformers; with `return_dict_in_generate=True` a [`StreamingGenerateOutput`].

        Raises:
            StreamingError: if a source fails; its `partial` holds the tokens so far.
            ValueError: for arguments that do not go together, and if the text may outgrow a static cache.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        cache = kwargs.get("past_key_values")
        clip, clip_times = kwargs.pop("pixel_values_videos", None), kwargs.pop("frame_times", None)
        if clip is not None:
            if frames is not None:
                raise ValueError("give either frames or pixel_values_videos, not both")
            frames, start_time = _clip_as_streams(clip, clip_times, start_time)
        setting = partial(self._setting, generation_config, kwargs)
        obstacle = self._obstacle_to_streaming(input_ids, cache, kwargs.get("assistant_model"), setting)
        if frames is None and obstacle and not getattr(cache, "is_streaming", False):
            return super().generate(input_ids, generation_config, *args, streamer=streamer, **kwargs)
        if obstacle:
            raise ValueError(obstacle)
        if cache is None:
            room = self._room_for_text(input_ids.shape[1], setting)
            cache = kwargs["past_key_values"] = self.new_cache(len(input_ids), room)
        start = cache.clock if start_time is None else to_milliseconds(start_time)
        if start < cache.clock:
            raise ValueError(f"start_time={start / 1000} lies before the stream's clock, {cache.clock / 1000} s")
        end_ids = self._end_ids(generation_config, kwargs)
        mask = kwargs.pop("attention_mask", None)
        mask = self._padding_mask(input_ids, end_ids) if mask is None else mask
        conversation, mask = _with_history(cache, input_ids, mask)
        longest = _longest_text(conversation.shape[1], setting)
        if longest > cache.longest_text:
            raise ValueError(
                f"the text may grow to {longest} tokens, but the cache has room for {cache.longest_text}: begin the "
                "conversation with a larger max_cache_len"
            )
        lasting = hasattr(frames, "next_step")  # a clock that its owner opened and will close
        clock: Any = frames
        if not lasting:
            clock = self.open_clock(frames, cache, fps, tokens_per_second, backpressure, frame_timeout)
        feed = StreamFeed(self, cache, clock, mask, end_ids, streamer)
        options = {"attention_mask": mask, "frames": feed, "streamer": streamer}
        with nullcontext() if lasting else closing(clock):
            output = self._watch(
                feed,
                start,
                lasting,
                lambda: super(StreamingGenerationMixin, self).generate(
                    conversation, generation_config, *args, **options, **kwargs
                ),
            )
        return feed.with_times(output, skip=conversation.shape[1] - input_ids.shape[1])

    @staticmethod
    def _watch(feed: StreamFeed, start: int, lasting: bool, decode: Callable):
        """Runs the decoding loop; whatever happens, no half-told turn is left behind."""
        output = None
        try:
            feed.clock.ask(start)
            output = decode()
            return output
        except StreamingError as error:
            error.partial = feed.tokens
            for reader in () if lasting else feed.clock.readers:  # a lasting clock is its owner's to close
                reader.close()
                reader.close_source()
            raise
        finally:
            feed.finish(output if isinstance(output, torch.Tensor) else getattr(output, "sequences", None))
            if output is None and feed.streamer is not None:
                feed.streamer.end()  # or whoever reads from it would wait for ever

    def open_clock(self, frames, cache: StreamingCache, *how, **more) -> Any:
        """The clock that shows frames to the streams of a cache.

        `generate(frames=clock)` uses it for one turn and leaves it open, so that frames may be shown between turns.

        Args:
            frames: as in [`generate`]; `None`: none come.
            cache: the conversation's state.
            *how, **more: `fps`, `tokens_per_second`, `backpressure` and `frame_timeout` as in [`generate`].

        Returns:
            A [`SimulatedClock`] or, without `tokens_per_second`, a [`WallClock`].

        Raises:
            ValueError: if there are not as many streams of frames as the cache has, or an argument is out of range.
        """
        if frames is None:
            frames = [iter(()) for _ in cache.streams]
        batch = isinstance(frames, list) and frames and all(hasattr(item, "__next__") for item in frames)
        streams = frames if batch else [frames]
        if len(streams) != len(cache.streams):
            raise ValueError(
                f"{len(streams)} streams of frames for {len(cache.streams)} rows: give one stream per row"
            )
        return open_clock(streams, cache.streams, self.encode_frames, self._frame_device.type, *how, **more)

    def _end_ids(self, generation_config, kwargs: dict) -> set[int]:
        ids = getattr(generation_config, "eos_token_id", None)
        ids = kwargs.get("eos_token_id", self.generation_config.eos_token_id if ids is None else ids)
        return set() if ids is None else set(torch.as_tensor(ids).flatten().tolist())

    def _padding_mask(self, input_ids: torch.LongTensor, end_ids: set[int]) -> torch.LongTensor:
        """As transformers guesses it: padding is the padding token, unless that also ends answers."""
        padding = self.generation_config.pad_token_id
        if padding is None or padding in end_ids:
            return torch.ones_like(input_ids)
        return (input_ids != padding).long()

    def _setting(self, generation_config, kwargs: dict, name: str):
        """What transformers will go by: the argument, then the configuration given, then the model's own."""
        given = (kwargs.get(name), getattr(generation_config, name, None), getattr(self.generation_config, name, None))
        return next((value for value in given if value is not None), None)

    @staticmethod
    def _obstacle_to_streaming(input_ids, cache, assistant_model, setting: Callable) -> str | None:
        if input_ids is None:
            return "frames need a prompt in input_ids"
        if assistant_model is not None or setting("prompt_lookup_num_tokens") is not None:
            return "assisted decoding does not work with frames: its drafts would see the future"
        if setting("use_cache") is False:
            return "use_cache=False does not work with frames: they live in the cache"
        if setting("cache_implementation") not in (None, "dynamic", "static"):
            return f"cache_implementation={setting('cache_implementation')!r} does not work with frames"
        if cache is not None and not getattr(cache, "is_streaming", False):
            return f"frames need a StreamingCache, not a {type(cache).__name__}"
        return None


def _longest_text(length: int, setting: Callable) -> int:
    """How many tokens the cache holds at most after an answer to `length`: the last one said is not read."""
    new, whole = setting("max_new_tokens"), setting("max_length")
    if new is None and whole is not None:
        return whole - 1
    return length + (20 if new is None else new) - 1  # 20 new tokens is transformers' own default


def _clip_as_streams(clip: torch.Tensor, times: torch.Tensor | None, start_time: float | None):
    """A finished clip `(B, T, C, H, W)` as one stream per row, all due at `start_time`."""
    if times is None:
        times = torch.arange(clip.shape[1])[None].expand(clip.shape[0], -1) * 1000
    rows = [
        [(time / 1000, pixels) for time, pixels in zip(row_times.tolist(), row, strict=True) if time != NEVER]
        for row_times, row in zip(times, clip, strict=True)
    ]
    if start_time is None:
        start_time = max((row[-1][0] for row in rows if row), default=0.0)
    return [iter(row) for row in rows], start_time


def _with_history(cache: StreamingCache, input_ids: torch.LongTensor, mask: torch.LongTensor):
    """The whole conversation and its mask, whether the caller passed all of it or only what is new."""
    past = cache.history
    if past is None:  # a new conversation
        if mask.shape != input_ids.shape or input_ids.shape[1] <= cache.get_seq_length():
            raise ValueError(
                f"input_ids {tuple(input_ids.shape)} and attention_mask {tuple(mask.shape)} must be one whole "
                f"conversation, longer than the {cache.get_seq_length()} tokens in the cache"
            )
        return input_ids, mask
    if len(input_ids) != len(past):
        raise ValueError(f"{len(input_ids)} rows of input_ids, but the conversation has {len(past)}")
    length = past.shape[1]
    whole = input_ids.shape[1] >= length and torch.equal(input_ids[:, :length], cache.said)
    new = input_ids[:, length:] if whole else input_ids
    new_mask = mask[:, mask.shape[1] - new.shape[1] :]
    return torch.cat((past, new), dim=1), torch.cat((cache.history_mask, new_mask), dim=1)
