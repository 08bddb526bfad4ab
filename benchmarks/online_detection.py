"""What streamed features are worth to online action detection, on StreamWorld.

    python benchmarks/online_detection.py --json benchmarks/online_detection_streamworld.json
    python benchmarks/render_online_detection.py

`recipes/streamformer/tiny_online_detection.yaml` once with the tower as it streams and once with the tower seeing
every frame alone, and the head of the first on its own features in random order. What is finished in `--runs` is not
trained again.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
import transformers
import yaml

from streamchat_hf.data.thumos import BACKGROUND
from streamchat_hf.training.__main__ import find_recipe
from streamchat_hf.training.online_detection import (
    WatchedVideo,
    build_store,
    load_recipe,
    load_videos,
    measure,
    train,
    watch_videos,
)
from streamchat_hf.training.online_detection_head import OnlineDetectionHead

RECIPE = "streamformer/tiny_online_detection.yaml"
VARIANTS: dict[str, dict] = {"streamed": {}, "each frame alone": {"image_only": True}}
SHUFFLED = "streamed, frames in random order"


def run(variant: str, runs: Path, overrides: dict) -> tuple[Path, dict]:
    """Trains a head, unless that is done; gives its recipe and its row.

    Args:
        variant: of `VARIANTS`.
        runs: where it goes.
        overrides: fields that win over the recipe's.
    """
    name = variant.replace(" ", "_")
    recipe = yaml.safe_load(find_recipe(RECIPE).read_text()) | overrides | VARIANTS[variant]
    recipe |= {"output_dir": str(runs / name), "features_dir": str(runs / "features"), "disable_tqdm": True}
    runs.mkdir(parents=True, exist_ok=True)
    path, scores, text = runs / f"{name}.yaml", runs / name / "final" / "scores.json", yaml.safe_dump(recipe)
    if not scores.is_file() or path.read_text() != text:
        path.write_text(text)
        train(path)
    return path, {"features": variant, **json.loads(scores.read_text())}


def held_out(recipe_path: Path) -> list[WatchedVideo]:
    """The features of the held-out videos, which a run has left."""
    recipe, arguments = load_recipe(recipe_path)
    store = build_store(recipe, arguments)
    return watch_videos(store, load_videos(recipe.eval_dataset, store.tower.config.image_size))


def shuffled(videos: list[WatchedVideo]) -> list[WatchedVideo]:
    """The same labels beside the features of any other frame."""
    features = torch.cat([video.features for video in videos])
    features = features[torch.randperm(len(features), generator=torch.Generator().manual_seed(0))]
    parts = features.split([len(video.features) for video in videos])
    return [WatchedVideo(part, video.labels) for part, video in zip(parts, videos, strict=True)]


def chance(videos: list[WatchedVideo], classes: int) -> float:
    """The mAP of scores that know nothing: how often an action is to be seen, on average over the classes."""
    labels = [frame for video in videos for frame in video.labels]
    shares = [sum(index in frame for frame in labels) / len(labels) for index in range(classes) if index != BACKGROUND]
    return sum(shares) / len(shares)


def main() -> None:
    """Runs, and writes the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="fields of the recipe, such as {max_steps: 20}")
    parser.add_argument("--runs", type=Path, default=Path("runs/online_detection"))
    parser.add_argument("--json", type=Path, required=True, help="where the result goes")
    options = parser.parse_args()
    done = {variant: run(variant, options.runs, options.set) for variant in VARIANTS}
    recipe_path, row = done["streamed"]
    head = OnlineDetectionHead.from_pretrained(recipe_path.with_suffix("") / "final")
    videos = held_out(recipe_path)
    rows = [row for _, row in done.values()] + [{"features": SHUFFLED, **measure(head, shuffled(videos))}]
    recipe = yaml.safe_load(recipe_path.read_text())
    names = ("dataset", "eval_dataset", "fps", "max_steps", "per_device_train_batch_size", "seed")
    result = {
        "recipe": RECIPE,
        "settings": {name: recipe[name] for name in names},
        "chance": {"mAP": chance(videos, head.config.num_labels), "mcAP": 0.5},
        "rows": rows,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        print(f"{row['features']:34} mAP {100 * row['mAP']:5.1f}  mcAP {100 * row['mcAP']:5.1f}")


if __name__ == "__main__":
    main()
