"""The state of streams watched by StreamFormer: temporal keys and values of past frames, and how many were seen.

Positions enter keys before they are stored, so the order of frames in memory means nothing to attention, and a frame
that leaves the window is simply overwritten. Letters: B streams of the cache, b streams that have new frames, N
patches, H heads, d head size, T new frames, S frames attended to. Where streams stand at the same frame, plans are
made once for all of them: `1|b` is 1 then, and b otherwise.
"""

from collections.abc import Sequence

import torch


class StreamFormerCache:
    """Temporal keys and values of streams that run side by side, one ring of frames per layer.

    Streams are rows of a batch. They begin, pause and end on their own: a row that is [`reset`] begins anew, and one
    that is not among the `streams` of a forward pass sits it out. Rows that nothing was written to cost address space
    only, so there may be more of them than streams at first.

    With a window the memory is allocated with the first frame and never again; without one it grows by doubling.
    Stored states carry no gradient. An interrupted forward pass leaves `frames_seen` as it was.

    Args:
        sliding_window: frames a frame attends to, itself included; `None`: all, and memory grows.
        streams: number of rows B; `None`: as many as the first frames have.

    Attributes:
        frames_seen: `(B,)` int64 on the CPU, how many frames every stream has had: the absolute index of its next one.
            Empty before the first frames if `streams` is `None`.
    """

    def __init__(self, sliding_window: int | None = None, streams: int | None = None):
        self.sliding_window = sliding_window
        self.frames_seen = torch.zeros(streams or 0, dtype=torch.int64)
        self._keys: list[torch.Tensor] = []  # per layer (B*N, H, capacity, d)
        self._values: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(states.nbytes for states in (*self._keys, *self._values))

    def reset(self, streams: Sequence[int] | torch.Tensor | None = None) -> None:
        """Forgets the frames of some streams, which begin anew, and keeps the memory.

        Args:
            streams: which rows; `None`: all of them.

        Raises:
            ValueError: if a row is named twice or does not exist.
        """
        rows = self._rows(streams)
        self._set_seen(rows, torch.tensor(0))
        for states in (*self._keys, *self._values):
            # A masked slot has weight 0, but 0 times a NaN that a broken frame left there is NaN.
            states.unflatten(0, (len(self.frames_seen), -1))[rows] = 0

    @torch.compiler.disable  # what depends on how many frames were seen is decided here, outside the compiled graph
    def step(
        self, streams: int, new_frames: int, rows: Sequence[int] | torch.Tensor | None = None
    ) -> "StreamFormerStep":
        """Plans a forward pass over new frames; nothing changes before its `update`.

        Args:
            streams: how many streams b have new frames.
            new_frames: how many each of them has.
            rows: the streams' rows; `None`: all of them, in order.

        Raises:
            ValueError: if the rows are not as many as the streams, or are not rows of this cache.
        """
        if not len(self.frames_seen):
            self.frames_seen = torch.zeros(streams, dtype=torch.int64)
        chosen = self._rows(rows)
        seen = self.frames_seen[chosen]
        if len(seen) != streams:
            raise ValueError(
                f"{streams} streams do not continue the {len(seen)} of {len(self.frames_seen)} rows they are for: "
                f"give the rows that have new frames as streams, or start a new cache"
            )
        return StreamFormerStep(self, chosen, seen, new_frames)

    def _set_seen(self, rows: slice | torch.Tensor, count: torch.Tensor) -> None:
        # Not in place: what a caller noted down stays, and a tensor made in inference mode could not be written later.
        self.frames_seen = self.frames_seen.clone()
        self.frames_seen[rows] = count

    def _rows(self, streams: Sequence[int] | torch.Tensor | None) -> slice | torch.Tensor:
        """Rows as a slice where they are neighbours in order, which needs no copy of what they hold."""
        count = len(self.frames_seen)
        if streams is None:
            return slice(0, count)
        rows = torch.as_tensor(streams, dtype=torch.int64, device="cpu")
        named = rows.tolist()
        if not named or len(set(named)) != len(named) or min(named) < 0 or max(named) >= count:
            raise ValueError(f"streams {named} must be different rows of the {count} this cache has")
        first, last = named[0], named[-1] + 1
        return slice(first, last) if named == list(range(first, last)) else rows


class StreamFormerStep:
    """One forward pass over new frames: where every layer stores them and what they attend to.

    Attributes:
        frames: `(1|b, T)` int64 absolute indices of the new frames.
        key_frames: `(1|b, S)` int64 absolute index of each key that [`update`] will return; negative: no frame.
    """

    def __init__(self, cache: StreamFormerCache, rows: slice | torch.Tensor, seen: torch.Tensor, new_frames: int):
        self._cache, self._rows, self._streams = cache, rows, len(seen)
        if (seen == seen[0]).all():
            seen = seen[:1]
        newest = int(seen.max()) + new_frames  # counts, as a slice does
        window = cache.sliding_window
        self.frames = seen[:, None] + torch.arange(new_frames)
        self._capacity = window or newest
        # Whether new frames overwrite only what none of them attends to.
        self._in_place = new_frames == 1 or newest <= self._capacity
        self._held = min(newest if self._in_place else newest - new_frames, self._capacity)
        last = self.frames[:, -1:] if self._in_place else seen[:, None] - 1
        # Slot s holds the newest frame f with f = s modulo capacity. A slot not yet filled comes out negative.
        self.key_frames = last - (last - torch.arange(self._held)) % self._capacity
        if not self._in_place:
            self.key_frames = torch.cat([self.key_frames, self.frames], dim=1)
        kept = self.frames[:, -self._capacity :]
        row_index = torch.arange(len(cache.frames_seen))[rows]
        self._written = row_index[:, None], kept % self._capacity  # (b, 1) and (1|b, kept)

    @torch.compiler.disable
    def mask(self, patches: int) -> torch.Tensor | None:
        """`(1|b*N, 1, T, S)`, `True` where a frame may look; `None` if it may look everywhere."""
        visible = may_look(self.frames, self.key_frames, self._cache.sliding_window)
        return None if visible.all() else per_patch(visible, patches)[:, None]

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new frames of one layer; [`finish`] follows once all layers are done.

        Args:
            keys, values: `(b*N, H, T, d)`, keys with their position.
            layer: index of the layer; layers arrive in order the first time.

        Returns:
            Keys and values `(b*N, H, S, d)` the new frames may attend to, in the order of `key_frames`.

        Raises:
            ValueError: if number of patches or heads, or the data type, change within a stream.
        """
        cache = self._cache
        if layer == len(cache._keys):
            cache._keys.append(self._empty(keys, 0))
            cache._values.append(self._empty(values, 0))
        return self._write(cache._keys, layer, keys.detach()), self._write(cache._values, layer, values.detach())

    def finish(self) -> None:
        """Counts the new frames, after every layer has stored them."""
        self._cache._set_seen(self._rows, self.frames[:, -1] + 1)

    def _write(self, rings: list[torch.Tensor], layer: int, new: torch.Tensor) -> torch.Tensor:
        ring, streams = rings[layer], len(self._cache.frames_seen)
        expected = (ring.shape[0] // streams, ring.shape[1], ring.shape[3], ring.dtype)
        got = (new.shape[0] // self._streams, new.shape[1], new.shape[3], new.dtype)
        if expected != got:
            raise ValueError(
                f"frames do not continue this stream: (patches, heads, head size, dtype) were {expected}, "
                f"now {got}. Start a new cache, or reset() an old one only for streams of the same shape"
            )
        if ring.shape[2] < self._capacity:
            # Without a window, doubling keeps the copies at a constant number per frame.
            bounded = self._cache.sliding_window is not None
            grown = self._empty(new, self._capacity if bounded else max(self._capacity, 2 * ring.shape[2]))
            grown[:, :, : ring.shape[2]] = ring
            ring = rings[layer] = grown
        by_stream, new_by_stream = ring.unflatten(0, (streams, -1)), new.unflatten(0, (self._streams, -1))
        visible = None
        if not self._in_place:
            visible = torch.cat([by_stream[self._rows].flatten(0, 1)[:, :, : self._held], new], dim=2)
        row_index, slots = self._written = tuple(index.to(ring.device) for index in self._written)
        # The indexed dimensions come first: (b, kept, N, H, d).
        by_stream[row_index, :, :, slots] = new_by_stream[:, :, :, -slots.shape[1] :].permute(0, 3, 1, 2, 4)
        return by_stream[self._rows].flatten(0, 1)[:, :, : self._held] if visible is None else visible

    def _empty(self, like: torch.Tensor, capacity: int) -> torch.Tensor:
        """A ring for all streams; zeros, because a slot that is masked out still takes part with weight 0."""
        rows = like.shape[0] // self._streams * len(self._cache.frames_seen)
        # A tensor made in inference mode could not be written outside it later.
        with torch.inference_mode(False):
            return torch.zeros(rows, like.shape[1], capacity, like.shape[3], dtype=like.dtype, device=like.device)


def may_look(frames: torch.Tensor, key_frames: torch.Tensor, window: int | None) -> torch.Tensor:
    """`(..., T, S)` bool: frames `(..., T)` look at themselves and at earlier ones `(..., S)` inside the window."""
    age = frames[..., :, None] - key_frames[..., None, :]
    visible = (age >= 0) & (key_frames >= 0)[..., None, :]
    return visible if window is None else visible & (age < window)


def per_patch(states: torch.Tensor, patches: int) -> torch.Tensor:
    """What is given per stream `(b, ...)` for each of its patches `(b*N, ...)`; one for all `(1, ...)` as it is."""
    return states if len(states) == 1 else states.repeat_interleave(patches, dim=0)
