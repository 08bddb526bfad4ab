"""THUMOS14's temporal annotations, as they are published, and the class of each frame for online action detection.

The two archives hold a folder each, of a file per class: `<Class>_val.txt` or `<Class>_test.txt`, with a line
`video_test_0000004  0.2 1.1` for each time that it is done, in seconds. `Ambiguous_val.txt` and `Ambiguous_test.txt`
have the moments which the annotators could not tell; frames of these are left out of the evaluation.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from streamchat_hf.data.annotations import BadRow, BadRows
from streamchat_hf.data.task_records import interval

THUMOS_CLASSES = (
    "BaseballPitch",
    "BasketballDunk",
    "Billiards",
    "CleanAndJerk",
    "CliffDiving",
    "CricketBowling",
    "CricketShot",
    "Diving",
    "FrisbeeCatch",
    "GolfSwing",
    "HammerThrow",
    "HighJump",
    "JavelinThrow",
    "LongJump",
    "PoleVault",
    "Shotput",
    "SoccerPenalty",
    "TennisSwing",
    "ThrowDiscus",
    "VolleyballSpiking",
)
AMBIGUOUS = "Ambiguous"
BACKGROUND = 0
IGNORE = -100  # what PyTorch's cross-entropy leaves out unless told otherwise


class ActionInterval(NamedTuple):
    """Something that is done, or `AMBIGUOUS`, in `[start, end)` of a video, in seconds."""

    label: str
    start: float
    end: float


def read_thumos(folder: str | os.PathLike, subset: str, bad: BadRows) -> dict[str, tuple[ActionInterval, ...]]:
    """Read the annotations of THUMOS14's validation or test videos.

    A line that cannot be used is reported with its file and number, and costs its video: without it, frames would be
    labelled background, or counted though they are ambiguous. Nothing else is left out. Papers leave out
    `video_test_0000270`, which shows something else than its annotation says.

    Args:
        folder: Where the text files are.
        subset: `"val"` or `"test"`; files of the other one are passed over.
        bad: Where bad lines are reported.

    Returns:
        For each video that is named in a file, sorted, what is done when, in the order of time.

    Raises:
        ValueError: For another subset.
        FileNotFoundError: There is no file of the subset, or none of its ambiguous moments.
    """
    if subset not in ("val", "test"):
        raise ValueError(f"subset must be 'val' or 'test', not {subset!r}")
    suffix = f"_{subset}.txt"
    paths = sorted(glob.glob(os.path.join(glob.escape(os.fspath(folder)), f"*{suffix}")))
    labels = [os.path.basename(path).removesuffix(suffix) for path in paths]
    if AMBIGUOUS not in labels or len(labels) < 2:
        raise FileNotFoundError(f"{folder} must have {AMBIGUOUS}{suffix} and a file <Class>{suffix} for each class")
    videos: dict[str, list[ActionInterval]] = {}
    spoilt = set()
    for path, label in zip(paths, labels, strict=True):
        with open(path, encoding="utf-8-sig", errors="replace") as file:
            for count, line in enumerate(file, start=1):
                words = line.split()
                if not words:
                    continue
                try:
                    if len(words) != 3:
                        raise BadRow("wrong layout", f"<video> <start> <end> is expected, not {line.strip()[:60]!r}")
                    videos.setdefault(words[0], []).append(ActionInterval(label, *interval(words[1:])))
                except BadRow as error:
                    bad.add(f"{path}:{count}", error)
                    spoilt.add(words[0])
    return {
        name: tuple(sorted(videos[name], key=lambda action: (action.start, action.end, action.label)))
        for name in sorted(videos)
        if name not in spoilt
    }


def frame_label_lists(
    actions: Sequence[ActionInterval],
    times: Sequence[float] | np.ndarray,
    classes: Sequence[str] = THUMOS_CLASSES,
    ignore: int = IGNORE,
) -> list[list[int]]:
    """Return everything that is done in each frame, as `online_action_detection` takes its references.

    This is what published results on THUMOS14 are scored by (Shou et al. 2017 and since): in it every dive from a
    cliff is `CliffDiving` and `Diving`.

    Args:
        actions: Of one video.
        times: (T,) of its frames in seconds.
        classes: The actions by their index, which begins with 1.
        ignore: The index of an ambiguous frame.

    Returns:
        T lists of indices, ascending. A frame in an ambiguous moment is `[ignore]` whatever else is done in it; one in
        which nothing is done is `[0]`, background.

    Raises:
        ValueError: There is an action of no class, a time is not a number, or `ignore` is the index of a class.
    """
    at = np.asarray(times, dtype=np.float64)
    if at.ndim != 1 or np.isnan(at).any():
        raise ValueError("times must be a list of seconds")
    if ignore in range(len(classes) + 1):
        raise ValueError(f"ignore is {ignore}, which is the index of {('background', *classes)[ignore]}")
    index_of: Mapping[str, int] = {label: index for index, label in enumerate(classes, start=1)}
    done = np.zeros((len(at), len(classes) + 1), dtype=bool)
    ambiguous = np.zeros(len(at), dtype=bool)
    for label, start, end in actions:
        inside = (at >= start) & (at < end)
        if label == AMBIGUOUS:
            ambiguous |= inside
        elif label in index_of:
            done[inside, index_of[label]] = True
        else:
            raise ValueError(f"{label} is none of the {len(classes)} classes")
    done[:, BACKGROUND] = ~done.any(axis=1)
    return [[ignore] if skip else np.flatnonzero(row).tolist() for row, skip in zip(done, ambiguous, strict=True)]


def frame_labels(
    actions: Sequence[ActionInterval],
    times: Sequence[float] | np.ndarray,
    classes: Sequence[str] = THUMOS_CLASSES,
    ignore: int = IGNORE,
) -> np.ndarray:
    """Return one class for each frame, for training with a softmax.

    Of several the first one of `classes` is taken, which is the `argmax` of the rows of zeros and ones in which the
    labels of THUMOS14 are passed on. In their order a dive from a cliff is `CliffDiving` and the others are `Diving`,
    as Shou et al. (2017) train. To score a model use `frame_label_lists`: with one label per frame a rightly found
    second action is an error.

    Args:
        actions: Of one video.
        times: (T,) of its frames in seconds.
        classes: The actions by their index, which begins with 1.
        ignore: The index of an ambiguous frame.

    Returns:
        (T,) int64, 0 where nothing is done.

    Raises:
        ValueError: As `frame_label_lists`.
    """
    return np.array([labels[0] for labels in frame_label_lists(actions, times, classes, ignore)], dtype=np.int64)
