"""Worlds and THUMOS14's videos, with what is done in every frame."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from streamchat_hf.data.annotations import BadRow
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import render, write_mp4
from streamchat_hf.data.streamworld_tasks import happening
from streamchat_hf.data.thumos import IGNORE, THUMOS_CLASSES
from streamchat_hf.processing.sources_streamchat import VideoStreamError
from streamchat_hf.training.online_detection_videos import load_videos, streamworld_videos, thumos_videos

FIXTURES = Path(__file__).parents[1] / "fixtures" / "thumos"
TEST_VIDEOS = ("video_test_0000004", "video_test_0000026", "video_test_0001292")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The annotated test videos, one of them deeper down."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "more").mkdir()
    write_mp4(World.sample(0, duration=13.0), folder / f"{TEST_VIDEOS[0]}.mp4", fps=4)
    for name in (TEST_VIDEOS[1], f"more/{TEST_VIDEOS[2]}"):
        shutil.copy(folder / f"{TEST_VIDEOS[0]}.mp4", folder / f"{name}.mp4")
    return folder


def test_a_world_is_shown_and_labelled_from_its_first_to_its_last_frame():
    data = streamworld_videos(2, seconds=70.5, split="heldout", seed=5, size=16)
    assert data.classes == ("background", "left", "right", "up", "down", "gone", "back")
    world, video = World.sample(6, "heldout", 70.5), data.videos[1]
    times = [i / 2 for i in range(141)]
    frames = list(video.frames(2.0))
    assert [frame.t_sec for frame in frames] == times
    assert torch.equal(torch.stack([frame.pixel_values for frame in frames]), render([world], [times], 16)[0])
    names = [data.classes[index] for (index,) in video.labels(np.array(times))]
    assert names == [happening(world, time) or "background" for time in times]
    assert len(set(names)) > 4


def test_worlds_are_named_apart():
    groups = [
        streamworld_videos(3),
        streamworld_videos(3, seed=3),
        streamworld_videos(3, split="heldout"),
        streamworld_videos(3, seconds=30.0),
        streamworld_videos(3, size=64),
    ]
    names = [video.name for group in groups for video in group.videos]
    assert len(set(names)) == 15


def test_a_world_cannot_be_watched_too_slowly():
    with pytest.raises(ValueError, match="1.0 frames per second miss states of a world: give at least 2"):
        next(iter(streamworld_videos(1).videos[0].frames(1.0)))


def test_thumos_videos_are_found_by_their_names(folder):
    data = load_videos({"name": "thumos", "annotations": str(FIXTURES), "subset": "test", "videos": str(folder)}, 16)
    assert data.classes == ("background", *THUMOS_CLASSES)
    assert tuple(video.name for video in data.videos) == TEST_VIDEOS
    frames = list(data.videos[2].frames(2.0))
    assert [frame.t_sec for frame in frames] == [i / 2 for i in range(26)]
    diving, cliff, bowling = (1 + THUMOS_CLASSES.index(n) for n in ("Diving", "CliffDiving", "CricketBowling"))
    assert data.videos[1].labels([0.0, 3.0, 7.5, 8.25, 12.0]) == [
        [0],
        sorted([cliff, diving]),
        [diving],
        [IGNORE],
        [0],
    ]
    assert data.videos[0].labels([0.5]) == [[bowling]]  # every video has its own


def test_thumos_leaves_out_what_it_is_told(folder):
    data = thumos_videos(FIXTURES, "test", folder, exclude=[TEST_VIDEOS[0]])
    assert tuple(video.name for video in data.videos) == TEST_VIDEOS[1:]


def test_a_missing_or_unreadable_video_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "videos")
    (tmp_path / "videos" / f"{TEST_VIDEOS[0]}.mp4").unlink()
    (tmp_path / "videos" / f"{TEST_VIDEOS[1]}.mp4").write_bytes(b"no video")
    with pytest.raises(FileNotFoundError) as error:
        thumos_videos(FIXTURES, "test", tmp_path / "videos")
    assert "2 of the 3 videos" in str(error.value) and str(error.value).endswith(
        f"are missing or unreadable in {tmp_path / 'videos'}: {TEST_VIDEOS[0]}, {TEST_VIDEOS[1]}"
    )


def test_a_video_that_breaks_off_is_an_error(folder, tmp_path):
    path = tmp_path / f"{TEST_VIDEOS[0]}.mkv"
    write_mp4(World.sample(0, duration=13.0), tmp_path / "whole.mp4")
    path.write_bytes((tmp_path / "whole.mp4").read_bytes())
    data = thumos_videos(FIXTURES, "test", tmp_path, exclude=TEST_VIDEOS[1:])
    path.unlink()
    with pytest.raises(VideoStreamError, match=f"{TEST_VIDEOS[0]}.mkv: no such file"):
        list(data.videos[0].frames(2.0))


def test_a_bad_line_is_refused(folder, tmp_path):
    shutil.copytree(FIXTURES, tmp_path / "annotations")
    (tmp_path / "annotations" / "Billiards_test.txt").write_text("video_test_0000004 5.0\n")
    with pytest.raises(BadRow, match="Billiards_test.txt:1: wrong layout"):
        thumos_videos(tmp_path / "annotations", "test", folder)


def test_other_names_are_refused():
    with pytest.raises(ValueError, match="name='tvseries' must be streamworld or thumos"):
        load_videos({"name": "tvseries"}, 16)
