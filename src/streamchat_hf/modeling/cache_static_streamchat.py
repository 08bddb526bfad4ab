"""The streaming cache with fixed shapes: what `torch.compile` and CUDA graphs need of a decoding step.

Text, ring and masks are allocated once and written in place, and a step looks at all of it through the masks. What
changes from step to step, the tokens' positions above all, is worked out on the host before the compiled step begins.
"""

import math

import torch
from transformers import StaticCache

from .cache_streamchat import ReadyFrame, StreamingCacheMixin
from .layers_streamchat import VisualContext


class StaticStreamingCache(StreamingCacheMixin, StaticCache):
    """As [`StreamingCache`], with shapes and addresses that never change once the first frame is there.

    Args:
        config: a [`StreamChatConfig`].
        max_cache_len: how many tokens of text fit, over all turns. With a sliding window in every layer that is no
            longer, text has no end.
        streams: how many streams run side by side.
    """

    def __init__(self, config, max_cache_len: int, streams: int = 1):
        super().__init__(config, streams, max_cache_len=max_cache_len)
        text = config.get_text_config(decoder=True)
        endless = all(self.is_sliding) and text.sliding_window <= max_cache_len
        self.longest_text = math.inf if endless else max_cache_len

    def visual_context(self, rows: int) -> VisualContext | None:
        """The whole ring and which of its slots hold a frame, for `rows` rows of text; `None` before the first."""
        if self.keys is None:
            return None
        any_visible = self._any_visible.repeat_interleave(self._rows_per_stream(rows), dim=0)
        keys, values = (ring.flatten(3, 4) for ring in (self.keys, self.values))  # (C, S, K, W * N, d), views
        return VisualContext(self._visible, any_visible, keys=keys, values=values)

    def _make_ring(self, frame: ReadyFrame) -> None:
        super()._make_ring(frame)
        for tensor in (self.keys, self.values, self._visible, self._any_visible):
            torch._dynamo.mark_static_address(tensor)

    def _crop_text(self, tokens_to_remove: int) -> None:
        length = int(self.get_seq_length())
        self._cut_text(length + tokens_to_remove, length)

    def _cut_text(self, begin: int, end: int) -> None:
        if any(self.is_sliding):
            raise ValueError("text cannot be taken out of a static cache with a sliding window")
        length = int(self.get_seq_length())
        for layer in self.layers:
            for states in (layer.keys, layer.values):  # (B, K, max_cache_len, d)
                states[:, :, begin : begin + length - end] = states[:, :, end:length].clone()
            layer.cumulative_length -= end - begin  # in place; what lies beyond is never looked at
