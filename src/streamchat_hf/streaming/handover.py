"""A function that runs in a thread of its own and hands over one event at a time, as a generator would."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any


class _Ended:
    def __init__(self, error: BaseException | None = None):
        self.error = error


class Handover:
    """An iterator, plain or async, over what a function emits, which goes on only while its next event is wanted.

    Nothing runs ahead of the reader, so that a reader who reacts to an event does so before the next one is made. A
    generator would do the same, but cannot be suspended inside somebody else's decoding loop. A reader who stops
    waiting, by Ctrl-C or because its task is cancelled, loses nothing: the event is still to come.

    Args:
        run: Called once as `run(emit)`, when the first event is wanted. `emit(event)` returns when the next event is
            wanted; once closed it returns at once. It tells whether the event has been taken.
        name: Of the thread.
        surroundings: Called by whoever wants the first event; gives the context that `run` is called in.

    Attributes:
        closed: Whether `close()` has been called.
    """

    def __init__(
        self,
        run: Callable[[Callable[[Any], bool]], None],
        name: str,
        surroundings: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.closed = False
        self._run, self._surroundings = run, surroundings
        self._name = name
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._events: deque = deque()  # one at most, and the end
        self._wanted = self._over = self._reading = False
        self._wake: Callable[[], None] | None = None

    def __iter__(self) -> "Handover":
        return self

    def __next__(self) -> Any:
        """The next event.

        Raises:
            StopIteration: After the last, and after `close()`.
            BaseException: What the function raised, once.
            RuntimeError: If somebody else waits for the next event.
        """
        with self._reader(), self._changed:
            self._want()
            self._changed.wait_for(self._is_there)
            if self._is_last():
                raise StopIteration
            return self._events.popleft()

    def __aiter__(self) -> "Handover":
        return self

    async def __anext__(self) -> Any:
        """The next event; raises as `__next__` does."""
        loop, came = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # that loop has ended
                loop.call_soon_threadsafe(came.set)

        with self._reader():
            with self._changed:
                self._want()
                self._wake = wake
                if self._is_there():
                    came.set()
            await came.wait()
            with self._changed:
                if self._is_last():
                    raise StopAsyncIteration
                return self._events.popleft()

    def stop(self) -> None:
        """Lets the function come to its end, without waiting for it; what it still emits or raises is dropped."""
        with self._changed:
            self.closed = True
            self._notify()

    def close(self, hangs: Callable[[threading.Thread], bool] = lambda _: False, patience: float = 0.25) -> None:
        """As [`stop`], and waits for the function; if its thread `hangs()`, only for so many seconds."""
        self.stop()
        if self._thread is None or self._thread is threading.current_thread():
            return
        self._thread.join(patience)
        while self._thread.is_alive() and not hangs(self._thread):
            self._thread.join(patience)

    @contextmanager
    def _reader(self) -> Iterator[None]:
        with self._changed:
            if self._reading:
                raise RuntimeError("somebody else is waiting for the next event")
            self._reading = True
        try:
            yield
        finally:
            with self._changed:
                self._reading, self._wake = False, None

    def _want(self) -> None:
        if self._thread is None and not self.closed:
            surroundings = self._surroundings()
            self._thread = threading.Thread(target=self._work, args=(surroundings,), name=self._name, daemon=True)
            self._thread.start()
        self._wanted = self._wanted or not self._events
        self._changed.notify_all()

    def _is_there(self) -> bool:
        return bool(self._events) or self._over or self.closed

    def _is_last(self) -> bool:
        """Whether there is no event; raises what the function has raised."""
        if self._over or self.closed:
            return True
        if not isinstance(self._events[0], _Ended):
            return False
        self._over = True
        if self._thread is not None:
            self._thread.join()  # it has let go of the lock and does nothing more
        error = self._events.popleft().error
        if error is not None:
            raise error
        return True

    def _notify(self) -> None:
        self._changed.notify_all()
        if self._wake is not None:
            self._wake()

    def _emit(self, event: Any) -> bool:
        with self._changed:
            if self.closed:
                return False
            self._events.append(event)
            self._wanted = False
            self._notify()
            self._changed.wait_for(lambda: self._wanted or self.closed)
            return not self._events

    def _work(self, surroundings: AbstractContextManager) -> None:
        error: BaseException | None = None
        try:
            with surroundings:
                self._run(self._emit)
        except BaseException as raised:
            error = raised
        with self._changed:
            self._events.append(_Ended(error))
            self._notify()
