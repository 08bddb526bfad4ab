import json
from pathlib import Path

import pytest

from streamchat_hf.evaluation.benchmark_prompts import (
    OVOBENCH_GROUPS,
    ovobench_clip,
    ovobench_clip_name,
    ovobench_prompt,
    streamingbench_clip,
    streamingbench_poll_query,
    streamingbench_polls,
    streamingbench_proactive_prompt,
    streamingbench_prompt,
    streamingbench_says_yes,
    streamingbench_seconds,
    streamingbench_sqa_prompt,
)

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"


def golden(name):
    path = GOLDEN / name
    if not path.is_file():
        pytest.skip(f"needs {path.name} of the golden cases, which are not in the repository")
    return json.loads(path.read_text())


def ovobench_calls(annotations):
    """Clip and prompt of everything that is asked."""
    for group in OVOBENCH_GROUPS:
        for annotation in annotations[group]:
            for poll in range(len(annotation["test_info"])) if group == "forward" else [None]:
                yield {"clip": ovobench_clip_name(annotation, poll), "prompt": ovobench_prompt(annotation, poll)}


def test_ovobench_asks_as_the_official_code_does():
    cases = golden("ovobench/prompt_cases.json")
    assert list(ovobench_calls(cases["annotations"])) == cases["calls"]


CHOICE = {"id": 7, "task": "EPM", "realtime": 12.4, "question": "What {now}?", "options": ["{a}", "b"], "gt": 1}
COUNT = {"id": 8, "task": "REC", "activity": "jump", "test_info": [{"realtime": 3}, {"realtime": 9.5}]}


def test_an_ovobench_clip_ends_with_the_next_full_second():
    assert ovobench_clip(CHOICE) == (0, 13)
    assert [ovobench_clip(COUNT, poll) for poll in (0, 1)] == [(0, 3), (0, 10)]


def test_braces_in_a_question_are_text():
    assert "\nQuestion: What {now}?\nOptions:\nA. {a}; B. b;\n\nRespond" in ovobench_prompt(CHOICE)


def test_what_ovobench_does_not_ask_is_refused():
    for annotation, poll in ((CHOICE, 0), (COUNT, None)):
        for function in (ovobench_prompt, ovobench_clip, ovobench_clip_name):
            with pytest.raises(ValueError, match="OVO-Bench asks (EPM without|REC for each)"):
                function(annotation, poll)
    with pytest.raises(ValueError, match="OVO-Bench has no task 'XYZ'"):
        ovobench_prompt({**CHOICE, "task": "XYZ"})


def streamingbench_calls(case):
    """The official loop over all questions, asked of whoever gave these responses."""
    responses = iter([call["response"] for call in case["calls"]])
    sequences = case["data"] if case["benchmark"] == "StreamingSQA" else [case["data"]]
    for entries in sequences:
        earlier = []
        for entry in entries:
            for question in entry["questions"]:
                if case["benchmark"] == "StreamingProactive":
                    asked = proactive_calls(question, responses)
                elif case["benchmark"] == "StreamingSQA":
                    asked = [(streamingbench_clip(question), streamingbench_sqa_prompt(question, earlier))]
                else:
                    asked = [(streamingbench_clip(question, case["context_time"]), streamingbench_prompt(question))]
                for (start, end), prompt in asked:
                    yield {"clip": {"video": entry["video_path"], "start": start, "end": end}, "prompt": prompt}
                earlier.append(question)


def proactive_calls(question, responses):
    for clip in streamingbench_polls(question):
        yield clip, streamingbench_proactive_prompt(streamingbench_poll_query(question))
        if streamingbench_says_yes(next(responses)):
            yield clip, streamingbench_proactive_prompt(question["question"])
            return


def test_streamingbench_asks_as_the_official_code_does():
    cases = golden("streamingbench/harness_cases.json")
    assert {case["benchmark"] for case in cases} == {"Streaming", "StreamingSQA", "StreamingProactive"}
    for case in cases:
        calls = [{"clip": call["clip"], "prompt": call["prompt"]} for call in case["calls"]]
        assert list(streamingbench_calls(case)) == calls, case["name"]


@pytest.mark.parametrize(("text", "seconds"), [("0:00:31", 31), ("00:03:10", 190), ("1:00:00", 3600), ("02:05", 125)])
def test_seconds_of_a_time_stamp(text, seconds):
    assert streamingbench_seconds(text) == seconds


@pytest.mark.parametrize(("context", "clip"), [(-1, (0, 190)), (0, (0, 190)), (60, (130, 190)), (200, (0, 190))])
def test_context_is_the_last_seconds_or_everything(context, clip):
    assert streamingbench_clip({"time_stamp": "00:03:10"}, context) == clip


def test_a_proactive_question_is_asked_every_second_until_four_behind_its_moment():
    question = {"time_stamp": "00:00:20", "ground_truth_time_stamp": "00:00:21"}
    assert streamingbench_polls(question) == [(20, 21), (20, 22), (20, 23), (20, 24), (20, 25)]
    assert streamingbench_polls({**question, "ground_truth_time_stamp": "00:00:10"}) == []


def test_streamingbench_has_four_options():
    with pytest.raises(ValueError, match="four options, not 2: Which"):
        streamingbench_prompt({"question": "Which?", "options": ["A. one", "B. two"]})
