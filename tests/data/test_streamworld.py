import itertools
import math
from dataclasses import replace

import pytest

from streamchat_hf.data.streamworld import (
    COLOURS,
    HELDOUT_DIGITS,
    HELDOUT_SHAPES,
    MOTIONS,
    RGB,
    SPEED,
    SPLITS,
    TICK,
    World,
)

TIMES = [i * TICK for i in range(20)]


def worlds(count, split="train", **kwargs):
    return [World.sample(seed, split, **kwargs) for seed in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_the_same_arguments_give_the_same_world_and_others_another(split):
    first, second = worlds(50, split), worlds(50, split)
    assert first == second
    assert len({(world.initial, world.events, world.spots) for world in first}) == 50


def test_the_splits_share_no_worlds():
    assert not {(w.events, w.spots) for w in worlds(100, "train")} & {(w.events, w.spots) for w in worlds(100, "seen")}


@pytest.mark.parametrize("split", ["train", "seen"])
def test_no_heldout_combination_is_ever_visible_in_training(split):
    for world in worlds(2000, split):
        for state in [world.initial, *(world.state(event.time) for event in world.events)]:
            assert (state.colour, state.shape) not in HELDOUT_SHAPES
            assert (state.colour, state.digit) not in HELDOUT_DIGITS


@pytest.mark.parametrize("pairs", [HELDOUT_SHAPES, HELDOUT_DIGITS])
def test_heldout_combinations_differ_in_both_attributes(pairs):
    assert len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}) == len(pairs) == 4


def test_heldout_worlds_are_mostly_in_a_heldout_combination():
    states = [world.state(time) for world in worlds(300, "heldout") for time in TIMES]
    assert 0.65 < sum(state.is_heldout for state in states) / len(states) < 0.85
    assert {state.digit is None for state in states if state.is_heldout} == {True, False}


@pytest.mark.parametrize("split", SPLITS)
def test_the_state_is_what_replaying_the_events_gives(split):
    for world in worlds(50, split):
        for time in [0.0, 0.25, 0.4999, *TIMES, 9.999, 50.0]:
            state = world.initial
            for event in world.events:
                if event.time <= time:
                    if event.kind == "presence":
                        assert event.old == ("back" if state.present else "gone")
                        state = replace(state, present=event.new == "back")
                    else:
                        assert getattr(state, event.kind) == event.old
                        state = replace(state, **{event.kind: event.new})
            assert world.state(time) == state


@pytest.mark.parametrize("split", SPLITS)
def test_events_change_one_attribute_in_time(split):
    for world in worlds(300, split):
        times = [event.time for event in world.events]
        assert 0.5 <= times[0] <= 1.5
        assert all(time % TICK == 0 and time < world.duration for time in times)
        assert all(event.old != event.new for event in world.events)
        for before, after in zip(world.events, world.events[1:], strict=False):
            assert 1.0 <= after.time - before.time <= (2.5 if before.new == "gone" else 2.0)
            assert (before.new == "gone") == (after.new == "back")


@pytest.mark.parametrize("duration", [3.0, 10.0, 60.0])
def test_the_whole_way_stays_inside_the_frame(duration):
    for world in worlds(100, duration=duration):
        for i in range(int(duration * 10)):
            for x, y in world.shown(i / 10):
                assert world.radius + 1 / 48 - 1e-6 <= min(x, y)
                assert max(x, y) <= 1 - world.radius - 1 / 48 + 1e-6


def test_the_object_has_moved_as_its_motion_says():
    ways = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
    seen = set()
    for world in worlds(100):
        for time in TIMES:
            if world.kind != "count" and world.motion_visible(time):
                motion = world.state(time).motion
                (x, y), (x0, y0) = world.position(time), world.position(time - 0.5)
                assert (x - x0, y - y0) == pytest.approx([SPEED * 0.5 * way for way in ways[motion]])
                seen.add(motion)
    assert seen == set(MOTIONS)


def test_several_objects_never_touch():
    for world in worlds(300):
        if world.kind == "count":
            gaps = [math.dist(a, b) for a in world.spots for b in world.spots if a is not b]
            assert min(gaps) > 2 * world.radius


def test_captions_cover_the_world_and_tell_its_states():
    world = next(w for w in worlds(50) if w.kind == "shape" and any(e.new == "gone" for e in w.events))
    captions = world.captions()
    assert captions[0][0] == 0 and captions[-1][1] == world.duration
    assert all(a[1] == b[0] and a[2] != b[2] for a, b in itertools.pairwise(captions))
    assert all(world.state((start + end) / 2).text == text for start, end, text in captions)
    assert captions[0][2] == f"a {world.initial.colour} {world.initial.shape} , {world.initial.motion}"
    assert "nothing" in [text for _, _, text in captions]


def test_tints_are_far_from_every_named_colour_and_have_no_name():
    for world in worlds(100, palette="tinted"):
        assert not set(world.colours) & set(COLOURS)
        assert world.initial.colour in world.colours
        assert min(math.dist(tint, rgb) for tint in world.colours.values() for rgb in RGB.values()) >= 0.35


def test_odd_worlds_have_odd_shapes_only():
    shapes = {world.state(time).shape for world in worlds(100, shapes="odd") for time in TIMES}
    assert shapes == {"diamond", "ring"}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"split": "test"}, "unknown split 'test'"),
        ({"palette": "grey"}, "unknown palette 'grey'"),
        ({"shapes": "round"}, "unknown shapes 'round'"),
        ({"duration": 0.5}, "at least 1 second"),
    ],
)
def test_wrong_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        World.sample(0, **kwargs)
