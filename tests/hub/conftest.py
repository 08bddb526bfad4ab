"""Checkpoints to publish, and a Hub to publish them on, for a client in this process."""

import copy
import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from hub_double import HubDouble
from live_training_runs import speaker
from streamchat_hf import StreamFormerConfig, StreamFormerModel
from training_runs import small_model

SFT_LOG = {
    "recipe": {
        "stage": "sft",
        "datasets": [
            {"name": "streamworld", "clips": 6, "split": "seen", "weight": 0.25},
            {"path": "acme/talks", "weight": 0.5},
            {"name": "jsonl", "annotations": "/data/secret/rows.jsonl", "weight": 0.25},
        ],
        "text_backbone": "Qwen/Qwen2-7B-Instruct",
        "vision_backbone": "/data/secret/streamformer",
    },
    "arguments": {"seed": 5, "output_dir": "/data/secret/run"},
    "log": [{"loss": 2.0, "step": 20}, {"loss": 1.0, "step": 40}, {"train_runtime": 180.0, "step": 40}],
}


@pytest.fixture
def sft_log() -> dict:
    """As `training.sft` writes it."""
    return copy.deepcopy(SFT_LOG)


@pytest.fixture
def streamchat(tmp_path) -> Path:
    """A trained StreamChat in the folder of its run, with what a run leaves there."""
    folder = tmp_path / "run" / "final"
    for part in small_model():
        part.save_pretrained(folder)
    (folder / "training_log.json").write_text(json.dumps(SFT_LOG))
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "notes.txt", "checkpoint-8/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\x80")
    (folder / "latest").symlink_to("checkpoint-8")
    return folder


LIVE_LOG = {
    "recipe": {"stage": "live", "datasets": [{"name": "streamworld", "length": 8}], "method": "streaming"}
    | {"text_backbone": None, "vision_backbone": None},
    "model": {"model_name_or_path": None},
    "arguments": {"seed": 3},
    "log": [
        {"eval_lm_ppl": 9.0, "eval_time_diff": 1.0, "eval_fluency": 0.1, "step": 20},
        {"eval_lm_ppl": 1.234, "eval_time_diff": 0.25, "eval_fluency": 0.6789, "step": 40},
    ],
}


@pytest.fixture
def videollm_online(tmp_path) -> Path:
    """A trained VideoLLM-online in the folder of its run."""
    folder = tmp_path / "live" / "final"
    for part in speaker(tokens=3):
        part.save_pretrained(folder)
    (folder / "training_log.json").write_text(json.dumps(LIVE_LOG))
    return folder


@pytest.fixture
def streamformer(tmp_path) -> Path:
    """A StreamFormer, as a conversion writes it: without a processor."""
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    StreamFormerModel(StreamFormerConfig(image_size=16, patch_size=8, lora_rank=2, **sizes)).save_pretrained(
        tmp_path / "tower"
    )
    return tmp_path / "tower"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub that this process and those it starts are logged in to."""
    with HubDouble() as double:
        settings = {"ENDPOINT": double.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        for name, value in double.environment(tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield double
