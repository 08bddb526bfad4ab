import json
import sys

import pytest

from benchmark_helpers import answering, write_video
from cli_helpers import run, table_rows
from streamchat_cli import evaluate

CHOICE = {"task_type": "Counting", "question": "which ?", "time_stamp": "00:00:03", "answer": "B"}
# One question in each benchmark's published layout.
ANNOTATIONS = {
    "ovobench": [
        {"id": 1, "task": "EPM", "video": "x.mp4", "realtime": 3.4, "question": "?", "options": ["a", "b"], "gt": 1},
        {"id": 2, "task": "OCR", "video": "x.mp4", "realtime": 3.4, "question": "?", "options": ["a", "b"], "gt": 0},
    ],
    "streamingbench": [
        {
            "questions": [{**CHOICE, "options": ["A. one", "B. two", "C. three", "D. four"]}],
            **{"time": "[0:00:00 - 0:00:08]", "video_path": "./videos/x.mp4"},
        }
    ],
    "etbench": [
        {
            **{"version": 1.0, "idx": 0, "task": "tvg", "source": "made", "video": "x.mp4", "duration": 8.0},
            **{"tgt": [2.0, 4.0], "q": "when ?"},
        }
    ],
}


def test_eval_prints_its_table_and_writes_everything(fake, tmp_path, monkeypatch):
    scores = {"fresh": 0.875, "frozen": 0.375, "grey": None}
    result = {
        "state_accuracy": {"fresh": 0.9, "frozen": 0.25, "grey": 0.1, "oracle": 0.3, "chance": 0.2},
        "by_kind": {"colour": {"fresh": 1.0, "frozen": 0.5, "grey": None, "chance": 0.25, "n": 4}},
        "n": 8,
        "streaming_score": {viewer: {"score": score} for viewer, score in scores.items()},
        "rows": [{"word": "red"}],
    }
    calls = []
    module = type(sys)("streamchat_hf.evaluation.streamworld")
    module.evaluate = lambda *args, **kwargs: calls.append(kwargs) or result
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "eval.json"
    output = run("eval", "streamworld", "--seed", 3, "--split", "seen", "--clips", 2, "--json", path).output
    assert calls == [{"seed": 3, "split": "seen", "clips": 2, "progress": False}]
    assert table_rows(output) == [
        ["colour", "100.0", "50.0", "–", "25.0", "4"],
        ["all", "90.0", "25.0", "10.0", "20.0", "8"],
    ]
    assert "streaming score: watching on 0.875, frozen 0.375, blind –" in output
    assert json.loads(path.read_text()) == result


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Annotations and their video, and a model that always says B and a span."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(evaluate, "load", lambda *args: answering(lambda question, at: "B 2 - 4")[:2])
    write_video(tmp_path)
    for name, annotations in ANNOTATIONS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(annotations))
    return tmp_path


@pytest.mark.parametrize("protocol", ["official", "streaming"])
@pytest.mark.parametrize("name", ANNOTATIONS)
def test_a_benchmark_prints_its_table_and_its_file_can_be_scored(folder, name, protocol):
    out, everything, scored = folder / "out", folder / "all.json", folder / "scored.json"
    options = ["--protocol", protocol, "--tokens-per-second", 4, "--json", everything]
    output = run("eval", name, folder / f"{name}.json", folder, "--out", out, *options).output
    results = json.loads((out / "results.json").read_text())
    assert json.loads(everything.read_text()) == results
    assert (results["benchmark"], results["protocol"], results["model"]) == (name, protocol, "streamchat-tiny")
    assert table_rows(output)[0][0] in {"EPM", "Counting", "TVG"} and f"written: {out}" in output.replace("\n", "")
    file_options = ["--task", "real", "--model", "streamchat-tiny"] if name == "streamingbench" else []
    run("score", name, out / "predictions.json", *file_options, "--json", scored)
    assert json.loads(scored.read_text()) == results["scores"]


def test_answers_for_a_judge(folder):
    question = {"id": "a", "video": "x.mp4", "time": 3.0, "question": "?", "reference": None, "end": None}
    (folder / "set.jsonl").write_text(json.dumps(question))
    out = folder / "out"
    options = ["--out", out, "--tokens-per-second", 4]
    output = run("eval", "streamchat-eval", folder / "set.jsonl", folder, *options).output
    assert table_rows(output)[0] == ["answered", "share", "1", "1"]
    [answer] = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert answer["answer"] == "B 2 - 4" and answer["words"][0] == ["B", 3.0, 3.0]
    results = json.loads((out / "results.json").read_text())
    assert (results["fps"], results["frames"], results["deadline"]) == (5.0, 32, None)


def test_what_does_not_go_together_is_one_line_before_anything_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(evaluate, "load", lambda *args: pytest.fail("loaded"))
    words = ["eval", "ovobench", folder / "ovobench.json", folder, "--out", folder / "out"]
    assert "simulated clock needs tokens_per_second" in run(*words, code=1).stderr
    assert "must be one of official, streaming" in run(*words, "--protocol", "x", code=1).stderr
    missing = run(*words[:3], folder / "no", *words[4:], "--protocol", "official", code=1).stderr
    assert "1 of 1 videos are missing" in missing
    assert "no such folder" in run(*words, "--protocol", "official", "--json", "/no/such/x.json", code=1).stderr
    assert "needs --out" in run("eval", "streamworld", "--protocol", "official", code=1).stderr
    alone = ["--out", folder / "out", "--jobs", 2, "--clock", "wall", "--tokens-per-second", 2]
    told = "--out, --jobs, --clock, --tokens-per-second: only together with --protocol"
    assert told in " ".join(run("eval", "streamworld", *alone, code=1).stderr.split())


def test_models_of_the_same_name_are_told_apart_by_their_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "SMALL", 2**16)
    folders = [tmp_path / parent / "model" for parent in "abcde"]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "small.safetensors").write_bytes(bytes(2**15))
        (folder / "large.safetensors").write_bytes(bytes(2**17))
    _, copy, config, small, large = folders
    (copy / "trainer_state.json").write_text("1")  # is no part of the model
    (config / "config.json").write_text("[]")
    (small / "small.safetensors").write_bytes(bytes(2**15 - 1) + b"1")
    (large / "large.safetensors").write_bytes(b"1" * 2**17)
    first, same, *others = (evaluate._digest(str(folder)) for folder in folders)
    assert first == same and len({first, *others}) == 4 and len(first) == 12
    assert evaluate._digest(None) is evaluate._digest("you/model") is None


@pytest.mark.parametrize(
    ("model", "name"), [(None, "streamchat-tiny"), ("you/model", "you/model"), (".", None), ("sub/../sub", "sub")]
)
def test_a_model_is_named_without_the_folder_it_lies_in(tmp_path, monkeypatch, model, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    assert evaluate._name(model) == (tmp_path.name if name is None else name)
