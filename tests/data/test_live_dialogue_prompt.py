import json
from string import Formatter

import pytest

from streamchat_hf.data.live_conversation import LiveQuery
from streamchat_hf.data.live_dialogue_prompt import (
    PROMPT_VERSION,
    QUERIES,
    LiveTimeline,
    build_messages,
    draw_queries,
    read_answers,
)
from streamchat_hf.data.synthesize_prompt import BadAnswer
from streamchat_hf.data.synthesize_segment import Caption

CAPTIONS = (Caption(12.0, 15.5, "boil the water"), Caption(15.5, 30.0, "cut the vegetables"))
TIMELINE = LiveTimeline("kitchen.mp4", CAPTIONS, "Make soup.")
ANSWERS = [(12.0, "You boil water."), (15.5, "You cut vegetables."), (30.0, "You are done.")]


def reply(answers=ANSWERS):
    return json.dumps({"answers": [{"time": time, "text": text} for time, text in answers]})


def test_templates_are_about_the_past_the_present_and_the_future():
    assert set(QUERIES) == {"past", "now", "next"}
    texts = [text for texts in QUERIES.values() for text in texts]
    assert len(set(texts)) == len(texts) and all(len(texts) >= 10 for texts in QUERIES.values())
    assert all("goal" not in text or "{goal}" in text for text in texts)
    assert all({name for _, name, *_ in Formatter().parse(text) if name} <= {"goal"} for text in texts)


def test_a_timeline():
    assert (TIMELINE.start, TIMELINE.end, TIMELINE.moments) == (12.0, 30.0, [12.0, 15.5, 30.0])
    overlapping = LiveTimeline("a.mp4", (Caption(0.0, 9.0, "a"), Caption(1.0, 2.0, "b")))
    assert (overlapping.end, overlapping.moments) == (9.0, [0.0, 1.0, 2.0, 9.0])
    assert len({TIMELINE.id, overlapping.id, LiveTimeline("kitchen.mp4", CAPTIONS).id}) == 3


def test_questions_are_drawn_of_all_tenses_and_name_the_goal_if_there_is_one():
    drawn = draw_queries(TIMELINE, 6)
    assert sorted(tense for tense, _ in drawn) == ["next", "next", "now", "now", "past", "past"]
    assert len({text for _, text in drawn}) == 6
    assert draw_queries(TIMELINE, 9)[:6] == drawn and draw_queries(TIMELINE, 6, seed=1) != drawn
    everything = [text for _, text in draw_queries(TIMELINE, 1000)]
    assert len(everything) == sum(map(len, QUERIES.values()))
    assert "Help me with Make soup." in everything
    aimless = [text for _, text in draw_queries(LiveTimeline("kitchen.mp4", CAPTIONS), 1000)]
    assert len(aimless) == sum("{goal}" not in text for texts in QUERIES.values() for text in texts)
    assert not any("{" in text for text in everything + aimless)


def test_the_prompt_has_the_timeline_the_question_and_the_moments():
    system, user = build_messages(TIMELINE, "What now?")
    assert system["role"] == "system" and user["role"] == "user" and len(PROMPT_VERSION) == 8
    assert user["content"].splitlines() == [
        "What happens in the video:",
        "12.0s-15.5s: boil the water",
        "15.5s-30.0s: cut the vegetables",
        "The user's goal: Make soup.",
        "The user asks: What now?",
        "The assistant speaks at: 12.0, 15.5, 30.0",
    ]
    assert "goal" not in build_messages(LiveTimeline("a.mp4", CAPTIONS), "What now?")[1]["content"]


@pytest.mark.parametrize("text", [reply(), f"Sure:\n```json\n{reply()}\n```", f"<think>{{}}</think>{reply()}"])
def test_a_good_answer(text):
    assert read_answers(text, TIMELINE, "What now?") == LiveQuery("What now?", tuple(ANSWERS))


def test_the_same_is_not_said_twice_and_times_become_the_moments_own():
    said = [(12.04, " You boil\nwater. "), (15.5, "You boil water."), (29.95, "You are done.")]
    query = read_answers(reply(said), TIMELINE, "Q")
    assert query.answers == ((12.0, "You boil water."), (30.0, "You are done."))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "empty"),
        ("<think>hm</think>", "empty"),
        ("I'm sorry, I can't.", "broken_json"),
        (reply()[:-9], "broken_json"),
        ("[1, 2]", "missing_field"),
        ("{}", "missing_field"),
        ('{"answers": "all"}', "missing_field"),
        ('{"answers": ["a", "b", "c"]}', "missing_field"),
        (reply([(12.0, None), *ANSWERS[1:]]), "missing_field"),
        (reply([(True, "a"), *ANSWERS[1:]]), "missing_field"),
        (reply(ANSWERS[:2]), "wrong_times"),
        (reply([*ANSWERS, (31.0, "More.")]), "wrong_times"),
        (reply([(12.2, "Early."), *ANSWERS[1:]]), "wrong_times"),
        (reply(ANSWERS[::-1]), "wrong_times"),
        (reply([(float("nan"), "a"), *ANSWERS[1:]]), "wrong_times"),
        (reply([(12.0, "  "), *ANSWERS[1:]]), "empty"),
        (reply([(12.0, "half \ud83d"), *ANSWERS[1:]]), "broken_json"),
        (reply([(12.0, "For 3 seconds you boil."), *ANSWERS[1:]]), "tells_time"),
        (reply([(12.0, "12.5s: you boil."), *ANSWERS[1:]]), "tells_time"),
        (reply([(12.0, "12 s, you boil."), *ANSWERS[1:]]), "tells_time"),
    ],
)
def test_a_bad_answer_is_told_by_its_kind(text, kind):
    with pytest.raises(BadAnswer) as error:
        read_answers(text, TIMELINE, "Q")
    assert error.value.kind == kind


def test_words_that_only_look_like_times_pass():
    said = [(12.0, "You take 2 spoons."), (15.5, "3 slices are cut."), (30.0, "Add the secondary sauce.")]
    assert read_answers(reply(said), TIMELINE, "Q").answers == tuple(said)
