"""The parallel timeline of text tokens and video frames (StreamChat, section 2.1 and figure 4).

Times decide two things only: which frames a token may see, and how the shared position counter ticks. They never enter
the model as numbers. The counter follows four rules:

1. it ticks once per text token, and once per frame while no text is being spoken;
2. a frame that arrives while text is being spoken shares the index of the position being read then;
3. a prompt starts at `max(newest frame, last text + 1)`, a frame in silence takes `max(newest frame, last text) + 1`,
   and an index that does not exist yet counts as -1;
4. padding does not tick.

So neighbouring tokens of a turn always differ by exactly one at any frame rate, order is never lost in silence, and
text alone is plain one-dimensional RoPE.
"""

from itertools import pairwise

import torch

# The time of a padded frame: later than every token, hence never visible.
NEVER = torch.iinfo(torch.int64).max


def to_milliseconds(seconds: float) -> int:
    """Seconds, as people and containers give them, to the integer milliseconds that the model compares."""
    return round(seconds * 1000)


class Timeline:
    """The position counter of one stream.

    Attributes:
        newest_frame: index of the frame seen last, -1 before the first.
        last_text: index of the token spoken or asked last, -1 before the first.
    """

    def __init__(self) -> None:
        self.newest_frame = -1
        self.last_text = -1

    def add_token(self, starts_turn: bool = False) -> int:
        """Gives the next text token its index; `starts_turn` marks the first token of a prompt."""
        self.last_text = max(self.newest_frame, self.last_text + 1) if starts_turn else self.last_text + 1
        return self.last_text

    def add_frame(self, while_speaking: bool) -> int:
        """Gives a new frame its index: that of the position being read, or a tick of its own in silence."""
        self.newest_frame = self.last_text if while_speaking else max(self.newest_frame, self.last_text) + 1
        return self.newest_frame


def timeline(
    token_times: torch.LongTensor,
    frame_times: torch.LongTensor,
    turn_starts: torch.BoolTensor | None = None,
    attention_mask: torch.Tensor | None = None,
) -> tuple[torch.LongTensor, torch.LongTensor, torch.LongTensor]:
    """Lays whole sequences of tokens and frames on the shared timeline.

    The step that speaks a token reads the position before it and sees the frames up to that token's time, so the times
    are shifted by one like labels: position `i` sees the frames with `frame_times <= token_times[i + 1]`, and the last
    position those up to its own time.

    Args:
        token_times: `(batch, length)` int64 milliseconds at which each token is spoken; a prompt's tokens are all
            spoken when the question is asked. Never decreasing within a row.
        frame_times: `(batch, frames)` int64 milliseconds, never decreasing; padded frames hold the largest int64.
        turn_starts: `(batch, length)` bool, the first token of each turn that the model did not speak itself.
            `None`: one turn, starting at the first real token.
        attention_mask: `(batch, length)`, 0 for padding. `None`: no padding.

    Returns:
        `text_index (batch, length)`, `frame_index (batch, frames)` and `frames_seen (batch, length)`, all int64;
        padding holds 0.

    Raises:
        ValueError: if shapes disagree, or times of a row run backwards.
    """
    batch = len(token_times)
    if frame_times.shape[0] != batch:
        raise ValueError(f"{batch} rows of token_times but {frame_times.shape[0]} rows of frame_times")
    real = torch.ones_like(token_times) if attention_mask is None else attention_mask
    if turn_starts is None:
        turn_starts = torch.zeros_like(token_times, dtype=torch.bool)
    for name, tensor in (("attention_mask", real), ("turn_starts", turn_starts)):
        if tensor.shape != token_times.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, token_times {tuple(token_times.shape)}")

    rows = [
        _row_timeline(row, *columns)
        for row, columns in enumerate(
            zip(token_times.tolist(), frame_times.tolist(), turn_starts.tolist(), real.tolist(), strict=True)
        )
    ]
    device = token_times.device
    text_index, frame_index, frames_seen = (
        torch.tensor([row[part] for row in rows], dtype=torch.int64, device=device).reshape(batch, -1)
        for part in range(3)
    )
    return text_index, frame_index, frames_seen


def _row_timeline(
    row: int, token_times: list[int], frame_times: list[int], turn_starts: list[bool], real: list[int]
) -> tuple[list[int], list[int], list[int]]:
    frames = [time for time in frame_times if time != NEVER]
    if any(later < earlier for earlier, later in pairwise(frames)):
        raise ValueError(f"frame_times of row {row} run backwards")

    positions = [i for i, is_real in enumerate(real) if is_real]
    text_index, frames_seen = [0] * len(token_times), [0] * len(token_times)
    frame_index: list[int] = []
    line, now, previous = Timeline(), None, None
    for i in positions:
        if now is not None and token_times[i] < now:
            raise ValueError(f"token_times of row {row} run backwards at position {i}: {token_times[i]} after {now}")
        now = token_times[i]
        starts_turn = previous is None or turn_starts[i]
        # What is due before this token is spoken arrives while the position before it is read, or in silence.
        while len(frame_index) < len(frames) and frames[len(frame_index)] <= now:
            frame_index.append(line.add_frame(while_speaking=not starts_turn))
        if previous is not None:
            frames_seen[previous] = len(frame_index)
        text_index[i] = line.add_token(starts_turn)
        previous = i
    if previous is not None:
        frames_seen[previous] = len(frame_index)
    while len(frame_index) < len(frames):
        frame_index.append(line.add_frame(while_speaking=False))
    return text_index, frame_index + [0] * (len(frame_times) - len(frames)), frames_seen
