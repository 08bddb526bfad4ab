"""Where frames come from: what a source is called, whether it is live, opening it, and opening it again."""

import errno
import io
import logging
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Generator
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import av
from av.error import EOFError as AvEOFError
from av.error import ExitError, FFmpegError, InvalidDataError
from PIL import Image

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
LIVE_SCHEMES = ("rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
STALL_TIMEOUT = 30.0
# Seconds of silence after which a line counts as dead and is opened again, however patient one is.
SILENCE = 30.0
# Seconds between attempts to open a line again: doubled each time, up to a limit.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
# Seconds between two looks into a folder, and how long an image in it may take to be written.
POLL, WRITING = 0.05, 2.0


class VideoStreamError(RuntimeError):
    """A source of frames is missing, broken, cut off, or yields what is not a frame.

    Args:
        source: printable name of the source.
        t_sec: time in seconds of the frame concerned, or of the last good one; `None` before the first.
        reason: what is wrong.
    """

    def __init__(self, source: str, t_sec: float | None, reason: str):
        super().__init__(source, t_sec, reason)
        self.source, self.t_sec, self.reason = source, t_sec, reason

    def __str__(self) -> str:
        place = self.source if self.t_sec is None else f"{self.source} at {self.t_sec:.3f} s"
        return f"{place}: {self.reason}"


class Source:
    """A source of frames and how patient its reader is.

    Args:
        source: what holds the frames; see [`VideoStream`].
        live: whether frames happen now; `None` judges by the source.
        stall_timeout: seconds that may pass without a frame; `None` waits for ever.

    Attributes:
        given: the source; paths are strings, camera numbers are names.
        name: printable name, without credentials.
        stall_timeout: as given.
        reconnects: how often a lost connection was opened again.
        closed: set once nobody reads any more: it ends all waiting.

    Raises:
        ValueError: if `stall_timeout` is not a positive number.
    """

    def __init__(self, source: Any, live: bool | None = None, stall_timeout: float | None = STALL_TIMEOUT):
        if stall_timeout is not None and not (math.isfinite(stall_timeout) and stall_timeout > 0):
            raise ValueError(f"stall_timeout must be a positive number of seconds or None, not {stall_timeout}")
        self.name = source_name(source)
        self.given = f"camera:{source}" if isinstance(source, int) else source
        if isinstance(source, os.PathLike):
            self.given = os.fspath(source)
        self.stall_timeout = stall_timeout
        self.reconnects = 0
        self.closed = threading.Event()
        self._judged = live
        self.renew()

    @cached_property
    def live(self) -> bool:
        """Whether frames happen now. For a playlist on the network this looks into it, once."""
        return is_live(self.given, self.stall_timeout) if self._judged is None else self._judged

    @property
    def is_line(self) -> bool:
        """Whether it is a device or a live network address, which is opened again when it is lost."""
        is_url = isinstance(self.given, str) and "://" in self.given
        return self.live and (is_device(self.given) or (is_url and urlsplit(self.given).scheme != "file"))

    def renew(self) -> None:
        """Begins to wait anew: a frame has come, or its reader has come back for the next one."""
        self._since = time.monotonic()

    def left(self) -> float:
        """Seconds until the source counts as stalled."""
        return math.inf if self.stall_timeout is None else self._since + self.stall_timeout - time.monotonic()

    def wait(self, seconds: float) -> bool:
        """Waits, but not beyond `left()`; returns at once, and true, when the source is closed."""
        return self.closed.wait(max(0.0, min(seconds, self.left())))

    def stalled(self) -> str:
        """What is said of a source from which nothing has come in time."""
        return f"no frame arrived for {self.stall_timeout:g} s"


def source_name(source: Any) -> str:
    """A short printable name of a source: no credentials, no content."""
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if "://" not in name:
            return name
        parts = urlsplit(name)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    if isinstance(source, int):
        return f"camera {source}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"{len(source)} bytes"
    name = getattr(source, "source", None) or getattr(source, "name", None)
    if isinstance(name, str):
        return name
    size = f" of {len(source)}" if hasattr(source, "__len__") else ""
    return type(source).__name__ + size


def is_live(source: Any, timeout: float | None = STALL_TIMEOUT) -> bool:
    """Whether a source's frames happen now.

    Args:
        source: a source, paths and cameras by name.
        timeout: seconds that a look into a playlist on the network may take; `None` is without limit.

    Returns:
        True for cameras, screens, live protocols, pipes, iterables without a length, and playlists without an end.
    """
    if isinstance(source, str):
        if _is_playlist(source):
            return not _has_end(source, timeout)
        return is_device(source) or ("://" in source and urlsplit(source).scheme in LIVE_SCHEMES)
    if hasattr(source, "read"):
        return not source.seekable()
    return bool(getattr(source, "live", not hasattr(source, "__len__")))


def _is_playlist(name: str) -> bool:
    parts = urlsplit(name)
    return parts.scheme in ("http", "https") and parts.path.lower().endswith(".m3u8")


def _has_end(name: str, timeout: float | None) -> bool:
    try:
        with open_container(name, (timeout, timeout)) as container:
            return container.duration is not None
    except FFmpegError:
        return False  # whoever reads it reports what is wrong


def reason(error: Exception) -> str:
    """What went wrong, in words for a person, without the name of the source."""
    if isinstance(error, VideoStreamError):
        return str(error)
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, ExitError):
        return "no answer in time"
    if isinstance(error, InvalidDataError | AvEOFError):
        return f"not a video, or a damaged one ({error.strerror})"
    if isinstance(error, FFmpegError):
        return error.strerror
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def open_container(
    source: Any, timeout: tuple[float | None, float | None] = (None, None), live: bool = False
) -> av.container.InputContainer:
    """Opens a video with FFmpeg.

    Args:
        source: a file, URL, camera or screen by name; a file object; or a video as bytes.
        timeout: seconds that opening and one read may take on the network; `None` is without limit.
        live: whether the first frames matter more than a guess of their rate.

    Returns:
        The open container.

    Raises:
        FFmpegError: if it cannot be opened.
        ValueError: if this platform, or this build of PyAV, has no such device.
    """
    if not isinstance(source, str):
        if not hasattr(source, "read"):
            source = io.BytesIO(source)
        elif source.seekable():
            source.seek(0)
        return av.open(source)
    if is_device(source):
        return _open_device(source)
    if "://" not in source:
        return av.open(source)
    # Over UDP, the default, RTSP loses packets and does not pass most routers.
    options = {"rtsp_transport": "tcp"} if urlsplit(source).scheme in ("rtsp", "rtsps") else {}
    if live:
        # Otherwise opening takes twenty frames, two seconds at ten a second, to find out how many there are.
        options["fpsprobesize"] = "0"
    return av.open(source, options=options, timeout=timeout)


class Device(NamedTuple):
    """What FFmpeg takes to open a camera or a screen.

    Attributes:
        file: name of the device.
        format: FFmpeg's name for what reads it.
        options: of that format.
    """

    file: str
    format: str
    options: dict[str, str]


def is_device(source: Any) -> bool:
    """Whether this is the name of a camera or of a screen."""
    return isinstance(source, str) and (source == "screen" or source.startswith(("screen:", "camera:", "/dev/video")))


def device(name: str, platform: str = sys.platform) -> Device:
    """How a camera or a screen is opened.

    Args:
        name: `/dev/video0`, `camera:0`, `camera:NAME`, `screen` or `screen:SPEC`.
        platform: as in `sys.platform`.

    Returns:
        The device.

    Raises:
        ValueError: if the platform needs another kind of name, or there is no display.
    """
    kind, _, which = name.partition(":") if not name.startswith("/") else ("camera", "", name)
    if platform == "darwin":
        # Cameras of a Mac refuse a rate that they do not name, such as the default of 29.97.
        file = which if kind == "camera" else f"Capture screen {which or 0}"
        return Device(file, "avfoundation", {"framerate": "30"})
    if platform == "win32":
        if kind == "screen":
            return Device(which or "desktop", "gdigrab", {})
        if which.isdigit():
            raise ValueError("Windows knows cameras by their names only: camera:NAME")
        return Device(f"video={which}", "dshow", {})
    if kind == "screen":
        display = which or os.environ.get("DISPLAY")
        if not display:
            raise ValueError("there is no display: DISPLAY is not set")
        return Device(display, "x11grab", {})
    if not (which.isdigit() or which.startswith("/")):
        raise ValueError("Linux knows cameras by their number or file only: camera:0 or camera:/dev/video0")
    return Device(f"/dev/video{which}" if which.isdigit() else which, "video4linux2,v4l2", {})


def _open_device(name: str) -> av.container.InputContainer:
    file, format, options = device(name)
    if format not in av.formats_available:
        raise ValueError(f"PyAV was built without {format}, which this needs on {sys.platform}")
    try:
        return av.open(file, format=format, options=options)
    except OSError as error:
        if error.errno == errno.EIO:  # all that is said of a display that is not there
            raise ValueError(f"{file} cannot be opened") from error
        raise


def follow(
    source: Source, read: Callable[[av.container.InputContainer], Generator[tuple[float, Any], None, None]]
) -> Generator[tuple[float, Any], None, None]:
    """Reads a live line, and opens it again whenever it is lost, until it stays away for too long.

    Args:
        source: what is read; whoever takes the frames renews its patience.
        read: gives the frames of an open container, `(seconds, frame)`, from any origin.

    Yields:
        `(seconds since the first frame, frame)`. Over a gap, and where the sender's clock goes back, the time goes on
        by what has really passed.

    Raises:
        FFmpegError: if the first opening fails.
        ValueError: if there is no such device, nothing in it is a video, or no frame arrived in time.
    """
    newest, arrived, attempts = None, 0.0, 0
    while True:
        try:
            with _open_line(source, attempts) as container:
                if attempts and _is_playlist(source.given) and container.duration is not None:
                    return  # the broadcast is over, and what is there now is its recording
                offset = None
                for stamp, frame in read(container):
                    now = time.monotonic()
                    if newest is None:
                        offset = -stamp
                    elif offset is None or stamp + offset < newest:
                        offset = newest + (now - arrived) - stamp
                    source.reconnects += attempts > 0
                    newest, arrived, attempts = stamp + offset, now, 0
                    yield newest, frame
            failure = "it ended"
        except (FFmpegError, ValueError) as error:
            if newest is None or (attempts == 0 and source.left() <= 0):
                raise
            failure = reason(error)
        if attempts == 0 and not source.closed.is_set():
            logger.warning("%s was lost at %.3f s (%s) and is opened again", source.name, newest, failure)
        if source.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempts, 5))):
            return
        if source.left() <= 0:
            times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
            raise ValueError(f"{source.stalled()}, after {times} to open it again: {failure}")
        attempts += 1


def _open_line(source: Source, attempts: int) -> av.container.InputContainer:
    # Whoever may wait for ever would not notice that a line is dead, nor does FFmpeg when power or a cable fails.
    opening = min(source.left(), SILENCE if attempts else math.inf)
    reading = min(source.stall_timeout or math.inf, SILENCE)
    container = open_container(source.given, (opening if math.isfinite(opening) else None, reading), live=True)
    if source.left() <= 0:  # FFmpeg may come back without having seen a frame
        container.close()
        raise ValueError(source.stalled())
    return container


def watch_folder(source: Source) -> Generator[tuple[float, Image.Image], None, None]:
    """Gives the images of a folder as they are written, also when one file is written again and again.

    Args:
        source: a live folder; whoever takes the images renews its patience.

    Yields:
        `(seconds since the first image, image)`: the newest one that is there, then new ones in order of their times
        of modification and their names.

    Raises:
        ValueError: if an image cannot be read two seconds after it was written, or none came in time.
        FileNotFoundError: if the folder is gone.
    """
    seen: dict[str, int] | None = None
    start = None
    while True:
        found = sorted(_images(source.given))
        if seen is None:
            seen = {name: written for written, _, name in found[:-1]}
        seen = {name: written for written, _, name in found if seen.get(name) == written}
        fresh = [(written, name) for written, _, name in found if name not in seen]
        image = _read_written(source.given, *fresh[0]) if fresh else None
        if image is not None:
            written, name = fresh[0]
            seen[name] = written
            now = time.monotonic()
            start = now if start is None else start
            yield now - start, image
        elif source.wait(POLL):
            return
        elif source.left() <= 0:
            raise ValueError(source.stalled())


def _images(folder: str) -> Generator[tuple[int, list, str], None, None]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name):
                try:
                    yield entry.stat().st_mtime_ns, natural(entry.name), entry.name
                except FileNotFoundError:
                    continue  # removed meanwhile


def _read_written(folder: str, written: int, name: str) -> Image.Image | None:
    """The image in a file, or `None` while it is being written."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            image = Image.open(io.BytesIO(file.read()))
        image.load()
        return image
    except FileNotFoundError:
        return None
    except OSError as error:
        if time.time_ns() - written < WRITING * 1e9:
            return None
        raise ValueError(f"{name} is not a readable image: {error}") from error


def is_image_name(name: str) -> bool:
    """Whether a file is an image by its name, and not hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def natural(name: str) -> list:
    """Sorts `frame2` before `frame10`."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)]
