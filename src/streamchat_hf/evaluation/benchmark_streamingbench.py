"""StreamingBench: questions at a time of the video, and outputs that are due when something has happened."""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from streamchat_hf import metrics
from streamchat_hf.evaluation.benchmark_annotations import digest, find_videos, read_annotations
from streamchat_hf.evaluation.benchmark_prompts import (
    streamingbench_clip,
    streamingbench_poll_query,
    streamingbench_polls,
    streamingbench_proactive_prompt,
    streamingbench_prompt,
    streamingbench_says_yes,
    streamingbench_seconds,
    streamingbench_sqa_prompt,
)
from streamchat_hf.evaluation.benchmark_protocol import (
    Conditions,
    Row,
    Video,
    Viewer,
    Watching,
    answer_row,
    ask_once,
    watching_error,
)
from streamchat_hf.evaluation.benchmark_results import Score

# The benchmark's script stops at a question without an answer, or leaves it out; this is one, and no letter.
NO_ANSWER = "(no answer)"


class Place(NamedTuple):
    """Where a question stands in the annotations.

    Attributes:
        sequence: The list of entries that belong to one video; of the tasks without sequences an entry by itself.
        entry: The entry in it.
        question: The question in the entry.
    """

    sequence: int
    entry: int
    question: int


@dataclass(frozen=True)
class StreamingBench:
    """One annotation file of StreamingBench: real, omni, sqa or proactive.

    Attributes:
        annotations: `questions_real.json`, `questions_omni.json`, `questions_sqa.json` or `questions_proactive.json`.
        videos: The folder of the videos.
        how: Under which conditions it is asked.
        model_name: What the model is called in the results; the key of its answers.
        context_time: Seconds before a question that are shown; 0: all. Not of proactive questions.
        activation_name: What the activation model is called in the results, if there is one.
    """

    annotations: Path
    videos: Path
    how: Conditions
    model_name: str
    context_time: int = 60
    activation_name: str | None = None
    name: ClassVar[str] = "streamingbench"

    @cached_property
    def _sequences(self) -> list[list[dict[str, Any]]]:
        """The entries, in lists of those that belong together."""
        entries = read_annotations(self.annotations)
        try:
            sequences = [entry if isinstance(entry, list) else [entry] for entry in entries]
            for sequence in sequences:
                for entry in sequence:
                    entry["video_path"], [question["time_stamp"] for question in entry["questions"]]
        except (TypeError, KeyError):
            raise ValueError(f"{self.annotations}: entries with a video_path and questions are expected") from None
        return sequences

    @cached_property
    def task(self) -> str:
        """Which rules hold: `"real"` (omni has the same), `"sqa"` or `"proactive"`."""
        if any(isinstance(entry, list) for entry in read_annotations(self.annotations)):
            return "sqa"
        is_proactive = any("ground_truth_time_stamp" in self._question(place) for place in self._places())
        return "proactive" if is_proactive else "real"

    @cached_property
    def _videos(self) -> dict[str, Video]:
        return find_videos(self.videos, (self._entry(place)["video_path"] for place in self._places()))

    def settings(self) -> Row:
        """The task, how much is shown, who says when to speak, and a digest of the annotations."""
        decided = {"task": self.task, "context_time": self.context_time, "activation": self.activation_name}
        if self.task == "proactive":  # its clips and its deadlines are the benchmark's own
            decided |= {"context_time": None, "deadline": None}
        return {**decided, "annotations": digest(self.annotations)}

    def work(self) -> list[str]:
        """The videos."""
        metrics.load(self.name)  # before the long part, which would be lost if it is missing
        return list(self._videos)

    def answer(self, piece: str, viewer: Viewer) -> list[Row]:
        """One row for each question about a video."""
        rows = []
        for place in self._places():
            if self._entry(place)["video_path"] != piece:
                continue
            question, video = self._question(place), self._videos[piece]
            if self.task == "proactive":
                said = await_output(viewer, video, question, self.how)
            else:
                start, end = streamingbench_clip(question, self.context_time)
                clip = (float(start), float(end))
                ask = partial(ask_once, viewer, video, self._prompt(place), self.how, clip)
                said = answer_row(video, ask)
            asked = {"place": list(place), "task": question["task_type"], "video": piece}
            rows.append({**asked, "time": streamingbench_seconds(question["time_stamp"]), **said})
        return rows

    def predictions(self, rows: Sequence[Row]) -> list[Any]:
        """The output file as the benchmark's own code writes it: the answers beside the questions."""
        sequences = copy.deepcopy(self._sequences)
        for row in rows:
            sequence, entry, question = row["place"]
            if self.task == "proactive":
                answer: Any = {"answered": row["answered"], "dialog_history": row["dialog_history"]}
            elif "error" in row:  # of sqa an answer that is null would not be counted
                answer = NO_ANSWER if self.task == "sqa" else None
            elif row["answer"] is None:
                answer = NO_ANSWER if self.how.is_live else ""
            else:
                answer = row["answer"]
            sequences[sequence][entry]["questions"][question][self.model_name] = answer
        return sequences if self.task == "sqa" else [entry for [entry] in sequences]

    def files(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """The output file."""
        return {"predictions.json": json.dumps(self.predictions(rows), indent=1, ensure_ascii=False) + "\n"}

    def scores(self, rows: Sequence[Row]) -> Row:
        """The official counts and accuracies, by type of question."""
        metric = metrics.load(self.name)
        return metric.compute(predictions=self.predictions(rows), task=self.task, model=self.model_name)

    def headline(self, scores: Row) -> list[Score]:
        """The accuracies of each type of question."""
        return [
            Score(key.replace("_", " "), label, value, row["total"])
            for label, row in scores.items()
            for key, value in row.items()
            if key.endswith("accuracy")
        ]

    def _places(self) -> Iterator[Place]:
        for i, sequence in enumerate(self._sequences):
            for j, entry in enumerate(sequence):
                yield from (Place(i, j, k) for k in range(len(entry["questions"])))

    def _entry(self, place: Place) -> dict[str, Any]:
        return self._sequences[place.sequence][place.entry]

    def _question(self, place: Place) -> dict[str, Any]:
        return self._entry(place)["questions"][place.question]

    def _prompt(self, place: Place) -> str:
        question = self._question(place)
        if self.task != "sqa":
            return streamingbench_prompt(question)
        earlier = [self._question(other) for other in self._places() if other.sequence == place.sequence]
        return streamingbench_sqa_prompt(question, earlier[: earlier.index(question)])


def await_output(viewer: Viewer, video: Video, question: Mapping[str, Any], how: Conditions) -> dict[str, Any]:
    """Waits for the output that a proactive question asks for.

    Returns:
        `answered`, when it came, in seconds, or false; the whole `dialog_history`; `late`, whether a
        deadline passed without it.
    """
    history = _Dialog(streamingbench_polls(question))
    try:
        if not how.is_live:
            answered: float | bool = _poll_clips(viewer, video, question, how, history)
        else:
            start = float(streamingbench_seconds(question["time_stamp"]))
            with Watching(viewer, video, how, start, by_itself=True) as watching:
                wait = _listen_live if watching.speaks_by_itself else _poll_live
                answered = wait(watching, question, history)
    except RuntimeError as error:
        return {"answered": False, "dialog_history": [], "late": False, "error": watching_error(error, video)}
    if answered is False and how.is_live:
        # The last entry counts as the output, whatever it says: silence, when all is over.
        history.add("", "", history.last)
    return {"answered": answered, "dialog_history": history.entries, "late": how.is_live and answered is False}


class _Dialog:
    """The questions and answers about one output that is due.

    Attributes:
        last: When all is over, in seconds.
        entries: Two for each question: who said what, when.
    """

    def __init__(self, polls: Sequence[tuple[int, int]]):
        self.polls = polls
        self.last = polls[-1][1] if polls else 0
        self.entries: list[dict[str, Any]] = []

    def add(self, question: str, answer: str, time: float) -> None:
        self.entries.append({"role": "user", "content": question, "time": time})
        self.entries.append({"role": "assistant", "content": answer, "time": time})


def _poll_clips(
    viewer: Viewer, video: Video, question: Mapping[str, Any], how: Conditions, history: _Dialog
) -> int | bool:
    """The official loop: second by second on a longer clip, in a new conversation each time."""
    query = streamingbench_poll_query(question)
    for start, end in history.polls:
        ask = partial(ask_once, viewer, video, how=how, clip=(float(start), float(end)))
        said = ask(streamingbench_proactive_prompt(query)).text
        history.add(query, said, end)
        if streamingbench_says_yes(said):
            plain = question["question"]
            history.add(plain, ask(streamingbench_proactive_prompt(plain)).text, end)
            return end
    return False


def _poll_live(watching: Watching, question: Mapping[str, Any], history: _Dialog) -> float | bool:
    """Asks every second, but not before the answer before has ended, whether it is time."""
    query, plain = streamingbench_poll_query(question), question["question"]
    if not history.polls:
        return False
    asked = query
    watching.ask(streamingbench_proactive_prompt(query), at=history.polls[0][1])
    for said in watching.listen(history.last):
        if said.reply.late:
            return False
        history.add(asked, said.reply.text, said.end)
        if asked == plain:
            return said.end
        asked = plain if streamingbench_says_yes(said.reply.text) else query
        watching.ask(streamingbench_proactive_prompt(asked), None if asked == plain else math.floor(said.end) + 1.0)
    return False


def _listen_live(watching: Watching, question: Mapping[str, Any], history: _Dialog) -> float | bool:
    """Asks once, and waits until the model says something."""
    watching.ask(question["question"], at=float(streamingbench_seconds(question["time_stamp"])))
    for said in watching.listen(history.last):
        if said.reply.text and not said.reply.late:
            history.add(question["question"], said.reply.text, said.end)
            return said.end
    return False
