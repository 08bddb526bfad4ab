"""Frames with their presentation times, read lazily from files, URLs, cameras, folders and iterables."""

import io
import math
import numbers
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import av
import numpy as np
import torch
from av.error import ExitError, FFmpegError, InvalidDataError
from av.format import Flags
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps

from .sources_streamchat import (
    STALL_TIMEOUT,
    Source,
    VideoStreamError,
    follow,
    is_image_name,
    natural,
    open_container,
    reason,
    watch_folder,
)

# Containers such as Matroska round times to milliseconds; just over half of one keeps a frame on its tick.
TICK_TOLERANCE = 0.55e-3
# Frames per second of images that carry neither times nor a rate.
DEFAULT_IMAGE_RATE = 1.0
MATROSKA_EBML, MATROSKA_SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

# A frame's time in seconds and what turns it into pixels; frames that are not wanted are never converted.
TimedImage = tuple[float, Callable[[], torch.Tensor]]
TimedImages = Generator[TimedImage, None, None]


class VideoFrame(NamedTuple):
    """One frame of a stream.

    Attributes:
        t_sec: presentation time in seconds; a file's first frame is at 0.0.
        pixel_values: `(channels, height, width)`.
    """

    t_sec: float
    pixel_values: torch.Tensor


class VideoStream:
    """An iterator of [`VideoFrame`]s that opens its source at the first frame and closes it after the last.

    It also closes on errors, by `close()`, and at the end of a `with` block. A deep copy, which transformers makes of
    generation arguments, is a stream that has ended: frames can be read once.

    A live network address or camera that is lost after its first frame is opened again, after 0.5 s, 1 s, 2 s and so
    on up to 10 s. Then `t_sec` goes on by the time that has passed. `close()` from another thread ends this waiting at
    once; a read on the network that is under way then still takes until something arrives, or its timeout.

    Args:
        source: a file, URL or folder of images by name; a camera as `camera:0`, `camera:NAME`, `/dev/video0` or by
            its number; a screen as `screen` or `screen:SPEC`; a video as bytes or file object; or an iterable of PIL
            images, uint8 arrays `(height, width, 3)`, uint8 tensors `(3, height, width)`, or `(t_sec, image)` tuples.
        fps: frames per second to keep: the first frame at or after each tick `k / fps`, never one twice. It is also
            the rate of images that carry no times (default there: 1). `None` keeps every frame.
        transform: applied to each uint8 `(3, height, width)` image; `None` leaves it as it is.
        live: whether frames happen now; `None` judges by the source. A live folder is watched for new images.
        stall_timeout: seconds after which a live source without a frame, or a read on the network without an answer,
            is an error; `None` waits, and opens it again, for ever. The driver of a camera, a file object or an
            iterable that blocks cannot be interrupted.

    Attributes:
        source: printable name of the source, without credentials.
        live: whether frames happen now, so that a wall clock should stamp them on arrival: as given, or true for
            cameras, screens, live protocols, playlists without an end, and iterables without a length. To find out
            about a playlist it is opened, at the first use of this attribute or the first frame.
        fps, transform: as given.
        reconnects: how often a lost connection was opened again and gave frames.

    Raises:
        ValueError: if `fps` or `stall_timeout` is not a positive number.
        VideoStreamError: while iterating.
    """

    def __init__(
        self,
        source: Any,
        fps: float | None = None,
        transform: Callable[[torch.Tensor], torch.Tensor] | None = None,
        live: bool | None = None,
        stall_timeout: float | None = STALL_TIMEOUT,
    ):
        self._source = Source(source, live, stall_timeout)
        self.source, self.fps = self._source.name, fps
        self._reader = _read(self._source, fps)
        self.transform = transform

    @property
    def live(self) -> bool:
        """Whether frames happen now."""
        return self._source.live

    @property
    def reconnects(self) -> int:
        """How often a lost connection was opened again and gave frames."""
        return self._source.reconnects

    def __iter__(self) -> "VideoStream":
        return self

    def __next__(self) -> VideoFrame:
        if self._source.closed.is_set():
            raise StopIteration
        try:
            t_sec, load = next(self._reader)
            image = load()
            frame = VideoFrame(t_sec, image if self.transform is None else self.transform(image))
        except BaseException:
            self.close()
            raise
        if self._source.closed.is_set():
            # Another thread closed the stream meanwhile and had to leave the running reader alone.
            self._reader.close()
            raise StopIteration
        return frame

    def close(self) -> None:
        """Closes the source; the stream has then ended."""
        self._source.closed.set()
        with suppress(ValueError):  # "generator already executing": `__next__` closes it
            self._reader.close()

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __deepcopy__(self, memo: dict) -> "VideoStream":
        ended = type(self)((), fps=self.fps, live=self.live)
        ended.source = self.source
        ended.close()
        return ended


def read_images(source: Any, fps: float | None = None, rate: float | None = None) -> TimedImages:
    """Reads the frames of a source, as described for [`VideoStream`], without converting them yet.

    Args:
        source: what holds the frames.
        fps: frames per second to keep; `None` keeps every frame.
        rate: frames per second of images without times; `None` takes `fps`, or else 1.

    Returns:
        A generator of `(t_sec, load)`, in order of time; `load()` gives the frame as a uint8 tensor `(3, height,
        width)`, upright and in RGB.

    Raises:
        ValueError: at once, if `fps` is not a positive number.
        VideoStreamError: while iterating, after the frames before the fault; also from `load()`.
    """
    return _read(Source(source), fps, rate)


def _read(source: Source, fps: float | None, rate: float | None = None) -> TimedImages:
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number, not {fps}")
    return _checked(_open(source, rate or fps or DEFAULT_IMAGE_RATE), source, fps)


def _checked(frames: TimedImages, source: Source, fps: float | None) -> TimedImages:
    newest, next_tick = None, 0
    source.renew()
    try:
        for t_sec, load in frames:
            if not math.isfinite(t_sec):
                raise ValueError(f"{t_sec} is not a time")
            if newest is not None and t_sec < newest:
                raise ValueError(f"time runs backwards, to {t_sec:.3f} s")
            newest = t_sec
            wanted = True
            if fps is not None:
                tick = math.floor((t_sec + TICK_TOLERANCE) * fps)
                wanted, next_tick = tick >= next_tick, max(next_tick, tick + 1)
            if wanted:
                yield t_sec, partial(_load, load, source.name, t_sec)
            source.renew()
    except Exception as error:
        if source.closed.is_set():
            return  # by another thread: nobody waits for what was still under way
        if isinstance(error, FFmpegError):
            error.args = error.args[:2]  # the others are the URL with its password, and FFmpeg's log of it
        # An opening that took all the time can also look like a damaged file.
        stalled = isinstance(error, ExitError) or (isinstance(error, FFmpegError) and source.left() <= 0)
        why = source.stalled() if stalled else reason(error)
        raise VideoStreamError(source.name, newest, why) from error
    finally:
        frames.close()


def _load(load: Callable[[], torch.Tensor], name: str, t_sec: float) -> torch.Tensor:
    try:
        return load()
    except Exception as error:
        raise VideoStreamError(name, t_sec, reason(error)) from error


def _open(source: Source, rate: float) -> TimedImages:
    given = source.given
    if isinstance(given, str) and os.path.isdir(given):
        return _read_items(watch_folder(source), rate) if source.live else _read_folder(given, rate)
    if isinstance(given, str | bytes | bytearray | memoryview) or hasattr(given, "read"):
        return _read_video(source)
    return _read_items([given] if isinstance(given, Image.Image) else given, rate)


def _read_items(items: Iterable, rate: float) -> TimedImages:
    timed = None
    try:
        for index, item in enumerate(items):
            has_time = isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], numbers.Real)
            if timed is not None and has_time != timed:
                raise ValueError("images with and without times are mixed")
            timed = has_time
            t_sec, image = item if has_time else (index / rate, item)
            yield float(t_sec), partial(to_image_tensor, image)
    finally:
        if hasattr(items, "__next__") and hasattr(items, "close"):
            items.close()


def _read_folder(path: str, rate: float) -> TimedImages:
    names = sorted(filter(is_image_name, os.listdir(path)), key=natural)
    if not names:
        raise ValueError("the folder holds no images")
    for index, name in enumerate(names):
        yield index / rate, partial(_read_image, os.path.join(path, name))


def _read_image(path: str) -> torch.Tensor:
    try:
        with Image.open(path) as image:
            return to_image_tensor(image)
    except OSError as error:
        raise ValueError(f"{os.path.basename(path)} is not a readable image: {error}") from error


def to_image_tensor(image: Any) -> torch.Tensor:
    """Brings one image into the form that the video processor takes.

    Args:
        image: a PIL image of any mode (turned upright by its EXIF tag), or a uint8 array or tensor with three
            channels, last or first. Where both sides could be the channels, arrays have them last, tensors first.

    Returns:
        A uint8 tensor `(3, height, width)` in RGB.

    Raises:
        ValueError: if it is anything else.
    """
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    if not isinstance(image, np.ndarray | torch.Tensor):
        raise ValueError(f"a frame must be a PIL image, an array or a tensor, not {type(image).__name__}")
    kind = "an array" if isinstance(image, np.ndarray) else "a tensor"
    if image.dtype not in (np.uint8, torch.uint8):
        raise ValueError(f"a frame must hold uint8 values from 0 to 255, not {image.dtype}")
    last, first = image.ndim == 3 and image.shape[-1] == 3, image.ndim == 3 and image.shape[0] == 3
    if not (last or first) or 0 in image.shape:
        raise ValueError(f"{kind} of shape {tuple(image.shape)} is no frame: (height, width, 3) or (3, height, width)")
    if isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.require(image, requirements=["C", "W"]))
        return tensor.permute(2, 0, 1) if last else tensor
    return image if first else image.permute(2, 0, 1)


def _read_video(source: Source) -> TimedImages:
    if source.is_line:
        yield from follow(source, partial(_read_container, source=source))
        return
    head, size = _head_and_size(source.given)
    if size == 0:
        raise ValueError("the file is empty")
    with open_container(source.given, (source.stall_timeout, source.stall_timeout)) as container:
        yield from _read_container(container, source)
        if _is_cut_off(container.streams.best("video"), head, size):
            raise ValueError("the file is cut off here")


def _read_container(container: av.container.InputContainer, source: Source) -> TimedImages:
    stream = container.streams.best("video")
    if stream is None:
        raise ValueError("there is no video stream in it")
    # AVI stores no presentation times, and what is reported as such is not in order.
    by_decoding_time = container.format.name == "avi"
    # Nor do the pictures of a cheap camera, one JPEG after the other: what is reported there is a made-up rate.
    by_arrival = source.live and bool(container.format.flags & Flags.no_timestamps.value)
    known = not (by_decoding_time or by_arrival or stream.start_time is None)
    origin = stream.start_time * stream.time_base if known else None
    t_sec, to_rgb = None, None
    for frame in _decode(container, stream, source):
        if to_rgb is None:
            to_rgb = partial(_to_rgb, converter=VideoReformatter(), matrix=_display_matrix(frame))
        stamp = frame.dts if by_decoding_time else frame.pts
        if by_arrival:
            seconds = time.monotonic()
        else:
            seconds = None if stamp is None else stamp * stream.time_base
        if seconds is None:
            # An elementary stream has no times at all: only then is its nominal rate all there is.
            t_sec = Fraction(0) if t_sec is None else t_sec + 1 / Fraction(stream.guessed_rate or 25)
        else:
            origin = seconds if origin is None else origin
            t_sec = seconds - origin
        yield float(t_sec), partial(to_rgb, frame)
    if t_sec is None:
        raise ValueError("no frame in it could be decoded")


def _decode(container: av.container.InputContainer, stream: Any, source: Source) -> Iterator[av.VideoFrame]:
    """Decodes all frames; on an error in a file it first gives those that are still in the decoder.

    A live source may lose packets, and the first ones may refer to a key frame before them: what cannot be decoded
    there is skipped.
    """
    try:
        # All of a live source is read, so that sound alone does not hide that the picture stands still.
        for packet in container.demux(None if source.live else stream):
            if source.live and source.left() <= 0:
                raise ValueError(source.stalled())
            if packet.stream.index != stream.index:
                continue
            try:
                yield from packet.decode()
            except InvalidDataError:
                if not source.live:
                    raise
    except FFmpegError as error:
        # What was read when the time was over can also look like a damaged file; the frames below renew the time.
        stalled = source.left() <= 0
        if not source.live:
            with suppress(FFmpegError):
                yield from stream.codec_context.decode(None)
        if stalled:
            raise ValueError(source.stalled()) from error
        raise


def _display_matrix(frame: av.VideoFrame) -> list[int] | None:
    """How the video is to be turned: `[a, b, _, c, d]`, with which (x, y) is shown at (a x + c y, b x + d y).

    Asked once per video: reading a frame's side data ties the frame into a reference cycle.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)[:5].tolist()


def _to_rgb(frame: av.VideoFrame, converter: VideoReformatter, matrix: list[int] | None) -> torch.Tensor:
    """The frame as a uint8 tensor `(3, height, width)`, upright: phones use quarter turns and mirrors only."""
    image = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    if matrix is not None:
        a, b, _, c, d = matrix
        if abs(b) > abs(a):
            image, a, d = image.swapaxes(0, 1), c, b
        image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def _head_and_size(source: Any) -> tuple[bytes, int | None]:
    """The first bytes of a file or buffer and its size; `None` where it cannot be known, or is no regular file."""
    if isinstance(source, str):
        if not os.path.isfile(source):
            return b"", None
        with open(source, "rb") as file:
            return file.read(64), os.path.getsize(source)
    if not hasattr(source, "read"):
        return bytes(source[:64]), len(source)
    if not source.seekable():
        return b"", None
    size = source.seek(0, io.SEEK_END)
    source.seek(0)
    return source.read(64), size


def _is_cut_off(stream, head: bytes, size: int | None) -> bool:
    """Whether the container says that there is more than the file holds. FFmpeg ends such a file without a word."""
    if size is None:
        return False
    if head.startswith(MATROSKA_EBML):
        return (_matroska_end(head) or 0) > size
    if head.startswith(b"RIFF"):
        return 8 + int.from_bytes(head[4:8], "little") > size
    entries = stream.index_entries
    return len(entries) > 0 and entries[len(entries) - 1].pos + entries[len(entries) - 1].size > size


def _matroska_end(head: bytes) -> int | None:
    """Where the segment of a Matroska or WebM file ends, in bytes; `None` if it was written without its size."""
    length, body = _matroska_size(head, len(MATROSKA_EBML))
    start = None if length is None else body + length
    if start is None or head[start : start + 4] != MATROSKA_SEGMENT:
        return None
    length, body = _matroska_size(head, start + 4)
    return None if length is None else body + length


def _matroska_size(head: bytes, at: int) -> tuple[int | None, int]:
    """The variable-length size at a position, `None` for "unknown" (all ones), and where it ends."""
    if at >= len(head) or head[at] == 0:
        return None, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), at + width
