import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamchat_hf.data.synthesize_prompt import (
    FASTEST,
    PROMPT_VERSION,
    SLOWEST,
    SYSTEM,
    BadAnswer,
    Draft,
    Example,
    build_messages,
    read_answer,
)
from streamchat_hf.data.synthesize_segment import Caption, Segment

SEGMENT = Segment("clip.mp4", (Caption(10.0, 14.5, "A man opens a door."), Caption(14.5, 20.0, "He sits down.")))
GOOD = {"instruction": "What is he doing?", "answer": "He opens a door, and now he sits down.", "start": 11, "end": 17}
DRAFT = Draft(GOOD["instruction"], GOOD["answer"], 11.0, 17.0)


def answer(**changes):
    return json.dumps({key: value for key, value in {**GOOD, **changes}.items() if value is not ...})


def kind(text):
    with pytest.raises(BadAnswer) as caught:
        read_answer(text, SEGMENT)
    return caught.value.kind


def test_the_conversation_shows_examples_and_asks_about_the_segment():
    first, *turns, last = build_messages(SEGMENT, [Example(SEGMENT, DRAFT)] * 2)
    assert first == {"role": "system", "content": SYSTEM}
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert last == turns[0]
    assert last["content"].splitlines() == [
        "Segment from 10.0 to 20.0 seconds:",
        "[10.0 - 14.5] A man opens a door.",
        "[14.5 - 20.0] He sits down.",
    ]
    assert read_answer(turns[1]["content"], SEGMENT) == DRAFT


def test_the_prompt_asks_for_what_is_checked():
    asked = SYSTEM[SYSTEM.rindex("{") :]
    assert json.loads(asked).keys() == GOOD.keys() == vars(DRAFT).keys()
    assert f"never more than {FASTEST:g}" in SYSTEM
    assert len(PROMPT_VERSION) == 8


@pytest.mark.parametrize(
    "text",
    [
        answer(),
        f"```json\n{answer()}\n```",
        f"```\n{answer()}```",
        f"Sure! Here it is:\n{answer()}\nI hope this helps {{you}}.",
        f"<think>\nMaybe {{}} or {answer(end=99)}?\n</think>\n\n{answer()}",
        f"[{answer()}]",
        json.dumps(GOOD, indent=4),
        answer(start="11", end="17.0"),
        answer(answer="  He opens a door,\n and now\t he sits down. "),
        answer(answer="He opens a door,\nand now he sits down.").replace("\\n", "\n"),
        answer(confidence=0.9),
    ],
)
def test_whatever_stands_around_a_good_answer_is_passed_over(text):
    assert read_answer(text, SEGMENT) == DRAFT


@pytest.mark.parametrize(
    "text", ["I'm sorry", "I’m so sorry, but I can’t.", "I cannot help.", "Sorry, no.", "As an AI, I"]
)
def test_refusals_in_plain_words_and_in_json(text):
    assert kind(text) == kind(answer(answer=text)) == kind(answer(answer=text, start=None)) == "refused"


@pytest.mark.parametrize(
    "text", ["I'm pouring", "I can see", "Sorrel grows", "Unfortunately the cup falls and breaks"]
)
def test_not_everything_that_begins_like_a_refusal_is_one(text):
    assert read_answer(answer(answer=text), SEGMENT).answer == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (answer()[:-1], "broken_json"),
        ("The man opens a door.", "broken_json"),
        ("null", "broken_json"),
        ('{"a":' * 100_000, "broken_json"),
        ("{'instruction': 'What?'}", "broken_json"),
        (answer(answer="He sits \ud83d down."), "broken_json"),
        ("", "empty"),
        (" \n", "empty"),
        ("<think>What now?</think>", "empty"),
        (answer(instruction=" "), "empty"),
        (answer(answer=""), "empty"),
        ("{}", "missing_field"),
        (answer(instruction=...), "missing_field"),
        (answer(answer=None), "missing_field"),
        (answer(answer=["He", "sits"]), "missing_field"),
        (answer(end=...), "missing_field"),
        (answer(start="soon"), "missing_field"),
        (answer(start=True), "missing_field"),
        (answer(end=[17]), "missing_field"),
        (answer(start=9.8), "times_outside"),
        (answer(end=20.2), "times_outside"),
        (answer(start=17, end=11), "times_outside"),
        (answer(start=12, end=12), "times_outside"),
        (answer(start=20.05, end=20.1), "times_outside"),
        (answer(start=float("nan")), "times_outside"),
        (answer(end=float("inf")), "times_outside"),
        (answer(end=10**400), "times_outside"),
        (answer(start=0, end=6), "times_outside"),
        (answer(answer="word " * 31), "too_fast"),
        (answer(answer="Door"), "too_slow"),
    ],
)
def test_everything_else_is_told_apart(text, expected):
    assert kind(text) == expected


def test_the_bounds_of_the_pace_belong_to_it():
    for pace in (SLOWEST, FASTEST):
        words = "word " * round(8 * pace)
        assert read_answer(answer(answer=words, start=11, end=19), SEGMENT).answer == words.strip()


def test_rounded_times_are_moved_into_the_segment():
    draft = read_answer(answer(start=9.95, end=20.08), SEGMENT)
    assert (draft.start, draft.end) == (10.0, 20.0)


@given(st.text())
def test_no_text_breaks_the_reader(text):
    for written in (text, answer(answer=text), answer(start=text), "{" + text, json.dumps(text)):
        try:
            draft = read_answer(written, SEGMENT)
            assert 10 <= draft.start < draft.end <= 20
            assert draft.answer == " ".join(draft.answer.split()) != ""
        except BadAnswer as error:
            assert error.kind
