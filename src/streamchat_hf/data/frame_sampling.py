"""Which frames of a video a training sample shows, read without decoding what lies before them.

A rate of frames per second cuts time into ticks `k / fps`. At each tick the frame kept is the first one at or after
it, and none is kept twice: this is what [`VideoStream`] does with `fps`, so a stream of the same file at that rate
shows the same frames at the same times.
"""

import itertools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.error import FFmpegError
from transformers.image_utils import load_image

from streamchat_hf.processing.frames_streamchat import (
    TICK_TOLERANCE,
    VideoFrame,
    _head_and_size,
    _is_cut_off,
    _read_container,
    read_images,
    to_image_tensor,
)
from streamchat_hf.processing.sources_streamchat import Source, VideoStreamError, open_container, reason

# A question needs a frame to look at, its answer another one, and ticks do not begin where an interval does.
FEWEST_FRAMES = 3


@dataclass(frozen=True)
class Ticks:
    """Ticks `first` to `last`, both included, of `fps` per second.

    Attributes:
        fps: Ticks per second.
        first: Number of the first tick; tick `k` is at `k / fps` seconds.
        last: Number of the last one.
    """

    fps: float
    first: int
    last: int

    @classmethod
    def spanning(cls, start: float, end: float, fps: float) -> "Ticks":
        """The ticks whose frames are seen from `start` to `end`, in seconds.

        The first one lies before `start` or, at 0, on it, so that something can be seen at once.
        """
        return cls(fps, max(math.ceil(start * fps) - 1, 0), math.floor(end * fps))

    @classmethod
    def ending(cls, start: float, end: float, fps: float, max_frames: int) -> "Ticks":
        """The ticks up to `end` that a sample shows whose first question comes at `start`, both in seconds.

        Of those before the question, as many as there is room for; and fewer per second if even the talk itself takes
        more than `max_frames`.

        Raises:
            ValueError: If `max_frames` is less than 3 or the interval ends before it starts.
        """
        if max_frames < FEWEST_FRAMES:
            raise ValueError(f"max_frames={max_frames} is too few to show an interval: give at least {FEWEST_FRAMES}")
        if end < start:
            raise ValueError(f"the interval ends before it starts: {start:g} to {end:g} s")
        ticks = cls.spanning(start, end, fps)
        if ticks.number > max_frames:
            ticks = cls.spanning(start, end, (max_frames - 2) / (end - start))
        return cls(ticks.fps, max(ticks.last - max_frames + 1, 0), ticks.last)

    @property
    def number(self) -> int:
        """How many ticks there are."""
        return self.last - self.first + 1

    def of(self, t_sec: float) -> int:
        """The number of the newest tick at `t_sec` seconds."""
        return math.floor((t_sec + TICK_TOLERANCE) * self.fps)


def read_ticks(media: str, ticks: Ticks) -> Iterator[VideoFrame]:
    """Reads the first frame at or after each tick, from the key frame before the first one on.

    Args:
        media: A file, or anything else that [`VideoStream`] reads to its end; only a file is not read from its start.
        ticks: Which to read.

    Yields:
        Frames with uint8 pixels `(3, height, width)` and their times in seconds, those a stream has. A video that ends
        early gives fewer.

    Raises:
        VideoStreamError: Naming media and time, if it is missing, broken or cut off.
    """
    newest = None
    try:
        for t_sec, load in _kept(media, ticks):
            newest = t_sec
            yield VideoFrame(t_sec, load())
    except (OSError, ValueError, FFmpegError) as error:
        raise VideoStreamError(media, newest, reason(error)) from error


def read_spread(media: str, count: int) -> Iterator[VideoFrame]:
    """Reads `count` frames spread evenly over a whole video, or all if it has no more, as [`read_ticks`] does."""
    try:
        duration = _duration(media)
    except (OSError, ValueError, FFmpegError) as error:
        raise VideoStreamError(media, None, reason(error)) from error
    return read_ticks(media, Ticks(count / duration, 0, count - 1))


def read_still(media: str) -> Iterator[VideoFrame]:
    """Reads an image, from a file or URL, as a video of one frame at 0.0.

    Raises:
        VideoStreamError: Naming it, if it is missing or broken.
    """
    try:
        image = to_image_tensor(load_image(media))
    except (OSError, ValueError) as error:
        raise VideoStreamError(media, None, reason(error)) from error
    yield VideoFrame(0.0, image)


def _kept(media: str, ticks: Ticks) -> Iterator[tuple[float, Any]]:
    if not os.path.isfile(media):
        for t_sec, load in read_images(media, ticks.fps):
            if ticks.of(t_sec) > ticks.last:
                return
            if ticks.of(t_sec) >= ticks.first:
                yield t_sec, load
        return
    source = Source(media)
    with open_container(media) as container:
        stream = container.streams.best("video")
        if stream is None:
            raise ValueError("there is no video stream in it")
        wanted = ticks.first
        while wanted <= ticks.last:
            for t_sec, load in _read_from(container, source, wanted / ticks.fps):
                tick = ticks.of(t_sec)
                if tick > ticks.last:
                    return
                if tick >= wanted:
                    yield t_sec, load
                    wanted = tick + 1
                    if wanted > ticks.last or _key_frame_between(container, t_sec, wanted / ticks.fps):
                        break  # what lies before that key frame need not be decoded
            else:
                if _is_cut_off(stream, *_head_and_size(media)):
                    raise ValueError("the file is cut off here")
                return


def _read_from(container: Any, source: Source, t_sec: float) -> Iterator[tuple[float, Any]]:
    """Frames `(t_sec, load)` from a key frame at or before `t_sec` seconds on, or from the start."""
    # Some containers find a key frame by its time of decoding, which is earlier than when it is shown, and some only
    # near the place: whether it came too late is seen in the frame, and then a place further back is tried.
    back = 0.0
    while _can_seek(container) and back <= t_sec:
        _seek(container, t_sec - back)
        frames = _read_container(container, source)
        first = _first_or_none(frames)
        if first is not None and first[0] <= t_sec:
            yield from itertools.chain([first], frames)
            return
        back = 2 * back + 1.0
    with open_container(source.given) as fresh:
        yield from _read_container(fresh, source)


def _first_or_none(frames: Iterator[tuple[float, Any]]) -> tuple[float, Any] | None:
    try:
        return next(frames, None)
    except (ValueError, FFmpegError):  # nothing can be decoded from there on; perhaps from further back
        return None


def _can_seek(container: Any) -> bool:
    # Elementary streams have no times, and those of AVI are counted from the first frame.
    return container.format.name != "avi" and container.streams.best("video").start_time is not None


def _seek(container: Any, t_sec: float) -> None:
    stream = container.streams.best("video")
    container.seek(_stamp(stream, t_sec), stream=stream)


def _stamp(stream: Any, t_sec: float) -> int:
    return stream.start_time + int(Fraction(t_sec) / stream.time_base)


def _key_frame_between(container: Any, now: float, then: float) -> bool:
    """Whether the container's index names a key frame after `now` and not after `then`, in seconds."""
    stream = container.streams.best("video")
    entries = stream.index_entries
    if not _can_seek(container) or len(entries) == 0:
        return False
    found = entries.search_timestamp(_stamp(stream, then))
    return found >= 0 and entries[found].timestamp > _stamp(stream, now)


def _duration(media: str) -> float:
    """Seconds that a video lasts, up to the end of its last frame."""
    if os.path.isfile(media):
        with open_container(media) as container:
            stream = container.streams.best("video")
            if stream is not None and stream.duration:
                return float(stream.duration * stream.time_base)
            if container.duration:
                return container.duration / av.time_base
    times = [t_sec for t_sec, _ in read_images(media)]
    if not times:
        raise ValueError("it has no frames")
    return times[-1] * len(times) / max(len(times) - 1, 1) or 1.0
