import json

import pytest

from cli_helpers import run, table_rows

OVO = {
    "backward": [{"id": 0, "task": "EPM", "response": "A", "ground_truth": "A"}],
    "realtime": [{"id": 1, "task": "OCR", "response": "B", "ground_truth": "A"}],
    "forward": [{"id": 2, "task": "SSR", "test_info": [{"response": "Yes", "type": 1}, {"response": "", "type": 0}]}],
}
GROUNDED = {"task": "tvg", "source": "a", "idx": 0, "video": "a.mp4", "tgt": [10, 20], "a": "10 - 20"}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_ovobench(tmp_path):
    saved = tmp_path / "score.json"
    output = run("score", "ovobench", write(tmp_path / "results.json", OVO), "--json", saved).output
    assert table_rows(output) == [
        ["EPM", "backward", "1", "1", "100.00"],
        ["OCR", "realtime", "0", "1", "0.00"],
        ["SSR", "forward", "1", "2", "50.00"],
        ["average", "backward", "", "", "100.00"],
        ["average", "realtime", "", "", "0.00"],
        ["average", "forward", "", "", "50.00"],
        ["average", "total", "", "", "50.00"],
    ]
    result = json.loads(saved.read_text())
    assert set(result) == {"tasks", "groups", "total"} and result["total"] == 50.0


def test_the_files_of_a_folder_are_one_and_may_be_under_results(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    write(folder / "one.json", {"backward": OVO["backward"]})
    write(folder / "two.json", {"results": {**OVO, "backward": []}})
    output = run("score", "ovobench", folder).output
    assert table_rows(output)[-1][-1] == "50.00"


def test_what_is_missing_is_said_on_standard_error(tmp_path):
    result = run("score", "ovobench", write(tmp_path / "results.json", {"backward": OVO["backward"]}))
    assert result.stderr == "warning: ovobench: nothing of realtime, forward, so there is no total\n"
    assert table_rows(result.stdout)[-1] == ["average", "total", "", "", "–"]


def test_streamingbench(tmp_path):
    questions = [{"task_type": kind, "answer": "B", "mine": "B."} for kind in ("Counting", "Spatial")]
    path, saved = write(tmp_path / "real.json", [{"questions": questions}]), tmp_path / "score.json"
    output = run("score", "streamingbench", path, "--task", "real", "--model", "mine", "--json", saved).output
    assert table_rows(output) == [["Counting", "1", "100.00"], ["Spatial", "1", "100.00"], ["total", "2", "100.00"]]
    assert json.loads(saved.read_text())["total"] == {"total": 2, "correct": 2, "accuracy": 1.0}
    said = {"dialog_history": [{"time": 28, "content": "two"}]}
    goal = {"ground_truth_time_stamp": "0:00:29", "ground_truth_output": "3"}
    path = write(path, [{"questions": [{"task_type": "Proactive Output", **goal, "mine": said}]}])
    output = run("score", "streamingbench", path, "--task", "proactive", "--model", "mine").output
    assert table_rows(output) == [["Proactive Output", "1", "100.00", "0.00"]]


def test_many_warnings_are_counted(tmp_path):
    questions = [{"task_type": "Counting", "answer": "B", "mine": ""}] * 13
    path = write(tmp_path / "real.json", [{"questions": questions}])
    lines = run("score", "streamingbench", path, "--task", "real", "--model", "mine").stderr.splitlines()
    assert len(lines) == 11 and lines[-1] == "warning: and 3 more"


def test_etbench(tmp_path):
    path, saved = tmp_path / "answers.jsonl", tmp_path / "score.json"
    path.write_text("".join(json.dumps({**GROUNDED, "idx": idx, "a": f"10 - {20 - idx}"}) + "\n" for idx in (0, 3)))
    output = run("score", "etbench", path, "--json", saved).output
    assert table_rows(output)[0] == ["tvg", "a", "2", "0", "–", "0.875", "–", "–"]
    assert ["TVG (F1)", "87.5"] in table_rows(output) and ["F1 (gnd)", "–"] in table_rows(output)
    assert json.loads(saved.read_text())["tvg"]["a"]["F1@0.7"] == 0.5
    subset = write(tmp_path / "subset.json", {"tvg": {"a": [0]}})
    assert table_rows(run("score", "etbench", path, "--subset", subset).output)[0][2:6] == ["1", "0", "–", "1.0"]


def test_a_folder_of_predictions_leaves_out_what_the_official_script_wrote(tmp_path):
    folder = tmp_path / "etbench"
    folder.mkdir()
    write(folder / "a.json", [GROUNDED])
    write(folder / "b.json", [{**GROUNDED, "a": ""}])
    write(folder / "metrics.json", {"tvg": {}})
    assert table_rows(run("score", "etbench", folder).output)[0][2:4] == ["2", "1"]


def test_coin(tmp_path):
    rows = [
        {"prediction": "1. Boil water.\n2. Cut it.", "label": ["boil water", "wash hands"]},
        {"prediction": "1. Wash the hands.", "label": ["wash hands"]},
    ]
    content = {
        "benchmark": "coin_procedure",
        "categories": ["boil water", "cut the noodle", "wash hands"],
        "rows": rows,
    }
    path, saved = write(tmp_path / "answers.json", content), tmp_path / "score.json"
    output = run("score", "coin-lta", path, "--json", saved).output
    assert table_rows(output) == [["coin_procedure", "3", "66.67"]]
    assert json.loads(saved.read_text()) == {"accuracy": pytest.approx(200 / 3), "n": 3}
    output = run("score", "coin-lta", write(path, {**content, "rows": []})).output
    assert table_rows(output) == [["coin_procedure", "0", "–"]]


def test_ego4d_lta(tmp_path):
    row = {"predictions": ["nothing", "1. Take knife.\n2. Cut knife."], "verb_labels": [0, 1], "noun_labels": [0, 1]}
    content = {"benchmark": "ego4d_lta", "verbs": ["take", "cut"], "nouns": ["knife", "bread"], "rows": [row]}
    path, saved = write(tmp_path / "answers.json", content), tmp_path / "score.json"
    output = run("score", "coin-lta", path, "--json", saved).output
    assert table_rows(output) == [
        ["verb", "0.0000", "0.0000"],
        ["noun", "0.5000", "0.2500"],
        ["action", "0.5000", "0.2500"],
    ]
    assert "Ego4D LTA, 1 clips" in output
    assert json.loads(saved.read_text())["action"] == {"ED": 0.5, "AUED": 0.25}
    assert table_rows(run("score", "coin-lta", write(path, {**content, "rows": []})).output)[0] == ["verb", "–", "–"]


@pytest.mark.parametrize(
    ("benchmark", "content", "message"),
    [
        ("coin-lta", "[]", "a JSON object was expected"),
        ("coin-lta", "{1", "no JSON: "),
        ("coin-lta", '{"benchmark": "coin"}', "file.json: benchmark is 'coin', not one of coin_step"),
        ("ovobench", "[]", "a JSON object was expected"),
        ("etbench", "{}", "a JSON list was expected"),
        ("etbench", "[1]", "an entry of ET-Bench is a dict"),
        ("etbench", "[1", "no JSON: "),
    ],
)
def test_another_file_is_refused_in_one_line(tmp_path, benchmark, content, message):
    path = tmp_path / "file.json"
    path.write_text(content)
    assert message in run("score", benchmark, path, code=1).stderr


def test_an_empty_folder_is_refused(tmp_path):
    assert "no JSON file in this folder" in run("score", "etbench", tmp_path, code=1).stderr
