import itertools
from collections import Counter

import pytest

from streamchat_hf.data.live_conversation import check_sample
from streamchat_hf.data.live_streamworld import LiveAlert, build_live_tokenizer
from streamchat_hf.data.proactive_streamworld import (
    DENSE,
    GROUNDED,
    STEPS,
    TASKS,
    ProactiveStreamWorld,
    ended_segments,
    enough_seen,
)
from streamchat_hf.data.streamworld import SPLITS
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.evaluation.activation import event_f1

N = 25


def rows(task, n=N, **kwargs):
    return list(ProactiveStreamWorld(n, tasks={task: 1.0}, **kwargs))


def question(row):
    [text] = [message["content"] for message in row["conversation"] if message["role"] == "user"]
    return text


def answers(row):
    """`(frame, text)` of every answer: the newest frame before it."""
    found, seen = [], 0
    for message in row["conversation"]:
        seen += message.get("num_frames", 0)
        if message["role"] == "assistant":
            assert message["time"] == row["frame_times"][seen - 1]
            found.append((seen - 1, message["content"]))
    return found


def seen_at(world, time, slot):
    """The word of an attribute at a time, read from the world alone; `None` where nobody can tell it."""
    state = world.state(time)
    if not state.present or (slot == "motion" and not world.motion_visible(time)):
        return None
    return getattr(state, slot)


def clause(slots, words):
    return LiveAlert(" ".join(slots), " ".join(words)).clause


def naive_segments(row, slots):
    """Frame by frame from the world alone: whenever all attributes are seen and one is another, what there was."""
    due, before = [], None
    for i, time in enumerate(row["frame_times"]):
        words = [seen_at(row["world"], time, slot) for slot in slots]
        if None in words:
            continue
        if before not in (None, words):
            due.append((i, clause(slots, before)))
        before = words
    return due


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("fps", "num_frames"), [(2.0, 40), (5.0, 60)])
def test_a_segment_is_described_at_the_first_frame_after_it_and_at_no_other(split, fps, num_frames):
    asked = Counter()
    for row in rows("dense", split=split, fps=fps, num_frames=num_frames):
        slots = [slot for slot in row["world"].slots if slot in question(row).split()]
        assert answers(row) == naive_segments(row, slots) != []
        asked[len(slots)] += 1
    assert set(asked) == {1, 2}


@pytest.mark.parametrize("split", SPLITS)
def test_a_step_is_named_at_the_first_frame_after_it_and_at_no_other(split):
    for row in rows("steps", split=split):
        assert answers(row) == naive_segments(row, ["motion"]) != []


@pytest.mark.parametrize("split", SPLITS)
def test_a_grounded_question_is_answered_once_with_the_first_frame_that_shows_enough(split):
    silent = 0
    for row in rows("grounded", n=100, split=split):
        world, text = row["world"], question(row)
        found = []
        pairs = [(a, b) for a, b in itertools.permutations(world.slots, 2)]
        for waited, slot in pairs:
            for value in {seen_at(world, time, waited) for time in row["frame_times"]} - {None}:
                if f"once {clause([waited], [value])} " in text and slot in asked_of(text, waited):
                    due = [
                        (i, seen_at(world, time, slot))
                        for i, time in enumerate(row["frame_times"])
                        if seen_at(world, time, waited) == value and seen_at(world, time, slot)
                    ]
                    found += [(i, clause([slot], [word])) for i, word in due[:1]]
        assert answers(row) == found
        assert all(frame > 0 for frame, _ in found)
        silent += not found
    assert 8 < silent < 35, "some never come"


def asked_of(text, waited):
    """The attributes that a question may be about, from its words without what it waits for."""
    before, _, after = text.partition("once ")
    words = (before + after.partition(",")[2] if "," in after else before).split()
    asks = {"go": "motion", "many": "count"}
    return {asks.get(word, word) for word in words}


def test_without_never_every_grounded_answer_comes():
    assert all(len(answers(row)) == 1 for row in rows("grounded", never=0.0))
    assert not any(answers(row) for row in rows("grounded", never=1.0))


def test_segments_are_of_one_object():
    assert all(row["world"].kind != "count" for task in ("dense", "steps") for row in rows(task))
    assert any(row["world"].kind == "count" for row in rows("grounded"))


def test_absence_and_unseen_motion_end_nothing():
    shown = [{"colour": "red"}, {"presence": "gone"}, {"colour": "red"}, {"colour": "blue"}, {}, {"colour": "red"}]
    assert ended_segments(["colour"], shown) == [(3, "it is red"), (5, "it is blue")]
    assert ended_segments(["motion"], shown) == []


def test_enough_is_seen_when_both_are():
    shown = [{"colour": "blue"}, {"colour": "red"}, {"colour": "red", "motion": "left"}]
    assert enough_seen(LiveAlert("colour", "red"), "motion", shown) == 2
    assert enough_seen(LiveAlert("colour", "green"), "motion", shown) is None


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_those_of_a_live_training_and_ask_before_the_first_frame(split):
    for row in ProactiveStreamWorld(40, split=split):
        check_sample(row)
        assert [message["role"] for message in row["conversation"][:3]] == ["system", "user", "stream"]
        assert len(row["frame_times"]) == 40


@pytest.mark.parametrize("build", [build_tokenizer, build_live_tokenizer])
def test_every_word_is_known_to_the_tokenizers_of_streamworld(build):
    tokenizer = build()
    for row in ProactiveStreamWorld(100):
        for message in row["conversation"]:
            assert tokenizer.unk_token_id not in tokenizer(message.get("content", ""))["input_ids"]


@pytest.mark.parametrize("task", TASKS)
def test_every_question_has_several_wordings(task):
    templates = {"dense": DENSE, "steps": STEPS, "grounded": GROUNDED}[task]
    assert len(templates) == len(set(templates)) == 5
    asked = {question(row).split()[0] for row in rows(task, n=60)}
    assert len(asked) >= 4


@pytest.mark.parametrize("task", TASKS)
def test_answers_at_a_fixed_interval_come_too_early_or_too_late(task):
    due = [[row["frame_times"][frame] for frame, _ in answers(row)] for row in rows(task, n=100, split="heldout")]
    best = 0.0
    for interval, first in itertools.product(range(1, 20), range(4)):
        alarms = [[0.5 * frame for frame in range(first, 40, interval)]] * len(due)
        best = max(best, event_f1(due, alarms)["f1"])
    # What docs/data.md says of 300 rows.
    assert best == pytest.approx({"dense": 0.54, "steps": 0.75, "grounded": 0.23}[task], abs=0.08)


def test_a_row_depends_on_its_number_alone():
    first, again = ProactiveStreamWorld(5, seed=3), ProactiveStreamWorld(9, seed=3)
    assert [first[i] for i in (4, 0, 2)] == [again[i] for i in (4, 0, 2)]
    assert first[0] != ProactiveStreamWorld(5, seed=4)[0] != ProactiveStreamWorld(5, seed=4, split="seen")[0]
    with pytest.raises(IndexError):
        first[5]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"tasks": {"wait": 1.0}}, "unknown tasks"),
        ({"tasks": {"dense": 0.0}}, "no task has a weight"),
        ({"fps": 1.0}, "miss states"),
        ({"num_frames": 7}, "too few"),
    ],
)
def test_impossible_arguments_are_refused(arguments, error):
    with pytest.raises(ValueError, match=error):
        ProactiveStreamWorld(1, **arguments)
