"""How a session has been doing: frames, ages, latencies, memory."""

import statistics
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

# Percentiles are those of the newest so many values: a session of days needs no more memory than one of minutes.
KEPT = 10_000


@dataclass(frozen=True)
class Spread:
    """Percentiles of the newest values, in seconds.

    Attributes:
        p50, p95: Half, and 19 of 20, are at most so large.
        maximum: The largest.
    """

    p50: float
    p95: float
    maximum: float


@dataclass(frozen=True)
class SessionStatistics:
    """A session's numbers so far.

    Attributes:
        seconds: Stream time that has passed.
        frames_seen: Frames pulled from the source.
        frames_encoded: How many of them were encoded.
        frames_dropped: How many were dropped by the backpressure policy.
        reconnects: How often the source was opened again.
        turns: Questions answered.
        tokens: Tokens spoken.
        tokens_per_second: By the wall clock, after the first token of an answer, over the newest tokens; what the
            caller does with an event is not counted.
        frame_age: Age of a frame when the model took it over: waiting and encoding.
        token_frame_age: Age of the newest frame behind a token. Between two frames it grows by the time that encoding
            the next one takes.
        first_token_latency: From `ask()` until the first token, by the wall clock.
        visual_bytes: Memory of the visual keys and values; constant once there is a frame.
        text_tokens: Text in the cache.
    """

    seconds: float
    frames_seen: int
    frames_encoded: int
    frames_dropped: int
    reconnects: int
    turns: int
    tokens: int
    tokens_per_second: float | None
    frame_age: Spread | None
    token_frame_age: Spread | None
    first_token_latency: Spread | None
    visual_bytes: int
    text_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values."""
        return asdict(self)


class Tally:
    """Counts while a session runs."""

    def __init__(self) -> None:
        self.turns = self.tokens = 0
        self.step_seconds: deque[float] = deque(maxlen=KEPT)
        self.frame_ages: deque[float] = deque(maxlen=KEPT)
        self.token_frame_ages: deque[float] = deque(maxlen=KEPT)
        self.latencies: deque[float] = deque(maxlen=KEPT)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of speaking, after the first of each answer; `None` before there is one."""
        return len(self.step_seconds) / sum(self.step_seconds) if self.step_seconds else None


def spread(values: deque[float]) -> Spread | None:
    """Percentiles of some values; `None` without any."""
    if not values:
        return None
    ordered = sorted(values)
    if len(ordered) == 1:
        return Spread(ordered[0], ordered[0], ordered[0])
    cuts = statistics.quantiles(ordered, n=20, method="inclusive")
    return Spread(cuts[9], cuts[18], ordered[-1])
