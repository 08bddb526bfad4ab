"""Videos whose every frame has a class, for online action detection: StreamWorld's, and THUMOS14's."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamchat_hf.data.annotations import Annotation, BadRow, BadRows, MediaFiles
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.data.streamworld_tasks import CLASSES, SLOWEST_FPS, happening
from streamchat_hf.data.thumos import BACKGROUND, THUMOS_CLASSES, frame_label_lists, read_thumos
from streamchat_hf.processing.frames_streamchat import VideoFrame, VideoStream

STREAMWORLD_ACTIONS = CLASSES["temporal_localization"]
_CHUNK = 64  # frames that are rendered at once


@dataclass(frozen=True)
class LabelledVideo:
    """A video to watch from its first frame to its last, and what is done in it.

    Attributes:
        name: unlike that of any other video; what is kept about the video is filed under it.
        frames: called with frames per second, gives the frames in their order, uint8 `(3, height, width)`.
        labels: called with the times of T frames in seconds, gives T lists of class indices, as the metric
            `online_action_detection` takes them: `[0]` where nothing is done, `[-100]` where nobody can tell.
    """

    name: str
    frames: Callable[[float], Iterable[VideoFrame]]
    labels: Callable[[Sequence[float] | np.ndarray], list[list[int]]]


@dataclass(frozen=True)
class LabelledVideos:
    """Videos with the same classes.

    Attributes:
        classes: names by index, `background` first.
        videos: in any order.
    """

    classes: tuple[str, ...]
    videos: tuple[LabelledVideo, ...]


def streamworld_videos(
    videos: int, seconds: float = 60.0, split: str = "train", seed: int = 0, size: int = 48
) -> LabelledVideos:
    """Worlds that last; a class says where an object moves, or that it has just gone or come back.

    Args:
        videos: how many.
        seconds: how long each lasts.
        split: of the worlds; see `World.sample`.
        seed: of the first world, the others follow it.
        size: height and width of a frame in pixels.
    """

    def video(seed: int) -> LabelledVideo:
        world = World.sample(seed, split, seconds)

        def frames(fps: float) -> Iterator[VideoFrame]:
            if fps < SLOWEST_FPS:
                raise ValueError(f"{fps} frames per second miss states of a world: give at least {SLOWEST_FPS:g}")
            times = [index / fps for index in range(math.ceil(seconds * fps))]
            for start in range(0, len(times), _CHUNK):
                part = times[start : start + _CHUNK]
                yield from map(VideoFrame, part, render([world], [part], size)[0])

        def labels(times: Sequence[float] | np.ndarray) -> list[list[int]]:
            names = [happening(world, float(time)) for time in times]
            return [[BACKGROUND if name is None else 1 + STREAMWORLD_ACTIONS.index(name)] for name in names]

        return LabelledVideo(f"streamworld_{split}_{seconds:g}s_{size}px_{seed:06d}", frames, labels)

    return LabelledVideos(("background", *STREAMWORLD_ACTIONS), tuple(map(video, range(seed, seed + videos))))


def thumos_videos(
    annotations: str | os.PathLike, subset: str, videos: str | os.PathLike, exclude: Iterable[str] = ()
) -> LabelledVideos:
    """THUMOS14's untrimmed videos that something is annotated in.

    Args:
        annotations: folder of the text files, see [`data.thumos.read_thumos`].
        subset: `"val"`, which one trains on, or `"test"`.
        videos: folder of the videos, or of folders of them; a file has its video's name and any usual extension.
        exclude: names of videos to leave out.

    Raises:
        BadRow: a line of the annotations cannot be used, naming its file and number.
        FileNotFoundError: annotations or videos are missing.
        ValueError: for another subset.
    """
    left_out, files, found, missing = set(exclude), MediaFiles(), [], []

    def video(name: str, path: str, actions: Sequence) -> LabelledVideo:
        return LabelledVideo(
            name, lambda fps: VideoStream(path, fps=fps), lambda times: frame_label_lists(actions, times)
        )

    for name, actions in read_thumos(annotations, subset, BadRows(refuse=True)).items():
        if name in left_out:
            continue
        try:
            path, _ = files.find(Annotation(name, name, "video", (os.path.join(videos, name),), ()))
            found.append(video(name, path, actions))
        except BadRow:
            missing.append(name)
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of the {len(missing) + len(found)} videos that {annotations} is about are missing or "
            f"unreadable in {videos}: {', '.join(missing[:3])}{' ...' * (len(missing) > 3)}"
        )
    return LabelledVideos(("background", *THUMOS_CLASSES), tuple(found))


def load_videos(source: dict[str, Any], size: int) -> LabelledVideos:
    """The videos that a recipe names.

    Args:
        source: `name`, `streamworld` or `thumos`, and arguments of its function.
        size: side of a frame in pixels, for what is rendered.

    Raises:
        ValueError: for another name.
    """
    arguments = dict(source)
    name = arguments.pop("name", None)
    if name == "streamworld":
        return streamworld_videos(**{"size": size, **arguments})
    if name == "thumos":
        return thumos_videos(**arguments)
    raise ValueError(f"name={name!r} must be streamworld or thumos; give other videos to train()")
