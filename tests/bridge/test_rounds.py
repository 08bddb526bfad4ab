"""Frames that stand for several, and what stays of a round."""

import pytest
import torch

from streamchat_hf.bridge.rounds import Frame, Round, pool

ASKED, ANSWERED = {"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}


def frames(count: int, dtype=torch.float32) -> list[Frame]:
    rows = torch.randn(count, 4, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    return [Frame(float(i), each, (2, 2)) for i, each in enumerate(rows)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pooling_one_by_one_is_as_exact_as_at_once(dtype):
    # In bfloat16 itself, an average over hundreds would not move any more.
    many = frames(600, dtype)
    one = many[0]
    for each in many[1:]:
        one = pool([one, each])
    expected = torch.stack([each.rows for each in many]).double().mean(0)
    torch.testing.assert_close(one.mean.double(), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pool(many).mean.double(), expected, atol=1e-5, rtol=0)
    assert (one.stands_for, one.since, one.t_sec, one.middle) == (600, 0.0, 599.0, 299.5)


def test_one_frame_is_pooled_to_itself():
    [one] = frames(1)
    assert pool([one]) is one
    assert one.mean is one.rows
    assert one.middle == one.t_sec == 0.0
    assert one.is_ready


def test_a_round_knows_its_length():
    assert (
        Round((1, 2), tuple(frames(3)), (3,)).length(lambda frame: len(frame.rows) + 1, run_tokens=1) == 2 + 15 + 1 + 1
    )
    assert Round(text=(3, 4)).length(lambda frame: 99, run_tokens=1) == 2


def test_a_round_is_open_until_something_is_said():
    shown = Round((1, 2), tuple(frames(3)))
    assert shown.is_open
    assert not Round((1, 2), tuple(frames(3)), (3,)).is_open
    assert not Round().is_open
    assert not Round(messages=(ASKED,)).is_answered
    assert Round(messages=(ASKED, ANSWERED)).is_answered


def test_of_a_forgotten_round_the_newest_question_stays():
    old = Round((1, 2), tuple(frames(3)), (3, 4), messages=(ASKED, ANSWERED))
    assert old.forgotten() is None
    asked = Round((1, 2), tuple(frames(3)), (3, 4), question=(5,), messages=(ASKED, ANSWERED))
    left = asked.forgotten()
    assert (left.opening, left.frames, left.text, left.messages) == ((), (), (5,), (ASKED,))
    assert left.forgotten() == left
