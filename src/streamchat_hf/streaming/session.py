"""A session: one model watches one stream for as long as it lasts, and is asked whenever somebody wants to know.

source ─► clock (frames when they are due) ─► talker.watch ─► FrameSeen, Silence
ask() ─────────────────────────────────────► talker.speak ─► ResponseStarted, Token ..., ResponseEnded

With the policy "activation" a question stands, and it is `talker.watch` that says when to speak.
"""

import asyncio
import math
import threading
import time as clock
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from transformers.generation.streamers import BaseStreamer

from streamchat_hf.streaming.activation import ActivationTalker, SharedFrames, open_watcher
from streamchat_hf.streaming.answer import Answer
from streamchat_hf.streaming.events import Event, FrameSeen, ResponseEnded, ResponseStarted, Silence, Token
from streamchat_hf.streaming.handover import Handover
from streamchat_hf.streaming.recording import RecordedClock, Recorder, Recording
from streamchat_hf.streaming.statistics import SessionStatistics, Tally, spread
from streamchat_hf.streaming.talker import NobodyListens, Talker, choose_policy, open_talker
from streamchat_hf.streaming.words import SpokenWord, TextPieces, spoken_words

# A stream that watches itself for stalls knows best what has happened: it is waited for a little longer, in seconds.
GRACE = 5.0
# Seconds that a source may take to let go of the session when it is closed.
PATIENCE = 0.25
# Arguments of `generate` that are the session's own.
OWN_ARGUMENTS = (
    *("inputs", "input_ids", "attention_mask", "past_key_values", "frames", "pixel_values_videos", "frame_times"),
    *("start_time", "streamer", "num_return_sequences", "num_beams"),
)

Emit = Callable[[Event], bool]


class _Question(NamedTuple):
    text: str
    at: int | None  # milliseconds; `None`: now
    asked: float  # by the process's own clock, for the latency
    stands: bool


class StreamingSession:
    """Watches a stream, talks about it, and tells what happens as events.

    Iterate over it, plainly or with `async for`. It goes on while the next event is wanted: time and a live source run
    on meanwhile, but nothing is said that nobody reads. It ends when the source has ended and nothing is left to
    answer, at `close()`, or with the error of its source.

    Args:
        model: A StreamChat, a VideoLLM-online or a [`StreamBridge`].
        processor: Its processor.
        source: What `processor.stream` takes, or what it returns; an iterator of frames that are ready for the model,
            as `generate` takes them; or a [`Recording`]. Without any frame, questions are answered without video.
        fps: Frames per second to look at. `None`: the rate that the activation model has learnt, if there is one, or
            else that of the processor, which may be all. Of an iterator: the rate of frames without times.
        policy: When to speak: `"on-question"`; or `"streaming-eos"`, also when a frame says so, which only some models
            have learnt; or `"activation"`, when a second model says so: a question then stands until the next one. It
            is not answered at once, and may be answered many times. `None`: as the model has, or `"activation"` if
            there is one.
        activation: The second model: an [`ActivationWatcher`], or an activation model with its processor. `None`: the
            bridge's own, if it has one.
        tokens_per_second: Speed of a simulated clock, under which a session is the same on every machine. `None`: the
            wall clock, which begins to run with the first event.
        backpressure: What happens under the wall clock when frames come faster than they are encoded: `"latest"` keeps
            the newest alone, `"drop_oldest"` keeps a queue, `"block"` holds the source up.
        max_new_tokens: Where an answer is cut if it does not end by itself.
        system: The system prompt.
        max_text_tokens: Text kept in the cache, with the frames among it; the oldest turns are forgotten when no more
            fits, but not the system prompt. `None`: 4096, or what a model is made for that reads frames as text.
        record: A folder to write a [`Recording`] into.
        frame_timeout: Seconds that the source may take for one frame under the wall clock.
        **generate_kwargs: More for `generate`, such as `do_sample`. `cache_implementation="static"` has room for
            `max_text_tokens`; stopping criteria of one's own end an answer, too.

    Attributes:
        policy: When it speaks.
        cache: The model's cache. To be touched between events only.
        messages: The conversation as far as it is remembered, with exactly what was delivered.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument for `generate` is the session's own.
        FileExistsError: If `record` holds a recording already.
        StreamingError: While iterating, if the source fails: it names source and time, and `partial` holds the tokens
            of the whole conversation so far. The session is closed by then.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        source: Any,
        *,
        fps: float | None = None,
        policy: str | None = None,
        activation: Any = None,
        tokens_per_second: float | None = None,
        backpressure: str = "latest",
        max_new_tokens: int = 256,
        system: str | None = None,
        max_text_tokens: int | None = None,
        record: Any = None,
        frame_timeout: float = 30.0,
        **generate_kwargs: Any,
    ):
        if fps is not None and not (math.isfinite(fps) and fps > 0):
            raise ValueError(f"fps must be a positive number, not {fps}")
        if own := [name for name in generate_kwargs if name in OWN_ARGUMENTS]:
            raise TypeError(f"{', '.join(own)}: the session says itself what `generate` is to know of it")
        self.policy = choose_policy(model, policy, activation)
        self._is_replay = isinstance(source, Recording)
        if self.policy == "activation" and (self._is_replay or record is not None):
            raise ValueError("a session with policy='activation' can be neither recorded nor played back")
        options = (system, max_new_tokens, max_text_tokens, generate_kwargs)
        self._talker: Talker | ActivationTalker = open_talker(model, processor, self.policy, *options)
        shared: SharedFrames | None = None
        if self.policy == "activation":
            watcher = open_watcher(model, activation)
            shared = SharedFrames(watcher)
            self._talker = ActivationTalker(self._talker, watcher, shared)
        self.cache = self._talker.cache
        self._tokenizer, self._max_new_tokens = processor.tokenizer, max_new_tokens
        self._tally = Tally()
        self._questions: list[_Question] = []
        self._lock = threading.Lock()
        self._ended_at: int | None = None  # milliseconds; nothing can be asked any more
        self._stopped = False  # whether the answer was, by us
        self._stream: Any = None
        # Under any other clock a second of the stream is no second of the process.
        self._in_real_time = tokens_per_second is None and not self._is_replay
        if self._is_replay:
            self._clock: Any = RecordedClock(source, model, self.cache, self._ask)
        else:
            # A file that is open iterates, too, but over lines.
            is_frames = hasattr(source, "__next__") and not hasattr(source, "read")
            rate = shared.fps if fps is None and shared is not None else fps
            self._stream = source if is_frames else processor.stream(source, fps=rate, stall_timeout=frame_timeout)
            patience = frame_timeout if is_frames else frame_timeout + GRACE
            self._clock = model.open_clock(self._stream, self.cache, fps, tokens_per_second, backpressure, patience)
        if shared is not None:
            shared.attach(self._stream, self._clock.readers)
        self._recorder = None if record is None else Recorder(record)
        if self._recorder is not None:
            for reader in self._clock.readers:
                reader.encode = self._recorder.observe(reader.encode)
        device = torch.device(model.device).type
        self._events = Handover(self._run, "streamchat session", partial(_autocast_of_caller, device))

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""
        return self._talker.messages

    def ask(self, question: str, at: float | None = None, stands: bool = False) -> None:
        """Asks, from any thread. An answer under way stops after the current token.

        Args:
            question: What to ask.
            at: When, in seconds of the stream; `None` or a time that has passed: now.
            stands: Whether it is not answered at once but when the policy says so, such as "say it once it is blue".
                With `"activation"` every question stands.

        Raises:
            RuntimeError: If the session has ended, or plays a recording, which asks its own questions.
            ValueError: If it stands, but nothing but questions makes the model speak; or if it holds what stands for a
                frame in the model's text. The session goes on.
        """
        if self._is_replay:
            raise RuntimeError("a recording asks its own questions")
        if stands and self.policy == "on-question":
            raise ValueError("with policy='on-question' a question that stands would never be answered")
        if held := [word for word in self._talker.frame_words if word in question]:
            raise ValueError(f"{held[0]} stands for a frame, a question cannot hold it: {question!r}")
        self._ask(question, at, stands or self.policy == "activation")

    def _ask(self, question: str, at: float | None, stands: bool = False) -> None:
        when = None if at is None else round(at * 1000)
        with self._lock:
            if self._ended_at is not None or self._events.closed:
                raise RuntimeError("the session has ended; nobody is left to answer")
            self._questions.append(_Question(question, when, clock.monotonic(), stands))
        self._clock.wake()

    def statistics(self) -> SessionStatistics:
        """How the session has been doing so far."""
        readers, tally = self._clock.readers, self._tally
        return SessionStatistics(
            seconds=(self._clock.now() if self._ended_at is None else self._ended_at) / 1000,
            frames_seen=sum(reader.grabbed for reader in readers),
            frames_encoded=sum(reader.encoded for reader in readers),
            frames_dropped=sum(reader.dropped for reader in readers),
            reconnects=getattr(self._stream, "reconnects", 0),
            turns=tally.turns,
            tokens=tally.tokens,
            tokens_per_second=tally.tokens_per_second,
            frame_age=spread(tally.frame_ages),
            token_frame_age=spread(tally.token_frame_ages),
            first_token_latency=spread(tally.latencies),
            visual_bytes=self.cache.visual_bytes,
            text_tokens=int(self.cache.get_seq_length()),
        )

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        return next(self._events)

    def close(self) -> None:
        """Ends the session after the current token; the source is closed, no thread is left.

        A source that hangs is left behind with its thread.
        """
        self._events.stop()
        self._clock.close(PATIENCE)  # or an answer would wait for its first frame
        self._events.close(lambda thread: any(reader.pulling is thread for reader in self._clock.readers), PATIENCE)
        self._end()
        self._release()

    def __enter__(self) -> "StreamingSession":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __aiter__(self) -> "StreamingSession":
        return self

    async def __anext__(self) -> Event:
        return await anext(self._events)

    async def __aenter__(self) -> "StreamingSession":
        return self

    async def __aexit__(self, *_: Any) -> None:
        await asyncio.to_thread(self.close)

    def _run(self, emit: Emit) -> None:
        try:
            with torch.no_grad():
                self._clock.start(0)
                while not self._events.closed:
                    question = self._take_question()
                    if question is not None:
                        self._hear(question, max(self._clock.now(), self.cache.clock), emit)
                    elif not self._watch(emit) and self._end(unless_asked=True):
                        break
        except Exception as error:
            if getattr(error, "partial", self) is None:  # a StreamingError in silence, of whatever module
                error.partial = self._talker.said  # type: ignore[attr-defined]
            raise
        finally:
            self._end()
            self._release()

    def _end(self, unless_asked: bool = False) -> bool:
        """Lets nobody ask any more, `unless_asked` somebody just has; tells whether that is so."""
        with self._lock:
            if self._ended_at is None and not (unless_asked and self._questions):
                self._ended_at = self._clock.now()
        return self._ended_at is not None

    def _release(self) -> None:
        self._close_source()
        self._clock.close(PATIENCE)
        self._close_source()  # a generator that was at work on its next frame could not be closed before
        if self._recorder is not None:
            self._recorder.close()

    def _close_source(self) -> None:
        close = getattr(self._stream, "close", None)
        if close is not None:
            with suppress(Exception):  # one that failed may fail at this, too; the rest is to be closed all the same
                close()

    def _take_question(self) -> _Question | None:
        """The question that is due, the earliest first."""
        with self._lock:
            now = self._clock.now()
            due = [question for question in self._questions if question.at is None or question.at <= now]
            if not due:
                return None
            question = min(due, key=lambda question: now if question.at is None else question.at)
            self._questions.remove(question)
        if question.at is None:
            return question
        late = (now - question.at) / 1000 if self._in_real_time else 0.0
        return question._replace(asked=max(question.asked, clock.monotonic() - late))

    def _is_wanted(self) -> bool:
        """Whether something else is to be done than what is being done."""
        with self._lock:
            due = any(question.at is None or question.at <= self._clock.now() for question in self._questions)
        return due or self._events.closed

    def _watch(self, emit: Emit) -> bool:
        """Shows the next frames in silence; False once the source has ended."""
        with self._lock:
            asked = len(self._questions)
            scheduled = [question.at for question in self._questions if question.at is not None]
        # A new question need not be due yet: it may come before the one that is waited for.
        arrivals = self._clock.watch(
            min(scheduled, default=None), lambda: len(self._questions) != asked or self._is_wanted()
        )
        if arrivals is None:
            return False
        [frames], now = arrivals
        if frames:
            speaks = self._talker.watch(frames)
            self._see([frame.t_sec for frame in frames], now / 1000, emit)
            if self._recorder is not None:
                self._recorder.watched(now / 1000, [frame.t_sec for frame in frames])
            if speaks and not (self._is_replay and self._clock.over):  # or it was closed before the first word
                self._answer(self._talker.standing, now, clock.monotonic(), emit)
            else:
                emit(Silence(now / 1000))
        return True

    def _see(self, frame_times: list[float], now: float, emit: Emit) -> None:
        for t_sec in frame_times:
            self._tally.frame_ages.append(now - t_sec)
            emit(FrameSeen(t_sec, now))

    def _hear(self, question: _Question, start: int, emit: Emit) -> None:
        """Takes a question, and answers it from `start` on, in milliseconds, unless it stands."""
        if self._recorder is not None:
            self._recorder.question(question.text, start / 1000, question.stands)
        if question.stands:
            self._talker.stand(question.text)
        else:
            self._talker.ask(question.text)
            self._answer(question.text, start, question.asked, emit)

    def _answer(self, text: str, start: int, asked: float, emit: Emit) -> None:
        """Says what there is to say, to the question `text` if there is one, from `start` on in milliseconds."""
        emit(ResponseStarted(text, start / 1000))
        telling = _Telling(self, emit, asked)
        self._stopped = False
        self._talker.speak(start, self._clock, telling)
        if telling.ids:
            self._tally.turns += 1
            ids, times, frame_times = telling.ids, telling.times, telling.frame_times
            answer = Answer(text, start / 1000, telling.words, ids, times, frame_times)
            emit(ResponseEnded(answer, self._why_ended(ids)))

    def _has_said_enough(self) -> bool:
        """Whether a question, `close()` or the end of a recorded answer stops the answer under way."""
        self._stopped = self._clock.answer_over if self._is_replay else self._is_wanted()
        return self._stopped

    def _why_ended(self, ids: list[int]) -> Literal["end", "length", "interrupted"]:
        if ids[-1] in self._talker.ends:
            return "end"
        if len(ids) == self._max_new_tokens:
            return "length"
        return "interrupted" if self._stopped else "end"  # by a criterion of the caller's


def _autocast_of_caller(device: str) -> torch.autocast:
    """A context that computes as the thread that calls this: a new thread starts without autocast."""
    return torch.autocast(device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))


class _Telling(BaseStreamer):
    """Turns what a talker says into events.

    A token is told by a stopping criterion, not by `put`: that comes after the criteria have decided, and whoever
    hears a token may stop the answer with it.
    """

    def __init__(self, session: StreamingSession, emit: Emit, asked: float):
        self.text = ""
        self.ids: list[int] = []
        self.times: list[float] = []
        self.frame_times: list[float] = []
        self.tokenizer = session._tokenizer
        self._pieces = TextPieces(self.tokenizer)
        self._session, self._emit = session, emit
        self._tally, self._recorder = session._tally, session._recorder
        self._since = asked  # what the caller does with an event is not the model's time: it moves this on
        self._arrived: list[float] = []
        self._next_times = (math.nan, math.nan, math.nan)

    @property
    def words(self) -> list[SpokenWord]:
        return spoken_words(self.tokenizer, self.ids, self.times, self.frame_times)

    def put_frames(self, frame_times: list[list[float]], time: float) -> None:
        self._arrived = frame_times[0]
        before = clock.monotonic()
        self._session._see(self._arrived, time, self._emit)
        self._since += clock.monotonic() - before

    def put_times(self, token_times: list[float], frame_times: list[float], ages: list[float]) -> None:
        self._next_times = (token_times[0], frame_times[0], ages[0])

    def spoke(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Tells the newest token; gives whether it is the last."""
        token, (time, frame_time, age) = int(input_ids[0, -1]), self._next_times
        seconds, piece = clock.monotonic() - self._since, self._pieces.add(token)
        self._tally.tokens += 1
        if not self._emit(Token(token, piece, time, frame_time)):
            self._tally.tokens -= 1
            raise NobodyListens
        (self._tally.step_seconds if self.ids else self._tally.latencies).append(seconds)
        if not math.isnan(age):
            self._tally.token_frame_ages.append(age)
        self.ids.append(token)
        self.times.append(time)
        self.frame_times.append(frame_time)
        self.text += piece
        if self._recorder is not None:
            self._recorder.spoke(time, self._arrived, token)
        self._since = clock.monotonic()
        return torch.tensor([self._session._has_said_enough()], device=input_ids.device)

    def put(self, value: torch.Tensor) -> None:
        pass

    def end(self) -> None:
        pass
