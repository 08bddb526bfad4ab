"""The scores of one source of ET-Bench's captioning tasks: F1 of the spans, and similarity of the captions."""

import random
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from .etbench_answers import Span, parse_captions
from .etbench_tasks import THRESHOLDS, Sample, answer_of
from .etbench_tokens import tokenize

Embed = Callable[[Sequence[str]], np.ndarray]  # unit vectors (n, D) of n texts

_MAX_CAPTIONS = 1000  # of one video


def score_captions(samples: Sequence[Sample], embed: Embed, rng: random.Random) -> dict[str, Any]:
    """Return the scores of dvc and slc.

    Answers that failed lower F1, but not the similarity: SentSim is the mean over the videos that have captions. A
    caption that meets no reference is compared with random letters, as in the official script.

    Args:
        samples: Of one task and source; of one video only the last counts.
        embed: Returns unit vectors of texts.
        rng: Draws the random letters.
    """
    answers = [parse_captions(answer_of(sample))[:_MAX_CAPTIONS] for sample in samples]
    videos = {sample["video"]: (sample, said) for sample, said in zip(samples, answers, strict=True) if said}
    scale = len(videos) / len(samples)
    f1 = [_f1(videos, threshold, scale) for threshold in THRESHOLDS]
    by_threshold = {f"F1@{threshold}": round(score, 5) for threshold, score in zip(THRESHOLDS, f1, strict=True)}
    return {
        "Total": len(samples),
        "Failed": answers.count([]),
        **by_threshold,
        "F1": round(sum(f1) / len(f1), 5),
        "SentSim": round(_similarity(videos, embed, rng), 5),
    }


Videos = Mapping[str, tuple[Sample, list[tuple[Span, str]]]]


def _f1(videos: Videos, threshold: float, scale: float) -> float:
    precisions, recalls = [], []
    for sample, said in videos.values():
        meets = np.array([[_iou(span, reference) > threshold for reference in sample["tgt"]] for span, _ in said])
        precisions.append(float(meets.any(1).mean()))
        recalls.append(float(meets.any(0).mean()))
    precision, recall = (scale * sum(values) / max(len(values), 1) for values in (precisions, recalls))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _similarity(videos: Videos, embed: Embed, rng: random.Random) -> float:
    """The mean over thresholds, videos and pairs of captions."""
    if not videos:
        return 0.0
    # All random letters are drawn threshold by threshold, and within it video by video, as the official script does.
    pairs = [
        [list(_pairs(sample, said, threshold, rng)) for sample, said in videos.values()] for threshold in THRESHOLDS
    ]
    texts = sorted({text for of_threshold in pairs for of_video in of_threshold for pair in of_video for text in pair})
    vectors = dict(zip(texts, embed(texts), strict=True))
    return _mean(
        _mean(_mean(float(vectors[one] @ vectors[other]) for one, other in of_video) for of_video in of_threshold)
        for of_threshold in pairs
    )


def _pairs(
    sample: Sample, said: list[tuple[Span, str]], threshold: float, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Every caption with every reference that it meets, or else with random letters; both tokenized."""
    for span, caption in said:
        references = zip(sample["tgt"], sample["g"], strict=True)
        met = [text for reference, text in references if _iou(span, reference) >= threshold]
        for text in met or ["".join(rng.choice(string.ascii_lowercase) for _ in range(rng.randint(10, 20)))]:
            yield tokenize(caption), tokenize(text)


def _iou(one: Sequence[float], other: Sequence[float]) -> float:
    """In float64, with a small number below, so that no IoU is exactly a threshold."""
    intersection = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    hull = max(one[1], other[1]) - min(one[0], other[0])
    return intersection / (min(hull, one[1] - one[0] + other[1] - other[0]) + 1e-8)


def _mean(values: Iterator[float]) -> float:
    known = list(values)
    return sum(known) / len(known)
