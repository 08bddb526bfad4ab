"""How a benchmark's question reaches a model: on a clip that has ended, or while the video goes on.

official    frames of the clip ─► question ─► all that is said               no clock: a slow model loses nothing
streaming   frames by the clock ─► question ─► what is said by a deadline    a late answer is no answer

Both go through a `StreamingSession`, so what is measured is the path that a user has.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, ResponseStarted, Silence, Token
from streamchat_hf.streaming.session import StreamingSession
from streamchat_hf.streaming.words import spoken_words

PROTOCOLS = ("official", "streaming")
CLOCKS = ("simulated", "wall")
# Seconds after a question: StreamingBench counts a proactive answer as timely if it comes within so many.
DEADLINE = 2.0
# Behind a clip that has ended the clock means nothing, but a session has one.
ANY_SPEED = 1.0
# A session counts whole milliseconds; a sum of seconds may miss one by a hair.
ROUNDING = 5e-4

Row = dict[str, Any]


@dataclass(frozen=True)
class Conditions:
    """Under which conditions a model is asked.

    Attributes:
        protocol: `"official"` or `"streaming"`.
        fps: Frames per second that it sees.
        clock: `"simulated"` or `"wall"`; of `streaming` alone.
        tokens_per_second: Speed of the simulated clock; `None` for the wall clock.
        deadline: Seconds after a question by which it must be answered; of `streaming` alone.
        max_new_tokens: Where an answer is cut.

    Raises:
        ValueError: If one of them is unknown or does not go with the others.
    """

    protocol: str
    fps: float
    clock: str = "simulated"
    tokens_per_second: float | None = None
    deadline: float = DEADLINE
    max_new_tokens: int = 64

    def __post_init__(self) -> None:
        for what, value, known in (("protocol", self.protocol, PROTOCOLS), ("clock", self.clock, CLOCKS)):
            if value not in known:
                raise ValueError(f"{what}={value!r} must be one of {', '.join(known)}")
        if self.clock == "wall" and self.tokens_per_second is not None:
            raise ValueError("the wall clock has no tokens_per_second: the model speaks as fast as it can")
        if self.is_live and self.clock == "simulated" and self.tokens_per_second is None:
            raise ValueError("the simulated clock needs tokens_per_second, the speed of the machine it stands for")
        for name in ("fps", "tokens_per_second", "deadline"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value}")

    @property
    def is_live(self) -> bool:
        """Whether the video goes on while the model speaks."""
        return self.protocol == "streaming"


class Viewer(NamedTuple):
    """Who answers.

    Attributes:
        model: What a session can be held with.
        processor: Its processor.
        activation: An activation model with its processor, which says when to speak by oneself; if there is one.
    """

    model: Any
    processor: Any
    activation: tuple[Any, Any] | None = None


class Video(NamedTuple):
    """A video of a benchmark.

    Attributes:
        name: As the annotation has it.
        path: The file.
    """

    name: str
    path: Path


class Reply(NamedTuple):
    """What a model said to one question, as far as it counts.

    Attributes:
        text: All that was said in time.
        words: `[text, spoken, newest frame]` in seconds of the video, the latter `None` before the first frame.
        late: Whether it went on beyond the deadline.
    """

    text: str
    words: list[list[Any]]
    late: bool = False

    def to_dict(self) -> Row:
        """As it stands in a row of the results; `answer` is `None` if nothing was said in time."""
        return {"answer": self.text or None, "words": self.words, "late": self.late}


class Said(NamedTuple):
    """One response within a session.

    Attributes:
        start: When it began, in seconds of the video.
        end: When it had been said, without the token that ends it.
        reply: Its words.
    """

    start: float
    end: float
    reply: Reply


class Clip:
    """The frames of a video from `start` on and before `end`, in seconds, with times that count from `start`.

    Args:
        processor: The model's.
        video: The video.
        fps: Frames per second.
        start, end: Of the clip; an `end` behind that of the video is that of the video.

    Attributes:
        source: The video's name, for messages.
        live: Whether frames happen now: no.
    """

    live = False

    def __init__(self, processor: Any, video: Video, fps: float, start: float = 0.0, end: float = math.inf):
        self.source = video.name
        self._frames = processor.stream(str(video.path), fps=fps)
        self._start, self._end = start, end

    def __iter__(self) -> "Clip":
        return self

    def __next__(self) -> tuple[float, Any]:
        for t_sec, pixels in self._frames:
            if t_sec >= self._end:
                break
            if t_sec >= self._start - ROUNDING:
                return max(0.0, t_sec - self._start), pixels
        self.close()
        raise StopIteration

    @property
    def transform(self) -> Callable:
        """What makes pixels of an image; a session that has two models changes it."""
        return self._frames.transform

    @transform.setter
    def transform(self, transform: Callable) -> None:
        self._frames.transform = transform

    def close(self) -> None:
        """Closes the file."""
        self._frames.close()


class Watching:
    """A model that watches a clip under the conditions of a benchmark. A context manager.

    Args:
        viewer: Who watches.
        video: What.
        how: Under which conditions.
        start, end: The clip, in seconds of the video.
        by_itself: Whether it may speak without being asked, if it can.

    Attributes:
        speaks_by_itself: Whether it does.
    """

    def __init__(
        self,
        viewer: Viewer,
        video: Video,
        how: Conditions,
        start: float = 0.0,
        end: float = math.inf,
        by_itself: bool = False,
    ):
        self._tokenizer, self._start = viewer.processor.tokenizer, start
        self._session = StreamingSession(
            viewer.model,
            viewer.processor,
            Clip(viewer.processor, video, how.fps, start, end),
            policy=None if by_itself else "on-question",
            activation=viewer.activation if by_itself else None,
            tokens_per_second=how.tokens_per_second if how.is_live else ANY_SPEED,
            max_new_tokens=how.max_new_tokens,
            do_sample=False,
        )
        self.speaks_by_itself = self._session.policy != "on-question"

    def __enter__(self) -> "Watching":
        return self

    def __exit__(self, *_: Any) -> None:
        self._session.close()

    def ask(self, question: str, at: float | None = None) -> None:
        """Asks at a time of the video, in seconds; `None` or a time that has passed: now.

        A model that speaks by itself does not answer at once, but when it is time.
        """
        self._session.ask(question, None if at is None else at - self._start, stands=self.speaks_by_itself)

    def listen(self, until: float = math.inf) -> Iterator[Said]:
        """Yields each response as soon as it has ended, up to a time of the video, in seconds."""
        special, until = set(self._tokenizer.all_special_ids), until - self._start + ROUNDING
        tokens: list[Token] = []
        start, speaking = 0.0, False
        for event in self._session:
            if isinstance(event, ResponseStarted):
                start, tokens, speaking = event.time + self._start, [], True
            elif isinstance(event, Token):
                if event.id in special:
                    continue
                if event.time > until:
                    yield self._said(start, tokens, late=True)
                    return
                tokens.append(event)
            elif isinstance(event, ResponseEnded):
                speaking = False
                yield self._said(start, tokens)
            elif isinstance(event, FrameSeen | Silence) and event.time > until and not speaking:
                return

    def _said(self, start: float, tokens: list[Token], late: bool = False) -> Said:
        ids = [token.id for token in tokens]
        text = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        times, frame_times = ([getattr(token, name) for token in tokens] for name in ("time", "frame_time"))
        words = spoken_words(self._tokenizer, ids, times, frame_times)
        timed = [[word.text, self._seconds(word.time), self._seconds(word.frame_time)] for word in words]
        end = round(times[-1] + self._start, 3) if times else start
        return Said(start, end, Reply(text.strip(), timed, late))

    def _seconds(self, time: float) -> float | None:
        return None if math.isnan(time) else round(time + self._start, 3)


def ask_once(
    viewer: Viewer,
    video: Video,
    question: str,
    how: Conditions,
    clip: tuple[float, float],
    until: float | None = None,
) -> Reply:
    """Asks one question, in a conversation of its own.

    Args:
        viewer: Who answers.
        video: What the question is about.
        question: The prompt.
        how: Under which conditions.
        clip: (start, end) in seconds of the video. `official` shows exactly this and asks then; `streaming` begins at
            its start, asks at its end, and goes on until the deadline.
        until: The deadline of `streaming`, in seconds of the video; `None`: as the conditions have it.

    Returns:
        The answer; if nothing was said in time it has no words.

    Raises:
        StreamingError: If the video cannot be watched to the end.
    """
    start, end = clip
    if not how.is_live:
        until = math.inf
    elif until is None:
        until = end + how.deadline
    with Watching(viewer, video, how, start, math.inf if how.is_live else end) as watching:
        watching.ask(question, end)
        for said in watching.listen(until):
            return said.reply
    return Reply("", [], late=how.is_live)


def answer_row(video: Video, ask: Callable[[], Reply]) -> Row:
    """A reply as it stands in a row of the results; a video that cannot be watched leaves its error there."""
    try:
        return ask().to_dict()
    except RuntimeError as error:
        return {**Reply("", []).to_dict(), "error": watching_error(error, video)}


def watching_error(error: RuntimeError, video: Video) -> str:
    """Why a video cannot be watched, without the path; any other error is raised again."""
    if not hasattr(error, "partial"):  # a StreamingError, of whatever module
        raise error
    return str(error).replace(str(video.path), video.name)
