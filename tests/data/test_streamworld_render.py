import itertools
import math

import av
import pytest
import torch

from streamchat_hf.data.streamworld import DIGITS, ODD_SHAPES, SHAPES, TICK, World
from streamchat_hf.data.streamworld_render import _STROKES, render, render_with_masks, write_mp4

TIMES = [i * TICK for i in range(20)]


def coverage(world, times, size=48):
    """How far each pixel is from the background, in 0..1 of the largest distance of the frame."""
    frames = render([world], [times], size)[0].double()
    distance = (frames - round(world.background * 255)).abs().sum(1)
    return distance / distance.amax((1, 2), keepdim=True).clamp(min=30)


def find(kind, **kwargs):
    return (w for w in (World.sample(seed, **kwargs) for seed in range(1000)) if w.kind == kind)


@pytest.mark.parametrize("size", [48, 96])
def test_the_centre_of_mass_is_the_position(size):
    for world, _ in zip(find("shape"), range(20), strict=False):
        time = next(time for time in TIMES if world.state(time).shape not in ("triangle", None))
        mass = coverage(world, [time], size)[0]
        middles = (torch.arange(size) + 0.5) / size
        x, y = (mass.sum(0) * middles).sum() / mass.sum(), (mass.sum(1) * middles).sum() / mass.sum()
        assert (float(x), float(y)) == pytest.approx(world.position(time), abs=0.3 / size)


def test_the_picture_moves_as_the_motion_says():
    ways = {"left": (-3, 0), "right": (3, 0), "up": (0, -3), "down": (0, 3), "still": (0, 0)}
    seen = set()
    for world, _ in zip(find("shape"), range(40), strict=False):
        mass = coverage(world, TIMES)
        for i in range(1, len(TIMES)):
            before, now = world.state(TIMES[i - 1]), world.state(TIMES[i])
            if before.present and now.present and before.shape == now.shape:
                pixels = torch.arange(48.0, dtype=torch.float64)
                xs = [(m.sum(0) * pixels).sum() / m.sum() for m in mass[i - 1 : i + 1]]
                ys = [(m.sum(1) * pixels).sum() / m.sum() for m in mass[i - 1 : i + 1]]
                assert (float(xs[1] - xs[0]), float(ys[1] - ys[0])) == pytest.approx(ways[now.motion], abs=0.3)
                seen.add(now.motion)
    assert seen == set(ways)


def test_what_is_not_there_is_not_drawn():
    world = next(w for w in find("shape") if any(e.new == "gone" for e in w.events))
    gone = next(e.time for e in world.events if e.new == "gone")
    empty, before = render([world], [[gone, gone - TICK]])[0]
    assert (empty == empty[0, 0, 0]).all()
    assert (before != before[:, :1, :1]).any()


def test_as_many_objects_are_drawn_as_are_counted():
    for world, _ in zip(find("count"), range(20), strict=False):
        for time in TIMES:
            mass = coverage(world, [time])[0]
            quarters = [mass[y : y + 24, x : x + 24] for x in (0, 24) for y in (0, 24)]
            n = sum(float(quarter.max()) > 0.5 for quarter in quarters)
            assert ("one", "two", "three", "four")[n - 1] == world.state(time).count


def test_inside_an_object_is_its_colour():
    for kind in ("shape", "digit"):
        world = next(find(kind))
        frame = render([world], [[0.0]], 480)[0, 0].double()
        rgb = torch.tensor(world.colours[world.initial.colour], dtype=torch.float64) * 255
        inside = ((frame - rgb[:, None, None]).abs().amax(0) < 1).sum()
        assert 480**2 * world.radius**2 * 0.8 < inside < 480**2 * world.radius**2 * 4


def test_every_shape_and_digit_looks_different():
    masks = {}
    for kind, kwargs in (("shape", {}), ("shape", {"shapes": "odd"}), ("digit", {})):
        for world, _ in zip(find(kind, **kwargs), range(60), strict=False):
            x, y = (round(c * 480) for c in world.position(0.0))
            reach = int(world.radius * 480) + 8
            mask = coverage(world, [0.0], 480)[0, y - reach : y + reach, x - reach : x + reach]
            resized = torch.nn.functional.interpolate(mask[None, None], 64, mode="area")[0, 0]
            masks.setdefault(world.initial.name, resized)
    assert set(masks) == {*SHAPES, *ODD_SHAPES, *DIGITS}
    names = sorted(masks)
    for i, a in enumerate(names):
        for b in names[:i]:
            overlap = torch.minimum(masks[a], masks[b]).sum() / torch.maximum(masks[a], masks[b]).sum()
            assert overlap < 0.95, (a, b)


def test_a_batch_is_its_worlds_and_short_rows_end_in_black():
    batch = [World.sample(seed, palette="tinted") for seed in range(5)]
    rows = [TIMES[: 4 * i] for i in range(5)]
    frames = render(batch, rows)
    assert frames.shape == (5, 16, 3, 48, 48) and frames.dtype == torch.uint8
    for world, times, row in zip(batch, rows, frames, strict=True):
        assert torch.equal(row[: len(times)], render([world], [times])[0])
        assert not row[len(times) :].any()


def test_the_resolution_does_not_change_the_picture():
    world = next(find("digit"))
    small = render([world], [TIMES])[0].double()
    halved = torch.nn.functional.avg_pool2d(render([world], [TIMES], 96)[0].double(), 2)
    assert (small - halved).abs().mean() < 1


def test_one_list_of_times_per_world():
    with pytest.raises(ValueError, match="1 worlds but 2 lists"):
        render([World.sample(0)], [[0.0], [0.0]])


def test_a_decoded_file_looks_as_rendered(tmp_path):
    world = next(find("shape"))
    write_mp4(world, tmp_path / "world.mp4")
    with av.open(str(tmp_path / "world.mp4")) as container:
        frames = [
            (frame.time, torch.from_numpy(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)
        ]
    times = [time for time, _ in frames]
    assert times == pytest.approx([i / 10 for i in range(100)])
    decoded = torch.stack([frame for _, frame in frames]).permute(0, 3, 1, 2).double()
    expected = render([world], [times], 96)[0].double()
    assert (decoded - expected).abs().mean() < 2.5
    for time, frame in zip(times, decoded, strict=True):  # the colour in the middle survives, at the right time
        if world.state(time).present:
            x, y = (int(c * 96) for c in world.position(time))
            rgb = torch.tensor(world.colours[world.state(time).colour], dtype=torch.float64) * 255
            assert (frame[:, y, x] - rgb).abs().max() < 12


def naive_distance(name, u, v):
    """Signed distance to the outline of a shape of radius 1, for one point."""
    if name == "circle":
        return math.hypot(u, v) - 1
    if name == "square":
        return max(abs(u), abs(v)) - 0.85
    if name == "triangle":
        return max(v - 0.7, 0.862 * abs(u) - 0.507 * (v + 1))
    if name == "cross":
        u, v = abs(u), abs(v)
        return min(max(u - 1, v - 0.33), max(u - 0.33, v - 1))
    ends = []
    for x0, y0, x1, y1 in _STROKES[name]:
        dx, dy = x1 - x0, y1 - y0
        along = min(max(((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy), 0), 1)
        ends.append(math.hypot(u - x0 - along * dx, v - y0 - along * dy))
    return min(ends) - 0.18


@pytest.mark.parametrize("kind", ["shape", "digit", "count"])
def test_masks_are_the_pixels_that_an_object_reaches(kind):
    for world, _ in zip(find(kind), range(4), strict=False):
        for time in (0.0, 4.0, 9.5):
            _, masks = render_with_masks([world], [[time]], 32)
            for row, column in itertools.product(range(32), range(32)):
                nearest = min(
                    (
                        world.radius
                        * 32
                        * naive_distance(
                            world.state(time).name,
                            ((column + 0.5) / 32 - x) / world.radius,
                            ((row + 0.5) / 32 - y) / world.radius,
                        )
                        for x, y in world.shown(time)
                    ),
                    default=math.inf,
                )  # in pixels: the edge is a pixel wide
                if abs(nearest - 0.5) > 0.02:  # closer than that the edge is fainter than a grey level
                    assert bool(masks[0, 0, row, column]) == (nearest < 0.5), (row, column, nearest)


def test_outside_the_masks_is_the_background_and_inside_is_not():
    worlds = [World.sample(seed) for seed in range(12)] + [World.sample(seed, palette="tinted") for seed in range(4)]
    frames, masks = render_with_masks(worlds, [TIMES] * 16)
    assert torch.equal(frames, render(worlds, [TIMES] * 16))
    assert masks.shape == (16, 20, 48, 48) and masks.dtype == torch.bool
    for world, row, mask in zip(worlds, frames, masks, strict=True):
        background = round(world.background * 255)
        assert torch.equal((row != background).any(1), mask)
        assert [bool(m.any()) for m in mask] == [world.state(time).present for time in TIMES]


def test_masks_of_a_batch_are_those_of_its_worlds_and_short_rows_end_empty():
    worlds = [World.sample(seed) for seed in range(4)]
    rows = [TIMES[: 4 * i] for i in range(4)]
    _, masks = render_with_masks(worlds, rows)
    for world, times, mask in zip(worlds, rows, masks, strict=True):
        assert torch.equal(mask[: len(times)], render_with_masks([world], [times])[1][0])
        assert not mask[len(times) :].any()
