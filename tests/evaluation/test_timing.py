import gc

import torch

from streamchat_hf.evaluation import timing
from streamchat_hf.evaluation.timing import Ratio, Way

CPU = torch.device("cpu")


def test_ways_take_turns_forwards_and_backwards_after_a_warm_up():
    order = []

    def run(state):
        assert not gc.isenabled()
        order.append(state)

    ways = [Way(mode, 3, lambda mode=mode: mode, run) for mode in "ab"]
    rows = timing.time_in_turn(ways, 3, CPU)
    assert order == list("ab" + "ab" + "ba" + "ab")
    assert [(row["mode"], row["repeat"]) for row in rows] == list(zip("abbaab", (0, 0, 1, 1, 2, 2), strict=True))
    assert gc.isenabled()


def test_only_what_a_way_runs_is_timed(monkeypatch):
    now = [0.0]

    def busy(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing, "thread_time", lambda: now[0])
    rows = timing.time_in_turn([Way("way", 0, lambda: busy(5.0), lambda _: busy(2.0))], 7, CPU)
    assert [row["seconds"] for row in rows] == [2.0] * 7


def test_bounds_hold_on_their_own_side():
    at_most, at_least = Ratio("", "a", "b", False, 1.1), Ratio("", "a", "b", True, 12.0)
    assert at_most.holds(1.1) and at_most.holds(0.5) and not at_most.holds(1.11)
    assert at_least.holds(12.0) and at_least.holds(99.0) and not at_least.holds(11.9)
