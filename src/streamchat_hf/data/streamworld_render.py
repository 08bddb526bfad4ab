"""Pictures of a StreamWorld: anti-aliased signed-distance shapes, whole batches at any resolution, and mp4 files."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import torch
from torch import Tensor

from streamchat_hf.data.streamworld import DIGITS, World


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.85


def _cross(u: Tensor, v: Tensor) -> Tensor:
    u, v = u.abs(), v.abs()
    return torch.minimum(torch.maximum(u - 1, v - 0.33), torch.maximum(u - 0.33, v - 1))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(v - 0.7, 0.862 * u.abs() - 0.507 * (v + 1))


# Signed distance to the outline of a shape of radius 1 at (0, 0), negative inside; v points downwards.
_SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "circle": lambda u, v: (u * u + v * v).sqrt() - 1,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "diamond": lambda u, v: (u.abs() + v.abs() - 1.15) * math.sqrt(0.5),
    "ring": lambda u, v: ((u * u + v * v).sqrt() - 0.78).abs() - 0.22,
}

# The strokes of every digit, from point to point.
_W, _H = 0.5, 0.82
_TOP, _MIDDLE, _BOTTOM = (-_W, -_H, _W, -_H), (-_W, 0.0, _W, 0.0), (-_W, _H, _W, _H)
_UPPER_LEFT, _UPPER_RIGHT = (-_W, -_H, -_W, 0.0), (_W, -_H, _W, 0.0)
_LOWER_LEFT, _LOWER_RIGHT = (-_W, 0.0, -_W, _H), (_W, 0.0, _W, _H)
_LEFT, _RIGHT = (-_W, -_H, -_W, _H), (_W, -_H, _W, _H)
_STROKES = {
    "0": (_TOP, _LEFT, _RIGHT, _BOTTOM),
    "1": ((0.1, -_H, 0.1, _H), (0.1, -_H, -0.3, -0.45)),
    "2": (_TOP, _UPPER_RIGHT, _MIDDLE, _LOWER_LEFT, _BOTTOM),
    "3": (_TOP, _RIGHT, _MIDDLE, _BOTTOM),
    "4": (_UPPER_LEFT, _MIDDLE, _RIGHT),
    "5": (_TOP, _UPPER_LEFT, _MIDDLE, _LOWER_RIGHT, _BOTTOM),
    "6": (_TOP, _LEFT, _MIDDLE, _LOWER_RIGHT, _BOTTOM),
    "7": (_TOP, (_W, -_H, -0.15, _H)),
    "8": (_TOP, _LEFT, _RIGHT, _MIDDLE, _BOTTOM),
    "9": (_TOP, _UPPER_LEFT, _RIGHT, _MIDDLE, _BOTTOM),
}
_PEN = 0.18


def _digit(name: str, u: Tensor, v: Tensor) -> Tensor:
    squares = []
    for x0, y0, x1, y1 in _STROKES[name]:
        dx, dy = x1 - x0, y1 - y0
        along = (((u - x0) * dx + (v - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
        squares.append((u - x0 - along * dx).square() + (v - y0 - along * dy).square())
    return functools.reduce(torch.minimum, squares).sqrt() - _PEN


def _sprites(
    worlds: Sequence[World], times: Sequence[Sequence[float]], steps: int
) -> tuple[dict[str, list[tuple[int, float, float, float]]], list[int], list[tuple[float, float, float]]]:
    """Return per shape or digit its `(frame, x, y, radius)`s; the frames that show something; their colours."""
    sprites: dict[str, list[tuple[int, float, float, float]]] = {}
    frames, colours = [], []
    for row, (world, row_times) in enumerate(zip(worlds, times, strict=True)):
        for column, time in enumerate(row_times):
            state = world.state(time)
            if not state.present:
                continue
            frame = row * steps + column
            frames.append(frame)
            colours.append(world.colours[state.colour])
            centres = world.shown(time)
            sprites.setdefault(state.name, []).extend((frame, x, y, world.radius) for x, y in centres)
    return sprites, frames, colours


def _coverage(sprites: dict[str, list[tuple[int, float, float, float]]], frames: int, size: int) -> Tensor:
    """Return how much of every pixel is covered, (frames, size, size) in 0..1."""
    cover = torch.zeros(frames * size * size)
    for name, rows in sprites.items():
        where = torch.tensor([row[0] for row in rows])
        x, y, radius = (torch.tensor([row[i] for row in rows]) * size for i in (1, 2, 3))
        # Only a window around each sprite is computed; pixel i has its middle at i + 0.5.
        reach = math.ceil(float(radius.max()) * 1.2) + 1
        offsets = torch.arange(-reach, reach + 1)
        columns, lines = x.floor().long()[:, None] + offsets, y.floor().long()[:, None] + offsets
        u = ((columns + 0.5 - x[:, None]) / radius[:, None])[:, None, :]
        v = ((lines + 0.5 - y[:, None]) / radius[:, None])[:, :, None]
        distance = _digit(name, u, v) if name in DIGITS else _SHAPES[name](u, v)
        alpha = (0.5 - distance * radius[:, None, None]).clamp(0, 1)
        # Objects stay inside the frame, so what a window holds beyond the border is empty and may land anywhere.
        columns, lines = columns.clamp(0, size - 1), lines.clamp(0, size - 1)
        index = (where[:, None, None] * size + lines[:, :, None]) * size + columns[:, None, :]
        cover.index_add_(0, index.flatten(), alpha.flatten())
    return cover.view(frames, size, size)


def render(worlds: Sequence[World], times_list: Sequence[Sequence[float]], size: int = 48) -> Tensor:
    """Draw worlds at given times.

    Args:
        worlds: B worlds.
        times_list: Per world the times of its frames in seconds. Shorter rows are padded with black frames at the end.
        size: Height and width of a frame in pixels.

    Returns:
        uint8 tensor (B, T, 3, size, size), RGB.

    Raises:
        ValueError: If the two lists differ in length.
    """
    return _draw(worlds, times_list, size)[0]


def render_with_masks(
    worlds: Sequence[World], times_list: Sequence[Sequence[float]], size: int = 48
) -> tuple[Tensor, Tensor]:
    """Draw worlds at given times, and tell which pixels show an object.

    A pixel belongs to an object if the object changes it, be it by one grey level of its blurred edge: outside the
    mask a frame is the background to the last bit, inside it is not.

    Args:
        worlds: B worlds.
        times_list: Per world the times of its frames in seconds. Shorter rows are padded with black frames at the end.
        size: Height and width of a frame in pixels.

    Returns:
        The frames, uint8 (B, T, 3, size, size), and the masks, bool (B, T, size, size), which are empty where nothing
        is visible.

    Raises:
        ValueError: If the two lists differ in length.
    """
    frames, ground = _draw(worlds, times_list, size)
    return frames, (frames != ground).any(2)


def _draw(worlds: Sequence[World], times_list: Sequence[Sequence[float]], size: int) -> tuple[Tensor, Tensor]:
    """Return the frames, and their backgrounds as uint8 (B, T, 1, 1, 1)."""
    if len(worlds) != len(times_list):
        raise ValueError(f"{len(worlds)} worlds but {len(times_list)} lists of times")
    steps = max((len(times) for times in times_list), default=0)
    sprites, frames, colours = _sprites(worlds, times_list, steps)
    cover = _coverage(sprites, len(worlds) * steps, size).view(len(worlds), steps, 1, size, size)
    background = torch.zeros(len(worlds), steps, 1)
    for row, (world, times) in enumerate(zip(worlds, times_list, strict=True)):
        background[row, : len(times)] = world.background * 255
    paint = background.expand(-1, -1, 3).clone()
    if frames:
        paint.view(-1, 3)[torch.tensor(frames)] = torch.tensor(colours) * 255
    delta, ground = (paint - background)[..., None, None], (background + 0.5)[..., None, None]
    out = torch.empty(len(worlds), steps, 3, size, size, dtype=torch.uint8)
    for row in range(len(worlds)):  # small temporaries stay in the processor's cache; truncation rounds, after the 0.5
        out[row] = torch.addcmul(ground[row], cover[row], delta[row])
    return out, ground.to(torch.uint8)


def write_mp4(world: World, path: str | os.PathLike, fps: int = 10, size: int = 96) -> None:
    """Write a world as an H.264 file: frame i shows the world at `i / fps` seconds.

    Args:
        world: What to draw, for its whole duration.
        path: The file to write.
        fps: Frames per second.
        size: Height and width in pixels, even. The default keeps the subsampled colours sharp after halving.
    """
    times = [i / fps for i in range(math.ceil(world.duration * fps))]
    frames = render([world], [times], size)[0].permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(os.fspath(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "15"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
