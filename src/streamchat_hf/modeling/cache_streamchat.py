"""The state of a streaming conversation: text keys and values, a ring of visual rows, and the timeline.

Visual tokens are updated neither by text nor by each other, so a frame's keys and values at every chosen layer are
computed once, when it arrives. A decoding step takes over what is ready: one rotation at the frame's index, one write
into the ring. Nothing recomputes a past frame, and because only relative distance matters, eviction moves nothing.

Letters: C chosen layers, S streams, B text rows (B = S * r), K key/value heads, W window in frames, N visual tokens
per frame, d head dimension.
"""

import math
from collections import deque
from typing import NamedTuple

import torch
from transformers import Cache, DynamicCache

from .layers_streamchat import VisualContext
from .rotary_streamchat import rotary_angles, rotate, visual_index_3d
from .timeline_streamchat import Timeline


class ReadyFrame(NamedTuple):
    """A frame whose rows are computed, before a decoding step takes them over.

    Attributes:
        t_sec: presentation time in seconds.
        keys, values: `(C, K, N, d)`, keys not rotated.
        grid: rows and columns of its visual tokens.
    """

    t_sec: float
    keys: torch.Tensor
    values: torch.Tensor
    grid: tuple[int, int]

    @property
    def is_ready(self) -> bool:
        """Tells the reader that it has been encoded."""
        return True


class StreamState:
    """What the cache knows about one stream, on the host.

    Attributes:
        timeline: the position counter.
        speaking: whether a turn is under way: its prompt has been read and its answer has not ended.
        unread: whether the last token on the timeline has been spoken but not read yet.
        idle: whether its answer has ended while other streams of the batch go on; its rows are padding until then.
        frames_taken: how many frames have been taken over since the stream began.
        newest_frame_time: presentation time of the newest of them in seconds, nan before the first.
        vision_cache: the vision tower's own state.
        waiting: frames pulled from the source that were not due when the last call ended.
        frame_shape: `(C, H, W)` of its frames; `None` before the first.
        untimed_frames: how many frames without times of their own have been pulled; the number of the next one.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.speaking = False
        self.unread = False
        self.idle = False
        self.frames_taken = 0
        self.newest_frame_time = float("nan")
        self.vision_cache = None
        self.waiting: deque = deque()
        self.frame_shape: tuple[int, ...] | None = None
        self.untimed_frames = 0

    def speak(self) -> None:
        """Puts the token that was just spoken, and will be read next, on the timeline."""
        if self.speaking and not self.unread:
            self.timeline.add_token()
            self.unread = True


class StreamingCacheMixin(Cache):
    """What a conversation keeps besides its text; stands before the cache class of transformers that holds the text.

    Args:
        config: a [`StreamChatConfig`].
        streams: how many streams run side by side.
        **text: further arguments of that class.

    Attributes:
        longest_text: how many tokens of text fit.
        clock: time of the last token or question in integer milliseconds; the default `start_time` of the next call.
        streams: the [`StreamState`] of each stream.
        keys, values: `(C, S, K, W, N, d)` rings of rotated keys and of values; `None` before the first frame.
        said: `(B, n)` the tokens of all turns so far, as `generate` returned them; `None` before the first.
        history, history_mask: the same as they are read: padding masked out, an end-of-turn token where it is due.
    """

    is_streaming = True
    is_croppable = False  # not once a frame has been seen, so no decoding loop may count on it
    longest_text = math.inf

    def __init__(self, config, streams: int = 1, **text):
        super().__init__(config=config.get_text_config(decoder=True), **text)
        self.window = config.visual_window
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None
        self._begin(streams)

    def _begin(self, streams: int) -> None:
        self.clock = 0
        self.streams = [StreamState() for _ in range(streams)]
        self.said: torch.LongTensor | None = None
        self.history: torch.LongTensor | None = None
        self.history_mask: torch.LongTensor | None = None
        self._grid: tuple[int, int] | None = None

    def reset(self) -> None:
        """Forgets text, frames and times, for a new conversation of as many streams in the same memory."""
        super().reset()
        self._begin(len(self.streams))
        if self.keys is not None:
            self._forget_frames()

    @property
    def visual_bytes(self) -> int:
        """Memory of the visual rings, constant after the first frame."""
        return 0 if self.keys is None else 2 * self.keys.numel() * self.keys.element_size()

    def end_turn(self, stream: int, unread: bool = True) -> None:
        """Closes the turn of a stream: what follows happens in silence.

        `unread` says that the turn's last token has been spoken but not read; the next prompt's prefill reads it.
        """
        state = self.streams[stream]
        if unread:
            state.speak()
        state.speaking = False

    def take_over(self, stream: int, frame: ReadyFrame, rotary_emb) -> None:
        """Takes over a frame: gives it its index, rotates its keys there, and writes it over the oldest frame.

        Raises:
            ValueError: if its visual tokens differ in number from those of the frames before.
        """
        if self._grid is None:
            self._make_ring(frame)
        if frame.grid != self._grid:
            raise ValueError(
                f"the frame at {frame.t_sec:.3f} s has {frame.grid} visual tokens, the frames before it {self._grid}"
            )
        state = self.streams[stream]
        state.speak()
        index = state.timeline.add_frame(while_speaking=state.speaking)
        position = visual_index_3d(torch.tensor(index, device=frame.keys.device), *frame.grid)  # (N, 3)
        cos, sin = rotary_angles(position, rotary_emb.inv_freq, rotary_emb.attention_scaling, frame.keys.dtype)
        slot = state.frames_taken % self.window
        self.keys[:, stream, :, slot] = rotate(frame.keys, cos, sin)
        self.values[:, stream, :, slot] = frame.values
        if state.frames_taken < self.window:
            self._show_slot(stream, slot)
        state.frames_taken += 1
        state.newest_frame_time = frame.t_sec

    def _make_ring(self, frame: ReadyFrame) -> None:
        self._grid = frame.grid
        layers, heads, tokens, head_dim = frame.keys.shape
        shape = (layers, len(self.streams), heads, self.window, tokens, head_dim)
        if self.keys is not None and self.keys.shape == shape:  # of the conversation before
            return
        with torch.inference_mode(False):  # or a later call outside inference mode could not write to them
            self.keys = torch.zeros(shape, dtype=frame.keys.dtype, device=frame.keys.device)
            self.values = torch.zeros_like(self.keys)
            self._visible = self.keys.new_empty(len(self.streams), 1, 1, self.window * tokens, dtype=torch.bool)
            self._any_visible = self.keys.new_empty(len(self.streams), 1, 1, dtype=torch.bool)
        self._forget_frames()

    def _forget_frames(self) -> None:
        # A softmax over nothing is never taken: what sees nothing looks everywhere, and its result is dropped.
        self._visible.fill_(True)
        self._any_visible.fill_(False)

    def _show_slot(self, stream: int, slot: int) -> None:
        if slot == 0:
            self._visible[stream] = False
            self._any_visible[stream] = True
        tokens = self.keys.shape[4]
        self._visible[stream, ..., slot * tokens : (slot + 1) * tokens] = True

    def read_tokens(self, inputs: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.LongTensor:
        """Positions `(B, L)` of the tokens about to be read, which a forward takes as `position_ids`.

        A token spoken before keeps the index it has; in silence the first new one starts a turn. Padding holds 0.

        Args:
            inputs: `(B, L)` tokens or `(B, L, D)` embeddings.
            attention_mask: `(B, past + L)`, 0 for padding; `None`: no padding.

        Raises:
            ValueError: if the rows are not a multiple of the streams, or rows of one stream are padded differently.
        """
        rows, length = inputs.shape[:2]
        per_stream = self._rows_per_stream(rows)
        # Rows of one stream differ in nothing but what they say, so the first one speaks for its padding.
        real = None
        # While all are answering, a step of one token holds no padding, and the device need not be waited for.
        answering = length == 1 and all(state.speaking or state.idle for state in self.streams)
        if attention_mask is not None and not answering:
            mask = attention_mask[:, -length:]
            if not torch.equal(mask, mask[::per_stream].repeat_interleave(per_stream, dim=0)):
                raise ValueError("different prompts cannot share a stream: make the cache with one stream per row")
            real = mask[::per_stream].tolist()
        index = [self._read_row(state, length, real and real[s]) for s, state in enumerate(self.streams)]
        return torch.tensor(index, device=inputs.device).repeat_interleave(per_stream, dim=0)

    @staticmethod
    def _read_row(state: StreamState, length: int, real: list[int] | None) -> list[int]:
        index = [0] * length
        for i in range(length):
            if state.idle or (real is not None and not real[i]):
                continue
            if state.unread:
                state.unread = False
            elif state.speaking:
                state.timeline.add_token()
            else:
                state.timeline.add_token(starts_turn=True)
                state.speaking = True
            index[i] = state.timeline.last_text
        return index

    def _rows_per_stream(self, rows: int) -> int:
        if rows % len(self.streams):
            raise ValueError(f"{rows} rows of text cannot be shared out over the cache's {len(self.streams)} streams")
        return rows // len(self.streams)

    def crop(self, tokens_to_remove: int) -> None:
        """Takes back the last `-tokens_to_remove` tokens of a stream that has seen no frame.

        Raises:
            ValueError: once a frame has been seen, because frames and tokens share one timeline.
        """
        if any(state.frames_taken for state in self.streams):
            raise ValueError("a streaming cache that has seen frames cannot be cropped")
        self._crop_text(tokens_to_remove)
        for state in self.streams:
            state.timeline.last_text += tokens_to_remove

    def _crop_text(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)

    def forget_text(self, begin: int, end: int) -> None:
        """Forgets the tokens from `begin` to `end` of every row; frames and what was computed since stay.

        What is left keeps its positions, because only relative distance matters.

        Raises:
            ValueError: if they have not all been read.
        """
        if not 0 <= begin <= end <= self.get_seq_length():
            raise ValueError(f"cannot forget tokens {begin} to {end}: {self.get_seq_length()} have been read")
        begin, end = int(begin), int(end)  # a static cache counts in a tensor that cutting changes
        self._cut_text(begin, end)
        self.said, self.history, self.history_mask = (
            _without(tokens, 1, begin, end) for tokens in (self.said, self.history, self.history_mask)
        )

    def _cut_text(self, begin: int, end: int) -> None:
        for layer in self.layers:
            layer.keys, layer.values = _without(layer.keys, 2, begin, end), _without(layer.values, 2, begin, end)


class StreamingCache(StreamingCacheMixin, DynamicCache):
    """Text and visual state of one or several streams, passed to `generate` and returned by it.

    Text grows, and a step looks at no more frames than there are. Attributes are those of [`StreamingCacheMixin`].

    Args:
        config: a [`StreamChatConfig`].
        streams: how many streams run side by side.
    """

    def visual_context(self, rows: int) -> VisualContext | None:
        """The frames held now, for `rows` rows of text; `None` if there are none."""
        held = [min(state.frames_taken, self.window) for state in self.streams]
        if not any(held):
            return None
        per_stream = self._rows_per_stream(rows)
        # (C, S, K, W, N, d) -> (C, S, K, held * N, d), a view: slots fill in order
        keys, values = (ring[:, :, :, : max(held)].flatten(3, 4) for ring in (self.keys, self.values))
        if min(held) == max(held):
            return VisualContext(None, None, keys=keys, values=values)
        any_visible = self._any_visible.repeat_interleave(per_stream, dim=0)
        return VisualContext(self._visible[..., : keys.shape[3]], any_visible, keys=keys, values=values)


def _without(states: torch.Tensor, dim: int, begin: int, end: int) -> torch.Tensor:
    return torch.cat((states.narrow(dim, 0, begin), states.narrow(dim, end, states.shape[dim] - end)), dim)
