"""When an activation model says that it is time to answer, against when it was: event F1 within a second."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from streamchat_hf.data.live_conversation import LiveSample
from streamchat_hf.streaming.activation_watcher import ActivationWatcher
from streamchat_hf.training.activation_rows import asked_parts
from streamchat_hf.training.live_collator import LiveCollator

# Seconds by which an alarm may be early or late.
TOLERANCE = 1.0
# Where a threshold is looked for: first coarsely, then finely around the best.
THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
FINE = (-0.1, -0.05, 0.05, 0.1)


class Watched(NamedTuple):
    """A row, ready to be watched any number of times.

    Attributes:
        row: The row.
        frames: Its frames, embedded.
    """

    row: LiveSample
    frames: list[Any]


def event_times(row: LiveSample) -> list[float]:
    """Seconds at which an answer is due: those of the frames after which it comes.

    An answer that is given at once to a question is no event: nobody has to notice anything.
    """
    due, seen, watched = [], 0, False
    for message in row["conversation"]:
        seen += message.get("num_frames", 0)
        if message["role"] == "assistant" and watched:
            due.append(row["frame_times"][seen - 1])
        watched = message["role"] == "stream"
    return due


def matched_events(due: Sequence[float], alarms: Sequence[float], tolerance: float = TOLERANCE) -> int:
    """How many events have an alarm of their own within the tolerance: as many pairs as there can be.

    Args:
        due: Seconds, ascending.
        alarms: Seconds, ascending.
        tolerance: Seconds.
    """
    pairs = i = j = 0
    while i < len(due) and j < len(alarms):
        if abs(due[i] - alarms[j]) <= tolerance + 1e-6:
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif due[i] < alarms[j]:
            i += 1
        else:
            j += 1
    return pairs


def event_f1(
    due: Iterable[Sequence[float]], alarms: Iterable[Sequence[float]], tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """F1 of alarms over the events of all rows together.

    Args:
        due: Of each row the seconds of its events, ascending.
        alarms: Of each row the seconds of its alarms, ascending.
        tolerance: Seconds by which an alarm may be early or late; one event takes one alarm.

    Returns:
        `f1`, `precision`, `recall` (1.0 each where there is nothing to find and nothing was found), and the numbers of
        `events`, `alarms` and `matched`.
    """
    pairs = events = raised = 0
    for of_row, alarms_of_row in zip(due, alarms, strict=True):
        pairs += matched_events(of_row, alarms_of_row, tolerance)
        events, raised = events + len(of_row), raised + len(alarms_of_row)
    return {
        "f1": 2 * pairs / (events + raised) if events + raised else 1.0,
        "precision": pairs / raised if raised else float(not events),
        "recall": pairs / events if events else 1.0,
        "events": events,
        "alarms": raised,
        "matched": pairs,
    }


def encode_rows(watcher: ActivationWatcher, rows: Iterable[LiveSample]) -> list[Watched]:
    """Renders or reads the frames of rows and embeds them, each once; rows that cannot be used raise `ValueError`."""
    collator = LiveCollator(watcher.processor)
    found = []
    for row in rows:
        pixels = collator.sample(dict(row)).pixels
        frames, _ = watcher.encode_frames(list(zip(row["frame_times"], pixels, strict=True)), None)
        found.append(Watched(row, frames))
    return found


def watch_row(watcher: ActivationWatcher, watched: Watched, tolerance: float = TOLERANCE) -> list[float]:
    """Lets a watcher see a row frame after frame, and gives the seconds of its alarms.

    A talker stands beside it that knows what is due: an alarm within the tolerance of an event that has not been told
    is followed by its answer, another one by nothing. Questions come when the row has them; an answer that follows one
    at once is given then.
    """
    row, alarms = watched.row, []
    for part in asked_parts(row["conversation"]):
        question, *messages = part.conversation
        watcher.ask(question["content"])
        untold: list[tuple[float, str]] = []
        seen = part.first
        for message in messages:
            seen += message.get("num_frames", 0)
            if message["role"] == "assistant":
                if seen == part.first:
                    watcher.said(message["content"])
                else:
                    untold.append((row["frame_times"][seen - 1], message["content"]))
        for frame in watched.frames[part.first : part.end]:
            if not watcher.watch([frame]):
                continue
            alarms.append(frame.t_sec)
            near = [event for event in untold if abs(event[0] - frame.t_sec) <= tolerance + 1e-6]
            if near:
                untold.remove(near[0])
                watcher.said(near[0][1])
    return alarms


def watch_rows(
    model: Any,
    processor: Any,
    rows: Iterable[Any],
    threshold: float | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Event F1 of an activation model that watches rows live.

    Args:
        model: A [`StreamBridgeActivationModel`].
        processor: Its processor.
        rows: What is asked and shown, and when an answer is due, as `LiveSample`s; or what `encode_rows` made of them.
        threshold: `None`: the model's.
        tolerance: Seconds by which an alarm may be early or late.

    Returns:
        What [`event_f1`] does, the `threshold`, and `rows`, of each when an answer was `due` and the `alarms`.
    """
    was_training = model.training
    model.eval()
    watcher = ActivationWatcher(model, processor, threshold)
    given = list(rows)
    ready: list[Watched] = given if given and hasattr(given[0], "frames") else encode_rows(watcher, given)
    alarms = [watch_row(watcher, watched, tolerance) for watched in ready]
    model.train(was_training)
    due = [event_times(watched.row) for watched in ready]
    raw = [{"due": of_row, "alarms": raised} for of_row, raised in zip(due, alarms, strict=True)]
    return {**event_f1(due, alarms, tolerance), "threshold": watcher.threshold, "rows": raw}


def calibrate(
    model: Any, processor: Any, rows: Iterable[LiveSample], tolerance: float = TOLERANCE
) -> list[dict[str, Any]]:
    """Looks for the threshold of the best event F1 on validation rows, and gives it to the model's configuration.

    Every threshold is tried live, because what is answered changes what follows.

    Args:
        model: A [`StreamBridgeActivationModel`]; its `config.threshold` changes.
        processor: Its processor.
        rows: Validation rows, not those of the test.
        tolerance: See [`event_f1`].

    Returns:
        For every threshold that was tried what [`event_f1`] says of it, thresholds ascending.
    """
    watched = encode_rows(ActivationWatcher(model.eval(), processor), rows)
    tried: dict[float, dict[str, Any]] = {}

    def look(thresholds: Iterable[float]) -> float:
        for threshold in thresholds:
            result = watch_rows(model, processor, watched, threshold, tolerance)
            tried[threshold] = {key: value for key, value in result.items() if key != "rows"}
        return max(sorted(tried), key=lambda threshold: tried[threshold]["f1"])

    best = look(THRESHOLDS)
    model.config.threshold = look(round(best + step, 2) for step in FINE if 0 < best + step < 1)
    return [tried[threshold] for threshold in sorted(tried)]
