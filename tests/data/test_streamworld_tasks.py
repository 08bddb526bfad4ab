import itertools
import random

import pytest
import torch
from torch.utils.data import DataLoader

from streamchat_hf.data.streamworld import MOTIONS, SPLITS, World
from streamchat_hf.data.streamworld_dialogue import vocabulary
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.data.streamworld_tasks import (
    CLASSES,
    StreamWorldTasks,
    caption,
    collate_tasks,
    happening,
    with_another_past,
    with_one_motion,
)
from streamchat_hf.data.task_records import TASKS

N = 60
TEXT_TASKS = [task for task in TASKS if task not in CLASSES]


def samples(task, n=N, **kwargs):
    dataset = StreamWorldTasks(task, n, **kwargs)
    return [dataset[i] for i in range(n)]


def batch(task, n=N, **kwargs):
    return collate_tasks(samples(task, n, **kwargs))


def shown(sample):
    """The state of each frame, and whether the frame before shows where it came from."""
    return [(sample.world.state(time), sample.world.motion_visible(time)) for time in sample.frame_times]


def true_of(text, state, motion_shows):
    """Whether a query or expression holds, read word by word."""
    words = text.replace(" ,", "").split()
    if words == ["nothing"]:
        return not state.present
    if not state.present:
        return False
    if words[0] == "a":
        return words[1:] in ([state.colour, state.name], [state.colour, state.name, state.motion][: 2 + motion_shows])
    return words == [state.count, state.colour, "ones"]


@pytest.mark.parametrize("task", TASKS)
def test_an_item_depends_on_seed_split_task_and_index_alone(task):
    items = samples(task, 8)
    longer = StreamWorldTasks(task, 1000)
    assert [longer[i] for i in reversed(range(8))] == items[::-1]
    assert all(a.world != b.world for a, b in zip(items, samples(task, 8, seed=1), strict=True))
    assert all(a.world != b.world for a, b in zip(items, samples(task, 8, split="seen"), strict=True))
    other = "temporal_grounding" if task != "temporal_grounding" else "temporal_localization"
    assert all(a.world != b.world for a, b in zip(items, samples(other, 8), strict=True))


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_has_the_shapes_that_the_trainer_expects(task):
    loader = DataLoader(StreamWorldTasks(task, 6, num_frames=9, size=32), batch_size=3, collate_fn=collate_tasks)
    found = next(iter(loader))
    shape, dtype = {
        "action_recognition": ((3,), torch.int64),
        "video_text_retrieval": ((3, 3), torch.bool),
        "temporal_localization": ((3, 9), torch.int64),
        "temporal_grounding": ((3, 9), torch.bool),
        "video_object_segmentation": ((3, 9, 32, 32), torch.int64),
        "referring_segmentation": ((3, 9, 32, 32), torch.bool),
    }[task]
    assert found["task"] == task
    assert (tuple(found["labels"].shape), found["labels"].dtype) == (shape, dtype)
    assert len(found["texts"]) == (len(CLASSES[task]) if task in CLASSES else 3)
    pixels = found["pixel_values_videos"]
    assert pixels.shape == (3, 9, 3, 32, 32) and pixels.dtype == torch.float32
    items = [StreamWorldTasks(task, 6, num_frames=9, size=32)[i] for i in range(3)]
    frames = render([item.world for item in items], [item.frame_times for item in items], 32)
    torch.testing.assert_close(pixels, (frames / 255 - 0.5) / 0.5)  # as the video processor normalises


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SPLITS)
def test_only_the_held_out_split_shows_held_out_combinations(task, split):
    per_clip = [[state.is_heldout for state, _ in shown(item)] for item in samples(task, split=split)]
    if split == "heldout":
        assert sum(map(any, per_clip)) > 0.6 * len(per_clip)  # scenes of several objects have none
    else:
        assert not any(map(any, per_clip))


@pytest.mark.parametrize("task", TASKS)
def test_every_word_is_one_of_the_shipped_vocabulary(task):
    words = {word for text in batch(task)["texts"] for word in text.split()}
    assert words <= set(vocabulary())


def test_the_action_is_the_one_way_in_which_the_object_moves():
    found = batch("action_recognition", 300)
    for sample, label in zip(samples("action_recognition", 300), found["labels"], strict=True):
        motion = found["texts"][label]
        assert sample.world.kind in ("shape", "digit")  # several objects never move
        motions = [state.motion for state, _ in shown(sample)]
        assert motions[-1] == motion and set(motions) <= {"still", motion}
        assert sum(m == motion for m in motions[1:]) >= 2  # at least three frames show where it goes
        for time in sample.frame_times:
            assert all(sample.world.radius < c < 1 - sample.world.radius for c in sample.world.position(time))
    assert (found["labels"].bincount() > 300 / 10).all()  # a fifth each


@pytest.mark.parametrize("split", SPLITS)
def test_the_last_frame_of_every_action_looks_the_same(split):
    single = [world for seed in range(40) if (world := World.sample(seed, split, 6.0)).kind != "count"]
    for seed, world in enumerate(single):
        clips = [with_one_motion(random.Random(seed), world, motion, 5.5) for motion in MOTIONS]
        last = render(clips, [[5.5]] * 5)
        assert (last == last[:1]).all()
        before = render(clips, [[5.0]] * 5)
        assert all(not torch.equal(a, b) for a, b in itertools.combinations(before, 2))


def test_frame_rates_off_the_grid_of_events_keep_the_action_in_sight():
    for sample in samples("action_recognition", fps=3.0, num_frames=16):
        last = sample.frame_times[-1]
        assert sample.world.state(last).motion == sample.motion and sample.world.motion_visible(last)
        assert all(sample.world.radius < c < 1 - sample.world.radius for c in sample.world.position(last))


def read(text):
    """A caption as the values that it tells: first those of the beginning, then the changes."""
    first, *changes = text.split(" , now ")
    return first, changes


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("fps", [2.0, 3.0])
def test_a_caption_tells_the_beginning_and_every_change_in_order(split, fps):
    for sample in samples("video_text_retrieval", 100, split=split, fps=fps, num_frames=round(6 * fps)):
        first, changes = read(sample.text)
        states = shown(sample)
        begin = states[0][0]
        motions = [state.motion for state, shows in states if shows]
        thing = (
            f"{begin.count} {begin.colour} ones" if begin.count else f"a {begin.colour} {begin.name} , {motions[0]}"
        )
        assert first == thing
        expected = []
        for attr in ("colour", "name", "motion", "count", "present"):
            visible = [getattr(s, attr) for s, shows in states if attr == "present" or (s.present and shows)]
            if attr not in ("motion", "present"):
                visible = [getattr(s, attr) for s, _ in states if s.present]
            runs = [value for value, _ in itertools.groupby(visible)][1:]
            runs = [("back" if value else "gone") if attr == "present" else value for value in runs]
            if not (begin.count and attr in ("motion", "name")):
                expected += runs
        assert sorted(changes) == sorted(expected)
        # Later frames add changes at the end and alter none before it.
        for end in range(2, len(sample.frame_times)):
            part = caption(sample.world, sample.frame_times[:end])
            assert part is None or sample.text.startswith(part)


def test_neighbours_differ_in_one_word_about_the_past_and_end_alike():
    items = samples("video_text_retrieval", 200)
    for one, other in zip(items[::2], items[1::2], strict=True):
        pairs = list(zip(one.text.split(), other.text.split(), strict=True))
        assert sum(a != b for a, b in pairs) == 1
        assert pairs[-1][0] == pairs[-1][1]
        first, last = render([one.world, other.world], [[0.0, one.frame_times[-1]]] * 2).unbind(1)
        assert torch.equal(last[0], last[1]) and not torch.equal(first[0], first[1])


def test_a_past_is_changed_in_one_value_or_not_at_all():
    for seed in range(200):
        world = World.sample(seed, "train", 6.0)
        other = with_another_past(random.Random(0), world)
        if other is None:
            assert not any(event.kind in ("colour", "shape", "digit", "count") for event in world.events)
            continue
        differing = [i for i in range(12) if world.state(i / 2) != other.state(i / 2)]
        assert differing == list(range(len(differing))) and 0 < len(differing) < 12
        assert not any(other.state(i / 2).is_heldout for i in range(12))


def test_a_caption_is_true_of_its_own_clip_and_of_equal_ones():
    items = samples("video_text_retrieval", 6)
    again = StreamWorldTasks("video_text_retrieval", 6)[2]
    found = collate_tasks([*items, again])["labels"]
    expected = torch.eye(7, dtype=torch.bool)
    expected[2, 6] = expected[6, 2] = True
    assert torch.equal(found, expected)


def test_localisation_names_what_happens_in_each_frame():
    found = batch("temporal_localization", 200)
    seen = set()
    for sample, labels in zip(samples("temporal_localization", 200), found["labels"].tolist(), strict=True):
        assert max(labels) >= 0
        states = shown(sample)
        for i, label in enumerate(labels):
            name = found["texts"][label] if label >= 0 else None
            state, motion_shows = states[i]
            # Two frames per second: a change within the last second lies between this frame and the last two.
            past = [s.present for s, _ in states[max(i - 2, 0) : i]]
            if not state.present:
                assert name == ("gone" if any(past) else None)
            elif not all(past):
                assert name == "back"
            else:
                assert name == (state.motion if motion_shows and state.motion != "still" else None)
            seen.add(name)
    assert seen == {*CLASSES["temporal_localization"], None}


def test_an_empty_frame_is_of_two_classes_depending_on_what_was_before():
    worlds = (World.sample(seed, duration=6.0) for seed in range(1000))
    world = next(w for w in worlds if [e.new for e in w.events if e.kind == "presence"] == ["gone", "back"])
    gone, back = (event.time for event in world.events if event.kind == "presence")
    names = [happening(world, gone + i / 2) for i in range(round(2 * (back - gone)) + 2)]
    assert names == ["gone"] * 2 + [None] * (len(names) - 4) + ["back"] * 2


@pytest.mark.parametrize("split", SPLITS)
def test_a_query_is_true_where_the_world_is_so(split):
    found = batch("temporal_grounding", 200, split=split)
    for sample, text, labels in zip(
        samples("temporal_grounding", 200, split=split), found["texts"], found["labels"].tolist(), strict=True
    ):
        assert labels == [true_of(text, *now) for now in shown(sample)]
        assert any(labels) and not all(labels)
    assert {"nothing"} < set(found["texts"])
    assert any(text.split()[-1] in MOTIONS for text in found["texts"])


def test_object_segmentation_names_the_pixels_of_what_is_there():
    found = batch("video_object_segmentation")
    for sample, pixels, labels in zip(
        samples("video_object_segmentation"), found["pixel_values_videos"], found["labels"], strict=True
    ):
        for (state, _), frame, label in zip(shown(sample), pixels, labels, strict=True):
            inside = (frame != frame[:, :1, :1]).any(0)
            assert torch.equal(label >= 0, inside) and inside.any() == state.present
            assert {found["texts"][i] for i in label[inside].tolist()} <= {state.name}


@pytest.mark.parametrize("split", SPLITS)
def test_an_expression_marks_what_it_names_while_it_is_true(split):
    found = batch("referring_segmentation", split=split)
    for sample, text, pixels, labels in zip(
        samples("referring_segmentation", split=split),
        found["texts"],
        found["pixel_values_videos"],
        found["labels"],
        strict=True,
    ):
        marked = []
        for now, frame, label in zip(shown(sample), pixels, labels, strict=True):
            inside = (frame != frame[:, :1, :1]).any(0)
            assert torch.equal(label, inside if true_of(text, *now) else torch.zeros_like(inside))
            marked.append(bool(label.any()))
        assert any(marked) and not all(marked)


@pytest.mark.parametrize("task", TASKS)
def test_image_only_repeats_one_frame_with_its_label(task):
    found, moving = batch(task, image_only=True), batch(task)
    assert (found["pixel_values_videos"] == found["pixel_values_videos"][:, :1]).all()
    assert found["texts"] == moving["texts"]
    if task in ("action_recognition", "video_text_retrieval"):
        assert torch.equal(found["labels"], moving["labels"])
        assert torch.equal(found["pixel_values_videos"][:, 0], moving["pixel_values_videos"][:, -1])
        return
    assert (found["labels"] == found["labels"][:, :1]).all()
    for i in range(N):
        same = (moving["pixel_values_videos"][i] == found["pixel_values_videos"][i, :1]).flatten(1).all(1)
        assert any(torch.equal(moving["labels"][i, t], found["labels"][i, 0]) for t in same.nonzero()[:, 0])


def test_wrong_arguments_raise():
    with pytest.raises(ValueError, match="unknown task 'detection'"):
        StreamWorldTasks("detection", 1)
    with pytest.raises(ValueError, match="1.0 frames per second miss states"):
        StreamWorldTasks("temporal_grounding", 1, fps=1.0)
    with pytest.raises(ValueError, match="4 frames at 2.0 per second are too short"):
        StreamWorldTasks("temporal_grounding", 1, num_frames=4)
    with pytest.raises(IndexError):
        StreamWorldTasks("temporal_grounding", 1)[1]
    one, other = StreamWorldTasks("temporal_grounding", 1)[0], StreamWorldTasks("temporal_localization", 1)[0]
    with pytest.raises(ValueError, match="of one task"):
        collate_tasks([one, other])
