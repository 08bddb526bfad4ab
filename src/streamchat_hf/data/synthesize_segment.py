"""Dense captions, and the segments of a video that instructions are made for (StreamChat, section 2.2)."""

import hashlib
import itertools
import json
import math
import os
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

# The paper trains dense instructions on at most 32 frames at 1 per second; what comes later is never seen.
LONGEST = 32.0
# A shorter segment is over before somebody has said much about it.
SHORTEST = 2.0


@dataclass(frozen=True)
class Caption:
    """What can be seen from `start` to `end`, in seconds."""

    start: float
    end: float
    text: str


@dataclass(frozen=True)
class CaptionedVideo:
    """A video with its dense captions in the order of their starts; `duration` in seconds."""

    path: str
    duration: float
    captions: tuple[Caption, ...]


@dataclass(frozen=True)
class Segment:
    """Consecutive captions of one video."""

    video: str
    captions: tuple[Caption, ...]

    @property
    def start(self) -> float:
        """Where it begins, in seconds."""
        return self.captions[0].start

    @cached_property
    def end(self) -> float:
        """Where it ends, in seconds; captions may overlap, so the last one need not end last."""
        return max(caption.end for caption in self.captions)

    @cached_property
    def id(self) -> str:
        """The same for the same captions of the same video, whatever else is in the file."""
        content = json.dumps([self.video, [[c.start, c.end, c.text] for c in self.captions]])
        return f"{Path(self.video).stem}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def read_captions(path: str | os.PathLike) -> list[CaptionedVideo]:
    """Read dense captions, one video per line.

    Args:
        path: JSONL with lines `{"video": path, "duration": seconds, "captions": [{"start", "end", "text"}, ...]}`, or
            rows of the dense instruction loader, `{"media": path, "turns": [{"start", "end", "answer"}, ...]}`, whose
            answers are then the captions. Without a duration the video ends with its last caption.

    Returns:
        The videos in the order of the file.

    Raises:
        ValueError: For a line that is neither, or has times outside the video; it names the file and the line.
    """
    videos = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    videos.append(_video(json.loads(line)))
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    problem = f"{error} is missing" if isinstance(error, KeyError) else error
                    raise ValueError(f"{os.fspath(path)}:{number}: {problem}") from None
    return videos


def _video(row: dict[str, Any]) -> CaptionedVideo:
    if "turns" in row:
        video = row["media"]
        found = [(turn["start"], turn["end"], turn["answer"]) for turn in row["turns"]]
    else:
        video = row["video"]
        found = [(caption["start"], caption["end"], caption["text"]) for caption in row["captions"]]
    if not isinstance(video, str) or not found:
        raise ValueError("expected the path of one video, and captions")
    # Whole milliseconds: what is printed into a prompt is then exactly what is checked.
    captions = [
        Caption(round(float(start), 3), round(float(end), 3), " ".join(text.split())) for start, end, text in found
    ]
    duration = row.get("duration")
    duration = max(caption.end for caption in captions) if duration is None else round(float(duration), 3)
    for caption in captions:
        if not (0 <= caption.start < caption.end <= duration < math.inf and caption.text):
            raise ValueError(f"{caption} is empty or not inside a video of {duration} s")
    return CaptionedVideo(video, duration, tuple(sorted(captions, key=lambda caption: (caption.start, caption.end))))


def list_segments(video: CaptionedVideo, longest: float = LONGEST) -> list[Segment]:
    """Return all runs of one or several consecutive captions that last from `SHORTEST` to `longest` seconds."""
    found = []
    for first, caption in enumerate(video.captions):
        for last in range(first + 1, len(video.captions) + 1):
            segment = Segment(video.path, video.captions[first:last])
            if segment.end - caption.start > longest:
                break
            if segment.end - caption.start >= SHORTEST:
                found.append(segment)
    return found


def choose_segments(candidates: Iterable[list[Segment]], seed: int = 0, limit: int | None = None) -> list[Segment]:
    """Choose segments, going round: one of every video, then a second one of every video, and so on.

    A video's order depends on the seed and the video alone, and a higher limit only adds to the choice.

    Args:
        candidates: The segments of each video.
        seed: Of the choice.
        limit: How many; by default one per video that has any.

    Returns:
        Different segments, at most `limit`: fewer where the videos have no more.
    """
    orders = []
    for segments in candidates:
        if segments:
            rng = random.Random(f"{seed}/{segments[0].video}")
            orders.append(rng.sample(segments, len(segments)))
    limit = len(orders) if limit is None else limit
    chosen: dict[str, Segment] = {}
    for segment in itertools.chain.from_iterable(itertools.zip_longest(*orders)):
        if len(chosen) >= limit:
            break
        if segment is not None:
            chosen.setdefault(segment.id, segment)
    return list(chosen.values())
