"""When each word of an answer is spoken, and from that, each token (section 2.3 of the StreamChat paper).

A dense instruction has an interval and an answer. The instruction is asked at the start of the interval, all at once;
the words of the answer are spread evenly over it. Times are seconds in the video.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_WORD = re.compile(r"\S+")


def spoken_words(text: str) -> list[str]:
    """Returns the words of a text: what stands between white space, punctuation included."""
    return _WORD.findall(text)


def word_times(text: str, start: float, end: float) -> list[float]:
    """Spreads the words of a text evenly over an interval, the first at its start and the last at its end.

    Args:
        text: Of n words.
        start: Of the interval, in seconds.
        end: Of the interval, in seconds.

    Returns:
        n times in seconds: `start + i * (end - start) / (n - 1)`; a single word is spoken at the start.

    Raises:
        ValueError: The interval ends before it starts.
    """
    if end < start:
        raise ValueError(f"the interval ends before it starts: {start:g} to {end:g} s")
    count = len(spoken_words(text))
    # The next turn may start at the very end, so rounding must not carry the last word past it.
    return [min(start + i * (end - start) / max(count - 1, 1), end) for i in range(count)]


def show_word_times(text: str, times: Sequence[float]) -> str:
    """Writes a text in the paper's notation: `<5>The <6>person <7>is`.

    Args:
        text: Of n words.
        times: Of the n words, in seconds.

    Raises:
        ValueError: There are more or fewer times than words.
    """
    return " ".join(f"<{time:g}>{word}" for word, time in zip(spoken_words(text), times, strict=True))


def token_times(text: str, offsets: Sequence[tuple[int, int]], word_times: Sequence[float]) -> list[float]:
    """Gives each token the time of its word.

    A token belongs to the word of its first character that is not white space: pieces and punctuation ride with their
    word, white space with the word that follows. What stands before the first word has the first word's time, what
    stands after the last one, such as an end-of-turn token, has the last word's.

    Args:
        text: Of n words.
        offsets: Where each token begins and ends in the text, in characters, as a fast tokenizer returns them with
            `return_offsets_mapping=True`. They may lie outside of the text, where it is part of a longer one. An empty
            range, which special tokens have, rides with the next token that is not empty, or else ends the turn.
        word_times: Of the n words, in seconds, never decreasing.

    Returns:
        A time in seconds for each token, never decreasing.

    Raises:
        ValueError: There are more or fewer times than words, or there is no word.
    """
    ends = [match.end() for match in _WORD.finditer(text)]
    if len(ends) != len(word_times) or not ends:
        raise ValueError(f"{len(word_times)} times for the {len(ends)} words of {text!r}")
    times = []
    following = word_times[-1]
    for start, end in reversed(offsets):  # from the back, because an empty range takes the time of what follows it
        if start < end:
            # A character belongs to the first word that ends after it; for white space that is the next one.
            following = word_times[min(bisect_right(ends, start), len(ends) - 1)]
        times.append(following)
    return list(accumulate(reversed(times), max))
