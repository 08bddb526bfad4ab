"""A recipe's way from videos to a scored head: what it learns from, that it goes on, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from online_detection_helpers import CLASSES, colour_videos, tiny_head, write_recipe
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.data.thumos import IGNORE
from streamchat_hf.processing.sources_streamchat import VideoStreamError
from streamchat_hf.training.__main__ import main
from streamchat_hf.training.online_detection import (
    TrainingWindows,
    WatchedVideo,
    build_store,
    load_recipe,
    measure,
    train,
    watch_videos,
)
from streamchat_hf.training.online_detection_head import OnlineDetectionConfig, OnlineDetectionHead
from streamchat_hf.training.online_detection_videos import LabelledVideos, thumos_videos

RECIPES = Path(__file__).parents[2] / "recipes" / "streamformer"
FIXTURES = Path(__file__).parents[1] / "fixtures" / "thumos"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Twenty steps on colours; the recipe and the folder of the result."""
    recipe = write_recipe(tmp_path_factory.mktemp("run"))
    return recipe, train(recipe, data=colour_videos(*range(8)), eval_data=colour_videos(*range(20, 26)))


def held_out(recipe):
    return watch_videos(build_store(*load_recipe(recipe)), colour_videos(*range(20, 26)))


def test_twenty_steps_teach_it(run):
    _, final = run
    log = json.loads((final / "training_log.json").read_text())
    losses = [row["loss"] for row in log["log"] if "loss" in row]
    assert len(losses) == 20 and float(losses[-1]) < 0.5 * float(losses[0])
    scores = json.loads((final / "scores.json").read_text())
    assert scores["mAP"] > 0.9 and list(scores["by_class"]) == ["red", "green"] and scores["n"] == 180


def test_what_is_saved_is_what_was_scored(run):
    recipe, final = run
    head = OnlineDetectionHead.from_pretrained(final)
    assert (head.config.feature_size, head.config.fps) == (16, 2.0)
    assert tuple(head.config.id2label.values()) == CLASSES
    assert measure(head, held_out(recipe)) == json.loads((final / "scores.json").read_text())


def test_features_of_other_frames_score_near_chance(run):
    recipe, final = run
    head, videos = OnlineDetectionHead.from_pretrained(final), held_out(recipe)
    features = torch.cat([video.features for video in videos])
    found = []
    for _ in range(5):
        parts = features[torch.randperm(len(features))].split([len(video.features) for video in videos])
        found.append(
            measure(head, [WatchedVideo(part, video.labels) for part, video in zip(parts, videos, strict=True)])
        )
    assert abs(sum(result["mcAP"] for result in found) / 5 - 0.5) < 0.05


def test_a_run_goes_on_where_it_stopped(run, tmp_path):
    recipe, final = run
    shutil.copytree(final.parent / "checkpoint-10", tmp_path / "again" / "checkpoint-10")
    again = train(recipe, ["--output_dir", str(tmp_path / "again")], data=colour_videos(*range(8)))
    one, two = (load_file(folder / "model.safetensors") for folder in (final, again))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (again / "scores.json").exists()  # there was nothing to measure with
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        train(recipe, ["--no_resume"], data=colour_videos(0))


def test_nothing_of_this_machine_is_written(run):
    _, final = run
    for path in (final / "training_log.json", final / "config.json"):
        assert str(final.parent.parent) not in path.read_text()
    assert not list(final.parent.rglob("*.bin"))


def test_windows_cover_a_video_and_know_where_it_begins():
    config = tiny_head().config  # memories of 3 (every second frame) and 4
    labels = [[IGNORE] if frame == 9 else [frame % 3, 2] for frame in range(14)]
    video = WatchedVideo(torch.arange(14.0)[:, None], labels)
    windows = TrainingWindows([video, video], config)
    assert len(windows) == 8
    taught = set()
    for epoch in range(40):
        windows.set_epoch(epoch)
        for window in map(windows.__getitem__, range(len(windows))):
            seen, shown = window["seen"], window["features"][:, 0].long()
            newest = int(shown[-1])
            expected = torch.tensor([newest - age for age in (8, 6, 4, 3, 2, 1, 0)])
            assert torch.equal(seen, expected >= 0) and torch.equal(shown[seen], expected[seen])
            first = [IGNORE if frame < 0 else labels[frame][0] for frame in expected[3:].tolist()]
            assert window["labels"].tolist() == first
            taught.add(newest)
    assert taught == set(range(14))
    other = TrainingWindows([video, video], config, seed=1)
    other.set_epoch(39)
    assert any(not torch.equal(windows[i]["labels"], other[i]["labels"]) for i in range(8))


def test_measuring_leaves_the_head_as_it_was_and_uses_no_dropout():
    videos = [WatchedVideo(torch.randn(12, 6), [[frame % 3] for frame in range(12)])]
    head = tiny_head(dropout=0.5).train()
    assert measure(head, videos) == measure(head, videos)
    assert head.training


def test_features_of_another_size_are_refused():
    with pytest.raises(ValueError, match="a frame comes as 5 features, but this head was made for 6"):
        measure(tiny_head(), [WatchedVideo(torch.randn(3, 5), [[0]] * 3)])


def test_evaluating_while_training(tmp_path):
    changes = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no"}
    final = train(write_recipe(tmp_path, **changes), data=colour_videos(0), eval_data=colour_videos(1, 2))
    log = json.loads((final / "training_log.json").read_text())["log"]
    found = [row for row in log if "eval_mAP" in row]
    assert [row["step"] for row in found] == [1, 2]
    scores = json.loads((final / "scores.json").read_text())
    assert found[-1]["eval_mAP"] == scores["mAP"] and found[-1]["eval_mcAP"] == scores["mcAP"]


def test_what_does_not_fit_is_said(tmp_path):
    recipe = write_recipe(tmp_path)
    with pytest.raises(ValueError, match="there is nothing to train on"):
        train(recipe)
    others = LabelledVideos(("background", "blue", "grey"), colour_videos(0).videos)
    with pytest.raises(ValueError, match="eval_dataset \\('background', 'blue', 'grey'\\)"):
        train(recipe, data=colour_videos(0), eval_data=others)
    with pytest.raises(ValueError, match="eval_strategy=epoch needs held-out videos: name an eval_dataset"):
        train(recipe, ["--eval_strategy", "epoch"], data=colour_videos(0))
    with pytest.raises(ValueError, match="head has no field 'long_memry', only compressed, dropout, "):
        train(recipe, ["--head", "{long_memry: 3}"], data=colour_videos(0))


def test_thumos_from_its_files_to_scores(tmp_path):
    source = {"name": "thumos", "annotations": str(FIXTURES), "videos": str(tmp_path)}
    changes = {"max_steps": 2, "dataset": source | {"subset": "val"}, "eval_dataset": source | {"subset": "test"}}
    recipe = write_recipe(tmp_path, **changes)
    with pytest.raises(FileNotFoundError, match="1 of the 1 videos .* video_validation_0000051"):
        main([str(recipe)])
    for name in ("validation_0000051", "test_0000004", "test_0000026", "test_0001292"):
        write_mp4(World.sample(0, duration=13.0), tmp_path / f"video_{name}.mp4", fps=4, size=32)
    scores = json.loads((main([str(recipe)]) / "scores.json").read_text())
    # 26 frames of each, of which 2 and 4 are ambiguous.
    assert (scores["n"], scores["ignored"]) == (72, 6)
    positives = {name: row["positives"] for name, row in scores["by_class"].items() if row["positives"]}
    assert positives == {"CricketBowling": 4, "CricketShot": 1, "CliffDiving": 4, "Diving": 6}


def test_a_broken_video_is_named_and_what_was_watched_before_stays(tmp_path):
    for name in ("0000004", "0000026", "0001292"):
        write_mp4(World.sample(0, duration=13.0), tmp_path / f"video_test_{name}.mp4", fps=4, size=32)
    data = thumos_videos(FIXTURES, "test", tmp_path)
    whole = (tmp_path / "video_test_0000026.mp4").read_bytes()
    (tmp_path / "video_test_0000026.mp4").write_bytes(whole[: len(whole) // 2])
    recipe = write_recipe(tmp_path)
    with pytest.raises(VideoStreamError, match="video_test_0000026.mp4"):
        train(recipe, data=data)
    store = build_store(*load_recipe(recipe))
    assert [path.stem for path in store.folder.glob("*.safetensors")] == ["video_test_0000004"]


@pytest.mark.parametrize("name", ["online_detection", "tiny_online_detection"])
def test_shipped_recipes_are_read(name):
    recipe, arguments = load_recipe(RECIPES / f"{name}.yaml", ["--use_cpu", "true"])
    assert recipe.trainer == "online_detection" and arguments.per_device_train_batch_size == 16
    config = OnlineDetectionConfig(**recipe.head, feature_size=8)
    seconds = {"online_detection": (264.0, 8.0), "tiny_online_detection": (40.0, 8.0)}[name]
    assert (config.reach / recipe.fps, config.short_memory / recipe.fps) == seconds


def test_the_paper_recipe_has_the_defaults_of_the_head():
    fields = yaml.safe_load((RECIPES / "online_detection.yaml").read_text())["head"]
    assert OnlineDetectionConfig(**fields).to_dict() == OnlineDetectionConfig().to_dict()


def test_the_tiny_recipe_runs_on_the_shipped_tower(tmp_path):
    short = {"name": "streamworld", "videos": 2, "seconds": 20.0}
    words = ["--output_dir", tmp_path, "--max_steps", 1, "--use_cpu", "true", "--disable_tqdm", "true"]
    words += ["--dataset", json.dumps(short), "--eval_dataset", json.dumps(short | {"split": "heldout"})]
    final = main([str(RECIPES / "tiny_online_detection.yaml"), *map(str, words)])
    scores = json.loads((final / "scores.json").read_text())
    assert list(scores["by_class"]) == ["left", "right", "up", "down", "gone", "back"] and scores["n"] == 80
