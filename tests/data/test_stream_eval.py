import json
from dataclasses import asdict

import pytest

from streamchat_hf.data.stream_eval import StreamEvalQuestion, read_stream_eval

QUESTIONS = [
    StreamEvalQuestion("a", "soup.mp4", 12.5, "What is she cutting?", "Carrots.", 14.0),
    StreamEvalQuestion("b", "day/soup.mp4", 0.0, "Tell me when it boils."),
]


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_is_written_is_read(tmp_path):
    assert read_stream_eval(write(tmp_path / "set.jsonl", *map(asdict, QUESTIONS))) == QUESTIONS
    assert read_stream_eval(write(tmp_path / "none.jsonl")) == []


def test_reference_and_end_may_be_missing(tmp_path):
    row = {key: value for key, value in asdict(QUESTIONS[1]).items() if key not in ("reference", "end")}
    assert read_stream_eval(write(tmp_path / "set.jsonl", row)) == QUESTIONS[1:]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"id": "b"}, "id twice: b"),
        ({"id": 3}, "'id' is 3"),
        ({"video": None}, "'video' is null"),
        ({"time": "12"}, "a time in seconds is expected"),
        ({"time": -1}, "wrong times"),
        ({"time": float("nan")}, "a time in seconds is expected"),
        ({"end": 12.0}, "wrong times: from 12.5 to 12.0 s"),
        ({"end": "late"}, "a time in seconds is expected"),
        ({"question": ["What?"]}, "'question' is"),
        ({"reference": 7}, "'reference' is 7"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, changes, problem):
    path = write(tmp_path / "set.jsonl", asdict(QUESTIONS[1]), asdict(QUESTIONS[0]) | changes)
    with pytest.raises(ValueError, match=f"set.jsonl:2: .*{problem}"):
        read_stream_eval(path)


def test_a_line_that_is_no_object_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"set.jsonl:1: .*an object is expected"):
        read_stream_eval(write(tmp_path / "set.jsonl", ["a"]))
