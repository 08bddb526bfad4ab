import json
from itertools import pairwise

import pytest

from activation_watcher_helpers import Bell
from benchmark_helpers import LIVE, OFFICIAL, answering, live_viewer, write_video
from bridge_helpers import tiny_bridge
from streamchat_hf.evaluation.benchmark_etbench import TASKS, ETBench, written_down
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Reply, Said, Viewer


def sample(idx, task, tgt, **more):
    found = {"version": 1.0, "idx": idx, "task": task, "source": "made", "video": "made/x.mp4", "duration": 8.0}
    return {**found, "tgt": tgt, "q": f"when does {task} happen ?", **more}


SAMPLES = [sample(0, "tvg", [2.0, 4.0]), sample(1, "tal", [[1.0, 3.0]]), sample(2, "tvg", [0.0, 8.0])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("etbench")
    write_video(path, "made/x.mp4")
    (path / "annotations.json").write_text(json.dumps(SAMPLES))
    return path


def rows_of(benchmark, viewer):
    return [row for piece in benchmark.work() for row in benchmark.answer(piece, viewer)]


def test_official_asks_behind_the_video_and_scores_as_the_metric(folder):
    viewer = answering(lambda question, at: "2 - 4" if "tvg" in question else "1 - 3")
    benchmark = ETBench(folder / "annotations.json", folder, OFFICIAL, "m")
    rows = rows_of(benchmark, viewer)
    assert viewer.model.asked == [(entry["q"], 8.0) for entry in SAMPLES]
    predictions = json.loads(benchmark.files(rows)["predictions.json"])
    said = ("2 - 4", "1 - 3", "2 - 4")
    assert predictions == [{**entry, "a": answer} for entry, answer in zip(SAMPLES, said, strict=True)]
    scores = benchmark.scores(rows)
    assert scores["tvg"]["made"]["F1"] == 0.5 + 0.5 / 4 and scores["tal"]["made"]["F1"] == 1.0
    assert benchmark.headline(scores) == [("f1", "TVG", 0.625, None), ("f1", "TAL", 1.0, None)]


def test_streaming_asks_at_the_beginning_and_the_end_of_the_video_is_the_deadline(folder):
    viewer = answering(lambda question, at: "2 - 4, I am sure of it")
    benchmark = ETBench(folder / "annotations.json", folder, LIVE, "m")
    rows = rows_of(benchmark, viewer)
    assert [at for _, at in viewer.model.asked] == [0.0, 0.0, 0.0]
    assert rows[0]["answer"] == "2 - 4, I am sure" and rows[0]["late"]  # 17 tokens at two a second
    assert rows[0]["words"][0] == ["2", 0.0, 0.0] and rows[0]["words"][-1][2] > 5


def test_a_bridged_model_is_asked_when_it_has_seen_the_video(folder, monkeypatch):
    monkeypatch.setattr(ETBench, "_samples", SAMPLES[:1])
    bridge, rows = tiny_bridge(), {}
    for protocol in ("official", "streaming"):
        how = Conditions(protocol, 1.0, tokens_per_second=2.0, max_new_tokens=8)
        benchmark = ETBench(folder / "annotations.json", folder, how, "m")
        [rows[protocol]] = rows_of(benchmark, Viewer(bridge, bridge.processor))
    live = rows["streaming"]
    assert live["answer"] == rows["official"]["answer"] and live["words"] and not live["late"]
    assert all(spoken >= 8.0 and frame == 7.0 for _, spoken, frame in live["words"])


def test_a_model_that_speaks_by_itself_tells_times_by_speaking(folder):
    how = Conditions("streaming", 1.0, tokens_per_second=8.0, max_new_tokens=2)
    row = rows_of(ETBench(folder / "annotations.json", folder, how, "m"), live_viewer())[0]
    spans = [[float(end) for end in line.split(" - ")] for line in row["answer"].splitlines()]
    assert len(spans) > 1 and spans[0][0] == 0.0
    assert all(start <= end <= 8.0 for start, end in spans)
    assert all(before[1] == after[0] for before, after in pairwise(spans))


def test_an_activation_model_tells_times(folder, monkeypatch):
    monkeypatch.setattr(ETBench, "_samples", SAMPLES[:1])  # a watcher belongs to one session
    viewer = answering(lambda question, at: "now")._replace(activation=Bell({2.0, 4.0}))
    benchmark = ETBench(folder / "annotations.json", folder, LIVE, "m", activation_name="bell")
    [row] = rows_of(benchmark, viewer)
    assert row["answer"] == "0.0 - 2.0\n2.0 - 4.0"
    assert [spoken for _, spoken, _ in row["words"]] == [2.0, 4.0]
    assert benchmark.settings()["activation"] == "bell"


def test_reports_are_written_as_each_task_wants_them():
    reports = [Said(start, start + 0.5, Reply(text, [])) for start, text in ((2.0, "B) a cup"), (5.0, "a man\njumps"))]
    assert written_down("tvg", reports) == written_down("tal", reports) == "0.0 - 2.0\n2.0 - 5.0"
    assert written_down("dvc", reports) == "0.0 - 2.0 seconds, B) a cup\n2.0 - 5.0 seconds, a man jumps"
    assert written_down("vhd", reports) == "2.0\n5.0"
    assert written_down("rar", reports) == "B) a cup\na man jumps"
    assert written_down("gvq", reports) == "B) a cup\n0.0 - 2.0\n2.0 - 5.0"
    assert all(written_down(task, reports) for task in TASKS)


def test_the_written_reports_are_what_the_scorer_reads():
    from streamchat_hf.metrics.etbench.etbench_answers import parse_captions, parse_spans

    reports = [Said(2.0, 3.0, Reply("pours the milk", [])), Said(5.0, 6.0, Reply("stirs it well", []))]
    assert parse_spans(written_down("tal", reports)) == [(0.0, 2.0), (2.0, 5.0)]
    assert parse_captions(written_down("slc", reports)) == [((0, 2), "pours the milk"), ((2, 5), "stirs it well")]


def test_other_annotations_are_refused(folder, tmp_path):
    (tmp_path / "other.json").write_text('[{"task": "EPM", "video": "made/x.mp4"}]')
    with pytest.raises(ValueError, match="ET-Bench's tasks"):
        ETBench(tmp_path / "other.json", folder, OFFICIAL, "m").work()
