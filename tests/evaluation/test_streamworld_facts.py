"""The facts of StreamWorld, and what `streaming_score` gives to speakers whose worth is known."""

import pytest

from streamchat_hf import metrics
from streamchat_hf.data.streamworld import SPLITS, Event, SceneState, World
from streamchat_hf.data.streamworld_dialogue import TELL, VALUES, WATCH, answer, grid, questions
from streamchat_hf.evaluation.streamworld_cases import streamworld_cases
from streamchat_hf.evaluation.streamworld_facts import streamworld_facts
from streamchat_hf.evaluation.streamworld_score import score_answer

METRIC = metrics.load("streaming_score")
WATCHING = questions(WATCH)[0]
COLOUR = questions(TELL, "colour")[0]
HALVES = grid(10.0)


def world(*events):
    """A red circle that stands still, with events `(kind, time, old, new)`."""
    state = SceneState("red", "circle", None, "still", None)
    return World(0, "seen", "shape", 10.0, state, tuple(Event(*e) for e in events), 0.17, ((0.5, 0.5),), {}, 0.1)


AWAY = world(("presence", 4.0, "back", "gone"), ("colour", 5.0, "red", "blue"), ("presence", 6.0, "gone", "back"))


def rows(facts, **wanted):
    return [
        (fact["slot"], fact["value"], fact["start"], fact["end"])
        for fact in facts
        if all(fact[key] == value for key, value in wanted.items())
    ]


def test_tell_is_about_one_attribute_and_nothing_while_it_is_absent():
    facts = streamworld_facts(AWAY, COLOUR, 1.0, HALVES[2:])
    assert rows(facts) == [
        ("colour", "red", 0.0, 4.0),
        ("presence", "nothing", 4.0, 6.0),
        ("colour", "blue", 6.0, 10.0),
    ]
    assert all(fact["due"] for fact in facts)


def test_watch_is_about_everything_that_is_visible():
    facts = streamworld_facts(AWAY, WATCHING, 1.0, HALVES[2:])
    assert rows(facts, slot="colour") == [("colour", "red", 0.0, 4.0), ("colour", "blue", 6.0, 10.0)]
    assert rows(facts, slot="shape") == [("shape", "circle", 0.0, 4.0), ("shape", "circle", 6.0, 10.0)]
    assert rows(facts, slot="presence") == [
        ("presence", "back", 0.0, 4.0),
        ("presence", "gone", 4.0, 6.0),
        ("presence", "nothing", 4.0, 6.0),
        ("presence", "back", 6.0, 10.0),
    ]
    # Described once, then only what changed: the shape that is still the same need not be told again.
    assert [fact[:3] for fact in rows(facts, due=True)] == [
        ("colour", "red", 0.0),
        ("shape", "circle", 0.0),
        ("motion", "still", 0.0),
        ("presence", "gone", 4.0),
        ("colour", "blue", 6.0),
        ("presence", "back", 6.0),
    ]


def test_what_nobody_can_tell_in_time_is_not_due():
    short = world(("colour", 3.0, "red", "blue"), ("colour", 3.5, "blue", "green"))
    slow = streamworld_facts(short, COLOUR, 0.0, [0.0, 2.0, 4.0])
    assert [(fact["value"], fact["due"]) for fact in slow] == [("red", True), ("blue", False), ("green", True)]
    fast = streamworld_facts(short, COLOUR, 0.0, HALVES)
    assert all(fact["due"] for fact in fast)
    assert not any(fact["due"] for fact in streamworld_facts(short, COLOUR, 0.0, []))


def fresh(case, late=0.0):
    spoken = answer(case.world, case.question, case.ask_time, case.word_times, HALVES)
    return [(word.text, word.time + late) for word in spoken]


def frozen(case):
    frames = [time for time in HALVES if time <= case.ask_time]
    return [(w.text, w.time) for w in answer(case.world, case.question, case.ask_time, case.word_times, frames)]


SPEAKERS = {"perfect": fresh, "late": lambda case: fresh(case, 1.0), "frozen": frozen, "silent": lambda case: []}


def score(cases, speak):
    return METRIC.compute(
        predictions=[[{"word": word, "time": time} for word, time in speak(case)] for case in cases],
        references=[streamworld_facts(case.world, case.question, case.ask_time, case.word_times) for case in cases],
        slots=VALUES,
    )


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("speed", [1.5, 2.0, 3.0])
def test_perfect_late_frozen_and_silent(split, speed):
    cases = list(streamworld_cases(200, split, words_per_second=speed))
    perfect, late, old, silent = (score(cases, speak) for speak in SPEAKERS.values())
    assert perfect["score"] == perfect["accuracy"] == 1.0 and perfect["missed"] == 0 and perfect["mean_lateness"] == 0
    assert 0.88 < late["score"] < 0.97 and late["missed"] == 0
    assert 0.35 < old["score"] < 0.6 and old["missed"] > 0.5 * old["due"]
    assert silent["score"] == 0.0 and silent["missed"] == silent["due"] == perfect["due"] > 800


@pytest.mark.parametrize("split", SPLITS)
def test_the_order_on_each_world_that_changes(split):
    changed = 0
    for case in streamworld_cases(100, split):
        perfect, late, old, silent = (score([case], speak)["score"] for speak in SPEAKERS.values())
        assert perfect == 1.0 and silent == 0.0
        if old < 1.0:  # otherwise nothing that was asked for changed, and an old picture is as good as a new one
            assert late > old > silent
            # A report of a change is often still true one second later; a value told at every word is not.
            assert perfect > late if case.question.kind == TELL else perfect >= late
            changed += 1
    assert changed >= 85


def test_words_are_true_by_the_rules_of_the_other_score():
    """What `score_answer` calls correct is what the metric finds true, for every value that can be said."""
    for case in streamworld_cases(9, "heldout"):
        for value in (value for values in VALUES.values() for value in values):
            said = [(value, time) for time in case.word_times]
            marks = score_answer(case.world, case.question, case.ask_time, said)
            result = METRIC.compute(
                predictions=[[{"word": word, "time": time} for word, time in said]],
                references=[streamworld_facts(case.world, case.question, case.ask_time, case.word_times)],
                slots=VALUES,
            )
            assert result["accuracy"] == pytest.approx(sum(mark["correct"] for mark in marks) / len(marks))
