"""Writes down what a session saw and when, and plays it back to the same tokens.

A recording is a folder: `events.jsonl`, a line for each thing that happened, and `frames/`, the times and pixels of
the frames as the model got them, a file for each time that it encoded some. Times are seconds of the stream.
"""

import json
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

EVENTS, FRAMES = "events.jsonl", "frames"
# What is said about each kind of event, besides its time.
KINDS: dict[str, dict[str, type]] = {
    "question": {"text": str},
    "standing": {"text": str},
    "silence": {"frames": list},
    "token": {"frames": list, "token": int},
}


class Recorder:
    """Writes a session into a folder while it runs.

    Args:
        folder: Where; made if it does not exist.

    Raises:
        FileExistsError: If the folder holds a recording already.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        (self._folder / FRAMES).mkdir(parents=True, exist_ok=True)
        self._lines = open(self._folder / EVENTS, "x", encoding="utf-8", buffering=1)  # noqa: SIM115 - closed by close()
        self._encoded = 0

    def observe(self, encode: Callable) -> Callable:
        """Wraps `encode(frames, vision_cache)` so that its frames are kept, in order."""

        def observed(frames: list, vision_cache: Any) -> Any:
            kept = {
                "times": torch.tensor([float(frame[0]) for frame in frames], dtype=torch.float64),
                "pixel_values": torch.stack([frame[1] for frame in frames]),
            }
            save_file(kept, _frames_file(self._folder, self._encoded))
            self._encoded += 1
            return encode(frames, vision_cache)

        return observed

    def question(self, text: str, time: float, stands: bool = False) -> None:
        """A question was asked, to be answered at once or one that stands."""
        self._write(kind="standing" if stands else "question", time=time, text=text)

    def watched(self, time: float, frame_times: list[float]) -> None:
        """Frames were taken over in silence."""
        self._write(kind="silence", time=time, frames=frame_times)

    def spoke(self, time: float, frame_times: list[float], token: int) -> None:
        """A token was spoken at a time, after frames were taken over."""
        self._write(kind="token", time=time, frames=frame_times, token=token)

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def _write(self, **event: Any) -> None:
        self._lines.write(json.dumps(event) + "\n")


class Recording:
    """A session that was recorded, as the source of a new one: it brings its own clock and its own questions.

    What is said again is the same if model, processor, system prompt and the options of `generate` are the same.

    Args:
        folder: What a [`Recorder`] has written.

    Attributes:
        source: The folder's name, for messages.
        events: What happened, in order: `{"kind": "question" | "standing" | "silence" | "token", "time": ..., ...}`.

    Raises:
        FileNotFoundError: If there is no recording in the folder.
        ValueError: If one of its lines is damaged.
    """

    def __init__(self, folder: str | Path):
        self._folder = Path(folder)
        self.source = self._folder.name
        self.events: list[dict[str, Any]] = []
        with open(self._folder / EVENTS, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    self.events.append(_read_event(line, self.events[-1]["time"] if self.events else -math.inf))
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(f"{self._folder / EVENTS}, line {number}, is no event: {error}") from error

    @property
    def tokens(self) -> list[int]:
        """Every token that was spoken, in order."""
        return [event["token"] for event in self.events if event["kind"] == "token"]

    def frames(self, number: int) -> list[tuple[float, torch.Tensor]]:
        """The frames `(t_sec, pixel_values (C, H, W))` that were encoded together, as the session's `number`-th.

        Raises:
            ValueError: If their file is missing or damaged.
        """
        path = _frames_file(self._folder, number)
        try:
            kept = load_file(path)
            return list(zip(kept["times"].tolist(), kept["pixel_values"], strict=True))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"{path} does not hold the frames that were recorded: {error}") from error


def _frames_file(folder: Path, number: int) -> Path:
    return folder / FRAMES / f"{number:08d}.safetensors"


def _read_event(line: bytes, earliest: float) -> dict[str, Any]:
    event = json.loads(line.decode())
    if not isinstance(event, dict):
        raise ValueError(f"{event!r} is no object")
    if event["kind"] not in KINDS:
        raise ValueError(f"kind {event['kind']!r} must be one of {', '.join(KINDS)}")
    for name, kind in KINDS[event["kind"]].items():
        if not isinstance(event[name], kind):
            raise ValueError(f"{name} is {event[name]!r}")
    times = [float(time) for time in (event["time"], *event.get("frames", []))]
    if not all(map(math.isfinite, times)):
        raise ValueError(f"{times} are not times")
    if times[0] < earliest:
        raise ValueError(f"time runs backwards, from {earliest} s to {times[0]} s")
    return event


class RecordedFrames:
    """Encodes the frames of a recording again, as they were encoded then.

    Attributes:
        encode: `encode(frames, vision_cache) -> ready frames, vision_cache`.
        grabbed, encoded, dropped: how many frames so far; nothing is dropped.
        pulling: what waits for a source; there is none.
    """

    pulling = None

    def __init__(self, recording: Recording, encode: Callable, state: Any):
        self.encode = encode
        self.grabbed = self.encoded = self.dropped = 0
        self._recording, self._state = recording, state
        self._chunks = 0
        self._ready: deque = deque()

    def take(self, times: list[float]) -> list:
        """The next frames, of which the times are known.

        Raises:
            ValueError: If they are not in the recording.
        """
        taken = []
        for t_sec in times:
            if not self._ready:
                self._encode_next()
            taken.append(self._ready.popleft())
            if taken[-1].t_sec != t_sec:
                source = self._recording.source
                raise ValueError(f"{source}: a frame of {t_sec} s was seen, but one of {taken[-1].t_sec} s is kept")
        return taken

    def _encode_next(self) -> None:
        chunk = self._recording.frames(self._chunks)
        ready, self._state.vision_cache = self.encode(chunk, self._state.vision_cache)
        self._ready.extend(ready)
        self._chunks += 1
        self.grabbed = self.encoded = self.encoded + len(chunk)

    def close(self, timeout: float = 0.0) -> None:
        """Nothing is open."""

    def close_source(self) -> None:
        """Nothing is open."""


class RecordedClock:
    """The clock of a recording: every step sees what it saw then, and speaks when it spoke.

    Args:
        recording: What to play back.
        model: The model; its `encode_frames` is used.
        cache: The conversation's state, of one stream.
        ask: Called with each recorded question, its time and whether it stands, when it is its turn.
    """

    def __init__(self, recording: Recording, model: Any, cache: Any, ask: Callable[[str, float, bool], None]):
        self._frames = RecordedFrames(recording, model.encode_frames, cache.streams[0])
        self.readers = [self._frames]
        self._ask = ask
        self._events = deque(recording.events)
        self._now = 0

    @property
    def answer_over(self) -> bool:
        """Whether the answer said no more then."""
        return not self._events or self._events[0]["kind"] != "token"

    @property
    def over(self) -> bool:
        """Whether nothing more happened then."""
        return not self._events

    def now(self) -> int:
        """Time of the last event, in milliseconds."""
        return self._now

    def start(self, at: int) -> None:
        """Begins at `at`."""
        self._now = at

    def ask(self, start: int) -> None:
        """Begins a turn; when its tokens are spoken is written in the recording."""

    def next_step(self) -> tuple[list[list], int]:
        """Frames and time of the next token that was spoken."""
        return self._take(self._events.popleft())

    def next_token(self) -> int:
        """Time of the next token that was spoken, without frames; now, if none was."""
        return self._now if self.answer_over else self.next_step()[1]

    def watch(self, until: int | None, interrupted: Callable[[], bool]) -> tuple[list[list], int] | None:
        """The next frames that were seen in silence; none when a question follows, `None` at the end."""
        if not self._events:
            return None
        event = self._events.popleft()
        if "text" not in event:
            # A token here means that the model has said less than it did then. Its frames are seen all the same.
            return self._take(event)
        self._now = round(event["time"] * 1000)
        stands = event["kind"] == "standing"
        if stands or not self.answer_over:  # or the recording ended before the first word of the answer
            self._ask(event["text"], event["time"], stands)
        return [[]], self._now

    def wake(self) -> None:
        """Nothing waits here."""

    def close(self, timeout: float = 0.0) -> None:
        """Nothing is open."""

    def _take(self, event: dict[str, Any]) -> tuple[list[list], int]:
        self._now = round(event["time"] * 1000)
        return [self._frames.take(event["frames"])], self._now
