"""ET-Bench: when did it happen. Under `streaming` the question comes before the video begins."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

from streamchat_hf import metrics
from streamchat_hf.evaluation.benchmark_annotations import digest, find_videos, read_annotations
from streamchat_hf.evaluation.benchmark_protocol import (
    Conditions,
    Reply,
    Row,
    Said,
    Video,
    Viewer,
    Watching,
    answer_row,
    ask_once,
)
from streamchat_hf.evaluation.benchmark_results import Score

REFERRING = ("rar", "eca", "rvq")
GROUNDING = ("tvg", "epm", "tal", "evs", "vhd")
CAPTIONING = ("dvc", "slc")
COMPLEX = ("tem", "gvq")
TASKS = (*REFERRING, *GROUNDING, *CAPTIONING, *COMPLEX)
# The columns of the paper's tables: what the scorer calls them, and what kind of number they are.
COLUMNS = {
    **{task: [("Acc", "accuracy")] for task in REFERRING},
    **{task: [("F1", "f1")] for task in GROUNDING},
    **{task: [("F1", "f1"), ("SentSim", "similarity")] for task in CAPTIONING},
    **{task: [("mRec", "recall")] for task in COMPLEX},
}


@dataclass(frozen=True)
class ETBench:
    """ET-Bench's twelve tasks.

    Attributes:
        annotations: `etbench_txt_v1.0.json`.
        videos: The folder of the videos.
        how: Under which conditions it is asked. The deadline is the end of the video.
        model_name: What the model is called in the results.
        seed: Of the random captions that the scorer compares with where a prediction meets no reference.
        activation_name: What the activation model is called in the results, if there is one.
    """

    annotations: Path
    videos: Path
    how: Conditions
    model_name: str
    seed: int = 0
    activation_name: str | None = None
    name: ClassVar[str] = "etbench"

    @cached_property
    def _samples(self) -> list[dict[str, Any]]:
        samples = read_annotations(self.annotations)
        if not isinstance(samples, list) or not all(sample.get("task") in TASKS for sample in samples):
            raise ValueError(f"{self.annotations}: a list of samples with ET-Bench's tasks is expected")
        return samples

    @cached_property
    def _videos(self) -> dict[str, Video]:
        return find_videos(self.videos, (sample["video"] for sample in self._samples))

    def settings(self) -> Row:
        """The seed, who says when to speak, and a digest of the annotations."""
        decided = {"seed": self.seed, "activation": self.activation_name}
        return {"deadline": None, **decided, "annotations": digest(self.annotations)}

    def work(self) -> list[str]:
        """The videos."""
        metrics.load(self.name)  # before the long part, which would be lost if it is missing
        return list(self._videos)

    def answer(self, piece: str, viewer: Viewer) -> list[Row]:
        """One row for each sample of a video."""
        rows, video = [], self._videos[piece]
        ask = self._watch if self.how.is_live else self._show
        for number, sample in enumerate(self._samples):
            if sample["video"] == piece:
                asked = {"number": number, "task": sample["task"], "source": sample["source"], "video": piece}
                rows.append({**asked, **answer_row(video, partial(ask, viewer, video, sample))})
        return rows

    def predictions(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """The prediction file: the samples with the answers, `a`."""
        answers = {row["number"]: row["answer"] for row in rows}
        return [{**sample, "a": answers[number] or ""} for number, sample in enumerate(self._samples)]

    def files(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """The prediction file."""
        return {"predictions.json": json.dumps(self.predictions(rows), indent=1, ensure_ascii=False) + "\n"}

    def scores(self, rows: Sequence[Row]) -> Row:
        """The official scores, of every task and in it every source of videos."""
        return metrics.load(self.name).compute(predictions=self.predictions(rows), seed=self.seed)

    def headline(self, scores: Row) -> list[Score]:
        """Each task's columns, means over its sources."""
        return [
            Score(metric, task.upper(), fmean(source[key] for source in scores[task].values()))
            for task in TASKS
            if task in scores
            for key, metric in COLUMNS[task]
        ]

    def _show(self, viewer: Viewer, video: Video, sample: Mapping[str, Any]) -> Reply:
        clip = (0.0, float(sample["duration"]))
        return ask_once(viewer, video, sample["q"], self.how, clip, until=math.inf)

    def _watch(self, viewer: Viewer, video: Video, sample: Mapping[str, Any]) -> Reply:
        """Asks at the beginning, and takes down all that is said until the video ends."""
        if viewer.activation is None and hasattr(viewer.model, "family"):
            return self._show(viewer, video, sample)  # a bridge sees nothing while it speaks: it is asked at the end
        until, said = float(sample["duration"]), []
        with Watching(viewer, video, self.how, by_itself=True) as watching:
            watching.ask(sample["q"], at=0.0)
            for response in watching.listen(until):
                if not watching.speaks_by_itself:  # nothing will follow
                    return response.reply
                said += [response] if response.reply.text else []
        words = [word for response in said for word in response.reply.words]
        return Reply(written_down(sample["task"], said), words, late=any(response.reply.late for response in said))


def written_down(task: str, reports: Sequence[Said]) -> str:
    """Writes what a model said by itself as ET-Bench expects an answer.

    Whoever speaks of what it has just seen says when by speaking: a report is about the time since the report before.
    """
    ends = [0.0, *(said.start for said in reports)]
    texts = [" ".join(said.reply.text.split()) for said in reports]
    if task in REFERRING:
        return "\n".join(texts)
    if task == "vhd":
        return "\n".join(f"{end:.1f}" for end in ends[1:])
    spans = [f"{start:.1f} - {end:.1f}" for start, end in pairwise(ends)]
    if task in CAPTIONING:
        return "\n".join(f"{span} seconds, {text}" for span, text in zip(spans, texts, strict=True))
    return "\n".join([*texts[:1], *spans] if task == "gvq" else spans)
