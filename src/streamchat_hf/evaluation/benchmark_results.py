"""The results of a benchmark as a table for people and as metadata for the card of a model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData

NAMES = {
    "streamworld": "StreamWorld",
    "ovobench": "OVO-Bench",
    "streamingbench": "StreamingBench",
    "etbench": "ET-Bench",
    "streamchat-eval": "StreamChat evaluation",
}


class Score(NamedTuple):
    """One number of a benchmark.

    Attributes:
        metric: What kind of number, as the Hub calls it: `"accuracy"`, `"f1"` ...
        label: What of.
        value: The number, as the benchmark gives it; `None` if there was nothing to count.
        questions: Of how many; `None` where that is no plain number.
    """

    metric: str
    label: str
    value: float | None
    questions: int | None = None


def conditions(results: Mapping[str, Any]) -> str:
    """The conditions of a run in a few words."""
    parts = [results["protocol"]]
    if results["protocol"] == "streaming":
        parts.append(f"{results['clock']} clock")
        if results["tokens_per_second"] is not None:
            parts.append(f"{results['tokens_per_second']:g} tokens per second")
    return ", ".join([*parts, f"{results['fps']:g} fps"])


def results_page(results: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """The results in Markdown."""
    rows = results["rows"]
    late, failed = (sum(bool(row.get(what)) for row in rows) for what in ("late", "error"))
    lines = [
        f"{NAMES[results['benchmark']]}, {results['model']}: {conditions(results)}.",
        "",
        "| | metric | score | questions |",
        "|---|---|---:|---:|",
        *(f"| {s.label} | {s.metric} | {number(s.value)} | {number(s.questions)} |" for s in scores),
        "",
        f"{len(rows)} answers: {late} late, {failed} about videos that could not be watched to the end.",
    ]
    return "\n".join(lines) + "\n"


def eval_results(results: Mapping[str, Any], scores: Sequence[Score]) -> list[EvalResult]:
    """The same for the metadata of a card; what was not measured is left out."""
    arguments = {key: results[key] for key in ("protocol", "clock", "tokens_per_second", "fps", "deadline", "seed")}
    return [
        EvalResult(
            task_type="video-text-to-text",
            dataset_type=results["benchmark"],
            dataset_name=NAMES[results["benchmark"]],
            dataset_args={key: value for key, value in arguments.items() if value is not None},
            metric_type=score.metric,
            metric_name=f"{score.label}, {results['protocol']}",
            metric_value=round(score.value, 4),
        )
        for score in scores
        if score.value is not None
    ]


def card_block(results: Mapping[str, Any], scores: Sequence[Score]) -> str:
    """The metadata as YAML, for the head of the model's README; empty if nothing was measured."""
    found = eval_results(results, scores)
    return ModelCardData(model_name=results["model"], eval_results=found).to_yaml() + "\n" if found else ""


def number(value: float | None) -> str:
    """Four digits of a score, all of a count, a dash for what was not measured."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
