"""The memory buffer of StreamBridge: all that has been seen and said, as rounds; the state of one conversation."""

from dataclasses import replace
from typing import Any

import torch

from streamchat_hf.bridge.chat import ChatPieces
from streamchat_hf.bridge.compression import compress
from streamchat_hf.bridge.language_input import LanguageInput
from streamchat_hf.bridge.rounds import Frame, Round
from streamchat_hf.modeling.cache_streamchat import StreamState
from streamchat_hf.modeling.timeline_streamchat import to_milliseconds


class MemoryBuffer:
    """Everything a conversation about a stream knows, passed to `generate` and returned by it.

    A round is the frames since the last question or answer, and the text that follows them. What comes before the
    first frame, the system prompt, stays in front of all rounds.

    Args:
        family: the adapter of the model's family.
        chat: the words of its chat template.
        max_length: tokens of the input at most; an answer comes on top of that.
        system: the system prompt; `None`: the chat template's own.
        seconds_per_frame: nominal distance of frames.

    Attributes:
        rounds: oldest first.
        front: the tokens before them, never forgotten.
        max_length, seconds_per_frame: as given.
        clock: time of the last token, question or frame in integer milliseconds.
        streams: one [`StreamState`]: waiting frames, and how many have been taken.
        past: keys and values of what the language model has read, a `DynamicCache`; `None` before anything.
        read: what that was, `None` before anything.
    """

    is_streaming = True

    def __init__(
        self,
        family: Any,
        chat: ChatPieces,
        max_length: int,
        system: str | None = None,
        seconds_per_frame: float = 1.0,
    ):
        self._family, self._chat = family, chat
        self.max_length, self.seconds_per_frame = max_length, seconds_per_frame
        self.front = chat.front(system)
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.rounds: list[Round] = []
        self.clock = 0
        self.streams = [StreamState()]
        self.past: Any = None
        self.read: LanguageInput | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""
        return [*self._system, *(message for each in self.rounds for message in each.messages)]

    @property
    def said(self) -> torch.Tensor:
        """`(1, L)` all tokens that are remembered, visual tokens as the family's video token."""
        return self.flatten().ids[None].cpu()

    @property
    def frames(self) -> list[Frame]:
        """The frames that are remembered, oldest first."""
        return [frame for each in self.rounds for frame in each.frames]

    @property
    def visual_bytes(self) -> int:
        """Memory of all visual tokens and of the language model's keys and values; bounded like the input."""
        held = [frame.rows for frame in self.frames]
        held += [] if self.read is None else [self.read.rows]
        if self.past is not None:
            layers = [layer for layer in self.past.layers if layer.is_initialized]
            held += [states for layer in layers for states in (layer.keys, layer.values)]
        return sum(states.numel() * states.element_size() for states in held)

    def get_seq_length(self) -> int:
        """Tokens that are remembered."""
        family = self._family
        return len(self.front) + sum(each.length(family.frame_tokens, family.run_tokens) for each in self.rounds)

    def see(self, frames: list[Frame]) -> None:
        """Takes frames (line 4 of algorithm 1), and keeps to `max_length` also when nobody asks.

        Raises:
            ValueError: if they cannot fit.
        """
        if not frames:
            return
        *past, newest = self.rounds or [Round()]
        if not newest.is_open:
            past = list(self.rounds)
            newest = Round(tuple(self._chat.opening), seconds_per_frame=self.seconds_per_frame)
        self.rounds = self._fitting([*past, replace(newest, frames=(*newest.frames, *frames))])
        state = self.streams[0]
        state.frames_taken += len(frames)
        state.newest_frame_time = frames[-1].t_sec
        self.clock = max(self.clock, to_milliseconds(frames[-1].t_sec))

    def ask(self, question: str) -> None:
        """Takes a question (line 6 of algorithm 1), which stands in place of the one before.

        Raises:
            ValueError: if it holds the token that stands for frames.
        """
        alone = self._chat.question(question, after_frames=False)
        if self._family.video_token_id in alone:
            raise ValueError(f"a question cannot hold frames itself: {question!r}")
        *past, newest = self._rounds_to_speak_in()
        said = self._chat.question(question, after_frames=True) if newest.is_open else alone
        messages = (*newest.messages, {"role": "user", "content": question})
        asked = replace(newest, text=(*newest.text, *said), messages=messages, question=tuple(alone))
        self.rounds = [*(replace(each, question=()) for each in past), asked]

    def begin_answer(self) -> None:
        """Ends what the user shows and says, and makes room for all of it (lines 13 to 15 of algorithm 1).

        Raises:
            ValueError: if it cannot fit.
        """
        *past, newest = self._rounds_to_speak_in()
        silence = self._chat.silence if newest.is_open else []
        text = (*newest.text, *silence, *self._chat.answer_opening)
        self.rounds = self._fitting([*past, replace(newest, text=text)])

    def end_answer(self, ids: list[int]) -> None:
        """Takes what has been answered (line 17 of algorithm 1), without the token that ends it; it may be nothing."""
        newest = self.rounds[-1]
        if ids:
            text = (*newest.text, *ids, *self._chat.answer_closing)
            messages = (*newest.messages, {"role": "assistant", "content": self._chat.text(ids)})
            self.rounds[-1] = replace(newest, text=text, messages=messages)
        else:
            end = len(newest.text) - len(self._chat.answer_opening)
            self.rounds[-1] = replace(newest, text=newest.text[:end])

    def flatten(self) -> LanguageInput:
        """All that is remembered, as the language model reads it (line 12 of algorithm 1)."""
        return self._family.flatten(self.front, self.rounds)

    def _rounds_to_speak_in(self) -> list[Round]:
        """The rounds, with a new one behind them if the newest is answered."""
        return self.rounds if self.rounds and not self.rounds[-1].is_answered else [*self.rounds, Round()]

    def _fitting(self, rounds: list[Round]) -> list[Round]:
        """Line 15 of algorithm 1: they take `max_length` tokens at most, with what stands in front of them."""
        room = self.max_length - len(self.front)
        return compress(rounds, room, self._family.frame_tokens, self._family.run_tokens)
