import itertools

from streamchat_hf.evaluation.streamworld_cases import streamworld_cases


def test_cases_are_the_same_however_many_are_taken():
    few, many = list(streamworld_cases(5, seed=1)), itertools.islice(streamworld_cases(50, seed=1), 5)
    assert few == list(many)
    assert few != list(streamworld_cases(5, seed=2))
    assert few != list(streamworld_cases(5, split="train", seed=1))


def test_two_of_three_questions_tell_one_attribute():
    cases = list(streamworld_cases(60))
    assert [case.question.kind for case in cases] == ["tell", "tell", "watch"] * 20
    assert {case.question.attr for case in cases} == {"colour", "shape", "digit", "motion", "count", None}


def test_something_is_visible_when_the_question_comes():
    for case in streamworld_cases(100, "heldout", words_per_second=3.0):
        assert 0.5 <= case.ask_time <= 2.0
        assert case.world.state(case.ask_time).present
        assert case.word_times[0] == case.ask_time
        assert 10 - 1 / 3 - 1e-3 <= case.word_times[-1] < 10
