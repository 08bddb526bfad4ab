"""StreamBridge: a video LLM that ships in transformers watches a stream and answers about it.

Algorithm 1 of the slides, by its lines. A session is this loop; `generate` is one turn of it, with a question.

```
 3 while F_t do                            for arrivals in clock.watch(...):
 4     MB <- I(F_t)                            bridge.refresh_visual(memory, frames)   # encoded in the reader's thread
 5     if Q at timestamp t then                if asked:
 6         MB <- Q; t_Q <- t                       memory.ask(question); activation.ask(question)
 8     D <- ACT(Q, F_tQ:t-1, F_t) or False     if activation.watch(frames):            # False before any question
12         R <- LLM(COM(Flatten(MB)))              bridge.speak(memory, clock, voice, spoke)
17         MB <- R
```
"""

from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from streamchat_hf.bridge.answering import BridgeCall
from streamchat_hf.bridge.chat import ChatPieces
from streamchat_hf.bridge.families import family_of
from streamchat_hf.bridge.language_input import LanguageInput
from streamchat_hf.bridge.memory_buffer import MemoryBuffer
from streamchat_hf.bridge.processor import BridgeProcessor, SavedProcessor
from streamchat_hf.bridge.rounds import Frame
from streamchat_hf.modeling.clock_streamchat import open_clock
from streamchat_hf.modeling.generation_videollm_online import (
    LiveGenerateOutput,
    LiveVoice,
    StreamVoiceMixin,
    one_stream,
    start_of,
)
from streamchat_hf.modeling.reader_streamchat import ENCODE_CHUNK

# Tokens that the authors let the language model read (section 5.3).
MAX_LENGTH = 16384


class VoiceIds(NamedTuple):
    """What a voice has to know of the configuration: the end of an answer, and what cannot be said."""

    eos_token_id: int
    v_placeholder_id: int


class StreamBridge(StreamVoiceMixin):
    """A video LLM that watches a stream: it remembers frames, questions and answers, and old rounds in less detail.

    The model is used as it is. Frames are encoded once, on arrival; an answer reads the whole memory, compressed to
    `max_length` tokens, and sees no frame that comes while it is given. If at least half of the input is the beginning
    of what was read for the answer before, keys and values of that are used again.

    Args:
        model: a model of a family that [`FAMILIES`] knows, loaded.
        processor: its processor of transformers.
        activation: what says when it is time to answer without being asked, an [`ActivationWatcher`]; `None`: only
            questions are answered.
        max_length: tokens of the input at most, system prompt and question included; an answer comes on top.
        reuse: whether keys and values are used again; `False` reads everything for every answer, as the authors do.

    Attributes:
        model, activation, max_length, reuse: as given.
        family: the adapter.
        processor: a [`BridgeProcessor`].
        policies: when a session with this model may speak; the first is the default.

    Raises:
        ValueError: for a model of another family, or a chat template that a stream cannot go on in.
    """

    def __init__(
        self, model: Any, processor: Any, activation: Any = None, max_length: int = MAX_LENGTH, reuse: bool = True
    ):
        self.model, self.activation, self.max_length, self.reuse = model, activation, max_length, reuse
        self.family = family_of(model.config)(model, processor.tokenizer)
        self.processor = BridgeProcessor(processor, self.family)
        video_token = self.processor.tokenizer.convert_ids_to_tokens(self.family.video_token_id)
        self.chat = ChatPieces(self.processor.tokenizer, video_token, self.processor.chat_template)
        self.policies = ("on-question",) if activation is None else ("activation", "on-question")

    @classmethod
    def from_pretrained(
        cls,
        path: Any,
        activation: Any = None,
        max_length: int = MAX_LENGTH,
        trust_remote_code: bool = False,
        revision: str = "main",
        **model_options: Any,
    ) -> "StreamBridge":
        """Loads a model and its processor.

        Args:
            path: folder or Hub id.
            activation, max_length: as of the class.
            trust_remote_code: whether code that comes with it may run.
            revision: branch, tag or commit on the Hub.
            **model_options: for the model, such as `dtype` or `device_map`.

        Raises:
            ValueError: if the model is of no family that is known.
        """
        options = {"trust_remote_code": trust_remote_code, "revision": revision}
        family_of(AutoConfig.from_pretrained(path, **options))  # before gigabytes are loaded
        model_options["use_safetensors"] = True
        model = AutoModelForImageTextToText.from_pretrained(path, **options, **model_options).eval()
        return cls(model, SavedProcessor(path, **options), activation, max_length)

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def generation_config(self) -> Any:
        """The model's settings for `generate`."""
        return self.model.generation_config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def voice_ids(self) -> VoiceIds:
        """The end of an answer, and what cannot be said."""
        return VoiceIds(self.chat.answer_closing[0], self.family.video_token_id)

    def new_cache(self, max_length: int | None = None, system: str | None = None) -> MemoryBuffer:
        """An empty memory for a conversation about one stream; `max_length` as of the class."""
        longest = self.max_length if max_length is None else max_length
        return MemoryBuffer(self.family, self.chat, longest, system, 1 / self.processor.fps)

    @torch.no_grad()
    def encode_frames(self, frames: list, vision_cache: Any) -> tuple[list[Frame], Any]:
        """Encodes new frames `(t_sec, pixel_values (C, H, W))`, each by itself: I(F) of algorithm 1.

        Returns:
            The frames, ready to be remembered, and `vision_cache`, as there is no state.
        """
        pixels = torch.stack([frame[1] for frame in frames]).to(self.device, self.model.dtype)  # (T, C, H, W)
        rows, grid = self.family.encode(pixels)  # (T, k, D)
        # Clones: a frame that is forgotten must not be kept by those that were encoded with it.
        ready = [Frame(float(frame[0]), each.clone(), grid) for frame, each in zip(frames, rows, strict=True)]
        return ready, vision_cache

    @torch.no_grad()
    def refresh_visual(self, cache: MemoryBuffer, frames: Iterable) -> None:
        """Takes frames into the memory; nothing is read by the language model.

        Args:
            cache: the conversation's memory.
            frames: new ones, in order: tuples `(t_sec, pixel_values (C, H, W))`, or [`Frame`]s.

        Raises:
            ValueError: if they cannot fit.
        """
        frames = list(frames)
        if frames and not hasattr(frames[0], "rows"):
            raw, frames = frames, []
            for begin in range(0, len(raw), ENCODE_CHUNK):
                frames += self.encode_frames(raw[begin : begin + ENCODE_CHUNK], None)[0]
        cache.see(frames)

    @torch.no_grad()
    def speak(self, cache: MemoryBuffer, clock: Any, voice: LiveVoice, spoke: Callable[[int, int], bool]) -> None:
        """Gives one answer: to what was asked last, or about what was seen last (lines 12 to 17 of algorithm 1).

        Whatever happens, the memory holds what was delivered and no more.

        Args:
            cache: the conversation's memory.
            clock: tells when each token is spoken.
            voice: chooses the tokens.
            spoke: called as `spoke(token, time in milliseconds)` with each token; ends the answer by returning True.
                If it raises, the token has not been said.
        """
        said: list[int] = []
        cache.begin_answer()  # lines 13 to 15: InputEmbeds <- COM(InputEmbeds), written back to MB
        try:
            logits = self._read_all(cache, cache.flatten())  # line 12: InputEmbeds <- Flatten(MB)
            while True:  # line 16: R <- LLM(InputEmbeds)
                now = clock.next_token()
                token = voice.choose(said, logits)
                stopped = spoke(token, now)
                said.append(token)
                cache.clock = max(cache.clock, now)
                if stopped or token in voice.ends or len(said) == voice.max_new_tokens:
                    break
                logits = self._read_next(cache, token)
        finally:
            cache.end_answer(said[:-1] if said and said[-1] in voice.ends else said)  # line 17: MB <- R

    def _read_all(self, cache: MemoryBuffer, whole: LanguageInput) -> torch.Tensor:
        """Reads an input, all but a beginning that has been read before; the logits `(1, vocabulary)` at its end."""
        known = 0
        if self.reuse and cache.read is not None and not any(cache.past.is_sliding):
            known = min(cache.read.common_prefix(whole), len(whole) - 1)
        # What is new attends to all, a rectangle of (L - known) L; reading all of it is a triangle of L L / 2.
        if 2 * known < len(whole):
            known = 0
        if known:
            cache.past.crop(known - cache.past.get_seq_length())
        else:
            cache.past = DynamicCache(config=self.config.get_text_config(decoder=True))
        return self._read(cache, whole, known)

    def _read_next(self, cache: MemoryBuffer, token: int) -> torch.Tensor:
        """Reads the word that was just said; the logits `(1, vocabulary)` after it."""
        before: Any = cache.read
        return self._read(cache, before.followed_by(token), len(before))

    def _read(self, cache: MemoryBuffer, whole: LanguageInput, known: int) -> torch.Tensor:
        cache.read = None  # if it fails, nobody knows how much of it has been read
        logits = self.family.forward(whole.part(known, len(whole)), cache.past)
        cache.read = whole
        return logits

    def open_clock(self, frames: Any, cache: MemoryBuffer, *how: Any, **more: Any) -> Any:
        """The clock that shows the frames of one stream to a memory.

        Args:
            frames: an iterable of frames, or a list with one iterator of them. A rate of its own, `frames.fps`, is
                taken over for the frames that come.
            cache: the conversation's memory.
            *how, **more: `fps`, `tokens_per_second`, `backpressure` and `frame_timeout` as in [`generate`].

        Raises:
            ValueError: if there is more than one stream, or an argument is out of range.
        """
        streams = one_stream(frames)
        fps = getattr(streams[0], "fps", None) or (how[0] if how else more.get("fps"))
        cache.seconds_per_frame = 1 / (fps or self.processor.fps)
        return open_clock(streams, cache.streams, self.encode_frames, self.device.type, *how, **more)

    @torch.no_grad()
    def generate(
        self,
        messages: str | list[dict[str, str]],
        generation_config: Any = None,
        *,
        frames: Iterable | None = None,
        fps: float | None = None,
        start_time: float | None = None,
        tokens_per_second: float | None = None,
        backpressure: str = "block",
        frame_timeout: float = 30.0,
        streamer: Any = None,
        past_key_values: MemoryBuffer | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | LiveGenerateOutput:
        """Watches until `start_time`, is asked, and answers. To be told things unasked, open a session.

        Args:
            messages: the question, or messages of the roles `system`, first in a new conversation, and `user`.
            generation_config: as in transformers.
            frames: an iterable of `(t_sec, pixel_values (C, H, W))` items, by position or attribute. A clock of
                [`open_clock`] is used as it is and stays open. `None`: no new ones.
            fps: frame rate of bare tensors without times.
            start_time: seconds of stream time at which the question is asked; frames up to then are seen. Default:
                the memory's clock, 0.0 when new.
            tokens_per_second: a simulated clock: answer token i is spoken i / tokens_per_second after the question.
                `None`: the wall clock.
            backpressure: what happens under the wall clock when frames arrive faster than they are encoded:
                `"block"` the source, `"drop_oldest"`, or keep only the `"latest"`.
            frame_timeout: seconds that a source may take for one frame under the wall clock.
            streamer: as in transformers; its methods `put_frames` and `put_times`, if it has them, are called as
                StreamChat's `generate` does.
            past_key_values: the memory of an earlier call; `None`: a new one.
            **kwargs: `max_new_tokens` (default 100), sampling options, `logits_processor` and `stopping_criteria`,
                which see the tokens of the answer alone.

        Returns:
            `(1, length)` the conversation as far as it is remembered; with `return_dict_in_generate=True` a
            [`LiveGenerateOutput`].

        Raises:
            StreamingError: if the source fails; its `partial` holds the conversation so far.
            ValueError: for arguments that do not go together.
        """
        criteria = kwargs.pop("stopping_criteria", None)
        voice = self.voice(generation_config, kwargs.pop("logits_processor", None), **kwargs)
        system, questions = _split(messages)
        if past_key_values is not None and system is not None:
            raise ValueError("a conversation that goes on has its system prompt already")
        cache = self.new_cache(system=system) if past_key_values is None else past_key_values
        start = start_of(cache, start_time)
        lasting = hasattr(frames, "next_token")  # a clock that its owner opened and will close
        clock: Any = frames
        if not lasting:
            clock = self.open_clock(frames, cache, fps, tokens_per_second, backpressure, frame_timeout)
        dropped = clock.readers[0].dropped
        call = BridgeCall(self, cache, clock, voice, streamer, criteria)
        with nullcontext() if lasting else closing(clock):
            call.run(questions, start, close_source=not lasting)
        if not voice.config.return_dict_in_generate:
            return call.sequences
        return call.output(clock.readers[0].dropped - dropped)


def _split(messages: str | list[dict[str, str]]) -> tuple[str | None, list[str]]:
    """The system prompt, if there is one, and the questions."""
    if isinstance(messages, str):
        return None, [messages]
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    asked = messages if system is None else messages[1:]
    if not asked or any(message["role"] != "user" for message in asked):
        raise ValueError("messages are a system prompt, if any, and questions of the user: answers are in the memory")
    return system, [message["content"] for message in asked]
