"""StreamWorld: a small synthetic world whose every fact at every instant is known.

A world shows one object (a shape or a digit) or a few equal small ones. Its attributes change by events, one attribute
at a time, on a grid of half a second. Because the state at any time is known, a word that somebody speaks about the
world at some time is right or wrong by itself, without an annotator.

Lengths are fractions of the frame's side and times are seconds, so a world can be rendered at any size and frame rate.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "cross")
ODD_SHAPES = ("diamond", "ring")
DIGITS = tuple("0123456789")
MOTIONS = ("left", "right", "up", "down", "still")
COUNTS = ("one", "two", "three", "four")

RGB = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.75, 0.20),
    "blue": (0.20, 0.35, 0.95),
    "yellow": (0.95, 0.85, 0.15),
    "purple": (0.60, 0.20, 0.80),
    "white": (0.92, 0.92, 0.92),
}

# Never visible in a training frame. Each pair has its own colour and its own shape or digit, so that every colour and
# every shape is still seen in training with most of its partners.
HELDOUT_SHAPES = (("red", "triangle"), ("green", "circle"), ("purple", "square"), ("white", "cross"))
HELDOUT_DIGITS = (("blue", "3"), ("yellow", "8"), ("red", "5"), ("green", "0"))

SPLITS = ("train", "seen", "heldout")
SLOTS = {
    "shape": ("colour", "shape", "motion"),
    "digit": ("colour", "digit", "motion"),
    "count": ("count", "colour"),
}

TICK = 0.5  # events happen at multiples of it
SPEED = 0.125  # sides per second: 6 pixels per second in a frame of 48
# A motion is named once it has lasted this long: a viewer of two frames per second sees it then, and not before.
MOTION_DELAY = 0.5

_DIRECTION = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
_LONGEST_RUN = 4.5  # seconds of one motion; at SPEED it crosses the free room of the largest object
_MARGIN = 1 / 48
_TINT_DISTANCE = 0.35


@dataclass(frozen=True)
class SceneState:
    """What is true of a world at one instant.

    Attributes:
        colour: A word of `COLOURS`, or the name of an unnamed tint (`"tint0"` ...).
        shape: A word of `SHAPES` or `ODD_SHAPES`; `None` in a digit scene.
        digit: A word of `DIGITS`; `None` unless it is a digit scene.
        motion: A word of `MOTIONS`; `"still"` in a count scene.
        count: A word of `COUNTS`; `None` unless it is a count scene.
        present: Whether the object is visible. The other fields keep their values while it is not.
    """

    colour: str
    shape: str | None
    digit: str | None
    motion: str
    count: str | None
    present: bool = True

    @property
    def name(self) -> str:
        """What it is: its shape or digit."""
        return str(self.digit or self.shape)

    def tell(self, slot: str) -> str:
        """Return the word that a viewer says of an attribute of the scene: its value, or `"nothing"` while absent."""
        return getattr(self, slot) if self.present else "nothing"

    @property
    def is_heldout(self) -> bool:
        """Whether a combination that training never shows is visible."""
        if not self.present:
            return False
        return (self.colour, self.shape) in HELDOUT_SHAPES or (self.colour, self.digit) in HELDOUT_DIGITS

    @property
    def text(self) -> str:
        """The state in words, for captions: `"a red circle , left"`, `"three red ones"`, `"nothing"`."""
        if not self.present:
            return "nothing"
        if self.count is not None:
            return f"{self.count} {self.colour} ones"
        return f"a {self.colour} {self.name} , {self.motion}"


@dataclass(frozen=True)
class Event:
    """One change of one attribute.

    Attributes:
        kind: `"colour"`, `"shape"`, `"digit"`, `"motion"`, `"count"` or `"presence"`.
        time: Seconds; a multiple of `TICK`. The new value holds from this time on.
        old: The value before. Of presence: `"back"` while visible, `"gone"` while not.
        new: The value after.
    """

    kind: str
    time: float
    old: str
    new: str


@dataclass(frozen=True)
class World:
    """A scene with its events. Make one with `World.sample`.

    Attributes:
        seed: The seed that it was sampled with.
        split: `"train"`, `"seen"` or `"heldout"`.
        kind: `"shape"`, `"digit"` or `"count"`.
        duration: Seconds.
        initial: The state at 0.
        events: In the order of their times.
        radius: Of the object, in sides of the frame.
        spots: Centres `(x, y)` in sides of the frame, y downwards: where the single object starts, or where the first,
            second ... of several objects are.
        colours: RGB in 0..1 of every colour name of this world.
        background: Grey level in 0..1.
    """

    seed: int
    split: str
    kind: str
    duration: float
    initial: SceneState
    events: tuple[Event, ...]
    radius: float
    spots: tuple[tuple[float, float], ...]
    colours: dict[str, tuple[float, float, float]] = field(repr=False, hash=False)
    background: float

    @classmethod
    def sample(
        cls, seed: int, split: str = "train", duration: float = 10.0, palette: str = "named", shapes: str = "named"
    ) -> World:
        """Sample a world; the same arguments always give the same world.

        Args:
            seed: Any integer. Equal seeds of two splits have nothing in common.
            split: `"train"`; `"seen"`, the same combinations of attributes with other seeds; or `"heldout"`, worlds
                that spend about two thirds of their time in combinations that no training frame shows. A change of one
                attribute cannot lead from one held-out combination to another, so between two of them lies one second
                in a known one.
            duration: Seconds, at least 1.
            palette: `"named"`, or `"tinted"`: colours that no word names, for training only.
            shapes: `"named"`, or `"odd"`: shapes that no word names, for training only. There are no odd digits.

        Raises:
            ValueError: For an unknown split, palette or set of shapes, or a duration below 1.
        """
        _check(split, duration, palette, shapes)
        rng = random.Random(f"streamworld/{split}/{seed}/{duration}/{palette}/{shapes}")
        kind = rng.choices(("shape", "count", "digit"), (60, 15, 0 if shapes == "odd" else 25))[0]
        colours = _colours(rng, palette)
        timeline = _timeline(rng, kind, split, duration)
        initial, events = _play(rng, kind, split, tuple(colours), ODD_SHAPES if shapes == "odd" else SHAPES, timeline)
        if kind == "count":
            radius = rng.uniform(4, 5) / 48
            spots = _spots(rng, radius)
        else:
            radius = rng.uniform(7, 9) / 48
            initial, events = _choose_motions(rng, initial, events, radius, duration)
            spots = (_start(rng, initial, events, radius, duration),)
        background = rng.uniform(0.04, 0.14)
        return cls(seed, split, kind, duration, initial, tuple(events), radius, spots, colours, background)

    @property
    def slots(self) -> tuple[str, ...]:
        """The attributes that can be asked of this scene."""
        return SLOTS[self.kind]

    @property
    def slot(self) -> str:
        """What this kind of scene is about: `"shape"`, `"digit"` or `"count"`."""
        return self.kind

    def state(self, t_sec: float) -> SceneState:
        """Return the state at `t_sec` seconds; an event at that very time has happened."""
        times, states = self._states
        return states[bisect.bisect_right(times, t_sec)]

    def position(self, t_sec: float) -> tuple[float, float]:
        """Return the centre `(x, y)` of the single object, in sides of the frame; while absent, where it vanished."""
        times, knots = self._knots
        start, x, y, speed_x, speed_y = knots[max(bisect.bisect_right(times, t_sec) - 1, 0)]
        return self.spots[0][0] + x + speed_x * (t_sec - start), self.spots[0][1] + y + speed_y * (t_sec - start)

    def shown(self, t_sec: float) -> tuple[tuple[float, float], ...]:
        """Return the centres `(x, y)` of everything that is visible at `t_sec`, in sides of the frame."""
        state = self.state(t_sec)
        if not state.present:
            return ()
        return (self.position(t_sec),) if state.count is None else self.spots[: COUNTS.index(state.count) + 1]

    def motion_visible(self, t_sec: float) -> bool:
        """Whether a viewer of two frames per second can tell the motion at `t_sec` from this frame and the last."""
        return t_sec >= MOTION_DELAY and self.state(t_sec).present and self.state(t_sec - MOTION_DELAY).present

    def captions(self) -> list[tuple[float, float, str]]:
        """Return `(start, end, text)` in seconds for every interval in which nothing changes."""
        starts = [0.0, *self._states[0]]
        ends = [*self._states[0], self.duration]
        return [(start, end, state.text) for start, end, state in zip(starts, ends, self._states[1], strict=True)]

    @cached_property
    def _states(self) -> tuple[list[float], list[SceneState]]:
        states = [self.initial]
        for event in self.events:
            value = {"present": event.new == "back"} if event.kind == "presence" else {event.kind: event.new}
            states.append(replace(states[-1], **value))
        return [event.time for event in self.events], states

    @cached_property
    def _knots(self) -> tuple[list[float], list[tuple[float, float, float, float, float]]]:
        knots = list(_path(self.initial.motion, self.events))
        return [knot[0] for knot in knots], knots


def _check(split: str, duration: float, palette: str, shapes: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: expected one of {SPLITS}")
    if palette not in ("named", "tinted"):
        raise ValueError(f"unknown palette {palette!r}: expected 'named' or 'tinted'")
    if shapes not in ("named", "odd"):
        raise ValueError(f"unknown shapes {shapes!r}: expected 'named' or 'odd'")
    if not 1 <= duration < math.inf:
        raise ValueError(f"a world lasts at least 1 second, not {duration}")


def _colours(rng: random.Random, palette: str) -> dict[str, tuple[float, float, float]]:
    if palette == "named":
        return {
            name: (_jitter(rng, red), _jitter(rng, green), _jitter(rng, blue))
            for name, (red, green, blue) in RGB.items()
        }
    taken = [*RGB.values(), (0.09, 0.09, 0.09)]  # the background is no colour for an object either
    tints: dict[str, tuple[float, float, float]] = {}
    while len(tints) < len(COLOURS):
        rgb = (rng.random(), rng.random(), rng.random())
        if min(math.dist(rgb, other) for other in taken) >= _TINT_DISTANCE:
            tints[f"tint{len(tints)}"] = rgb
    return tints


def _jitter(rng: random.Random, channel: float) -> float:
    return min(1.0, max(0.0, channel + rng.uniform(-0.08, 0.08)))


def _timeline(rng: random.Random, kind: str, split: str, duration: float) -> list[tuple[float, str]]:
    """Draw when what changes: `(time, kind)`, attributes in turn; vanishing and coming back are two entries."""
    timeline: list[tuple[float, str]] = []
    time = rng.choice((0.5, 1.0, 1.5))
    run = time  # seconds for which the present motion has been visible
    queue: list[tuple[str, ...]] = []
    for turn in range(math.ceil(duration / TICK)):
        if not queue:
            queue = _cycle(rng, kind, split, turn, timeline)
        item = queue[0]
        if kind != "count" and item != ("motion",) and run + (len(item) - 1) + 2.0 > _LONGEST_RUN:
            item = ("motion",)
        if item in queue:
            queue.remove(item)
        for offset, change in enumerate(item):
            timeline.append((time + offset, change))
        time, run = time + len(item) - 1, 0.0 if item == ("motion",) else run + len(item) - 1
        if item == ("presence",):
            time += rng.choice((1.5, 2.0, 2.5))
            timeline.append((time, "presence"))
        gap = rng.choice((1.0, 1.5, 2.0))
        time, run = time + gap, run + gap
        if time >= duration:
            break
    return [(time, change) for time, change in timeline if time < duration]


def _cycle(
    rng: random.Random, kind: str, split: str, turn: int, timeline: list[tuple[float, str]]
) -> list[tuple[str, ...]]:
    """Draw the order of the next changes; the changes of one item follow each other after one second."""
    cycle: list[tuple[str, ...]]
    if kind == "count":
        # A change of colour would leave the held-out combination for good.
        cycle = [("count",)] if split == "heldout" else [("count",), ("colour",)]
    elif split == "heldout":
        cycle = [tuple(rng.sample(("colour", kind), 2)), ("motion",)]
    else:
        cycle = [("colour",), (kind,), ("motion",)]
    if kind != "count" and rng.random() < 0.5:
        cycle.append(("presence",))
    rng.shuffle(cycle)
    if timeline and len(cycle) > 1 and cycle[0][0] == timeline[-1][1]:
        cycle.append(cycle.pop(0))
    return cycle


def _play(
    rng: random.Random,
    kind: str,
    split: str,
    colours: tuple[str, ...],
    shapes: tuple[str, ...],
    timeline: list[tuple[float, str]],
) -> tuple[SceneState, list[Event]]:
    """Draw the first state and the values that the events bring; motions stay open."""
    thing = "digit" if kind == "digit" else "shape"
    names = DIGITS if kind == "digit" else shapes
    held = HELDOUT_DIGITS if kind == "digit" else HELDOUT_SHAPES
    free = [(colour, name) for colour in colours for name in names if (colour, name) not in held]
    now = dict(zip(("colour", thing), rng.choice(held if split == "heldout" else free), strict=True))
    now.update(count=rng.choice(COUNTS), motion="still", presence="back")
    initial = SceneState(now["colour"], now.get("shape"), now.get("digit"), "still", now["count"])
    initial = initial if kind == "count" else replace(initial, count=None)
    events = []
    for time, change in timeline:
        if change == "presence":
            options = ["gone" if now["presence"] == "back" else "back"]
        elif change == "count":
            n = COUNTS.index(now["count"])
            options = [COUNTS[m] for m in (n - 1, n + 1) if 0 <= m < len(COUNTS)]
        elif change == "motion":
            options = ["still"]
        elif split == "heldout":
            options = _heldout_options(now["colour"], now[thing], held, change)
        else:
            options = [c if change == "colour" else n for c, n in free if _steps(now, thing, change, c, n)]
        new = rng.choice(options)
        events.append(Event(change, time, now[change], new))
        now[change] = new
    return initial, events


def _steps(now: dict[str, str], thing: str, change: str, colour: str, name: str) -> bool:
    """Whether (colour, name) differs from the present combination in `change` only."""
    if change == "colour":
        return name == now[thing] and colour != now["colour"]
    return colour == now["colour"] and name != now[thing]


def _heldout_options(colour: str, name: str, held: tuple[tuple[str, str], ...], change: str) -> list[str]:
    """The first of two changes leaves a held-out combination towards another, the second completes that one."""
    if (colour, name) in held:
        return [c if change == "colour" else n for c, n in held if (c, n) != (colour, name)]
    return [c if change == "colour" else n for c, n in held if (n == name if change == "colour" else c == colour)]


def _path(motion: str, events: list[Event] | tuple[Event, ...]) -> Iterator[tuple[float, float, float, float, float]]:
    """Yield knots `(time, x, y, speed x, speed y)` of the way from (0, 0); absent objects stay where they are."""
    turns = [(e.time - MOTION_DELAY, e) if e.kind == "motion" else (e.time, e) for e in events]
    time, x, y = 0.0, 0.0, 0.0
    present = True
    yield time, x, y, SPEED * _DIRECTION[motion][0], SPEED * _DIRECTION[motion][1]
    for next_time, event in turns:
        if event.kind not in ("motion", "presence"):
            continue
        way = SPEED * (next_time - time) if present else 0.0
        x, y = x + way * _DIRECTION[motion][0], y + way * _DIRECTION[motion][1]
        time = next_time
        if event.kind == "motion":
            motion = event.new
        else:
            present = event.new == "back"
        speed = SPEED if present else 0.0
        yield time, x, y, speed * _DIRECTION[motion][0], speed * _DIRECTION[motion][1]


def _extent(initial: SceneState, events: list[Event], until: float) -> tuple[float, float, float, float]:
    """Return the smallest and largest x, then y, of the way up to `until` seconds."""
    knots = [knot for knot in _path(initial.motion, events) if knot[0] <= until]
    time, x, y, speed_x, speed_y = knots[-1]
    xs = [knot[1] for knot in knots] + [x + speed_x * (until - time)]
    ys = [knot[2] for knot in knots] + [y + speed_y * (until - time)]
    return min(xs), max(xs), min(ys), max(ys)


def _choose_motions(
    rng: random.Random, initial: SceneState, events: list[Event], radius: float, duration: float
) -> tuple[SceneState, list[Event]]:
    """Draw motions such that the whole way fits into the frame, by depth-first search with random order."""
    room = 1 - 2 * (radius + _MARGIN) + 1e-9
    where = [i for i, event in enumerate(events) if event.kind == "motion"]
    ends = [events[i].time - MOTION_DELAY for i in where] + [duration]
    chosen: list[str] = []
    untried = [rng.sample(MOTIONS, len(MOTIONS))]
    while len(chosen) <= len(where):
        if not untried[-1]:
            untried.pop()
            chosen.pop()
            continue
        chosen.append(untried[-1].pop())
        initial, events = _with_motions(initial, events, where, chosen)
        left, right, top, bottom = _extent(initial, events, ends[len(chosen) - 1])
        if right - left > room or bottom - top > room:
            chosen.pop()
        elif len(chosen) <= len(where):
            others = [motion for motion in MOTIONS if motion != chosen[-1]]
            untried.append(rng.sample(others, len(others)))
    return initial, events


def _with_motions(
    initial: SceneState, events: list[Event], where: list[int], chosen: list[str]
) -> tuple[SceneState, list[Event]]:
    events = list(events)
    for i, old, new in zip(where, chosen, chosen[1:], strict=False):
        events[i] = replace(events[i], old=old, new=new)
    return replace(initial, motion=chosen[0]), events


def _start(
    rng: random.Random, initial: SceneState, events: list[Event], radius: float, duration: float
) -> tuple[float, float]:
    left, right, top, bottom = _extent(initial, events, duration)
    edge = radius + _MARGIN
    return rng.uniform(edge - left, 1 - edge - right), rng.uniform(edge - top, 1 - edge - bottom)


def _spots(rng: random.Random, radius: float) -> tuple[tuple[float, float], ...]:
    """Draw a place in each quarter of the frame, in random order: small objects never touch."""
    edge = radius + _MARGIN
    quarters = rng.sample([(x, y) for x in (0.0, 0.5) for y in (0.0, 0.5)], 4)
    return tuple((x + rng.uniform(edge, 0.5 - edge), y + rng.uniform(edge, 0.5 - edge)) for x, y in quarters)
