import json
from dataclasses import replace

import pytest

from benchmark_helpers import LIVE, OFFICIAL, answering, write_video
from streamchat_hf.evaluation.benchmark_streamchat_eval import StreamChatEval

QUESTIONS = [
    {"id": "a", "video": "x.mp4", "time": 5.0, "question": "one ?", "reference": "yes", "end": 6.0},
    {"id": "b", "video": "y.mp4", "time": 2.0, "question": "two ?", "reference": None, "end": None},
    {"id": "c", "video": "x.mp4", "time": 1.0, "question": "three ?", "reference": None, "end": None},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("streamchat_eval")
    write_video(path, "x.mp4")
    write_video(path, "y.mp4")
    (path / "set.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    return path


def rows_of(benchmark):
    viewer = answering(lambda question, at: "ab cd")
    return [row for piece in benchmark.work() for row in benchmark.answer(piece, viewer)]


def test_answers_stand_in_the_order_of_the_set_with_the_times_of_their_words(folder):
    benchmark = StreamChatEval(folder / "set.jsonl", folder, LIVE, "m", frames=3)
    rows = rows_of(benchmark)
    assert [row["id"] for row in rows] == ["a", "c", "b"]
    answers = [json.loads(line) for line in benchmark.files(rows)["answers.jsonl"].splitlines()]
    assert [answer["id"] for answer in answers] == ["a", "b", "c"]
    assert answers[0] == {
        **{"id": "a", "model": "m", "video": "x.mp4", "time": 5.0, "question": "one ?"},
        **{"answer": "ab", "words": [["ab", 5.0, 5.0]]},  # what comes after its end does not count
    }
    assert answers[1]["words"] == [["ab", 2.0, 2.0], ["cd", 3.5, 3.0]]
    assert [row["late"] for row in rows] == [True, False, False]


def test_a_question_comes_behind_so_many_frames(folder):
    how = replace(OFFICIAL, fps=2.0)
    seen = []
    for frames in (3, 32):
        viewer = answering(lambda question, at: "ab")
        benchmark = StreamChatEval(folder / "set.jsonl", folder, how, "m", frames=frames)
        benchmark.answer("x.mp4", viewer)
        seen.append([at for _, at in viewer.model.asked])
    assert seen == [[1.5, 1.0], [5.0, 1.0]]  # seconds of the clip


def test_what_can_be_counted_without_a_judge(folder):
    benchmark = StreamChatEval(folder / "set.jsonl", folder, LIVE, "m")
    rows = rows_of(benchmark)
    rows[0] = {**rows[0], "answer": None, "words": []}
    scores = benchmark.scores(rows)
    assert scores == {"questions": 3, "answered": 2 / 3, "words": 2.0, "frame_age": 0.25}
    assert [score.value for score in benchmark.headline(scores)] == [2 / 3, 2.0, 0.25]
    assert benchmark.scores([]) == {"questions": 0, "answered": None, "words": None, "frame_age": None}


def test_a_line_that_is_no_question_is_named(folder, tmp_path):
    (tmp_path / "set.jsonl").write_text('{"id": "a", "video": "x.mp4", "time": 1, "question": "?"}\n{"id": "b"}\n')
    with pytest.raises(ValueError, match=r"set\.jsonl:2: "):
        StreamChatEval(tmp_path / "set.jsonl", folder, LIVE, "m").work()
