"""Keeps a small picture of every frame that passes, for drawing the answer afterwards."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor


class FrameRecorder:
    """Passes a stream of `(t_sec, pixel_values)` on unchanged; other attributes are those of the stream.

    Args:
        frames: What `processor.stream` returns, or any iterable of the same items.
        mean: Per channel, what the video processor subtracted; 0 if it did not normalise.
        std: Per channel, what it divided by; 1 if it did not normalise.
        side: The longer side of a kept picture, in pixels, at most.
    """

    def __init__(
        self, frames: Iterable[Any], mean: Sequence[float] = (0.0,), std: Sequence[float] = (1.0,), side: int = 256
    ) -> None:
        self.images: list[tuple[float, Image.Image]] = []
        self._frames = frames
        self._iterator = iter(frames)
        self._mean, self._std, self._side = mean, std, side

    def __iter__(self) -> "FrameRecorder":
        return self

    def __next__(self) -> Any:
        frame = next(self._iterator)
        self.images.append((float(frame[0]), self._picture(frame[1])))
        return frame

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_frames"], name)

    def _picture(self, pixel_values: Tensor) -> Image.Image:
        mean, std = (torch.tensor(list(value)).view(-1, 1, 1) for value in (self._mean, self._std))
        rgb = pixel_values.detach().to("cpu", torch.float32) * std + mean  # (C, H, W) in 0..1
        image = Image.fromarray((rgb * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())
        image.thumbnail((self._side, self._side))
        return image
