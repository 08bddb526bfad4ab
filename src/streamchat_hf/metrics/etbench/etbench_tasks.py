"""The scores of one source of an ET-Bench task, but for captions: referring, grounding and complex tasks.

As in the official script, every function takes the samples of one task and source, which are entries of the annotation
file with the answer as `a`, and returns its numbers rounded to five decimals. Spans are compared in float32, as there.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .etbench_answers import Span, bracketed_letter, leading_letter, parse_spans, without_preamble

THRESHOLDS = (0.1, 0.3, 0.5, 0.7)
Sample = Mapping[str, Any]
Nearest = Callable[[str, Sequence[str]], int]  # which of the options says the same as a text

_NUMBER = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SECONDS = 1000  # what a summary may be long


def score_single_span(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the scores of tvg and epm: does the first span meet the one reference?"""
    ious = [_first_iou(sample, [sample["tgt"]]) for sample in samples]
    return {"Total": len(samples), "Failed": ious.count(None), **_shares(ious, len(samples), "F1", "F1")}


def score_any_span(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the scores of tem: does the first span meet one of the references?"""
    ious = [_first_iou(sample, sample["tgt"]) for sample in samples]
    return {"Total": len(samples), "Failed": ious.count(None), **_shares(ious, len(samples), "R", "mRec")}


def score_span_set(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the scores of tal: do the spans meet the references? Nothing says which meets which."""
    failed, sums = 0, [0.0] * len(THRESHOLDS)
    for sample in samples:
        spans = _spans(sample)
        if not spans:
            failed += 1
            continue
        iou = _iou(sample["tgt"], spans)  # (references, spans)
        if np.isnan(iou).any():
            _warn(sample, "a span and a reference have no length, which do not meet")
        for i, threshold in enumerate(THRESHOLDS):
            recall, precision = (
                float((iou.max(axis) >= np.float32(threshold)).mean(dtype=np.float32)) for axis in (1, 0)
            )
            sums[i] += _f1(precision, recall)
    means = [total / len(samples) for total in sums]
    by_threshold = {f"F1@{threshold}": round(mean, 5) for threshold, mean in zip(THRESHOLDS, means, strict=True)}
    return {"Total": len(samples), "Failed": failed, **by_threshold, "F1": round(sum(means) / len(means), 5)}


def score_summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the scores of evs: which of the seconds are in the summary? Answers that failed are left out."""
    scores = []
    for sample in samples:
        spans = _spans(sample)
        if spans:
            true, said = _occupied(sample["tgt"]), _occupied(spans)
            hits = int((true & said).sum())
            scores.append(_f1(hits / int(said.sum()), hits / int(true.sum())) if hits else 0.0)
    mean = sum(scores) / len(scores) if scores else 0.0
    return {"Total": len(samples), "Failed": len(samples) - len(scores), "F1": round(mean, 5)}


def score_highlight(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the scores of vhd: is the first number a time within a span of any annotator?"""
    hits = failed = 0
    for sample in samples:
        number = _NUMBER.search(answer_of(sample))
        if number is None:
            failed += 1
            continue
        annotators = sample["tgt"] if isinstance(sample["tgt"][0][0], Sequence) else [sample["tgt"]]
        hits += any(start <= float(number.group()) <= end for spans in annotators for start, end in spans)
    return {"Total": len(samples), "Failed": failed, "F1": round(hits / len(samples), 5)}


def score_choice(samples: Sequence[Sample], nearest: Nearest) -> dict[str, Any]:
    """Return the scores of rar, eca and rvq: is the right option named, or what is said most like it?"""
    letters, hits, failed = _letters(samples[0]), 0, 0
    for sample in samples:
        answer = answer_of(sample)
        bracketed = bracketed_letter(answer)
        rest = without_preamble(answer.lower())
        leading = leading_letter(rest) if rest else None
        # A wrong letter is not the last word: what else is said may still resemble the right option.
        if sample["p"] in (letters.get(bracketed), letters.get(leading)):
            hits += 1
        elif not rest:
            failed += 1
        else:
            failed += bracketed is None and leading is None
            hits += nearest(rest, _options(sample)) == sample["p"]
    return {"Total": len(samples), "Failed": failed, "Acc": round(hits / len(samples), 5)}


def score_choice_and_span(samples: Sequence[Sample], nearest: Nearest) -> dict[str, Any]:
    """Return the scores of gvq: only where the right option is chosen does the first span count."""
    right, failed = [], 0
    for sample in samples:
        rest = without_preamble(answer_of(sample))
        if not rest:
            failed += 1
            continue
        chosen = _letters(sample).get(leading_letter(rest))  # here a wrong letter is
        if sample["p"] == (nearest(rest, _options(sample)) if chosen is None else chosen):
            right.append(sample)
    ious = [_first_iou(sample, [sample["tgt"]]) for sample in right]
    return {
        "Total": len(samples),
        "Failed": failed + ious.count(None),
        **_shares(ious, len(samples), "R", "mRec"),
        "Acc": round(len(right) / len(samples), 5),
    }


def answer_of(sample: Sample) -> str:
    """Return what the model said; if that is no text, nothing, with a warning."""
    answer = sample.get("a")
    if not isinstance(answer, str):
        _warn(sample, f"the answer {answer!r} is no text and counts as failed")
        return ""
    return answer


def _spans(sample: Sample) -> list[Span]:
    try:
        return parse_spans(answer_of(sample))
    except ValueError as error:
        _warn(sample, f"{error}: the answer counts as failed")
        return []


def _first_iou(sample: Sample, references: Sequence[Sequence[float]]) -> float | None:
    """The best IoU of the first span with a reference; None if there is no span."""
    spans = _spans(sample)
    if not spans:
        return None
    iou = float(_iou(references, spans[:1]).max())
    if np.isnan(iou):
        _warn(sample, "answer and reference have no length, so that mIoU is not a number, as in the official script")
    return iou


def _iou(references: Sequence[Sequence[float]], spans: Sequence[Span]) -> np.ndarray:
    """Intersection over union of every reference with every span, (references, spans), in float32."""
    one = np.array(references, np.float32).reshape(-1, 1, 2)
    other = np.array(spans, np.float32).reshape(1, -1, 2)
    ends, starts = np.minimum(one[..., 1], other[..., 1]), np.maximum(one[..., 0], other[..., 0])
    intersection = np.maximum(ends - starts, np.float32(0))
    union = (one[..., 1] - one[..., 0]) + (other[..., 1] - other[..., 0]) - intersection
    with np.errstate(divide="ignore", invalid="ignore"):
        return intersection / union


def _shares(ious: Sequence[float | None], total: int, prefix: str, mean: str) -> dict[str, float]:
    """mIoU, the share of all samples from each threshold on, compared in float64, and the mean of these."""
    known = [iou for iou in ious if iou is not None]
    shares = [sum(iou >= threshold for iou in known) / total for threshold in THRESHOLDS]
    return {
        "mIoU": round(sum(known) / total, 5),
        **{f"{prefix}@{threshold}": round(share, 5) for threshold, share in zip(THRESHOLDS, shares, strict=True)},
        mean: round(sum(shares) / len(shares), 5),
    }


def _occupied(spans: Sequence[Sequence[float]]) -> np.ndarray:
    """Which seconds are in one of the spans, as booleans; both ends are rounded, halves to even."""
    seconds = np.zeros(_SECONDS, bool)
    for start, end in spans:
        seconds[max(0, round(min(start, _SECONDS))) : round(min(end, _SECONDS))] = True
    return seconds


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _letters(sample: Sample) -> dict[str | None, int]:
    if len(sample["o"]) not in (4, 5):
        _warn(sample, f"there are {len(sample['o'])} options, where the official script knows only 4 and 5")
    return {letter: index for index, letter in enumerate(_LETTERS[: len(sample["o"])])}


def _options(sample: Sample) -> list[str]:
    texts = [option if isinstance(option, str) else f"{option[0]} - {option[1]}" for option in sample["o"]]
    return [f"({letter.upper()}) {text}" for letter, text in zip(_LETTERS, texts, strict=False)]


def _warn(sample: Sample, what: str) -> None:
    where = " ".join(str(sample[key]) for key in ("task", "source", "idx") if key in sample)
    warnings.warn(f"etbench: {where}: {what}", stacklevel=2)
