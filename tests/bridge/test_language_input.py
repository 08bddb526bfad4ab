"""Parts of an input, and how much two of them have in common."""

import pytest
import torch

from streamchat_hf.bridge.language_input import LanguageInput

V = 9


def an_input(ids: list[int], shift: int = 0, dims: int = 3, first: float = 0.0) -> LanguageInput:
    """Visual tokens are `first`, `first` + 1, ...; positions go up by one from `shift` on."""
    tokens = torch.tensor(ids)
    rows = (first + torch.arange((tokens == V).sum()))[:, None].expand(-1, 2)
    positions = (
        shift + torch.arange(len(ids)).expand(dims, 1, -1) if dims > 1 else shift + torch.arange(len(ids))[None]
    )
    return LanguageInput(tokens, rows, positions, V)


@pytest.mark.parametrize("dims", [1, 3])
def test_parts_put_together_are_the_whole(dims):
    whole = an_input([1, V, V, 2, V, 3, 4, V], dims=dims)
    for cut in range(len(whole) + 1):
        first, second = whole.part(0, cut), whole.part(cut, len(whole))
        assert torch.equal(torch.cat((first.ids, second.ids)), whole.ids)
        assert torch.equal(torch.cat((first.rows, second.rows)), whole.rows)
        assert torch.equal(torch.cat((first.positions, second.positions), dim=-1), whole.positions)
        assert len(first.rows) == int((first.ids == V).sum())


@pytest.mark.parametrize("dims", [1, 3])
def test_a_word_more_stands_at_the_next_position(dims):
    longer = an_input([1, V, 2], shift=5, dims=dims).followed_by(7)
    assert longer.ids.tolist() == [1, V, 2, 7]
    assert longer.positions.flatten(0, -2).tolist() == [[5, 6, 7, 8]] * dims


BASE = [1, V, V, 2, V, 3]


@pytest.mark.parametrize(
    ("other", "common"),
    [
        (an_input(BASE), 6),
        (an_input([*BASE, 4]), 6),
        (an_input(BASE[:4]), 4),
        (an_input([1, V, V, 7, V, 3]), 3),
        (an_input([2, *BASE[1:]]), 0),
        (an_input([1, V, 2, V, V, 3]), 2),
        (an_input(BASE, shift=1), 0),
        (an_input(BASE, first=1.0), 1),
        (an_input([]), 0),
    ],
)
def test_what_two_inputs_begin_with(other, common):
    assert an_input(BASE).common_prefix(other) == common
    assert other.common_prefix(an_input(BASE)) == common


def test_a_position_that_moved_ends_what_is_common():
    base = an_input(BASE)
    positions = base.positions.clone()
    positions[2, 0, 3] += 1  # in one of the three dimensions
    other = LanguageInput(base.ids, base.rows, positions, V)
    assert an_input(BASE).common_prefix(other) == 3


def test_without_frames_nobody_knows_their_size():
    blind = LanguageInput(torch.tensor([1, 2]), torch.empty(0, 0), torch.arange(2)[None], V)
    assert blind.common_prefix(an_input([1, V], dims=1)) == 1


def test_a_visual_token_that_was_pooled_ends_what_is_common():
    rows = an_input(BASE).rows.clone()
    rows[2, 1] += 0.5
    other = LanguageInput(torch.tensor(BASE), rows, an_input(BASE).positions, V)
    assert an_input(BASE).common_prefix(other) == 4
