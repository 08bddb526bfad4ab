import random

import pytest

from streamchat_hf.data.streamworld import SPLITS, Event, SceneState, World
from streamchat_hf.data.streamworld_dialogue import TELL, VALUES, WATCH, answer, grid, questions
from streamchat_hf.evaluation.streamworld_cases import streamworld_cases
from streamchat_hf.evaluation.streamworld_score import score_answer, score_changes, summarise

WATCHING = questions(WATCH)[0]
COLOUR = questions(TELL, "colour")[0]


def world(*events):
    """A red circle that stands still, with events `(kind, time, old, new)`."""
    state = SceneState("red", "circle", None, "still", None)
    return World(0, "seen", "shape", 10.0, state, tuple(Event(*e) for e in events), 0.17, ((0.5, 0.5),), {}, 0.1)


def spoken(text, start=0.0):
    return [(word, start + i / 2) for i, word in enumerate(text.split())]


def run(speak, split, speed=2.0, count=300):
    rows, changes = [], []
    for case in streamworld_cases(count, split, words_per_second=speed):
        said = [(word.text, word.time) if hasattr(word, "text") else word for word in speak(case)]
        rows += score_answer(case.world, case.question, case.ask_time, said)
        changes += score_changes(case.world, case.question, case.ask_time, said)
    return summarise(rows, changes)


def fresh(case):
    return answer(case.world, case.question, case.ask_time, case.word_times, grid(10.0))


def frozen(case):
    frames = [time for time in grid(10.0) if time <= case.ask_time]
    return answer(case.world, case.question, case.ask_time, case.word_times, frames)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("speed", [1.5, 2.0, 3.0])
def test_a_perfect_viewer_is_always_right(split, speed):
    score = run(fresh, split, speed)
    assert score["accuracy"] == 1.0 and score["n"] > 2000
    assert score["changes"]["reported"] == 1.0 and score["changes"]["n"] > 100
    assert score["changes"]["false_reports"] == 0.0 and score["changes"]["reports"] > 200
    assert 0.33 < score["oracle"] < 0.5
    assert (score["in_heldout_combo"]["n"] > 0.6 * score["n"]) == (split == "heldout")


@pytest.mark.parametrize("split", SPLITS)
def test_a_perfect_viewer_of_an_old_picture_is_right_where_nothing_changed(split):
    score = run(frozen, split)
    assert score["moved"]["accuracy"] == 0.0 and score["unmoved"]["accuracy"] == 1.0
    assert 0.35 <= score["accuracy"] == score["oracle"] <= 0.5
    assert score["changes"]["reported"] == 0.0 and score["changes"]["reports"] == 0


def test_a_random_speaker_is_at_chance():
    rng = random.Random(0)
    colour = run(
        lambda case: [(rng.choice(VALUES[case.question.attr or "colour"]), t) for t in case.word_times], "seen"
    )
    assert 0.1 < colour["by_kind"]["colour"]["accuracy"] < 0.2  # of six
    assert colour["moved"]["accuracy"] == pytest.approx(colour["unmoved"]["accuracy"], abs=0.05)


def test_a_word_is_scored_at_the_moment_it_is_spoken():
    rows = score_answer(world(("colour", 1.0, "red", "blue")), COLOUR, 0.0, spoken("red red red blue"))
    assert [row["correct"] for row in rows] == [True, True, False, True]
    assert [row["moved"] for row in rows] == [False, False, True, True]
    assert [row["time"] for row in rows] == [0.0, 0.5, 1.0, 1.5]


def test_after_tell_every_other_word_is_wrong():
    gone = world(("presence", 1.0, "back", "gone"))
    rows = score_answer(gone, COLOUR, 0.0, spoken("red circle nothing nothing red ."))
    assert [(row["kind"], row["correct"]) for row in rows] == [
        ("colour", True),
        ("colour", False),
        ("presence", True),
        ("presence", True),
        ("colour", False),
        ("colour", False),
    ]
    assert score_answer(world(), COLOUR, 0.0, spoken("nothing"))[0]["correct"] is False


def test_a_word_for_what_the_scene_does_not_have_is_wrong():
    rows = score_answer(world(), WATCHING, 0.0, spoken("a red 7 , still"))
    assert [(row["word"], row["kind"], row["correct"]) for row in rows] == [
        ("red", "colour", True),
        ("7", "shape", False),
        ("still", "motion", True),
    ]


def test_presence_has_moved_while_the_object_is_absent():
    gone = world(("presence", 3.0, "back", "gone"), ("presence", 5.0, "gone", "back"))
    rows = score_answer(gone, WATCHING, 0.0, spoken("a red circle , still . now gone . . now back . now gone"))
    assert [(row["word"], row["correct"], row["moved"]) for row in rows[3:]] == [
        ("gone", True, True),
        ("back", True, False),
        ("gone", False, False),
    ]


def test_a_heldout_combination_is_marked_while_it_is_visible():
    changing = world(
        ("shape", 1.0, "circle", "triangle"), ("presence", 2.0, "back", "gone"), ("presence", 3.0, "gone", "back")
    )
    rows = score_answer(changing, COLOUR, 0.0, spoken("red red red red nothing nothing red"))
    assert [row["in_heldout_combo"] for row in rows] == [False, False, True, True, False, False, True]


CHANGING = (("colour", 3.0, "red", "blue"), ("shape", 6.0, "circle", "cross"))
TALK = "a red circle , still"


@pytest.mark.parametrize(
    ("after", "reported", "false"),
    [
        (" . now blue . . . . now cross . . . .", [True, True], [False, False]),
        (" . . . . . . . . . . . . .", [False, False], []),
        (" . . . . now blue . . . now cross . .", [True, True], [False, False]),
        (" . . . . . now blue . . now cross . .", [False, True], [False, False]),  # 2.5 seconds after
        (" now blue now green . . . now cross . . .", [True, True], [False, True, False]),
        (" now red now blue now blue . now cross . . .", [True, True], [True, False, True, False]),
        (" . now . blue . . . . . . . . .", [False, False], [True]),
        (" . now blue now cross . . . . . . . .", [True, False], [False, True]),  # foretold
        (" . . blue . . . . . . cross . . .", [False, False], []),  # no report without "now"
    ],
)
def test_changes_and_reports(after, reported, false):
    rows = score_changes(world(*CHANGING), WATCHING, 0.0, spoken(TALK + after))
    assert [row["reported"] for row in rows if row["role"] == "event"] == reported
    assert [row["false"] for row in rows if row["role"] == "report"] == false


def test_a_change_that_does_not_last_need_not_be_reported():
    short = world(("colour", 3.0, "red", "blue"), ("colour", 4.5, "blue", "red"))
    rows = score_changes(short, WATCHING, 0.0, spoken(TALK + " . now blue . now red . . . . ."))
    assert [(row["role"], row["value"]) for row in rows] == [("event", "red"), ("report", "blue"), ("report", "red")]
    assert rows[0]["reported"] and not any(row.get("false") for row in rows)


def test_a_change_whose_window_does_not_fit_need_not_be_reported():
    rows = score_changes(world(*CHANGING), WATCHING, 0.0, spoken(TALK + " . now blue . . . . now cross . ."))
    assert [row["value"] for row in rows if row["role"] == "event"] == ["blue"]


def test_saying_again_what_changed_and_changed_back_is_no_false_report():
    back = world(("colour", 3.0, "red", "blue"), ("colour", 3.5, "blue", "red"))
    rows = score_changes(back, WATCHING, 0.0, spoken(TALK + " . now red"))
    assert [row["false"] for row in rows if row["role"] == "report"] == [False]


def test_only_watching_reports_changes():
    assert score_changes(world(*CHANGING), COLOUR, 0.0, spoken("red now blue")) == []
    assert score_changes(world(*CHANGING), WATCHING, 0.0, []) == []


def test_nothing_to_count_is_none():
    score = summarise([])
    assert score["n"] == 0 and score["accuracy"] is None and score["oracle"] is None
    assert score["changes"] == {"n": 0, "reported": None, "reports": 0, "false_reports": None}


def test_a_speaker_who_begins_late_is_scored_though_nothing_is_left_to_describe():
    gone = world(("presence", 2.0, "back", "gone"), ("presence", 4.0, "gone", "back"))
    said = spoken("a red now back", start=2.5)
    assert [row["correct"] for row in score_answer(gone, WATCHING, 1.0, said)] == [False, True]
    assert [row["role"] for row in score_changes(gone, WATCHING, 1.0, said)] == ["report"]
