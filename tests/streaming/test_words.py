import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.streaming.words import SpokenWord, WordStreamer, spoken_words

TOKENIZER = build_tokenizer()
SPECIAL = TOKENIZER.all_special_ids


class PieceTokenizer:
    """Words come in pieces, as with byte-level BPE."""

    pieces = ("Hel", "lo", " wor", "ld", ".", " ", "again", "<eos>")

    def decode(self, ids, skip_special_tokens, clean_up_tokenization_spaces):
        assert skip_special_tokens and not clean_up_tokenization_spaces
        return "".join(self.pieces[i] for i in ids if self.pieces[i] != "<eos>")


def test_a_word_has_the_times_of_its_first_piece():
    times, frames = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5], [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    words = spoken_words(PieceTokenizer(), range(8), times, frames)
    assert words == [("Hello", 0.0, 0.0), ("world.", 1.0, 1.0), ("again", 3.0, 3.0)]


def test_tokens_of_their_own_stay_words_of_their_own():
    ids = TOKENIZER("a red circle , left .", add_special_tokens=False)["input_ids"]
    words = spoken_words(TOKENIZER, ids, range(6), range(6))
    assert [word.text for word in words] == ["a", "red", "circle", ",", "left", "."]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=12))
def test_one_word_per_token_that_is_not_special(ids):
    times = [i / 2 for i in range(len(ids))]
    words = spoken_words(TOKENIZER, ids, times, times)
    expected = [time for token, time in zip(ids, times, strict=True) if token not in SPECIAL]
    assert [word.time for word in words] == expected


def test_frame_age_is_the_time_since_the_newest_frame():
    assert SpokenWord("up", 2.5, 2.0).frame_age == 0.5
    assert math.isnan(SpokenWord("up", 2.5, math.nan).frame_age)


def test_lengths_that_disagree_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        spoken_words(TOKENIZER, [5, 6], [0.0, 1.0], [0.0])


def test_streamer_shows_what_spoken_words_gives_in_the_end():
    ids = TOKENIZER("a red circle , left", add_special_tokens=False)["input_ids"]
    times, frames = [1.0, 1.5, 2.0, 2.5, 3.0], [math.nan, 1.0, 2.0, 2.0, 3.0]
    shown = []
    streamer = WordStreamer(TOKENIZER, shown.append)
    for _ in range(2):  # the second answer starts anew
        shown.clear()
        streamer.put(torch.tensor([[2, 30, 3]]))
        for token, time, frame in zip(ids, times, frames, strict=True):
            streamer.put_times([time], [frame], [time - frame])
            streamer.put(torch.tensor([token]))
        streamer.end()
        assert [len(words) for words in shown] == [1, 2, 3, 4, 5]
        assert str(shown[-1]) == str(spoken_words(TOKENIZER, ids, times, frames))


def test_streamer_works_without_times():
    shown = []
    streamer = WordStreamer(TOKENIZER, shown.append)
    streamer.put(torch.tensor([[2, 3]]))
    streamer.put(TOKENIZER("up", add_special_tokens=False, return_tensors="pt")["input_ids"][0])
    assert shown[-1][0].text == "up" and math.isnan(shown[-1][0].time)


def test_streamer_takes_one_stream():
    with pytest.raises(ValueError, match="batch of 2"):
        WordStreamer(TOKENIZER, print).put(torch.zeros(2, 3, dtype=torch.long))
