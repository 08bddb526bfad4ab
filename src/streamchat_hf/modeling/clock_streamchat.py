"""The clock of a stream: when each token is spoken, and which frames have arrived by then.

A clock owns the readers of its streams. `generate` makes one for a call; a session keeps one for its whole life and
shows frames between the turns, too. All times are integer milliseconds of stream time.
"""

import time
from collections.abc import Callable
from typing import Any

from .cache_streamchat import ReadyFrame
from .reader_streamchat import BACKPRESSURE, FrameReader, FrameSource, StreamingError, StreamTime

# Frames of every stream, and the moment at which they are taken over.
Arrivals = tuple[list[list[ReadyFrame]], int]


class SimulatedClock:
    """Answer token `i` is spoken at `start + i / tokens_per_second` and sees exactly the frames up to then. No thread.

    Args:
        readers: one [`FrameReader`] per stream.
        tokens_per_second: speed of speech.
    """

    def __init__(self, readers: list[FrameReader], tokens_per_second: float):
        self.readers, self.tokens_per_second = readers, tokens_per_second
        self._start, self._step, self._now = 0, 0, 0

    def now(self) -> int:
        """Time of the last token, question or frame."""
        return self._now

    def start(self, at: int) -> None:
        """Begins at `at`."""
        self._now = at

    def ask(self, start: int) -> None:
        """Begins a turn whose question is asked at `start`."""
        self._start, self._step, self._now = start, 0, start

    def next_step(self) -> Arrivals:
        """What the step that speaks the next token takes over, and when it speaks."""
        now = self.next_token()
        return _take_all(self.readers, lambda reader: reader.take_due(now)), now

    def next_token(self) -> int:
        """When the next token is spoken, for a model that takes no frames over while it speaks: they wait."""
        self._now = self._start + round(self._step * 1000 / self.tokens_per_second)
        self._step += 1
        return self._now

    def watch(self, until: int | None, interrupted: Callable[[], bool]) -> Arrivals | None:
        """The next frames of the stream, in silence: none once `until` has come, `None` at its end."""
        [reader] = self.readers
        due = reader.next_due()
        if until is not None and (due is None or due > until):
            self._now = max(self._now, until)
            return [[]], self._now
        if due is None:
            return None
        self._now = max(self._now, due)
        return [reader.take_due(self._now)], self._now

    def wake(self) -> None:
        """Nothing waits here."""

    def close(self, timeout: float = 5.0) -> None:
        """Leaves the frames that were pulled and not taken to the next call."""
        for reader in self.readers:
            reader.close(timeout)


class WallClock:
    """Time runs by itself: a step takes over what is ready and waits for nothing but the first frame.

    Args:
        readers: one [`FrameReader`] per stream.
    """

    def __init__(self, readers: list[FrameReader]):
        self.readers = readers
        self._time: StreamTime | None = None
        self._earliest = 0
        self._past: list[list[ReadyFrame]] = [[] for _ in readers]

    def start(self, at: int) -> None:
        """Lets time run from `at`. What a file shows up to then lies in the past and is read before."""
        if self._time is None:
            self._past = _take_all(self.readers, lambda reader: [] if reader.live else reader.take_due(at))
            self._time = StreamTime(at)
            for reader in self.readers:
                reader.start(self._time)

    def now(self) -> int:
        """Time that has passed, but never before a token already spoken."""
        return self._earliest if self._time is None else max(self._time(), self._earliest)

    def ask(self, start: int) -> None:
        """Begins a turn whose question is asked at `start`."""
        self.start(start)
        self._earliest = max(self._earliest, start)

    def next_step(self) -> Arrivals:
        """What the step that speaks the next token takes over, and when it speaks."""
        frames = self._take_arrived()
        for reader, arrived in zip(self.readers, frames, strict=True):
            if not arrived and not reader.state.frames_taken:
                reader.wait_for_first()
                arrived += reader.take_ready()
        return frames, self._moment(frames)

    def next_token(self) -> int:
        """When the next token is spoken, for a model that takes no frames over while it speaks: they wait."""
        return self._moment([])

    def watch(self, until: int | None, interrupted: Callable[[], bool]) -> Arrivals | None:
        """Waits in silence for frames: none once `until` has come or `interrupted()` is true, `None` at the end."""
        [reader] = self.readers
        while True:
            frames = self._take_arrived()
            wait = None if until is None else (until - self.now()) / 1000
            if any(frames) or interrupted() or (wait is not None and wait <= 0):
                return frames, self._moment(frames)
            if not reader.over:
                reader.wait(interrupted, wait)
            elif wait is None:
                return None
            else:
                time.sleep(min(wait, 0.05))

    def wake(self) -> None:
        """Lets `watch` look at `interrupted()` again."""
        for reader in self.readers:
            reader.wake()

    def close(self, timeout: float = 5.0) -> None:
        """Ends the readers; frames that no step has taken wait for the next call.

        A source that hangs for more than `timeout` seconds is left behind.
        """
        for reader, past in zip(self.readers, self._past, strict=True):
            reader.close(timeout)
            reader.put_back(past)
        self._past = [[] for _ in self.readers]

    def _take_arrived(self) -> list[list[ReadyFrame]]:
        past, self._past = self._past, [[] for _ in self.readers]
        new = _take_all(self.readers, FrameReader.take_ready)
        return [before + after for before, after in zip(past, new, strict=True)]

    def _moment(self, frames: list[list[ReadyFrame]]) -> int:
        # A frame's takeover must come after the step before it, or a replay could not tell which step saw it first.
        self._earliest = max(self._time(), self._earliest + int(any(frames)))
        return self._earliest


def open_clock(
    streams: list,
    states: list,
    encode: Callable,
    device_type: str,
    fps: float | None = None,
    tokens_per_second: float | None = None,
    backpressure: str = "block",
    frame_timeout: float = 30.0,
) -> Any:
    """The clock that shows frames to streams; the last four arguments are those of `generate`.

    Args:
        streams: an iterable of frames for each stream.
        states: the [`StreamState`] of each.
        encode: `encode(frames, vision_cache) -> ready frames, vision_cache`.
        device_type: where encoding runs, for autocast.

    Returns:
        A [`SimulatedClock`] or, without `tokens_per_second`, a [`WallClock`].

    Raises:
        ValueError: if an argument is out of range.
    """
    if tokens_per_second is not None and not tokens_per_second > 0:
        raise ValueError(f"tokens_per_second={tokens_per_second} must be positive, or None for the wall clock")
    if backpressure not in BACKPRESSURE:
        raise ValueError(f"backpressure={backpressure!r} must be one of {', '.join(BACKPRESSURE)}")
    readers = [
        FrameReader(FrameSource(stream, fps, state), state, encode, backpressure, device_type, frame_timeout)
        for stream, state in zip(streams, states, strict=True)
    ]
    return WallClock(readers) if tokens_per_second is None else SimulatedClock(readers, tokens_per_second)


def _take_all(readers: list[FrameReader], take: Callable) -> list[list[ReadyFrame]]:
    """Frames of every stream; if one fails, those that the others gave wait in their states."""
    taken: list[list[ReadyFrame]] = []
    try:
        for reader in readers:
            taken.append(take(reader))
    except StreamingError:
        for reader, frames in zip(readers, taken, strict=False):
            reader.put_back(frames)
        raise
    return taken
