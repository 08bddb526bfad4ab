"""Narrations as streaming dialogue: somebody asks once, and each narration is said when its moment has come.

Ego4D's narrators wrote down what happens while they watched, so their texts are streaming dialogue as they stand
(VideoLLM-online, 2406.11816, section 3.2): one row for each pass of an annotator over a video.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterable, Iterator, Sequence

from streamchat_hf.data.annotations import (
    Annotation,
    BadRow,
    BadRows,
    MediaFiles,
    Turn,
    field,
    json_items,
    json_object,
    seconds,
)
from streamchat_hf.data.annotations_captions import read_ego4d
from streamchat_hf.data.live_conversation import LiveSample, LiveTurn, frame_grid, last_frame, lay_out, snap_to_fps

# The camera wearer is C in Ego4D's own texts, and "you" in refined ones. A narrator is asked for it by name.
INSTRUCTIONS = (
    "Narrate the video in real time; C wears the camera.",
    "Say in a few words what C, the person with the camera, is doing, whenever it changes.",
    "Tell me step by step what happens while you watch; call the camera wearer C.",
    "Comment on each action as soon as you see it. C is the one who films.",
)
REFINED_INSTRUCTIONS = (
    "Narrate in real time what I am doing.",
    "Say in a few words what I do, whenever it changes.",
    "Tell me step by step what you see while I go on.",
    "Comment on each of my actions as soon as you see it.",
    "Keep a running commentary on what I do.",
)


def narration_sample(
    narrations: Iterable[tuple[float, str]], instruction: str, media: str, fps: float = 2.0, end: float | None = None
) -> LiveSample | None:
    """Write the narrations of a video as one row.

    It begins with the frame of the first narration, which is asked for and said right there, and ends with the last
    one's. A narration comes with the first frame at or after its time; of several that come with the same frame the
    last one is said, and none is said twice in a row.

    Args:
        narrations: `(time, text)` in seconds, in any order.
        instruction: What the user says.
        media: Path of the video.
        fps: Frames per second.
        end: Length of the video in seconds, if known; later narrations are left out.

    Returns:
        The row, `None` without narrations.
    """
    last = math.inf if end is None else last_frame(end, fps)  # a narration right at the end comes with it
    due: dict[float, str] = {}
    for time, text in sorted(narrations, key=lambda narration: narration[0]):
        if end is None or time <= end:
            due[snap_to_fps(time, fps, math.ceil, end=last)] = text
    said: list[tuple[float, str]] = []
    for time, text in due.items():
        if not said or said[-1][1] != text:
            said.append((time, text))
    if not said:
        return None
    start = said[0][0]
    frame_times = frame_grid(start, said[-1][0], fps)
    turns = [LiveTurn("user", instruction, 1)]
    turns += [LiveTurn("assistant", text, 1 + round((time - start) * fps)) for time, text in said]
    return LiveSample(conversation=lay_out(turns, frame_times), frame_times=frame_times, media=media)


def read_narrations(
    path: str, bad: BadRows, media: MediaFiles, folder: str | os.PathLike, fps: float = 2.0, seed: int = 0
) -> Iterator[LiveSample]:
    """Read Ego4D's narrations, `narration.json` or `all_narrations_redacted.json`, as rows.

    Texts are cleaned of tags as in `read_ego4d`: "#C C opens the door." becomes "C opens the door."

    Args:
        path: Of the file.
        bad: Where bad rows are reported; narrations of less than two words are, too.
        media: Finds the videos.
        folder: In it or in folders in it lie the videos, `<video uid>.mp4`.
        fps: Frames per second.
        seed: Of the instructions.
    """
    return _rows(read_ego4d(path, bad), INSTRUCTIONS, bad, media, folder, fps, seed)


def read_refined_narrations(
    path: str, bad: BadRows, media: MediaFiles, folder: str | os.PathLike, fps: float = 2.0, seed: int = 0
) -> Iterator[LiveSample]:
    """Read `refined_narration_stream_{split}.json` of VideoLLM-online as rows: "C opens" is "You open" there.

    Its layout is `{video uid: {annotation uid: [{"time": s, "text": ...}, ...]}}`. The arguments are those of
    `read_narrations`.
    """
    return _rows(_refined(path, bad), REFINED_INSTRUCTIONS, bad, media, folder, fps, seed)


def _refined(path: str, bad: BadRows) -> Iterator[Annotation]:
    for item in json_items(path, bad):
        try:
            passes = json_object(item.value)
        except BadRow as error:
            bad.add(item.source, error)
            continue
        for name in passes:
            turns = []
            try:
                narrations = field(passes, name, list)
            except BadRow as error:
                bad.add(f"{item.source} {name}", error)
                continue
            for number, narration in enumerate(narrations, start=1):
                source = f"{item.source} {name} narration {number}"
                try:
                    text = " ".join(field(narration, "text", str).split())
                    if " " not in text:
                        raise BadRow("empty answer", f"{text!r} tells nothing")
                    turns.append(Turn(source, "", text, seconds(narration.get("time"))))
                except BadRow as error:
                    bad.add(source, error)
            yield Annotation(f"{item.key}/{name}", item.source, "dense", (item.key,), tuple(turns))


def _rows(
    annotations: Iterable[Annotation],
    instructions: Sequence[str],
    bad: BadRows,
    media: MediaFiles,
    folder: str | os.PathLike,
    fps: float,
    seed: int,
) -> Iterator[LiveSample]:
    for annotation in annotations:
        uid = annotation.media[0]
        try:
            place = os.path.join(folder, uid)
            video, length = media.find(Annotation(uid, annotation.source, "dense", (place,), ()))
            end = math.inf if length is None else length
            for turn in annotation.turns:
                if turn.start is None or not 0 <= turn.start <= end:
                    bad.add(turn.source, BadRow("outside of the video", f"{turn.start} s of {length} s"))
        except BadRow as error:
            bad.add(annotation.source, error)
            continue
        narrations = [(turn.start, turn.answer) for turn in annotation.turns if turn.start is not None]
        instruction = random.Random(f"{seed}/{annotation.id}").choice(instructions)
        sample = narration_sample([n for n in narrations if 0 <= n[0] <= end], instruction, video, fps, length)
        if sample is not None:
            yield sample
