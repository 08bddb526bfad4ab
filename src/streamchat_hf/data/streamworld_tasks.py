"""StreamFormer's six training tasks with exact labels from StreamWorld (Yan et al., 2504.20041, section 3.4).

A label is what a viewer of the frames up to that one can know: a motion counts from the second frame that shows it
(`World.motion_visible`). Every text is written in the words of `streamworld_dialogue.vocabulary()`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamchat_hf.data.streamworld import (
    COLOURS,
    COUNTS,
    DIGITS,
    MOTION_DELAY,
    MOTIONS,
    SHAPES,
    SPEED,
    TICK,
    Event,
    World,
)
from streamchat_hf.data.streamworld_dialogue import BACK, GONE, NOTHING, NOW
from streamchat_hf.data.streamworld_render import render, render_with_masks
from streamchat_hf.data.task_records import BACKGROUND, TASKS

CLASSES = {
    "action_recognition": MOTIONS,
    "temporal_localization": ("left", "right", "up", "down", GONE, BACK),
    "video_object_segmentation": (*SHAPES, *DIGITS),
}
# Going and coming back are told for this long: two frames at two per second, of which the first needs the one before.
EVENT_SECONDS = 1.0
SHORTEST_CLIP = 2.0  # seconds from the first frame to the last
SLOWEST_FPS = 1 / TICK  # a slower viewer misses states

# Seconds that the object of an action moves. More would leave little room for where it ends, and then where it starts
# gives the way away.
_RUN = 1.0
_EDGE = 1 / 48  # between an object and the border of the frame
_VALUES = {"colour": COLOURS, "shape": SHAPES, "digit": DIGITS, "count": COUNTS}


@dataclass(frozen=True)
class TaskSample:
    """One clip with what is said of it; nothing is rendered yet.

    Attributes:
        task: A word of `TASKS`.
        world: What the frames show.
        frame_times: Of the T frames, in seconds; all the same where the frames carry no time.
        text: The caption, query or expression; `""` where texts are class names.
        motion: The class of action recognition, else `""`.
        size: Height and width of a frame in pixels.
    """

    task: str
    world: World
    frame_times: tuple[float, ...]
    text: str = ""
    motion: str = ""
    size: int = 48


class StreamWorldTasks(Dataset):
    """Clips of one task. Item i depends on (seed, split, task, i) alone; it is light, `collate_tasks` renders it.

    Args:
        task: A word of `TASKS`.
        length: Number of items.
        seed: Any integer.
        split: Of the worlds; see `World.sample`.
        num_frames: Frames T of a clip.
        fps: Frames per second, at least 2: a slower viewer misses states.
        size: Height and width of a frame in pixels.
        image_only: Whether every clip is one frame, shown T times: the control without time, as the paper's table 5
            has a model without it. Of action recognition and retrieval it is the last frame, with the label of the
            clip; else any frame, with the labels of that frame.

    Raises:
        ValueError: For an unknown task, less than two frames per second, or a clip of less than two seconds.

    Example:
    ```python
    dataset = StreamWorldTasks("temporal_grounding", length=1000)
    batch = collate_tasks([dataset[0], dataset[1]])
    batch["labels"].shape  # (2, 12)
    ```
    """

    def __init__(
        self,
        task: str,
        length: int,
        seed: int = 0,
        split: str = "train",
        num_frames: int = 12,
        fps: float = 2.0,
        size: int = 48,
        image_only: bool = False,
    ):
        if task not in TASKS:
            raise ValueError(f"unknown task {task!r}: expected one of {TASKS}")
        if fps < SLOWEST_FPS:
            raise ValueError(f"{fps} frames per second miss states: give at least {SLOWEST_FPS:g}")
        if (num_frames - 1) / fps < SHORTEST_CLIP:
            raise ValueError(f"{num_frames} frames at {fps} per second are too short: give {SHORTEST_CLIP:g} seconds")
        self.task, self.length, self.seed, self.split = task, length, seed, split
        self.num_frames, self.fps, self.size, self.image_only = num_frames, fps, size, image_only

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> TaskSample:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        # Two neighbours of retrieval differ in one word about the past, and end in the same frame.
        pair = index // 2 if self.task == "video_text_retrieval" else index
        rng = random.Random(f"streamworld tasks/{self.split}/{self.seed}/{self.task}/{pair}")
        times = tuple(round(1000 * i / self.fps) / 1000 for i in range(self.num_frames))
        sample = None
        while sample is None:  # until the clip shows what the task is about
            sample = self._draw(rng, times, second=index % 2 == 1)
        if self.image_only:
            last = self.task in ("action_recognition", "video_text_retrieval")
            time = times[-1] if last else rng.choice(times)
            sample = replace(sample, frame_times=(time,) * len(times))
        return sample

    def _draw(self, rng: random.Random, times: tuple[float, ...], second: bool) -> TaskSample | None:
        """Draw a clip; `None` if it does not show enough."""
        seed, duration = rng.getrandbits(48), self.num_frames / self.fps
        world = World.sample(seed, self.split, duration)
        sample = TaskSample(self.task, world, times, size=self.size)
        if self.task == "action_recognition":
            if world.kind == "count":
                return None
            motion = rng.choice(MOTIONS)
            return replace(sample, world=with_one_motion(rng, world, motion, times[-1]), motion=motion)
        if self.task == "video_text_retrieval":
            other = with_another_past(rng, world) or world
            text, other_text = caption(world, times), caption(other, times)
            if text is None or other_text is None or text == other_text:
                return None
            return replace(sample, world=other, text=other_text) if second else replace(sample, text=text)
        if self.task == "temporal_localization":
            return sample if any(happening(world, time) is not None for time in times) else None
        if self.task == "video_object_segmentation":
            return sample
        text = _draw_query(rng, world, times, visible=self.task == "referring_segmentation")
        return None if text is None else replace(sample, text=text)


def with_one_motion(rng: random.Random, world: World, motion: str, last: float) -> World:
    """Return a world in which the object rests, then moves one way until the end.

    Where it is in the last frame does not depend on the motion: that frame alone tells nothing about it. Colours and
    shapes stay as they were, and the object is never gone.

    Args:
        rng: Where randomness comes from; its draws do not depend on the motion.
        world: A scene of one object.
        motion: A word of `MOTIONS`; of `"still"` the object rests all the time.
        last: Time of the last frame, in seconds.
    """
    begin = math.ceil((last - _RUN + MOTION_DELAY) / TICK - 1e-9) * TICK
    events = [event for event in world.events if event.kind not in ("motion", "presence")]
    if motion != "still":
        events = sorted([*events, Event("motion", begin, "still", motion)], key=lambda event: event.time)
    moved = replace(world, initial=replace(world.initial, motion="still"), events=tuple(events), spots=((0.0, 0.0),))
    x, y = moved.position(last)
    # The longest way fits in from either side, so what the last frame shows is equally likely for every motion.
    room = world.radius + _EDGE + SPEED * _RUN
    return replace(moved, spots=((rng.uniform(room, 1 - room) - x, rng.uniform(room, 1 - room) - y),))


def with_another_past(rng: random.Random, world: World) -> World | None:
    """Return the same world but for one value that it had before an attribute first changed.

    A red circle that turns blue becomes a green circle that turns blue: from then on the two cannot be told apart.

    Args:
        rng: Where randomness comes from.
        world: Of a split other than `"heldout"` it still shows no held-out combination.

    Returns:
        The world, or `None` if nothing but motion and presence ever changes, or no other value is left.
    """
    event = next((event for event in world.events if event.kind in _VALUES), None)
    if event is None:
        return None
    others = []
    for value in _VALUES[event.kind]:
        if value not in (event.old, event.new):
            events = tuple(replace(e, old=value) if e is event else e for e in world.events)
            change: dict[str, Any] = {event.kind: value}
            others.append(replace(world, initial=replace(world.initial, **change), events=events))
    if world.split != "heldout":
        starts = (0.0, *(e.time for e in world.events if e.time < event.time))
        others = [other for other in others if not any(other.state(start).is_heldout for start in starts)]
    return rng.choice(others) if others else None


def caption(world: World, times: Sequence[float]) -> str | None:
    """Describe a clip: what it shows first, then every change that its frames show, in their order.

    Args:
        world: What the frames show.
        times: Of the frames, in seconds.

    Returns:
        Such as `"a red circle , left , now blue , now gone"`, or `None` if nothing changes, nothing is there at first,
        or an object's motion never shows.
    """
    first = world.state(times[0])
    if not first.present:
        return None
    slots = ("colour", "count") if world.kind == "count" else ("colour", world.slot, "motion")
    told = {slot: getattr(first, slot) for slot in slots}
    if "motion" in told:
        shown = next((time for time in times if world.motion_visible(time)), None)
        if shown is None:
            return None
        told["motion"] = world.state(shown).motion
    present, changes = True, []
    text = replace(first, **told).text
    for time in times[1:]:
        state = world.state(time)
        if state.present != present:
            present = state.present
            changes.append(BACK if present else GONE)
        for slot in slots if present else ():
            value = getattr(state, slot)
            if value != told[slot] and (slot != "motion" or world.motion_visible(time)):
                told[slot] = value
                changes.append(value)
    return "".join([text, *(f" , {NOW} {change}" for change in changes)]) if changes else None


def statements(world: World, time: float) -> tuple[str, ...]:
    """Return the texts that are true of one frame, the shortest first, for queries and expressions.

    They are `"nothing"`; or `"two red ones"`; or `"a red circle"` and, once it shows, `"a red circle , left"`.
    """
    state = world.state(time)
    if not state.present:
        return (NOTHING,)
    if state.count is not None:
        return (state.text,)
    thing = f"a {state.colour} {state.name}"
    return (thing, state.text) if world.motion_visible(time) else (thing,)


def happening(world: World, time: float) -> str | None:
    """Return the class of what happens in a frame, a word of `CLASSES["temporal_localization"]`, or `None`.

    For a second an object has `"gone"` or is `"back"`; else it moves, or nothing happens.
    """
    for event in world.events:
        if event.kind == "presence" and 0 <= time - event.time < EVENT_SECONDS:
            return event.new
    motion = world.state(time).motion
    return motion if motion != "still" and world.motion_visible(time) else None


def _draw_query(rng: random.Random, world: World, times: Sequence[float], visible: bool) -> str | None:
    """Draw a statement that is true of some frames and not of all; `visible`: of something that is there."""
    true = [set(statements(world, time)) for time in times]
    queries = set[str]().union(*true) - true[0].intersection(*true)
    if visible:
        queries.discard(NOTHING)
    return rng.choice(sorted(queries)) if queries else None


def collate_tasks(samples: Sequence[TaskSample]) -> dict[str, Any]:
    """Render B samples of one task as a micro-batch.

    Returns:
        `task`: A word of `TASKS`.
        `pixel_values_videos`: float32 (B, T, 3, size, size), in -1..1.
        `texts`: The C names of the classes, or the B texts of the clips.
        `labels`: Of action recognition int64 (B,), the class; of temporal localisation int64 (B, T) and of object
        segmentation int64 (B, T, size, size), the class or -1; of retrieval bool (B, B), which text (second axis) is
        true of which clip; of grounding bool (B, T) and of referring segmentation bool (B, T, size, size), where the
        clip's own text is true.

    Raises:
        ValueError: If the samples are of several tasks.
    """
    task = samples[0].task
    if any(sample.task != task for sample in samples):
        raise ValueError(f"a micro-batch is of one task, not of {sorted({sample.task for sample in samples})}")
    worlds, times = [sample.world for sample in samples], [sample.frame_times for sample in samples]
    if task in ("video_object_segmentation", "referring_segmentation"):
        frames, masks = render_with_masks(worlds, times, samples[0].size)
        per_frame = torch.tensor([_frame_labels(sample) for sample in samples])[..., None, None]
        labels = masks & per_frame if per_frame.dtype == torch.bool else torch.where(masks, per_frame, BACKGROUND)
    else:
        frames = render(worlds, times, samples[0].size)
        labels = _labels(samples)
    return {
        "task": task,
        "pixel_values_videos": frames.float().div_(127.5).sub_(1),
        "texts": list(CLASSES[task]) if task in CLASSES else [sample.text for sample in samples],
        "labels": labels,
    }


def _labels(samples: Sequence[TaskSample]) -> Tensor:
    if samples[0].task == "action_recognition":
        return torch.tensor([MOTIONS.index(sample.motion) for sample in samples])
    if samples[0].task == "video_text_retrieval":
        # A caption tells all that a clip shows: it is true of another clip if that one's is the same.
        return torch.tensor([[clip.text == other.text for other in samples] for clip in samples])
    return torch.tensor([_frame_labels(sample) for sample in samples])


def _frame_labels(sample: TaskSample) -> list[int] | list[bool]:
    """The label of every frame or, of segmentation, of what it shows."""
    classes = CLASSES.get(sample.task)
    if classes is None:
        return [sample.text in statements(sample.world, time) for time in sample.frame_times]
    if sample.task == "temporal_localization":
        names = [happening(sample.world, time) for time in sample.frame_times]
    else:
        names = [sample.world.state(time).name for time in sample.frame_times]
    return [BACKGROUND if name is None else classes.index(name) for name in names]
