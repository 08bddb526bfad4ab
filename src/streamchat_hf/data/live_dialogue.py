"""Streaming dialogue out of annotated videos, written by a language model (VideoLLM-online, 2406.11816, section 3.2).

`write_live_dialogues` has a model answer questions at every moment at which something changes, and keeps the answers.
`LiveDialogues` makes rows of them: only then are questions put into the video, at other times in every epoch.
As in `synthesize`, nothing is asked twice, and what was asked is judged again on every run.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from streamchat_hf.data.annotations import BadRow, BadRows, Item, field, json_items, seconds
from streamchat_hf.data.live_conversation import LiveQuery, LiveSample, frame_grid, insert_queries
from streamchat_hf.data.live_dialogue_prompt import (
    MOST_MOMENTS,
    PROMPT_VERSION,
    LiveTimeline,
    build_messages,
    draw_queries,
    read_answers,
)
from streamchat_hf.data.synthesize_llm import LanguageModel
from streamchat_hf.data.synthesize_log import ask_and_log, read_log, replace_lines
from streamchat_hf.data.synthesize_prompt import BadAnswer

# What can become of a question about a video; every one ends in exactly one of these.
OUTCOMES = ("kept", "empty", "broken_json", "missing_field", "wrong_times", "tells_time", "http_error")
# And why a video is not asked about at all.
UNFIT = ("too_short", "too_long", "too_many_moments")
SHORTEST, LONGEST = 60.0, 3600.0  # seconds; the authors keep dialogues of this length


@dataclass(frozen=True)
class LiveSynthesis:
    """How a run went.

    Attributes:
        counts: Of questions by what became of them, with the keys of `OUTCOMES`.
        unfit: Of videos that were not asked about, with the keys of `UNFIT`.
        asked: How many questions the model has answered in this run; the other answers were in the log.
    """

    counts: dict[str, int]
    unfit: dict[str, int]
    asked: int


@dataclass(frozen=True)
class _Request:
    """One question about one video."""

    timeline: LiveTimeline
    tense: str
    query: str

    @cached_property
    def id(self) -> str:
        return f"{self.timeline.id}-{hashlib.sha256(self.query.encode()).hexdigest()[:6]}"


def write_live_dialogues(
    timelines: Iterable[LiveTimeline],
    out: str | os.PathLike,
    model: LanguageModel,
    queries: int = 10,
    seed: int = 0,
    workers: int = 8,
    shortest: float = SHORTEST,
    longest: float = LONGEST,
    progress: bool = False,
) -> LiveSynthesis:
    """Have a model answer questions about videos.

    Args:
        timelines: What happens in the videos; see `read_coin` and `read_goalstep`.
        out: JSONL to write, a line per video in their order: `{"video", "start", "end", "goal", "queries", "id",
            "made_by"}`, queries as `{"tense", "text", "answers": [{"time", "text"}, ...]}`. The log lies beside it,
            with the ending `.progress.jsonl`: an interrupted run goes on from there. Its answers hold for the model
            and the prompt that they were made with.
        model: Who writes.
        queries: How many questions about each video.
        seed: Of the choice of questions.
        workers: How many conversations at once.
        shortest: Shorter videos are left out, in seconds.
        longest: Longer ones too.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For a log with something else in it; the line is named.
        ConnectionError: If the model has answered none of `GIVE_UP_AFTER` questions in a row.
    """
    out = Path(out)
    unfit: Counter[str] = Counter()
    fit = []
    for timeline in timelines:
        problem = _unfit(timeline, shortest, longest)
        if problem is None:
            fit.append(timeline)
        else:
            unfit[problem] += 1
    requests = [_Request(one, tense, query) for one in fit for tense, query in draw_queries(one, queries, seed)]
    made_by = {"model": model.name, "prompt": PROMPT_VERSION, "seed": seed}
    log = out.with_suffix(".progress.jsonl")
    answers = read_log(log, made_by)
    missing = {
        request.id: partial(build_messages, request.timeline, request.query)
        for request in requests
        if request.id not in answers
    }
    asked = ask_and_log(log, model, missing, made_by, workers, progress, "question")
    counts = _write(out, requests, answers | asked)
    return LiveSynthesis({key: counts[key] for key in OUTCOMES}, {key: unfit[key] for key in UNFIT}, len(asked))


def _unfit(timeline: LiveTimeline, shortest: float, longest: float) -> str | None:
    length = timeline.end - timeline.start
    if length < shortest:
        return "too_short"
    if length > longest:
        return "too_long"
    return "too_many_moments" if len(timeline.moments) > MOST_MOMENTS else None


def _write(path: Path, requests: Sequence[_Request], answers: dict[str, dict[str, Any]]) -> Counter[str]:
    """Write what is good, replacing the file at once, and count what became of the questions."""
    counts: Counter[str] = Counter()
    rows: dict[str, dict[str, Any]] = {}
    for request in requests:
        record, timeline = answers.get(request.id), request.timeline
        if record is None:
            counts["http_error"] += 1
            continue
        try:
            query = read_answers(record["text"], timeline, request.query)
        except BadAnswer as error:
            counts[error.kind] += 1
            continue
        counts["kept"] += 1
        row = {"video": timeline.video, "start": timeline.start, "end": timeline.end, "goal": timeline.goal}
        row |= {"queries": [], "id": timeline.id, "made_by": record["made_by"]}
        said = [{"time": time, "text": text} for time, text in query.answers]
        rows.setdefault(timeline.id, row)["queries"].append(
            {"tense": request.tense, "text": query.text, "answers": said}
        )
    replace_lines(path, rows.values())
    return counts


class LiveDialogues(Dataset):
    """Rows of a file of `write_live_dialogues`, with up to three questions in each, asked at random times.

    Item i depends on (seed, epoch, i) and the file alone. `set_epoch`, which the trainer calls, puts other questions
    at other times.

    Args:
        path: JSONL.
        folder: Where the videos lie; joined with the `"video"` of a line.
        fps: Frames per second.
        seed: Any integer.
        max_queries: At most this many questions in a row, at least one.
        max_frames: Of a longer video a part of so many frames is drawn.

    Raises:
        BadRow: For a line that is none of such a file; it names the file and the line.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        folder: str | os.PathLike = "",
        fps: float = 2.0,
        seed: int = 0,
        max_queries: int = 3,
        max_frames: int = 1200,
    ):
        if max_queries < 1 or max_frames < 1:
            raise ValueError(f"a row has a question and a frame at least, not {max_queries} and {max_frames}")
        self._rows = [_row(item) for item in json_items(os.fspath(path), BadRows(refuse=True))]
        self.folder, self.fps, self.seed, self.epoch = os.fspath(folder), fps, seed, 0
        self.max_queries, self.max_frames = max_queries, max_frames

    def __len__(self) -> int:
        return len(self._rows)

    def set_epoch(self, epoch: int) -> None:
        """Draw anew where the questions are asked."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> LiveSample:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        video, start, end, queries = self._rows[index]
        rng = random.Random(f"live dialogues/{self.seed}/{self.epoch}/{index}")
        frame_times = frame_grid(start, end, self.fps)
        first = rng.randint(0, max(len(frame_times) - self.max_frames, 0))
        frame_times = frame_times[first : first + self.max_frames]
        conversation = insert_queries(rng, queries, frame_times, self.max_queries)
        return LiveSample(conversation=conversation, frame_times=frame_times, media=os.path.join(self.folder, video))


def _row(item: Item) -> tuple[str, float, float, list[LiveQuery]]:
    try:
        video = field(item.value, "video", str)
        start, end = seconds(item.value.get("start")), seconds(item.value.get("end"))
        queries = [_query(query) for query in field(item.value, "queries", list)]
        if not queries or not 0 <= start <= end:
            raise BadRow("wrong layout", f"{len(queries)} queries from {start} to {end} s")
    except BadRow as error:
        raise BadRow(error.reason, error.detail, item.source) from None
    return video, start, end, queries


def _query(value: Any) -> LiveQuery:
    text = field(value, "text", str)
    answers = [
        (seconds(field(answer, "time", (int, float))), field(answer, "text", str))
        for answer in field(value, "answers", list)
    ]
    if sorted(time for time, _ in answers) != [time for time, _ in answers]:
        raise BadRow("wrong layout", f"the answers to {text!r} are not in the order of their times")
    return LiveQuery(text, tuple(answers))
