"""Two processes share the watching, and leave nothing out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from online_detection_helpers import write_recipe
from streamchat_hf.training.online_detection import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
SOURCE = {"name": "streamworld", "seconds": 20.0}


def test_two_processes_watch_what_one_does(tmp_path):
    changes = {
        "dataset": SOURCE | {"videos": 5},
        "eval_dataset": SOURCE | {"videos": 2, "split": "heldout"},
        "max_steps": 3,
        "save_strategy": "no",
    }
    recipe = write_recipe(tmp_path, "two", **changes, per_device_train_batch_size=2)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29643"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "streamchat_hf.training", str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    watched = {path.name: load_file(path) for path in (tmp_path / "features").rglob("*.safetensors")}
    assert len(watched) == 7 and (tmp_path / "two" / "final" / "scores.json").is_file()
    train(write_recipe(tmp_path, "one", **changes, features_dir=str(tmp_path / "alone")))
    for path in (tmp_path / "alone").rglob("*.safetensors"):
        features, theirs = load_file(path)["features"], watched.pop(path.name)["features"]
        torch.testing.assert_close(theirs, features, atol=2e-5, rtol=0)  # launched processes round in their own way
    assert not watched
