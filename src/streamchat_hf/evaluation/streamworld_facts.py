"""What holds when in a StreamWorld, as the references of the metric `streaming_score`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from streamchat_hf.data.streamworld import SceneState, World
from streamchat_hf.data.streamworld_dialogue import BACK, GONE, NOTHING, TELL, Question, answer, grid


def streamworld_facts(
    world: World, question: Question, ask_time: float, word_times: Sequence[float]
) -> list[dict[str, Any]]:
    """Return everything that an answer can truly say, and when.

    The rules are those of `score_answer`. After `TELL` only the asked attribute is told, by `nothing` while nothing is
    visible. Otherwise every attribute can be told while something is visible, and whether it is there: `back`, or else
    `gone` and `nothing`.

    A fact is due if a perfect viewer who sees two frames per second and speaks at the same times says it. Nobody can
    report what changes again before the next word, or while still describing, so that is not asked of anyone.

    Args:
        world: What was shown.
        question: What was asked.
        ask_time: Of the question, in seconds.
        word_times: When words could be spoken, in seconds, ascending: also those that an answer which ended early
            left out.

    Returns:
        Per fact `slot`, `value`, `start`, `end` (seconds; it holds in `[start, end)`) and `due`.

    Raises:
        ValueError: As `answer` does, if the question cannot be answered.
    """
    facts: list[dict[str, Any]] = []
    open_: dict[tuple[str, str], dict[str, Any]] = {}
    times = [0.0, *(event.time for event in world.events), world.duration]
    for start, end in itertools.pairwise(times):
        state = world.state(start)
        now = _true(world, question, state)
        open_ = {pair: fact for pair, fact in open_.items() if pair in now}
        for slot, value in now:
            if (slot, value) not in open_:
                open_[slot, value] = {"slot": slot, "value": value, "start": start}
                facts.append(open_[slot, value])
            open_[slot, value]["end"] = end
    said = answer(world, question, ask_time, word_times, grid(world.duration))
    for fact in facts:
        fact["due"] = any(word.text == fact["value"] and fact["start"] <= word.time < fact["end"] for word in said)
    return facts


def _true(world: World, question: Question, state: SceneState) -> list[tuple[str, str]]:
    """The slots and values that are true words in a state."""
    if question.kind == TELL and (slot := question.attr) is not None:
        return [(slot if state.present else "presence", state.tell(slot))]
    if not state.present:
        return [("presence", GONE), ("presence", NOTHING)]
    return [*((slot, state.tell(slot)) for slot in world.slots), ("presence", BACK)]
