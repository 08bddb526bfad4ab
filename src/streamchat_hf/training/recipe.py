"""A recipe: how its file is read, and how a result's log tells of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from trl import TrlParser

from streamchat_hf.hub.staging import without_folders
from streamchat_hf.training.commit import code_commit


def read_recipe(kinds: tuple[type, ...], defaults: dict[str, Any], path: str | Path, overrides: Sequence[str]) -> Any:
    """Reads a recipe file.

    Args:
        kinds: Dataclasses whose fields it may hold.
        defaults: Fields in place of their own defaults; a file wins over them.
        path: YAML file.
        overrides: Words of a command line, `--key value`, that win over the file.

    Returns:
        One instance of each.

    Raises:
        ValueError: If a field is unknown.
    """
    parser = TrlParser(kinds, allow_abbrev=False, usage="train RECIPE [--key value ...]")
    parser.set_defaults_with_config(**defaults, use_cpu=not torch.accelerator.is_available())
    return parser.parse_args_and_config(["--config", str(path), *overrides])


def read_yaml_fields(recipe: Any, *names: str) -> None:
    """Reads fields that came as text, from the command line, as YAML."""
    for name in names:
        if isinstance(getattr(recipe, name), str):
            setattr(recipe, name, yaml.safe_load(getattr(recipe, name)))


def training_log(trainer: Any, fields: dict[str, Any], model_name_or_path: str | None) -> dict[str, Any]:
    """How a result came about, in the layout that cards are written from, without paths of this machine.

    Args:
        trainer: After training.
        fields: Of the recipe; also `stage`, `datasets`, `eval_datasets`, `text_backbone` and `vision_backbone`.
        model_name_or_path: What it began with, if that was one model.
    """
    log = {
        "recipe": fields,
        "model": {"model_name_or_path": model_name_or_path},
        "arguments": trainer.args.to_dict(),
        "commit": code_commit(),
        "log": trainer.state.log_history,
    }
    return without_folders(log)
