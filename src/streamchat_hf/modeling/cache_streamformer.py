"""The state of streams watched by StreamFormer: temporal keys and values of past frames, and how many were seen.

Positions enter keys before they are stored, so the order of frames in memory means nothing to attention, and a frame
that leaves the window is simply overwritten. Letters: B streams, N patches, H heads, d head size, T new frames, S
stored frames.
"""

import torch


class StreamFormerCache:
    """Temporal keys and values of streams that run side by side, one ring of frames per layer.

    With a window the memory is allocated with the first frame and never again; without one it grows by doubling.
    Stored states carry no gradient. An interrupted forward pass leaves [`frames_seen`] as it was.

    Args:
        sliding_window: frames a frame attends to, itself included; `None`: all, and memory grows.

    Attributes:
        frames_seen: how many frames every stream has had; the absolute index of the next one.
    """

    def __init__(self, sliding_window: int | None = None):
        self.sliding_window = sliding_window
        self.frames_seen = 0
        self._keys: list[torch.Tensor] = []  # per layer (B*N, H, capacity, d)
        self._values: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Allocated memory in bytes."""
        return sum(states.nbytes for states in (*self._keys, *self._values))

    def reset(self) -> None:
        """Forgets all frames and keeps the memory for the next streams of the same shape."""
        self.frames_seen = 0

    def key_frames(self, new_frames: int) -> torch.Tensor:
        """Absolute frame index of each key that `update` will return for `new_frames` frames: `(S,)` int64."""
        if self._appends_in_place(new_frames):
            return self._stored_frames(self.frames_seen + new_frames)
        new = torch.arange(self.frames_seen, self.frames_seen + new_frames)
        return torch.cat([self._stored_frames(self.frames_seen), new])

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores new frames of one layer; [`advance`] follows once all layers are done.

        Args:
            keys, values: `(B*N, H, T, d)`, keys with their position.
            layer: index of the layer; layers arrive in order the first time.

        Returns:
            Keys and values `(B*N, H, S, d)` the new frames may attend to, in the order of [`key_frames`].

        Raises:
            ValueError: if number of streams, patches or heads, or the data type, change within a stream.
        """
        if layer == len(self._keys):
            self._keys.append(self._empty(keys, 0))
            self._values.append(self._empty(values, 0))
        return self._write(self._keys, layer, keys.detach()), self._write(self._values, layer, values.detach())

    def advance(self, new_frames: int) -> None:
        """Counts new frames, after every layer has stored them."""
        self.frames_seen += new_frames

    def _appends_in_place(self, new_frames: int) -> bool:
        """Whether new frames overwrite only what none of them attends to."""
        window = self.sliding_window
        return new_frames == 1 or window is None or self.frames_seen + new_frames <= window

    def _stored_frames(self, count: int) -> torch.Tensor:
        """Frame index in each slot after `count` frames: slot s holds the newest frame f with f = s modulo window."""
        if self.sliding_window is None or count <= self.sliding_window:
            return torch.arange(count)
        newest = count - 1
        return newest - (newest - torch.arange(self.sliding_window)) % self.sliding_window

    def _write(self, rings: list[torch.Tensor], layer: int, new: torch.Tensor) -> torch.Tensor:
        ring = rings[layer]
        expected, got = (*ring.shape[:2], ring.shape[3], ring.dtype), (*new.shape[:2], new.shape[3], new.dtype)
        if expected != got:
            raise ValueError(
                f"frames do not continue this stream: (streams * patches, heads, head size, dtype) were {expected}, "
                f"now {got}. Start a new cache, or reset() an old one only for streams of the same shape"
            )
        seen, new_frames, window = self.frames_seen, new.shape[2], self.sliding_window
        capacity = window or seen + new_frames
        if ring.shape[2] < capacity:
            # Without a window, doubling keeps the copies at a constant number per frame.
            grown = self._empty(new, capacity if window else max(capacity, 2 * ring.shape[2]))
            grown[:, :, :seen] = ring[:, :, :seen]
            ring = rings[layer] = grown
        if window is None or seen + new_frames <= window:
            ring[:, :, seen : seen + new_frames] = new
            return ring[:, :, : seen + new_frames]
        if new_frames == 1:
            ring[:, :, seen % window] = new[:, :, 0]
            return ring
        visible = torch.cat([ring[:, :, : min(seen, window)], new], dim=2) if seen else new
        kept = torch.arange(max(seen, seen + new_frames - window), seen + new_frames, device=new.device)
        ring[:, :, kept % window] = new[:, :, -len(kept) :]
        return visible

    @staticmethod
    def _empty(like: torch.Tensor, capacity: int) -> torch.Tensor:
        # A tensor made in inference mode could not be written outside it later.
        with torch.inference_mode(False):
            return torch.empty(*like.shape[:2], capacity, like.shape[3], dtype=like.dtype, device=like.device)
