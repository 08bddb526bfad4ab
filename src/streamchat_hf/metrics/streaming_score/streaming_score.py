"""streaming_score: was every word that tells the state of a changing world true when it was spoken?

`evaluate` copies this file, so it imports nothing of the package beside it.
"""

import math
from statistics import fmean
from typing import Any

import datasets
import evaluate
import numpy as np

_DESCRIPTION = """\
Scores spoken words against facts that hold for a while. A state word scores 1 if it is true when spoken,
max(0, 1 - delta / tau) if it stopped being true delta seconds before, else 0; a fact that was due and never spoken
scores 0; the score is the mean.
"""
_CITATION = ""
_INPUTS = """
Args:
    predictions: per answer a list of {word, time} with the time in seconds, and optionally frame_age: how old the
        newest frame was that the speaker had seen, in seconds.
    references: per answer a list of {slot, value, start, end}: in [start, end), in seconds, the slot had this value,
        which is one word. With due=False nobody had to say it; it is due if the key is missing.
    tau: seconds after its end in which a fact is still worth something.
    slots: {slot: [values]}: the words that are scored even where no reference of the call has them. Without it a word
        that is no value in any reference is taken for a connecting word.
    dropped_frames: per answer how many frames the speaker never saw.
Returns:
    score, accuracy, n, words, due, missed, mean_lateness, by_kind, frame_age and dropped_frames; see the card.
"""
_WORD = ("word", "time"), {"frame_age": None}
_FACT = ("slot", "value", "start", "end"), {"due": True}
# Written words carry the punctuation around them.
_AROUND = " \t\n.,;:!?\"'()[]"


class StreamingScore(evaluate.Metric):
    """The metric `streaming_score`."""

    def _info(self) -> evaluate.MetricInfo:
        text, seconds, flag = datasets.Value("string"), datasets.Value("float64"), datasets.Value("bool")
        fact = {"slot": text, "value": text, "start": seconds, "end": seconds, "due": flag}
        word = {"word": text, "time": seconds, "frame_age": seconds}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.List(word), "references": datasets.List(fact)}),
        )

    # The library's check of types wants every key in every dict, so those that may be missing are filled in before it.

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add answers and their facts, as `compute` takes them."""
        words = [_filled(answer, *_WORD) for answer in predictions or []]
        facts = [_filled(truth, *_FACT) for truth in references or []]
        super().add_batch(predictions=words, references=facts, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one answer and its facts."""
        super().add(prediction=_filled(prediction or [], *_WORD), reference=_filled(reference or [], *_FACT), **kwargs)

    def _compute(
        self,
        predictions: list[list[dict]],
        references: list[list[dict]],
        tau: float = 2.0,
        slots: dict[str, list[str]] | None = None,
        dropped_frames: list[int] | None = None,
    ) -> dict[str, Any]:
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be a positive number of seconds, not {tau}")
        if dropped_frames is not None and len(dropped_frames) != len(predictions):
            raise ValueError(f"{len(dropped_frames)} counts of dropped frames for {len(predictions)} answers")
        answers = [_words(words) for words in predictions]
        truths = [_facts(facts) for facts in references]
        slot_of = {_value(value): slot for slot, values in (slots or {}).items() for value in values}
        for facts in truths:
            for fact in facts:
                slot_of.setdefault(fact["value"], fact["slot"])
        rows = [row for pair in zip(answers, truths, strict=True) for row in _score(*pair, slot_of, tau)]
        ages = [word["frame_age"] for words in answers for word in words if word["frame_age"] is not None]
        lateness = [row["lateness"] for row in rows if row["score"] > 0]
        return {
            **_summary(rows),
            "due": sum(fact["due"] for facts in truths for fact in facts),
            "mean_lateness": fmean(lateness) if lateness else None,
            "by_kind": {
                slot: _summary([row for row in rows if row["slot"] == slot])
                for slot in sorted({row["slot"] for row in rows})
            },
            "frame_age": _percentiles([age for age in ages if not math.isnan(age)]),
            "dropped_frames": None if dropped_frames is None else int(sum(dropped_frames)),
        }


def _filled(items: list[dict], required: tuple[str, ...], optional: dict[str, Any]) -> list[dict]:
    for item in items:
        if set(item) - set(optional) != set(required):
            raise ValueError(f"expected {{{', '.join(required)}}}, optionally {', '.join(optional)}, not {item}")
    return [{**optional, **item} for item in items]


def _score(words: list[dict], facts: list[dict], slot_of: dict[str, str], tau: float) -> list[dict[str, Any]]:
    """One row per state word, then one per due fact that was never spoken.

    Args:
        words: Of one answer.
        facts: About what it saw.
        slot_of: The words that are values, each with the slot that it counts for unless it tells a fact of another.
        tau: Seconds.
    """
    rows = []
    spoken = [word for word in words if word["word"] in slot_of]
    for word in spoken:
        slot, score, lateness = slot_of[word["word"]], 0.0, None
        for fact in facts:
            credit = _credit(word, fact, tau)
            if credit > score:
                slot, score, lateness = fact["slot"], credit, max(0.0, word["time"] - fact["end"])
        true = any(_credit(word, fact, tau) == 1 and word["time"] < fact["end"] for fact in facts)
        rows.append({"slot": slot, "score": score, "spoken": True, "true": true, "lateness": lateness})
    for fact in facts:
        if fact["due"] and not any(_credit(word, fact, tau) > 0 for word in spoken):
            rows.append({"slot": fact["slot"], "score": 0.0, "spoken": False, "true": False, "lateness": None})
    return rows


def _credit(word: dict, fact: dict, tau: float) -> float:
    """What a word is worth for one fact; for another value, or before the fact began, nothing."""
    if word["word"] != fact["value"] or word["time"] < fact["start"]:
        return 0.0
    return max(0.0, 1 - max(0.0, word["time"] - fact["end"]) / tau)


def _summary(rows: list[dict]) -> dict[str, Any]:
    true = [row["true"] for row in rows if row["spoken"]]
    return {
        "score": fmean(row["score"] for row in rows) if rows else None,
        "accuracy": fmean(true) if true else None,
        "n": len(rows),
        "words": len(true),
        "missed": len(rows) - len(true),
    }


def _percentiles(ages: list[float]) -> dict[str, float] | None:
    if not ages:
        return None
    return {"p50": float(np.percentile(ages, 50)), "p95": float(np.percentile(ages, 95)), "max": max(ages)}


def _words(words: list[dict]) -> list[dict]:
    for word in words:
        if word["word"] is None or word["time"] is None or not math.isfinite(word["time"]):
            raise ValueError(f"a word needs its text and its time in seconds: {word}")
    return [{**word, "word": _plain(word["word"])} for word in words]


def _facts(facts: list[dict]) -> list[dict]:
    for fact in facts:
        if any(fact[key] is None for key in ("slot", "value", "start", "end")):
            raise ValueError(f"a fact needs its slot, value, start and end: {fact}")
        if not fact["start"] <= fact["end"]:
            raise ValueError(f"a fact ends before it starts: {fact}")
    return [{**fact, "value": _value(fact["value"]), "due": fact["due"] is not False} for fact in facts]


def _value(value: str) -> str:
    plain = _plain(value)
    if len(plain.split()) != 1:
        raise ValueError(f"a value is one word, not {value!r}")
    return plain


def _plain(word: str) -> str:
    return word.strip(_AROUND).casefold()
