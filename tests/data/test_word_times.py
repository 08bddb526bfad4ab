import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.data.word_times import show_word_times, spoken_words, token_times, word_times

SENTENCES = [
    "The person is cooking right now.",
    "  a red circle , left  ",
    "Don't stop—he's (still) there… isn't he?!",
    "他正在做饭。 然后 吃饭了!",
    "Смотри: кошка прыгает, café naïve ﬁn",
    "nice 👩‍🍳 work 🎉🎉 é e\u0301",
    "one\ttwo\nthree\u00a0four\u2003five",
    "x",
]


def byte_level(trim_offsets: bool) -> PreTrainedTokenizerFast:
    """As GPT-2 and Qwen have it: an emoji is several tokens; a space belongs to the token that follows, or to none."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=trim_offsets)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


def metaspace(split: bool) -> PreTrainedTokenizerFast:
    """As SentencePiece has it; without splitting at spaces a token can hold more than one word."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "<end>"], unk_token="<unk>")
    tokenizer.train_from_iterator(["the cat sat", "the cat ran", *SENTENCES] * 5, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


TOKENIZERS = {
    "words": build_tokenizer(),
    "bytes": byte_level(trim_offsets=True),
    "bytes with spaces": byte_level(trim_offsets=False),
    "pieces": metaspace(split=True),
    "pieces over spaces": metaspace(split=False),
}

texts = st.one_of(st.sampled_from(SENTENCES), st.text(max_size=30), st.text("ab ,.\n\t👍🏽他é", max_size=30))
with_words = texts.filter(lambda text: text.strip())
seconds = st.floats(0, 1e5)


def naive_token_time(text: str, span: tuple[int, int], times: list[float]) -> float | None:
    """The time of the word of a span's first character that is not white space; `None` if it has no such character."""
    for at in range(*span):
        if not text[at].isspace():
            return times[len(text[:at].split()) - (at > 0 and not text[at - 1].isspace())]
    return None


def test_the_example_of_the_paper():
    answer = "The person is cooking right now."
    times = word_times(answer, 5, 10)
    assert times == [5, 6, 7, 8, 9, 10]
    assert show_word_times(answer, times) == "<5>The <6>person <7>is <8>cooking <9>right <10>now."


def test_one_word_is_spoken_at_the_start_and_none_never():
    assert word_times("Cooking.", 5, 10) == [5]
    assert word_times(" \n", 5, 10) == []
    assert show_word_times("Yes, cooking.", word_times("Yes, cooking.", 2.5, 3)) == "<2.5>Yes, <3>cooking."


def test_an_interval_does_not_end_before_it_starts():
    with pytest.raises(ValueError, match=r"ends before it starts: 10 to 5 s"):
        word_times("a b", 10, 5)


@given(texts)
def test_words_are_what_python_splits(text):
    assert spoken_words(text) == text.split()


@given(texts, seconds, seconds)
def test_words_fill_the_interval_evenly(text, start, length):
    times = word_times(text, start, start + length)
    words = text.split()
    assert len(times) == len(words)
    assert times == sorted(times)
    if words:
        assert times[0] == start
    if len(words) > 1:
        assert times[-1] == pytest.approx(start + length)
        gaps = [b - a for a, b in itertools.pairwise(times)]
        assert gaps == pytest.approx([length / (len(words) - 1)] * len(gaps), abs=1e-6)
    assert show_word_times(text, times).count(">") == len(words) + text.count(">")


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=with_words, start=seconds, length=seconds)
@settings(deadline=None, max_examples=60)
def test_a_token_has_the_time_of_its_word(name, text, start, length):
    tokenizer = TOKENIZERS[name]
    times = word_times(text, start, start + length)
    spans = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)["offset_mapping"]
    spans += [(0, 0), (len(text), len(text) + 7)]  # an end of turn of its own, and one written into a longer text
    found = token_times(text, spans, times)
    assert len(found) == len(spans)
    assert found == sorted(found)
    assert found[-2:] == times[-1:] * 2
    for time, span in zip(found[:-2], spans, strict=False):
        expected = naive_token_time(text, span, times)
        assert time in times if expected is None else time == expected


@pytest.mark.parametrize("name", ["bytes", "bytes with spaces", "pieces"])
@pytest.mark.parametrize("text", SENTENCES)
def test_the_first_token_of_every_word_is_spoken_at_its_time(name, text):
    times = [float(i) for i in range(len(text.split()))]
    encoded = TOKENIZERS[name](text, return_offsets_mapping=True, add_special_tokens=False)
    assert sorted(set(token_times(text, encoded["offset_mapping"], times))) == times


def test_pieces_and_punctuation_ride_with_their_word():
    text = "Look, cooking!  now ."
    spans = [(0, 4), (4, 5), (5, 10), (10, 13), (13, 14), (14, 16), (16, 19), (19, 21), (21, 21)]
    assert token_times(text, spans, [1, 2, 3, 4]) == [1, 1, 2, 2, 2, 3, 3, 4, 4]


def test_what_stands_around_the_words():
    # A start token, white space before, between and after, an empty piece between, and two end-of-turn tokens.
    text = "\n\nHi you \n"
    spans = [(0, 0), (0, 1), (1, 4), (4, 5), (0, 0), (5, 8), (8, 10), (0, 0), (10, 20)]
    assert token_times(text, spans, [3, 4]) == [3, 3, 3, 4, 4, 4, 4, 4, 4]


def test_an_end_of_turn_after_a_cut_answer():
    assert token_times("one two three", [(0, 3), (4, 7), (0, 0)], [1, 2, 3]) == [1, 2, 3]


def test_a_text_within_a_longer_one():
    longer, text = "assistant\nHi you<end>", "Hi you"
    spans = [(0, 9), (9, 10), (10, 12), (12, 16), (16, 21)]
    begin = longer.index(text)
    assert token_times(text, [(a - begin, b - begin) for a, b in spans], [3, 4]) == [3, 3, 3, 4, 4]


@pytest.mark.parametrize(("text", "times"), [("two words", [1.0]), ("one", [1.0, 2.0]), (" ", [])])
def test_each_word_has_one_time(text, times):
    with pytest.raises(ValueError, match=f"{len(times)} times for the {len(text.split())} words of"):
        token_times(text, [(0, 1)], times)


def test_nothing_is_shown_with_missing_times():
    with pytest.raises(ValueError):
        show_word_times("two words", [1.0])
