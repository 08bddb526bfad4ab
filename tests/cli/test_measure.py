import json
import sys

from cli_helpers import run, table_rows


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
