"""Questions about a video at their times, whose answers a judge compares: StreamChat's own evaluation."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from streamchat_hf.data.stream_eval import StreamEvalQuestion, read_stream_eval
from streamchat_hf.evaluation.benchmark_annotations import digest, find_videos
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Row, Video, Viewer, answer_row, ask_once
from streamchat_hf.evaluation.benchmark_results import Score

# Of the paper's section 4.
FPS, FRAMES = 5.0, 32


@dataclass(frozen=True)
class StreamChatEval:
    """A set of questions, as [`read_stream_eval`] reads it.

    Every question is asked in a conversation of its own, after `frames` frames. Under `streaming` an answer may go on
    until the question's `end`, if it has one.

    Attributes:
        annotations: The set.
        videos: The folder of the videos.
        how: Under which conditions it is asked.
        model_name: What the model is called in the answers.
        frames: How many frames are seen before a question.
    """

    annotations: Path
    videos: Path
    how: Conditions
    model_name: str
    frames: int = FRAMES
    name: ClassVar[str] = "streamchat-eval"

    @cached_property
    def _questions(self) -> list[StreamEvalQuestion]:
        return read_stream_eval(self.annotations)

    @cached_property
    def _videos(self) -> dict[str, Video]:
        return find_videos(self.videos, (question.video for question in self._questions))

    def settings(self) -> Row:
        """How many frames are seen, and a digest of the set."""
        return {"deadline": None, "frames": self.frames, "annotations": digest(self.annotations)}

    def work(self) -> list[str]:
        """The videos."""
        return list(self._videos)

    def answer(self, piece: str, viewer: Viewer) -> list[Row]:
        """One row for each question about a video."""
        rows, video = [], self._videos[piece]
        for question in self._questions:
            if question.video != piece:
                continue
            clip = (max(0.0, question.time - self.frames / self.how.fps), question.time)
            until = math.inf if question.end is None else question.end
            ask = partial(ask_once, viewer, video, question.question, self.how, clip, until)
            asked = {"id": question.id, "video": piece, "time": question.time, "question": question.question}
            rows.append({**asked, **answer_row(video, ask)})
        return rows

    def files(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """The answers, for the judge: `answers.jsonl`, in the order of the set."""
        of = {row["id"]: row for row in rows}
        lines = []
        for question in self._questions:
            row = of[question.id]
            asked = {key: row[key] for key in ("video", "time", "question")}
            said = {"answer": row["answer"] or "", "words": row["words"]}
            lines.append(json.dumps({"id": row["id"], "model": self.model_name, **asked, **said}, ensure_ascii=False))
        return {"answers.jsonl": "".join(f"{line}\n" for line in lines)}

    def scores(self, rows: Sequence[Row]) -> Row:
        """What can be counted without a judge.

        Returns:
            `questions`; `answered`, the share of them; `words` of an answer, and `frame_age`, how many seconds old the
            newest frame was at a word: means, `None` without any.
        """
        words = [word for row in rows for word in row["words"]]
        ages = [spoken - frame for _, spoken, frame in words if frame is not None]
        answered = [row for row in rows if row["answer"] is not None]
        return {
            "questions": len(rows),
            "answered": len(answered) / len(rows) if rows else None,
            "words": len(words) / len(answered) if answered else None,
            "frame_age": fmean(ages) if ages else None,
        }

    def headline(self, scores: Row) -> list[Score]:
        """The same."""
        return [
            Score("share", "answered", scores["answered"], scores["questions"]),
            Score("mean", "words of an answer", scores["words"]),
            Score("mean", "seconds since the newest frame, at a word", scores["frame_age"]),
        ]
