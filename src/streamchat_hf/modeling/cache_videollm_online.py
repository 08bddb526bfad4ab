"""The state of a stream that is read between words: a bounded window of keys and values, and what is read next.

Every frame is a few tokens of the conversation, so the conversation outgrows any context. When it does, the oldest
frames and turns are dropped in blocks, the prompt and the newest question stay, and what is left moves together: keys
that have been rotated for position p are rotated back by as many positions as they move. So positions stay contiguous
and within what the language model was trained on, and memory is constant. A key is moved at most `BLOCKS` times or so
before it is dropped itself.

Letters: K key/value heads, L tokens, d head dimension; D embedding size, N tokens of a frame.
"""

from bisect import insort
from itertools import pairwise
from typing import NamedTuple

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from .cache_streamchat import StreamState
from .rotary_streamchat import rotate

# A full window is freed by a part of this size at once: moving what is left costs little then.
BLOCKS = 8
# Tokens for which there is room before a window has to grow.
FIRST_CAPACITY = 256


class LiveFrame(NamedTuple):
    """A frame whose tokens are embedded, before it is read.

    Attributes:
        t_sec: presentation time in seconds.
        embeds: `(N, D)`.
    """

    t_sec: float
    embeds: torch.Tensor

    @property
    def is_ready(self) -> bool:
        """Tells the reader that it has been encoded."""
        return True


class WindowLayer(CacheLayerMixin):
    """Keys and values of one layer, written in place; memory doubles until the window is whole.

    Args:
        longest: how many tokens fit.
    """

    is_sliding = False

    def __init__(self, longest: int):
        super().__init__()
        self.length = 0
        self._longest = longest

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Makes empty keys and values of the right kind.

        Raises:
            ValueError: if there is more than one row.
        """
        if len(key_states) != 1:
            raise ValueError(f"a LiveCache holds one stream, not {len(key_states)} rows: make one cache for each")
        self.keys, self.values = (
            states.new_empty((*states.shape[:2], 0, states.shape[3])) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Appends `(1, K, L, d)` and returns all there are, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        begin, end = self.length, self.length + key_states.shape[2]
        if end > self.keys.shape[2]:
            self._grow(end)
        self.keys[:, :, begin:end] = key_states
        self.values[:, :, begin:end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grow(self, needed: int) -> None:
        capacity = max(FIRST_CAPACITY, self.keys.shape[2])
        while capacity < needed:
            capacity *= 2
        capacity = max(min(capacity, self._longest), needed)
        for name in ("keys", "values"):
            old = getattr(self, name)
            with torch.inference_mode(False):  # or a later call outside inference mode could not write to it
                new = torch.empty((*old.shape[:2], capacity, old.shape[3]), dtype=old.dtype, device=old.device)
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def gather(self, first: int, source: torch.LongTensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
        """Lets the tokens at `source (n,)` stand at `first` and after, keys rotated by `cos, sin (n, rotary d)`."""
        end, turned = first + len(source), cos.shape[-1]  # some models rotate a part of each head only
        keys, values = self.keys[:, :, source], self.values[:, :, source]
        keys[..., :turned] = rotate(keys[..., :turned].float(), cos, sin).to(keys.dtype)
        self.keys[:, :, first:end], self.values[:, :, first:end] = keys, values
        self.length = end

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of keys for a mask."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self._longest

    def reset(self) -> None:
        """Forgets everything; memory stays."""
        self.length = 0


class LiveCache(Cache):
    """Everything a conversation about a stream knows, passed to `generate` and returned by it.

    Args:
        config: a [`VideoLLMOnlineConfig`].
        max_context: tokens it holds at most; default: the configuration's.

    Attributes:
        max_context: tokens it holds at most.
        ids: tokens that have been read and not forgotten; their keys and values are those of the layers.
        pending: tokens that will be read before the next frame or word.
        frames_in_run: frames in the run that is open, 0 when only its opening stands there; `None` if none is open.
        prompt_length: how many of the first tokens are never forgotten.
        question: where the newest question is, from and to; it is not forgotten either. `None` before one.
        question_stands: whether frames come after it, not its answer.
        forgotten: how many tokens have been dropped so far.
        silence: probability of silence after each frame of the newest backlog.
        speaks: whether one of them says that it is time to speak.
        clock: time of the last token, question or frame in integer milliseconds.
        streams: one [`StreamState`]: the vision tower's state, waiting frames, and how many have been read.
        journal: a list that takes down every token that is read from now on, or `None`.
    """

    is_streaming = True

    def __init__(self, config, max_context: int | None = None):
        text = config.get_text_config(decoder=True)
        self.max_context: int = max_context or config.max_context or text.max_position_embeddings
        super().__init__(layers=[WindowLayer(self.max_context) for _ in range(text.num_hidden_layers)])
        self.config = config
        self._begin()

    def _begin(self) -> None:
        self.ids: list[int] = []
        self.pending: list[int] = []
        self.frames_in_run: int | None = None
        self.prompt_length = self.forgotten = self.clock = 0
        self.question: tuple[int, int] | None = None
        self.question_stands = False
        self.silence: list[float] = []
        self.speaks = False
        self.streams = [StreamState()]
        self.journal: list[int] | None = None

    def reset(self) -> None:
        """Forgets tokens, frames and times, for a new conversation in the same memory."""
        super().reset()
        self._begin()

    @property
    def open_run(self) -> bool:
        """Whether frames can be appended as they are: a question closes the run first."""
        return self.frames_in_run is not None

    @property
    def visual_bytes(self) -> int:
        """Memory of all keys and values, those of words included; constant once the window is full."""
        held = [states for layer in self.layers if layer.is_initialized for states in (layer.keys, layer.values)]
        return sum(states.numel() * states.element_size() for states in held)

    def hear(self, ids: list[int]) -> bool:
        """Takes a prompt or a question, with all that stands around it, to be read next.

        Args:
            ids: the first ones are the prompt, which is never forgotten. They may end by opening a run of frames or by
                beginning an answer.

        Returns:
            Whether they begin an answer.

        Raises:
            ValueError: if there are frames among them.
        """
        config = self.config
        if config.v_placeholder_id in ids:
            raise ValueError("a prompt for a stream cannot hold frames itself: give all of them as frames=...")
        response = list(config.response_start_ids[1:] or config.response_start_ids)  # the first token closes a run
        opens = ids[-1:] == [config.stream_start_ids[-1]]  # what is before it may be one token with the text before
        answers = ids[-len(response) :] == response
        length = len(ids) - (1 if opens else len(response) if answers else 0)
        begin = len(self.ids) + len(self.pending)
        if begin == 0:
            self.prompt_length = length
        elif length > 1:
            self.question = (begin + 1, begin + length)  # without what closes the run before it
            self.question_stands = not answers
        self.pending += ids
        self.frames_in_run = 0 if opens else None
        return answers

    def next_frames(self, count: int) -> tuple[list[int], list[int]]:
        """What is read with the next `count` frames.

        Returns:
            All tokens, `<v>` for those of frames; and where the last one of each frame stands among them.
        """
        config = self.config
        interval = [] if config.frame_token_interval_id is None else [config.frame_token_interval_id]
        ids, last = list(self.pending), []
        frames = self.frames_in_run
        for _ in range(count):
            ids += list(config.stream_start_ids) if frames is None else interval if frames else []
            ids += [config.v_placeholder_id] * config.frame_num_tokens
            last.append(len(ids) - 1)
            frames = (frames or 0) + 1
        return ids, last

    def was_read(self, ids: list[int], frames: int = 0) -> None:
        """Notes that the pending tokens, and `frames` frames after them, have been read as `ids`."""
        self.ids += ids
        self.pending = []
        if frames:
            self.frames_in_run = (self.frames_in_run or 0) + frames
        if self.journal is not None:
            self.journal += ids

    def begin_response(self) -> None:
        """Closes the run of frames and begins to speak."""
        if self.open_run:
            self.pending += self.config.response_start_ids
        self.frames_in_run = None

    def end_response(self) -> None:
        """Ends what is being said, also if it was cut off."""
        if self.pending[-1:] != [self.config.eos_token_id]:
            self.pending.append(self.config.eos_token_id)

    def frames_at_once(self) -> int:
        """How many frames to read in one forward pass: half of what is free or can be freed, but at least one."""
        free = self.max_context - len(self.ids) - len(self.pending)
        free += sum(end - begin for begin, end in self._oldest(len(self.ids)))
        return max(1, free // 2 // (self.config.frame_num_tokens + 1))

    def make_room(self, tokens: int, rotary_emb) -> None:
        """Drops the oldest frames and turns until so many tokens fit.

        Args:
            tokens: how many will be read.
            rotary_emb: the language model's rotary embedding.

        Raises:
            ValueError: if they cannot fit.
        """
        excess = len(self.ids) + tokens - self.max_context
        if excess <= 0:
            return
        ranges = self._oldest(excess + self.max_context // BLOCKS)
        if sum(end - begin for begin, end in ranges) < excess:
            raise ValueError(
                f"{tokens} tokens do not fit into max_context={self.max_context}: the prompt, the newest question and "
                f"the turn under way hold {len(self.ids)}"
            )
        self._forget(ranges, rotary_emb)

    def _oldest(self, wanted: int) -> list[tuple[int, int]]:
        """The oldest tokens, from and to, at least `wanted` if so many can go without breaking a frame or a turn."""
        ranges: list[tuple[int, int]] = []
        for begin, end in self._turns():
            missing = wanted - sum(last - first for first, last in ranges)
            if missing <= 0:
                break
            places = [i for i in range(begin, end) if self.ids[i] == self.config.v_placeholder_id]
            frames = places[:: self.config.frame_num_tokens]  # where each begins
            until = next((first for first in frames if first - frames[0] >= missing), None)
            if until is None and end < len(self.ids):  # all of the turn, but not the question if it is the newest
                question = self.question or (end, end)
                kept_from, kept_to = question if begin <= question[0] < end else (end, end)
                ranges += [(begin, kept_from), (kept_to, end)]
            elif frames:  # with what stands between them, so that the run still begins with its opening
                ranges.append((frames[0], frames[-1] if until is None else until))
        return ranges

    def _turns(self) -> list[tuple[int, int]]:
        """From where to where each turn goes: a run of frames, if there is one, and what was said after it.

        The newest question ends its turn if it stands: the frames after it go before it does.
        """
        length, eos = len(self.ids), self.config.eos_token_id
        ends = [i + 1 for i in range(self.prompt_length, length - 1) if self.ids[i] == eos] + [length]
        if self.question is not None and self.question_stands and self.question[1] < length:
            insort(ends, self.question[1])
        return list(pairwise([self.prompt_length, *ends]))

    def _forget(self, ranges: list[tuple[int, int]], rotary_emb) -> None:
        if getattr(rotary_emb, "rope_type", None) in (None, "dynamic", "longrope"):
            raise ValueError(
                "the window is full, and keys of this language model cannot be moved: its positions are not plain "
                "rotary ones. Set max_context to the length of the whole stream"
            )
        stays = torch.ones(len(self.ids), dtype=torch.bool)
        for begin, end in ranges:
            stays[begin:end] = False
        first = ranges[0][0]
        source = stays.nonzero()[first:, 0]  # (n,) where the tokens that move stand now
        distance = source - torch.arange(first, first + len(source))
        # In float64, as angles of far positions lose their small differences otherwise.
        angles = torch.outer(distance.double(), rotary_emb.inv_freq.cpu().double()).repeat(1, 2)  # (n, d)
        cos, sin = angles.cos().float(), -angles.sin().float()
        for layer in self.layers:
            layer.gather(first, *(tensor.to(layer.keys.device) for tensor in (source, cos, sin)))
        if self.question is not None:
            begin, end = self.question
            moved = int((~stays[:begin]).sum())
            self.question = (begin - moved, end - moved)
        self.forgotten += int((~stays).sum())
        self.ids = [token for token, kept in zip(self.ids, stays.tolist(), strict=True) if kept]
