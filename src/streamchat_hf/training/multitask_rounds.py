"""Which rows of which task an update is made of: rounds of micro-batches, one task each, smaller data over-sampled.

"We alternately sample data from each task for a forward pass, and use gradient accumulation to perform backpropagation
and parameter update collectively after iterating through all tasks" (StreamFormer, section 3.4).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from torch.utils.data import Dataset

Rounds = Literal["one_each", "proportional"]


class TaskData(NamedTuple):
    """The data of one task, or one of several data sets of it.

    Attributes:
        dataset: map-style, of samples of any kind.
        collate: a list of samples to the arguments of [`multitask.MultitaskAlignment`].
    """

    dataset: Dataset
    collate: Callable[[Sequence[Any]], dict[str, Any]]


def oversampled(sizes: Mapping[str, int], scale: float = 2.0) -> dict[str, int]:
    """Sizes after over-sampling: data of less than 1 / scale of the largest is repeated, whole, until it nearly is.

    The authors' rule; the paper says only that there is over-sampling.

    Args:
        sizes: number of rows of each task.
        scale: how many times smaller than the largest a task may stay.

    Returns:
        For each task `size * (largest // size)` if it is that small, else `size`.
    """
    largest = max(sizes.values())
    return {task: size * (largest // size) if size * scale < largest else size for task, size in sizes.items()}


def plan_round(sizes: Mapping[str, int], rounds: Rounds) -> list[str]:
    """The tasks of the micro-batches of one update, in order.

    Args:
        sizes: number of rows of each task.
        rounds: `"one_each"`: a micro-batch of every task, the paper's; data is over-sampled as far as that takes.
            `"proportional"`: as many of a task as its over-sampled rows are, in multiples of the smallest, the
            authors'.

    Raises:
        ValueError: if there is no task, or no row of one, or an unknown kind of round.
    """
    if not sizes or min(sizes.values()) < 1:
        raise ValueError(f"every task needs rows, and there has to be a task: {dict(sizes)}")
    if rounds == "one_each":
        return list(sizes)
    if rounds != "proportional":
        raise ValueError(f"rounds={rounds!r} must be one_each or proportional")
    grown = oversampled(sizes)
    smallest = min(grown.values())
    return [task for task, size in grown.items() for _ in range(size // smallest)]


def rounds_per_epoch(sizes: Mapping[str, int], tasks: Sequence[str], micro_batch: int) -> int:
    """How many rounds it takes until every row of every task has been read.

    Args:
        sizes: number of rows of each task.
        tasks: of a round, see [`plan_round`].
        micro_batch: rows of a micro-batch, over all processes.
    """
    return max(math.ceil(size / (micro_batch * tasks.count(task))) for task, size in sizes.items())


class TaskRounds(Dataset):
    """Rows in the order in which updates read them: item i is `(task, sample)`.

    Blocks of `micro_batch` items have one task. A task's rows come once each, shuffled, before any comes again. All of
    it depends on the seed alone, not on the number of processes, workers or interruptions, and a shorter order is the
    beginning of a longer one.

    Args:
        data: of each task.
        tasks: of a round, see [`plan_round`].
        rounds: how many.
        micro_batch: rows of a micro-batch, over all processes.
        seed: any non-negative integer.
    """

    def __init__(self, data: Mapping[str, TaskData], tasks: Sequence[str], rounds: int, micro_batch: int, seed: int):
        self.data, self.tasks, self.rounds, self.micro_batch = data, list(tasks), rounds, micro_batch
        self._orders = {
            task: passes(len(dataset), rounds * self.tasks.count(task) * micro_batch, [seed, number])
            for number, (task, (dataset, _)) in enumerate(data.items())
        }

    def __len__(self) -> int:
        return self.rounds * len(self.tasks) * self.micro_batch

    def __getitem__(self, index: int) -> tuple[str, Any]:
        task, row = self.locate(index)
        return task, self.data[task].dataset[row]

    def locate(self, index: int) -> tuple[str, int]:
        """Task and row number of item `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        block, place = divmod(index, self.micro_batch)
        number, within = divmod(block, len(self.tasks))
        task = self.tasks[within]
        before = number * self.tasks.count(task) + self.tasks[:within].count(task)
        return task, int(self._orders[task][before * self.micro_batch + place])

    def collate(self, items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Items of one micro-batch to a batch.

        Raises:
            ValueError: if they are of different tasks.
        """
        tasks = {task for task, _ in items}
        if len(tasks) != 1:
            raise ValueError(f"a micro-batch has one task, not {', '.join(sorted(tasks))}")
        [task] = tasks
        return self.data[task].collate([sample for _, sample in items])


def passes(size: int, length: int, seed: Sequence[int]) -> np.ndarray:
    """The first `length` of shuffled passes through `size` rows, `(length,)` int64."""
    count = -(-length // size)
    shuffled = [np.random.default_rng([*seed, number]).permutation(size) for number in range(count)]
    return np.concatenate([np.empty(0, np.int64), *shuffled])[:length]
