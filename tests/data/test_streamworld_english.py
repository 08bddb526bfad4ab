from itertools import product

import pytest

from streamchat_hf.data.streamworld import SLOTS
from streamchat_hf.data.streamworld_dataset import StreamWorldDataset
from streamchat_hf.data.streamworld_dialogue import KIND_OF, build_tokenizer, questions, vocabulary
from streamchat_hf.data.streamworld_english import (
    NUMBERS,
    english_answer,
    english_question,
    speaks_english,
    streamworld_word,
)


@pytest.mark.parametrize(
    "words, english, kind",
    [
        ("a red circle , left", "a red circle moving left", "shape"),
        ("a white 3 , still now 0 . now gone", "a white three moving nowhere now zero . now gone", "digit"),
        ("three red ones . now one", "three red ones . now one", "count"),
        ("it goes still", "it goes nowhere", "shape"),
    ],
)
def test_answers_keep_their_words_and_come_back(words, english, kind):
    assert english_answer(words.split()) == english.split()
    back = [streamworld_word(word, SLOTS[kind]) for word in english.split()]
    assert [word if word in KIND_OF else None for word in back] == [
        word if word in KIND_OF else None for word in words.split()
    ]


def test_every_answer_of_the_dataset_comes_back():
    dataset = StreamWorldDataset(60)
    for sample in map(dataset.__getitem__, range(60)):
        for turn in sample.turns:
            words = [word.text for word in turn.words]
            spoken = english_answer(words)
            assert len(spoken) == len(words) and not any(word.isdigit() for word in spoken)
            assert [streamworld_word(word, sample.world.slots) for word in spoken] == words


def test_questions_are_written_as_people_write_them():
    assert english_question("what colour is it ?") == "What colour is it?"
    texts = {english_question(q.text) for kind, attr in product(("tell", "ask"), ("digit", "motion")) for q in
             questions(kind, attr)}  # fmt: skip
    assert "Keep telling the digit." in texts and "Where does it go?" in texts
    assert not any(" ?" in text or " ." in text for text in texts)


@pytest.mark.parametrize(
    "text, kind, word",
    [
        ("three", "digit", "3"),
        ("three", "count", "three"),
        ("three", "shape", "three"),
        ("Seven", "shape", "7"),
        ("Red,", "shape", "red"),
        ("nowhere.", "shape", "still"),
        (".", "shape", "."),
        ("kitchen", "shape", "kitchen"),
    ],
)
def test_words_are_understood_in_their_scene(text, kind, word):
    assert streamworld_word(text, SLOTS[kind]) == word


def test_a_scene_of_another_kind_makes_a_number_wrong_not_unheard():
    for number in NUMBERS:
        assert streamworld_word(number, SLOTS["shape"]) in KIND_OF


def test_the_tokenizer_tells_the_language():
    assert not speaks_english(build_tokenizer().get_vocab())
    assert speaks_english({"Ġred": 0, "red": 1}) and speaks_english(set(vocabulary()) - {"<user>"})
