"""What the memory buffer of StreamBridge holds: rounds of frames and text.

Letters: k visual tokens of a frame, D their size. Models that feed a frame's features into several layers (DeepStack)
have the features of all of them side by side in D.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch


class Frame(NamedTuple):
    """A frame's visual tokens, or those of several frames in a row that have been pooled.

    Attributes:
        t_sec: presentation time in seconds, of the newest frame it stands for.
        rows: `(k, D)` visual tokens; of several frames their sum, in float32 at least, so that pooling them one by
            one is as exact as pooling them at once.
        grid: rows and columns in which the tokens lie.
        stands_for: how many frames it stands for.
        since: presentation time of the oldest of them; `None`: it stands for itself.
    """

    t_sec: float
    rows: torch.Tensor
    grid: tuple[int, int]
    stands_for: int = 1
    since: float | None = None

    @property
    def is_ready(self) -> bool:
        """Tells the reader that it has been encoded."""
        return True

    @property
    def middle(self) -> float:
        """The time in seconds halfway between the oldest and the newest frame it stands for."""
        return self.t_sec if self.since is None else (self.since + self.t_sec) / 2

    @property
    def mean(self) -> torch.Tensor:
        """`(k, D)` the average frame."""
        return self.rows if self.stands_for == 1 else self.rows / self.stands_for


# How many tokens of the input a frame takes.
FrameTokens = Callable[[Frame], int]


def pool(frames: Sequence[Frame]) -> Frame:
    """One frame for several in a row: the average over time of each visual token, every frame counting alike."""
    if len(frames) == 1:
        return frames[0]
    oldest, newest = frames[0], frames[-1]
    exact = torch.promote_types(oldest.rows.dtype, torch.float32)
    rows = torch.stack([frame.rows for frame in frames]).to(exact).sum(0)  # (n, k, D) -> (k, D)
    count = sum(frame.stands_for for frame in frames)
    return Frame(newest.t_sec, rows, oldest.grid, count, oldest.t_sec if oldest.since is None else oldest.since)


@dataclass(frozen=True)
class Round:
    """The frames since the last question or answer, and the text that follows them, as tokens.

    Attributes:
        opening: what the chat template writes before the frames; empty without any.
        frames: the frames; there may be none.
        text: what follows them: questions, then the answer, with what the template writes around them. Empty while
            frames can still be added.
        question: if the newest question was asked here, its message without frames: what stays of this round when
            it is forgotten.
        seconds_per_frame: nominal distance of its frames.
        messages: the text as messages, `{"role": ..., "content": ...}`.
    """

    opening: tuple[int, ...] = ()
    frames: tuple[Frame, ...] = ()
    text: tuple[int, ...] = ()
    question: tuple[int, ...] = ()
    seconds_per_frame: float = 1.0
    messages: tuple[dict[str, Any], ...] = field(default=())

    @property
    def is_open(self) -> bool:
        """Whether the next frame belongs to it."""
        return bool(self.frames) and not self.text

    @property
    def is_answered(self) -> bool:
        """Whether its text ends with an answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def length(self, frame_tokens: FrameTokens, run_tokens: int) -> int:
        """Tokens it takes; `run_tokens` are those that its frames have in common."""
        frames = sum(map(frame_tokens, self.frames)) + (run_tokens if self.frames else 0)
        return len(self.opening) + frames + len(self.text)

    def forgotten(self) -> "Round | None":
        """What stays of it: nothing, or the newest question."""
        if not self.question:
            return None
        asked = tuple(message for message in self.messages if message["role"] == "user")[-1:]
        return replace(self, opening=(), frames=(), text=self.question, messages=asked)
