import itertools
import json
import sys
from pathlib import Path

import pytest

import activation_policies as policies
from activation_training_runs import source
from live_training_runs import TEXT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def rows():
    return policies.held_out(6, 12)


def line(policy, f1=0.9, alarms=4):
    by_task = {task: {"f1": f1} for task in policies.TASKS}
    return {
        "policy": policy,
        "f1": f1,
        "precision": 0.8,
        "recall": 0.7,
        "events": 5,
        "alarms": alarms,
        "by_task": by_task,
    }


def result(ours=0.9, fixed=0.4, silence=0.6, minutes=12.0):
    rows = [line(policies.OURS, ours), line(policies.EOS, silence), line(policies.FIXED, fixed)]
    return {"rows": rows, "worlds": 6, "cpu_minutes": {policies.COMMON: 3.0, policies.OURS: minutes}}


def test_worlds_are_held_out_and_as_many_of_each_task(rows):
    assert [task for task, _ in rows] == ["dense"] * 2 + ["steps"] * 2 + ["grounded"] * 2
    assert {row["world"].split for _, row in rows} == {"heldout"}


def test_a_fixed_interval_rings_as_often_as_it_is_told(rows):
    for alarms in (1, 5, 7, 36, 71, 72):
        rings = policies.fixed_interval(rows, alarms)
        assert len(rings) == 6 and sum(map(len, rings)) == alarms
        places = [24 * k / 2 + 2 * time for k, of_row in enumerate(rings) for time in of_row]
        gaps = [b - a for a, b in itertools.pairwise(places)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    due = [policies.event_times(row) for _, row in rows]
    best = policies.event_f1(due, policies.best_interval(rows))["f1"]
    assert all(best >= policies.event_f1(due, policies.fixed_interval(rows, n))["f1"] for n in (3, 9, 18, 36))


def test_the_silence_threshold_is_looked_for(rows, monkeypatch):
    """A model that raises more alarms the higher the threshold is."""
    monkeypatch.setattr(policies, "silence_alarms", lambda m, p, r, threshold: [[0.0]] * round(100 * threshold))
    tried = policies.as_many(None, None, rows, 90)
    numbers = [len(alarms) for alarms in tried.values()]
    assert numbers[-1] == 90 and len(numbers) <= policies.HALVINGS
    assert 98 <= len(list(policies.as_many(None, None, rows, 1000).values())[-1]) <= 100  # there are not so many


def test_a_line_has_every_task(rows):
    due = [policies.event_times(row) for _, row in rows]
    perfect = policies.score("perfect", rows, due, threshold=0.5)
    assert perfect["f1"] == 1.0 and perfect["threshold"] == 0.5 and list(perfect["by_task"]) == list(policies.TASKS)
    wrong = [[] if task == "steps" else times for (task, _), times in zip(rows, due, strict=True)]
    found = policies.score("no steps", rows, wrong)["by_task"]
    assert found["steps"]["f1"] == 0.0 and found["dense"]["f1"] == found["grounded"]["f1"] == 1.0


def test_verdict_holds_every_bound_and_each_can_break():
    assert policies.verdict(result()) == dict.fromkeys(("event_f1", "cpu_minutes", "ahead"), True)
    for name, broken in (
        ("event_f1", result(ours=0.84)),
        ("cpu_minutes", result(minutes=37.5)),
        ("ahead", result(silence=0.91)),
        ("ahead", result(fixed=0.95)),
    ):
        assert [key for key, holds in policies.verdict(broken).items() if not holds] == [name]


def test_table_has_a_line_for_each_policy():
    lines = policies.table(result()).splitlines()
    assert lines[0] == "| policy | event F1 | precision | recall | alarms | dense | steps | grounded |"
    assert lines[2] == "| activation | 90.0 | 80.0 | 70.0 | 4 | 90.0 | 90.0 | 90.0 |"
    assert len([text for text in lines if text.startswith("| ")]) == 5 and "activation 12.0" in lines[-1]


def test_the_same_run_for_a_videollm_online():
    recipe = policies.yaml.safe_load(policies.find_recipe(policies.RECIPE).read_text())
    other = policies.as_videollm_online(recipe)
    same = ("datasets", "model_name_or_path", "max_steps", "learning_rate", "per_device_train_batch_size", "seed")
    assert all(other[name] == recipe[name] for name in same) and other["trainer"] == "live"


def test_the_page_shows_what_was_measured():
    measured = json.loads((ROOT / "benchmarks" / "activation_policies.json").read_text())
    assert policies.table(measured) in (ROOT / "docs" / "streambridge_activation.md").read_text()
    assert measured["verdict"] == policies.verdict(measured)
    for row in measured["rows"]:
        again = policies.event_f1(measured["due"], row["alarm_times"])
        assert {name: row[name] for name in again} == again


@pytest.mark.slow
def test_from_the_command_to_the_page(tmp_path, monkeypatch):
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "text_config": TEXT, "bf16": False}
    changes |= {"datasets": [source(4)], "eval_datasets": [source(2, seed=1)]}
    found, page = tmp_path / "rows.json", tmp_path / "page.md"
    words = ["--worlds", "3", "--set", json.dumps(changes), "--runs", tmp_path / "runs", "--json", found]
    monkeypatch.setattr(policies, "PAGE", page)
    monkeypatch.setattr(policies, "HALVINGS", 2)
    monkeypatch.setattr(sys, "argv", ["activation_policies.py", *map(str, words)])
    policies.main()
    first = json.loads(found.read_text())
    assert [row["policy"] for row in first["rows"]][:2] == [policies.OURS, policies.EOS] and len(first["rows"]) == 5
    weights = tmp_path / "runs" / "activation" / "final" / "model.safetensors"
    when = weights.stat().st_mtime_ns
    policies.main()  # nothing is trained again
    assert json.loads(found.read_text()) == first and weights.stat().st_mtime_ns == when
    page.write_text(f"# Page\n\n{policies.BEGIN}nothing yet\n{policies.END}")
    monkeypatch.setattr(sys, "argv", ["activation_policies.py", "--render", str(found)])
    policies.main()
    assert "nothing yet" not in page.read_text() and f"| {policies.FIXED} |" in page.read_text()
