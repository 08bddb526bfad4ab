"""What the language model reads: tokens, the visual tokens among them, and their positions.

Letters: L tokens, V visual tokens among them, D their size.
"""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class LanguageInput:
    """A part of a sequence.

    Attributes:
        ids: `(L,)` tokens; every visual token has the id of the family's video token.
        rows: `(V, D)` visual tokens, in order.
        positions: `(1, L)`, or `(3, 1, L)` for M-RoPE, as the model's `forward` takes them.
        video_token_id: that id.
    """

    ids: torch.Tensor
    rows: torch.Tensor
    positions: torch.Tensor
    video_token_id: int

    def __len__(self) -> int:
        return len(self.ids)

    def part(self, begin: int, end: int) -> "LanguageInput":
        """Tokens `begin` to `end`."""
        first, last = (int((self.ids[:limit] == self.video_token_id).sum()) for limit in (begin, end))
        ids, positions = self.ids[begin:end], self.positions[..., begin:end]
        return replace(self, ids=ids, rows=self.rows[first:last], positions=positions)

    def followed_by(self, token: int) -> "LanguageInput":
        """With one more word at the next position."""
        ids = torch.cat((self.ids, self.ids.new_tensor([token])))
        return replace(self, ids=ids, positions=torch.cat((self.positions, self.positions[..., -1:] + 1), dim=-1))

    def common_prefix(self, other: "LanguageInput") -> int:
        """How many tokens both begin with that are the same, at the same positions."""
        length = min(len(self.ids), len(other.ids))
        same = self.ids[:length] == other.ids[:length]
        same &= (self.positions[..., :length] == other.positions[..., :length]).flatten(0, -2).all(0)
        same = same.long().cumprod(0).bool()  # from here on only the visual tokens of the common beginning count
        visual = (self.ids[:length] == self.video_token_id) & same
        count = int(visual.sum())
        if count:  # an input without frames does not know how large they are
            same[visual] = (self.rows[:count] == other.rows[:count]).all(-1)
        return int(same.long().cumprod(0).sum())
