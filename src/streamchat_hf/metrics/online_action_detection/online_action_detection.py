"""online_action_detection: how well scores per frame tell what is being done in it (per-frame mAP, calibrated mcAP).

`evaluate` copies this file, so it imports nothing of the package beside it.
"""

import operator
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Ranks all frames by their score for a class and takes the average precision, plain (AP) and calibrated for how rare the
class is (cAP); the means over the action classes are mAP and mcAP. Background is no action class, and frames marked as
ambiguous are left out.
"""
_CITATION = """\
@inproceedings{degeest2016online,
  title = {Online Action Detection},
  author = {De Geest, Roeland and Gavves, Efstratios and Ghodrati, Amir and Li, Zhenyang and Snoek, Cees and
            Tuytelaars, Tinne},
  booktitle = {ECCV},
  year = {2016},
}
"""
_INPUTS = """
Args:
    predictions: per frame a score for each class, background included; only their order matters.
    references: per frame the index of its class, or a list of indices where several things are done at once.
    background: the class that is no action; None if there is none.
    ignore: the index that marks ambiguous frames; it may be one of the classes or lie outside of them.
    class_names: a name for each class, background included.
Returns:
    mAP, mcAP, by_class, n and ignored; see the card.
"""


class OnlineActionDetection(evaluate.Metric):
    """The metric `online_action_detection`."""

    def _info(self) -> evaluate.MetricInfo:
        scores, labels = datasets.List(datasets.Value("float64")), datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": scores, "references": labels}),
        )

    # A frame may be labelled with one index, and the library would cut 1.5 to 1, so labels are made lists before it.

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add frames, as `compute` takes them."""
        predictions = [] if predictions is None else predictions
        labels = [_labels(frame) for frame in (() if references is None else references)]
        if len(predictions) != len(labels):
            raise ValueError(f"scores of {len(predictions)} frames, but labels of {len(labels)}")
        super().add_batch(predictions=predictions, references=labels, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one frame."""
        super().add(prediction=prediction, reference=_labels(reference), **kwargs)

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[int]],
        background: int | None = 0,
        ignore: int | None = None,
        class_names: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        scores = _scores(predictions)
        names = _names(class_names, scores.shape[1] if len(scores) else None)
        scores = scores.reshape(len(scores), len(names))  # which is no news unless there are no frames
        if background is not None and names and background not in range(len(names)):
            raise ValueError(f"background is {background}, but there are {len(names)} classes")
        positive, kept = _positives(references, len(names), ignore)
        scores, positive = scores[kept], positive[kept]
        by_class = {
            name: _precisions(scores[:, index], positive[:, index])
            for index, name in enumerate(names)
            if index not in (background, ignore)
        }
        return {
            "mAP": _mean(row["AP"] for row in by_class.values()),
            "mcAP": _mean(row["cAP"] for row in by_class.values()),
            "by_class": by_class,
            "n": int(kept.sum()),
            "ignored": int((~kept).sum()),
        }


def _labels(frame: Any) -> list[int]:
    """The indices of a frame that has one, or several."""
    found = [frame] if hasattr(frame, "__index__") and not np.ndim(frame) else frame
    try:
        labels = [operator.index(label) for label in found if not isinstance(label, bool | np.bool_)]
        if len(labels) < len(found):
            raise TypeError
    except TypeError:
        raise ValueError(f"a frame is labelled with a class index or a list of them, not {frame!r}") from None
    if len(set(labels)) < len(labels):  # so is every row of zeros and ones
        raise ValueError(f"a frame has the same class twice: {frame!r}; indices are expected, not a row of 0 and 1")
    return labels


def _scores(predictions: Sequence[Sequence[float]]) -> np.ndarray:
    """The scores as (n, classes)."""
    rows = list(predictions)
    for frame, row in enumerate(rows):
        if len(row) != len(rows[0]):
            raise ValueError(f"frame {frame} has {len(row)} scores, but frame 0 has {len(rows[0])}")
    scores = np.array(rows, dtype=np.float64).reshape(len(rows), len(rows[0]) if rows else 0)
    bad = np.argwhere(np.isnan(scores))
    if len(bad):
        raise ValueError(f"the score of frame {bad[0][0]} for class {bad[0][1]} is not a number")
    return scores


def _names(class_names: Sequence[str] | None, classes: int | None) -> list[str]:
    names = [str(index) for index in range(classes or 0)] if class_names is None else list(class_names)
    if classes is not None and len(names) != classes:
        raise ValueError(f"{len(names)} class names for {classes} scores per frame")
    if len(set(names)) < len(names):
        raise ValueError("two classes have the same name")
    return names


def _positives(references: Sequence[Sequence[int]], classes: int, ignore: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Which classes each frame has, (n, classes), and which frames count, (n,)."""
    frames = list(references)
    positive, kept = np.zeros((len(frames), classes), dtype=bool), np.ones(len(frames), dtype=bool)
    for frame, labels in enumerate(frames):
        for label in labels:
            if label == ignore:
                kept[frame] = False
            elif label in range(classes):
                positive[frame, label] = True
            else:
                raise ValueError(f"frame {frame} has class {label}, but there are {classes} classes")
    return positive, kept


def _precisions(scores: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """AP and cAP of one class.

    Args:
        scores: (n,).
        positive: (n,), whether each frame has the class.
    """
    positives = int(positive.sum())
    if not positives:
        return {"AP": None, "cAP": None, "positives": 0}
    negatives = len(positive) - positives
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # Frames of equal score are taken all at once: a rank ends where the next score is another one.
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    true = np.cumsum(positive[order])[last]
    false = last + 1 - true
    gained = np.diff(true, prepend=0)
    precise = true / (true + false)
    # TP / (TP + FP / w) with w = negatives / positives, so written that w may be 0: then every precision is 1.
    calibrated = true * negatives / (true * negatives + false * positives) if negatives else precise
    return {
        "AP": float((gained * precise).sum() / positives),
        "cAP": float((gained * calibrated).sum() / positives),
        "positives": positives,
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
