import contextlib
import copy
import functools
import gc
import http.server
import io
import itertools
import os
import pickle
import subprocess
import sys
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from streamchat_hf.processing.frames_streamchat import (
    TICK_TOLERANCE,
    VideoFrame,
    VideoStream,
    VideoStreamError,
    to_image_tensor,
)
from video_files import (
    REAL_CLIPS,
    corner_colours,
    corner_picture,
    packet_times,
    picture,
    real_clip,
    write_video,
)

UNEVEN = [0, 10, 20, 50, 500, 510, 1000, 1700, 1701, 1800, 2500, 4100]
PICTURES = [picture(i) for i in range(4)]


def times(source, fps=None) -> list[float]:
    return [frame.t_sec for frame in VideoStream(source, fps)]


def until_error(source, fps=None) -> tuple[list[VideoFrame], VideoStreamError]:
    frames, stream = [], VideoStream(source, fps)
    with pytest.raises(VideoStreamError) as caught:
        for frame in stream:
            frames.append(frame)
    with pytest.raises(StopIteration):
        next(stream)
    return frames, caught.value


def image_of(frame: VideoFrame) -> np.ndarray:
    return frame.pixel_values.permute(1, 2, 0).numpy()


# Times


@pytest.mark.parametrize("name", REAL_CLIPS[:2])
def test_frames_of_a_real_clip_are_those_an_independent_read_finds(name: str):
    path = real_clip(name)
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in itertools.islice(container.decode(video=0), 10)]
    frames = list(VideoStream(path))
    assert [frame.t_sec for frame in frames] == packet_times(path)
    assert frames[0].t_sec == 0.0
    for frame, image in zip(frames, images, strict=False):
        assert frame.pixel_values.dtype == torch.uint8
        assert np.array_equal(image_of(frame), image)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        (".mp4", "libx264", {}),
        (".mp4", "libx264", {"movflags": "faststart"}),
        (".mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        (".mov", "mpeg4", {}),
        (".webm", "libvpx-vp9", {}),
        (".mkv", "libx264", {}),
        (".ts", "libx264", {}),
    ],
)
def test_uneven_times_are_the_frames_own(tmp_path: Path, suffix: str, codec: str, options: dict):
    path = write_video(tmp_path / f"uneven{suffix}", UNEVEN, codec, options=options)
    frames = list(VideoStream(path))
    assert [round(frame.t_sec * 1000) for frame in frames] == UNEVEN
    assert [round((image_of(f).mean() - picture(0).mean()) / 5) for f in frames] == list(range(len(UNEVEN)))


def test_a_webm_states_no_number_of_frames(tmp_path: Path):
    path = write_video(tmp_path / "clip.webm", codec="libvpx-vp9")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert len(times(path)) == 20


@pytest.mark.parametrize("suffix", [".mp4", ".ts"])
def test_a_video_that_starts_late_starts_at_zero(tmp_path: Path, suffix: str):
    path = write_video(tmp_path / f"late{suffix}", [5000, 5100, 5300])
    assert times(path) == pytest.approx([0.0, 0.1, 0.3])


@pytest.mark.parametrize(("suffix", "format"), [(".avi", None), (".h264", "h264")])
def test_containers_without_presentation_times_keep_order_and_rate(tmp_path: Path, suffix: str, format: str | None):
    path = write_video(tmp_path / f"clip{suffix}", format=format, time_base=Fraction(1, 10))
    frames = list(VideoStream(path))
    assert [frame.t_sec for frame in frames] == [i / 10 for i in range(20)]
    brightness = [image_of(frame).mean() for frame in frames]
    assert brightness == sorted(brightness)


def test_a_video_beside_an_audio_track_is_found(tmp_path: Path):
    path = tmp_path / "both.mp4"
    with av.open(str(path), "w") as container:
        sound, stream = container.add_stream("aac", rate=8000), container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 8000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
        container.mux(stream.encode())
    assert times(path) == [i / 10 for i in range(10)]


# Orientation: (x, y) of a stored pixel is shown at (a x + c y, b x + d y); each matrix with what is then seen.
UPRIGHT = {
    "as it is": ((1, 0, 0, 1), [["red", "green"], ["blue", "white"]]),
    "quarter turn clockwise": ((0, 1, -1, 0), [["blue", "red"], ["white", "green"]]),
    "half turn": ((-1, 0, 0, -1), [["white", "blue"], ["green", "red"]]),
    "quarter turn counterclockwise": ((0, -1, 1, 0), [["green", "white"], ["red", "blue"]]),
    "mirrored": ((-1, 0, 0, 1), [["green", "red"], ["white", "blue"]]),
    "upside down": ((1, 0, 0, -1), [["blue", "white"], ["red", "green"]]),
    "transposed": ((0, 1, 1, 0), [["red", "blue"], ["green", "white"]]),
}


@pytest.mark.parametrize("turn", UPRIGHT)
def test_a_phone_video_is_upright(tmp_path: Path, turn: str):
    (a, b, c, d), seen = UPRIGHT[turn]
    matrix = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    path = write_video(tmp_path / "turned.mp4", [0, 100, 200], images=[corner_picture()] * 3, matrix=matrix)
    for frame in VideoStream(path):
        assert frame.pixel_values.shape == ((3, 48, 64) if a else (3, 64, 48))
        assert corner_colours(image_of(frame)) == seen


def test_a_phone_photo_is_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to show
    Image.fromarray(corner_picture()).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    (frame,) = VideoStream(tmp_path)
    assert corner_colours(image_of(frame)) == [["blue", "red"], ["white", "green"]]


# Kinds of sources


@pytest.mark.parametrize("wrap", [str, Path, Path.read_bytes, lambda path: bytearray(path.read_bytes())])
def test_a_file_by_name_or_content(tmp_path: Path, wrap):
    path = write_video(tmp_path / "clip.mp4")
    stream = VideoStream(wrap(path))
    assert not stream.live
    assert [frame.t_sec for frame in stream] == [i / 10 for i in range(20)]


def test_a_file_object_is_read_from_its_start_and_left_open(tmp_path: Path):
    content = io.BytesIO(write_video(tmp_path / "clip.mp4").read_bytes())
    content.read(100)
    assert len(times(content)) == len(times(content)) == 20
    assert not content.closed


def test_a_folder_is_sorted_as_people_count(tmp_path: Path):
    for i in (10, 9, 1, 2):
        Image.fromarray(picture(i)).save(tmp_path / f"frame{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    frames = list(VideoStream(tmp_path))
    assert [frame.t_sec for frame in frames] == [0.0, 1.0, 2.0, 3.0]
    assert all(np.array_equal(image_of(f), picture(i)) for f, i in zip(frames, (1, 2, 9, 10), strict=True))
    assert times(tmp_path, fps=4) == [0.0, 0.25, 0.5, 0.75]


KINDS = {
    "PIL images": [Image.fromarray(p) for p in PICTURES],
    "arrays, channels last": PICTURES,
    "arrays, channels first": [p.transpose(2, 0, 1) for p in PICTURES],
    "read-only arrays": np.stack(PICTURES).view(),
    "tensors, channels first": [torch.from_numpy(p.transpose(2, 0, 1).copy()) for p in PICTURES],
    "tensors, channels last": [torch.from_numpy(p) for p in PICTURES],
    "one array": np.stack(PICTURES),
    "one tensor": torch.from_numpy(np.stack(PICTURES).transpose(0, 3, 1, 2).copy()),
    "a tuple": tuple(PICTURES),
}
KINDS["read-only arrays"].flags.writeable = False


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("error")
def test_images_of_every_kind(kind: str):
    stream = VideoStream(KINDS[kind], fps=2)
    frames = list(stream)
    assert not stream.live
    assert [frame.t_sec for frame in frames] == [0.0, 0.5, 1.0, 1.5]
    assert all(np.array_equal(image_of(f), p) for f, p in zip(frames, PICTURES, strict=True))
    assert times(KINDS[kind]) == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("pack", [tuple, lambda item: VideoFrame(*item)])
def test_images_with_their_own_times(pack):
    items = [pack((t, Image.fromarray(p))) for t, p in zip((0.0, 0.3, 0.31, 7.0), PICTURES, strict=True)]
    assert times(items) == [0.0, 0.3, 0.31, 7.0]
    assert times(items, fps=5) == [0.0, 0.3, 7.0]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_pil_images_of_any_mode_become_rgb(mode: str):
    image = Image.fromarray(picture(3)).convert(mode)
    assert np.array_equal(to_image_tensor(image).permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_a_square_frame_of_three_by_three_follows_its_kind():
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert np.array_equal(to_image_tensor(square), square.transpose(2, 0, 1))
    assert np.array_equal(to_image_tensor(torch.from_numpy(square)), square)


def test_one_image_is_one_frame():
    assert times(Image.fromarray(picture(0))) == [0.0]


@pytest.mark.parametrize(
    ("source", "live", "name"),
    [
        ("clip.mp4", False, "clip.mp4"),
        ("https://user:secret@host:80/clip.mp4?token=secret", False, "https://host:80/clip.mp4"),
        ("rtsp://user:secret@host/camera", True, "rtsp://host/camera"),
        (0, True, "camera 0"),
        ("/dev/video0", True, "/dev/video0"),
        (b"1234", False, "4 bytes"),
        (PICTURES, False, "list of 4"),
        (iter(PICTURES), True, "list_iterator"),
        ((p for p in PICTURES), True, "generator"),
    ],
)
def test_what_is_live_and_what_a_source_is_called(source, live: bool, name: str):
    stream = VideoStream(source, fps=3)
    assert (stream.live, stream.source, stream.fps) == (live, name, 3)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def served(tmp_path: Path):
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_url_gives_what_the_file_gives(tmp_path: Path, served: str):
    path = write_video(tmp_path / "clip.mp4", UNEVEN)
    assert times(f"{served}/clip.mp4") == times(path)


def test_a_url_that_is_not_there(served: str):
    assert str(until_error(f"{served}/nothing.mp4")[1]).startswith(f"{served}/nothing.mp4: ")


# Sampling


def kept_by_ticks(times: list[float], fps: float) -> list[float]:
    """The naive twin: for each tick, the first frame at or after it."""
    kept, tick = [], 0
    while times and tick / fps <= times[-1] + TICK_TOLERANCE:
        first = next(t for t in times if t + TICK_TOLERANCE >= tick / fps)
        kept += [first] if first not in kept else []
        tick += 1
    return kept


@given(st.sets(st.integers(0, 5000), max_size=40), st.sampled_from([0.5, 1, 2, 3, 5, 10, 24, 25, 30]))
def test_sampling_keeps_the_first_frame_at_or_after_each_tick(milliseconds: set[int], fps: float):
    # A third of a millisecond off the grid, no time lies within rounding of a tick.
    all_times = [m / 1000 + 1 / 3000 for m in sorted(milliseconds)]
    kept = times([(t, PICTURES[0]) for t in all_times], fps)
    assert kept == kept_by_ticks(all_times, fps)
    assert set(kept) <= set(all_times)
    assert len(set(kept)) == len(kept)


@pytest.mark.parametrize("rate", [24, 25, 30, 60, 30000 / 1001, 24000 / 1001])
def test_sampling_at_its_own_rate_keeps_every_frame(rate: float):
    exact = [i / rate for i in range(200)]
    assert times([(t, PICTURES[0]) for t in exact], rate) == exact
    rounded = [round(t, 3) for t in exact]  # as Matroska stores them
    assert times([(t, PICTURES[0]) for t in rounded], rate) == rounded


def test_sampling_a_real_clip():
    assert times(real_clip("bikes.mp4"), fps=5) == [i / 5 for i in range(50)]


def test_frames_between_ticks_are_never_converted():
    assert times([(0.0, PICTURES[0]), (0.4, "no image"), (1.0, PICTURES[0])], fps=1) == [0.0, 1.0]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_must_be_positive(fps: float):
    with pytest.raises(ValueError, match="fps must be a positive number"):
        VideoStream([], fps)


# Errors


def broken_sources(folder: Path) -> dict[str, tuple]:
    """Per fault: the source, how many frames come first, and what the message says."""
    whole = write_video(folder / "whole.mp4").read_bytes()
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
    (folder / "none").mkdir()
    (folder / "album").mkdir()
    Image.fromarray(picture(0)).save(folder / "album" / "1.png")
    (folder / "album" / "2.png").write_text("this is no image")
    good = PICTURES[0]

    def raising(after):
        yield from itertools.repeat(good, after)
        raise OSError("unplugged")

    return {
        "missing": (folder / "missing.mp4", 0, "no such file"),
        "text": (folder / "text.mp4", 0, "not a video"),
        "text as bytes": (b"this is no video", 0, "not a video"),
        "empty": (folder / "empty.mp4", 0, "empty"),
        "empty bytes": (b"", 0, "empty"),
        "no index": (whole[:-500], 0, "not a video"),
        "sound only": (folder / "sound.mp4", 0, "no video stream"),
        "no camera": (61, 0, "no such file"),
        "empty folder": (folder / "none", 0, "no images"),
        "broken image in a folder": (folder / "album", 1, "2.png is not a readable image"),
        "float pixels": ([good, good / 255], 1, "uint8"),
        "four channels": ([good, good[..., [0, 1, 2, 0]]], 1, r"shape \(48, 64, 4\) is no frame"),
        "no channels": ([torch.zeros(48, 64, dtype=torch.uint8)], 0, "is no frame"),
        "no pixels": ([good[:0]], 0, "is no frame"),
        "not an image": ([good, "frame.png"], 1, "not str"),
        "backwards": ([(0.0, good), (2.0, good), (1.5, good)], 2, "time runs backwards, to 1.500 s"),
        "no time": ([(0.0, good), (float("nan"), good)], 1, "not a time"),
        "times missing": ([(0.0, good), good], 1, "with and without times"),
        "raising": (raising(1), 1, "OSError: unplugged"),
        "raising at frame 7": (raising(7), 7, "OSError: unplugged"),
        "raising at once": (raising(0), 0, "OSError: unplugged"),
        "grey channel": ([good, good[..., :1]], 1, r"shape \(48, 64, 1\) is no frame"),
        "two channels": ([torch.zeros(2, 48, 64, dtype=torch.uint8)], 0, r"shape \(2, 48, 64\) is no frame"),
    }


FAULTS = (
    "missing", "text", "text as bytes", "empty", "empty bytes", "no index", "sound only", "no camera", "empty folder",
    "broken image in a folder", "float pixels", "four channels", "no channels", "no pixels", "not an image",
    "backwards", "no time", "times missing", "raising", "raising at frame 7", "raising at once", "grey channel",
    "two channels",
)  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_ends_in_one_error_that_names_source_and_time(tmp_path: Path, fault: str):
    source, before, says = broken_sources(tmp_path)[fault]
    stream_name = VideoStream(source).source
    frames, error = until_error(source)
    assert len(frames) == before
    assert error.source == stream_name
    assert (error.t_sec is not None) >= (before > 0)
    with pytest.raises(VideoStreamError, match=says):
        raise error
    place = stream_name if error.t_sec is None else f"{stream_name} at {error.t_sec:.3f} s"
    assert str(error) == f"{place}: {error.reason}"


def test_every_fault_is_tested(tmp_path: Path):
    assert set(broken_sources(tmp_path)) == set(FAULTS)


def test_an_mp4_cut_between_two_frames_gives_the_frames_it_holds(tmp_path: Path):
    # Without frames that refer to later ones, what is in the file is exactly what can be shown.
    options = {"movflags": "faststart"}
    path = write_video(tmp_path / "clip.mp4", options=options, codec_options={"bf": "0"})
    with av.open(str(path)) as container:
        cut = container.streams.video[0].index_entries[12].pos
    frames, error = until_error(path.read_bytes()[:cut])
    assert [frame.t_sec for frame in frames] == [i / 10 for i in range(12)]
    assert error.t_sec == 1.1
    assert "cut off" in error.reason


def test_an_mp4_cut_within_a_frame_gives_the_frames_before(tmp_path: Path):
    options = {"movflags": "faststart"}
    path = write_video(tmp_path / "clip.mp4", options=options, codec_options={"bf": "0"})
    with av.open(str(path)) as container:
        cut = container.streams.video[0].index_entries[12].pos + 6
    frames, error = until_error(path.read_bytes()[:cut])
    assert [frame.t_sec for frame in frames] == [i / 10 for i in range(12)]
    assert error.t_sec == 1.1


def test_an_mp4_cut_within_any_frame_gives_whole_frames_and_then_the_error(tmp_path: Path):
    path = write_video(tmp_path / "clip.mp4", options={"movflags": "faststart"})
    whole, frames = path.read_bytes(), list(VideoStream(path))
    with av.open(str(path)) as container:
        cuts = [entry.pos + entry.size // 2 for entry in container.streams.video[0].index_entries]
    lengths = []
    for cut in cuts:
        held, error = until_error(whole[:cut])
        assert error.t_sec == (held[-1].t_sec if held else None)
        known = {f.t_sec: f.pixel_values for f in frames}
        assert all(torch.equal(f.pixel_values, known[f.t_sec]) for f in held)
        lengths.append(len(held))
    assert lengths == list(range(20))


@pytest.mark.parametrize("source", [[], (), iter([]), (p for p in [])])
def test_a_source_without_frames_ends_at_once(source):
    assert times(source) == []


@pytest.mark.parametrize("pixels", ["gray", "bgra", "yuv444p"])
def test_a_video_with_other_channels_becomes_rgb(tmp_path: Path, pixels: str):
    with av.open(str(tmp_path / "clip.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pixels
        for i in range(3):
            container.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24").reformat(format=pixels))
            )
        container.mux(stream.encode())
    frames = list(VideoStream(tmp_path / "clip.mkv"))
    assert [f.pixel_values.shape for f in frames] == [(3, 48, 64)] * 3
    assert all(abs(image_of(f).mean() - picture(i).mean()) < 3 for i, f in enumerate(frames))


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".webm", "libvpx-vp9"), (".mkv", "libx264"), (".avi", "mpeg4"), (".mp4", "libx264")]
)
def test_a_file_cut_off_gives_what_it_holds_then_the_error(tmp_path: Path, suffix: str, codec: str):
    options = {"movflags": "frag_keyframe+empty_moov"} if suffix == ".mp4" else {}
    path = write_video(tmp_path / f"clip{suffix}", codec=codec, options=options, codec_options={"g": "5"})
    whole = path.read_bytes()
    assert len(times(whole)) == 20
    with av.open(str(path)) as container:
        cut = [packet.pos for packet in container.demux(video=0)][12] + 20
    path.write_bytes(whole[:cut])
    frames, error = until_error(path)
    assert 3 <= len(frames) < 20
    assert error.t_sec == frames[-1].t_sec
    assert "cut off" in error.reason or "damaged" in error.reason


@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_damage_in_the_middle_gives_the_frames_before(tmp_path: Path, b_frames: str):
    path = write_video(tmp_path / "clip.mp4", codec_options={"bf": b_frames})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        entry = container.streams.video[0].index_entries[12]
    content[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
    frames, error = until_error(bytes(content))
    # Also those that were still in the decoder, waiting for a later one to come out in order.
    assert len(frames) == 12
    assert [f.t_sec for f in frames] == sorted(f.t_sec for f in frames)
    assert error.t_sec == frames[-1].t_sec
    assert "damaged" in error.reason


def test_a_recording_that_begins_between_key_frames_is_read_from_the_next_one(tmp_path: Path):
    path = write_video(tmp_path / "clip.ts", codec_options={"bf": "0", "g": "5", "x264-params": "scenecut=0"})
    content = path.read_bytes()
    start = len(content) // 2 // 188 * 188
    head = content[: 3 * 188]  # what the stream consists of, repeated by broadcasters but written once here
    frames = list(VideoStream(head + content[start:]))
    assert 5 <= len(frames) < 15


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_a_live_line_survives_damage(tmp_path: Path):
    path = write_video(tmp_path / "clip.mkv", codec="mpeg4", codec_options={"g": "5"})
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packet = next(itertools.islice(container.demux(video=0), 12, None))
        start = content.index(bytes(packet))
    content[start : start + packet.size] = b"\xff" * packet.size
    assert len(until_error(bytes(content))[0]) == 12
    stream = VideoStream(Pipe(content))
    assert stream.live
    assert [frame.t_sec for frame in stream] == [i / 10 for i in range(20) if i != 12]


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(VideoStreamError("clip.mp4", 1.5, "cut off")))
    assert str(error) == "clip.mp4 at 1.500 s: cut off"


# Opening and closing


def held_by(path: Path) -> int:
    """How often this process holds a file open."""
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    held = 0
    for link in links:
        with contextlib.suppress(OSError):
            held += os.readlink(link) == str(path)
    return held


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts files and threads in /proc")


@linux
@pytest.mark.parametrize("end", ["exhausted", "closed", "left", "dropped", "failed", "in an error"])
def test_no_file_and_no_thread_stays_open(tmp_path: Path, end: str):
    path = write_video(tmp_path / "clip.mp4", codec_options={"bf": "0"})
    if end == "failed":
        content = bytearray(path.read_bytes())
        with av.open(str(path)) as container:
            entry = container.streams.video[0].index_entries[12]
        content[entry.pos : entry.pos + entry.size] = b"\xff" * entry.size
        path.write_bytes(content)
    gc.collect()
    gc.disable()  # closing must not wait for the collector
    try:
        before = len(os.listdir("/proc/self/task"))
        stream = VideoStream(path)
        assert held_by(path) == 0
        next(stream)
        assert held_by(path) == 1
        if end == "exhausted":
            list(stream)
        elif end == "closed":
            stream.close()
        elif end == "left":
            with stream:
                next(stream)
        elif end == "dropped":
            del stream
        elif end == "failed":
            with contextlib.suppress(VideoStreamError):
                list(stream)
        else:
            with contextlib.suppress(RuntimeError), stream:
                raise RuntimeError
        assert held_by(path) == 0
        assert len(os.listdir("/proc/self/task")) == before
    finally:
        gc.enable()


def test_a_stream_left_open_ends_quietly_with_the_interpreter(tmp_path: Path):
    path = write_video(tmp_path / "clip.mp4")
    read = "stream = VideoStream(sys.argv[1]); next(stream)"
    code = f"import sys; from streamchat_hf.processing.frames_streamchat import VideoStream; {read}"
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_closing_ends_the_stream_and_may_be_repeated():
    stream = VideoStream(PICTURES)
    next(stream)
    stream.close()
    stream.close()
    assert list(stream) == []


def test_closing_before_the_first_frame_opens_nothing(tmp_path: Path):
    stream = VideoStream(tmp_path / "missing.mp4")
    stream.close()
    assert list(stream) == []


def test_closing_closes_a_generator_given_as_source():
    closed = []

    def camera():
        try:
            yield from PICTURES
        finally:
            closed.append(True)

    source = camera()
    stream = VideoStream(source)
    next(stream)
    assert closed == []
    stream.close()
    assert closed == [True]


def test_closing_while_another_thread_waits_for_a_frame():
    waiting, release, got = threading.Event(), threading.Event(), []

    def camera():
        waiting.set()
        release.wait(10)
        yield PICTURES[0]

    stream = VideoStream(camera())
    reader = threading.Thread(target=lambda: got.extend(stream))
    reader.start()
    assert waiting.wait(10)
    stream.close()
    release.set()
    reader.join(10)
    assert not reader.is_alive()
    assert got == []


def test_an_error_in_the_transform_closes_the_source():
    def fail(image):
        raise KeyError("no")

    stream = VideoStream(PICTURES, transform=fail)
    with pytest.raises(KeyError):
        next(stream)
    assert list(stream) == []


def test_a_transform_is_applied_to_every_frame():
    assert [f.pixel_values.item() for f in VideoStream(PICTURES, transform=torch.max)] == [p.max() for p in PICTURES]


def test_a_deep_copy_has_ended_and_leaves_the_stream_alone():
    stream = VideoStream((p for p in PICTURES), fps=2)
    next(stream)
    twin = copy.deepcopy({"frames": stream})["frames"]
    assert (twin.source, twin.live, twin.fps) == (stream.source, stream.live, stream.fps)
    assert list(twin) == []
    assert [frame.t_sec for frame in stream] == [0.5, 1.0, 1.5]


def test_nothing_is_read_ahead():
    pulled = []

    def camera():
        for i, p in enumerate(PICTURES):
            pulled.append(i)
            yield p

    stream = VideoStream(camera())
    assert pulled == []
    next(stream)
    assert pulled == [0]


def test_a_frame_is_a_tuple_and_has_names():
    frame = next(VideoStream(PICTURES))
    t_sec, pixel_values = frame
    assert (frame.t_sec, frame[0]) == (t_sec, 0.0)
    assert frame.pixel_values is pixel_values
