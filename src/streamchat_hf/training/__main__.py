"""`accelerate launch -m streamchat_hf.training RECIPE [--key value ...]`, and what `streamchat train` does."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from accelerate import PartialState

from streamchat_hf.package_data import package_data


def find_recipe(name: str) -> Path:
    """A recipe: a file, or, where there is none, one that ships with the package under this path.

    Args:
        name: Such as `"my.yaml"`, `"recipes/streamchat/sft.yaml"` or `"streamchat/sft.yaml"`.

    Raises:
        FileNotFoundError: If there is neither.
    """
    shipped = package_data("recipes") / name.removeprefix("recipes/")
    for path in (Path(name), shipped):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}: no such recipe, nor one of that name in {shipped.parent}")


def main(words: Sequence[str] | None = None) -> Path:
    """Trains by a recipe, with the trainer that its field `trainer` names.

    Args:
        words: The recipe, see [`find_recipe`], then `--key value` for what shall differ from it; `None`: of the
            command line.

    Returns:
        The folder of the trained model and processor.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If there is no such trainer, or the recipe does not fit it.
    """
    words = sys.argv[1:] if words is None else words
    if not words or words[0].startswith("-"):
        raise ValueError("name a recipe first, such as recipes/streamchat/sft.yaml")
    recipe, overrides = find_recipe(words[0]), words[1:]
    trainer = yaml.safe_load(recipe.read_text()).get("trainer", "streamworld")
    if trainer == "sft":
        from streamchat_hf.training.sft import train

        return train(recipe, overrides)
    if trainer == "alignment":
        from streamchat_hf.training.alignment import train as train_alignment

        return train_alignment(recipe, overrides)
    if trainer == "multitask":
        from streamchat_hf.training.multitask_trainer import train as train_multitask

        return train_multitask(recipe, overrides)
    if trainer == "online_detection":
        from streamchat_hf.training.online_detection import train as train_online_detection

        return train_online_detection(recipe, overrides)
    if trainer == "live":
        from streamchat_hf.training.live import train as train_live

        return train_live(recipe, overrides)
    if trainer == "activation":
        from streamchat_hf.training.activation import train as train_activation

        return train_activation(recipe, overrides)
    if trainer == "streamworld":
        from streamchat_hf.training.streamworld import train as train_streamworld

        parser = argparse.ArgumentParser(prog="train RECIPE")
        parser.add_argument("--output_dir", "--output-dir", required=True, type=Path)
        parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
        options = parser.parse_args(overrides)
        return train_streamworld(recipe, options.output_dir, resume=options.resume)
    known = "sft, alignment, multitask, online_detection, live, activation or streamworld"
    raise ValueError(f"{recipe}: trainer {trainer!r} must be {known}")


if __name__ == "__main__":
    main()
    # A process that leaves while another is still connected to it can be aborted by gloo's threads.
    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
