"""From token ids to words with their times, after the fact or while they are spoken."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from transformers.generation.streamers import BaseStreamer


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
    words: list[SpokenWord] = []
    for n, (time, frame_time) in enumerate(zip(token_times, frame_times, strict=True), start=1):
        # Cleaning up would glue a token of its own, such as a full stop, to the word before.
        decoded = tokenizer.decode(list(ids[:n]), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        texts = decoded.split()
        # A later piece may still change the last word, or end one: times stay, texts follow.
        words = [word._replace(text=text) for word, text in zip(words, texts, strict=False)]
        words += [SpokenWord(text, time, frame_time) for text in texts[len(words) :]]
    return words


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
