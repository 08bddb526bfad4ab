"""A bridged model in a session: it remembers what it sees, is asked or told to speak, and answers."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from streamchat_hf.streaming.talker import NobodyListens


class BridgeTalker:
    """A video LLM behind a [`StreamBridge`]: frames, questions and answers go into its memory, as they come.

    `speak` answers the newest question, or goes on about what was seen since: it needs no new question. When to speak
    is not its own decision: `watch` never asks for it.

    Args:
        model: The bridge.
        processor: Its processor.
        system: The system prompt; `None`: the chat template's own.
        max_text_tokens: Tokens that an answer reads, frames and text; `None`: the bridge's `max_length`.
        options: For `generate`.

    Attributes:
        cache: The memory.
        ends: Tokens that end an answer by themselves.
        frame_words: What stands for a frame in its text; a question cannot hold it.

    Raises:
        ValueError: If one of them does not go with a stream.
    """

    def __init__(
        self, model: Any, processor: Any, system: str | None, max_text_tokens: int | None, options: dict[str, Any]
    ) -> None:
        self.cache = model.new_cache(max_text_tokens, system)
        self._model = model
        self._criteria: list[Callable] = list(options.pop("stopping_criteria", None) or [])
        self._voice = model.voice(**options)
        self.ends: set[int] = self._voice.ends
        self.frame_words: tuple[str, ...] = (model.chat.video_token,)
        self.standing = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""
        return self.cache.messages

    @property
    def said(self) -> torch.Tensor | None:
        """Words and frames `(1, L)` that are remembered; `None` before the first."""
        return self.cache.said if self.cache.rounds else None

    def watch(self, frames: list) -> bool:
        """Takes frames into the memory, in silence."""
        self._model.refresh_visual(self.cache, frames)
        return False

    def ask(self, question: str) -> None:
        """Takes a question."""
        self.standing = ""
        self.cache.ask(question)

    def stand(self, question: str) -> None:
        """Takes a question, which every answer is about until the next one."""
        self.ask(question)
        self.standing = question

    def speak(self, start: int, clock: Any, listener: Any) -> None:
        """Answers from `start` on, in milliseconds; frames that come meanwhile wait."""
        newest = self.cache.streams[0].newest_frame_time

        def spoke(token: int, now: int) -> bool:
            listener.put_times([now / 1000], [newest], [now / 1000 - newest])
            said = torch.tensor([[*listener.ids, token]])
            return any(bool(criterion(said, None)) for criterion in (listener.spoke, *self._criteria))

        clock.ask(start)
        with suppress(NobodyListens):
            self._model.speak(self.cache, clock, self._voice, spoke)
