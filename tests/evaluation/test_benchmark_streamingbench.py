import json
from dataclasses import replace
from pathlib import Path

import pytest

from activation_watcher_helpers import Bell
from benchmark_helpers import LIVE, OFFICIAL, answering, write_video
from streamchat_hf.evaluation import benchmark_streamingbench
from streamchat_hf.evaluation.benchmark_protocol import Reply
from streamchat_hf.evaluation.benchmark_streamingbench import NO_ANSWER, StreamingBench

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "streamingbench" / "harness_cases.json"
CASES = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else []


def entry(*questions, video="./videos/x.mp4"):
    return {"time": "[0:00:00 - 0:00:08]", "questions": list(questions), "video_path": video}


def choice(time_stamp="00:00:03", question="which ?", answer="B", **more):
    asked = {"task_type": "Counting", "question": question, "time_stamp": time_stamp, "answer": answer}
    return {**asked, "options": ["A. one", "B. two", "C. three", "D. four"], **more}


PROACTIVE = {
    **{"task_type": "Proactive Output", "question": 'When it is, output "3".', "time_stamp": "00:00:01"},
    **{"ground_truth_time_stamp": "00:00:03", "ground_truth_output": "3"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("streamingbench")
    write_video(path, "x.mp4", duration=9.0)
    write_video(path, "y.mp4", duration=9.0)
    return path


@pytest.fixture
def run(folder, tmp_path):
    def benchmark(entries, rule, how, **options):
        (tmp_path / "questions.json").write_text(json.dumps(entries))
        made = StreamingBench(tmp_path / "questions.json", folder, how, "m", **options)
        viewer = answering(rule)
        rows = [row for piece in made.work() for row in made.answer(piece, viewer)]
        return made, rows, viewer.model.asked

    return benchmark


@pytest.mark.parametrize("how", [OFFICIAL, LIVE], ids=lambda how: how.protocol)
def test_choices_are_asked_at_their_time_with_the_seconds_before(run, how):
    entries = [entry(choice()), entry(choice("00:00:05"), choice("00:00:06", answer="A"), video="./videos/y.mp4")]
    made, rows, asked = run(entries, lambda question, at: "B", how, context_time=4)
    assert made.task == "real"
    assert [at for _, at in asked] == [3.0, 4.0, 4.0]  # of clips that begin at 0, 1 and 2
    assert [row["words"][0][1] for row in rows] == [3.0, 5.0, 6.0]
    scores = made.scores(rows)
    assert scores["total"] == {"total": 3, "correct": 2, "accuracy": 2 / 3}
    assert made.headline(scores)[-1] == ("accuracy", "total", 2 / 3, 3)
    predictions = json.loads(made.files(rows)["predictions.json"])
    assert [q["m"] for e in predictions for q in e["questions"]] == ["B", "B", "B"]
    assert "m" not in made._sequences[0][0]["questions"][0]  # the annotations stay as they are


def test_a_late_answer_is_counted_and_wrong(run):
    late = replace(LIVE, deadline=0.1)
    for entries, task in ([entry(choice())], "real"), ([[entry(choice())]], "sqa"):
        made, rows, _ = run(entries, lambda question, at: " B", late)
        assert made.task == task and rows[0]["late"] and rows[0]["answer"] is None
        [question] = (made.predictions(rows)[0] if task == "real" else made.predictions(rows)[0][0])["questions"]
        assert question["m"] == NO_ANSWER
        assert made.scores(rows)["Counting"] == {"total": 1, "correct": 0, "accuracy": 0.0}


@pytest.mark.parametrize("how", [OFFICIAL, LIVE], ids=lambda how: how.protocol)
def test_an_answer_about_a_torn_video_of_a_sequence_is_counted_and_wrong(run, how):
    made, rows, _ = run([[entry(choice())]], lambda question, at: "B", how)
    rows = [{**row, "answer": None, "words": [], "error": "torn"} for row in rows]
    assert made.predictions(rows)[0][0]["questions"][0]["m"] == NO_ANSWER
    assert made.scores(rows)["Counting"] == {"total": 1, "correct": 0, "accuracy": 0.0}


def test_a_sequence_tells_the_true_answers_before(run):
    later = entry(choice("00:00:05", "two ?", "C"), choice("00:00:06", "three ?"))
    entries = [[entry(choice(question="one ?")), later]]
    _, rows, asked = run(entries, lambda question, at: "C", OFFICIAL)
    assert [question.count("Answer: ") for question, _ in asked] == [0, 1, 2]
    assert "one ?" in asked[2][0] and "Answer: C" in asked[2][0]
    assert [row["answer"] for row in rows] == ["C", "C", "C"]


def yes_from(time: float):
    return lambda question, at: ("yes" if at >= time else "no") if "right time" in question else "3"


def test_official_asks_every_second_on_a_longer_clip(run):
    made, [row], asked = run([entry(PROACTIVE)], yes_from(3.0), OFFICIAL)
    assert made.task == "proactive"
    assert [at for _, at in asked] == [1.0, 2.0, 3.0, 3.0]
    assert row["answered"] == 4 and [said["time"] for said in row["dialog_history"]] == [2, 2, 3, 3, 4, 4, 4, 4]
    assert made.scores([row])["Proactive Output"]["answer_accuracy"] == 1.0


def test_live_polls_wait_for_their_answers_and_a_slow_model_is_late(run):
    scores = {}
    for speed in (8.0, 1.0):
        # "no" and its end take two tokens.
        made, [row], asked = run([entry(PROACTIVE)], yes_from(2.0), replace(LIVE, tokens_per_second=speed))
        scores[speed] = made.scores([row])["Proactive Output"]["time_accuracy"], row["answered"]
        if speed == 8.0:
            assert [at for _, at in asked] == [1.0, 2.0, 2.375]  # yes is said, and its end
            history = row["dialog_history"]
            assert [said["time"] for said in history if said["role"] == "assistant"] == [2.125, 3.25, 3.375]
            assert [said["content"] for said in history if said["role"] == "assistant"] == ["no", "yes", "3"]
            assert history[-2]["content"] == PROACTIVE["question"]
    assert scores == {8.0: (1.0, 3.375), 1.0: (0.0, 7.0)}


def test_a_poll_comes_at_the_full_second_behind_a_long_answer(run):
    _, _, asked = run([entry(PROACTIVE)], lambda question, at: "no, no", replace(LIVE, tokens_per_second=4.0))
    assert [at for _, at in asked] == [1.0, 3.0, 5.0]  # each takes a second and a quarter


def test_an_output_that_never_comes_is_late(run):
    made, [row], _ = run([entry(PROACTIVE)], yes_from(99.0), LIVE)
    assert row["answered"] is False and row["late"]
    assert row["dialog_history"][-1] == {"role": "assistant", "content": "", "time": 7}
    assert made.scores([row])["Proactive Output"]["time_accuracy"] == 0.0
    assert (made.settings()["deadline"], made.settings()["context_time"]) == (None, None)
    _, [row], _ = run([entry(PROACTIVE)], yes_from(99.0), OFFICIAL)
    assert row["answered"] is False and not row["late"]  # without a clock nothing is


@pytest.mark.parametrize(
    ("rings", "answered", "right"),
    [({2.0}, 3.0, 1.0), ({4.0}, 5.0, 1.0), ({5.0}, 6.0, 0.0), ({0.0}, 1.0, 1.0), (set(), False, 0.0)],
)
def test_a_model_that_speaks_by_itself_is_asked_once_and_waited_for(folder, tmp_path, rings, answered, right):
    (tmp_path / "questions.json").write_text(json.dumps([entry(PROACTIVE)]))
    made = StreamingBench(tmp_path / "questions.json", folder, LIVE, "m", activation_name="bell")
    viewer = answering(lambda question, at: "3")._replace(activation=Bell(rings))
    [row] = made.answer("./videos/x.mp4", viewer)
    assert row["answered"] == answered and row["late"] == (answered is False)
    assert made.scores([row])["Proactive Output"]["answer_accuracy"] == right
    assert [question for question, _ in viewer.model.asked] == [PROACTIVE["question"]] * (answered is not False)
    assert made.settings()["activation"] == "bell"


def test_other_annotations_are_refused(folder, tmp_path):
    (tmp_path / "questions.json").write_text('[{"task": "tvg"}]')
    with pytest.raises(ValueError, match="video_path and questions"):
        StreamingBench(tmp_path / "questions.json", folder, OFFICIAL, "m").work()


@pytest.mark.skipif(not CASES, reason="needs the outputs of the official code, ../shared/golden")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_prompts_clips_and_results_are_those_of_the_official_loop(case, tmp_path, monkeypatch):
    (tmp_path / "sample_1_real.mp4").touch()
    (tmp_path / "questions.json").write_text(json.dumps(case["data"]))
    answers, calls = iter(case["calls"]), []

    def asked(viewer, video, question, how, clip):
        calls.append({"clip": {"video": video.name, "start": clip[0], "end": clip[1]}, "prompt": question})
        return Reply(next(answers)["response"], [])

    monkeypatch.setattr(benchmark_streamingbench, "ask_once", asked)
    options = {"context_time": case["context_time"]} if "context_time" in case else {}
    made = StreamingBench(tmp_path / "questions.json", tmp_path, OFFICIAL, "mymodel", **options)
    rows = [row for piece in made.work() for row in made.answer(piece, None)]
    assert calls == [{key: call[key] for key in ("clip", "prompt")} for call in case["calls"]]
    assert made.predictions(rows) == case["result"]
