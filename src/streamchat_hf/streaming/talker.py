"""What differs between the models that a session can be held with: how they are asked, and when they may speak.

A talker holds the conversation of one session: the model's cache and its text. The session brings it the frames, the
questions and the clock, and hears every token.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import torch
from transformers import StoppingCriteriaList

from streamchat_hf.streaming.conversation import Conversation

# Text that a model keeps which is asked about what it sees; frames have memory of their own there.
MAX_TEXT_TOKENS = 4096
# How a whole conversation is tokenised: its template has written the special tokens.
PLAIN = {"add_special_tokens": False}


class NobodyListens(Exception):
    """Nobody takes the token any more: it is not said."""


class Talker(Protocol):
    """A model in a conversation.

    Attributes:
        cache: Its state.
        ends: Tokens that end an answer by themselves.
        frame_words: What stands for a frame in its text; a question cannot hold it.
    """

    cache: Any
    ends: set[int]
    frame_words: tuple[str, ...]

    @property
    def standing(self) -> str:
        """The question that stands; empty without one."""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""

    @property
    def said(self) -> torch.Tensor | None:
        """Its tokens `(1, L)`."""

    def watch(self, frames: list) -> bool:
        """Takes frames over; tells whether there is something to say about them."""

    def ask(self, question: str) -> None:
        """Takes a question, for `speak` to answer."""

    def stand(self, question: str) -> None:
        """Takes a question that stands: `speak` may follow at any time, again and again, or never."""

    def speak(self, start: int, clock: Any, listener: Any) -> None:
        """Answers from `start` on, in milliseconds, what was asked or seen last."""


def choose_policy(model: Any, policy: str | None, activation: Any = None) -> str:
    """When a model speaks: as it was asked to, or else as it knows best.

    Args:
        model: The model.
        policy: What was asked for, if anything.
        activation: What can tell any model when to speak, if anything does.

    Raises:
        ValueError: If it does not know that policy.
    """
    policies = getattr(model, "policies", ("on-question",))
    if activation is not None:
        policies = ("activation", *(known for known in policies if known != "activation"))
    if policy == "activation" and policy not in policies:
        raise ValueError("policy='activation' needs an activation model: give activation=(model, processor)")
    if policy is not None and policy not in policies:
        raise ValueError(f"policy={policy!r} must be one of {', '.join(policies)}")
    return policies[0] if policy is None else policy


def open_talker(
    model: Any,
    processor: Any,
    policy: str,
    system: str | None,
    max_new_tokens: int,
    max_text_tokens: int | None,
    generate_kwargs: dict[str, Any],
) -> Talker:
    """The talker for a model; arguments are those of a session.

    Raises:
        ValueError: If an argument is out of range.
    """
    if max_new_tokens <= 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be positive")
    options = {**generate_kwargs, "max_new_tokens": max_new_tokens}
    if hasattr(model, "family"):
        from streamchat_hf.streaming.bridge_talker import BridgeTalker

        return BridgeTalker(model, processor, system, max_text_tokens, options)
    if "streaming-eos" in getattr(model, "policies", ()):
        return StreamingTalker(model, processor, policy == "streaming-eos", system, max_text_tokens, options)
    return AskedTalker(model, processor, system, max_text_tokens or MAX_TEXT_TOKENS, options)


class AskedTalker:
    """A model that answers while it watches, as StreamChat does, and is silent otherwise.

    Args:
        model: The model.
        processor: Its processor.
        system: The system prompt.
        max_text_tokens: Text kept in the cache. Before a question whose answer might not fit, the oldest turns are
            forgotten, but not the system prompt.
        options: For `generate`.

    Raises:
        ValueError: If no prompt would fit.
    """

    frame_words: tuple[str, ...] = ()  # frames are seen beside the text

    def __init__(
        self, model: Any, processor: Any, system: str | None, max_text_tokens: int, options: dict[str, Any]
    ) -> None:
        self._max_new_tokens = options["max_new_tokens"]
        if self._max_new_tokens >= max_text_tokens:
            raise ValueError(f"max_new_tokens={self._max_new_tokens} must leave room in {max_text_tokens=}")
        is_static = options.get("cache_implementation") == "static"
        self.cache = model.new_cache(1, max_text_tokens if is_static else None)
        self._model = model
        self._conversation = Conversation(processor, system)
        self._max_text_tokens = max_text_tokens
        self._criteria = list(options.pop("stopping_criteria", None) or [])
        self._options = options
        self._prompt: list[int] = []
        self.standing = ""
        self._turn_tokens: list[int] = []  # of each remembered turn, without the system prompt
        own = model.generation_config.eos_token_id
        given = getattr(options.get("generation_config"), "eos_token_id", None)
        ends = options.get("eos_token_id", own if given is None else given)
        self.ends = set() if ends is None else set(torch.as_tensor(ends).flatten().tolist())

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""
        return list(self._conversation.messages)

    @property
    def said(self) -> torch.Tensor | None:
        """The tokens `(1, L)` of all turns; `None` before the first."""
        return self.cache.said

    def watch(self, frames: list) -> bool:
        """Takes frames over, in silence."""
        self._model.refresh_visual(self.cache, frames)
        return False

    def ask(self, question: str) -> None:
        """Takes a question, and makes room for its answer."""
        self._prompt = self._conversation.ask(question)
        self._make_room(len(self._prompt) + self._max_new_tokens)

    def stand(self, question: str) -> None:
        """Takes a question that is asked again each time it speaks: it has not learnt to go on by itself."""
        self.standing = question

    def speak(self, start: int, clock: Any, listener: Any) -> None:
        """Answers from `start` on, in milliseconds; every token sees the newest frame."""
        if self.standing:
            self.ask(self.standing)
        said = torch.empty(1, 0, dtype=torch.long) if self.cache.said is None else self.cache.said.cpu()
        conversation = torch.cat((said, torch.tensor([self._prompt])), dim=1).to(self._model.device)
        try:
            with suppress(NobodyListens):
                self._model.generate(
                    conversation,
                    attention_mask=torch.ones_like(conversation),
                    past_key_values=self.cache,
                    frames=clock,
                    start_time=start / 1000,
                    streamer=listener,
                    stopping_criteria=StoppingCriteriaList([listener.spoke, *self._criteria]),
                    **self._options,
                )
        finally:
            if listener.ids:
                self._conversation.answered(listener.text, listener.ids)
        self._turn_tokens.append(self.cache.said.shape[1] - self._conversation.system_tokens - sum(self._turn_tokens))

    def _make_room(self, tokens: int) -> None:
        """Forgets the oldest turns until so many tokens fit into the text cache."""
        if any(self.cache.is_sliding):  # the text model forgets by itself
            return
        while (
            self._turn_tokens
            and sum(self._turn_tokens) + self._conversation.system_tokens + tokens > self._max_text_tokens
        ):
            begin = self._conversation.system_tokens
            # The last token of the newest turn may have been spoken only: it is read with the next prompt.
            end = min(begin + self._turn_tokens.pop(0), int(self.cache.get_seq_length()))
            self.cache.forget_text(begin, end)
            self._conversation.forget_oldest()


class StreamingTalker:
    """A model that reads frames between words and has learnt when to speak, as VideoLLM-online has.

    Args:
        model: The model.
        processor: Its processor.
        speaks_first: Whether it may speak without being asked.
        system: The system prompt; `None`: the processor's own.
        max_text_tokens: Words and frames kept in the cache; `None`: as many as the model is made for.
        options: Of `generate`; also `threshold`.

    Raises:
        ValueError: If one of them does not go with a stream.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        speaks_first: bool,
        system: str | None,
        max_text_tokens: int | None,
        options: dict[str, Any],
    ) -> None:
        self.cache = model.new_cache(max_text_tokens)
        self._model, self._processor, self._speaks_first = model, processor, speaks_first
        self._threshold: float | None = options.pop("threshold", None)
        self._criteria: list[Callable] = list(options.pop("stopping_criteria", None) or [])
        self._voice = model.voice(**options)
        self.ends: set[int] = self._voice.ends
        self.frame_words: tuple[str, ...] = (processor.v_placeholder,)
        self._beginning = [{"role": "system", "content": processor.system_prompt if system is None else system}]
        self.standing = ""
        self._turns: list[tuple[dict[str, str], int]] = []  # each with how many tokens there had been after it

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""
        return [*self._beginning, *(message for message, _ in self._turns)]

    @property
    def said(self) -> torch.Tensor | None:
        """Words and frames `(1, L)` that have not been forgotten; `None` before the first."""
        return torch.tensor([self.cache.ids + self.cache.pending]) if self._has_begun else None

    def watch(self, frames: list) -> bool:
        """Reads frames, all in one forward pass; tells whether there is something to say about one of them."""
        if not self._has_begun:
            self.cache.hear(self._processor.tokenizer(self._text(add_stream_prompt=True), **PLAIN)["input_ids"])
        self._model.refresh_visual(self.cache, frames, self._threshold)
        return self._speaks_first and self.cache.speaks

    def ask(self, question: str) -> None:
        """Takes a question."""
        self.standing = ""
        message = {"role": "user", "content": question}
        if self._has_begun:
            text = self._text(message, add_generation_prompt=True, add_stream_query_prompt=self.cache.open_run)
            self.cache.hear(self._processor.piece_ids(text))
            self._remember(message)
        else:
            self._beginning.append(message)
            self.cache.hear(self._processor.tokenizer(self._text(add_generation_prompt=True), **PLAIN)["input_ids"])

    def stand(self, question: str) -> None:
        """Takes a question that frames follow, not the answer."""
        self.standing = question
        message = {"role": "user", "content": question}
        if self._has_begun:
            text = self._text(message, add_stream_prompt=True, add_stream_query_prompt=self.cache.open_run)
            self.cache.hear(self._processor.piece_ids(text))
            self._remember(message)
        else:
            self._beginning.append(message)

    def speak(self, start: int, clock: Any, listener: Any) -> None:
        """Speaks from `start` on, in milliseconds; frames that come meanwhile wait."""
        newest = self.cache.streams[0].newest_frame_time

        def spoke(token: int, now: int) -> bool:
            listener.put_times([now / 1000], [newest], [now / 1000 - newest])
            said = torch.tensor([[*listener.ids, token]])
            return any(bool(criterion(said, None)) for criterion in (listener.spoke, *self._criteria))

        clock.ask(start)
        try:
            with suppress(NobodyListens):
                self._model.speak(self.cache, clock, self._voice, spoke)
        finally:
            if listener.ids:
                self._remember({"role": "assistant", "content": listener.text.strip()})

    @property
    def _has_begun(self) -> bool:
        return bool(self.cache.ids or self.cache.pending)

    def _text(self, *messages: dict[str, str], **ending: bool) -> str:
        """Messages as the template writes them, those that the conversation begins with if there are none."""
        return self._processor.apply_chat_template(list(messages or self._beginning), tokenize=False, **ending)

    def _remember(self, message: dict[str, str]) -> None:
        """Adds a message, and forgets those of which the cache holds nothing; the newest question stays in both."""
        cache = self.cache
        self._turns.append((message, cache.forgotten + len(cache.ids) + len(cache.pending)))
        gone = cache.forgotten + cache.prompt_length
        asked = [turn for turn, _ in self._turns if turn["role"] == "user"][-1:]
        self._turns = [(turn, end) for turn, end in self._turns if end > gone or turn in asked]
