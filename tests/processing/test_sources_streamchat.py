import contextlib
import copy
import http.server
import io
import itertools
import os
import re
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from live_servers import LiveServer, free_port
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.processing import frames_streamchat, sources_streamchat
from streamchat_hf.processing.frames_streamchat import VideoFrame, VideoStream, VideoStreamError
from streamchat_hf.processing.processing_streamchat import StreamChatProcessor
from streamchat_hf.processing.sources_streamchat import Device, Source, device, follow, is_live, source_name
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor
from video_files import picture, write_video

RATE = 20
# Far beyond what anything here takes: only a hang is as slow.
HANG = 20.0


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """One second of a moving digit, no two frames alike."""
    path = tmp_path_factory.mktemp("world") / "world.mp4"
    write_mp4(World.sample(35, duration=1.0), path, RATE)
    assert len({image.tobytes() for image in images_of(path)}) == RATE
    return path


@pytest.fixture(scope="module")
def other_world(tmp_path_factory) -> Path:
    """Another one, of another size."""
    path = tmp_path_factory.mktemp("world") / "other.mp4"
    write_mp4(World.sample(34, duration=1.0), path, RATE, size=64)
    return path


def images_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def places(frames: list[VideoFrame], path: Path) -> list[int]:
    """Where in a file each frame comes from, to the last bit."""
    known = {image.tobytes(): index for index, image in enumerate(images_of(path))}
    return [known[frame.pixel_values.permute(1, 2, 0).numpy().tobytes()] for frame in frames]


def goes_round(indices: list[int]) -> bool:
    return all(later == (earlier + 1) % RATE for earlier, later in itertools.pairwise(indices))


def take(stream: VideoStream, count: int) -> list[VideoFrame]:
    return list(itertools.islice(stream, count))


def until_error(stream: VideoStream) -> tuple[list[VideoFrame], VideoStreamError, float]:
    """All frames, the error that ends them, and the seconds from the last frame to it."""
    frames, since = [], time.monotonic()
    with pytest.raises(VideoStreamError) as caught:
        for frame in stream:
            frames.append(frame)
            since = time.monotonic()
    assert list(stream) == []
    return frames, caught.value, time.monotonic() - since


def held() -> tuple[int, list[threading.Thread]]:
    """What a process holds: open files, and threads."""
    return len(os.listdir("/proc/self/fd")), threading.enumerate()


linux = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts files in /proc")


# Names


@pytest.mark.parametrize(
    ("source", "live", "name"),
    [
        ("camera:FaceTime HD Camera", True, "camera:FaceTime HD Camera"),
        ("screen", True, "screen"),
        ("screen::0.0+100,200", True, "screen::0.0+100,200"),
        ("udp://239.0.0.1:1234", True, "udp://239.0.0.1:1234"),
        ("http://user:secret@host/video?key=secret", False, "http://host/video"),
        ("live.m3u8", False, "live.m3u8"),
        ("camera", False, "camera"),
        ("screenshot.mp4", False, "screenshot.mp4"),
    ],
)
def test_what_is_live_and_what_it_is_called(source: str, live: bool, name: str):
    assert (is_live(source), source_name(source)) == (live, name)
    stream = VideoStream(source)
    assert (stream.live, stream.source, stream.reconnects) == (live, name, 0)


def test_one_may_say_what_is_live():
    assert not VideoStream((p for p in [picture(0)]), live=False).live
    assert VideoStream("http://host/video", live=True).live
    assert VideoStream([picture(0)], live=True).live


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_patience_must_be_positive(seconds: float):
    with pytest.raises(ValueError, match="stall_timeout must be a positive number of seconds"):
        VideoStream([], stall_timeout=seconds)


def test_a_processor_passes_everything_on(tmp_path: Path):
    Image.fromarray(picture(3)).save(tmp_path / "1.png")
    processor = SimpleNamespace(video_processor=StreamFormerVideoProcessor(size={"height": 16, "width": 16}))
    stream = StreamChatProcessor.stream(processor, tmp_path, 1000.0, True, 0.2)
    frames, error, _ = until_error(stream)
    assert (stream.live, stream.fps, len(frames)) == (True, 1000.0, 1)
    assert frames[0].pixel_values.shape == (3, 16, 16)
    assert error.reason == "no frame arrived for 0.2 s"


def test_a_deep_copy_of_a_live_stream_has_ended_and_leaves_it_open():
    stream = VideoStream("rtsp://user:secret@host/camera")
    twin = copy.deepcopy(stream)
    assert (twin.source, twin.live, list(twin)) == ("rtsp://host/camera", True, [])
    assert not stream._source.closed.is_set()


# Cameras and screens

DEVICES = [
    ("linux", "camera:0", Device("/dev/video0", "video4linux2,v4l2", {})),
    ("linux", "/dev/video2", Device("/dev/video2", "video4linux2,v4l2", {})),
    ("linux", "camera:/dev/v4l/by-id/usb-cam", Device("/dev/v4l/by-id/usb-cam", "video4linux2,v4l2", {})),
    ("linux", "screen", Device(":7", "x11grab", {})),
    ("linux", "screen::0.0+100,200", Device(":0.0+100,200", "x11grab", {})),
    ("darwin", "camera:0", Device("0", "avfoundation", {"framerate": "30"})),
    ("darwin", "camera:FaceTime HD", Device("FaceTime HD", "avfoundation", {"framerate": "30"})),
    ("darwin", "screen", Device("Capture screen 0", "avfoundation", {"framerate": "30"})),
    ("darwin", "screen:1", Device("Capture screen 1", "avfoundation", {"framerate": "30"})),
    ("win32", "camera:USB Camera", Device("video=USB Camera", "dshow", {})),
    ("win32", "screen", Device("desktop", "gdigrab", {})),
    ("win32", "screen:title=Notes", Device("title=Notes", "gdigrab", {})),
]


@pytest.mark.parametrize(("platform", "name", "expected"), DEVICES)
def test_how_each_platform_opens_a_device(monkeypatch, platform: str, name: str, expected: Device):
    monkeypatch.setenv("DISPLAY", ":7")
    assert device(name, platform) == expected


@pytest.mark.parametrize(
    ("platform", "name", "says"),
    [
        ("linux", "camera:FaceTime HD", "by their number or file"),
        ("win32", "camera:0", "by their names only"),
        ("linux", "screen", "DISPLAY is not set"),
    ],
)
def test_names_that_a_platform_cannot_take(monkeypatch, platform: str, name: str, says: str):
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(ValueError, match=says):
        device(name, platform)


@pytest.mark.skipif(os.name == "nt" or not Path("/dev").exists(), reason="devices of Linux")
@pytest.mark.parametrize(
    ("source", "says"),
    [("/dev/video99", "no such file"), (99, "no such file"), ("screen::99", ":99 cannot be opened")],
)
def test_a_device_that_is_not_there(source, says: str):
    frames, error, _ = until_error(VideoStream(source))
    assert (frames, error.source, error.t_sec, error.reason) == ([], source_name(source), None, says)


def test_a_build_without_the_format_is_named(monkeypatch):
    monkeypatch.setattr(av, "formats_available", set())
    assert "PyAV was built without video4linux2,v4l2" in until_error(VideoStream("/dev/video0"))[1].reason


def test_a_camera_that_is_lost_is_opened_again(monkeypatch):
    """FFmpeg's generator of test pictures is a device like any other; this one ends after ten."""
    pictures = Device("testsrc=size=64x48:rate=10:duration=1", "lavfi", {})
    monkeypatch.setattr(sources_streamchat, "device", lambda name: pictures)
    with VideoStream("camera:0", fps=5) as stream:
        frames = take(stream, 7)
    assert stream.live and stream.reconnects == 1
    assert {tuple(frame.pixel_values.shape) for frame in frames} == {(3, 48, 64)}
    assert [frame.t_sec for frame in frames[:5]] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])
    assert frames[5].t_sec > 1.3


# Lines without a network


class Line:
    """Stands in for FFmpeg: what each opening gives, the stamps of its frames or an error."""

    duration = None

    def __init__(self, monkeypatch, *openings):
        self.openings, self.current, self.pauses = iter(openings), None, []
        monkeypatch.setattr(sources_streamchat, "open_container", lambda *_, **__: self.open())
        self.source = Source("rtsp://host/camera", stall_timeout=None)
        self.source.wait = lambda seconds: self.pauses.append(seconds)

    def open(self):
        self.current = next(self.openings)
        if isinstance(self.current, Exception):
            raise self.current
        return contextlib.nullcontext(self)

    def frames(self) -> Iterator[tuple[float, str]]:
        return follow(self.source, lambda _: ((stamp, f"frame of {stamp}") for stamp in self.current))


def refused() -> Exception:
    return av.error.ConnectionRefusedError(111, "Connection refused")


def test_a_line_is_opened_again_after_longer_and_longer_pauses(monkeypatch):
    line = Line(monkeypatch, [1.0], *[refused() for _ in range(7)], [5.0, 5.1], [0.0])
    frames = line.frames()
    assert len([next(frames) for _ in range(3)]) == 3
    assert line.pauses == [0.5, 1, 2, 4, 8, 10, 10, 10]
    assert line.source.reconnects == 1
    next(frames)
    assert line.pauses[8:] == [0.5]
    assert line.source.reconnects == 2


def test_the_patient_try_for_ever(monkeypatch):
    line = Line(monkeypatch, [0.0], *[refused() for _ in range(3000)], [0.0])
    assert len(list(itertools.islice(line.frames(), 2))) == 2
    assert set(line.pauses[10:]) == {10}


def test_a_line_without_frames_is_no_line(monkeypatch):
    def nothing(container):
        raise ValueError("there is no video stream in it")
        yield

    line = Line(monkeypatch, [], [])
    with pytest.raises(ValueError, match="no video stream"):
        next(follow(line.source, nothing))
    assert line.pauses == []


def test_opening_may_not_take_longer_than_one_is_patient(monkeypatch):
    """FFmpeg then gives an open container in which nothing has been seen; reading it would take as long again."""
    now, container = [0.0], io.BytesIO()
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def open_container(*_, **__):
        now[0] += 30.0
        return container

    monkeypatch.setattr(sources_streamchat, "open_container", open_container)
    with pytest.raises(ValueError, match="no frame arrived for 30 s"):
        next(follow(Source("rtsp://host/camera"), lambda _: iter([(0.0, None)])))
    assert container.closed


def test_time_goes_on_by_what_has_passed(monkeypatch):
    """Over a loss, and where the sender's clock goes back: an encoder was started again, a file begins anew."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    line = Line(monkeypatch, [5.0, 5.5, 2.0, 2.5], [70.0, 70.25])
    seen = []
    for t_sec, what in line.frames():
        seen.append((t_sec, what))
        now[0] += 3.0
        if len(seen) == 6:
            break
    assert [t_sec for t_sec, _ in seen] == [0.0, 0.5, 3.5, 4.0, 7.0, 7.25]
    assert [what for _, what in seen] == [f"frame of {stamp}" for stamp in (5.0, 5.5, 2.0, 2.5, 70.0, 70.25)]


def test_a_line_that_says_too_much_says_no_password(monkeypatch, caplog):
    line = Line(monkeypatch, [0.0], [0.0])
    line.source.name = source_name("rtsp://user:secret@host/camera?key=secret")
    list(itertools.islice(line.frames(), 2))
    assert [record.message for record in caplog.records] == [
        "rtsp://host/camera was lost at 0.000 s (it ended) and is opened again"
    ]


# Lines over RTSP


@linux
def test_rtsp_gives_the_frames_of_the_file_in_order_and_leaves_nothing_open(world: Path):
    with LiveServer("rtsp", world) as server:
        before = held()
        with VideoStream(server.url) as stream:
            assert stream.live
            frames = take(stream, RATE + 2)
            assert held() != before
        assert held() == before
    indices = places(frames, world)
    assert indices[0] == 0 and goes_round(indices)
    times = [frame.t_sec for frame in frames]
    assert times[0] == 0.0
    # The first times of a stream with frames that refer to later ones are not known.
    assert np.diff(times)[2:] == pytest.approx(1 / RATE, abs=1e-3)


@linux
def test_rtsp_killed_and_started_again_goes_on(world: Path, other_world: Path, caplog):
    """Also with another size, as after a camera's settings were changed."""
    before = held()
    with LiveServer("rtsp", world) as server:
        frames, arrived = [], []
        with VideoStream(server.url, stall_timeout=HANG) as stream:
            for frame in stream:
                frames.append(frame)
                arrived.append(time.monotonic())
                if len(frames) == 10:
                    server.kill()
                    restart = threading.Thread(target=server.start, args=[other_world])
                    restart.start()
                if frame.pixel_values.shape[1] == 64 and len(frames) > 22:
                    break
        restart.join()
    sizes = [frame.pixel_values.shape[1] for frame in frames]
    lost = sizes.index(64)
    assert set(sizes[:lost]) == {96} and set(sizes[lost:]) == {64}
    assert stream.reconnects == 1
    assert places(frames[lost:], other_world)[0] == 0 and goes_round(places(frames[lost:], other_world))
    times = [frame.t_sec for frame in frames]
    assert times == sorted(times)
    gap = times[lost] - times[lost - 1]
    assert gap == pytest.approx(arrived[lost] - arrived[lost - 1], abs=0.5)
    assert gap > 0.4
    (record,) = caplog.records
    assert server.url in record.message and f"{times[lost - 1]:.3f} s" in record.message
    assert held() == before


@linux
def test_rtsp_killed_and_never_back_is_one_error(world: Path, caplog):
    before = held()
    with LiveServer("rtsp", world) as server:
        stream = VideoStream(server.url, stall_timeout=1.5)
        first = take(stream, 5)
        server.kill()
        frames, error, waited = until_error(stream)
    assert (error.source, error.t_sec) == (server.url, (first + frames)[-1].t_sec)
    says = r"no frame arrived for 1\.5 s, after (1 attempt|2 attempts) to open it again: Connection refused"
    assert re.fullmatch(says, error.reason)
    assert waited < HANG
    assert len(caplog.records) == 1
    assert held() == before


@linux
@pytest.mark.parametrize("after", [10, pytest.param(0, marks=pytest.mark.slow)])
def test_rtsp_that_stalls_is_one_error(world: Path, after: int):
    before = held()
    with LiveServer("rtsp", world, stall_after=after) as server:
        frames, error, waited = until_error(VideoStream(server.url, stall_timeout=1.5))
    assert error.t_sec == (frames[-1].t_sec if after else None)
    assert error.reason == "no frame arrived for 1.5 s"
    assert waited < HANG
    assert held() == before


def test_a_pause_ends_when_another_thread_closes(world: Path):
    with LiveServer("rtsp", world) as server:
        stream = VideoStream(server.url, stall_timeout=10 * HANG)
        take(stream, 5)
        server.kill()
        reader = threading.Thread(target=lambda: list(stream), daemon=True)
        reader.start()
        time.sleep(0.3)  # it waits by now, for half a second
        stream.close()
        reader.join(HANG)
    assert not reader.is_alive()


def test_closing_ends_every_wait_at_once():
    source = Source("rtsp://host/camera", stall_timeout=None)
    threading.Timer(0.05, source.closed.set).start()
    assert source.wait(10 * HANG)


def test_what_breaks_after_closing_is_nobodys_concern():
    waiting, release, got = threading.Event(), threading.Event(), []

    def camera():
        yield picture(0)
        waiting.set()
        release.wait(HANG)
        raise OSError("unplugged")

    stream = VideoStream(camera())
    reader = threading.Thread(target=lambda: got.extend(stream), daemon=True)
    reader.start()
    assert waiting.wait(HANG)
    stream.close()
    release.set()
    reader.join(HANG)
    assert not reader.is_alive() and len(got) == 1


@pytest.mark.parametrize(
    "url", ["rtsp://user:secret@127.0.0.1:{}/x", "tcp://127.0.0.1:{}", "http://127.0.0.1:{}/x.m3u8"]
)
def test_a_line_that_cannot_be_opened_is_an_error_at_once(url: str):
    stream = VideoStream(url.format(free_port()), stall_timeout=10 * HANG)
    assert stream.live
    frames, error, waited = until_error(stream)
    assert (frames, error.t_sec, error.reason) == ([], None, "Connection refused")
    assert waited < HANG


def test_a_password_opens_and_is_never_told(world: Path, caplog):
    with LiveServer("rtsp", world, login="user:secret") as server:
        stream = VideoStream(server.url, stall_timeout=1.5)
        assert len(take(stream, 3)) == 3
        wrong = VideoStream(server.url.replace("user", "nobody"))
        wrong_error = until_error(wrong)[1]
        server.kill()
        error = until_error(stream)[1]
    assert "401" in wrong_error.reason
    told = [
        stream.source,
        caplog.text,
        *(line for e in (error, wrong_error) for line in traceback.format_exception(e)),
    ]
    assert "secret" not in "".join(told)
    assert stream.source == server.url.replace("user:secret@", "")


# Lines of MPEG-TS, of playlists and of cheap cameras


def test_mpegts_gives_the_frames_of_the_file_and_is_opened_again(world: Path):
    with LiveServer("mpegts", world, drop_after=15) as server, VideoStream(server.url) as stream:
        frames = take(stream, 20)
    assert stream.live and stream.reconnects == 1
    # Of the frames at the break some are missing that others refer to.
    assert places(frames[:10], world) == list(range(10))
    assert [frame.t_sec for frame in frames[:10]] == pytest.approx([i / RATE for i in range(10)], abs=1e-3)
    times = [frame.t_sec for frame in frames]
    assert times == sorted(times) and times[-1] > 15 / RATE + 0.4


def test_ticks_go_on_after_a_loss(monkeypatch):
    line = Line(monkeypatch, [0.0, 0.1, 0.2, 0.3], [7.0, 7.1, 7.2, 7.3])
    frames = frames_streamchat._checked(line.frames(), line.source, 5)
    kept = [t_sec for t_sec, _ in itertools.islice(frames, 4)]
    assert kept[:2] == [0.0, 0.2]
    assert [int(t_sec * 5 + 1e-6) for t_sec in kept] == sorted({int(t_sec * 5 + 1e-6) for t_sec in kept})


@pytest.mark.slow
def test_a_live_playlist_is_live_until_the_broadcast_ends(world: Path):
    with LiveServer("hls", world, count=5) as server:
        stream = VideoStream(server.url)
        assert stream.live
        frames = list(stream)
    indices = places(frames, world)
    assert indices[0] == 0 and goes_round(indices) and indices[-1] == RATE - 1
    assert [frame.t_sec for frame in frames] == pytest.approx([i / RATE for i in range(len(frames))], abs=1e-3)
    assert stream.reconnects == 0


def test_a_finished_playlist_is_a_file(world: Path):
    with LiveServer("hls", world, ends=1, count=3) as server:
        stream = VideoStream(server.url)
        frames = list(stream)  # whether it is live is found out on the way
    assert not stream.live
    assert places(frames, world) == 3 * list(range(RATE))


@pytest.mark.slow
def test_a_playlist_whose_server_is_killed_goes_on(world: Path):
    with LiveServer("hls", world) as server, VideoStream(server.url, stall_timeout=HANG) as stream:
        frames = take(stream, 10)
        server.kill()
        restart = threading.Timer(2.0, server.start)
        restart.start()
        while stream.reconnects == 0 and len(frames) < 500:
            frames.append(next(stream))
        restart.join()
    times = [frame.t_sec for frame in frames]
    assert times == sorted(times)
    assert stream.reconnects == 1
    assert places(frames[-1:], world) == [0]


@pytest.mark.slow
def test_a_camera_without_times_is_stamped_on_arrival(tmp_path: Path, world: Path):
    path = tmp_path / "slow.mp4"
    write_mp4(World.sample(35, duration=1.0), path, fps=8)
    with LiveServer("mjpeg", path, drop_after=10) as server, VideoStream(server.url, live=True) as stream:
        frames = take(stream, 2)  # what has gathered while it was opened
        start = time.monotonic()
        frames += take(stream, 11)
        passed = time.monotonic() - start
    # FFmpeg would count 25 frames a second.
    assert frames[-1].t_sec - frames[1].t_sec == pytest.approx(passed, abs=0.5)
    assert stream.reconnects == 1
    first = frames[0].pixel_values.permute(1, 2, 0).numpy().astype(int)
    assert np.abs(first - images_of(path)[0]).mean() < 4


def test_sound_alone_does_not_hide_that_the_picture_stands_still(tmp_path: Path, monkeypatch):
    path = tmp_path / "sound.ts"
    with av.open(str(path), "w") as container:
        stream, sound = container.add_stream("libx264", rate=10), container.add_stream("mp2", rate=16000)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(i), format="rgb24")))
        container.mux(stream.encode())
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 30 * 16000), np.int16), format="s16", layout="mono")
        silence.sample_rate, silence.pts = 16000, 0
        container.mux(sound.encode(silence))
        container.mux(sound.encode())

    monkeypatch.setattr(time, "monotonic", lambda: pipe.reads)

    class Pipe(io.BytesIO):
        reads = 0

        def seekable(self) -> bool:
            return False

        def read(self, size: int = -1) -> bytes:
            self.reads += started
            return super().read(188)

    started = False
    pipe = Pipe(path.read_bytes())
    stream = VideoStream(pipe, stall_timeout=50)
    next(stream)
    started = True  # from here on the clock ticks with every read
    frames, error, _ = until_error(stream)
    assert 0 < len(frames) < 10  # FFmpeg holds the last ones back until another one comes
    assert error.reason == "no frame arrived for 50 s"
    assert pipe.reads < 100


def test_a_file_on_a_server_that_falls_silent(tmp_path: Path):
    # Noise does not compress: three quarters of the bytes are about as many of the frames.
    images = list(np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8))
    content = write_video(tmp_path / "clip.mp4", images=images, options={"movflags": "faststart"}).read_bytes()
    over = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) * 3 // 4])
            over.wait(HANG)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        stream = VideoStream(f"http://127.0.0.1:{server.server_port}/clip.mp4", stall_timeout=1.0)
        frames, error, waited = until_error(stream)
        over.set()
        server.shutdown()
        thread.join()
    assert not stream.live
    assert 5 < len(frames) < 20
    assert (error.t_sec, error.reason) == (frames[-1].t_sec, "no frame arrived for 1 s")
    assert waited < HANG


# Folders


def save(folder: Path, name: str, index: int, age: float = 0.0) -> None:
    """Writes an image as most programs do, in place, with a time of modification in the past if wanted."""
    Image.fromarray(picture(index)).save(folder / name)
    if age:
        os.utime(folder / name, (time.time() - age, time.time() - age))


def brightness(frame: VideoFrame) -> int:
    """Which `picture` it is."""
    return round((frame.pixel_values.float().mean().item() - picture(0).mean()) / 5)


def test_a_live_folder_gives_the_newest_image_and_then_new_ones(tmp_path: Path):
    for index in range(3):
        save(tmp_path, f"old{index}.png", index, age=10 - index)
    stream = VideoStream(tmp_path, live=True)
    assert stream.live and stream.source == str(tmp_path)
    frames = take(stream, 1)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    moment = time.time() + 1
    for name, index in (("10.png", 5), ("9.png", 4), ("8.png", 6)):
        save(tmp_path, name, index)
        os.utime(tmp_path / name, (moment + (index == 6), moment + (index == 6)))
    frames += take(stream, 3)
    stream.close()
    assert [brightness(frame) for frame in frames] == [2, 4, 5, 6]
    times = [frame.t_sec for frame in frames]
    assert times[0] == 0.0 and times == sorted(times)
    assert list(stream) == []


def test_one_image_written_again_and_again(tmp_path: Path):
    over = threading.Event()

    def write():
        for index in itertools.count():
            save(tmp_path, "latest.png", index % 20)
            if over.wait(0.01):
                return

    writer = threading.Thread(target=write, daemon=True)
    start = time.monotonic()
    writer.start()
    with VideoStream(tmp_path, live=True, stall_timeout=HANG) as stream:
        frames = take(stream, 10)
    passed = time.monotonic() - start
    over.set()
    writer.join()
    assert len({brightness(frame) for frame in frames}) > 1
    assert 0 < frames[-1].t_sec <= passed


def test_a_half_written_image_is_read_when_it_is_whole(tmp_path: Path):
    save(tmp_path, "1.png", 1, age=1)
    with VideoStream(tmp_path, live=True, stall_timeout=HANG) as stream:
        assert brightness(next(stream)) == 1
        whole = io.BytesIO()
        Image.fromarray(picture(2)).save(whole, "png")
        with open(tmp_path / "2.png", "wb", buffering=0) as file:
            file.write(whole.getvalue()[:-100])
            finish = threading.Timer(0.3, lambda: file.write(whole.getvalue()[-100:]))
            finish.start()
            frame = next(stream)
            finish.join()
    assert np.array_equal(frame.pixel_values.permute(1, 2, 0).numpy(), picture(2))


def test_an_image_that_never_becomes_whole_is_an_error(tmp_path: Path):
    save(tmp_path, "1.png", 1, age=10)
    stream = VideoStream(tmp_path, live=True, stall_timeout=HANG)
    first = next(stream)
    (tmp_path / "2.png").write_text("no image")
    os.utime(tmp_path / "2.png", (time.time() - 3, time.time() - 3))
    frames, error, _ = until_error(stream)
    assert (frames, error.t_sec) == ([], first.t_sec)
    assert error.reason.startswith("2.png is not a readable image")


def test_an_empty_folder_waits_for_its_first_image(tmp_path: Path):
    frames, error, _ = until_error(VideoStream(tmp_path, live=True, stall_timeout=0.3))
    assert (frames, error.t_sec, error.reason) == ([], None, "no frame arrived for 0.3 s")
    later = threading.Timer(0.2, save, [tmp_path, "1.png", 3])
    later.start()
    with VideoStream(tmp_path, live=True, stall_timeout=HANG) as stream:
        assert brightness(next(stream)) == 3
    later.join()


def test_a_pause_of_the_reader_is_no_stall_of_the_source(tmp_path: Path):
    save(tmp_path, "1.png", 1)
    with VideoStream(tmp_path, live=True, stall_timeout=0.6) as stream:
        next(stream)
        time.sleep(0.7)
        later = threading.Timer(0.1, save, [tmp_path, "2.png", 2])
        later.start()
        assert brightness(next(stream)) == 2
    later.join()


def test_a_folder_that_is_taken_away(tmp_path: Path):
    folder = tmp_path / "frames"
    folder.mkdir()
    save(folder, "1.png", 1)
    stream = VideoStream(folder, live=True)
    next(stream)
    (folder / "1.png").unlink()
    folder.rmdir()
    assert until_error(stream)[1].reason == "no such file"


@linux
def test_watching_a_folder_ends_when_another_thread_closes(tmp_path: Path):
    before = held()
    stream = VideoStream(tmp_path, live=True, stall_timeout=None)
    reader = threading.Thread(target=lambda: list(stream), daemon=True)
    reader.start()
    time.sleep(0.1)
    stream.close()
    reader.join(HANG)
    assert not reader.is_alive()
    assert held() == before


# A size that changes midway


def test_a_size_that_changes_within_a_video(tmp_path: Path):
    in_order = {"codec_options": {"bf": "0"}}
    small = write_video(tmp_path / "small.ts", [0, 100, 200], **in_order)
    large = write_video(tmp_path / "large.ts", [300, 400], images=[picture(i, 96, 128) for i in (3, 4)], **in_order)
    back = write_video(tmp_path / "back.ts", [500, 600], images=[picture(i) for i in (5, 6)], **in_order)
    content = b"".join(path.read_bytes() for path in (small, large, back))
    frames = list(VideoStream(content))
    assert [tuple(frame.pixel_values.shape) for frame in frames] == [(3, 48, 64)] * 3 + [(3, 96, 128)] * 2 + [
        (3, 48, 64)
    ] * 2
    assert [brightness(frame) for frame in frames] == list(range(7))
    assert [frame.t_sec for frame in frames] == pytest.approx([i / 10 for i in range(7)])
    resized = VideoStream(content, None, StreamFormerVideoProcessor(size={"height": 32, "width": 32}).preprocess_frame)
    assert {tuple(frame.pixel_values.shape) for frame in resized} == {(3, 32, 32)}
