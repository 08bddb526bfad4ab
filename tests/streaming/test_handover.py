"""One event at a time: nothing runs ahead, nothing is lost, everything ends."""

import asyncio
import signal
import threading
import time

import pytest

from session_helpers import nothing_left_behind
from streamchat_hf.streaming.handover import Handover


def counting(made, last=5):
    """Emits 0, 1, 2, ... and notes what it made."""

    def run(emit):
        for number in range(last):
            made.append(number)
            emit(number)

    return run


def test_events_come_in_order_and_then_it_is_over():
    with nothing_left_behind():
        handover = Handover(counting([]), "test")
        assert iter(handover) is handover
        assert list(handover) == [0, 1, 2, 3, 4]
        assert list(handover) == []


def test_nothing_runs_ahead_of_the_reader():
    made = []
    handover = Handover(counting(made), "test")
    assert made == []
    for number in handover:
        time.sleep(0.01)
        assert made == list(range(number + 1))


def test_emit_tells_whether_the_event_was_taken():
    told = []

    def run(emit):
        while len(told) < 4:
            told.append(emit(len(told)))

    handover = Handover(run, "test")
    assert next(handover) == 0 and next(handover) == 1
    handover.close()
    assert told == [True, True, False, False]


def test_a_function_that_hangs_is_left_behind_but_not_one_that_is_slow():
    gate, hangs = threading.Event(), threading.Event()

    def run(emit):
        emit(0)
        gate.wait()

    handover = Handover(run, "test")
    with nothing_left_behind():
        next(handover)
        slow = threading.Thread(target=handover.close, args=(lambda _: hangs.is_set(), 0.01))
        slow.start()
        slow.join(0.2)
        assert slow.is_alive()
        hangs.set()
        slow.join(10)
        assert not slow.is_alive()
        gate.set()
        handover.close()


def test_an_error_comes_once_and_after_what_was_emitted():
    def run(emit):
        emit(1)
        raise OSError("unplugged")

    with nothing_left_behind():
        handover = Handover(run, "test")
        assert next(handover) == 1
        with pytest.raises(OSError, match="unplugged"):
            next(handover)
        assert list(handover) == []


def test_closed_before_the_first_event_it_never_runs():
    made = []
    with nothing_left_behind():
        handover = Handover(counting(made), "test")
        handover.close()
        handover.close()
        assert list(handover) == [] and made == []


def test_closing_lets_the_function_come_to_its_end_and_drops_what_it_says():
    made = []

    def run(emit):
        counting(made)(emit)
        raise OSError("too late")

    with nothing_left_behind():
        handover = Handover(run, "test")
        next(handover)
        handover.close()
        handover.close()
        assert made == [0, 1, 2, 3, 4] and list(handover) == []


def test_the_function_may_close_its_own_handover():
    def run(emit):
        emit(1)
        handover.close()
        emit(2)

    with nothing_left_behind():
        handover = Handover(run, "test")
        assert list(handover) == [1]
        handover.close()


def test_closing_from_another_thread_ends_the_waiting():
    go_on = threading.Event()
    with nothing_left_behind():
        handover = Handover(lambda emit: go_on.wait(10), "test")
        closer = threading.Timer(0.05, lambda: (go_on.set(), handover.close()))
        closer.start()
        assert list(handover) == []
        closer.join()


def test_a_reader_does_not_wait_for_a_function_that_hangs_after_closing():
    begun, go_on = threading.Event(), threading.Event()

    def run(emit):
        begun.set()
        go_on.wait(10)

    handover = Handover(run, "test")
    closer = threading.Thread(target=lambda: begun.wait(10) and handover.close())
    closer.start()
    assert list(handover) == []
    assert closer.is_alive(), "but who closes does"
    go_on.set()
    closer.join(10)


def test_control_c_ends_the_waiting_and_loses_no_event():
    go_on, made = threading.Event(), []

    def run(emit):
        go_on.wait(10)
        counting(made)(emit)

    with nothing_left_behind():
        handover = Handover(run, "test")
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            next(handover)
        go_on.set()
        while not made:
            time.sleep(0.01)
        time.sleep(0.05)
        assert made == [0], "it goes no further than to the event that was waited for"
        assert next(handover) == 0 and made == [0]
        assert next(handover) == 1 and made == [0, 1]
        handover.close()


def test_control_c_and_then_close():
    go_on = threading.Event()
    with nothing_left_behind():
        handover = Handover(lambda emit: go_on.wait(10), "test")
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
        try:
            with pytest.raises(KeyboardInterrupt):
                next(handover)
        finally:
            go_on.set()
            handover.close()


def test_an_error_that_nobody_waited_for_is_still_raised():
    go_on = threading.Event()

    def run(emit):
        go_on.wait(10)
        raise OSError("unplugged")

    async def main():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(handover), 0.05)
        go_on.set()
        await asyncio.sleep(0.05)
        with pytest.raises(OSError, match="unplugged"):
            await anext(handover)
        with pytest.raises(StopAsyncIteration):
            await anext(handover)

    handover = Handover(run, "test")
    asyncio.run(main())


def test_async_iteration_leaves_the_loop_free_and_needs_no_other_thread():
    gate = threading.Semaphore(0)

    def run(emit):
        for number in range(3):
            gate.acquire(timeout=10)
            emit(number)

    async def main():
        seen, turns = [], 0

        async def read():
            async for number in handover:
                seen.append(number)

        reader = asyncio.create_task(read())
        while not reader.done():
            turns += 1
            gate.release()
            await asyncio.sleep(0.01)
        assert seen == [0, 1, 2] and turns > 1
        assert {thread.name for thread in threading.enumerate()} <= before

    before = {thread.name for thread in threading.enumerate()} | {"test"}
    handover = Handover(run, "test")
    asyncio.run(main())


def test_cancelling_the_waiting_loses_no_event_and_asks_for_no_second():
    go_on, made = threading.Event(), []

    def run(emit):
        go_on.wait(10)
        counting(made)(emit)

    async def main():
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(handover), 0.02)
        go_on.set()
        while not made:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        assert made == [0]
        assert await anext(handover) == 0
        assert [number async for number in handover] == [1, 2, 3, 4]

    handover = Handover(run, "test")
    asyncio.run(main())


def test_plain_and_async_reading_may_take_turns_and_loops_may_change():
    handover = Handover(counting([]), "test")

    async def one():
        return await anext(handover)

    assert [next(handover), asyncio.run(one()), next(handover), asyncio.run(one())] == [0, 1, 2, 3]
    handover.close()


def test_a_loop_that_has_gone_is_not_woken():
    go_on = threading.Event()

    def run(emit):
        go_on.wait(10)
        emit(1)

    async def give_up():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(handover), 0.02)

    handover = Handover(run, "test")
    asyncio.run(give_up())
    go_on.set()
    assert list(handover) == [1]


def test_there_is_one_reader_at_a_time():
    begun, go_on = threading.Event(), threading.Event()

    def run(emit):
        begun.set()
        go_on.wait(10)

    handover = Handover(run, "test")
    reader = threading.Thread(target=list, args=(handover,))
    reader.start()
    assert begun.wait(10)
    with pytest.raises(RuntimeError, match="somebody else is waiting"):
        next(handover)
    go_on.set()
    reader.join(10)
    assert not reader.is_alive()


def test_the_surroundings_are_those_of_the_first_reader():
    here, entered = threading.local(), []

    class Surroundings:
        def __init__(self):
            self.name = here.name

        def __enter__(self):
            entered.append((self.name, threading.current_thread().name))

        def __exit__(self, *_):
            entered.append("left")

    here.name = "reader"
    assert list(Handover(counting([], 1), "worker", Surroundings)) == [0]
    assert entered == [("reader", "worker"), "left"]
