"""Small recipes and models for VideoLLM-online on StreamWorld."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from streamchat_hf import VideoLLMOnlineConfig, VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor
from streamchat_hf.data.live_streamworld import build_live_tokenizer
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor
from streamchat_hf.training.live import LiveTrainer, build_trainer, load_recipe
from videollm_online_helpers import VISION

TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "initializer_range": 0.06,
}


def source(length: int = 16, **changes: Any) -> dict[str, Any]:
    """Short rows of alerts."""
    return {
        "name": "streamworld",
        "length": length,
        "num_frames": 8,
        "kinds": {"alert": 1.0},
        "max_queries": 1,
    } | changes


def write_recipe(folder: Path, name: str = "recipe", **changes: Any) -> Path:
    """A recipe that trains a small fresh model on the shipped tower, for four updates of four rows."""
    recipe = {
        "trainer": "live",
        "datasets": [source()],
        "output_dir": str(folder / name),
        "text_config": TEXT,
        "model_config": {"frame_token_cls": False, "frame_token_pooled": [1, 1]},
        "keep_features": True,
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


def trainer_of(folder: Path, name: str = "recipe", words: Sequence[str] = (), **changes: Any) -> LiveTrainer:
    """A trainer of such a recipe, ready to train."""
    return build_trainer(*load_recipe(write_recipe(folder, name, **changes), words))


def log_of(final: Path) -> dict[str, Any]:
    """What a run has written about itself."""
    return json.loads((final / "training_log.json").read_text())


def losses(final: Path) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in log_of(final)["log"] if "loss" in entry]


def speaker(tokens=1, interval=",", seed=0):
    """A random model of StreamWorld's words, `tokens` of them a frame, and its processor."""
    video_processor = StreamFormerVideoProcessor(size={"height": 32, "width": 32})
    processor = VideoLLMOnlineProcessor(video_processor, build_live_tokenizer(), None, tokens, interval, frame_fps=2.0)
    text = {"model_type": "llama", "vocab_size": len(processor.tokenizer), "hidden_size": 32, "intermediate_size": 48}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    vision = VISION | {"model_type": "streamformer", "lora_rank": 2, "sliding_window": 6}
    grid = {"frame_token_cls": True, "frame_token_pooled": None if tokens == 1 else [1, tokens - 1]}
    config = VideoLLMOnlineConfig(text_config=text, vision_config=vision, **grid, **processor.token_ids())
    torch.manual_seed(seed)
    model = VideoLLMOnlineForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model, processor
