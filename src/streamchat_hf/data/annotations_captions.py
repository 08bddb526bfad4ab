"""Readers of captioned videos: Vript, ActivityNet Captions and Ego4D narrations.

What happens in an interval becomes a question at its start and an answer that is spoken until its end. These datasets
have no questions: one of a few wordings is drawn for each caption, by the seed and the place of the caption alone.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from streamchat_hf.data.annotations import (
    Annotation,
    BadRow,
    BadRows,
    Turn,
    field,
    json_items,
    json_object,
    seconds,
)

CAPTION_QUESTIONS = (
    "Describe what happens.",
    "What is happening in the video now?",
    "Tell me what you see.",
    "Describe this part of the video.",
)
# In Ego4D the camera wearer is called C. The questions say so, as those of VideoLLM-online do: the answers need it.
NARRATION_QUESTIONS = (
    "What is C, the person with the camera, doing now?",
    "Say in a few words what happens now; call the camera wearer C.",
    "Narrate what you see; C wears the camera.",
)

_TIMES = ("_cut_meta.json", "_asr.jsonl")
_TAG = re.compile(r"#(?i:unsure|summary)|#[CcOo](?![a-z])|#")


def read_activitynet_captions(path: str, bad: BadRows, seed: int = 0) -> Iterator[Annotation]:
    """Reads ActivityNet Captions: `{"v_<id>": {"duration": s, "timestamps": [[s, s], ...], "sentences": [...]}}`.

    Keys and videos are named with or without `v_`.

    Args:
        path: `train.json`, `val_1.json` or `val_2.json`.
        bad: Where bad rows are reported.
        seed: Of the questions.
    """
    for item in json_items(path, bad):
        try:
            intervals, sentences = field(item.value, "timestamps", list), field(item.value, "sentences", list)
            if len(intervals) != len(sentences):
                raise BadRow("wrong layout", f"{len(intervals)} timestamps for {len(sentences)} sentences")
        except BadRow as error:
            bad.add(item.source, error)
            continue
        turns = []
        for number, (interval, sentence) in enumerate(zip(intervals, sentences, strict=True), start=1):
            source = f"{item.source} sentence {number}"
            try:
                start, end = _interval(interval)
                answer = field({"sentence": sentence}, "sentence", str)
            except BadRow as error:
                bad.add(source, error)
            else:
                turns.append(Turn(source, _draw(CAPTION_QUESTIONS, seed, item.key, number), answer, start, end))
        name = item.key.removeprefix("v_")
        yield Annotation(item.key, item.source, "dense", (f"v_{name}", name), tuple(turns))


def _interval(value: Any) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise BadRow("wrong layout", f"[start, end] is expected, not {value!r}")
    return seconds(value[0]), seconds(value[1])


def read_ego4d(path: str, bad: BadRows, seed: int = 0) -> Iterator[Annotation]:
    """Reads Ego4D's narrations: `narration.json`, or `all_narrations_redacted.json`, which VideoLLM-online reads.

    A narration has a time and no end: it takes as long as it takes to say it. Several annotators narrated the same
    video, so each makes an annotation of its own: a pass of `narration.json`, an `_annotation_uid` of the other. The
    tags `#C`, `#O` and `#unsure` are removed. A narration needs two words, somebody and what they do.

    Args:
        path: Of the file.
        bad: Where bad rows are reported.
        seed: Of the questions.
    """
    for item in json_items(path, bad, inside="videos"):
        try:
            annotators = _annotators(json_object(item.value))
        except BadRow as error:
            bad.add(item.source, error)
            continue
        for annotator, narrations in annotators.items():
            name = f"{item.key}/{annotator}"
            turns = []
            for number, narration in enumerate(narrations, start=1):
                source = f"{item.source} {annotator} narration {number}"
                try:
                    time, text = _narration(narration)
                except BadRow as error:
                    bad.add(source, error)
                else:
                    turns.append(Turn(source, _draw(NARRATION_QUESTIONS, seed, name, number), text, time))
            yield Annotation(name, item.source, "dense", (item.key,), tuple(turns))


def _annotators(video: dict[str, Any]) -> dict[str, list[Any]]:
    """The narrations of a video by who wrote them."""
    found: dict[str, list[Any]] = {}
    if "narrations" in video:
        for narration in field(video, "narrations", list):
            annotator = str(json_object(narration).get("_annotation_uid", "narrations"))
            found.setdefault(annotator, []).append(narration)
    else:
        for name, narrated in video.items():
            if name.startswith("narration_pass"):
                found[name] = field(narrated, "narrations", list)
    if not any(found.values()):
        raise BadRow("no turns", "a video without narrations")
    return found


def _narration(value: Any) -> tuple[float, str]:
    """The time of a narration in seconds, and its text as a sentence."""
    time_name, text_name = ("time", "text") if "time" in json_object(value) else ("timestamp_sec", "narration_text")
    time, text = seconds(value.get(time_name)), field(value, text_name, str)
    words = _TAG.sub(" ", text).replace("@c", " ").split()
    sentence = " ".join(words).strip(" .,")
    if " " not in sentence:
        raise BadRow("empty answer", f"{text!r} tells nothing")
    return time, f"{sentence[0].upper()}{sentence[1:]}."


def read_vript(path: str, bad: BadRows, scene_times: SceneTimes, seed: int = 0) -> Iterator[Annotation]:
    """Reads Vript's captions: `<video>_caption.json`, or a `.jsonl` file with a line for each scene.

    Each caption is that of one scene, `{"clip_id": "<video>-Scene-001", "caption": {"content": ...}}`, in a document
    below `"data"`. Scenes may be missing. When they are stands in files beside the clips, not here.

    Args:
        path: Of the file.
        bad: Where bad rows are reported.
        scene_times: Knows when scenes begin and end.
        seed: Of the questions.
    """
    for video, group in itertools.groupby(_scenes(path, bad), key=lambda scene: scene.video):
        scenes = list(group)
        try:
            times = scene_times.of(video)
        except BadRow as error:
            bad.add(scenes[0].source, error)
            continue
        turns = []
        for scene in scenes:
            start, end = times.get(scene.number, (None, None))
            question = _draw(CAPTION_QUESTIONS, seed, video, scene.number)
            turns.append(Turn(scene.source, question, scene.caption, start, end))
        yield Annotation(video, scenes[0].source, "dense", (video,), tuple(turns))


class _Scene(NamedTuple):
    source: str
    video: str
    number: int
    caption: str


def _scenes(path: str, bad: BadRows) -> Iterator[_Scene]:
    for item in json_items(path, bad, inside="data"):
        try:
            clip, caption = field(item.value, "clip_id", str), field(item.value, "caption", dict)
            scene = _Scene(item.source, *_clip(clip), field(caption, "content", str))
        except BadRow as error:
            bad.add(item.source, error)
        else:
            yield scene


def _clip(clip_id: str) -> tuple[str, int]:
    """The video and the number of a scene: `AbC-Scene-001` or `AbC-Scene-001.mp4`."""
    video, _, number = clip_id.removesuffix(".mp4").rpartition("-Scene-")
    if not video or not number.isdecimal():
        raise BadRow("wrong layout", f"<video>-Scene-<number> is expected, not {clip_id!r}")
    return video, int(number)


class SceneTimes:
    """Finds when the scenes of Vript's videos begin and end, in the files that come with the clips.

    `<video>_cut_meta.json` has the times. Where it is missing, `<video>_asr.jsonl` has the duration of every scene:
    summed up they are the times, until the first scene that is missing.

    Args:
        folder: In it or in folders in it lie the files.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = str(folder)
        self._files: dict[str, str] = {}
        for where, _, names in os.walk(self.folder, followlinks=True):
            self._files |= {name: os.path.join(where, name) for name in names if name.endswith(_TIMES)}

    def of(self, video: str) -> dict[int, tuple[float, float]]:
        """Returns the start and the end in seconds of each scene by its number.

        Raises:
            BadRow: There is no file about the video, or it cannot be read.
        """
        for ending, times in zip(_TIMES, (_cuts, _add_up), strict=True):
            path = self._files.get(video + ending)
            if path is None:
                continue
            try:
                items = json_items(path, BadRows(refuse=True), inside="clips")
                return times({_clip(field(item.value, "clip_id", str))[1]: item.value for item in items})
            except BadRow as error:
                raise BadRow("no scene times", f"{path}: {error.reason}: {error.detail}") from None
        raise BadRow("no scene times", f"neither {video}{_TIMES[0]} nor {video}{_TIMES[1]} in {self.folder}")


def _cuts(clips: dict[int, dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """The start and the end of each scene, whatever exactly the fields are called: that is not documented."""
    times = {}
    for number, clip in clips.items():
        found: dict[str, float] = {}
        for name in ("start", "end", "duration"):
            keys = [key for key in clip if name in key.lower() and "frame" not in key.lower()]
            if keys:
                found[name] = _clock(clip[keys[0]])
        if "start" not in found or len(found) < 2:
            raise BadRow("wrong layout", f"neither start and end nor start and duration among {', '.join(clip)}")
        # Whole milliseconds, so that a scene that is summed up ends where the next one starts.
        times[number] = (found["start"], found.get("end", round(found["start"] + found.get("duration", 0.0), 3)))
    return times


def _clock(value: Any) -> float:
    """Seconds, from a number, alone or in quotes, or from `hours:minutes:seconds`."""
    total = 0.0
    try:
        for part in str(value).split(":"):
            total = 60 * total + float(part)
    except ValueError:
        raise BadRow("wrong layout", f"a time is expected, not {value!r}") from None
    return round(seconds(total), 3)


def _add_up(clips: dict[int, dict[str, Any]]) -> dict[int, tuple[float, float]]:
    """The start and the end of the scenes 1, 2, ... up to the first that is missing."""
    times: dict[int, tuple[float, float]] = {}
    start = 0.0
    while (number := len(times) + 1) in clips:
        end = start + seconds(clips[number].get("duration"))
        times[number] = (start, end)
        start = end
    return times


def _draw(questions: Sequence[str], seed: int, name: str, number: int) -> str:
    return random.Random(f"{seed}/{name}/{number}").choice(questions)
