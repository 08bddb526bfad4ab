"""Readers of what happens when: actions in intervals (HACS, FineAction), and sentences about intervals."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator

from streamchat_hf.data.annotations import VIDEO_EXTENSIONS, BadRow, BadRows, Item, field, json_items
from streamchat_hf.data.task_records import TaskRecord, csv_items, interval, number, read_each, sentence

DIDEMO_SEGMENT = 5.0  # seconds
DIDEMO_LONGEST = 30.0
LOCALIZATION_DATASETS = ("HACS", "FineAction", "ActivityNet")  # of StreamFormer's own files; the others are grounding

_CHARADES = re.compile(r"(\S+) (\S+) (\S+?)##(.*)")


def read_action_intervals(path: str, bad: BadRows, subset: str = "training") -> Iterator[TaskRecord]:
    """Read HACS segments or FineAction: `{"database": {id: {"subset", "duration", "annotations": [...]}}}`.

    An annotation is `{"label": "Dodgeball", "segment": [5.4, 11.6]}`. Videos are named with or without `v_`. A bad
    interval costs its video: without it the frames would be labelled background.

    Args:
        path: `HACS_segments_v1.1.json` or `annotations_gt.json`.
        bad: Where bad rows are reported.
        subset: `"training"` or `"validation"`; the rest is passed over.
    """

    def make(item: Item) -> list[TaskRecord]:
        if field(item.value, "subset", str) != subset:
            return []
        duration = item.value.get("duration")
        duration = None if duration is None else number(duration)
        labels, intervals = [], []
        for annotation in field(item.value, "annotations", list):
            labels.append(sentence(field(annotation, "label", str)))
            intervals.append(interval(field(annotation, "segment", list), duration))
        if not labels:
            raise BadRow("no intervals", "a video without annotations")
        name = item.key.removeprefix("v_")
        media = (f"v_{name}", name)
        task = "temporal_localization"
        return [TaskRecord(item.key, item.source, task, tuple(labels), media, intervals=tuple(intervals))]

    return read_each(json_items(path, bad, inside="database"), bad, make)


def read_charades_sta(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read Charades-STA: each line is `<id> <start> <end>##<sentence>`.

    Args:
        path: `charades_sta_train.txt` or `charades_sta_test.txt`.
        bad: Where bad rows are reported.
    """

    def make(item: Item) -> TaskRecord:
        match = _CHARADES.fullmatch(item.value)
        if match is None:
            raise BadRow("wrong layout", f"<id> <start> <end>##<sentence> is expected, not {item.value[:60]!r}")
        name, start, end, text = match.groups()
        return _grounding(f"{name}#{item.key}", item.source, text, (name,), [interval((start, end))])

    return read_each(_lines(path), bad, make)


def _lines(path: str) -> Iterator[Item]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for count, line in enumerate(file, start=1):
            if line.strip():
                yield Item(f"{path}:{count}", str(count), line.strip())


def read_qvhighlights(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read QVHighlights: lines `{"qid": 8, "query": "...", "duration": 150, "vid": "...", "relevant_windows": [...]}`.

    Windows are seconds of the file `<vid>`, which is a part of a longer video.

    Args:
        path: `highlight_train_release.jsonl` or `highlight_val_release.jsonl`. That of the test has no windows.
        bad: Where bad rows are reported.
    """

    def make(item: Item) -> TaskRecord:
        row = item.value
        name, duration = field(row, "vid", str), number(field(row, "duration", (int, float)))
        windows = [interval(window, duration) for window in field(row, "relevant_windows", list)]
        # Its names have dots, so that what follows them is no extension.
        media = tuple(name + extension for extension in VIDEO_EXTENSIONS)
        return _grounding(str(field(row, "qid", int)), item.source, field(row, "query", str), media, windows)

    return read_each(json_items(path, bad), bad, make)


def read_tacos(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read TACoS as 2D-TAN has it: `{"s13-d21.avi": {"num_frames", "fps", "timestamps": [[252, 452]], "sentences"}}`.

    Its timestamps are numbers of frames.

    Args:
        path: `train.json`, `val.json` or `test.json`.
        bad: Where bad rows are reported.
    """

    def make(item: Item) -> list[TaskRecord]:
        fps = number(field(item.value, "fps", (int, float)))
        if fps <= 0:
            raise BadRow("wrong layout", f"{fps:g} frames per second")
        duration = number(field(item.value, "num_frames", int)) / fps
        stem = item.key.rpartition(".")[0] or item.key
        media = (item.key, f"{stem}-cam-002.avi", stem, f"{stem}-cam-002")
        return _sentences(item, bad, media, duration, 1 / fps)

    return read_each(json_items(path, bad), bad, make)


def read_activitynet(path: str, bad: BadRows, task: str = "temporal_grounding") -> Iterator[TaskRecord]:
    """Read ActivityNet Captions: `{"v_<id>": {"duration", "timestamps": [[s, s], ...], "sentences": [...]}}`.

    Args:
        path: `train.json`, `val_1.json` or `val_2.json`.
        bad: Where bad rows are reported.
        task: `"temporal_grounding"`, a record for each sentence; or `"video_text_retrieval"`, one for each video,
            whose caption is all its sentences in the order in which they begin.
    """

    def make(item: Item) -> list[TaskRecord]:
        name = item.key.removeprefix("v_")
        records = _sentences(item, bad, (f"v_{name}", name), number(field(item.value, "duration", (int, float))), 1.0)
        return _paragraph(item.key, records) if task == "video_text_retrieval" else records

    return read_each(json_items(path, bad), bad, make)


def _sentences(item: Item, bad: BadRows, media: tuple[str, ...], duration: float, unit: float) -> list[TaskRecord]:
    """A record for each sentence of a video, whose intervals are in units of so many seconds."""
    windows, texts = field(item.value, "timestamps", list), field(item.value, "sentences", list)
    if len(windows) != len(texts):
        raise BadRow("wrong layout", f"{len(windows)} timestamps for {len(texts)} sentences")
    records = []
    for count, (window, text) in enumerate(zip(windows, texts, strict=True), start=1):
        source = f"{item.source} sentence {count}"
        try:
            window = [number(side) * unit for side in window] if isinstance(window, list) else window
            records.append(_grounding(f"{item.key}#{count}", source, text, media, [interval(window, duration)]))
        except BadRow as error:
            bad.add(source, error)
    return records


def _paragraph(name: str, records: list[TaskRecord]) -> list[TaskRecord]:
    if not records:
        return []
    told = sorted(records, key=lambda record: record.intervals[0])
    text = " ".join(record.texts[0] for record in told)
    return [TaskRecord(name, records[0].source, "video_text_retrieval", (text,), records[0].media)]


def read_didemo(path: str, bad: BadRows, task: str = "temporal_grounding") -> Iterator[TaskRecord]:
    """Read DiDeMo: `[{"annotation_id": 1, "description", "video": "x.mov", "times": [[3, 3], ...], "num_segments"}]`.

    Times are numbers of segments of five seconds, both included, a pair from each annotator: the one that most of
    them give is taken, of equals the first. Clips end at 30 seconds.

    Args:
        path: `train_data.json`, `val_data.json` or `test_data.json`.
        bad: Where bad rows are reported.
        task: `"temporal_grounding"`, a record for each description; or `"video_text_retrieval"`, one for each video,
            whose caption is all its descriptions in the order of their moments.
    """

    def make(item: Item) -> TaskRecord:
        row = item.value
        video, count = field(row, "video", str), field(row, "num_segments", int)
        pairs = field(row, "times", list)
        if not pairs or not all(isinstance(p, list) and len(p) == 2 and all(type(n) is int for n in p) for p in pairs):
            raise BadRow("wrong layout", f"pairs of segments are expected, not {pairs!r}")
        (first, last), _ = Counter(map(tuple, pairs)).most_common(1)[0]
        length = min(count * DIDEMO_SEGMENT, DIDEMO_LONGEST)
        window = interval((first * DIDEMO_SEGMENT, (last + 1) * DIDEMO_SEGMENT), length)
        media = (video, video.rpartition(".")[0] or video)
        name = str(field(row, "annotation_id", int))
        return _grounding(name, item.source, field(row, "description", str), media, [window], DIDEMO_LONGEST)

    records = read_each(json_items(path, bad), bad, make)
    if task != "video_text_retrieval":
        yield from records
        return
    videos: dict[str, list[TaskRecord]] = {}
    for record in records:
        videos.setdefault(record.media[0], []).append(record)
    for name, group in videos.items():
        for record in _paragraph(name, group):
            yield TaskRecord(**{**vars(record), "end": DIDEMO_LONGEST})


def read_streamformer_csv(path: str, bad: BadRows) -> Iterator[TaskRecord]:
    """Read the files of StreamFormer's release: `video_id,start_second,end_second,text,relevant_windows,dataset`.

    Rows of HACS, FineAction and ActivityNet are localisation, a record for each video; those of CharadesSTA,
    QVHighlights, TaCoS, ActivityNetCaptions, DiDeMo and QuerYD are grounding, a record for each row.

    Args:
        path: Of the file.
        bad: Where bad rows are reported.
    """

    def make(item: Item) -> TaskRecord:
        row = item.value
        windows = [interval((row["start_second"], row["end_second"]))]
        if row.get("relevant_windows"):
            try:
                found = ast.literal_eval(row["relevant_windows"])
            except (ValueError, SyntaxError):
                found = None
            if not isinstance(found, list):
                raise BadRow("wrong layout", f"a list of windows is expected, not {row['relevant_windows']!r}")
            windows = [interval(window) for window in found] or windows
        media = (row["video_id"],)
        return _grounding(f"{row['dataset']}#{item.key}", item.source, row["text"], media, windows)

    videos: dict[str, list[TaskRecord]] = {}
    columns = ("video_id", "start_second", "end_second", "text", "dataset")
    for record in read_each(csv_items(path, bad, columns), bad, make):
        dataset = record.id.rpartition("#")[0]
        if dataset in LOCALIZATION_DATASETS:
            videos.setdefault(f"{dataset}/{record.media[0]}", []).append(record)
        else:
            yield record
    for name, group in videos.items():
        labels = tuple(record.texts[0] for record in group for _ in record.intervals)
        times = tuple(times for record in group for times in record.intervals)
        yield TaskRecord(name, group[0].source, "temporal_localization", labels, group[0].media, intervals=times)


def _grounding(
    name: str,
    source: str,
    text: str,
    media: tuple[str, ...],
    windows: list[tuple[float, float]],
    end: float | None = None,
) -> TaskRecord:
    if not windows:
        raise BadRow("no intervals", "a query that is never true")
    task = "temporal_grounding"
    return TaskRecord(name, source, task, (sentence(text),), media, end=end, intervals=tuple(windows))
