"""Videos of one colour after another, whose class the colour is, and small towers and heads for them."""

from pathlib import Path

import torch
import yaml

from multitask_helpers import tiny_tower
from streamchat_hf import VideoFrame
from streamchat_hf.training.online_detection_head import OnlineDetectionConfig, OnlineDetectionHead
from streamchat_hf.training.online_detection_videos import LabelledVideo, LabelledVideos

COLOURS = torch.tensor([[20, 20, 20], [230, 30, 30], [30, 230, 30]], dtype=torch.uint8)
CLASSES = ("background", "red", "green")
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "compressed": [3, 2]}
SIZES |= {"long_memory": 3, "long_memory_stride": 2, "short_memory": 4}


def tiny_head(**changes) -> OnlineDetectionHead:
    """A random head for features of six numbers, in which everything matters."""
    torch.manual_seed(0)
    values = {**SIZES, "feature_size": 6, "initializer_range": 0.5, "id2label": dict(enumerate(CLASSES)), **changes}
    return OnlineDetectionHead(OnlineDetectionConfig(**values)).eval()


def colour_video(seed: int, frames: int = 30) -> LabelledVideo:
    """Colours that last for five frames."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (frames // 5,), generator=generator).repeat_interleave(5).tolist()

    def show(fps):
        return (
            VideoFrame(i / fps, COLOURS[index][:, None, None].expand(3, 16, 16)) for i, index in enumerate(classes)
        )

    return LabelledVideo(f"colours_{seed}", show, lambda times: [[classes[round(time * 2)]] for time in times])


def colour_videos(*seeds: int) -> LabelledVideos:
    return LabelledVideos(CLASSES, tuple(map(colour_video, seeds)))


def tower_folder(folder: Path) -> str:
    tiny_tower(sliding_window=4).save_pretrained(folder)
    return str(folder)


def write_recipe(folder: Path, name: str = "run", **changes) -> Path:
    """A recipe of seconds, at two frames per second."""
    tower = folder / "tower"
    values = {
        "trainer": "online_detection",
        "output_dir": str(folder / name),
        "features_dir": str(folder / "features"),
        "model_name_or_path": str(tower) if tower.is_dir() else tower_folder(tower),
        "fps": 2.0,
        "head": {**SIZES, "dropout": 0.1},
        "max_steps": 20,
        "per_device_train_batch_size": 4,
        "learning_rate": 1.0e-2,
        "bf16": False,
        "use_cpu": True,
        "save_steps": 10,
        "logging_steps": 1,
        "eval_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path
