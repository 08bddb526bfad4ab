"""Right or wrong: every value word spoken about a StreamWorld, against the world at the moment it is spoken.

The same rules hold for a viewer who sees every frame and for one who only has the picture of the question's moment.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from streamchat_hf.data.streamworld import Event, SceneState, World
from streamchat_hf.data.streamworld_dialogue import (
    BACK,
    KIND_OF,
    NOTHING,
    NOW,
    TELL,
    WATCH,
    Question,
    answer,
    can_answer,
    grid,
)

REPORT_WINDOW = 2.0  # seconds in which a change must be reported

Spoken = Sequence[tuple[str, float]]
Row = dict[str, Any]


def score_answer(world: World, question: Question, ask_time: float, spoken: Spoken) -> list[Row]:
    """Score the value words of one answer.

    After `TELL` every word is scored: any word but the value of the attribute, or `nothing` while nothing is visible,
    is wrong. Otherwise the value words are; a word for something that the scene does not have (a digit's name for a
    shape) is a wrong word for what the scene is about.

    Args:
        world: What was shown.
        question: What was asked.
        ask_time: Of the question, in seconds.
        spoken: `(word, seconds)` in the order in which they were spoken.

    Returns:
        Per scored word `word`, `kind` (`"colour"`, `"shape"`, `"digit"`, `"motion"`, `"count"` or `"presence"`),
        `time`, `correct`, `moved` (whether the truth differs from that at `ask_time`; a perfect viewer of an old
        picture is right exactly where it does not) and `in_heldout_combo`.
    """
    rows = []
    asked = world.state(ask_time)
    for word, time in spoken:
        state = world.state(time)
        if question.kind == TELL and (slot := question.attr) is not None:
            kind = "presence" if word == NOTHING else slot
            correct, moved = word == state.tell(slot), state.tell(slot) != asked.tell(slot)
        elif KIND_OF.get(word) == "presence":
            kind = "presence"
            correct, moved = (word == BACK) == state.present, state.present != asked.present
        elif word in KIND_OF:
            kind = KIND_OF[word] if KIND_OF[word] in world.slots else world.slot
            correct, moved = word == state.tell(kind), state.tell(kind) != asked.tell(kind)
        else:
            continue
        row = {"word": word, "kind": kind, "time": time, "correct": correct, "moved": moved}
        rows.append({**row, "in_heldout_combo": state.is_heldout})
    return rows


def score_changes(world: World, question: Question, ask_time: float, spoken: Spoken) -> list[Row]:
    """Score which changes an answer to `WATCH` reported, and which of its reports are false.

    A report is `now` with the next word. It is false if that word is no value or is not true at its time, or if it
    repeats what was last said of the same attribute though that has not changed since.

    A change counts if it comes at least half a second after the question, its value lasts and stays visible for
    `REPORT_WINDOW` seconds, these lie within the answer, and a perfect viewer who speaks at the same times reports it
    within them: nobody can while still describing or catching up. It is reported if its value is spoken, in a report,
    within them.

    Args:
        world: What was shown.
        question: What was asked. There are no changes to report unless it is `WATCH`.
        ask_time: Of the question, in seconds.
        spoken: `(word, seconds)` in the order in which they were spoken.

    Returns:
        Per change `role` `"event"`, `kind`, `value`, `time` and `reported`; then per report `role` `"report"`, `kind`
        (`None` if it names no value), `value`, `time` and `false`.
    """
    if question.kind != WATCH or not spoken:
        return []
    times, frames = [time for _, time in spoken], grid(world.duration)
    # Who begins with something that is no word may speak when nothing is left to describe.
    perfect = answer(world, question, ask_time, times, frames) if can_answer(world, question, times, frames) else []
    possible = list(_reports([(word.text, word.time) for word in perfect]))
    made = list(_reports(spoken))
    rows = []
    for event in world.events:
        early, late = event.time < ask_time + 0.5, event.time + REPORT_WINDOW > spoken[-1][1]
        if early or late or not _lasts(world, event) or not _reported(event, possible):
            continue
        row = {"role": "event", "kind": event.kind, "value": event.new, "time": event.time}
        rows.append({**row, "reported": _reported(event, made)})
    for word, time in made:
        row = {"role": "report", "kind": KIND_OF.get(word), "value": word, "time": time}
        rows.append({**row, "false": _is_false(world, ask_time, spoken, word, time)})
    return rows


def summarise(rows: Iterable[Row], changes: Iterable[Row] = ()) -> dict[str, Any]:
    """Pool the rows of many answers.

    Args:
        rows: From `score_answer`.
        changes: From `score_changes`.

    Returns:
        `n` and `accuracy` (`None` when there is nothing to count) over all words; the same pair for `moved` and
        `unmoved` words, for those `in_heldout_combo`, and `by_kind`; `oracle`, the share of words for which the truth
        is that of the question's moment: what a perfect viewer of an old picture would score where these words are;
        and `changes` with `n`, `reported` (share), `reports` and `false_reports` (share).
    """
    rows, changes = list(rows), list(changes)
    events = [row["reported"] for row in changes if row["role"] == "event"]
    reports = [row["false"] for row in changes if row["role"] == "report"]
    kinds = sorted({row["kind"] for row in rows})
    return {
        **_pair(rows),
        "moved": _pair(row for row in rows if row["moved"]),
        "unmoved": _pair(row for row in rows if not row["moved"]),
        "in_heldout_combo": _pair(row for row in rows if row["in_heldout_combo"]),
        "by_kind": {kind: _pair(row for row in rows if row["kind"] == kind) for kind in kinds},
        "oracle": _share([not row["moved"] for row in rows]),
        "changes": {
            "n": len(events),
            "reported": _share(events),
            "reports": len(reports),
            "false_reports": _share(reports),
        },
    }


def _pair(rows: Iterable[Row]) -> dict[str, Any]:
    correct = [row["correct"] for row in rows]
    return {"n": len(correct), "accuracy": _share(correct)}


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _reports(spoken: Spoken) -> Iterable[tuple[str, float]]:
    return [after for before, after in itertools.pairwise(spoken) if before[0] == NOW]


def _reported(event: Event, reports: Iterable[tuple[str, float]]) -> bool:
    end = event.time + REPORT_WINDOW
    return any(word == event.new and event.time <= time <= end for word, time in reports)


def _lasts(world: World, event: Event) -> bool:
    end = event.time + REPORT_WINDOW
    return not any(event.time < other.time <= end and other.kind in (event.kind, "presence") for other in world.events)


def _is_false(world: World, ask_time: float, spoken: Spoken, word: str, time: float) -> bool:
    kind = KIND_OF.get(word)
    if kind is None or not _is_true(world.state(time), kind, word):
        return True
    before = [(other, at) for other, at in spoken if at < time and KIND_OF.get(other) == kind]
    last, said = before[-1] if before else (BACK if kind == "presence" else None, ask_time)
    return word == last and not any(e.kind == kind and said < e.time <= time for e in world.events)


def _is_true(state: SceneState, kind: str, word: str) -> bool:
    return (word == BACK) == state.present if kind == "presence" else word == state.tell(kind)
