import json
from pathlib import Path

import pytest

from benchmark_helpers import LIVE, OFFICIAL, answering, write_video
from streamchat_hf.evaluation import benchmark_ovobench
from streamchat_hf.evaluation.benchmark_ovobench import OVOBench
from streamchat_hf.evaluation.benchmark_protocol import Reply

GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "ovobench" / "prompt_cases.json"
ENTRIES = [
    {
        "id": 1,
        "task": "EPM",
        "video": "a/x.mp4",
        "realtime": 3.4,
        "question": "what ?",
        "options": ["c", "d"],
        "gt": 1,
    },
    {"id": 2, "task": "OCR", "video": "y.mp4", "realtime": 4, "question": "sign ?", "options": ["go", "no"], "gt": 0},
    {
        **{"id": 3, "task": "REC", "video": "a/x.mp4", "activity": "jump", "start_times": [1], "end_times": [2]},
        "test_info": [{"realtime": 2, "count": 1}, {"realtime": 6, "count": 2}],
    },
    {
        **{"id": 4, "task": "CRR", "video": "y.mp4", "question": "where ?", "answer": "there", "ask_time": 2},
        **{"clue_time": 5, "test_info": [{"realtime": 2, "type": 0}, {"realtime": 6, "type": 1}]},
    },
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("ovobench")
    for name in ("a/x.mp4", "y.mp4"):
        write_video(path, name)
    (path / "annotations.json").write_text(json.dumps(ENTRIES))
    return path


def rule(question: str, at: float) -> str:
    """Right, and in the end too talkative."""
    if "How many times" in question:
        return "1" if at < 5 else "2"
    if "Yes" in question:
        return "No" if at < 5 else "After some time: Yes"
    return "B" if "what ?" in question else "A"


def rows_of(benchmark: OVOBench):
    viewer = answering(rule)
    return [row for piece in benchmark.work() for row in benchmark.answer(piece, viewer)], viewer.model.asked


def test_official_asks_at_the_full_second_and_streaming_when_it_happens(folder):
    times = {}
    for how in (OFFICIAL, LIVE):
        benchmark = OVOBench(folder / "annotations.json", folder, how, "m")
        assert benchmark.work() == ["a/x.mp4", "y.mp4"]
        rows, asked = rows_of(benchmark)
        assert [(row["id"], row["poll"]) for row in rows] == [(1, None), (3, 0), (3, 1), (2, None), (4, 0), (4, 1)]
        times[how.protocol] = [at for _, at in asked]
    assert times["official"] == [4.0, 2.0, 6.0, 4.0, 2.0, 6.0]
    assert times["streaming"] == [3.4, 2.0, 6.0, 4.0, 2.0, 6.0]


def test_a_late_answer_scores_as_none_and_only_while_time_runs(folder):
    totals = {}
    for how in (OFFICIAL, LIVE):
        benchmark = OVOBench(folder / "annotations.json", folder, how, "m")
        rows, _ = rows_of(benchmark)
        scores = benchmark.scores(rows)
        totals[how.protocol] = scores
        assert [score.label for score in benchmark.headline(scores)][-1] == "total"
        assert json.loads(benchmark.files(rows)["predictions.json"]) == benchmark.predictions(rows)
    assert totals["official"]["total"] == 100
    assert {task: row["acc"] for task, row in totals["streaming"]["tasks"].items()} == {
        **{"EPM": 100, "OCR": 100, "REC": 100},
        "CRR": 50,  # "After" has been said in time, "Yes" has not
    }


def test_nothing_said_in_time_is_null_in_the_file(folder, monkeypatch):
    monkeypatch.setattr(benchmark_ovobench, "ask_once", lambda *args: Reply("", [], late=True))
    benchmark = OVOBench(folder / "annotations.json", folder, LIVE, "m")
    rows = [row for piece in benchmark.work() for row in benchmark.answer(piece, None)]
    predictions = benchmark.predictions(rows)
    assert [entry["response"] for entry in predictions["backward"] + predictions["realtime"]] == [None, None]
    assert {info["response"] for entry in predictions["forward"] for info in entry["test_info"]} == {None}
    assert benchmark.scores(rows)["total"] == 0


def test_other_annotations_and_missing_videos_are_refused(folder, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('[{"task": "tvg", "video": "y.mp4"}]')
    with pytest.raises(ValueError, match="OVO-Bench's tasks"):
        OVOBench(other, folder, OFFICIAL, "m").work()
    with pytest.raises(FileNotFoundError, match="2 of 2 videos are missing"):
        OVOBench(folder / "annotations.json", tmp_path, OFFICIAL, "m").work()


@pytest.mark.skipif(not GOLDEN.exists(), reason="needs the outputs of the official code, ../shared/golden")
def test_prompts_and_result_file_are_those_of_the_official_code(tmp_path, monkeypatch):
    golden = json.loads(GOLDEN.read_text())
    annotations = [entry for entries in golden["annotations"].values() for entry in entries]
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    calls = []

    def asked(viewer, video, question, how, clip):
        calls.append((video.name, question, clip))
        return Reply("A", [])

    monkeypatch.setattr(benchmark_ovobench, "ask_once", asked)
    for entry in annotations:
        (tmp_path / Path(entry["video"]).name).touch()
    benchmark = OVOBench(tmp_path / "annotations.json", tmp_path, OFFICIAL, "m")
    rows = [row for piece in benchmark.work() for row in benchmark.answer(piece, None)]
    assert [prompt for _, prompt, _ in calls] == [call["prompt"] for call in golden["calls"]]
    for row in rows:  # one call of the official run failed
        row["answer"] = None if row["id"] == 5 else row["answer"]
    assert benchmark.predictions(rows) == golden["result_file"]
