"""The timeline: the worked table, and what must hold at any frame rate."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchat_hf import timeline
from streamchat_hf.modeling.timeline_streamchat import NEVER, to_milliseconds


def milliseconds(seconds):
    return torch.tensor([[to_milliseconds(t) for t in seconds]])


def lay_out(token_times, frame_times, turns=(0,)):
    starts = torch.zeros(1, len(token_times), dtype=torch.bool)
    starts[0, list(turns)] = True
    return [part[0].tolist() for part in timeline(milliseconds(token_times), milliseconds(frame_times), starts)]


@pytest.mark.parametrize(
    "tokens, frames, turns, text_index, frame_index, seen",
    [
        (
            [1, 1, 1, 1, 1.5, 2],
            [0, 0.5, 1.25, 1.5, 1.75, 2, 2.5],
            [0],
            [1, 2, 3, 4, 5, 6],
            [0, 1, 4, 4, 5, 5, 7],
            [2, 2, 2, 4, 6, 6],
        ),
        ([0, 0, 0, 1, 2, 2], [0, 0.5, 1.5], [0, 4], [0, 1, 2, 3, 4, 5], [0, 2, 4], [1, 1, 2, 3, 3, 3]),
        (
            [0, 0, 0, 1, 5, 5, 5],
            [0, 2, 3, 4, 6],
            [0, 4],
            [0, 1, 2, 3, 6, 7, 8],
            [0, 4, 5, 6, 9],
            [1, 1, 1, 4, 4, 4, 4],
        ),
        ([1, 1, 1, 2], [1.5], [0], [0, 1, 2, 3], [2], [0, 0, 1, 1]),
    ],
)
def test_worked_table(tokens, frames, turns, text_index, frame_index, seen):
    assert lay_out(tokens, frames, turns) == [text_index, frame_index, seen]


@pytest.mark.parametrize("fps", [0.5, 5, 30])
def test_neighbouring_tokens_of_a_turn_differ_by_one(fps):
    tokens = [3.0] * 5 + [3 + 0.5 * i for i in range(1, 10)]
    frames = [k / fps for k in range(int(12 * fps))]
    text_index, frame_index, _ = lay_out(tokens, frames)
    assert [b - a for a, b in pairwise(text_index)] == [1] * 13
    assert frame_index == sorted(frame_index)


def test_text_alone_counts_from_zero():
    assert lay_out([0.0] * 4, []) == [[0, 1, 2, 3], [], [0, 0, 0, 0]]


def test_padding_does_not_tick_and_is_never_seen():
    token_times = torch.tensor([[0, 0, 1000, 1000, 1500]])
    mask = torch.tensor([[0, 0, 1, 1, 1]])
    frame_times = torch.tensor([[0, 1200, NEVER]])
    text_index, frame_index, seen = timeline(token_times, frame_times, attention_mask=mask)
    bare = timeline(token_times[:, 2:], frame_times[:, :2])
    assert text_index[0, 2:].tolist() == bare[0][0].tolist()
    assert frame_index[0, :2].tolist() == bare[1][0].tolist()
    assert seen[0].tolist() == [0, 0, *bare[2][0].tolist()]


def test_times_survive_a_cast_of_the_batch():
    """What a trainer casts to bfloat16 are floats; times are integers, and the same frames stay visible."""
    from transformers import BatchFeature

    frames = [300 + k / 30 for k in range(60)]
    inputs = BatchFeature(
        {"token_times": milliseconds([301.4] * 3), "frame_times": milliseconds(frames), "pixels": torch.zeros(2)}
    )
    before = timeline(inputs["token_times"], inputs["frame_times"])
    inputs = inputs.to(torch.bfloat16)
    assert inputs["pixels"].dtype == torch.bfloat16
    after = timeline(inputs["token_times"], inputs["frame_times"])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert before[2][0, 0] == sum(round(t * 1000) <= 301400 for t in frames)


def naive_timeline(tokens, frames, turns):
    """The four rules, told event by event."""
    events = [(t, 1, i) for i, t in enumerate(tokens)] + [(t, 0, k) for k, t in enumerate(frames)]
    text, frame, last_text, newest = [0] * len(tokens), [0] * len(frames), -1, -1
    events.sort()
    for position, (_, is_text, i) in enumerate(events):
        next_token = next((j for _, later_is_text, j in events[position:] if later_is_text), None)
        if is_text:
            last_text = max(newest, last_text + 1) if i in turns else last_text + 1
            text[i] = last_text
        else:  # in silence when the next token opens a turn, or none follows
            silent = next_token is None or next_token in turns
            newest = max(newest, last_text) + 1 if silent else last_text
            frame[i] = newest
    seen = [sum(f <= tokens[min(i + 1, len(tokens) - 1)] for f in frames) for i in range(len(tokens))]
    return [text, frame, seen]


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    frame_gaps=st.lists(st.integers(0, 4), max_size=12),
    data=st.data(),
)
def test_against_the_naive_twin(gaps, frame_gaps, data):
    tokens = [sum(gaps[: i + 1]) for i in range(len(gaps))]
    frames = [sum(frame_gaps[: i + 1]) for i in range(len(frame_gaps))]
    turns = {0} | data.draw(st.sets(st.integers(0, len(tokens) - 1), max_size=3))
    assert lay_out(tokens, frames, turns) == naive_timeline(tokens, frames, turns)


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="token_times of row 0 run backwards at position 1"):
        lay_out([1, 0.5], [0])
    with pytest.raises(ValueError, match="frame_times of row 0 run backwards"):
        lay_out([1], [1, 0.5])
    with pytest.raises(ValueError, match="1 rows of token_times but 2"):
        timeline(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        timeline(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64), None, torch.ones(1, 3))
