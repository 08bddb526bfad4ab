"""Round-decayed compression against the authors' rule, and what happens where their rule ends."""

import math
import random
from dataclasses import replace

import pytest
import torch

from streamchat_hf.bridge.compression import compress, visual_tokens
from streamchat_hf.bridge.rounds import Frame, Round, pool

K, GRID = 3, (1, 3)


def frame(number: int) -> Frame:
    """Whole numbers, in float64: their sums are exact, in whatever order."""
    generator = torch.Generator().manual_seed(number)
    rows = torch.randint(-9, 9, (K, 2), generator=generator).double()
    return Frame(float(number), rows, GRID)


def rounds_of(sizes: list[int], texts: list[int]) -> list[Round]:
    """Rounds with so many frames and so much text."""
    rounds, number = [], 0
    for size, text in zip(sizes, texts, strict=True):
        opening = (1, 2) if size else ()
        said = ({"role": "user", "content": "?"}, {"role": "assistant", "content": "!"})
        frames = tuple(frame(number + i) for i in range(size))
        rounds.append(Round(opening, frames, tuple(range(text)), messages=said))
        number += size
    return rounds


def random_rounds(seed: int) -> list[Round]:
    draw = random.Random(seed)
    count = draw.randint(1, 6)
    return rounds_of([draw.randint(0, 7) for _ in range(count)], [draw.randint(1, 5) for _ in range(count)])


def length(rounds, frame_tokens=visual_tokens, run_tokens=0) -> int:
    total = 0
    for each in rounds:
        total += len(each.opening) + len(each.text) + (run_tokens if each.frames else 0)
        total += sum(frame_tokens(item) for item in each.frames)
    return total


def flat(rounds: list[Round]) -> list:
    """Everything in order: words, and the average of each frame as numbers."""
    tokens = []
    for each in rounds:
        tokens += each.opening
        tokens += [row for item in each.frames for row in item.mean.tolist()]
        tokens += each.text
    return tokens


def authors(rounds: list[Round], max_length: int, run_tokens: int) -> list:
    """Appendix I over the rounds before the last with frames; R = ceil((L - MaxLen) / k) instead of int(...) + 1."""
    images = [[item.rows for item in each.frames] for each in rounds]
    redundant = max(0, math.ceil((length(rounds, run_tokens=run_tokens) - max_length) / K))
    c = K * redundant
    for r in range(newest(rounds)):
        n = len(images[r])
        if c <= 0 or n < 2:
            continue
        if n * K <= c + K:
            images[r] = [torch.stack(images[r]).mean(0)]
            c -= (n - 1) * K
        else:
            first = c // K + 1
            images[r] = [torch.stack(images[r][:first]).mean(0), *images[r][first:]]
            c = 0
    assert c == 0, "old rounds cannot pay"
    tokens = []
    for each, frames in zip(rounds, images, strict=True):
        tokens += [*each.opening, *(row for item in frames for row in item.tolist()), *each.text]
    return tokens


def spare(rounds: list[Round]) -> int:
    """How many tokens the rounds before the newest can pay by pooling."""
    return sum(K * max(0, len(each.frames) - 1) for each in rounds[: newest(rounds)])


def newest(rounds: list[Round]) -> int:
    """Which round was seen last."""
    return max((i for i, each in enumerate(rounds) if each.frames), default=0)


@pytest.mark.parametrize("run_tokens", [0, 1])
def test_as_the_authors_write_it(run_tokens):
    pooled = 0
    for seed in range(40):
        rounds = random_rounds(seed)
        whole = length(rounds, run_tokens=run_tokens)
        for max_length in range(whole - spare(rounds), whole + 3, 2):
            result = compress(rounds, max_length, run_tokens=run_tokens)
            assert flat(result) == authors(rounds, max_length, run_tokens)
            left = length(result, run_tokens=run_tokens)
            assert left <= max_length
            assert left == whole or left > max_length - K  # never more than needed
            assert result[newest(rounds)] is rounds[newest(rounds)]  # the newest round is not touched
            assert [(each.opening, each.text) for each in result] == [(each.opening, each.text) for each in rounds]
            pooled += left < whole
    assert pooled > 200


def test_what_is_given_stays_as_it_is():
    rounds = random_rounds(3)
    before = flat(rounds)
    compress(rounds, length(rounds) - spare(rounds))
    assert flat(rounds) == before
    assert compress([], 0) == []


def test_every_frame_counts_alike_however_often_it_is_pooled():
    rounds = rounds_of([6, 1], [1, 1])
    whole = length(rounds)
    for step in range(1, 6):
        rounds = compress(rounds, whole - K * step)
        assert rounds[0].frames[0].stands_for == step + 1
    expected = torch.stack([frame(i).rows for i in range(6)]).mean(0)
    assert torch.equal(rounds[0].frames[0].mean, expected)
    assert (rounds[0].frames[0].since, rounds[0].frames[0].t_sec) == (0.0, 5.0)


def grown(seed: int):
    """A conversation that grows by a frame or a text, as (rounds, whether old rounds can pay) after each step."""
    draw = random.Random(seed)
    rounds, number = [], 0
    for _ in range(60):
        if rounds and draw.random() < 0.15 and not rounds[-1].text:
            rounds[-1] = replace(rounds[-1], text=tuple(range(draw.randint(1, 4))))
        else:
            if not rounds or rounds[-1].text:
                rounds.append(Round((1, 2)))
            rounds[-1] = replace(rounds[-1], frames=(*rounds[-1].frames, frame(number)))
            number += 1
        yield list(rounds)


@pytest.mark.parametrize("stamped", [False, True])
def test_step_by_step_equals_all_at_once(stamped):
    tokens = stamped_tokens if stamped else visual_tokens
    max_length, compared = 110, 0
    for seed in range(12):
        kept: list[Round] = []
        for rounds in grown(seed):
            newest = rounds[-1]
            if len(kept) < len(rounds):  # a new round, or the newest goes on
                kept.append(newest)
            else:
                kept[-1] = newest
            if length([*map(smallest, rounds[:-1]), newest], tokens) > max_length:
                break  # old rounds cannot pay any more
            kept = compress(kept, max_length, tokens)
            assert flat(kept) == flat(compress(rounds, max_length, tokens))
            compared += length(kept, tokens) < length(rounds, tokens)
    assert compared > 50


def smallest(each: Round) -> Round:
    return replace(each, frames=(pool(each.frames),) if each.frames else ())


def stamped_tokens(item: Frame) -> int:
    """As with a time written before each frame, whose length changes with the time."""
    return len(item.rows) + len(f"{item.middle:.1f}")


def one_by_one(rounds: list[Round], max_length: int, frame_tokens) -> list[Round]:
    """The two oldest frames of the oldest round that has two become one, while it is too long."""
    rounds = list(rounds)
    while length(rounds, frame_tokens) > max_length:
        index = next(i for i, each in enumerate(rounds[:-1]) if len(each.frames) > 1)
        first, second, *rest = rounds[index].frames
        since = first.t_sec if first.since is None else first.since
        one = Frame(second.t_sec, first.rows + second.rows, GRID, first.stands_for + second.stands_for, since)
        rounds[index] = replace(rounds[index], frames=(one, *rest))
    return rounds


def test_frames_of_different_lengths_are_pooled_one_by_one():
    for seed in range(20):
        rounds = random_rounds(seed)
        whole = length(rounds, stamped_tokens)
        for max_length in range(whole - spare(rounds), whole, 4):
            expected = one_by_one(rounds, max_length, stamped_tokens)
            assert flat(compress(rounds, max_length, stamped_tokens)) == flat(expected)


def test_then_the_oldest_rounds_are_forgotten_but_not_the_newest_question():
    rounds = rounds_of([3, 0, 2, 4], [5, 5, 5, 5])
    rounds[1] = replace(rounds[1], question=(7, 7))
    asked = replace(rounds[1], text=(7, 7), messages=({"role": "user", "content": "?"},))
    newest = rounds[-1]
    left = length([asked, newest])
    assert compress(rounds, left + K + 7) == [asked, replace_pooled(rounds[2]), newest]
    assert compress(rounds, left) == [asked, newest]


def replace_pooled(each: Round) -> Round:
    frames = each.frames
    one = Frame(frames[-1].t_sec, sum(item.rows for item in frames), GRID, len(frames), frames[0].t_sec)
    return EqualRound(each.opening, (one,), each.text, messages=each.messages)


class EqualRound(Round):
    """Compares tensors, too."""

    def __eq__(self, other):
        return flat([self]) == flat([other])


def test_a_round_that_is_needed_in_part_only_is_forgotten_whole():
    rounds = rounds_of([2, 2, 2], [4, 4, 4])
    at_least = length(rounds) - spare(rounds)
    result = compress(rounds, at_least - 1)
    assert [len(each.frames) for each in result] == [1, 2]
    assert result[-1] is rounds[-1]


def test_last_of_all_the_newest_round_blurs_but_for_its_newest_frame():
    rounds = rounds_of([3, 5], [4, 2])
    alone = length(rounds[1:])
    [newest] = compress(rounds, alone - K)
    assert [item.stands_for for item in newest.frames] == [2, 1, 1, 1]
    [newest] = compress(rounds, alone - 3 * K)
    assert [item.stands_for for item in newest.frames] == [4, 1]
    assert newest.frames[-1] is rounds[1].frames[-1]
    assert newest.text == rounds[1].text
    with pytest.raises(ValueError, match="1 tokens too many for max_length"):
        compress(rounds, alone - 3 * K - 1)


def test_questions_without_anything_new_to_see_do_not_make_frames_old():
    seen, *asked = rounds_of([6, 0, 0], [2, 5, 3])
    asked[-1] = replace(asked[-1], question=(9, 9))
    whole = length([seen, *asked])
    assert compress([seen, *asked], whole - 5) == [seen, asked[-1]]  # what was said between goes first
    first, *rest = compress([seen, *asked], whole - 5 - 2 * K)
    assert first.frames[-1] is seen.frames[-1] and len(first.frames) == 4 and rest == [asked[-1]]
    assert compress([seen, *asked], 3) == [asked[-1]]
    with pytest.raises(ValueError, match="1 tokens too many"):
        compress([seen, *asked], 2)
