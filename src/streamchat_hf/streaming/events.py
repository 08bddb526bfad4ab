"""What happens in a session, in the order in which it happens. Times are seconds of the stream."""

import math
from dataclasses import dataclass
from typing import Literal

from streamchat_hf.streaming.answer import Answer


@dataclass(frozen=True)
class FrameSeen:
    """The model has taken a frame over: whatever it says from now on, it has seen it.

    Attributes:
        t_sec: The frame's presentation time; of a live source, when it arrived.
        time: When it was taken over.
    """

    t_sec: float
    time: float

    @property
    def age(self) -> float:
        """Seconds between the two: what waiting and encoding took."""
        return self.time - self.t_sec


@dataclass(frozen=True)
class Silence:
    """A frame has been seen and nothing was said about it.

    Attributes:
        time: When.
    """

    time: float


@dataclass(frozen=True)
class ResponseStarted:
    """An answer begins.

    Attributes:
        question: What was asked, or the question that stands; empty if the model speaks without one.
        time: When it was asked, or when the model began.
    """

    question: str
    time: float


@dataclass(frozen=True)
class Token:
    """The model has spoken a token.

    Attributes:
        id: The token.
        text: What it adds to the text; empty for special tokens and for the first bytes of a character.
        time: When it was spoken: the moment at which the frames it could see were fixed.
        frame_time: Presentation time of the newest frame it could see; NaN before the first frame.
    """

    id: int
    text: str
    time: float
    frame_time: float

    @property
    def frame_age(self) -> float:
        """Seconds between the newest frame and the token; NaN before the first frame."""
        return self.time - self.frame_time if not math.isnan(self.frame_time) else math.nan


@dataclass(frozen=True)
class ResponseEnded:
    """An answer has ended.

    Attributes:
        answer: All of it.
        reason: `"end"` by the model itself, `"length"` at `max_new_tokens`, `"interrupted"` by a question or the end
            of the session.
    """

    answer: Answer
    reason: Literal["end", "length", "interrupted"]


Event = FrameSeen | Silence | ResponseStarted | Token | ResponseEnded
