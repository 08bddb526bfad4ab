import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from session_helpers import chat_tokenizer
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.streaming.words import SpokenWord, TextPieces, WordStreamer, spoken_words

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


def words_decoded_from_the_start(tokenizer, ids, times):
    words = []
    for n, time in enumerate(times, start=1):
        texts = tokenizer.decode(ids[:n], skip_special_tokens=True, clean_up_tokenization_spaces=False).split()
        words = [(text, at) for text, (_, at) in zip(texts, words, strict=False)]
        words += [(text, time) for text in texts[len(words) :]]
    return words


@pytest.mark.parametrize("tokenizer", [TOKENIZER, chat_tokenizer()], ids=["words", "bytes"])
@given(data=st.data())
def test_a_long_answer_is_not_decoded_from_the_start_for_every_word(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), min_size=20, max_size=120))
    times = [i / 2 for i in range(len(ids))]
    words = spoken_words(tokenizer, ids, times, times)
    assert [(word.text, word.time) for word in words] == words_decoded_from_the_start(tokenizer, ids, times)


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


def spoken_piece_by_piece(tokenizer, ids):
    pieces = TextPieces(tokenizer)
    return pieces, [pieces.add(token) for token in ids]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=12))
def test_pieces_add_up_to_the_text(ids):
    pieces, added = spoken_piece_by_piece(TOKENIZER, ids)
    assert "".join(added) == pieces.text == TOKENIZER.decode(ids, skip_special_tokens=True)
    assert all(piece == "" for token, piece in zip(ids, added, strict=True) if token in SPECIAL)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=20))
def test_pieces_of_bytes_add_up_to_characters(text):
    tokenizer = chat_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces, added = spoken_piece_by_piece(tokenizer, ids)
    assert "".join(added) == pieces.text == text


def test_the_first_bytes_of_a_character_add_nothing():
    tokenizer = chat_tokenizer()
    ids = tokenizer("日🙂", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7
    assert spoken_piece_by_piece(tokenizer, ids)[1] == ["", "", "日", "", "", "", "🙂"]


@given(st.lists(st.integers(0, 299), max_size=20))
def test_bytes_that_are_no_text_do_no_harm(ids):
    """A model may say anything; what has been told is never taken back."""
    tokenizer = chat_tokenizer()
    pieces, added = spoken_piece_by_piece(tokenizer, ids)
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert whole.startswith("".join(added)) and pieces.text == "".join(added)
