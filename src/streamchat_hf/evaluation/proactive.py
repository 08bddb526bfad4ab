"""Models and policies on the same proactive task: when they speak, and whether they say the right words.

Everyone watches the same StreamWorlds, is asked the same question before the first frame, and goes through a
[`StreamingSession`] under the simulated clock, as a user's model does.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from streamchat_hf.data.live_conversation import LiveSample
from streamchat_hf.data.proactive_streamworld import TASKS, ProactiveStreamWorld
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.evaluation.activation import TOLERANCE, event_f1, event_times, matched_events
from streamchat_hf.streaming.events import ResponseEnded
from streamchat_hf.streaming.session import StreamingSession

FRAME_SIZE = 48  # pixels of a rendered frame, where no processor says otherwise
TOKENS_PER_SECOND = 20.0
MAX_NEW_TOKENS = 16


class Said(NamedTuple):
    """An answer, or one that is due.

    Attributes:
        time: Seconds of the stream.
        text: The words.
    """

    time: float
    text: str


class Contestant(NamedTuple):
    """A model that is run with one policy.

    Attributes:
        name: Of the model, for the result.
        model: A StreamChat, a VideoLLM-online or a `StreamBridge`.
        processor: Its processor.
        policy: When it speaks.
        activation: What says so, for the policy `"activation"`: an activation model and its processor.
    """

    name: str
    model: Any
    processor: Any
    policy: str
    activation: Any = None


def contestants(name: str, model: Any, processor: Any, activation: Any = None) -> Iterator[Contestant]:
    """A model with every policy that it can be run with.

    Args:
        name: Of the model.
        model: The model.
        processor: Its processor.
        activation: An activation model and its processor.
    """
    own = [policy for policy in getattr(model, "policies", ("on-question",)) if policy != "activation"]
    for policy in own:
        yield Contestant(name, model, processor, policy)
    if activation is not None:
        yield Contestant(name, model, processor, "activation", activation)


def proactive_rows(
    split: str = "heldout", seed: int = 0, worlds: int = 30, num_frames: int = 40
) -> list[tuple[str, LiveSample]]:
    """Rows of every task, as many of each, with the name of the task.

    Args:
        split: Of the worlds; see `World.sample`.
        seed: Any integer.
        worlds: How many rows in all; what does not divide by the tasks is left out.
        num_frames: Frames of a row, two per second.

    Raises:
        ValueError: If there is not one for each task.
    """
    if worlds < len(TASKS):
        raise ValueError(f"worlds={worlds}: there are {len(TASKS)} tasks, and each needs one")
    found = []
    for task in TASKS:
        rows = ProactiveStreamWorld(worlds // len(TASKS), seed, split, num_frames=num_frames, tasks={task: 1.0})
        found += [(task, rows[i]) for i in range(len(rows))]
    return found


def due_answers(row: LiveSample) -> list[Said]:
    """The answers of a row and when they are due."""
    texts = [message["content"] for message in row["conversation"] if message["role"] == "assistant"]
    return [Said(time, text) for time, text in zip(event_times(row), texts, strict=True)]


def watch_row(
    contestant: Contestant,
    row: LiveSample,
    tokens_per_second: float = TOKENS_PER_SECOND,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[Said]:
    """Lets a model watch a row, asked its question before the first frame, and gives what it says.

    A policy that can speak by itself is asked a question that stands; `"on-question"` answers at once.

    Args:
        contestant: Who.
        row: With a world; its answers are not looked at.
        tokens_per_second: How fast it speaks.
        max_new_tokens: Where an answer is cut.
    """
    system, question = _prompt(row)
    times = row["frame_times"]
    size = _frame_size(contestant)
    images = list(zip(times, render([row["world"]], [times], size)[0], strict=True))
    with StreamingSession(
        contestant.model,
        contestant.processor,
        images,
        fps=_rate(times),
        policy=contestant.policy,
        activation=contestant.activation,
        tokens_per_second=tokens_per_second,
        max_new_tokens=max_new_tokens,
        system=system if hasattr(contestant.processor, "system_prompt") else None,
        do_sample=False,
    ) as session:
        session.ask(question, stands=contestant.policy != "on-question")
        ended = [event.answer for event in session if isinstance(event, ResponseEnded)]
    return [Said(answer.start_time, answer.text) for answer in ended]


def _prompt(row: LiveSample) -> tuple[str | None, str]:
    """The system prompt and the question."""
    said = {message["role"]: message["content"] for message in row["conversation"] if message["role"] != "stream"}
    [question] = [message["content"] for message in row["conversation"] if message["role"] == "user"]
    return said.get("system"), question


def _rate(times: Sequence[float]) -> float:
    return (len(times) - 1) / (times[-1] - times[0])


def _frame_size(contestant: Contestant) -> int:
    """The largest that one of its processors asks for: StreamWorld is drawn sharp at any size."""
    processors = [contestant.processor, *([] if contestant.activation is None else contestant.activation[1:])]
    sizes = []
    for processor in processors:
        with suppress(AttributeError, KeyError, TypeError):
            sizes.append(int(processor.video_processor.size["height"]))
    return max(sizes, default=FRAME_SIZE)


def compare_policies(
    entered: Sequence[Contestant],
    rows: Sequence[tuple[str, LiveSample]],
    tolerance: float = TOLERANCE,
    progress: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Runs every contestant on every row.

    Args:
        entered: The contestants.
        rows: Of [`proactive_rows`].
        tolerance: Seconds by which an answer may be early or late.
        progress: Called with a contestant before it is run.
        **options: For [`watch_row`].

    Returns:
        `tolerance`; and `runs`, for each contestant `model`, `policy`, what [`event_f1`] says of its answers,
        `right_words`, the share of events that were told in time in exactly the right words (`None` without any
        event), `by_task`, the same for
        the rows of each task; and `rows`, per row its `task`, what was `due` and what was `said`, as (seconds, words).
    """
    runs = []
    for contestant in entered:
        if progress is not None:
            progress(contestant)
        raw = [
            {"task": task, "due": due_answers(row), "said": watch_row(contestant, row, **options)}
            for task, row in rows
        ]
        tasks = dict.fromkeys(task for task, _ in rows)
        by_task = {task: _score([each for each in raw if each["task"] == task], tolerance) for task in tasks}
        whole = {"model": contestant.name, "policy": contestant.policy, **_score(raw, tolerance)}
        runs.append({**whole, "by_task": by_task, "rows": raw})
    return {"tolerance": tolerance, "runs": runs}


def _score(raw: Sequence[dict[str, Any]], tolerance: float) -> dict[str, Any]:
    due, said = ([[one.time for one in row[kind]] for row in raw] for kind in ("due", "said"))
    result = event_f1(due, said, tolerance)
    right = sum(_right(row["due"], row["said"], tolerance) for row in raw)
    return {**result, "right_words": right / result["events"] if result["events"] else None}


def _right(due: Sequence[Said], said: Sequence[Said], tolerance: float) -> int:
    """How many events were told in time in the right words, each by an answer of its own."""
    found = 0
    for text in {_plain(one.text) for one in due}:
        wanted, given = ([one.time for one in answers if _plain(one.text) == text] for answers in (due, said))
        found += matched_events(wanted, given, tolerance)
    return found


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
