r"""COIN and Ego4D long-term anticipation (LTA): what VideoLLM-online answers after a whole clip, scored from a file.

`score_offline(path)` reads one JSON file with `benchmark`, `rows` and what the answers are chosen from:

    {"benchmark": "coin_step", "categories": ["cut the noodle", ...],
     "rows": [{"prediction": "Cut the noodle.", "label": "cut the noodle"}, ...]}
    {"benchmark": "coin_procedure", "categories": [...],
     "rows": [{"prediction": "1. Boil water.\n2. Wash hands.", "label": ["boil water", "wash hands"]}, ...]}
    {"benchmark": "ego4d_lta", "verbs": ["take", ...], "nouns": ["knife", ...],
     "rows": [{"predictions": ["1. Take knife.\n...", ...], "verb_labels": [0, ...], "noun_labels": [3, ...]}, ...]}

`coin_next` and `coin_task` are like `coin_step`, `coin_task_procedure` is like `coin_procedure`. An answer stands for
the category with the smallest Levenshtein distance, the first by alphabet of several. In `ego4d_lta` a row has K
answers (the authors' beams, K = 5) and Z labels (20), and the best answer counts.

`compat=True` gives the authors' numbers. What the default corrects:

1. COIN: steps that an answer leaves out were not counted. Every labelled step counts.
2. COIN: the lines of a procedure were compared with their capital letter and full stop, single answers with the blanks
   around them, and a blank line took the place of a step. None of these matters.
3. COIN: an answer without any word stood for the category with the shortest name. It is wrong.
4. LTA: an answer in which no action could be read stood for the first action of the taxonomy. It is wrong.
5. LTA: only AUED of verbs and nouns was computed. ED@Z, which the paper has, and actions (both right) stand beside it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

COIN_SINGLE = ("coin_step", "coin_next", "coin_task")
COIN_PROCEDURE = ("coin_procedure", "coin_task_procedure")
EGO4D_LTA = "ego4d_lta"
NO_ACTION = -1  # where nothing could be read; no label is

# Taxonomy names whose first word would be that of another.
_LTA_WORDS = {
    "pot_(planter)": "flowerpot",
    "bat_(sports)": "sport bat",
    "bat_(tool)": "bat",
    "nut_(food)": "nuts",
    "nut_(tool)": "nut",
    "chip_(food)": "snack",
    "chip_(wood'_metal),": "chips",
    "chip_(wood,_metal)": "chip",
}
_NUMBER = re.compile(r"^\s*\d+[.)]\s*")
_NUMBERED = re.compile(r"(?:\d+\.|[^\s]+\s\d+\.)\s*(.*)")  # also "Action 1. Cut pot"


def score_offline(path: str | os.PathLike, compat: bool = False) -> dict[str, Any]:
    """Score a file of predictions.

    Args:
        path: A JSON file as in the module's docstring.
        compat: Whether to score as the authors' code does.

    Returns:
        What `coin_accuracy`, `coin_procedure_accuracy` or `lta_scores` returns.

    Raises:
        ValueError: For an unknown benchmark or a row that lacks something, naming file and row.
    """
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    benchmark = data.get("benchmark") if isinstance(data, dict) else None
    if benchmark in (*COIN_SINGLE, *COIN_PROCEDURE):
        (categories,) = _fields(path, data, "categories")
        predictions, labels = _columns(path, data, "prediction", "label")
        accuracy = coin_accuracy if benchmark in COIN_SINGLE else coin_procedure_accuracy
        return accuracy(predictions, labels, categories, compat=compat)
    if benchmark == EGO4D_LTA:
        names = LTANames(*_fields(path, data, "verbs", "nouns"))
        answers, verbs, nouns = _columns(path, data, "predictions", "verb_labels", "noun_labels")
        return lta_scores(answers, verbs, nouns, names, compat=compat)
    known = ", ".join((*COIN_SINGLE, *COIN_PROCEDURE, EGO4D_LTA))
    raise ValueError(f"{path}: benchmark is {benchmark!r}, not one of {known}")


def coin_accuracy(
    predictions: Sequence[str], labels: Sequence[str], categories: Sequence[str], compat: bool = False
) -> dict[str, Any]:
    """Top-1 accuracy of step, next and task: one answer each.

    Args:
        predictions: What the model answered.
        labels: The right category of each.
        categories: All of the split.
        compat: See the module's docstring.

    Returns:
        `accuracy` in percent (None if there is nothing to count) and `n`.
    """
    nearest = _Nearest(categories if compat else map(_plain, categories))
    pairs = []
    for prediction, label in zip(predictions, labels, strict=True):
        pairs.append((prediction.lower().rstrip("."), label) if compat else (_plain(prediction), _plain(label)))
    return _accuracy([_same(*pair, nearest, compat) for pair in pairs])


def coin_procedure_accuracy(
    predictions: Sequence[str], labels: Sequence[Sequence[str]], categories: Sequence[str], compat: bool = False
) -> dict[str, Any]:
    """Top-1 accuracy of the steps that follow, listed one a line; line i is compared with label i.

    Arguments and result are those of `coin_accuracy`, with a list of labels for each answer; `n` counts steps.
    """
    nearest = _Nearest(categories if compat else map(_plain, categories))
    right = []
    for prediction, steps in zip(predictions, labels, strict=True):
        if compat:
            lines = [line.split(". ")[-1] for line in prediction.split("\n")][: len(steps)]
            right += [_same(line, step, nearest, compat) for line, step in zip(lines, steps, strict=False)]
        else:
            lines = [_plain(_NUMBER.sub("", line)) for line in prediction.split("\n") if line.strip()]
            lines += [""] * (len(steps) - len(lines))
            right += [_same(line, _plain(step), nearest, compat) for line, step in zip(lines, steps, strict=False)]
    return _accuracy(right)


def lta_scores(
    predictions: Sequence[Sequence[str]],
    verb_labels: Sequence[Sequence[int]],
    noun_labels: Sequence[Sequence[int]],
    names: LTANames,
    compat: bool = False,
) -> dict[str, Any]:
    """Edit distances of the actions to come, of verbs, nouns and both.

    Args:
        predictions: K answers for each clip.
        verb_labels: Z indices for each clip.
        noun_labels: The same.
        names: The taxonomy.
        compat: See the module's docstring.

    Returns:
        `verb`, `noun` and `action`, each with `ED` (ED@Z, the normalised edit distance of the best answer) and `AUED`
        (the area under it for 1 to Z actions), and `n` clips; None where there are no clips.

    Raises:
        ValueError: If clips differ in their number of answers or labels.
    """
    verbs, nouns = np.array(_even(verb_labels, "verb labels")), np.array(_even(noun_labels, "noun labels"))
    if verbs.shape != nouns.shape:
        raise ValueError(f"verb labels of shape {verbs.shape}, but noun labels of shape {nouns.shape}")
    if not len(verbs):
        return {**{kind: {"ED": None, "AUED": None} for kind in ("verb", "noun", "action")}, "n": 0}
    read = [[names.read(text, verbs.shape[1], compat) for text in texts] for texts in _even(predictions, "answers")]
    actions = np.array(read)  # (N, K, Z, 2)
    both = actions[..., 0] * len(names.nouns) + actions[..., 1]
    kinds = {
        "verb": (actions[..., 0], verbs),
        "noun": (actions[..., 1], nouns),
        "action": (both, verbs * len(names.nouns) + nouns),
    }
    return {
        **{kind: {"ED": mean_edit_distance(*pair), "AUED": mean_aued(*pair)} for kind, pair in kinds.items()},
        "n": len(verbs),
    }


class LTANames:
    """The verbs and nouns of LTA's taxonomy, and the text of actions.

    Args:
        verbs: As in `fho_lta_taxonomy.json`, or plain.
        nouns: The same.
    """

    def __init__(self, verbs: Sequence[str], nouns: Sequence[str]):
        self.verbs, self.nouns = [lta_word(verb) for verb in verbs], [lta_word(noun) for noun in nouns]
        self._indices = {
            f"{verb} {noun}": (index, other)
            for index, verb in enumerate(self.verbs)
            for other, noun in enumerate(self.nouns)
        }
        self._nearest = _Nearest(self._indices)

    def text(self, actions: Sequence[tuple[int, int]]) -> str:
        """The answer that lists these actions, one a line."""
        lines = (f"{self.verbs[verb].capitalize()} {self.nouns[noun]}." for verb, noun in actions)
        return "\n".join(f"{index}. {line}" for index, line in enumerate(lines, 1))

    def read(self, text: str, num_actions: int, compat: bool = False) -> list[tuple[int, int]]:
        """The (verb, noun) indices of the numbered lines of an answer, the last one repeated up to `num_actions`."""
        found = [match.group(1) for line in text.strip(" \n").split("\n") if (match := _NUMBERED.search(line))]
        names = [action.lower().rstrip(".") for action in found[:num_actions]]
        actions = [self._indices[self._nearest(name)] for name in names if compat or name.strip()]
        last = actions[-1] if actions else (0, 0) if compat else (NO_ACTION, NO_ACTION)
        return actions + [last] * (num_actions - len(actions))


def lta_word(name: str) -> str:
    """The word for a verb or noun of the taxonomy: `turn_on_(switch,_start,_light)` is `turn on`."""
    return _LTA_WORDS.get(name, re.sub("_$", "", name.split("(")[0]).replace("_", " "))


def mean_edit_distance(predictions: np.ndarray, labels: np.ndarray) -> float:
    """ED@Z: the Levenshtein distance to the labels divided by Z, of the best answer, mean over clips.

    Args:
        predictions: (N, K, Z) indices.
        labels: (N, Z).
    """
    clips, answers, length = predictions.shape
    targets = np.repeat(labels, answers, axis=0)  # (N·K, Z)
    distances = edit_distances(predictions.reshape(-1, length), targets)[:, -1]
    return float(distances.reshape(clips, answers).min(1).mean() / length)


def mean_aued(predictions: np.ndarray, labels: np.ndarray) -> float:
    """AUED: the area under ED@z for z = 1, …, Z by the trapezoidal rule, divided by Z - 1; arguments as above."""
    length = labels.shape[1]
    curve = [mean_edit_distance(predictions[:, :, :z], labels[:, :z]) for z in range(1, length + 1)]
    return float(np.trapezoid(curve) / (length - 1)) if length > 1 else curve[0]


def edit_distances(sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Levenshtein distances of many pairs at once.

    Args:
        sources: (P, m) symbols, or (1, m) for one that is compared with all.
        targets: (P, n) symbols.

    Returns:
        (P, n + 1): in column j the distance between the whole source and the first j symbols of the target.
    """
    steps = np.arange(targets.shape[1] + 1, dtype=np.int32)
    row = np.tile(steps, (len(targets), 1))
    for index in range(sources.shape[1]):
        replaced = row[:, :-1] + (targets != sources[:, index, None])
        row[:, 1:] = np.minimum(replaced, row[:, 1:] + 1)
        row[:, 0] = index + 1
        # Inserting costs 1 a symbol: row[j] = min over i <= j of row[i] + (j - i).
        row = np.minimum.accumulate(row - steps, axis=1) + steps
    return row


class _Nearest:
    """Looks up the nearest of some names, the first by alphabet of several equally near ones."""

    def __init__(self, names):
        self.names = sorted(set(names))
        if not self.names:
            raise ValueError("there are no categories to choose from")
        self.lengths = np.array([len(name) for name in self.names])
        self.symbols = np.full((len(self.names), self.lengths.max()), -1, dtype=np.int32)
        for row, name in zip(self.symbols, self.names, strict=True):
            row[: len(name)] = [ord(character) for character in name]
        self.found = {name: name for name in self.names}

    def __call__(self, text: str) -> str:
        if text not in self.found:
            source = np.array([[ord(character) for character in text]], dtype=np.int32)
            distances = edit_distances(source, self.symbols)[np.arange(len(self.names)), self.lengths]
            self.found[text] = self.names[int(distances.argmin())]
        return self.found[text]


def _same(answer: str, label: str, nearest: _Nearest, compat: bool) -> bool:
    return bool(compat or answer) and (answer == label or nearest(answer) == label)


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(". ")


def _accuracy(right: Sequence[bool]) -> dict[str, Any]:
    return {"accuracy": sum(right) / len(right) * 100 if right else None, "n": len(right)}


def _even(rows: Sequence[Sequence], what: str) -> Sequence[Sequence]:
    for index, row in enumerate(rows):
        if len(row) != len(rows[0]) or not row:
            raise ValueError(
                f"clip {index} has {len(row)} {what}, clip 0 has {len(rows[0])}: they must be equally many"
            )
    return rows


def _fields(path: str | os.PathLike, data: Mapping[str, Any], *names: str) -> list[Any]:
    missing = [name for name in names if name not in data]
    if missing:
        raise ValueError(f"{path}: {data['benchmark']} needs {', '.join(missing)} beside the rows")
    return [data[name] for name in names]


def _columns(path: str | os.PathLike, data: Mapping[str, Any], *names: str) -> list[list[Any]]:
    rows = data.get("rows")
    if not isinstance(rows, list):
        raise ValueError(f"{path}: rows must be a list")
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}: row {index} must be an object, not {row!r}")
        if missing := [name for name in names if name not in row]:
            raise ValueError(f"{path}: row {index} lacks {', '.join(missing)}")
    return [[row[name] for row in rows] for name in names]
