"""OVO-Bench: what happened before, what happens now, and whether the time has come to answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from streamchat_hf import metrics
from streamchat_hf.evaluation.benchmark_annotations import digest, find_videos, read_annotations
from streamchat_hf.evaluation.benchmark_prompts import OVOBENCH_GROUPS, ovobench_clip, ovobench_prompt
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Row, Video, Viewer, answer_row, ask_once
from streamchat_hf.evaluation.benchmark_results import Score

GROUP_OF = {task: group for group, tasks in OVOBENCH_GROUPS.items() for task in tasks}


@dataclass(frozen=True)
class OVOBench:
    """OVO-Bench's twelve tasks. A forward task is asked once for each entry of its `test_info`.

    `streaming` asks at the entry's `realtime`. An answer that has not been said by the deadline is null in the result
    file, as an answer of a model that has crashed: it scores 0.

    Attributes:
        annotations: `ovo_bench_new.json`.
        videos: The folder of the source videos.
        how: Under which conditions it is asked.
        model_name: What the model is called in the results.
    """

    annotations: Path
    videos: Path
    how: Conditions
    model_name: str
    name: ClassVar[str] = "ovobench"

    @cached_property
    def _entries(self) -> list[dict[str, Any]]:
        entries = read_annotations(self.annotations)
        if not isinstance(entries, list) or not all(GROUP_OF.get(entry.get("task")) for entry in entries):
            raise ValueError(f"{self.annotations}: a list of entries with OVO-Bench's tasks is expected")
        return entries

    @cached_property
    def _videos(self) -> dict[str, Video]:
        return find_videos(self.videos, (entry["video"] for entry in self._entries))

    def settings(self) -> Row:
        """A digest of the annotations."""
        return {"annotations": digest(self.annotations)}

    def work(self) -> list[str]:
        """The videos."""
        metrics.load(self.name)  # before the long part, which would be lost if it is missing
        return list(self._videos)

    def answer(self, piece: str, viewer: Viewer) -> list[Row]:
        """One row for each question about a video."""
        rows, video = [], self._videos[piece]
        for entry in self._entries:
            if entry["video"] != piece:
                continue
            for poll in self._polls(entry):
                at = entry["realtime"] if poll is None else entry["test_info"][poll]["realtime"]
                clip = (0.0, at) if self.how.is_live else ovobench_clip(entry, poll)
                ask = partial(ask_once, viewer, video, ovobench_prompt(entry, poll), self.how, clip)
                asked = {"id": entry["id"], "task": entry["task"], "poll": poll, "video": piece, "time": at}
                rows.append({**asked, **answer_row(video, ask)})
        return rows

    def predictions(self, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
        """The result file as the benchmark's own code writes it."""
        answers = {(row["id"], row["poll"]): row["answer"] for row in rows}
        groups: dict[str, list[dict[str, Any]]] = {group: [] for group in OVOBENCH_GROUPS}
        for entry in self._entries:
            group = GROUP_OF[entry["task"]]
            if group == "forward":
                polls = enumerate(entry["test_info"])
                asked = [{**info, "response": answers[entry["id"], poll]} for poll, info in polls]
                groups[group].append({**entry, "test_info": asked})
            else:
                asked_of = {key: entry[key] for key in ("id", "video", "task", "question")}
                said = {"response": answers[entry["id"], None], "ground_truth": chr(ord("A") + entry["gt"])}
                groups[group].append({**asked_of, **said})
        return groups

    def files(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """The result file."""
        return {"predictions.json": json.dumps(self.predictions(rows), indent=1, ensure_ascii=False) + "\n"}

    def scores(self, rows: Sequence[Row]) -> Row:
        """The official scores: `tasks`, `groups` and `total`, in percent."""
        return metrics.load(self.name).compute(predictions=[self.predictions(rows)])

    def headline(self, scores: Row) -> list[Score]:
        """The tasks, the averages of their groups and the total."""
        tasks = [Score("accuracy", task, row["acc"], row["n"]) for task, row in scores["tasks"].items()]
        groups = [Score("accuracy", f"average of {group}", value) for group, value in scores["groups"].items()]
        return [*tasks, *groups, Score("accuracy", "total", scores["total"])]

    def _polls(self, entry: Mapping[str, Any]) -> Sequence[int | None]:
        return range(len(entry["test_info"])) if GROUP_OF[entry["task"]] == "forward" else (None,)
