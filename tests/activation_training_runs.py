"""Small recipes for the activation model on StreamWorld."""

from pathlib import Path
from typing import Any

import yaml

from live_training_runs import TEXT
from streamchat_hf.training.activation import ActivationTrainer, build_trainer, load_recipe


def source(length: int = 16, **changes: Any) -> dict[str, Any]:
    """Short rows."""
    return {"name": "proactive_streamworld", "length": length, "num_frames": 8} | changes


def write_recipe(folder: Path, name: str = "recipe", **changes: Any) -> Path:
    """A recipe that trains a small fresh model on the shipped tower, for four updates of four rows."""
    recipe = {
        "trainer": "activation",
        "datasets": [source()],
        "output_dir": str(folder / name),
        "text_config": TEXT,
        "model_config": {"frame_token_pooled": [1, 2]},
        "keep_features": True,
        "fps": 2.0,
        "system_prompt": "keep watching .",
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 3.0e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def trainer_of(folder: Path, name: str = "recipe", **changes: Any) -> ActivationTrainer:
    """A trainer of such a recipe, ready to train."""
    return build_trainer(*load_recipe(write_recipe(folder, name, **changes)))
