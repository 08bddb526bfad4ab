"""Two processes make the updates of one, negatives from both included."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
TASKS = ("video_text_retrieval", "temporal_grounding", "referring_segmentation", "action_recognition")
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
TWO = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29633")


def run(folder: Path, name: str, *launcher: str, **changes) -> Path:
    recipe = {
        "trainer": "multitask",
        "output_dir": str(folder / name),
        "model_config": {**TOWER, "image_size": 48, "patch_size": 16, "lora_rank": 2},
        "text_config": {**TOWER, "projection_size": 16, "max_position_embeddings": 12},
        "action_templates": ["{}"],
        "logit_bias": -2.0,
        "trained": "everything",
        "datasets": {task: {"name": "streamworld", "length": 7} for task in TASKS},
        "num_frames": 6,
        "max_steps": 3,
        "global_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 0.02,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "streamchat_hf.training", str(path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / name / "final"


def test_two_processes_are_one(tmp_path):
    one, two = run(tmp_path, "one"), run(tmp_path, "two", *TWO)
    apart = run(tmp_path, "apart", *TWO, losses={"gather_texts": False})
    weights, same, other = (load_file(path / "model.safetensors") for path in (one, two, apart))
    for name, value in weights.items():
        torch.testing.assert_close(same[name], value, atol=1e-6, rtol=1e-4, msg=name)
    assert any((other[name] - value).abs().max() > 1e-5 for name, value in weights.items())
    logs = [json.loads((path / "training_log.json").read_text())["log"] for path in (one, two)]
    for ours, theirs in zip(*([entry for entry in log if "loss" in entry] for log in logs), strict=True):
        for task in TASKS:
            assert ours[f"loss_{task}"] == pytest.approx(theirs[f"loss_{task}"], abs=2e-4)
