import json
import sys
from pathlib import Path

import pytest
import torch

import live_learning_methods
from live_training_runs import TEXT
from streamchat_hf.training.live import build_trainer, load_recipe

ROOT = Path(__file__).parents[2]
OURS = live_learning_methods.OURS


def row(variant, seed, **numbers):
    return {"variant": variant, "seed": seed, "steps": 9, **numbers}


def test_variants_differ_from_the_recipe_where_they_say():
    made = {
        name: live_learning_methods.variant_recipe(name, 5, Path("x"), {"max_steps": 7})
        for name in live_learning_methods.VARIANTS
    }
    assert [recipe.get("method", "streaming") for recipe in made.values()] == [
        *("streaming", "interleaved", "per-frame"),
        *["streaming"] * 4,
    ]
    assert [recipe.get("stream_loss_weight") for recipe in made.values()] == [None, None, None, 0.5, 1.0, 2.0, 3.0]
    for recipe in made.values():
        assert recipe["max_steps"] == 7 and recipe["seed"] == 5 == recipe["datasets"][0]["seed"]
        assert recipe["eval_datasets"][0]["split"] == "heldout" and "seed" not in recipe["eval_datasets"][0]
        assert recipe["eval_datasets"] == made[OURS]["eval_datasets"]


def test_verdict_compares_means_where_the_paper_is_ahead():
    good = {"lm_ppl": 2.0, "training_tokens": 10, "cache_bytes": 5, "frames_per_second": 50}
    bad = {"lm_ppl": 3.0, "training_tokens": 40, "cache_bytes": 9, "frames_per_second": 20}
    rows = [row(OURS, 0, **good, time_diff=1.0, fluency=0.9), row("per-frame", 0, **bad)]
    rows += [row("interleaved", seed, time_diff=value, fluency=0.5) for seed, value in enumerate((0.4, 1.5))]
    answer = live_learning_methods.verdict(rows)
    assert answer["per-frame"] == dict.fromkeys(good, True)
    assert answer["interleaved"] == {"time_diff": False, "fluency": True}
    rows[1] |= good | {"lm_ppl": 1.0}
    assert live_learning_methods.verdict(rows)["per-frame"] == dict.fromkeys(good, False)
    assert live_learning_methods.verdict(rows[:1]) == {"per-frame": {}, "interleaved": {}}


def test_table_has_means_and_deviations_and_says_where_not():
    rows = [row(OURS, seed, lm_ppl=value, fluency=0.5, time_diff=1.0) for seed, value in enumerate((1.25, 1.75))]
    rows += [row("interleaved", 0, lm_ppl=1.0, fluency=0.25, time_diff=0.5)]
    lines = live_learning_methods.table(rows).splitlines()
    assert lines[0].startswith("| learned | LM-PPL ↓ | TimeDiff, s ↓ | Fluency, % ↑ |")
    assert lines[2].startswith(f"| {OURS} | 1.50 ± 0.35 | 1.00 ± 0.00 | 50.0 ± 0.0 | – |")
    assert "**behind** interleaved on TimeDiff; ahead of interleaved on Fluency." in lines[-1]
    assert lines[-1].endswith("Seeds: 2. Steps: 9.")


def test_five_minutes_are_watched_by_every_method(tmp_path):
    """Here three seconds of them, by a model of the recipe's kind."""
    recipe = live_learning_methods.variant_recipe("untrained", 0, tmp_path, {"text_config": TEXT})
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    trainer = build_trainer(*load_recipe(path, ["--use_cpu", "true", "--bf16", "false"]))
    tokens = {}
    with torch.no_grad():
        for method in live_learning_methods.WATCHING:
            method = method.split(",")[0]
            watched = live_learning_methods.watch(trainer.model.eval(), trainer.processing_class, 3, method, 3.0)
            assert watched["frames"] == 6
            tokens[method] = watched["tokens"]
    assert tokens["streaming"] < tokens["per-frame"] and tokens["streaming"] < tokens["interleaved"]


def test_the_page_shows_what_was_measured():
    result = ROOT / "benchmarks" / "live_learning_methods.json"
    table = live_learning_methods.table(json.loads(result.read_text())["rows"])
    assert table in (ROOT / "docs" / "videollm_online.md").read_text()


@pytest.mark.slow
def test_two_variants_from_the_command_to_the_page(tmp_path, monkeypatch, capsys):
    rows = {"name": "streamworld", "length": 8, "num_frames": 8, "kinds": {"changes": 1.0}, "max_queries": 1}
    changes = {"max_steps": 1, "per_device_train_batch_size": 2, "text_config": TEXT, "bf16": False}
    changes |= {"datasets": [rows], "eval_datasets": [{**rows, "length": 2, "split": "heldout"}]}
    result, page = tmp_path / "rows.json", tmp_path / "page.md"
    words = ["--seeds", "3", "--variants", "interleaved", OURS, "--set", json.dumps(changes)]
    words += ["--runs", tmp_path / "runs", "--json", result]
    monkeypatch.setattr(live_learning_methods, "SECONDS", 3.0)
    monkeypatch.setattr(live_learning_methods, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["live_learning_methods.py", *map(str, words)])
    live_learning_methods.main()
    printed, first = capsys.readouterr().out, result.read_text()
    assert set(json.loads(first)["verdict"]["interleaved"]) == {"time_diff", "fluency"}
    row = tmp_path / "runs" / "streaming_w1_3" / "row.json"
    when = row.stat().st_mtime_ns
    live_learning_methods.main()  # nothing is trained again
    assert result.read_text() == first and row.stat().st_mtime_ns == when
    page.write_text(f"# Page\n\n{live_learning_methods.BEGIN}old\n{live_learning_methods.END}")
    monkeypatch.setattr(sys, "argv", ["live_learning_methods.py", "--render", str(result)])
    live_learning_methods.main()
    assert "old" not in page.read_text() and printed.splitlines()[2] in page.read_text()
