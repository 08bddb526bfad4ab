import json

import pytest

from streamchat_hf.data.stream_eval_prompt import (
    CHECK_SYSTEM,
    SYSTEM,
    build_check_messages,
    read_check,
    refuse_leaks,
)
from streamchat_hf.data.synthesize_prompt import BadAnswer, Draft, read_answer
from streamchat_hf.data.synthesize_segment import Caption, CaptionedVideo, Segment

VIDEO = CaptionedVideo(
    "soup.mp4",
    40.0,
    (
        Caption(0.0, 10.0, "A cook in a white hat slices three carrots on a wooden board."),
        Caption(10.0, 20.0, "He drops them, one by one, into a pot."),
        Caption(20.0, 22.0, "He stirs."),
        Caption(30.0, 40.0, "The lid is on and steam rises"),
    ),
)
GOOD = {"visible": True, "needed": True, "live": True}


def draft(question="What is he doing with them?", answer="They go into the pot.", start=11.0, end=14.0):
    return Draft(question, answer, start, end)


def kind(function, *args):
    with pytest.raises(BadAnswer) as error:
        function(*args)
    return error.value.kind


def test_the_example_in_the_prompt_is_what_is_read():
    example = SYSTEM[SYSTEM.rindex('{"instruction"') :].replace('"..."', '"What does he do now, and then?"')
    segment = Segment("soup.mp4", (Caption(12.0, 20.5, "He cooks."),))
    assert (read_answer(example, segment).start, read_answer(example, segment).end) == (12.0, 20.5)
    read_check(CHECK_SYSTEM[CHECK_SYSTEM.rindex("{") :])


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "What does the caption say?"},
        {"question": "What happens in this segment?"},
        {"answer": "According to the captions he cooks."},
        {"question": "What will he do in 5 seconds?"},
        {"answer": "He stops at 12.5 s."},
        {"answer": "He stops after 90 s."},
        {"answer": "He stops at 12.90s, not at 15s."},
        {"question": "Who is the cook in a white hat slices three carrots?"},  # eight words in a row
        {"question": "The lid is on, and steam RISES: why?"},  # a whole caption
        {"question": "The timestamps, please."},
    ],
)
def test_leaks_are_refused(changes):
    assert kind(refuse_leaks, draft(**changes), VIDEO) == "leaks"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"question": "What is the cook in a white hat doing?"},  # six words
        {"question": "Is this cook in his 30s wearing a hat from the 1980s, or from the mid-90s?"},
        {"question": "He stirs, but what?"},  # a caption of two
        {"question": "What does the second man do with the orange segments?"},
        {"answer": "He drops them, one by one, into a pot."},  # the truth in the words of a caption
    ],
)
def test_other_questions_pass(changes):
    refuse_leaks(draft(**changes), VIDEO)


def test_the_check_tells_what_is_seen_meanwhile_from_the_rest():
    system, user = build_check_messages(draft(start=9.0, end=20.0), VIDEO)
    assert system == {"role": "system", "content": CHECK_SYSTEM}
    meanwhile, elsewhere = user["content"].split("Seen elsewhere in the video:\n")
    assert [caption.text in meanwhile for caption in VIDEO.captions] == [True, True, False, False]
    assert [caption.text in elsewhere for caption in VIDEO.captions] == [False, False, True, True]
    assert elsewhere.endswith(
        "Asked at 9.0 seconds: What is he doing with them?\nAnswer, until 20.0: They go into the pot."
    )


def test_a_video_may_have_nothing_else():
    video = CaptionedVideo("soup.mp4", 10.0, VIDEO.captions[:1])
    content = build_check_messages(draft(start=1.0, end=5.0), video)[1]["content"]
    assert "Seen elsewhere in the video:\nnothing\nAsked" in content


def test_a_question_where_no_caption_is_cannot_be_seen():
    assert kind(build_check_messages, draft(start=23.0, end=29.0), VIDEO) == "not_visible"


@pytest.mark.parametrize(
    "text",
    [json.dumps(GOOD), f"```json\n{json.dumps(GOOD)}\n```", f"Sure: {json.dumps(GOOD | {'why': 'all is well'})}"],
)
def test_a_check_lets_pass(text):
    read_check(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(GOOD | {"visible": False}), "not_visible"),
        (json.dumps(GOOD | {"needed": False}), "not_needed"),
        (json.dumps(GOOD | {"live": False}), "not_live"),
        (json.dumps({**dict.fromkeys(GOOD, False)}), "not_visible"),
        (json.dumps(GOOD | {"live": "true"}), "missing_field"),
        (json.dumps({"visible": False}), "missing_field"),
        ("Yes.", "broken_json"),
        ("I'm sorry, but I can't.", "refused"),
        ("", "empty"),
    ],
)
def test_a_check_refuses(text, expected):
    assert kind(read_check, text) == expected
