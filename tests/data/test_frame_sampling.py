"""Sampled frames are those that a stream at the same rate shows, read from the key frame before them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamchat_hf.data import frame_sampling
from streamchat_hf.data.frame_sampling import Ticks, read_spread, read_still, read_ticks
from streamchat_hf.processing.frames_streamchat import VideoStream
from streamchat_hf.processing.sources_streamchat import VideoStreamError
from video_files import corner_colours, corner_picture, picture, real_clip, write_video

# Container, codec and options: key frames every two seconds, with frames that refer to later ones where there are any.
FILES = {
    "mp4": ("libx264", None),
    "mkv": ("libx264", None),
    "ts": ("libx264", "mpegts"),
    "webm": ("libvpx-vp9", None),
    "avi": ("mpeg4", None),
    "h264": ("libx264", "h264"),
}


@pytest.fixture(scope="module", params=FILES)
def clip(request, tmp_path_factory):
    codec, container = FILES[request.param]
    path = tmp_path_factory.mktemp("clips") / f"clip.{request.param}"
    images = [picture(i % 40, 32, 32) for i in range(250)]
    return str(write_video(path, range(0, 10000, 40), codec, container, images, codec_options={"g": "50"}))


def streamed(path, ticks):
    """What a stream of the whole file shows at these ticks."""
    with VideoStream(path, fps=ticks.fps) as frames:
        return [frame for frame in frames if ticks.first <= ticks.of(frame.t_sec) <= ticks.last]


def assert_same(found, expected):
    found = list(found)
    assert [frame.t_sec for frame in found] == [frame.t_sec for frame in expected]
    assert all(torch.equal(a.pixel_values, b.pixel_values) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("ticks", [Ticks(1.0, 0, 3), Ticks(1.0, 5, 40), Ticks(2.5, 11, 14), Ticks(0.3, 1, 2)])
def test_frames_are_those_of_a_stream(clip, ticks):
    assert_same(read_ticks(clip, ticks), streamed(clip, ticks))


def test_frames_of_a_real_clip_whose_rate_is_no_integer():
    path = str(real_clip("carphone_pristine.mp4"))  # 29.97 frames per second
    for ticks in (Ticks(5.0, 3, 12), Ticks(29.97, 40, 45), Ticks(60.0, 10, 20)):
        assert_same(read_ticks(path, ticks), streamed(path, ticks))


def test_sparse_frames_are_shown_once(tmp_path):
    path = str(write_video(tmp_path / "sparse.mp4", [0, 300, 2500, 6100, 6200, 9000]))
    for first in range(8):
        ticks = Ticks(1.0, first, 8)
        assert_same(read_ticks(path, ticks), streamed(path, ticks))
    assert [frame.t_sec for frame in read_ticks(path, Ticks(1.0, 1, 8))] == [2.5, 6.1]


def test_only_what_follows_the_key_frame_is_decoded(tmp_path, monkeypatch):
    path = str(write_video(tmp_path / "long.mp4", range(0, 60000, 100), codec_options={"g": "20"}))
    decoded, read = [], frame_sampling._read_container

    def counted(*args):
        for frame in read(*args):
            decoded.append(frame[0])
            yield frame

    monkeypatch.setattr(frame_sampling, "_read_container", counted)
    list(read_ticks(path, Ticks(1.0, 50, 52)))
    assert min(decoded) >= 48.0 and max(decoded) <= 52.1
    decoded.clear()
    assert [round(frame.t_sec) for frame in read_spread(path, 5)] == [0, 12, 24, 36, 48]
    assert len(decoded) < 5 * 22  # of 600


def test_a_video_is_spread_over_its_whole_length(clip):
    times = [frame.t_sec for frame in read_spread(clip, 5)]
    assert times == pytest.approx([0.0, 2.0, 4.0, 6.0, 8.0], abs=0.09)
    assert len(list(read_spread(clip, 400))) == 250


def test_an_image_is_a_video_of_one_frame(tmp_path):
    Image.fromarray(corner_picture()).save(tmp_path / "picture.png")
    [(t_sec, pixels)] = read_still(str(tmp_path / "picture.png"))
    assert t_sec == 0.0 and pixels.dtype == torch.uint8
    assert corner_colours(pixels.permute(1, 2, 0).numpy().astype(int)) == [["red", "green"], ["blue", "white"]]


def test_a_folder_of_images_is_a_video(tmp_path):
    for i in range(6):
        Image.fromarray(np.full((8, 8, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    found = list(read_ticks(str(tmp_path), Ticks(2.0, 1, 3)))
    assert [(frame.t_sec, int(frame.pixel_values[0, 0, 0])) for frame in found] == [(0.5, 40), (1.0, 80), (1.5, 120)]


def test_what_is_wrong_with_media_is_named(tmp_path):
    whole = write_video(tmp_path / "whole.mp4", range(0, 10000, 40), options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    (tmp_path / "text.mp4").write_text("no video")
    reads = {"read_ticks": lambda path: read_ticks(path, Ticks(1.0, 2, 9)), "read_spread": lambda p: read_spread(p, 9)}
    for read in reads.values():
        for name, reason in (
            ("cut.mp4", "cut off|damaged"),
            ("text.mp4", "not a video"),
            ("gone.mp4", "no such file"),
        ):
            with pytest.raises(VideoStreamError, match=f"{name}.*{reason}"):
                list(read(str(tmp_path / name)))
    assert len(list(read_ticks(str(cut), Ticks(1.0, 0, 1)))) == 2  # what is needed is there
    for name in ("gone.png", "text.mp4"):
        with pytest.raises(VideoStreamError, match=name):
            list(read_still(str(tmp_path / name)))


def test_ticks_of_an_interval():
    assert Ticks.spanning(5.0, 10.0, 1.0) == Ticks(1.0, 4, 10)
    assert Ticks.spanning(5.2, 10.9, 1.0) == Ticks(1.0, 5, 10)
    assert Ticks.spanning(0.0, 0.0, 2.0) == Ticks(2.0, 0, 0)
    assert Ticks.ending(30.0, 33.0, 1.0, 8) == Ticks(1.0, 26, 33)
    assert Ticks.ending(2.0, 3.0, 1.0, 8) == Ticks(1.0, 0, 3)
    for wrong in ((3.0, 2.0, 1.0, 8), (0.0, 1.0, 1.0, 2)):
        with pytest.raises(ValueError, match="interval|max_frames"):
            Ticks.ending(*wrong)


@given(start=st.floats(0, 1e4), length=st.floats(0, 1e3), fps=st.floats(0.05, 60), max_frames=st.integers(3, 64))
def test_an_interval_is_shown_from_before_its_start_to_its_end(start, length, fps, max_frames):
    ticks = Ticks.ending(start, start + length, fps, max_frames)
    assert 1 <= ticks.number <= max_frames
    assert ticks.first / ticks.fps <= start + 1e-6
    assert (ticks.last + 1) / ticks.fps > start + length - 1e-6
    assert ticks.fps == fps or Ticks.spanning(start, start + length, fps).number > max_frames
