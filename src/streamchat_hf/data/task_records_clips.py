"""Readers of what holds of a whole clip: classes of actions (Kinetics, Something-Something v2), captions (MSR-VTT)."""

from __future__ import annotations

from collections.abc import Iterator

from streamchat_hf.data.annotations import BadRow, BadRows, Item, field, json_items
from streamchat_hf.data.task_records import TaskRecord, csv_items, number, read_each, sentence


def read_kinetics(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read Kinetics: columns `label,youtube_id,time_start,time_end,split`, and others.

    Files are found as `<youtube_id>_<start>_<end>` with six digits each, in folders of their classes or not: they are
    cut already.

    Args:
        path: `train.csv` or `val.csv`. `test.csv` has no labels.
        bad: Where bad rows are reported.
    """

    def make(item: Item) -> TaskRecord:
        row = item.value
        start, end = round(number(row["time_start"])), round(number(row["time_end"]))
        name = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        label = sentence(row["label"])
        return TaskRecord(name, item.source, "action_recognition", (label,), (f"{label}/{name}", name))

    return read_each(csv_items(path, bad, ("label", "youtube_id", "time_start", "time_end")), bad, make)


def read_something_something(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read Something-Something v2: `[{"id": "417", "template": "Moving part of [something]"}]`.

    A class is a template without its brackets, as in `something-something-v2-labels.json`.

    Args:
        path: `something-something-v2-train.json` or `...-validation.json`. That of the test has no labels.
        bad: Where bad rows are reported.
    """

    def make(item: Item) -> TaskRecord:
        name, template = field(item.value, "id", str), field(item.value, "template", str)
        label = sentence(template.replace("[", "").replace("]", ""))
        return TaskRecord(name, item.source, "action_recognition", (label,), (name,))

    return read_each(json_items(path, bad), bad, make)


def read_msrvtt(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read MSR-VTT: `{"sentences": [{"video_id": "video0", "caption": "a car"}]}`, about twenty captions per video.

    Args:
        path: `train_val_videodatainfo.json`, `test_videodatainfo.json` or `MSRVTT_data.json`.
        bad: Where bad captions are reported.
    """
    captions: dict[str, list[str]] = {}
    sources: dict[str, str] = {}
    for item in json_items(path, bad, inside="sentences"):
        try:
            name, caption = field(item.value, "video_id", str), sentence(field(item.value, "caption", str))
        except BadRow as error:
            bad.add(item.source, error)
            continue
        sources.setdefault(name, item.source)
        captions.setdefault(name, []).append(caption)
    for name, texts in captions.items():
        yield TaskRecord(name, sources[name], "video_text_retrieval", tuple(texts), (name,))
