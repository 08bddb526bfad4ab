import json

import pytest

import activation_helpers
from cli_helpers import run, table_rows
from streamchat_cli import proactive
from streamchat_hf.evaluation import proactive as evaluation


@pytest.fixture
def loaded(monkeypatch):
    """Models by the name they are asked for; whoever watches them is never run."""
    names = []
    activation = (object(), activation_helpers.world_processor())
    monkeypatch.setattr(proactive, "load", lambda name, trusted: names.append((name, trusted)) or (object(), None))
    monkeypatch.setattr(proactive, "load_activation", lambda path, trusted: None if path is None else activation)
    said = {"on-question": [], "activation": [evaluation.Said(1.0, "it is red")]}
    monkeypatch.setattr(evaluation, "watch_row", lambda contestant, row: said[contestant.policy])
    monkeypatch.setenv("COLUMNS", "160")
    return names


def test_every_model_is_compared_by_every_policy(loaded, tmp_path):
    path = tmp_path / "result.json"
    arguments = (
        "bench",
        "proactive",
        "there/one",
        "two",
        "--activation",
        "a",
        "--worlds",
        4,
        "--seed",
        3,
        "--json",
        path,
    )
    output = run(*arguments).output
    assert loaded == [("there/one", False), ("two", False)]
    rows = table_rows(output)
    policies = ("on-question", "activation")
    assert [row[:2] for row in rows] == [[name, policy] for name in ("one", "two") for policy in policies]
    assert rows[0][-2] == "0" and rows[1][-2] == "3"
    result = json.loads(path.read_text())
    assert (result["split"], result["seed"], result["worlds"], result["tolerance"]) == ("heldout", 3, 3, 1.0)
    assert [run["model"] for run in result["runs"]] == ["there/one"] * 2 + ["two"] * 2
    assert {row["task"] for row in result["runs"][0]["rows"]} == {"dense", "steps", "grounded"}
    assert all(time >= 0 and text for time, text in result["runs"][0]["rows"][0]["due"])


def test_without_arguments_the_tiny_checkpoint_is_asked(loaded):
    [row] = table_rows(run("bench", "proactive", "--worlds", 3).output)
    assert loaded == [(None, False)] and row[:2] == ["tiny checkpoint", "on-question"]


def test_what_cannot_be_written_is_told_before_the_work(loaded, tmp_path):
    assert "no such folder" in run("bench", "proactive", "--json", tmp_path / "no" / "a.json", code=1).output
    assert loaded == []
