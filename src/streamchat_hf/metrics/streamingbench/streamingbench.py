"""streamingbench: the scores of StreamingBench from its output files, as its own script counts them.

`evaluate` copies this file, so it imports nothing of the package beside it.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import evaluate

_DESCRIPTION = """\
Accuracy by type of question in StreamingBench's tasks: real-time visual (real), omni-source (omni), sequential
question answering (sqa) and proactive output (proactive).
"""
_CITATION = """\
@article{lin2024streamingbench,
  title = {StreamingBench: Assessing the Gap for MLLMs to Achieve Streaming Video Understanding},
  author = {Lin, Junming and Fang, Zheng and Chen, Chi and Wan, Zihao and Luo, Fuwen and Li, Peng and Liu, Yang and
            Sun, Maosong},
  journal = {arXiv preprint arXiv:2411.03628},
  year = {2024},
}
"""
_INPUTS = """
Args:
    predictions: the entries of an output file: of sqa lists of entries, one for each video; each entry has questions,
        and these the answers under the model's name.
    task: real, omni, sqa or proactive.
    model: the key of the answers.
Returns:
    for each type of question its counts and accuracies; for real and omni also total. See the card.
"""
TASKS = ("real", "omni", "sqa", "proactive")
TOLERANCE = 2  # seconds between the true moment and a proactive answer, both ends included


class Streamingbench(evaluate.Metric):
    """The metric `streamingbench`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    # Answers have no common type, and a key of any name, so the library is given each entry as the text that it was.

    def add_batch(self, *, predictions=None, **kwargs):
        """Add entries, as `compute` takes them."""
        super().add_batch(predictions=[json.dumps(entry) for entry in predictions or []], **kwargs)

    def add(self, *, prediction=None, **kwargs):
        """Add one entry."""
        # The library knows `prediction` only beside a `reference`, which is none of the features here.
        self.add_batch(predictions=[prediction], **kwargs)

    def _compute(self, predictions: Sequence[str], task: str, model: str) -> dict[str, Any]:
        if task not in TASKS:
            raise ValueError(f"task is one of {', '.join(TASKS)}, not {task!r}")
        counts: dict[str, dict[str, int]] = {}
        for question in _questions([json.loads(entry) for entry in predictions], task):
            if model in question:
                kind = _required(question, "task_type")
                row = _proactive(question, model) if task == "proactive" else _choice(question, model, task)
                names = [kind, "total"] if task in ("real", "omni") else [kind]
                for name in names if row else ():
                    count = counts.setdefault(name, dict.fromkeys(("total", *row), 0))
                    for key, correct in {"total": True, **row}.items():
                        count[key] += correct
        if not counts:
            warnings.warn(f"streamingbench: no question has an answer of {model!r}", stacklevel=2)
        return {name: _with_accuracies(count) for name, count in counts.items()}


def _questions(entries: Sequence[Any], task: str) -> Iterator[Mapping[str, Any]]:
    for entry in entries:
        if isinstance(entry, list) != (task == "sqa"):
            raise ValueError(f"the entries of {task} are {'lists, one for each video' if task == 'sqa' else 'dicts'}")
        for part in entry if task == "sqa" else [entry]:
            if not isinstance(part, Mapping) or "questions" not in part:
                raise ValueError("an entry of StreamingBench is a dict with questions")
            yield from part["questions"]


def _choice(question: Mapping[str, Any], model: str, task: str) -> dict[str, bool]:
    """Right if the first character is the letter; nothing if it does not count."""
    response = question[model]
    if task == "sqa" and not response:
        return {}
    if not isinstance(response, str | list) or not response:
        _warn(question, f"the response {response!r} has no first character and counts as wrong")
        return {"correct": False}
    # The first of a list is not one character but one text; an empty one is not counted.
    return {"correct": response[0] == _required(question, "answer")} if response[0] else {}


def _proactive(question: Mapping[str, Any], model: str) -> dict[str, bool]:
    """Whether the last thing said came at the right time, and was then right, too."""
    try:
        last = question[model]["dialog_history"][-1]
        time, content = last["time"], last["content"]
    except (IndexError, KeyError, TypeError):
        _warn(question, "there is no dialog history, which counts as wrong")
        return {"time_correct": False, "answer_correct": False}
    in_time = abs(time - _seconds(_required(question, "ground_truth_time_stamp"))) <= TOLERANCE
    if in_time and not isinstance(content, str):
        _warn(question, f"the last content {content!r} is no text and counts as wrong")
        return {"time_correct": True, "answer_correct": False}
    return {
        "time_correct": in_time,
        "answer_correct": in_time and _required(question, "ground_truth_output") in content,
    }


def _with_accuracies(count: Mapping[str, int]) -> dict[str, float]:
    shares = {name: count[name] / count["total"] for name in count if name != "total"}
    return {**count, **{name.replace("correct", "accuracy"): share for name, share in shares.items()}}


def _seconds(time_stamp: str) -> int:
    """Of a time such as 0:03:10."""
    seconds = 0
    for part in time_stamp.split(":"):
        seconds = 60 * seconds + int(part)
    return seconds


def _required(question: Mapping[str, Any], key: str) -> Any:
    if key not in question:
        raise ValueError(f"streamingbench: {_name(question)} has no {key!r}")
    return question[key]


def _warn(question: Mapping[str, Any], what: str) -> None:
    warnings.warn(f"streamingbench: {_name(question)}: {what}", stacklevel=2)


def _name(question: Mapping[str, Any]) -> str:
    kind = question.get("task_type", "a question")
    return f"{kind} at {question.get('time_stamp', '?')}, {question.get('question', '?')!r}"
