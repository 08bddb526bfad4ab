"""Qwen2.5-VL: frames of any shape, and positions in time, height and width (M-RoPE)."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from streamchat_hf.bridge.family import Family
from streamchat_hf.bridge.rounds import Round


class Qwen2_5_VL(Family):
    """`qwen2_5_vl`. A frame fills a temporal patch by repetition; a round's frames are one video grid (n, h, w)."""

    def frame_size(self, height: int, width: int, settings: dict[str, Any]) -> tuple[int, int]:
        """The frame's own shape, in whole visual tokens, within the processor's range of pixels."""
        vision = self.model.config.vision_config
        return smart_resize(height, width, vision.patch_size * vision.spatial_merge_size, *self.pixel_range(settings))

    def pixel_range(self, settings: dict[str, Any]) -> tuple[int, int]:
        """How few and how many pixels a frame may have, by the video processor's settings.

        Raises:
            ValueError: if they do not say.
        """
        size = settings.get("size") or {}
        least, most = size.get("shortest_edge"), size.get("longest_edge")
        if not least or not most:
            raise ValueError(f"the video processor must say shortest_edge and longest_edge in size, not {size}")
        return least, most

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """Each frame as a video of its own: the vision tower attends within a temporal patch."""
        vision = self.model.config.vision_config
        rows, columns = (side // vision.patch_size for side in pixels.shape[-2:])
        patches = patchify(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        grids = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)
        features = self.features(patches, grids)
        merge = vision.spatial_merge_size
        return features, (rows // merge, columns // merge)

    def features(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """The visual tokens `(T, k, D)` of patches of frames with grids `(T, 3)`."""
        output = self.model.get_video_features(patches, grids, return_dict=True)
        return torch.stack(list(output.pooler_output))

    def positions(self, ids: torch.Tensor, rounds: Sequence[Round]) -> torch.Tensor:
        """`(3, 1, L)` time, height and width of each token; what has been pooled counts as one frame."""
        seen = [each for each in rounds if each.frames]
        merge = self.model.config.vision_config.spatial_merge_size
        grids = [[len(each.frames), *(side * merge for side in each.frames[0].grid)] for each in seen]
        types = (ids == self.video_token_id).int() * 2  # text 0, image 1, video 2
        positions, _ = self.model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=types[None],
            video_grid_thw=torch.tensor(grids, device=ids.device) if seen else None,
            second_per_grid_ts=torch.tensor([each.seconds_per_frame for each in seen]),
        )
        return positions


def patchify(pixels: torch.Tensor, patch: int, merge: int, temporal_patch: int) -> torch.Tensor:
    """Frames `(T, C, H, W)` as the vision tower of Qwen takes them, each filling a temporal patch.

    Returns:
        `(T h w, C * temporal_patch * patch * patch)`, patches in groups of `merge x merge`.
    """
    frames, channels, height, width = pixels.shape
    rows, columns = height // patch // merge, width // patch // merge
    grid = pixels.reshape(frames, channels, rows, merge, patch, columns, merge, patch)
    grid = grid.permute(0, 2, 5, 3, 6, 1, 4, 7)  # (T, rows, columns, merge, merge, C, patch, patch)
    repeated = grid.unsqueeze(6).expand(*grid.shape[:6], temporal_patch, patch, patch)
    return repeated.reshape(frames * rows * columns * merge * merge, channels * temporal_patch * patch * patch)
