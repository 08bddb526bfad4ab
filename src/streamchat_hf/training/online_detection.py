"""Trains and measures online action detection on the streamed features of a frozen StreamFormer (2504.20041, 4.3.1).

streamchat train recipes/streamformer/tiny_online_detection.yaml
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, set_seed

from streamchat_hf import metrics, tiny_checkpoint
from streamchat_hf.data.thumos import IGNORE
from streamchat_hf.training.checkpoints import (
    WholeCheckpoints,
    refuse_another_run,
    train_from_last,
)
from streamchat_hf.training.online_detection_features import FeatureStore, load_tower
from streamchat_hf.training.online_detection_head import OnlineDetectionConfig, OnlineDetectionHead
from streamchat_hf.training.online_detection_videos import LabelledVideos, load_videos
from streamchat_hf.training.recipe import read_recipe, read_yaml_fields, training_log

DEFAULTS: dict[str, Any] = {"remove_unused_columns": False, "logging_nan_inf_filter": False}


@dataclass
class OnlineDetectionRecipe:
    """What a run is made of, besides `TrainingArguments`, which a recipe holds too.

    Attributes:
        dataset: videos to train on: `name: streamworld` or `thumos`, and arguments of `streamworld_videos` or
            `thumos_videos`. `None`: they are given to [`train`].
        eval_dataset: the same, held-out videos with the same classes.
        trainer: `"online_detection"`: which of the package's trainers reads this recipe.
        model_name_or_path: folder or Hub id of a StreamFormer, or of a StreamChat, whose vision tower it is then.
            `None`: the shipped tiny one.
        head: fields of [`OnlineDetectionConfig`] beside those that follow from tower and classes.
        fps: frames per second.
        window: frames that the tower looks back; `None`: as it was made, or 64.
        image_only: the tower sees every frame alone: the control without time.
        features_dir: where features are kept; `None`: `features` in the output folder.
        resume: go on from the last whole checkpoint in `output_dir`, if there is one.
    """

    dataset: dict[str, Any] | str | None = None
    eval_dataset: dict[str, Any] | str | None = None
    trainer: str = "online_detection"
    model_name_or_path: str | None = None
    head: dict[str, Any] | str | None = None
    fps: float = 4.0
    window: int | None = None
    image_only: bool = False
    features_dir: str | None = None
    resume: bool = True

    def __post_init__(self) -> None:
        read_yaml_fields(self, "dataset", "eval_dataset", "head")
        known = set(OnlineDetectionConfig.__annotations__) - {"feature_size", "fps"}
        if unknown := sorted(set(self.head or {}) - known):
            raise ValueError(f"head has no field {unknown[0]!r}, only {', '.join(sorted(known))}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> tuple[OnlineDetectionRecipe, TrainingArguments]:
    """Reads a recipe file.

    Args:
        path: YAML file with fields of [`OnlineDetectionRecipe`] and `TrainingArguments`.
        overrides: words of a command line, `--key value`, that win over the file.

    Raises:
        ValueError: if a field is unknown.
    """
    return read_recipe((OnlineDetectionRecipe, TrainingArguments), DEFAULTS, path, overrides)


@dataclass(frozen=True)
class WatchedVideo:
    """A video of which only features are left.

    Attributes:
        features: `(T, F)` float32.
        labels: of each of the T frames its classes; see `LabelledVideo`.
    """

    features: Tensor
    labels: list[list[int]]


class TrainingWindows(Dataset):
    """Windows whose short memories cover every video once, shifted by chance in every epoch (as LSTR's).

    Item i depends on (seed, epoch, i) alone, so an interrupted run goes on with the same windows.

    Args:
        videos: what was watched.
        config: of the head.
        seed: any integer.
    """

    def __init__(self, videos: Sequence[WatchedVideo], config: OnlineDetectionConfig, seed: int = 0):
        self.videos, self.config, self.seed, self._epoch = videos, config, seed, 0
        self._slots = torch.tensor(config.slots)
        # A frame of several classes is taught the first of them; the metric counts all.
        self._labels = [torch.tensor([classes[0] for classes in video.labels]) for video in videos]
        self._starts = [
            (index, start)
            for index, video in enumerate(videos)
            for start in range(0, len(video.features), config.short_memory)
        ]

    def __len__(self) -> int:
        return len(self._starts)

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate before an epoch."""
        self._epoch = epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """`features` `(L + S, F)`, `seen` `(L + S,)` and `labels` `(S,)`, as the head takes them."""
        number, start = self._starts[index]
        features = self.videos[number].features
        shift = random.Random(f"{self.seed}/{self._epoch}/{index}").randrange(self.config.short_memory)
        last = min(start + shift, len(features) - 1)
        frames = last + 1 - self.config.reach + self._slots  # (L + S,), negative before the video began
        seen, present = frames >= 0, frames.clamp(min=0)
        short = slice(self.config.long_memory, None)
        labels = torch.where(seen[short], self._labels[number][present[short]], IGNORE)
        return {"features": features[present], "seen": seen, "labels": labels}


@torch.no_grad()
def measure(head: OnlineDetectionHead, videos: Sequence[WatchedVideo]) -> dict[str, Any]:
    """What the metric `online_action_detection` says of a head that streams through videos.

    Args:
        head: it is left in the mode it was in.
        videos: what was watched.

    Returns:
        `mAP`, `mcAP`, `by_class`, `n` and `ignored`; see the metric.

    Raises:
        ValueError: if the features are of another size than the head's.
    """
    training = head.training
    head.eval()
    metric = metrics.load("online_action_detection")
    for video in videos:
        scores = head.score(video.features.to(head.device)).float().softmax(-1)
        metric.add_batch(predictions=scores.cpu().numpy(), references=video.labels)
    head.train(training)
    names = [head.config.id2label[index] for index in range(head.config.num_labels)]
    return metric.compute(ignore=IGNORE, class_names=names)


class OnlineDetectionTrainer(WholeCheckpoints, Trainer):
    """transformers' trainer; an evaluation streams through the held-out videos.

    Args:
        head: what learns.
        arguments: of the trainer.
        videos: to train on.
        eval_videos: to measure with.
    """

    def __init__(
        self,
        head: OnlineDetectionHead,
        arguments: TrainingArguments,
        videos: Sequence[WatchedVideo],
        eval_videos: Sequence[WatchedVideo],
    ):
        windows = TrainingWindows(videos, head.config, arguments.seed)
        # Not None: the trainer would not evaluate.
        super().__init__(head, arguments, train_dataset=windows, eval_dataset={})
        self.eval_videos = eval_videos

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Average precisions, mAP and mcAP, on the held-out videos; every process computes all of it."""
        result = measure(self.accelerator.unwrap_model(self.model), self.eval_videos)
        found = {f"{metric_key_prefix}_{name}": result[name] for name in ("mAP", "mcAP")}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found


def build_store(recipe: OnlineDetectionRecipe, arguments: TrainingArguments) -> FeatureStore:
    """The features that a recipe's tower makes."""
    tower, processor = load_tower(recipe.model_name_or_path or tiny_checkpoint())
    root = recipe.features_dir or Path(arguments.output_dir, "features")
    return FeatureStore(root, tower.to(arguments.device), processor, recipe.fps, recipe.window, recipe.image_only)


def watch_videos(store: FeatureStore, data: LabelledVideos) -> list[WatchedVideo]:
    """Makes what features are missing, and loads all."""
    store.make(data.videos)
    watched = []
    for video in data.videos:
        features, times = store.load(video)
        watched.append(WatchedVideo(features, video.labels(times.numpy())))
    return watched


def train(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    data: LabelledVideos | None = None,
    eval_data: LabelledVideos | None = None,
) -> Path:
    """Runs a recipe: watches all videos, trains a head, measures it; an interrupted run goes on where it stopped.

    Args:
        recipe_path: see [`load_recipe`].
        overrides: see [`load_recipe`].
        data: videos to train on, instead of those that the recipe names.
        eval_data: held-out videos.

    Returns:
        The folder of the trained head, `scores.json` (what [`measure`] gives) and `training_log.json`: `final` in the
        output folder. Without held-out videos there are no scores.

    Raises:
        ValueError: if parts of the recipe do not fit together, or a run is to begin in a folder that holds one.
        FileNotFoundError: if videos are missing.
        VideoStreamError: if a video is broken.
    """
    recipe, arguments = load_recipe(recipe_path, overrides)
    output_dir = Path(arguments.output_dir)
    refuse_another_run(output_dir, recipe.resume)
    store = build_store(recipe, arguments)
    size = store.tower.config.image_size
    data = load_videos(recipe.dataset, size) if data is None and recipe.dataset else data
    eval_data = load_videos(recipe.eval_dataset, size) if eval_data is None and recipe.eval_dataset else eval_data
    if data is None:
        raise ValueError("there is nothing to train on: the recipe names no dataset, and none was given to train()")
    if eval_data is None and arguments.eval_strategy != "no":
        raise ValueError(f"eval_strategy={arguments.eval_strategy.value} needs held-out videos: name an eval_dataset")
    if eval_data is not None and eval_data.classes != data.classes:
        raise ValueError(f"dataset has the classes {data.classes}, eval_dataset {eval_data.classes}")
    videos = watch_videos(store, data)
    eval_videos = [] if eval_data is None else watch_videos(store, eval_data)
    set_seed(arguments.seed)
    head = OnlineDetectionHead(
        OnlineDetectionConfig(
            **recipe.head or {},
            feature_size=store.tower.config.hidden_size,
            fps=recipe.fps,
            id2label=dict(enumerate(data.classes)),
        )
    )
    trainer = OnlineDetectionTrainer(head, arguments, videos, eval_videos)
    train_from_last(trainer)
    head = trainer.accelerator.unwrap_model(trainer.model)
    final = output_dir / "final"
    if arguments.should_save:
        head.save_pretrained(final)
        if eval_videos:
            (final / "scores.json").write_text(json.dumps(measure(head, eval_videos), indent=1))
        (final / "training_log.json").write_text(json.dumps(_log(trainer, recipe), indent=1))
    return final


def _log(trainer: OnlineDetectionTrainer, recipe: OnlineDetectionRecipe) -> dict[str, Any]:
    """How the result came about, in the layout of the other trainers, without paths of this machine."""
    fields = asdict(recipe) | {"datasets": [recipe.dataset] if recipe.dataset else []}
    fields |= {"stage": "online_detection", "text_backbone": None, "vision_backbone": recipe.model_name_or_path}
    return training_log(trainer, fields, recipe.model_name_or_path)
