"""How a checkpoint came about, read from the `training_log.json` that our trainers leave beside it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        name: As the recipe has it.
        steps: Updates that were made; `None` if the log has none.
        minutes: How long its last session took, all of it if it was never interrupted; `None` if the log does not say.
    """

    name: str
    steps: int | None
    minutes: float | None


@dataclass(frozen=True)
class TrainingFacts:
    """What a card says about a run; `None` and empty where the log is silent.

    Attributes:
        stages: In their order.
        data: A few words on each source of rows.
        datasets: Sources that are Hub ids.
        base_models: Models the run began with that are Hub ids.
        only_streamworld: Whether nothing but StreamWorld was shown, to a model without a past.
        seed: Of the run.
        commit: Of the code.
    """

    stages: tuple[Stage, ...]
    data: tuple[str, ...]
    datasets: tuple[str, ...]
    base_models: tuple[str, ...]
    only_streamworld: bool
    seed: int | None
    commit: str | None


def training_facts(log: Mapping[str, Any]) -> TrainingFacts:
    """Reads a log of `training.sft`, `training.live` or `training.streamworld`.

    Args:
        log: The content of `training_log.json`.
    """
    recipe, curve = log["recipe"], log["log"]
    if isinstance(curve, dict):  # training.streamworld: several stages, all from StreamWorld and from nothing
        data = ("StreamWorld, rendered while training; no combination of the held-out split is ever shown",)
        stages = tuple(_stage(name, rows) for name, rows in curve.items())
        return TrainingFacts(stages, data, (), (), True, recipe["seed"], log.get("commit"))
    sources = recipe["datasets"] or []
    begun_with = (recipe["text_backbone"], recipe["vision_backbone"], log.get("model", {}).get("model_name_or_path"))
    return TrainingFacts(
        stages=(_stage(recipe["stage"], curve),),
        data=tuple(map(_source, sources)),
        datasets=_hub_ids(source.get("path") for source in sources),
        base_models=_hub_ids(begun_with),
        # The tower of a live run is that of the shipped checkpoint unless it is named.
        only_streamworld=not any(begun_with) and {source.get("name") for source in sources} == {"streamworld"},
        seed=log["arguments"].get("seed"),
        commit=log.get("commit"),
    )


def describe(facts: TrainingFacts) -> str:
    """The section of a card, in Markdown."""
    how = ["Trained with `streamchat train`"]
    how += [f"at commit `{facts.commit}`"] if facts.commit else []
    how += [f"seed {facts.seed}"] if facts.seed is not None else []
    lines = [f"{', '.join(how)}. The recipe and the whole loss curve are in `training_log.json`.", ""]
    lines += ["| stage | steps | minutes since it was last resumed |", "|---|---:|---:|"]
    for stage in facts.stages:
        minutes = "–" if stage.minutes is None else f"{stage.minutes:.1f}"
        lines.append(f"| {stage.name} | {'–' if stage.steps is None else stage.steps} | {minutes} |")
    if facts.data:
        lines += ["", f"Data: {'; '.join(facts.data)}."]
    return "\n".join(lines)


def _stage(name: str, rows: list[dict[str, Any]]) -> Stage:
    steps = max((row["step"] for row in rows if "step" in row), default=None)
    seconds = next((row["train_runtime"] for row in rows if "train_runtime" in row), None)
    return Stage(name, steps, None if seconds is None else seconds / 60)


def _source(source: Mapping[str, Any]) -> str:
    """Not its paths: they are of one machine."""
    name = source.get("name") or source["path"]
    words = [f"`{Path(name).name if Path(name).is_absolute() else name}`"]
    words += [f"{key} {source[key]}" for key in ("split", "weight") if source.get(key) is not None]
    return ", ".join(words)


def _hub_ids(values: Iterable[str | None]) -> tuple[str, ...]:
    """Those that are no folder here; each once."""
    return tuple(
        dict.fromkeys(value for value in values if value and _HUB_ID.fullmatch(value) and not Path(value).exists())
    )
