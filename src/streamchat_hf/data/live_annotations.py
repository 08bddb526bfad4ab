"""Readers of COIN, Ego4D GoalStep and VideoLLM-online's "livechat" for a model that chooses when to speak.

Whatever is wrong in one record is reported to a `BadRows` with the file and the entry, and never hides the next one.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from streamchat_hf.data.annotations import (
    Annotation,
    BadRow,
    BadRows,
    MediaFiles,
    field,
    json_items,
    seconds,
)
from streamchat_hf.data.live_conversation import (
    LiveSample,
    LiveTurn,
    Role,
    frame_grid,
    last_frame,
    lay_out,
    seen_to_tell,
    snap_to_fps,
)
from streamchat_hf.data.live_dialogue_prompt import LiveTimeline
from streamchat_hf.data.synthesize_segment import Caption

# The question of the paper's COIN stream, word for word.
COIN_STREAM = (
    "The video is about to {task}. Please remind me when the related action starts, summarizes when it ends, "
    "as well as forecasts the next action."
)
_BRIEFLY = "Format your answer concisely. No extra text output."
_NUMBERED = "Write one action a line, numbered. No extra text output."
COIN_BENCHMARKS = {
    "step": f"What is the action in the video? {_BRIEFLY}",
    "next": f"What is the next action for the video? {_BRIEFLY}",
    "task": f"What is the overall activity in the video? {_BRIEFLY}",
    "procedure": f"What are the next {{n}} actions for the video? {_NUMBERED}",
    "taskprocedure": f"To {{task}}, what are the next {{n}} actions for the video? {_NUMBERED}",
}
_ONE_WITH_GOAL = f"To {{task}}, what is the next action for the video? {_BRIEFLY}"
PROCEDURE_STEPS = 5  # at most so many actions are forecast
MOST_WAITING_FRAMES = 20  # before the first question of a livechat

# Parts of a CamelCase name: what is written in capitals stays so, be it followed by another word.
_NAME_PARTS = re.compile(r"[A-Z]{2}[A-Z0-9]*(?=[A-Z][a-z]|$)|[A-Z][a-z]*|[a-z]+|\d+")
_SUBSETS = {"train": ("train",), "test": ("test", "valid")}  # of COIN; files and documentation differ


@dataclass(frozen=True)
class CoinVideo:
    """A video of COIN.

    Attributes:
        id: YouTube's.
        source: `file:line[id]`.
        duration: Seconds.
        task: What is done, in words: `"replace the bulb of TV remote"`.
        steps: In the order of their starts.
    """

    id: str
    source: str
    duration: float
    task: str
    steps: tuple[Caption, ...]


def coin_task(name: str) -> str:
    """Return a task of COIN in words: `"ReplaceTheBulbOfTVRemote"` is `"replace the bulb of TV remote"`."""
    parts = _NAME_PARTS.findall(name)
    return " ".join(part if len(part) > 1 and part[:2].isupper() else part.lower() for part in parts)


def read_coin(path: str, bad: BadRows, subset: str | None = None) -> Iterator[CoinVideo]:
    """Read `COIN.json`.

    Its layout is `{"database": {id: {"duration": s, "class": ..., "subset": ..., "annotation": [{"segment": [s, s],
    "label": ...}, ...]}}}`.

    Args:
        path: Of the file.
        bad: Where bad rows are reported.
        subset: `"train"` or `"test"`; `None` reads both.

    Raises:
        ValueError: For another subset.
    """
    if subset is not None and subset not in _SUBSETS:
        raise ValueError(f"unknown subset {subset!r} of COIN: expected 'train' or 'test'")
    for item in json_items(path, bad, inside="database"):
        try:
            name = field(item.value, "subset", str).lower()
            if subset is not None and not name.startswith(_SUBSETS[subset]):
                continue
            duration, task = seconds(field(item.value, "duration", (int, float))), field(item.value, "class", str)
            steps = list(_coin_steps(field(item.value, "annotation", list), duration, item.source, bad))
            if not steps:
                raise BadRow("no turns", "a video without steps")
        except BadRow as error:
            bad.add(item.source, error)
            continue
        steps.sort(key=lambda step: (step.start, step.end))
        yield CoinVideo(item.key, item.source, duration, coin_task(task), tuple(steps))


def _coin_steps(values: list[Any], duration: float, source: str, bad: BadRows) -> Iterator[Caption]:
    for number, value in enumerate(values, start=1):
        try:
            segment = field(value, "segment", list)
            if len(segment) != 2:
                raise BadRow("wrong layout", f"a segment is [start, end], not {segment!r}")
            yield _caption(seconds(segment[0]), seconds(segment[1]), field(value, "label", str), duration)
        except BadRow as error:
            bad.add(f"{source} step {number}", error)


def _caption(start: float, end: float, text: str, duration: float = math.inf) -> Caption:
    """A step within its video; what goes on a little longer than that ends with it."""
    text = " ".join(text.split())
    if not text:
        raise BadRow("empty answer", "a step without words")
    if not 0 <= start < min(end, duration):
        raise BadRow("outside of the video", f"{start} to {end} s of {duration} s")
    return Caption(start, min(end, duration), text)


def coin_timeline(video: CoinVideo, media: str) -> LiveTimeline:
    """Return a video as `write_live_dialogues` wants it; `media` is the path of the file."""
    return LiveTimeline(media, video.steps, video.task)


def coin_stream(video: CoinVideo, media: str, fps: float = 2.0) -> LiveSample:
    """Write a video as one row of the paper's COIN stream.

    After the first frame the user asks for all steps. When one starts it is named, and when it ends it is named again
    with the one that follows. What falls on one frame is said together.

    Args:
        video: Its steps.
        media: Path of the file.
        fps: Frames per second.
    """
    frame_times = frame_grid(0.0, last_frame(video.duration, fps), fps)
    events = []
    for i, step in enumerate(video.steps):
        following = video.steps[i + 1].text if i + 1 < len(video.steps) else None
        forecast = f"The next one is: {following}." if following else "It was the last one."
        # At one time what ends comes before what starts.
        events.append((step.start, 1, f"The action starts: {step.text}."))
        events.append((step.end, 0, f"The action ends: {step.text}. {forecast}"))
    due: dict[int, list[str]] = {}
    for time, _, text in sorted(events):
        due.setdefault(min(seen_to_tell(frame_times, time), len(frame_times)), []).append(text)
    turns = [LiveTurn("user", COIN_STREAM.format(task=video.task), 1)]
    turns += [LiveTurn("assistant", " ".join(texts), seen) for seen, texts in due.items()]
    return LiveSample(conversation=lay_out(turns, frame_times), frame_times=frame_times, media=media)


def coin_benchmark(video: CoinVideo, media: str, benchmark: str, fps: float = 2.0) -> list[LiveSample]:
    """Write the questions of a COIN benchmark about a video: the question, the frames of a clip, one answer.

    Args:
        video: Its steps.
        media: Path of the file.
        benchmark: `"step"` (what is this step), `"next"` (what follows this one), `"task"` (what is all of it),
            `"procedure"` (which up to five steps follow this one) or `"taskprocedure"` (the same, the task being
            told).
        fps: Frames per second.

    Raises:
        ValueError: For an unknown benchmark.
    """
    if benchmark not in COIN_BENCHMARKS:
        raise ValueError(f"unknown COIN benchmark {benchmark!r}: expected one of {tuple(COIN_BENCHMARKS)}")
    prompt = COIN_BENCHMARKS[benchmark]
    if benchmark == "task":
        end = max(step.end for step in video.steps)
        return [_clip(video, media, fps, video.steps[0].start, end, prompt, [video.task])]
    if benchmark == "step":
        return [_clip(video, media, fps, step.start, step.end, prompt, [step.text]) for step in video.steps]
    most = 1 if benchmark == "next" else PROCEDURE_STEPS
    samples = []
    for i, step in enumerate(video.steps[:-1]):
        following = [later.text for later in video.steps[i + 1 : i + 1 + most]]
        asked = prompt.format(n=len(following), task=video.task)
        if len(following) == 1:
            asked = _ONE_WITH_GOAL.format(task=video.task) if "task" in benchmark else COIN_BENCHMARKS["next"]
        samples.append(_clip(video, media, fps, step.start, step.end, asked, following))
    return samples


def _clip(
    video: CoinVideo, media: str, fps: float, start: float, end: float, prompt: str, answers: list[str]
) -> LiveSample:
    frame_times = frame_grid(start, min(end, last_frame(video.duration, fps)), fps)
    sentences = [f"{answer.capitalize()}." for answer in answers]
    if len(sentences) > 1:
        sentences = [f"{number}. {sentence}" for number, sentence in enumerate(sentences, start=1)]
    turns = [LiveTurn("user", prompt, 0), LiveTurn("assistant", "\n".join(sentences), len(frame_times))]
    return LiveSample(conversation=lay_out(turns, frame_times), frame_times=frame_times, media=media)


def read_coin_stream(
    path: str,
    bad: BadRows,
    media: MediaFiles,
    folder: str | os.PathLike,
    fps: float = 2.0,
    subset: str | None = "train",
) -> Iterator[LiveSample]:
    """Read `COIN.json` as rows of `coin_stream`, one for each video.

    Args:
        path: Of the file.
        bad: Where bad rows are reported; videos that are not there are, too.
        media: Finds the videos.
        folder: In it or in folders in it lie the videos, `<id>.mp4`.
        fps: Frames per second.
        subset: `"train"` or `"test"`; `None` reads both.

    Raises:
        ValueError: For another subset.
    """
    for video, place in _coin_media(path, bad, media, folder, subset):
        yield coin_stream(video, place, fps)


def read_coin_benchmark(
    path: str,
    bad: BadRows,
    media: MediaFiles,
    folder: str | os.PathLike,
    benchmark: str,
    fps: float = 2.0,
    subset: str | None = "train",
) -> Iterator[LiveSample]:
    """Read `COIN.json` as rows of `coin_benchmark`, all questions about a video one after the other.

    Args:
        path: Of the file.
        bad: Where bad rows are reported; videos that are not there are, too.
        media: Finds the videos.
        folder: In it or in folders in it lie the videos, `<id>.mp4`.
        benchmark: `"step"`, `"next"`, `"task"`, `"procedure"` or `"taskprocedure"`.
        fps: Frames per second.
        subset: `"train"` or `"test"`; `None` reads both.

    Raises:
        ValueError: For another benchmark or subset.
    """
    for video, place in _coin_media(path, bad, media, folder, subset):
        yield from coin_benchmark(video, place, benchmark, fps)


def _coin_media(
    path: str, bad: BadRows, media: MediaFiles, folder: str | os.PathLike, subset: str | None
) -> Iterator[tuple[CoinVideo, str]]:
    """The videos that are there, each with the path of its file."""
    for video in read_coin(path, bad, subset):
        try:
            place, _ = media.find(Annotation(video.id, video.source, "dense", (os.path.join(folder, video.id),), ()))
        except BadRow as error:
            bad.add(video.source, error)
            continue
        yield video, place


def read_goalstep(path: str, bad: BadRows, folder: str | os.PathLike = "") -> Iterator[LiveTimeline]:
    """Read `goalstep_{train,val}.json` of Ego4D as timelines for `write_live_dialogues`.

    A video makes one timeline of its steps towards its goal, and each step that has substeps one of those.

    Args:
        path: Of the file.
        bad: Where bad rows are reported.
        folder: Where the videos lie, `<video uid>.mp4`.
    """
    for item in json_items(path, bad, inside="videos"):
        try:
            name = field(item.value, "video_uid", str)
            goal, segments = field(item.value, "goal_description", str), field(item.value, "segments", list)
        except BadRow as error:
            bad.add(item.source, error)
            continue
        video = os.path.join(folder, f"{name}.mp4")
        yield from _goalstep_timelines(segments, goal, video, f"{item.source} {name}", bad)


def _goalstep_timelines(
    segments: list[Any], goal: str, video: str, source: str, bad: BadRows
) -> Iterator[LiveTimeline]:
    steps, below = [], []
    for number, segment in enumerate(segments, start=1):
        place = f"{source} step {number}"
        try:
            text = field(segment, "step_description", str)
            start, end = (seconds(field(segment, key, (int, float))) for key in ("start_time", "end_time"))
            steps.append(_caption(start, end, text))
            if "segments" in segment and field(segment, "segments", list):
                below.append((segment["segments"], text, place))
        except BadRow as error:
            bad.add(place, error)
    if steps:
        steps.sort(key=lambda step: (step.start, step.end))
        yield LiveTimeline(video, tuple(steps), goal.strip())
    else:
        bad.add(source, BadRow("no turns", "no steps"))
    for inner, text, place in below:
        yield from _goalstep_timelines(inner, text, video, place, bad)


def read_livechat(
    path: str,
    bad: BadRows,
    media: MediaFiles,
    folder: str | os.PathLike,
    fps: float = 2.0,
    seed: int = 0,
    from_start: bool = False,
) -> Iterator[LiveSample]:
    """Read VideoLLM-online's dialogues about GoalStep, `goalstep_livechat_trainval_filtered_21k.json`, as rows.

    Its layout is `[{"video_uid": ..., "duration": s, "conversation": [{"role": ..., "content": ..., "time": s}]}]`.
    A question comes after the frame at or before its time, an answer after the first frame at or after its time; an
    answer at the time of the question comes at once. Of answers that fall on one frame the first is kept. Up to twenty
    frames are watched before the first question. Where times run backwards or leave the video, a dialogue ends.

    Args:
        path: Of the file.
        bad: Where bad rows are reported.
        media: Finds the videos.
        folder: In it or in folders in it lie the videos, `<video uid>.mp4`.
        fps: Frames per second.
        seed: Of how many frames are watched before the first question.
        from_start: Whether all frames of the video until then are.
    """
    for item in json_items(path, bad):
        try:
            name, messages = field(item.value, "video_uid", str), field(item.value, "conversation", list)
            video, length = media.find(Annotation(name, item.source, "dense", (os.path.join(folder, name),), ()))
            if "duration" in item.value:
                length = seconds(item.value["duration"])
            last = math.inf if length is None else last_frame(length, fps)
            rng = None if from_start else random.Random(f"livechat/{seed}/{item.key}")
            yield _livechat(messages, video, fps, last, rng, f"{item.source} {name}", bad)
        except BadRow as error:
            bad.add(item.source, error)


def _livechat(
    messages: list[Any], video: str, fps: float, last: float, rng: random.Random | None, source: str, bad: BadRows
) -> LiveSample:
    said: list[tuple[Role, str, int]] = []  # with the number of the frame
    clock = 0.0
    for number, message in enumerate(messages, start=1):
        try:
            role, text = field(message, "role", str), field(message, "content", str)
            time = seconds(field(message, "time", (int, float)))
            if role not in ("user", "assistant"):
                raise BadRow("wrong layout", f"unknown role {role!r}")
            if not clock <= time <= last + 1 / fps:
                raise BadRow("outside of the video", f"said at {time} s, between {clock} s and the last frame")
        except BadRow as error:
            bad.add(f"{source} message {number}", error)
            break
        at_once = role == "user" or (bool(said) and said[-1][0] == "user" and time == clock)
        frame = round(fps * snap_to_fps(time, fps, math.floor if at_once else math.ceil, end=last))
        before = said[-1] if said else ("user", "", 0)
        frame, clock = max(frame, before[2]), time
        if role == "user":
            said.append(("user", text, frame))
        elif before[0] == "user" or frame > before[2]:
            said.append(("assistant", text, frame))
    if not said or said[0][0] != "user":
        raise BadRow("wrong layout", "a dialogue begins with the user")
    if all(role == "user" for role, _, _ in said):
        raise BadRow("no turns", "a dialogue without an answer")
    first = 0 if rng is None else said[0][2] - rng.randint(0, min(MOST_WAITING_FRAMES, said[0][2]))
    frame_times = frame_grid(first / fps, said[-1][2] / fps, fps)
    turns = [
        LiveTurn("user" if role == "user" else "assistant", text, frame - first + 1) for role, text, frame in said
    ]
    return LiveSample(conversation=lay_out(turns, frame_times), frame_times=frame_times, media=video)
