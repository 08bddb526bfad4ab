"""Which rows an update reads: by plain counting."""

from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader, SequentialSampler

from streamchat_hf.training.multitask_rounds import (
    TaskData,
    TaskRounds,
    oversampled,
    passes,
    plan_round,
    rounds_per_epoch,
)

# Table 7 in thousands, with the two data sets of action recognition apart, as the authors' code has them.
TABLE_7 = {"kinetics": 240, "ssv2": 169, "retrieval": 94, "grounding": 120, "localization": 180, "segmentation": 120}


class Numbers:
    """Samples that say where they come from."""

    def __init__(self, name, size):
        self.name, self.size = name, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.name, index


def data(**sizes):
    return {task: TaskData(Numbers(task, size), lambda samples: {"rows": samples}) for task, size in sizes.items()}


def test_over_sampling_as_written_down():
    """ "Any dataset shorter than max / 2 is replicated max // len times"."""
    for sizes in (TABLE_7, {"a": 10, "b": 5, "c": 4, "d": 1}, {"one": 3}):
        rows = {task: [*range(size)] for task, size in sizes.items()}
        longest = max(len(each) for each in rows.values())
        for task, each in rows.items():
            if len(each) < longest / 2:
                rows[task] = each * (longest // len(each))
        assert oversampled(sizes) == {task: len(each) for task, each in rows.items()}


def test_a_round_has_every_task_once():
    assert plan_round(TABLE_7, "one_each") == list(TABLE_7)


def test_proportional_rounds_are_the_authors_seven_micro_batches():
    assert plan_round(TABLE_7, "proportional") == ["kinetics", *TABLE_7]
    assert plan_round({"a": 30, "b": 9, "c": 15}, "proportional") == ["a", "a", "b", "c"]


def test_rounds_that_cannot_be():
    with pytest.raises(ValueError, match="every task needs rows"):
        plan_round({}, "one_each")
    with pytest.raises(ValueError, match="every task needs rows"):
        plan_round({"a": 3, "b": 0}, "one_each")
    with pytest.raises(ValueError, match="'random' must be one_each or proportional"):
        plan_round({"a": 3}, "random")


def test_an_epoch_reads_every_row():
    sizes = {"a": 30, "b": 9, "c": 15}
    for kind in ("one_each", "proportional"):
        tasks = plan_round(sizes, kind)
        count = rounds_per_epoch(sizes, tasks, 4)
        for rounds in (count - 1, count):
            order = TaskRounds(data(**sizes), tasks, rounds, 4, seed=0)
            read = {order.locate(i) for i in range(len(order))}
            every = {(task, row) for task, size in sizes.items() for row in range(size)}
            assert (read == every) == (rounds == count)


def test_passes_are_whole_and_shuffled_anew():
    order = passes(7, 20, [3, 1])
    first, second, third = order[:7], order[7:14], order[14:]
    assert sorted(first) == sorted(second) == list(range(7)) and len(third) == 6 == len(set(third))
    assert not np.array_equal(first, second)
    assert np.array_equal(passes(7, 11, [3, 1]), order[:11])
    assert not np.array_equal(passes(7, 20, [3, 2]), order)
    assert passes(7, 0, [3, 1]).tolist() == []


def test_micro_batches_have_one_task_in_the_order_of_the_round():
    sizes = {"a": 30, "b": 9, "c": 15}
    order = TaskRounds(data(**sizes), ["a", "a", "b", "c"], 6, 4, seed=1)
    blocks = [[order.locate(i) for i in range(start, start + 4)] for start in range(0, len(order), 4)]
    assert len(order) == 6 * 4 * 4
    assert ["".join({task for task, _ in block}) for block in blocks] == ["a", "a", "b", "c"] * 6
    for task, size in sizes.items():
        rows = [row for block in blocks for name, row in block if name == task]
        counts = Counter(rows)
        assert max(counts.values()) - min(counts.get(row, 0) for row in range(size)) <= 1  # over-sampled evenly
        assert sorted(rows[:size]) == list(range(size))[: len(rows)] or len(rows) < size


def test_processes_share_a_micro_batch():
    """accelerate gives each process every so-manieth batch: all of the same task, together those of one process."""
    sizes = {"a": 30, "b": 9}
    whole = TaskRounds(data(**sizes), ["a", "b"], 3, 4, seed=1)
    alone = list(DataLoader(whole, 4, sampler=SequentialSampler(whole), collate_fn=whole.collate))
    halves = list(DataLoader(whole, 2, sampler=SequentialSampler(whole), collate_fn=whole.collate))
    together = [{"rows": one["rows"] + other["rows"]} for one, other in zip(halves[::2], halves[1::2], strict=True)]
    assert together == alone
    assert [batch["rows"][0][0] for batch in alone] == ["a", "b"] * 3


def test_a_longer_run_begins_as_a_shorter_one():
    short, long = (TaskRounds(data(a=5, b=9), ["a", "b"], rounds, 2, seed=4) for rounds in (3, 9))
    assert [short.locate(i) for i in range(len(short))] == [long.locate(i) for i in range(len(short))]
    twins = TaskRounds(data(a=9, b=9), ["a", "b"], 3, 3, seed=4)
    orders = [[row for task, row in map(twins.locate, range(len(twins))) if task == name] for name in "ab"]
    assert orders[0] != orders[1]  # tasks of one size are shuffled apart
    other = TaskRounds(data(a=5, b=9), ["a", "b"], 3, 2, seed=5)
    assert [short.locate(i) for i in range(len(short))] != [other.locate(i) for i in range(len(short))]


def test_what_is_wrong_is_said():
    rounds = TaskRounds(data(a=5, b=9), ["a", "b"], 3, 2, seed=4)
    with pytest.raises(ValueError, match="one task, not a, b"):
        rounds.collate([rounds[1], rounds[2]])
    for index in (-1, 12):
        with pytest.raises(IndexError, match="of 12"):
            rounds[index]
