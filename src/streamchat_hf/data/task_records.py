"""What the annotations of StreamFormer's six training tasks are read into, and what their readers share.

The formats are those of the paper's table 7 (Yan et al., 2504.20041). A reader is a generator of `TaskRecord`s. As in
`annotations`, whatever is wrong in one row is reported to a `BadRows` with the file and the line, and never hides the
next row.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from streamchat_hf.data.annotations import BadRow, BadRows, Item

TASKS = (
    "action_recognition",
    "video_text_retrieval",
    "temporal_localization",
    "temporal_grounding",
    "video_object_segmentation",
    "referring_segmentation",
)
# Tasks whose texts are the names of classes; those of the others belong to one clip each.
CLASS_TASKS = ("action_recognition", "temporal_localization", "video_object_segmentation")
BACKGROUND = -1  # the label of a frame or pixel of no class


@dataclass(frozen=True)
class Rle:
    """A mask as COCO writes it: how many pixels are outside, then inside, then outside ..., column by column.

    Attributes:
        height: Pixels.
        width: Pixels.
        counts: The numbers, or the string of their compressed form.
    """

    height: int
    width: int
    counts: str | tuple[int, ...]

    def decode(self) -> Tensor:
        """Return the mask, bool (height, width).

        Raises:
            BadRow: If the counts are none, or do not add up to the pixels.
        """
        counts = _decompress(self.counts) if isinstance(self.counts, str) else self.counts
        if any(count < 0 for count in counts) or sum(counts) != self.height * self.width:
            raise BadRow("broken mask", f"its counts are of {sum(counts)} pixels, not {self.height} x {self.width}")
        inside = torch.arange(len(counts)) % 2 == 1
        return inside.repeat_interleave(torch.tensor(counts, dtype=torch.int64)).view(self.width, self.height).T


@dataclass(frozen=True)
class PngMask:
    """A mask in a picture whose pixels are numbers of objects.

    Attributes:
        path: Of the picture, with a palette or grey.
        value: The object's number.
    """

    path: str
    value: int

    def decode(self) -> Tensor:
        """Return the mask, bool (height, width).

        Raises:
            BadRow: If the picture cannot be read, or has colours instead of numbers.
        """
        try:
            with Image.open(self.path) as picture:
                if picture.mode not in ("P", "L", "1"):
                    raise BadRow("broken mask", f"{self.path} has colours, not numbers of objects")
                return torch.from_numpy(np.array(picture) == self.value)
        except OSError as error:
            raise BadRow("broken mask", str(error)) from error


Mask = Rle | PngMask


@dataclass(frozen=True)
class TaskRecord:
    """What an annotation says about one clip, for one task.

    | task | `texts` | `intervals` | `masks` |
    |---|---|---|---|
    | action recognition | the class | | |
    | retrieval | captions, each true of the clip | | |
    | localisation | the class of each interval | when it happens | |
    | grounding | the query | when it is true | |
    | object segmentation | the class of each object | | each object's |
    | referring segmentation | the expression | | of the objects it names |

    Attributes:
        id: The dataset's own name of it.
        source: `file:line`, and in brackets the key or index within a JSON document.
        task: A word of `TASKS`.
        texts: See above.
        media: Paths of the video below the dataset's folder, or paths without extension where the dataset has only
            an id; the first that exists is meant. Empty where there are `frames`.
        start: Where in the video the clip begins, in seconds.
        end: Where it ends, in seconds; `None`: with the video.
        intervals: `(start, end)` in seconds of the video.
        frames: Picture files of the F frames below the dataset's folder.
        masks: Per object F masks, `None` where it is not visible.
    """

    id: str
    source: str
    task: str
    texts: tuple[str, ...]
    media: tuple[str, ...] = ()
    start: float = 0.0
    end: float | None = None
    intervals: tuple[tuple[float, float], ...] = ()
    frames: tuple[str, ...] = ()
    masks: tuple[tuple[Mask | None, ...], ...] = ()


def read_each(
    items: Iterable[Item], bad: BadRows, make: Callable[[Item], list[TaskRecord] | TaskRecord]
) -> Iterator[TaskRecord]:
    """Make records of every item, and report those that cannot be used."""
    for item in items:
        try:
            made = make(item)
        except BadRow as error:
            bad.add(item.source, error)
        else:
            yield from made if isinstance(made, list) else [made]


def csv_items(path: str, bad: BadRows, columns: Iterable[str]) -> Iterator[Item]:
    """Read a CSV file with a header: each row as an object of strings.

    Args:
        path: Of the file.
        bad: Where rows are reported that have no value in one of the columns.
        columns: That have to be there.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        while True:
            source = f"{path}:{rows.line_num + 1}"
            try:
                values = next(rows, None)
            except csv.Error as error:
                bad.add(source, BadRow("not CSV", str(error)))
                continue
            if values is None:
                return
            if not values:
                continue
            row = dict(zip(header, values, strict=False))
            missing = [column for column in columns if not row.get(column)]
            if missing:
                bad.add(source, BadRow("wrong layout", f"no {', '.join(missing)}"))
            else:
                yield Item(source, source.rpartition(":")[2], row)


def number(value: Any) -> float:
    """Return a finite number, which some files have in quotes.

    Raises:
        BadRow: It is none.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise BadRow("wrong layout", f"a number is expected, not {value!r}")
    return found


def sentence(value: Any) -> str:
    """Return a text without white space around it.

    Raises:
        BadRow: It is none, or empty.
    """
    if not isinstance(value, str):
        raise BadRow("wrong layout", f"a text is expected, not {value!r}")
    if not value.strip():
        raise BadRow("empty text")
    return value.strip()


def interval(value: Any, duration: float | None = None) -> tuple[float, float]:
    """Return `[start, end]` in seconds, cut to the video.

    Args:
        value: Of the file.
        duration: Of the video in seconds, where it is known.

    Raises:
        BadRow: It is none, it is empty, or lies outside the video.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise BadRow("wrong layout", f"[start, end] is expected, not {value!r}")
    start, end = number(value[0]), number(value[1])
    if end <= start:
        raise BadRow("interval ends before it starts", f"{start:g} to {end:g} s")
    if start < 0 or (duration is not None and start >= duration):
        raise BadRow("interval outside the video", f"{start:g} to {end:g} s of {duration or math.inf:g}")
    return start, end if duration is None else min(end, duration)


def _decompress(text: str) -> list[int]:
    """COCO's string: numbers of five bits per character, lowest first; from the fourth on less the one two before."""
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise BadRow("broken mask", f"{character!r} is no part of a compressed mask")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:  # more follows
            continue
        if bits & 16:  # negative
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise BadRow("broken mask", "it is cut off")
    return counts
