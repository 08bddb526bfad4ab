"""The recipe says which trainer it is for."""

import sys
from pathlib import Path

import pytest

from streamchat_hf.training.__main__ import find_recipe, main


def fake(monkeypatch, name, calls):
    module = type(sys)(f"streamchat_hf.training.{name}")
    module.train = lambda *args, **kwargs: calls.append((name, args, kwargs)) or Path("final")
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def calls(monkeypatch):
    calls = []
    for name in ("sft", "alignment", "multitask_trainer", "online_detection", "live", "activation", "streamworld"):
        fake(monkeypatch, name, calls)
    return calls


@pytest.mark.parametrize(
    ("trainer", "module"),
    [
        *(("sft", "sft"), ("alignment", "alignment")),
        *(("multitask", "multitask_trainer"), ("online_detection", "online_detection")),
        *(("live", "live"), ("activation", "activation")),
    ],
)
def test_a_recipe_of_these_takes_any_key(tmp_path, calls, trainer, module):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"trainer: {trainer}\n")
    assert main([str(recipe), "--learning_rate", "1e-5"]) == Path("final")
    assert calls == [(module, (recipe, ["--learning_rate", "1e-5"]), {})]


@pytest.mark.parametrize("option", ["--output_dir", "--output-dir"])
@pytest.mark.parametrize("resume", [True, False])
def test_the_recipe_of_the_shipped_checkpoint(tmp_path, calls, option, resume):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 7\n")
    main([str(recipe), option, "runs/x", *[["--no-resume"], []][resume]])
    assert calls == [("streamworld", (recipe, Path("runs/x")), {"resume": resume})]


@pytest.mark.parametrize("name", ["recipes/streamchat/tiny_sft.yaml", "streamchat/tiny_sft.yaml"])
def test_a_shipped_recipe_is_found_from_anywhere_unless_there_is_one_of_that_name(name, tmp_path, calls, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_recipe(name)
    assert "model_name_or_path: runs/tiny_stage2/final" in shipped.read_text()
    own = tmp_path / name
    own.parent.mkdir(parents=True)
    own.write_text("trainer: sft\n")
    assert find_recipe(name) == Path(name) and shipped != own


def test_what_is_wrong_is_said(tmp_path):
    (tmp_path / "recipe.yaml").write_text("trainer: dpo\n")
    known = "sft, alignment, multitask, online_detection, live, activation or streamworld"
    with pytest.raises(ValueError, match=f"'dpo' must be {known}"):
        main([str(tmp_path / "recipe.yaml")])
    with pytest.raises(ValueError, match="name a recipe first"):
        main(["--output_dir", "x"])
    with pytest.raises(FileNotFoundError, match="gone.yaml"):
        main([str(tmp_path / "gone.yaml")])
