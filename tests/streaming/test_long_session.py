"""Streams that are faster than the model, and streams without end: nothing gets old, nothing grows."""

import gc
import os
import threading
import time
from collections import deque

import pytest
import torch

from session_helpers import QUESTIONS, Camera, Ear, answers, chat_model, chat_processor, nothing_left_behind
from streamchat_hf import StreamingSession
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, Token

PROCESSOR = chat_processor()


def endless_pictures():
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(16, 3, 16, 16, generator=generator)
    while True:
        yield from pictures


def forever(seconds):
    while True:
        yield seconds


class SlowModel:
    """A model that takes `seconds` to encode a frame, as a large one would; notes how long it took in fact."""

    def __init__(self, model, seconds):
        self.took = []
        self._encode, self._seconds, self._model = model.encode_frames, seconds, model

    def __enter__(self):
        self._model.encode_frames = self
        return self

    def __exit__(self, *_):
        del self._model.encode_frames

    def __call__(self, frames, vision_cache):
        began = time.monotonic()
        time.sleep(self._seconds)
        encoded = self._encode(frames, vision_cache)
        self.took.append(time.monotonic() - began)
        return encoded


def percentile(values, share):
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def watch_a_fast_camera(seconds, fps, encode, ask_every, pace):
    """A session of so many seconds under `latest`; gives its events, statistics and encode times."""
    model, camera = chat_model(), Camera(endless_pictures(), forever(1 / fps))
    ear, held, events = Ear(dict.fromkeys(range(100), 12), pace), [], []
    with nothing_left_behind(), SlowModel(model, encode) as slow:
        session = StreamingSession(
            *(model, PROCESSOR, camera), backpressure="latest", max_new_tokens=20, logits_processor=[ear]
        )
        [reader], next_question = session._clock.readers, ask_every / 2
        with session:
            for event in session:
                events.append(event)
                if isinstance(event, FrameSeen) and event.time > 4 * encode:
                    text = session.cache.get_seq_length()
                    waiting = len(reader._queue), len(reader._ready), len(session.cache.streams[0].waiting)
                    held.append((threading.active_count(), session.cache.visual_bytes, waiting, text))
                if event is not events[0] and isinstance(event, FrameSeen) and event.time > next_question:
                    session.ask(QUESTIONS[0])
                    next_question += ask_every
                if isinstance(event, FrameSeen) and event.time > seconds:
                    break
        statistics = session.statistics()
    left = session.cache.streams[0].waiting
    raw = [frame for frame in left if not hasattr(frame, "keys")]
    seen = [event for event in events if isinstance(event, FrameSeen)]
    # Every frame is accounted for: encoded, dropped, or still waiting; and encoded ones have been seen or wait, too.
    assert statistics.frames_seen == statistics.frames_encoded + statistics.frames_dropped + len(raw)
    assert statistics.frames_encoded == len(slow.took) == len(seen) + len(left) - len(raw)
    assert len(left) <= 3 and statistics.frames_dropped > 5 * statistics.frames_encoded
    # Nothing grows.
    assert len({threads for threads, *_ in held}) == 1 and len({size for _, size, *_ in held}) == 1
    assert max(queue for _, _, (queue, *_), _ in held) <= 1 and max(ready for _, _, (_, ready, _), _ in held) <= 1
    assert not any(waiting for _, _, (_, _, waiting), _ in held)
    return events, statistics, slow.took


def assert_young(events, statistics, took):
    """Ages in encode times: of a frame when it is taken over, and of the newest frame behind a token."""
    encode = percentile(took, 0.5)
    seen = [event for event in events if isinstance(event, FrameSeen)]
    assert statistics.frame_age.p95 == pytest.approx(percentile([event.age for event in seen], 0.95), rel=0.2)
    tokens = [event.frame_age for event in events if isinstance(event, Token)]
    print(
        f"encode {encode:.3f} s: frame age p50 {statistics.frame_age.p50 / encode:.2f}, p95 "
        f"{statistics.frame_age.p95 / encode:.2f}; behind a token p50 {statistics.token_frame_age.p50 / encode:.2f}, "
        f"p95 {statistics.token_frame_age.p95 / encode:.2f} encode times; {statistics}"
    )
    assert statistics.frame_age.p95 <= 1.5 * encode
    assert statistics.token_frame_age.p50 > statistics.frame_age.p50 and len(tokens) >= 12
    # Until the next one is encoded the newest frame goes on ageing.
    assert statistics.token_frame_age.p95 <= 2.5 * encode


def test_a_camera_that_is_faster_than_the_model():
    """15 frames in the time that one is encoded in."""
    events, statistics, took = watch_a_fast_camera(seconds=3.5, fps=100, encode=0.15, ask_every=2.0, pace=0.02)
    assert len(answers(events)) >= 1
    assert_young(events, statistics, took)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_minutes_of_a_camera_that_is_faster_than_the_model():
    events, statistics, took = watch_a_fast_camera(seconds=120.0, fps=30, encode=0.5, ask_every=15.0, pace=0.1)
    assert len(answers(events)) >= 7
    assert_young(events, statistics, took)


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_objects():
    gc.collect()
    return len(gc.get_objects())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_thousand_frames():
    """Memory stays what it was when the window had filled, and text stays within its bound."""
    frames, every, longest = 10_000, 500, 200
    model, pictures = chat_model(), endless_pictures()
    source = ((number / 2, next(pictures)) for number in range(frames))
    session = StreamingSession(
        *(model, PROCESSOR, source), tokens_per_second=2, max_new_tokens=12, max_text_tokens=longest, do_sample=False
    )
    memory, objects, sizes, text, seen, turns = [], [], set(), [], 0, deque(maxlen=1)
    with nothing_left_behind(), session:
        for event in session:
            if isinstance(event, ResponseEnded):
                turns.append(event.answer)
                text.append(session.statistics().text_tokens)
            if not isinstance(event, FrameSeen):
                continue
            seen += 1
            if seen % every == 0:
                session.ask(QUESTIONS[seen // every % 4])
            if seen % every == every // 2:
                memory.append(resident_bytes())
                objects.append(count_objects())
                sizes.add((session.cache.visual_bytes, threading.active_count()))
    statistics = session.statistics()
    steady = memory[2:]  # the window of 5 frames filled long ago; the first answers load what answering needs
    print(
        f"resident after {every // 2} frames {memory[0] / 2**20:.1f} MiB, steady from {min(steady) / 2**20:.1f} to "
        f"{max(steady) / 2**20:.1f} MiB; objects {objects[2]} to {objects[-1]}; text at most {max(text)} tokens"
    )
    assert statistics.frames_encoded == seen == frames and statistics.turns == frames // every
    assert max(steady) <= 1.02 * steady[0] and min(steady) >= 0.98 * steady[0]
    assert max(objects[2:]) - objects[2] < 500
    assert len(sizes) == 1 and max(text) <= longest
    assert text[-1] > longest / 2, "what fits is remembered"
    assert session.cache.said.shape[1] == statistics.text_tokens + 1 and len(session.messages) < 2 * len(text)
    [last] = turns
    assert last.start_time >= 4999.5 and len(last.ids) == 12
