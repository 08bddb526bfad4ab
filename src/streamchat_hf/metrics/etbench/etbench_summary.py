"""The rows that papers print: one number or two for each task of ET-Bench, and their means by capability."""

from collections.abc import Mapping
from statistics import fmean
from typing import Any

# As they are printed: column, task, and what of its sources is averaged.
_COLUMNS = (
    ("RAR (Acc)", "rar", "Acc"),
    ("EVC (Acc)", "eca", "Acc"),
    ("RVQ (Acc)", "rvq", "Acc"),
    ("TVG (F1)", "tvg", "F1"),
    ("EPM (F1)", "epm", "F1"),
    ("TAL (F1)", "tal", "F1"),
    ("EVS (F1)", "evs", "F1"),
    ("VHD (F1)", "vhd", "F1"),
    ("DVC (F1)", "dvc", "F1"),
    ("DVC (Sim)", "dvc", "SentSim"),
    ("SLC (F1)", "slc", "F1"),
    ("SLC (Sim)", "slc", "SentSim"),
    ("TEM (Rec)", "tem", "mRec"),
    ("GVQ (Rec)", "gvq", "mRec"),
)
_MERGED = {
    "Acc (ref)": ("RAR (Acc)", "EVC (Acc)", "RVQ (Acc)"),
    "F1 (gnd)": ("TVG (F1)", "EPM (F1)", "TAL (F1)", "EVS (F1)", "VHD (F1)"),
    "F1 (cap)": ("DVC (F1)", "SLC (F1)"),
    "Sim (cap)": ("DVC (Sim)", "SLC (Sim)"),
    "Rec (com)": ("TEM (Rec)", "GVQ (Rec)"),
}


def summarize(scores: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, float | None]]:
    """Return what the official script prints under Overall and Merged.

    Args:
        scores: As the metric returns them.

    Returns:
        `overall` and `merged`, by column, in percent. A task is the mean over its sources, whatever their sizes.
        None where a task is missing, and where one of those that are merged is.
    """
    tasks = {
        column: round(fmean(source[name] for source in scores[task].values()), 5) if scores.get(task) else None
        for column, task, name in _COLUMNS
    }
    merged = {name: _mean([tasks[column] for column in columns]) for name, columns in _MERGED.items()}
    return {"overall": _percent(tasks), "merged": _percent(merged)}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def _percent(values: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: None if value is None else round(100 * value, 1) for name, value in values.items()}
