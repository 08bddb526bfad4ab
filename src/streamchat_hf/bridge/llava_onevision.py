"""LLaVA-OneVision: square frames, pooled two by two, and a token for the end of a video."""

from collections.abc import Sequence
from typing import Any

import torch

from streamchat_hf.bridge.family import Family
from streamchat_hf.bridge.rounds import Frame


class LlavaOnevision(Family):
    """`llava_onevision`. A frame is 14 x 14 visual tokens of 384 pixels; one `image_newline` ends a round's frames."""

    run_tokens = 1

    def frame_size(self, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
        """The size that the vision tower knows, whatever a frame's shape."""
        side = self.model.config.vision_config.image_size
        return side, side

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """All frames as one video, without the token that ends it."""
        features = self.model.get_video_features(pixel_values_videos=pixels[None], return_dict=True).pooler_output
        rows = features[0, :-1].unflatten(0, (len(pixels), -1))  # (1, T k + 1, D) -> (T, k, D)
        side = round(rows.shape[1] ** 0.5)
        return rows, (side, side)

    def run(self, frames: Sequence[Frame]) -> tuple[list[int], torch.Tensor]:
        """The frames, and what ends them."""
        ids, rows = super().run(frames)
        newline = self.model.model.image_newline.to(rows)
        return [*ids, self.video_token_id], torch.cat((rows, newline[None]))
