"""etbench: the scores of ET-Bench from its prediction files, as its own script gives them.

`evaluate` copies this file and those that it imports, so they import nothing of the package beside them.
"""

import json
import random
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate

from .etbench_answers import parse_captions, parse_spans
from .etbench_captions import score_captions
from .etbench_sentences import SentenceEncoder
from .etbench_summary import summarize
from .etbench_tasks import (
    score_any_span,
    score_choice,
    score_choice_and_span,
    score_highlight,
    score_single_span,
    score_span_set,
    score_summary,
)
from .etbench_tokens import tokenize

__all__ = ["Etbench", "parse_captions", "parse_spans", "summarize", "tokenize"]

_DESCRIPTION = """\
Scores answers to the twelve tasks of E.T. Bench by task and source of the videos: accuracy of referring tasks, F1 of
grounding tasks, F1 and sentence similarity of dense captions, recall of complex tasks.
"""
_CITATION = """\
@inproceedings{liu2024etbench,
  title = {E.T. Bench: Towards Open-Ended Event-Level Video-Language Understanding},
  author = {Liu, Ye and Ma, Zongyang and Qi, Zhongang and Wu, Yang and Shan, Ying and Chen, Chang Wen},
  booktitle = {NeurIPS},
  year = {2024},
}
"""
_INPUTS = """
Args:
    predictions: the entries of a prediction file: those of the annotation file with the model's answer as `a`.
    seed: of the random letters with which captions that meet no reference are compared.
    encoder: folder or Hub id of the sentence encoder; default: all-MiniLM-L6-v2.
    subset: {task: {source: [idx, ...]}}; only these entries are scored.
Returns:
    for every task and in it every source its numbers; see the card.
"""


class Etbench(evaluate.Metric):
    """The metric `etbench`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string")}),
        )

    # The entries of different tasks have no common type, so the library is given each as the text that it was.

    def add_batch(self, *, predictions=None, **kwargs):
        """Add entries, as `compute` takes them."""
        super().add_batch(predictions=[json.dumps(_checked(sample)) for sample in predictions or []], **kwargs)

    def add(self, *, prediction=None, **kwargs):
        """Add one entry."""
        # The library knows `prediction` only beside a `reference`, which is none of the features here.
        self.add_batch(predictions=[prediction], **kwargs)

    def _compute(
        self,
        predictions: Sequence[str],
        seed: int = 0,
        encoder: str | None = None,
        subset: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    ) -> dict[str, Any]:
        groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for position, sample in enumerate(map(json.loads, predictions)):
            task, source = sample["task"], sample["source"]
            if subset is not None and "idx" not in sample:
                raise ValueError(f"etbench: entry {position} of {task} {source} has no 'idx', which a subset needs")
            if subset is None or sample["idx"] in subset.get(task, {}).get(source, ()):
                groups.setdefault((task, source), []).append(sample)
        embed = SentenceEncoder(encoder)
        scores: dict[str, dict[str, Any]] = {}
        for (task, source), samples in groups.items():
            try:
                result = _scores(task, samples, embed, seed)
            except KeyError as error:
                raise ValueError(f"etbench: an entry of {task} {source} has no {error}") from None
            if result is None:
                warnings.warn(f"etbench: there is no task {task!r}; {source} is left out", stacklevel=2)
            else:
                scores.setdefault(task, {})[source] = result
        return scores


def _checked(sample: Any) -> Mapping[str, Any]:
    if not isinstance(sample, Mapping) or not {"task", "source"} <= set(sample):
        raise ValueError("an entry of ET-Bench is a dict with task, source and what its annotation file has")
    return sample


def _scores(
    task: str, samples: Sequence[Mapping[str, Any]], embed: SentenceEncoder, seed: int
) -> dict[str, Any] | None:
    match task:
        case "rar" | "eca" | "rvq":
            return score_choice(samples, embed.nearest)
        case "tvg" | "epm":
            return score_single_span(samples)
        case "tal":
            return score_span_set(samples)
        case "evs":
            return score_summary(samples)
        case "vhd":
            return score_highlight(samples)
        case "dvc" | "slc":
            # Seeded for each task and source, so that no score depends on what else is in the file.
            return score_captions(samples, embed, random.Random(seed))
        case "tem":
            return score_any_span(samples)
        case "gvq":
            return score_choice_and_span(samples, embed.nearest)
    return None
