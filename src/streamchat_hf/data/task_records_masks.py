"""Readers of masks: of objects with classes (YouTube-VIS), and of what an expression names (Refer-YouTube-VOS, MeViS).

Masks are not decoded here: `Rle.decode` and `PngMask.decode` do it for the frames that a clip shows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from streamchat_hf.data.annotations import BadRow, BadRows, Item, field, json_items, json_object
from streamchat_hf.data.task_records import Mask, PngMask, Rle, TaskRecord, read_each, sentence


def read_youtube_vis(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read YouTube-VIS: a document of `videos`, `annotations` and `categories`; a record for each video with objects.

    An annotation is one object, `{"video_id", "category_id", "segmentations": [{"size", "counts"} or null, ...]}` with
    an entry for each of the video's `file_names`. Frames are files below `JPEGImages`. A bad object costs its video:
    without it the pixels would be labelled background.

    Args:
        path: `train.json`; the other files have no annotations.
        bad: Where bad rows are reported.
    """
    names: dict[int, str] = {}
    for item in json_items(path, bad, inside="categories"):
        try:
            names[field(item.value, "id", int)] = sentence(field(item.value, "name", str))
        except BadRow as error:
            bad.add(item.source, error)
    objects: dict[int, list[Item]] = {}
    for item in json_items(path, bad, inside="annotations"):
        try:
            objects.setdefault(field(item.value, "video_id", int), []).append(item)
        except BadRow as error:
            bad.add(item.source, error)

    def make(item: Item) -> list[TaskRecord]:
        files = field(item.value, "file_names", list)
        frames = tuple(f"JPEGImages/{sentence(file)}" for file in files)
        labels, masks = [], []
        number = field(item.value, "id", int)
        for thing in objects.get(number, []):
            try:
                category = field(thing.value, "category_id", int)
                if category not in names:
                    raise BadRow("wrong layout", f"there is no category {category}")
                labels.append(names[category])
                masks.append(_rles(field(thing.value, "segmentations", list), len(frames)))
            except BadRow as error:
                raise BadRow(error.reason, f"{error.detail} (at {thing.source})") from None
        if not labels:
            raise BadRow("no masks", "a video without annotations")
        name, task = files[0].partition("/")[0], "video_object_segmentation"
        return [TaskRecord(name, item.source, task, tuple(labels), frames=frames, masks=tuple(masks))]

    yield from read_each(json_items(path, bad, inside="videos"), bad, make)


def _rles(values: list[Any], frames: int) -> tuple[Mask | None, ...]:
    if len(values) != frames:
        raise BadRow("wrong layout", f"{len(values)} masks for {frames} frames")
    return tuple(None if value is None else _rle(value) for value in values)


def _rle(value: Any) -> Rle:
    size, counts = field(value, "size", list), field(value, "counts", (str, list))
    if not all(type(n) is int for n in size) or len(size) != 2:
        raise BadRow("wrong layout", f"[height, width] is expected, not {size!r}")
    if isinstance(counts, list) and not all(type(n) is int for n in counts):
        raise BadRow("wrong layout", "counts have to be whole numbers")
    return Rle(size[0], size[1], counts if isinstance(counts, str) else tuple(counts))


def read_refer_youtube_vos(path: str, bad: BadRows, masks: str) -> Iterator[TaskRecord]:
    """Read Refer-YouTube-VOS: `{"videos": {id: {"expressions": {"0": {"exp", "obj_id": "1"}}, "frames": [...]}}}`.

    A record for each expression. Frames are `JPEGImages/<video>/<frame>.jpg`, masks `<masks>/<video>/<frame>.png`.

    Args:
        path: `meta_expressions/train/meta_expressions.json`; the other files do not tell the objects.
        bad: Where bad rows are reported.
        masks: The folder `train/Annotations`.
    """

    def make(expression: Any, video: str, frames: tuple[str, ...]) -> tuple[tuple[Mask | None, ...], ...]:
        number = field(expression, "obj_id", str)
        if not number.isdecimal():
            raise BadRow("wrong layout", f"the number of an object is expected, not {number!r}")
        return (tuple(PngMask(os.path.join(masks, video, f"{frame}.png"), int(number)) for frame in frames),)

    return _expressions(path, bad, make)


def read_mevis(path: str, bad: BadRows, masks: str) -> Iterator[TaskRecord]:
    """Read MeViS: `{"videos": {id: {"expressions": {"0": {"exp", "anno_id": [12, 13]}}, "frames": [...]}}}`.

    A record for each expression, of which the masks of all its annotations are meant; it may have none. Frames are
    `JPEGImages/<video>/<frame>.jpg`.

    Args:
        path: `train/meta_expressions.json` or `valid_u/meta_expressions.json`.
        bad: Where bad rows are reported.
        masks: The file `mask_dict.json` beside it; it is kept in memory.
    """
    objects = {item.key: item for item in json_items(masks, bad)}

    def make(expression: Any, video: str, frames: tuple[str, ...]) -> tuple[tuple[Mask | None, ...], ...]:
        found = []
        for number in field(expression, "anno_id", list):
            if str(number) not in objects:
                raise BadRow("no masks", f"there is no annotation {number} in {masks}")
            found.append(_rles(objects[str(number)].value, len(frames)))
        return tuple(found)

    return _expressions(path, bad, make)


def _expressions(path: str, bad: BadRows, make_masks: Any) -> Iterator[TaskRecord]:
    for item in json_items(path, bad, inside="videos"):
        try:
            names = tuple(sentence(name) for name in field(item.value, "frames", list))
            expressions = field(item.value, "expressions", dict)
        except BadRow as error:
            bad.add(item.source, error)
            continue
        frames = tuple(f"JPEGImages/{item.key}/{name}.jpg" for name in names)
        for key, expression in expressions.items():
            source = f"{item.source} expression {key}"
            try:
                text = sentence(field(json_object(expression), "exp", str))
                masks = make_masks(expression, item.key, names)
            except BadRow as error:
                bad.add(source, error)
                continue
            yield TaskRecord(
                f"{item.key}#{key}", source, "referring_segmentation", (text,), frames=frames, masks=masks
            )
