"""One question to a model that watches a stream, and its answer with the times of every word."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from streamchat_hf.streaming.words import SpokenWord, WordStreamer, spoken_words


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        question: What was asked, or the question that stands; empty if the model spoke without one.
        start_time: When, in seconds of the stream.
        words: The answer.
        ids: Its token ids, special tokens included.
        token_times: When each token was spoken, in seconds of the stream.
        newest_frame_times: The newest frame each has seen, in seconds of the stream; NaN before the first frame.
    """

    question: str
    start_time: float
    words: list[SpokenWord]
    ids: list[int]
    token_times: list[float]
    newest_frame_times: list[float]

    @property
    def text(self) -> str:
        """The words, joined by spaces."""
        return " ".join(word.text for word in self.words)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values; a time that does not exist is `None`."""
        words = [{"text": w.text, **_times(w.time, w.frame_time)} for w in self.words]
        rows = zip(self.ids, self.token_times, self.newest_frame_times, strict=True)
        tokens = [{"id": token, **_times(time, frame_time)} for token, time, frame_time in rows]
        text = {"question": self.question, "start_time": self.start_time, "answer": self.text}
        return {**text, "words": words, "tokens": tokens}


def _times(time: float, frame_time: float) -> dict[str, float | None]:
    times = {"time": time, "newest_frame_time": frame_time, "frame_age": time - frame_time}
    return {name: None if math.isnan(value) else value for name, value in times.items()}


def ask(
    model: Any,
    processor: Any,
    question: str,
    frames: Iterable[Any],
    *,
    start_time: float = 0.0,
    tokens_per_second: float | None = None,
    max_new_tokens: int = 64,
    on_words: Callable[[list[SpokenWord]], None] | None = None,
) -> Answer:
    """Asks one question, greedily answered while the stream goes on.

    Args:
        model: A model whose `generate` takes `frames`.
        processor: Its processor.
        question: The user's turn.
        frames: One stream, such as `processor.stream` returns.
        start_time: When the question is asked, in seconds of the stream.
        tokens_per_second: Speed of the simulated clock; `None` for the wall clock.
        max_new_tokens: Where the answer is cut if it does not end by itself.
        on_words: Called with all words so far, after each token.

    Returns:
        The answer.
    """
    conversation = [{"role": "user", "content": question}]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    output = model.generate(
        **inputs,
        frames=frames,
        start_time=start_time,
        tokens_per_second=tokens_per_second,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        streamer=WordStreamer(processor.tokenizer, on_words) if on_words else None,
        return_dict_in_generate=True,
    )
    times = output.token_times[0].tolist()
    frame_times = output.newest_frame_times[0].tolist()
    ids = output.sequences[0, output.sequences.shape[1] - len(times) :].tolist()
    words = spoken_words(processor.tokenizer, ids, times, frame_times)
    return Answer(question, start_time, words, ids, times, frame_times)
