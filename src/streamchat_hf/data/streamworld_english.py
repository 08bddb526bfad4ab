"""StreamWorld's talk in English, for a language model that was trained on it: word for word, so that times stay.

    what colour is it ?        What colour is it?
    a red 3 , still            a red three moving nowhere
    now 1                      now one

In `streamworld_dialogue` every word is a token of a tiny vocabulary. A real tokenizer has one token for nearly every
English word of this talk, with the space before it; digits are written out because it has none for those.
"""

from __future__ import annotations

import string
from collections.abc import Collection, Sequence

from streamchat_hf.data.streamworld import COUNTS, DIGITS
from streamchat_hf.data.streamworld_dialogue import vocabulary

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_ENGLISH = {**dict(zip(DIGITS, NUMBERS, strict=True)), ",": "moving", "still": "nowhere"}
_WORDS = {english: word for word, english in _ENGLISH.items()}


def english_question(text: str) -> str:
    """Write a question as people do: `"what colour is it ?"` as `"What colour is it?"`."""
    return text.replace(" ?", "?").replace(" .", ".").capitalize()


def english_answer(words: Sequence[str]) -> list[str]:
    """Write the words of an answer in English, as many as they were."""
    return [_ENGLISH.get(word, word) for word in words]


def streamworld_word(text: str, slots: Collection[str]) -> str:
    """Return the word of StreamWorld that an English word stands for, or the word itself if it stands for none.

    Args:
        text: As it was spoken, with the punctuation that sticks to it.
        slots: What the scene has, `World.slots`: where it has no digit, `"three"` is a number of things.
    """
    word = text.strip(string.punctuation).lower() or text
    if word in COUNTS and "digit" not in slots:
        return word
    return _WORDS.get(word, word)


def speaks_english(tokenizer_words: Collection[str]) -> bool:
    """Whether a tokenizer is not that of StreamWorld's own language.

    Args:
        tokenizer_words: Its vocabulary.
    """
    return not set(vocabulary()) <= set(tokenizer_words)
