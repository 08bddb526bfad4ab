"""Qwen3-VL: a time is written before each frame, and features of several layers go with it (DeepStack)."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import DynamicCache
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from streamchat_hf.bridge.language_input import LanguageInput
from streamchat_hf.bridge.qwen2_5_vl import Qwen2_5_VL
from streamchat_hf.bridge.rounds import Frame


class Qwen3VL(Qwen2_5_VL):
    """`qwen3_vl`. Every frame stands as `<1.5 seconds><|vision_start|>...<|vision_end|>`, a grid (1, h, w) of its own.

    A pooled frame has the time halfway between its oldest and its newest, as transformers writes it for the frames of
    a temporal patch.
    """

    def __init__(self, model: Any, tokenizer: Any):
        super().__init__(model, tokenizer)
        self._around = [[model.config.vision_start_token_id], [model.config.vision_end_token_id]]
        self._words = lru_cache(maxsize=1 << 16)(self._tokens)  # every frame is measured again for every answer

    def pixel_range(self, settings: dict[str, Any]) -> tuple[int, int]:
        """As the base class; the settings count the pixels of a whole temporal patch, which one frame fills."""
        least, most = super().pixel_range(settings)
        patch = self.model.config.vision_config.temporal_patch_size
        return least // patch, most // patch

    def features(self, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
        """`(T, k, (1 + S) D)`: visual tokens with those of S layers behind them."""
        output = self.model.get_video_features(patches, grids, return_dict=True)
        layers = [output.pooler_output, *output.deepstack_features]
        return torch.cat([torch.stack(list(frames)) for frames in layers], dim=-1)

    def frame_tokens(self, frame: Frame) -> int:
        """With its time, and what stands around it."""
        return len(self._time(frame)) + len(frame.rows) + 2

    def run(self, frames: Sequence[Frame]) -> tuple[list[int], torch.Tensor]:
        """The frames with their times."""
        ids: list[int] = []
        begin, end = self._around
        for frame in frames:
            ids += [*self._time(frame), *begin, *[self.video_token_id] * len(frame.rows), *end]
        return ids, super().run(frames)[1]

    def _time(self, frame: Frame) -> list[int]:
        return self._words(f"<{frame.middle:.1f} seconds>")

    def _tokens(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def forward(self, part: LanguageInput, past: DynamicCache) -> torch.Tensor:
        """As the base class; the visual tokens go in with those of the deeper layers."""
        seen = {}
        if len(part.rows):
            embeds, *deeper = part.rows.split(self.model.config.text_config.hidden_size, dim=-1)
            features = [(rows,) for rows in deeper]
            seen["video"] = BaseModelOutputWithDeepstackFeatures(pooler_output=(embeds,), deepstack_features=features)
        output = self.model(
            input_ids=part.ids[None],
            mm_encoder_outputs=seen,
            position_ids=part.positions,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]
