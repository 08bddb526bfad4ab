"""Reading frames for a running answer: under a simulated clock without threads, under the wall clock in two stages.

The wall clock's first stage *grabs* frames into a bounded queue, the only place where frames are dropped; the second
*encodes* them into ready rows, which are never dropped and are all taken by the next decoding step. If none comes, the
second stage pauses: what waits is bounded, too.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from .cache_streamchat import ReadyFrame, StreamState
from .timeline_streamchat import to_milliseconds

BACKPRESSURE = ("block", "drop_oldest", "latest")
# Frames encoded in one forward pass when many are due at once: enough to be quick, few enough for memory.
ENCODE_CHUNK = 16
# Frames that wait encoded for a decoding step before encoding pauses: two seconds of a fast camera.
MOST_READY = 64


class StreamingError(RuntimeError):
    """A stream failed while it was being watched.

    Attributes:
        partial: `(batch, length)` the tokens delivered until then, prompt included; `None` before the first step.
    """

    partial: torch.LongTensor | None = None


class FrameSource:
    """Pulls `(t_sec, pixels)` from whatever iterates, and checks each item.

    Args:
        frames: iterable of `(t_sec, pixel_values)` items, by position or attribute, or of bare `(C, H, W)` tensors.
        fps: frame rate of bare tensors.
        state: the stream's state, whose waiting frames come first.

    Attributes:
        name, live: of the source.
        pulled: frames so far.
        pulling, pulling_since: while the source is at work on its next frame, in which thread, and since when by
            `time.monotonic()`.
    """

    def __init__(self, frames, fps: float | None, state: StreamState):
        self.name = str(getattr(frames, "source", type(frames).__name__))
        self.live = bool(getattr(frames, "live", False))
        self.pulled = 0
        self.pulling: threading.Thread | None = None
        self.pulling_since: float | None = None
        self._iterator: Iterator = iter(frames)
        self._fps = fps
        self._state = state
        self._newest = None
        if not self.live and (state.waiting or state.frames_taken):
            self._newest = state.waiting[-1][0] if state.waiting else state.newest_frame_time

    def next_frame(self, now: Callable[[], int] | None = None) -> tuple | None:
        """The next frame, or `None` at the end; a live source's is stamped with the time `now()` of its arrival.

        Raises:
            StreamingError: naming source and time, if the source raises or an item does not fit.
        """
        if self._state.waiting:
            frame = self._state.waiting.popleft()
            if self.live and now is not None and frame[0] > now() / 1000:
                # It came after the last token, where the clock goes on: there it can only be from now.
                frame = frame._replace(t_sec=now() / 1000) if _is_ready(frame) else (now() / 1000, frame[1])
            return frame
        self.pulling, self.pulling_since = threading.current_thread(), time.monotonic()
        try:
            item = next(self._iterator)
        except StopIteration:
            return None
        except Exception as error:
            reason = getattr(error, "reason", error)  # an error of a video stream names its source already
            raise StreamingError(f"{self.name} failed {self.after}: {reason}") from error
        finally:
            self.pulling = self.pulling_since = None
        self.pulled += 1
        t_sec, pixels = self._read(item)
        t_sec = now() / 1000 if self.live and now is not None else self._seconds(t_sec)
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 3:
            what = tuple(pixels.shape) if hasattr(pixels, "shape") else type(pixels).__name__
            raise StreamingError(f"{self.name} at {t_sec:.3f} s: a frame must be a tensor (C, H, W), not {what}")
        shape = tuple(pixels.shape)
        if self._state.frame_shape not in (None, shape):
            raise StreamingError(
                f"{self.name} at {t_sec:.3f} s: the frame's shape changed from {self._state.frame_shape} to {shape}"
            )
        if self._newest is not None and t_sec < self._newest:
            raise StreamingError(f"{self.name}: time runs backwards, {t_sec:.3f} s after {self._newest:.3f} s")
        self._newest, self._state.frame_shape = t_sec, shape
        return t_sec, pixels

    def _read(self, item) -> tuple:
        if hasattr(item, "pixel_values"):
            return item.t_sec, item.pixel_values
        if isinstance(item, tuple) and len(item) == 2:
            return item
        if self._fps is None:
            raise StreamingError(f"{self.name}: frames without times need fps=, the rate at which they were taken")
        self._state.untimed_frames += 1
        return (self._state.untimed_frames - 1) / self._fps, item

    def _seconds(self, t_sec) -> float:
        try:
            seconds = float(t_sec)
        except (TypeError, ValueError):
            seconds = math.nan
        if not math.isfinite(seconds):
            raise StreamingError(f"{self.name} {self.after}: a frame's time must be in seconds, not {t_sec!r}")
        return seconds

    @property
    def after(self) -> str:
        """The last good frame's time, for messages."""
        return "before its first frame" if self._newest is None else f"after {self._newest:.3f} s"

    def close(self) -> None:
        """Closes the source, if it can be closed."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            # A generator may still be at work on its next frame, and a source that failed may fail at this, too.
            with contextlib.suppress(Exception):
                close()


class FrameReader:
    """Delivers a stream's frames to the decoding steps when they are due.

    Args:
        source: where frames come from.
        state: the stream's state; frames left over at the end wait there.
        encode: `encode(frames, vision_cache) -> ready frames, vision_cache`.
        policy: what a full queue does: `"block"` the source, `"drop_oldest"`, or keep the `"latest"` alone.
        device_type: where encoding runs, for autocast.
        timeout: seconds that the source may take for one frame under the wall clock.
        capacity: length of that queue, in frames.

    Attributes:
        state, encode: as given.
        live: whether the source is stamped on arrival.
        encoded: frames encoded.
        dropped: frames dropped by the policy.
    """

    def __init__(
        self,
        source: FrameSource,
        state: StreamState,
        encode: Callable,
        policy: str,
        device_type: str,
        timeout: float = 30.0,
        capacity: int = 32,
    ):
        self.encoded = self.dropped = 0
        self.live, self.state = source.live, state
        self._source, self.encode, self._policy, self._timeout = source, encode, policy, timeout
        self._capacity = 1 if policy == "latest" else capacity
        self._now: Callable[[], int] | None = None
        self._queue: deque = deque()
        self._ready: deque[ReadyFrame] = deque()
        self._error: StreamingError | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._ended = False
        self._encoding = False  # whether the encode stage may still deliver frames
        self._closed = False
        self._device_type = device_type
        self._threads: dict[str, threading.Thread] = {}

    @property
    def grabbed(self) -> int:
        """Frames pulled from the source."""
        return self._source.pulled

    @property
    def pulling(self) -> threading.Thread | None:
        """The thread that waits for the source's next frame, for as long as it takes."""
        return self._source.pulling

    def take_due(self, now: int) -> list[ReadyFrame]:
        """All frames up to `now` in milliseconds, pulled and encoded here; the first later one waits.

        Raises:
            StreamingError: if the source fails; the frames before that wait for the next call.
        """
        ready: list[ReadyFrame] = []
        due: list = []
        try:
            while (next_due := self.next_due()) is not None and next_due <= now:
                due.append(self.state.waiting.popleft())
                if len(due) == ENCODE_CHUNK:
                    ready += self._encode_now(due)
                    due = []
        except StreamingError:
            self.put_back([*ready, *due])
            raise
        return ready + self._encode_now(due)

    def next_due(self) -> int | None:
        """Time in milliseconds of the next frame, pulled if none waits; `None` at the end of the source.

        Raises:
            StreamingError: if the source fails.
        """
        if not self.state.waiting and not self._ended:
            frame = self._source.next_frame()
            if frame is None:
                self._ended = True
            else:
                self.state.waiting.append(frame)
        return to_milliseconds(self.state.waiting[0][0]) if self.state.waiting else None

    def put_back(self, frames: list) -> None:
        """Lets frames that were taken wait for the next call."""
        self.state.waiting.extendleft(reversed(frames))

    def _encode_now(self, frames: list) -> list[ReadyFrame]:
        # Frames that waited since the last call may have been encoded then; they come first.
        ready, raw = [f for f in frames if _is_ready(f)], [f for f in frames if not _is_ready(f)]
        if raw:
            try:
                encoded, self.state.vision_cache = self.encode(raw, self.state.vision_cache)
            except Exception as error:
                where = f"{self._source.name} at {raw[0][0]:.3f} s"
                raise StreamingError(f"{where}: encoding failed: {error}") from error
            ready += encoded
            self.encoded += len(encoded)
        return ready

    def start(self, now: Callable[[], int]) -> None:
        """Starts both stages; `now()` is the wall clock in milliseconds of stream time."""
        with self._changed:  # so that `close()`, from another thread or from the source, finds both running or neither
            if self._ended or self._stop.is_set():
                return
            self._now, self._encoding = now, True
            self._threads = {
                name: threading.Thread(target=self._guard, args=(name, stage), name=f"streamchat {name}", daemon=True)
                for name, stage in (("grab", self._grab), ("encode", self._like_caller(self._encode_loop)))
            }
            for thread in self._threads.values():
                thread.start()

    def take_ready(self) -> list[ReadyFrame]:
        """All frames encoded since the last call, without waiting.

        Raises:
            StreamingError: once the frames before a failure have been taken.
        """
        with self._changed:
            ready = list(self._ready)
            self._ready.clear()
            self._changed.notify_all()  # encoding may go on
            if not ready and self._error is not None and not self._encoding:
                raise self._error
            if not ready and self._patience() <= 0:
                where = f"{self._source.name} {self._source.after}"
                raise StreamingError(f"{where}: no frame arrived within {self._timeout:g} s")
        return ready

    def wait_for_first(self) -> None:
        """Waits until a frame is ready, the source has ended or failed.

        Raises:
            StreamingError: if nothing arrives in time.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._ready or not self._encoding, self._timeout):
                raise StreamingError(f"{self._source.name}: no frame arrived within {self._timeout:g} s")

    def wait(self, interrupted: Callable[[], bool], timeout: float | None) -> None:
        """Waits until a frame is ready or overdue, the source is over, or `timeout` seconds have passed.

        A `wake()` that finds `interrupted()` true ends it, too.
        """
        limits = [limit for limit in (timeout, self._patience()) if limit is not None]
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or not self._encoding or interrupted(), min(limits, default=None)
            )

    def wake(self) -> None:
        """Lets `wait` look at `interrupted()` again."""
        with self._changed:
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        """Whether every frame of the source has been taken."""
        return not self._encoding and not self._ready and self._error is None

    def _patience(self) -> float:
        """Seconds left until the frame being pulled is overdue."""
        since = self._source.pulling_since
        return self._timeout if since is None else since + self._timeout - time.monotonic()

    def close(self, timeout: float = 5.0) -> None:
        """Stops both stages; frames that no step has taken wait in the stream's state for the next call.

        A source that hangs is left behind after `timeout` seconds; what it still delivers then waits there, too.
        """
        self._stop.set()
        with self._changed:
            threads = self._threads
            self._changed.notify_all()
        for name, thread in threads.items():
            if thread is not threading.current_thread():  # a source may close who reads it
                # Only the source can hang; the frame being encoded is part of the vision tower's state already.
                thread.join(timeout if name == "grab" else None)
        with self._changed:
            # Whoever closes next waits for what is left.
            self._threads = {name: thread for name, thread in threads.items() if thread.is_alive()}
            self.state.waiting.extendleft(reversed([*self._ready, *self._queue]))
            self._ready.clear()
            self._queue.clear()
            self._closed = True

    def close_source(self) -> None:
        """Closes the source itself, after it failed."""
        self._source.close()

    def _guard(self, name: str, stage: Callable[[], None]) -> None:
        failure = None
        try:
            stage()
        except BaseException as error:  # or a source that calls `sys.exit` would be waited for
            reason = str(error) or type(error).__name__
            failure = error if isinstance(error, StreamingError) else StreamingError(f"{self._source.name}: {reason}")
        with self._changed:
            self._error = self._error or failure
            if name == "encode":
                self._encoding = False
            self._changed.notify_all()

    def _grab(self) -> None:
        while not self._stop.is_set():
            frame = self._source.next_frame(self._now)
            if frame is None:
                break
            if not self.live:
                self._wait_until(to_milliseconds(frame[0]))
            self._enqueue(frame)
        with self._changed:
            self._ended = not self._stop.is_set()
            self._changed.notify_all()

    def _wait_until(self, due: int) -> None:
        while (wait := due - self._now()) > 0:
            if self._stop.wait(wait / 1000):
                return

    def _enqueue(self, frame) -> None:
        with self._changed:
            if self._policy == "block":
                self._changed.wait_for(lambda: len(self._queue) < self._capacity or self._stop.is_set())
            # Once stopped, nothing is dropped any more: all that is here waits for the next call.
            while len(self._queue) >= self._capacity and not self._stop.is_set():
                self._queue.popleft()
                self.dropped += 1
            (self.state.waiting if self._closed else self._queue).append(frame)
            self._changed.notify_all()

    def _encode_loop(self) -> None:
        def may_go_on() -> bool:
            if self._stop.is_set():
                return True
            return len(self._ready) < MOST_READY if self._queue else bool(self._ended or self._error)

        while True:
            with self._changed:
                self._changed.wait_for(may_go_on)
                if self._stop.is_set() or not self._queue:
                    return
                frame = self._queue.popleft()
                self._changed.notify_all()
            ready = self._encode_now([frame])
            with self._changed:
                self._ready.extend(ready)
                self._changed.notify_all()

    def _like_caller(self, stage: Callable[[], None]) -> Callable[[], None]:
        # Autocast and gradient mode are thread-local: a new thread starts without either.
        enabled = torch.is_autocast_enabled(self._device_type)
        dtype = torch.get_autocast_dtype(self._device_type)

        def run() -> None:
            with torch.no_grad(), torch.autocast(self._device_type, dtype=dtype, enabled=enabled):
                stage()

        return run


def _is_ready(frame) -> bool:
    """Whether a frame has been encoded; pixels come as a plain tuple."""
    return getattr(frame, "is_ready", False)


class StreamTime:
    """Stream time in integer milliseconds that follows the wall clock from `start`."""

    def __init__(self, start: int):
        self._origin = time.monotonic() - start / 1000

    def __call__(self) -> int:
        """Now, in milliseconds of stream time."""
        return to_milliseconds(time.monotonic() - self._origin)
