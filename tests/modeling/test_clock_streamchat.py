"""Clocks: when a token is spoken, what has arrived by then, and what a silent stream shows."""

import threading
import time

import pytest
import torch

from streamchat_hf.modeling.cache_streamchat import ReadyFrame, StreamState
from streamchat_hf.modeling.clock_streamchat import SimulatedClock, WallClock
from streamchat_hf.modeling.reader_streamchat import FrameReader, FrameSource, StreamingError


def never() -> bool:
    return False


def encode(frames, vision_cache):
    return [ReadyFrame(t, p, p, (1, 1)) for t, p in frames], None


def reader(frames, state=None, timeout=5.0) -> FrameReader:
    state = state or StreamState()
    return FrameReader(FrameSource(frames, None, state), state, encode, "block", "cpu", timeout)


def at(*times):
    return ((t, torch.zeros(3, 2, 2)) for t in times)


def shown(arrivals):
    return [frame.t_sec for frame in arrivals[0][0]], arrivals[1]


class Live:
    """A live source that gives frames when it is told to."""

    source, live = "gate", True

    def __init__(self):
        self.gate = threading.Semaphore(0)

    def __iter__(self):
        while True:
            assert self.gate.acquire(timeout=10)
            yield 0.0, torch.zeros(3, 2, 2)


def test_before_the_start_it_is_the_beginning():
    assert WallClock([reader(at(0.0))]).now() == SimulatedClock([reader(at(0.0))], 2).now() == 0


def test_a_simulated_token_sees_exactly_the_frames_up_to_its_time():
    clock = SimulatedClock([reader(at(0.0, 0.5, 0.6, 1.0, 7.0))], tokens_per_second=2)
    clock.ask(500)
    assert [shown(clock.next_step()) for _ in range(3)] == [([0.0, 0.5], 500), ([0.6, 1.0], 1000), ([], 1500)]
    clock.ask(6000)
    assert shown(clock.next_step()) == ([], 6000) and clock.now() == 6000


def test_simulated_silence_goes_frame_by_frame_and_stops_at_a_question():
    clock = SimulatedClock([reader(at(0.0, 1.0, 1.0, 2.0, 3.0))], tokens_per_second=2)
    assert shown(clock.watch(None, never)) == ([0.0], 0)
    assert shown(clock.watch(1500, never)) == ([1.0, 1.0], 1000)
    assert shown(clock.watch(1500, never)) == ([], 1500)
    assert shown(clock.watch(2000, never)) == ([2.0], 2000)
    assert shown(clock.watch(None, never)) == ([3.0], 3000)
    assert clock.watch(None, never) is None
    assert shown(clock.watch(9000, never)) == ([], 9000), "a question after the end is asked all the same"


def test_frames_that_other_streams_gave_are_not_lost_when_one_fails():
    def broken():
        yield from at(0.0)
        raise OSError("unplugged")

    state = StreamState()
    clock = SimulatedClock([reader(at(0.0, 1.0), state), reader(broken())], tokens_per_second=1)
    clock.ask(1000)
    with pytest.raises(StreamingError, match="generator failed after 0.000 s: unplugged"):
        clock.next_step()
    assert [frame.t_sec for frame in state.waiting] == [0.0, 1.0]


def test_the_wall_clock_waits_for_the_first_frame_and_for_no_other():
    live, state = Live(), StreamState()
    clock = WallClock([reader(live, state)])
    clock.ask(250)
    threading.Timer(0.1, live.gate.release).start()
    frames, now = clock.next_step()
    assert len(frames[0]) == 1 and now >= 250 + 100
    state.frames_taken = 1  # the cache has taken it over
    assert clock.next_step()[0] == [[]]
    live.gate.release()
    assert len(clock.watch(None, never)[0][0]) == 1
    live.gate.release()
    clock.close()


def test_a_takeover_comes_after_the_step_before_it():
    clock = WallClock([reader(at(0.0, 0.001, 0.002, 0.003))])
    clock.ask(0)
    moments = [clock.next_step()[1]]
    for _ in range(50):
        frames, now = clock.next_step()
        assert now > moments[-1] or not any(frames)
        moments.append(now)
    clock.close()


def test_wall_clock_silence_ends_at_a_question_an_interruption_or_the_end():
    clock = WallClock([reader(at(0.0, 0.5))])
    clock.start(0)
    assert shown(clock.watch(None, never))[0] == [0.0]
    assert shown(clock.watch(None, never))[0] == [0.5]
    assert clock.watch(None, never) is None
    frames, now = clock.watch(clock.now() + 60, never)
    assert frames == [[]] and now >= 60
    clock.close()

    live = Live()
    clock, asked = WallClock([reader(live)]), threading.Event()
    clock.start(0)

    def ask():
        asked.set()
        clock.wake()

    threading.Timer(0.05, ask).start()
    assert clock.watch(None, asked.is_set)[0] == [[]] and asked.is_set()
    live.gate.release()
    clock.close()


def test_a_stalled_source_is_an_error_in_silence_too():
    live = Live()
    clock = WallClock([reader(live, timeout=0.2)])
    clock.start(0)
    live.gate.release()
    assert len(clock.watch(None, never)[0][0]) == 1
    started = time.monotonic()
    with pytest.raises(StreamingError, match=r"gate after 0\.\d+ s: no frame arrived within 0.2 s"):
        clock.watch(None, never)
    assert time.monotonic() - started < 5
    live.gate.release()
    clock.close()
