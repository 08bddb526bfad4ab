from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from transformers import TrainingArguments

from streamchat_hf.training.recipe import read_recipe, read_yaml_fields, training_log


@dataclass
class Recipe:
    name: str = "nobody"
    sources: list[dict[str, Any]] | str | None = None

    def __post_init__(self):
        read_yaml_fields(self, "sources")


def read(folder, *words, **fields):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder), **fields}))
    defaults = {"learning_rate": 0.5, "logging_steps": 7}
    return read_recipe((Recipe, TrainingArguments), defaults, path, words)


def test_words_win_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe, arguments = read(tmp_path, "--name", "you", "--max_steps", "9", name="me", learning_rate=0.25, max_steps=3)
    assert recipe.name == "you"
    assert (arguments.max_steps, arguments.learning_rate, arguments.logging_steps) == (9, 0.25, 7)


def test_what_is_no_text_can_come_from_the_command_line(tmp_path):
    recipe, _ = read(tmp_path, "--sources", "[{path: a, weight: 2}]")
    assert recipe.sources == [{"path": "a", "weight": 2}]
    assert read(tmp_path, sources=[{"path": "b"}])[0].sources == [{"path": "b"}]


def test_an_unknown_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown_field"):
        read(tmp_path, unknown_field=1)


def test_a_log_has_no_folders_of_this_machine(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, seed=4)
    trainer = SimpleNamespace(args=arguments, state=SimpleNamespace(log_history=[{"loss": 1.0, "step": 1}]))
    log = training_log(trainer, {"stage": "sft"}, str(tmp_path / "begun"))
    assert log["recipe"] == {"stage": "sft"} and log["model"] == {"model_name_or_path": "begun"}
    assert log["log"] == [{"loss": 1.0, "step": 1}] and log["arguments"]["seed"] == 4
    assert str(tmp_path) not in str(log)
