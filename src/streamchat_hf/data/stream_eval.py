"""A StreamEval set: questions that are asked at a moment of a video (StreamChat, section 4)."""

import os
from dataclasses import dataclass
from typing import Any

from streamchat_hf.data.annotations import BadRow, BadRows, field, json_items, json_object, seconds


@dataclass(frozen=True)
class StreamEvalQuestion:
    """One question.

    Attributes:
        id: Its name in the set.
        video: Path of the video, relative to the folder of videos.
        time: When it is asked, in seconds of the video.
        question: What is asked.
        reference: What a good answer says; `None` if nobody has written one.
        end: When such an answer is over, in seconds; `None` if nobody has said.
    """

    id: str
    video: str
    time: float
    question: str
    reference: str | None = None
    end: float | None = None


def read_stream_eval(path: str | os.PathLike) -> list[StreamEvalQuestion]:
    """Read a StreamEval set.

    Args:
        path: JSONL, a line per question with the fields of `StreamEvalQuestion`.

    Returns:
        The questions in the order of the file.

    Raises:
        ValueError: For a line that is no question, or has the id of another; it names the file and the line.
    """
    questions: dict[str, StreamEvalQuestion] = {}
    for item in json_items(os.fspath(path), BadRows(refuse=True)):
        try:
            question = _question(item.value)
            if question.id in questions:
                raise BadRow("id twice", question.id)
        except BadRow as error:
            raise BadRow(error.reason, error.detail, item.source) from None
        questions[question.id] = question
    return list(questions.values())


def _question(value: Any) -> StreamEvalQuestion:
    row = json_object(value)
    reference, end = row.get("reference"), row.get("end")
    question = StreamEvalQuestion(
        id=field(row, "id", str),
        video=field(row, "video", str),
        time=seconds(row.get("time")),
        question=field(row, "question", str),
        reference=None if reference is None else field(row, "reference", str),
        end=None if end is None else seconds(end),
    )
    if question.time < 0 or (question.end is not None and question.end < question.time):
        raise BadRow("wrong times", f"from {question.time} to {question.end} s")
    return question
