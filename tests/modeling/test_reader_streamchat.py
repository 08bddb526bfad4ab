"""Reading frames: due means due, one place to drop them, nothing lost between calls, no thread left."""

import threading
import time
from itertools import pairwise

import pytest
import torch

from streamchat_hf.modeling.cache_streamchat import ReadyFrame, StreamState
from streamchat_hf.modeling.reader_streamchat import (
    MOST_READY,
    FrameReader,
    FrameSource,
    StreamingError,
    StreamTime,
)


def pixels(value):
    return torch.full((3, 2, 2), float(value))


def encode(frames, vision_cache):
    return [ReadyFrame(t, p, p, (1, 1)) for t, p in frames], (vision_cache or 0) + len(frames)


def slow_encode(frames, vision_cache):
    time.sleep(0.04)
    return encode(frames, vision_cache)


def shown(frames):
    return [int(frame.keys[0, 0, 0]) for frame in frames]


class Camera:
    """A live camera of 60 frames, 5 ms apart, or a file of them."""

    source = "camera"

    def __init__(self, live=True, count=60, pause=0.005):
        self.live, self.count, self.pause, self.pulled = live, count, pause, 0

    def __iter__(self):
        for k in range(self.count):
            time.sleep(self.pause if self.live else 0)
            self.pulled += 1
            yield k * 0.005, pixels(k)


def open_reader(frames, state, encode=encode, policy="block", capacity=4):
    return FrameReader(FrameSource(frames, None, state), state, encode, policy, "cpu", capacity=capacity)


def drain(reader):
    taken = []
    while reader._encoding:
        taken += reader.take_ready()
        time.sleep(0.002)
    return taken + reader.take_ready()


def test_exactly_what_is_due():
    state = StreamState()
    reader = open_reader([(t, pixels(k)) for k, t in enumerate([0.0, 0.5, 0.5, 1.0])], state)
    assert shown(reader.take_due(499)) == [0]
    assert shown(reader.take_due(500)) == [1, 2]
    assert shown(reader.take_due(999)) == []
    assert shown(reader.take_due(10_000)) == [3]
    assert state.vision_cache == 4


def test_a_frame_that_is_not_due_waits_for_the_next_call():
    state, source = StreamState(), iter([(0.0, pixels(0)), (2.0, pixels(1)), (3.0, pixels(2))])
    first = open_reader(source, state)
    assert shown(first.take_due(1000)) == [0]
    first.close()
    assert shown(open_reader(source, state).take_due(3000)) == [1, 2]


@pytest.mark.parametrize("policy", ["drop_oldest", "latest"])
def test_a_full_queue_drops_the_oldest_and_counts(policy):
    camera, state = Camera(), StreamState()
    reader = open_reader(camera, state, slow_encode, policy)
    reader.start(StreamTime(0))
    taken = shown(drain(reader))
    reader.close()
    assert taken == sorted(taken) and taken[-1] == 59
    assert reader.dropped > 0 and reader.dropped + len(taken) == camera.pulled == 60


def test_blocking_drops_nothing():
    camera, state = Camera(live=False, count=12), StreamState()
    reader = open_reader(camera, state, slow_encode)
    reader.start(StreamTime(0))
    assert shown(drain(reader)) == list(range(12))
    assert reader.dropped == 0


@pytest.mark.parametrize("policy", ["drop_oldest", "latest", "block"])
def test_what_nobody_takes_does_not_pile_up(policy):
    count = 3 * MOST_READY
    camera, state = Camera(live=policy != "block", count=count, pause=0.001), StreamState()
    reader = open_reader(camera, state, policy=policy)
    reader.start(StreamTime(0))
    until = time.monotonic() + 10
    # A file waits for the reader, a camera does not.
    while reader.encoded < MOST_READY or (camera.live and reader.grabbed < count):
        assert time.monotonic() < until
        time.sleep(0.01)
    time.sleep(0.1)
    assert reader.encoded == MOST_READY
    assert camera.live or reader.grabbed <= MOST_READY + 6
    taken = shown(drain(reader))
    reader.close()
    assert len(taken) >= MOST_READY and taken == sorted(taken) and taken[-1] == count - 1
    assert len(taken) + reader.dropped == count and (reader.dropped > 0) == camera.live


def test_nothing_is_lost_between_calls():
    camera, state = iter(Camera(count=40)), StreamState()
    seen = []
    for _ in range(3):
        reader = FrameReader(FrameSource(camera, None, state), state, slow_encode, "block", "cpu", capacity=4)
        reader.start(StreamTime(0))
        time.sleep(0.06)
        seen += shown(reader.take_ready())
        reader.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("streamchat")]
    reader = open_reader(camera, state)
    seen += shown(reader.take_due(10**9))
    assert seen == list(range(40))


def test_frames_before_a_failure_are_delivered_first():
    def source():
        yield 0.0, pixels(0)
        yield 0.01, pixels(1)
        raise OSError("unplugged")

    reader = open_reader(source(), StreamState())
    reader.start(StreamTime(0))
    taken = []
    with pytest.raises(StreamingError, match=r"generator failed after 0.010 s: unplugged"):
        for _ in range(500):
            taken += shown(reader.take_ready())
            time.sleep(0.002)
    assert taken == [0, 1]
    reader.close()


def test_a_failing_encoder_is_named():
    def broken(frames, vision_cache):
        raise RuntimeError("out of memory")

    reader = open_reader([(0.0, pixels(0))], StreamState(), broken)
    reader.start(StreamTime(0))
    with pytest.raises(StreamingError, match="list at 0.000 s: encoding failed: out of memory"):
        reader.wait_for_first()
        reader.take_ready()
    reader.close()


def test_a_live_frame_is_stamped_on_arrival():
    reader = open_reader(Camera(count=3, pause=0.03), StreamState())
    reader.start(StreamTime(5000))
    times = [frame.t_sec for frame in drain(reader)]
    assert times[0] >= 5.03 and all(b - a >= 0.029 for a, b in pairwise(times))


def test_time_of_a_new_call_does_not_run_backwards():
    state = StreamState()
    state.frames_taken, state.newest_frame_time = 3, 7.0
    with pytest.raises(StreamingError, match="time runs backwards, 0.000 s after 7.000 s"):
        open_reader([(0.0, pixels(0))], state).take_due(0)


def test_a_failure_waits_for_the_frames_still_being_encoded():
    def source():
        yield 0.0, pixels(0)
        raise OSError("unplugged")

    reader = open_reader(source(), StreamState(), slow_encode)
    reader.start(StreamTime(0))
    reader.wait_for_first()
    assert shown(reader.take_ready()) == [0]
    with pytest.raises(StreamingError, match="unplugged"):
        drain(reader)
        reader.take_ready()
    reader.close()


def test_what_was_due_before_a_failure_waits_for_the_next_call():
    def source():
        yield from ((0.1 * k, pixels(k)) for k in range(20))  # more than are encoded at once
        raise OSError("unplugged")

    state = StreamState()
    with pytest.raises(StreamingError, match="unplugged"):
        open_reader(source(), state).take_due(5000)
    assert shown(open_reader([(3.0, pixels(20))], state).take_due(5000)) == list(range(21))


def test_a_source_that_hangs_is_left_behind_but_not_its_frame():
    state, unplugged = StreamState(), threading.Event()

    hangs = threading.Event()

    def source():
        yield 0.0, pixels(0)
        hangs.set()
        unplugged.wait(5)
        yield 0.01, pixels(1)

    reader = open_reader(source(), state)
    reader.start(StreamTime(0))
    reader.wait_for_first()
    assert hangs.wait(5)
    reader.close(timeout=0.05)
    assert reader.pulling
    reader.close_source()  # a generator at work cannot be closed; that must not hide an error
    unplugged.set()
    for _ in range(500):
        if len(state.waiting) == 2:
            break
        time.sleep(0.002)
    assert [frame[0] for frame in state.waiting] == [0.0, 0.01]


def test_closing_waits_for_the_frame_being_encoded():
    encoding = threading.Event()

    def very_slow_encode(frames, vision_cache):
        encoding.set()
        time.sleep(0.3)
        return encode(frames, vision_cache)

    state = StreamState()
    reader = open_reader([(0.0, pixels(0))], state, very_slow_encode)
    reader.start(StreamTime(0))
    assert encoding.wait(5)
    reader.close(timeout=0.05)
    assert shown(state.waiting) == [0] and state.vision_cache == 1


def test_frames_without_times_are_counted_over_calls():
    state, source = StreamState(), iter([pixels(k) for k in range(8)])
    times = []
    for now in (1000, 3000):
        reader = FrameReader(FrameSource(source, 2, state), state, encode, "block", "cpu")
        times += [frame.t_sec for frame in reader.take_due(now)]
        reader.close()
    assert times == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_new_source_does_not_go_back_before_what_waits():
    state = StreamState()
    open_reader([(0.0, pixels(0)), (5.0, pixels(1))], state).take_due(1000)
    with pytest.raises(StreamingError, match="time runs backwards, 2.000 s after 5.000 s"):
        open_reader([(2.0, pixels(2))], state).take_due(6000)


def test_a_live_frame_that_waited_comes_no_later_than_now():
    state = StreamState()
    state.waiting.extend([(0.5, pixels(0)), ReadyFrame(9.0, pixels(1), pixels(1), (1, 1)), (9.5, pixels(2))])
    reader = open_reader(Camera(count=0), state)
    reader.start(StreamTime(1000))
    times = [frame.t_sec for frame in drain(reader)]
    reader.close()
    assert times[0] == 0.5 and 1.0 <= times[1] <= times[2] < 6.0


@pytest.mark.parametrize("t_sec", [None, float("nan"), "soon"])
def test_a_time_that_is_none_is_named(t_sec):
    reader = open_reader([(0.0, pixels(0)), (t_sec, pixels(1))], StreamState())
    with pytest.raises(StreamingError, match=f"list after 0.000 s: a frame's time must be .* not '?{t_sec}"):
        reader.take_due(1000)


def test_what_was_closed_does_not_start():
    reader = open_reader([(0.0, pixels(0))], StreamState())
    reader.close()
    reader.start(lambda: 0)
    assert reader.over and reader.take_ready() == [] and reader._threads == {}


def test_a_source_may_close_its_reader_before_both_stages_run(monkeypatch):
    def start(thread):
        if thread.name == "streamchat encode":
            time.sleep(0.1)
        really_start(thread)

    def frames():
        reader.close()
        yield 0.0, pixels(0)

    really_start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", start)
    reader = open_reader(frames(), StreamState())
    reader.start(lambda: 0)
    reader.close()
    assert reader.over and not reading()


def test_a_reader_that_its_source_closed_is_waited_for():
    closed = threading.Event()

    def frames():
        reader.close()
        closed.set()
        time.sleep(0.2)
        yield 0.0, pixels(0)

    state = StreamState()
    reader = open_reader(frames(), state)
    reader.start(lambda: 0)
    assert closed.wait(5)
    reader.close()
    assert not reading() and [t_sec for t_sec, _ in state.waiting] == [0.0]


def reading():
    return [thread for thread in threading.enumerate() if thread.name.startswith("streamchat")]
