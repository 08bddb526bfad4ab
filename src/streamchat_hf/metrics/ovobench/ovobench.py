"""ovobench: the scores of OVO-Bench from its result files, as its own script gives them.

`evaluate` copies this file, so it imports nothing of the package beside it.
"""

import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import datasets
import evaluate

_DESCRIPTION = """\
Accuracy of each of the twelve tasks of OVO-Bench, their averages over backward tracing, real-time visual perception
and forward active responding, and the average of these three.
"""
_CITATION = """\
@inproceedings{li2025ovobench,
  title = {OVO-Bench: How Far is Your Video-LLMs from Real-World Online Video Understanding?},
  author = {Li, Yifei and Niu, Junbo and Miao, Ziyang and Ge, Chunjiang and Zhou, Yuanhang and He, Qihao and
            Dong, Xiaoyi and Duan, Haodong and Ding, Shuangrui and Qian, Rui and Zhang, Pan and Zang, Yuhang and
            Cao, Yuhang and He, Conghui and Wang, Jiaqi},
  booktitle = {CVPR},
  year = {2025},
}
"""
_INPUTS = """
Args:
    predictions: the contents of one result file or several of one model, which belong together: each a dict of the
        lists backward, realtime and forward.
Returns:
    tasks, groups and total; see the card.
"""
GROUPS = ("backward", "realtime", "forward")


class Ovobench(evaluate.Metric):
    """The metric `ovobench`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    # The entries of the lists have no common type, so the library is given each file as the text that it was.

    def add_batch(self, *, predictions=None, **kwargs):
        """Add result files, as `compute` takes them."""
        super().add_batch(predictions=[json.dumps(_checked(file)) for file in predictions or []], **kwargs)

    def add(self, *, prediction=None, **kwargs):
        """Add one result file."""
        # The library knows `prediction` only beside a `reference`, which is none of the features here.
        self.add_batch(predictions=[prediction], **kwargs)

    def _compute(self, predictions: Sequence[str]) -> dict[str, Any]:
        files = [json.loads(file) for file in predictions]
        tasks: dict[str, dict[str, Any]] = {}
        groups: dict[str, float] = {}
        for group in GROUPS:
            scores = _scores([entry for file in files for entry in file.get(group, ())], group)
            if scores:
                groups[group] = fmean(score["acc"] for score in scores.values())
            tasks.update(scores)
        missing = [group for group in GROUPS if group not in groups]
        if missing:
            warnings.warn(f"ovobench: nothing of {', '.join(missing)}, so there is no total", stacklevel=2)
        return {"tasks": tasks, "groups": groups, "total": None if missing else fmean(groups.values())}


def _checked(file: Any) -> Mapping[str, Any]:
    if not isinstance(file, Mapping) or not any(group in file for group in GROUPS):
        raise ValueError("a result file of OVO-Bench is a dict of the lists backward, realtime and forward")
    return file


def _scores(entries: Sequence[Mapping[str, Any]], group: str) -> dict[str, dict[str, Any]]:
    """Of each task of a group, in order of appearance."""
    correct: dict[str, list[bool]] = {}
    for entry in entries:
        task = _required(entry, "task", f"an entry of {group}")
        correct.setdefault(task, []).extend(_correct(entry, group))
    for task in [task for task, answers in correct.items() if not answers]:
        warnings.warn(f"ovobench: {task} has no queries and is left out", stacklevel=2)
        del correct[task]
    return {
        task: {"group": group, "n": len(answers), "correct": sum(answers), "acc": 100 * fmean(answers)}
        for task, answers in correct.items()
    }


def _correct(entry: Mapping[str, Any], group: str) -> Iterable[bool]:
    """Whether each answer of an entry is right: one, or as many as a forward task was polled."""
    task, where = entry["task"], f"{entry['task']} {entry.get('id', '')}".strip()
    if group != "forward":
        return [_contains(_response(entry, where), _required(entry, "ground_truth", where))]
    if task == "REC":
        polls = _required(entry, "test_info", where)
        return [_counted(_response(poll, where), _required(poll, "count", where), where) for poll in polls]
    if task in ("SSR", "CRR"):
        polls = _required(entry, "test_info", where)
        return [_agreed(_response(poll, where), _required(poll, "type", where)) for poll in polls]
    warnings.warn(f"ovobench: {where}: there is no forward task of this name", stacklevel=2)
    return []


def _required(row: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in row:
        raise ValueError(f"ovobench: {where} has no {key!r}")
    return row[key]


def _response(answered: Mapping[str, Any], where: str) -> str | list | None:
    """A text, a list of texts, or None if the model failed."""
    if "response" not in answered:
        warnings.warn(f"ovobench: {where}: there is no 'response', which counts as wrong", stacklevel=2)
        return None
    response = answered["response"]
    if response is not None and not isinstance(response, str | list):
        warnings.warn(f"ovobench: {where}: the response {response!r} is no text and counts as wrong", stacklevel=2)
        return None
    return response


def _contains(response: str | list | None, truth: str) -> bool:
    """The letter, or Yes or No, anywhere in a text, even within a word; of a list, one of its items."""
    return response is not None and truth in response


def _counted(response: str | list | None, count: int, where: str) -> bool:
    """All digits of a text, joined, are the count."""
    if isinstance(response, list):
        warnings.warn(f"ovobench: {where}: a list is no count and is wrong", stacklevel=2)
        return False
    return response is not None and "".join(re.findall(r"\d+", response)) == str(count)


def _agreed(response: str | list | None, kind: int) -> bool:
    return (response, kind) in (("N", 0), ("Y", 1)) or _contains(response, "No" if kind == 0 else "Yes")
