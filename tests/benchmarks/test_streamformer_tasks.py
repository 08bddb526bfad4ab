import json
import sys
from pathlib import Path

import pytest

import streamformer_tasks

ROOT = Path(__file__).parents[2]
TASKS = streamformer_tasks.TASKS


def row(variant, seed, value):
    return {"variant": variant, "seed": seed, "steps": 9, "metrics": dict.fromkeys(TASKS, value)}


def test_variants_differ_from_the_recipe_where_they_say():
    made = {
        name: streamformer_tasks.variant_recipe(name, 5, Path("x"), {"max_steps": 7})
        for name in streamformer_tasks.VARIANTS
    }
    assert {name: list(recipe["datasets"]) for name, recipe in made.items()} == {
        **{name: list(TASKS) for name in ("image only", "bidirectional", "causal")},
        "global": ["action_recognition", "video_text_retrieval"],
        "temporal": ["temporal_localization", "temporal_grounding"],
        "spatial": ["video_object_segmentation", "referring_segmentation"],
        "global + temporal": list(TASKS[:4]),
    }
    assert [recipe["temporal"] for recipe in made.values()] == ["none", "bidirectional"] + ["causal"] * 5
    for recipe in made.values():
        assert list(recipe["eval_datasets"]) == list(TASKS)
        assert recipe["seed"] == 5 == recipe["datasets"][next(iter(recipe["datasets"]))]["seed"]
        assert recipe["max_steps"] == recipe["eval_steps"] == 7


def test_verdict_is_two_standard_deviations_of_image_only():
    images = [row("image only", seed, value) for seed, value in enumerate([0.2, 0.3, 0.4])]  # 0.3 ± 0.1
    for value, above, not_below in ((0.29, False, False), (0.49, False, True), (0.51, True, True)):
        answer = streamformer_tasks.verdict([*images, row("causal", 0, value)])
        assert list(answer) == list(TASKS)
        assert [entry["holds"] for entry in answer.values()] == [above] * 4 + [not_below] * 2
        assert answer["temporal_grounding"]["deviation"] == pytest.approx(0.1)


def test_table_has_means_and_deviations():
    rows = [row("causal", 0, 0.25), row("causal", 1, 0.35), row("global", 0, 0.5)]
    lines = streamformer_tasks.table(rows).splitlines()
    assert lines[0].startswith("| trained on | seeds | action recognition (accuracy) |")
    assert lines[2] == "| all six, causal | 2 |" + " 30.0 ± 7.1 |" * 6
    assert lines[3] == "| global | 1 |" + " 50.0 |" * 6
    assert lines[-1] == "Steps: 9."


@pytest.mark.slow
def test_two_variants_from_the_command_to_the_table(tmp_path, monkeypatch, capsys):
    held_out = {task: {"name": "streamworld", "length": 2, "split": "heldout"} for task in TASKS}
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "eval_datasets": held_out, "save_strategy": "no"}
    result = tmp_path / "rows.json"
    words = ["--seeds", "3", "--variants", "image only", "causal", "--set", json.dumps(changes)]
    words += ["--runs", tmp_path / "runs", "--json", result]
    monkeypatch.setattr(sys, "argv", ["streamformer_tasks.py", *map(str, words)])
    streamformer_tasks.main()
    first = result.read_text()
    assert "| all six, image only |" in capsys.readouterr().out
    assert list(json.loads(first)["verdict"]) == list(TASKS)
    when = (tmp_path / "runs" / "causal_3" / "final" / "model.safetensors").stat().st_mtime_ns
    streamformer_tasks.main()  # nothing is trained again
    assert result.read_text() == first
    words[words.index("image only")] = "bidirectional"
    monkeypatch.setattr(sys, "argv", ["streamformer_tasks.py", *map(str, words)])
    streamformer_tasks.main()
    rows = json.loads(result.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["image only", "bidirectional", "causal"]
    assert [row for row in rows if row["variant"] != "bidirectional"] == json.loads(first)["rows"]
    assert (tmp_path / "runs" / "causal_3" / "final" / "model.safetensors").stat().st_mtime_ns == when
