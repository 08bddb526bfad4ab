"""How things are timed: in turn, on one thread, and compared by the ratio of their medians.

On a CPU a time is the thread's own CPU time; on CUDA it is wall time between two synchronisations.
"""

import gc
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter, thread_time
from typing import Any, NamedTuple

import torch

FEWEST_REPEATS = 7
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Ratio(NamedTuple):
    """One way's time over another's, and what it has to keep to.

    Attributes:
        what: both ways in words.
        above, below: modes whose median seconds are divided.
        at_least: the bound is the smallest allowed value instead of the largest.
        bound: that value.
    """

    what: str
    above: str
    below: str
    at_least: bool
    bound: float

    def of(self, rows: list[dict[str, Any]]) -> float:
        """The ratio of the medians of two modes among raw rows."""
        return median_seconds(rows, self.above) / median_seconds(rows, self.below)

    def holds(self, value: float) -> bool:
        """Whether a value keeps to the bound."""
        return value >= self.bound if self.at_least else value <= self.bound


class Way(NamedTuple):
    """One way to do something.

    Attributes:
        mode: its name in the raw rows.
        frames_seen: frames seen when it is done.
        prepare: makes the state it starts from; outside the clock.
        run: what is timed.
        tokens: how many tokens it speaks.
    """

    mode: str
    frames_seen: int
    prepare: Callable[[], Any]
    run: Callable[[Any], Any]
    tokens: int = 1


def median_seconds(rows: list[dict[str, Any]], mode: str) -> float:
    """Median seconds of one mode among raw rows."""
    return median(row["seconds"] for row in rows if row["mode"] == mode)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, and afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def time_in_turn(ways: list[Way], repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Times the ways in turn, forwards and backwards, so that none always follows the same one; one warm-up."""
    rows = []
    gc.disable()
    try:
        for way in ways:
            way.run(way.prepare())
        for repeat in range(repeats):
            for way in ways[:: -1 if repeat % 2 else 1]:
                seconds = run_seconds(way, device)
                row = {"mode": way.mode, "frames_seen": way.frames_seen, "tokens": way.tokens}
                rows.append({**row, "repeat": repeat, "seconds": seconds})
    finally:
        gc.enable()
    return rows


def run_seconds(way: Way, device: torch.device) -> float:
    """Seconds of one run, its preparation not counted."""
    state = way.prepare()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        begin = perf_counter()
        way.run(state)
        torch.cuda.synchronize(device)
        return perf_counter() - begin
    begin = thread_time()
    way.run(state)
    return thread_time() - begin


def machine_name(device: torch.device) -> str:
    """What was measured on: the GPU, or the CPU's architecture and instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
