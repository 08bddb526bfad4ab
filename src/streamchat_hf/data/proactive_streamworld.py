"""Proactive tasks about StreamWorld (StreamBridge, 2505.05467): asked once at the start, answered whenever it is time.

Three tasks of Stream-IT, in its proactive format `<Q> <V1> <A1> <V2> <A2> ...`, with several wordings of each question
as the paper's table 7 has them. Of every frame it is known what it shows, hence after which frame each answer is due:

- `"dense"`, dense video captioning: what an object is, or one attribute of it, is described when that segment ends,
  which the first frame shows that shows something else.
- `"steps"`, sequential step recognition: each way the object goes is named when it ends.
- `"grounded"`, grounded video question answering: one answer, when enough has been seen. The first frame brings it
  that shows both what the question waits for and what it asks for.

All words are words of `streamworld_dialogue.vocabulary`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from torch.utils.data import Dataset

from streamchat_hf.data.live_conversation import LiveMessage, LiveSample, LiveTurn, lay_out
from streamchat_hf.data.live_streamworld import SLOWEST_FPS, SYSTEM_PROMPT, LiveAlert, Shown, frame_facts
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_dialogue import ASK, VALUES, questions

TASKS = {"dense": 1.0, "steps": 1.0, "grounded": 1.0}

DENSE = (
    "describe the {slots} once it is gone .",
    "what do you see ? describe the {slots} once it is gone .",
    "what is happening ? describe the {slots} once it is gone .",
    "keep watching and describe the {slots} once it is gone .",
    "once the {slots} is gone , describe it again and again .",
)
STEPS = (
    "say the motion once it is gone .",
    "always say the motion once it is gone .",
    "which motion is gone ? say it again and again .",
    "keep watching and name the motion once it is gone .",
    "once the motion is gone , name it again and again .",
)
GROUNDED = (
    "say the {slot} once {clause} .",
    "once {clause} , say the {slot} .",
    "{question} say it once {clause} .",
    "keep watching and say the {slot} once {clause} .",
    "{question} keep watching and say it once {clause} .",
)
_SHORTEST = 4.0  # seconds; hardly any segment ends in less

Due = list[tuple[int, str]]


def ended_segments(slots: Sequence[str], shown: Sequence[Shown]) -> Due:
    """Describe every segment that ends while frames are shown.

    A segment lasts while frames show the same of some attributes, and ends at the first that shows otherwise. Frames
    that do not show all of these are passed over: while nothing is there, or no motion can be seen yet, nothing ends.

    Args:
        slots: The attributes.
        shown: See `frame_facts`.

    Returns:
        `(frame, text)`: the first frame after a segment, and what there was: `(7, "it is a red circle")`.
    """
    due: Due = []
    before: str | None = None
    for i, now in enumerate(shown):
        if not all(slot in now for slot in slots):
            continue
        value = " ".join(now[slot] for slot in slots)
        if before is not None and value != before:
            due.append((i, LiveAlert(" ".join(slots), before).clause))
        before = value
    return due


def enough_seen(alert: LiveAlert, slot: str, shown: Sequence[Shown]) -> int | None:
    """Return the first frame that shows what is waited for and has something to say of `slot`; `None` without any."""
    return next((i for i, now in enumerate(shown) if alert.holds(now) and slot in now), None)


class ProactiveStreamWorld(Dataset):
    """Rows of one question each, asked before the first frame, with all the answers that become due.

    Where an answer comes among the frames is exact: the frame before it is the first that shows it to be due. A dense
    or step row is about one object and has at least one answer; what has not ended with the last frame is not
    described. Of the grounded questions
    some wait for what never comes, and nothing is answered. No answer is due at the first frame.

    Item i depends on (seed, split, i) and the arguments below alone; it is light, nothing is rendered.

    Args:
        length: Number of items.
        seed: Any integer.
        split: Of the worlds; see `World.sample`.
        fps: Frames per second, at least 2: a slower viewer misses states.
        num_frames: Frames of a row, at least four seconds of them.
        tasks: Weight of each task.
        never: Share of grounded questions whose answer never comes.

    Raises:
        ValueError: For an unknown task, less than two frames per second, or a row that is too short.

    Example:
    ```python
    row = ProactiveStreamWorld(length=1000)[0]
    [message["content"] for message in row["conversation"] if message["role"] == "user"]
    # ["what is happening ? describe the colour once it is gone ."]
    ```
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        fps: float = 2.0,
        num_frames: int = 40,
        tasks: Mapping[str, float] = TASKS,
        never: float = 0.2,
    ):
        if unknown := set(tasks) - set(TASKS):
            raise ValueError(f"unknown tasks {sorted(unknown)}: expected some of {tuple(TASKS)}")
        if not any(tasks.values()):
            raise ValueError(f"no task has a weight: {dict(tasks)}")
        if fps < SLOWEST_FPS:
            raise ValueError(f"{fps} frames per second miss states: give at least {SLOWEST_FPS:g}")
        if num_frames < _SHORTEST * fps:
            raise ValueError(
                f"{num_frames} frames at {fps:g} per second are too few: give at least {_SHORTEST:g} seconds"
            )
        self.length, self.seed, self.split, self.fps, self.num_frames = length, seed, split, fps, num_frames
        self.tasks, self.never = tasks, never

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> LiveSample:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        rng = random.Random(f"proactive streamworld/{self.split}/{self.seed}/{index}")
        frame_times = [round(1000 * i / self.fps) / 1000 for i in range(self.num_frames)]
        task = rng.choices(list(self.tasks), list(self.tasks.values()))[0]
        happens = rng.random() >= self.never
        drawn = None
        while drawn is None:  # until the world shows what the task is about
            world = World.sample(rng.getrandbits(48), self.split, self.num_frames / self.fps)
            shown = frame_facts(world, frame_times)
            if task == "grounded":
                drawn = _draw_grounded(rng, world, shown, happens)
            else:
                drawn = _draw_segments(rng, world, shown, task)
        question, due = drawn
        turns = [LiveTurn("user", question, 0), *(LiveTurn("assistant", text, frame + 1) for frame, text in due)]
        system = LiveMessage(role="system", content=SYSTEM_PROMPT)
        conversation = [system, *lay_out(turns, frame_times)]
        return LiveSample(conversation=conversation, frame_times=frame_times, media=None, world=world)


def _draw_segments(rng: random.Random, world: World, shown: Sequence[Shown], task: str) -> tuple[str, Due] | None:
    """Draw a question about the segments of an object; `None` if none ends, or there are several objects."""
    if world.kind == "count":  # changes so often that answers at any fixed interval come in time
        return None
    if task == "steps":
        text, slots = rng.choice(STEPS), ["motion"]
    else:
        slots = rng.choice((["colour", world.kind], ["colour"], [world.kind]))
        text = rng.choice(DENSE).format(slots=" and ".join(slots))
    due = ended_segments(slots, shown)
    return (text, due) if due else None


def _draw_grounded(rng: random.Random, world: World, shown: Sequence[Shown], happens: bool) -> tuple[str, Due] | None:
    """Draw what to wait for and what to say then, of two attributes; `None` if the world has nothing that fits.

    Args:
        happens: Whether the answer comes, else it never does.
    """
    waited, slot = rng.sample(world.slots, 2)
    alerts = [LiveAlert(waited, value) for value in VALUES[waited]]
    due = {alert: enough_seen(alert, slot, shown) for alert in alerts if not alert.holds(shown[0])}
    fitting = [alert for alert, frame in due.items() if (frame is not None) == happens]
    if not fitting:
        return None
    alert = rng.choice(fitting)
    text = rng.choice(GROUNDED).format(slot=slot, question=rng.choice(_asked(slot)), clause=alert.clause)
    frame = due[alert]
    return text, [] if frame is None else [(frame, LiveAlert(slot, shown[frame][slot]).clause)]


def _asked(slot: str) -> list[str]:
    """Questions for an attribute, without those that are no questions."""
    return [question.text for question in questions(ASK, slot) if question.text.endswith("?")]
