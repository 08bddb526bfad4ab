"""From token ids to words with their times, after the fact or while they are spoken."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

UNSETTLED = 16  # words at the end of an answer that further tokens may change


class SpokenWord(NamedTuple):
    """One word of an answer.

    Attributes:
        text: The word, with the punctuation that sticks to it.
        time: When its first token was spoken, in seconds of the stream.
        frame_time: The newest frame seen by then, in seconds of the stream; NaN before the first frame.
    """

    text: str
    time: float
    frame_time: float

    @property
    def frame_age(self) -> float:
        """Seconds between the newest frame and the word; NaN before the first frame."""
        return self.time - self.frame_time


def spoken_words(
    tokenizer: Any, ids: Sequence[int], token_times: Sequence[float], frame_times: Sequence[float]
) -> list[SpokenWord]:
    """Joins the pieces of one answer to words; a word has the times of its first piece.

    Args:
        tokenizer: The tokenizer that made the ids.
        ids: Token ids of the answer, without the prompt.
        token_times: When each was spoken, in seconds.
        frame_times: The newest frame each has seen, in seconds.

    Returns:
        The words in order; special tokens leave none.
    """

    def decode(begin: int, end: int) -> list[str]:
        # Cleaning up would glue a token of its own, such as a full stop, to the word before.
        tokens = list(ids[begin:end])
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).split()

    settled: list[SpokenWord] = []
    words: list[SpokenWord] = []  # after those, from the token `begin` on
    first_tokens: list[int] = []
    begin = 0
    for n, (time, frame_time) in enumerate(zip(token_times, frame_times, strict=True), start=1):
        texts = decode(begin, n)
        # A later piece may still change the last word, or end one: times stay, texts follow.
        words = [word._replace(text=text) for word, text in zip(words, texts, strict=False)]
        first_tokens = first_tokens[: len(words)] + [n - 1] * (len(texts) - len(words))
        words += [SpokenWord(text, time, frame_time) for text in texts[len(words) :]]
        # Words far back are done with, or a long answer would be decoded again and again.
        if len(words) > UNSETTLED and decode(first_tokens[-2], n) == texts[-2:]:
            settled, words, begin = settled + words[:-2], words[-2:], first_tokens[-2]
            first_tokens = first_tokens[-2:]
    return settled + words


class TextPieces:
    """Text from tokens, one at a time.

    Args:
        tokenizer: The tokenizer that made the ids; a fast one.

    Attributes:
        text: Everything so far.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.text = ""
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def add(self, token: int) -> str:
        """What the token adds to the text; empty for special tokens and for the first bytes of a character."""
        piece = self._stream.step(self._tokenizer, token) or ""
        self.text += piece
        return piece


class WordStreamer(BaseStreamer):
    """Shows the words of one stream while `generate` speaks them.

    `generate` calls `put_times` with a token's times right before `put` with the token.

    Args:
        tokenizer: The tokenizer that made the ids.
        on_words: Called after each token with all words so far.
    """

    def __init__(self, tokenizer: Any, on_words: Callable[[list[SpokenWord]], None]) -> None:
        self.tokenizer = tokenizer
        self.on_words = on_words
        self._prompt_is_next = True
        self._ids: list[int] = []
        self._times: list[float] = []
        self._frame_times: list[float] = []

    def put_times(
        self, token_time: Sequence[float], newest_frame_time: Sequence[float], frame_age: Sequence[float]
    ) -> None:
        """Takes the times, in seconds, of the token that `put` brings next; one entry for each row of the batch."""
        self._times.append(float(token_time[0]))
        self._frame_times.append(float(newest_frame_time[0]))

    def put(self, value: Tensor) -> None:
        """Takes token ids: the prompt's first, (B, L) or (L,), then one token of each row at a time, (B,).

        Raises:
            ValueError: There is more than one row.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"words are shown for one stream, not for a batch of {value.shape[0]}")
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        self._ids += value.flatten().tolist()
        for times in (self._times, self._frame_times):
            times += [math.nan] * (len(self._ids) - len(times))
        self.on_words(spoken_words(self.tokenizer, self._ids, self._times, self._frame_times))

    def end(self) -> None:
        """Ends this answer; the next `put` brings the next prompt."""
        self._prompt_is_next = True
        self._ids, self._times, self._frame_times = [], [], []
