"""A row of streaming dialogue (VideoLLM-online, 2406.11816): who says what after how many frames, and what is learned.

Frames are messages among messages: a run of frames that the assistant watches in silence is a message of the role
"stream". What is said at some time in seconds is laid out on the frames with `lay_out`: a question comes after the
newest frame that was there, an answer after the first frame that shows what it tells.
"""

from __future__ import annotations

import bisect
import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, NotRequired, Required, TypedDict

from streamchat_hf.data.streamworld import World

Role = Literal["system", "user", "assistant", "stream"]

# Who may follow whom. The chat template writes a text for each of these pairs; two streams in a row are one.
FOLLOWERS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user", "stream"),
    "system": ("user", "stream"),
    "user": ("user", "assistant", "stream"),
    "assistant": ("user", "stream"),
    "stream": ("user", "assistant"),
}


class LiveMessage(TypedDict, total=False):
    """One message of a conversation.

    Attributes:
        role: Who speaks; `"stream"` is a run of frames.
        content: The words; not of a stream.
        num_frames: Of a stream, at least 1.
        learn: Of an assistant's message, whether its words are targets. Of a stream, which of its frames are: `True`
            all of them (after the last one the assistant speaks), a number the first that many (silence), else none.
        time: Seconds of the video when it is said: that of the newest frame.
    """

    role: Required[Role]
    content: str
    num_frames: int
    learn: bool | int
    time: float


class Clip(NamedTuple):
    """A video within a joined one.

    Attributes:
        path: Of its file.
        begin: When its first frame is seen, in seconds of the joined video.
    """

    path: str
    begin: float


class LiveSample(TypedDict):
    """A row of training data.

    Attributes:
        conversation: The messages.
        frame_times: Seconds of the video, ascending; one for each frame of all streams.
        media: Path of the video, or the clips that it is joined of, or `None` with a world.
        world: What the frames show, if it is a StreamWorld.
    """

    conversation: list[LiveMessage]
    frame_times: list[float]
    media: str | tuple[Clip, ...] | None
    world: NotRequired[World]


class LiveTurn(NamedTuple):
    """What somebody says after how many frames.

    Attributes:
        role: `"user"` or `"assistant"`.
        content: The words.
        seen: How many frames came before; 0 is before the first.
    """

    role: Role
    content: str
    seen: int


@dataclass(frozen=True)
class LiveQuery:
    """A question and what there is to say to it whenever the state of things changes.

    Attributes:
        text: The question.
        answers: `(time, text)`, times in seconds and ascending. Each is true from its time until the next one's.
    """

    text: str
    answers: tuple[tuple[float, str], ...]


def snap_to_fps(
    time: float, fps: float, rounding: Callable[[float], int] = round, start: float = 0.0, end: float = math.inf
) -> float:
    """Return the time of a frame.

    Args:
        time: Seconds.
        fps: Frames per second; frame i is at `i / fps`.
        rounding: `math.floor` for the frame that a question comes after, `math.ceil` for the first frame that shows
            what happens at `time`, or `round`.
        start: The earliest result in seconds.
        end: The latest result in seconds.
    """
    # A time that was a frame's own before it was computed with is still that frame's.
    return min(max(rounding(round(time * fps, 6)) / fps, start), end)


def frame_grid(start: float, end: float, fps: float) -> list[float]:
    """Return the times in seconds, whole milliseconds, of the frames from the one shown at `start` up to `end`."""
    first = math.floor(round(start * fps, 6))
    last = max(math.floor(round(end * fps, 6)), first)
    return [round(1000 * i / fps) / 1000 for i in range(first, last + 1)]


def last_frame(duration: float, fps: float) -> float:
    """Return the time in seconds of the last frame of a video: the last that begins before its end."""
    return max(math.ceil(round(duration * fps, 6)) - 1, 0) / fps


def seen_when_asked(frame_times: Sequence[float], time: float) -> int:
    """Return how many frames somebody has seen who asks at `time`."""
    return bisect.bisect_right(frame_times, time)


def seen_to_tell(frame_times: Sequence[float], time: float) -> int:
    """Return how many frames it takes to see what happens at `time`; one more than there are if none shows it."""
    return bisect.bisect_left(frame_times, time) + 1


def lay_out(turns: Iterable[LiveTurn], frame_times: Sequence[float]) -> list[LiveMessage]:
    """Put turns and frames in the order in which they come, and mark what is learned.

    All answers are learned, and all frames before an answer: silence, then after the last of them to speak. Of frames
    before a question the last one is not learned, since nobody can know that a question comes; nor is the last frame
    of all, after which nothing is known.

    Args:
        turns: In order; `seen` never decreases.
        frame_times: Of all frames, in seconds.

    Raises:
        ValueError: If turns go backwards, need more frames than there are, or are two answers at one frame.
    """
    conversation: list[LiveMessage] = []
    done = 0
    for turn in turns:
        if not done <= turn.seen <= len(frame_times):
            raise ValueError(f"{turn} comes after {done} of {len(frame_times)} frames")
        speaks = turn.role == "assistant"
        conversation += _stream(turn.seen - done, speaks)
        done = turn.seen
        last = conversation[-1]["role"] if conversation else None
        if turn.role not in FOLLOWERS[last]:
            raise ValueError(f"{turn} cannot come right after {last or 'the beginning'}: there is no frame between")
        message = LiveMessage(role=turn.role, content=turn.content, learn=speaks)
        if frame_times:
            message["time"] = frame_times[max(done - 1, 0)]
        conversation.append(message)
    return conversation + _stream(len(frame_times) - done, speaks=False)


def _stream(frames: int, speaks: bool) -> list[LiveMessage]:
    return [LiveMessage(role="stream", num_frames=frames, learn=speaks or frames - 1)] if frames else []


def learned_frames(message: LiveMessage) -> int:
    """Return how many frames of a stream are learned: the first that many."""
    learn = message.get("learn", False)
    return message["num_frames"] if learn is True else int(learn)


def merge_streams(conversation: Iterable[LiveMessage]) -> list[LiveMessage]:
    """Write streams that follow each other as one.

    Learned are the frames up to the first that was not: a stream learns its first frames and no others. No frame
    inside a run of frames is one after which the assistant speaks.
    """
    merged: list[LiveMessage] = []
    for message in conversation:
        if merged and message["role"] == merged[-1]["role"] == "stream":
            before, frames = merged.pop(), message["num_frames"]
            learned = learned_frames(before)
            if learned == before["num_frames"]:
                learned += learned_frames(message)
            frames += before["num_frames"]
            message = LiveMessage(role="stream", num_frames=frames, learn=learned == frames or learned)
        merged.append(message)
    return merged


def check_sample(sample: LiveSample) -> None:
    """Make sure that a row can be trained on.

    Raises:
        ValueError: For messages that cannot follow each other (`FOLLOWERS`), a wrong or missing field, a number of
            frames other than that of `frame_times`, times that go backwards, a frame that is taught to speak and not
            followed by an answer, or a row without both video and world; it names the message.
    """
    role: str | None = None
    frames, clock = 0, -math.inf
    for i, message in enumerate(sample["conversation"]):
        try:
            _check_message(message, role)
            clock = _check_time(message.get("time", clock), clock)
        except ValueError as error:
            raise ValueError(f"message {i} of the conversation: {error}") from None
        if role == "stream" and message["role"] == "user":
            _check_silence(sample["conversation"][i - 1], i - 1, "a question, which nobody can foresee")
        role = message["role"]
        frames += message.get("num_frames", 0)
    if role == "stream":
        _check_silence(sample["conversation"][-1], len(sample["conversation"]) - 1, "the end")
    times = sample["frame_times"]
    if frames != len(times):
        raise ValueError(f"the conversation has {frames} frames, but there are {len(times)} frame times")
    if not all(math.isfinite(time) for time in times) or any(b <= a for a, b in itertools.pairwise(times)):
        raise ValueError("frame times must be seconds, each later than the one before")
    if frames and (sample["media"] is None) == ("world" not in sample):
        raise ValueError("a row with frames has either the path of a video as 'media', or a 'world'")


def _check_message(message: LiveMessage, before: str | None) -> None:
    role = message.get("role")
    if role not in FOLLOWERS or role is None:
        raise ValueError(f"unknown role {role!r}: expected system, user, assistant or stream")
    if role not in FOLLOWERS[before]:
        fix = {("stream", "stream"): "; `merge_streams` makes them one", ("assistant", "assistant"): "; join the two"}
        place = f"right after {before!r}" if before else "at the beginning"
        raise ValueError(f"{role!r} cannot stand {place}{fix.get((role, before or ''), '')}")
    learn = message.get("learn", False)
    if role == "stream":
        frames = message.get("num_frames")
        if isinstance(frames, bool) or not isinstance(frames, int) or frames < 1:
            raise ValueError(f"a stream has a 'num_frames' of at least 1, not {frames!r}")
        if not isinstance(learn, int) or not 0 <= learned_frames(message) <= frames:
            raise ValueError(
                f"'learn' of a stream of {frames} is a bool or the number of its first frames, not {learn!r}"
            )
        return
    if not isinstance(message.get("content"), str):
        raise ValueError(f"a message of the {role} has a text as 'content', not {message.get('content')!r}")
    if "num_frames" in message:
        raise ValueError(f"only a stream has 'num_frames', not a message of the {role}")
    if learn not in (False, True) or (learn and role != "assistant"):
        raise ValueError(f"'learn' of a message of the {role} is {learn!r}: only an assistant's words are learned")


def _check_time(time: float, clock: float) -> float:
    if isinstance(time, bool) or not isinstance(time, int | float) or math.isnan(time):
        raise ValueError(f"'time' is seconds, not {time!r}")
    if time < clock:
        raise ValueError(f"it is said at {time} s, after something at {clock} s")
    return time


def _check_silence(message: LiveMessage, number: int, follows: str) -> None:
    if learned_frames(message) == message["num_frames"]:
        most = message["num_frames"] - 1
        raise ValueError(
            f"message {number} of the conversation: its last frame is learned as one to speak at, but then comes "
            f"{follows}; give 'learn': {most}"
        )


def clip_frames(sample: LiveSample, max_frames: int) -> LiveSample:
    """Cut a row to at most `max_frames` frames: before the first stream that is too much.

    If that is the very first one, its first frames are kept, and are watched in silence.

    Args:
        sample: The row; it is not changed.
        max_frames: At least 1.

    Raises:
        ValueError: For less than one frame.
    """
    if max_frames < 1:
        raise ValueError(f"a row has at least 1 frame, not {max_frames}")
    kept: list[LiveMessage] = []
    frames = 0
    for message in sample["conversation"]:
        length = message.get("num_frames", 0)
        if frames + length > max_frames:
            if not frames:
                frames = max_frames
                learn = min(learned_frames(message), frames - 1)
                kept.append(LiveMessage(role="stream", num_frames=frames, learn=learn))
            break
        kept.append(message)
        frames += length
    clipped = sample.copy()
    clipped["conversation"], clipped["frame_times"] = kept, sample["frame_times"][:frames]
    return clipped


def insert_queries(
    rng: random.Random, queries: Sequence[LiveQuery], frame_times: Sequence[float], max_queries: int = 3
) -> list[LiveMessage]:
    """Ask up to three questions at random times (section 3.2 of the paper, "temporally random insert").

    Each question is asked after a frame of its own. What there was to say before is dropped; what is true then is said
    at once, unless nothing is yet; and from there on the question is answered at every change until the next question.

    Args:
        rng: Where randomness comes from; equal states give equal conversations.
        queries: To choose from.
        frame_times: Of the frames, in seconds. Answers that none of them shows are left out.
        max_queries: At most this many are asked, at least one.

    Returns:
        The conversation, without a system message.

    Raises:
        ValueError: If there is no query, no frame, or nothing may be asked.
    """
    most = min(max_queries, len(queries), len(frame_times))
    if most < 1:
        found = f"{len(queries)} queries, {len(frame_times)} frames, at most {max_queries}"
        raise ValueError(f"there must be a query and a frame to put it at: {found}")
    count = rng.randint(1, most)
    chosen = rng.sample(queries, count)
    asked = sorted(rng.sample(range(1, len(frame_times) + 1), count))
    turns = []
    for query, seen, until in zip(chosen, asked, [*asked[1:], len(frame_times)], strict=True):
        # One answer for each frame: of those that the same frame would bring, the last.
        due = {seen_to_tell(frame_times, time): text for time, text in query.answers}
        begun = [when for when in due if when <= seen]
        turns.append(LiveTurn("user", query.text, seen))
        if begun:
            turns.append(LiveTurn("assistant", due[max(begun)], seen))
        turns += [LiveTurn("assistant", due[when], when) for when in sorted(due) if seen < when <= until]
    return lay_out(turns, frame_times)
