"""A session: what it tells is what `generate` says and what one forward pass gives, whoever interrupts it and when."""

import asyncio
import functools
import io
import itertools
import math
import signal
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from session_helpers import (
    QUESTIONS,
    SYSTEM,
    Camera,
    Ear,
    answers,
    assert_equals_one_forward,
    chat_model,
    chat_processor,
    chat_tokenizer,
    nothing_left_behind,
)
from streamchat_helpers import at_rate, frames_at
from streamchat_hf import StreamingSession, tiny_checkpoint
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, ResponseStarted, Silence, Token
from video_files import write_video

END = chat_tokenizer().eos_token_id
PROCESSOR = chat_processor()


@pytest.fixture(scope="module")
def model():
    return chat_model()


def open_session(model, source, **options):
    defaults = {"tokens_per_second": 2, "max_new_tokens": 6, "do_sample": False}
    return StreamingSession(model, PROCESSOR, source, **defaults | options)


def run(session, *asks, on_event=None):
    """All events of a session, which is asked at given times; `on_event` sees each as it comes."""
    for question, at in asks:
        session.ask(question, at)
    events = []
    with session:
        for event in session:
            events.append(event)
            if on_event is not None:
                on_event(event)
    return events


def told(events):
    """Events as text, in which one NaN equals another."""
    return [str(event) for event in events]


# What is read before an answer, written out by hand.


def first_prompt(question, system=None):
    system = system or "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    return tokens(f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n") + tokens(
        "<|im_start|>assistant\n"
    )


def next_prompt(question, was_cut):
    return [END] * was_cut + tokens(f"\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")


def tokens(text):
    return chat_tokenizer()(text, add_special_tokens=False)["input_ids"]


class Reference:
    """The same conversation by calls of `generate`, each with the cache of the one before."""

    def __init__(self, model, frames, **options):
        self.ear, self.cache, self.said = Ear(), None, []
        self._model, self._frames = model, iter(frames)
        self._options = {"do_sample": False, "return_dict_in_generate": True, "tokens_per_second": 2, **options}

    def ask(self, prompt, at, max_new_tokens):
        out = self._model.generate(
            torch.tensor([prompt]),
            frames=self._frames,
            start_time=at,
            past_key_values=self.cache,
            max_new_tokens=max_new_tokens,
            logits_processor=[self.ear],
            **self._options,
        )
        self.cache = out.past_key_values
        answer = out.sequences[0, len(prompt) :].tolist()
        self.said += prompt + answer
        return answer, out.token_times[0].tolist(), out.newest_frame_times[0].tolist()


def assert_same_scores(ear, reference):
    assert [length for length, _ in ear.steps] == [length for length, _ in reference.steps]
    for (_, scores), (_, expected) in zip(ear.steps, reference.steps, strict=True):
        torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


# The simulated clock.


@pytest.mark.parametrize("fps", [0.5, 2, 7, 30])
def test_a_simulated_session_is_generate_turn_by_turn(model, fps):
    frames, ear = frames_at(at_rate(fps, 8)), Ear()
    asks = [(QUESTIONS[0], 0.6), (QUESTIONS[1], 3.5), (QUESTIONS[2], 6.05)]
    session = open_session(model, iter(frames), system=SYSTEM, logits_processor=[ear])
    events = run(session, *asks)

    reference, by_itself = Reference(model, frames), None
    for answer, (question, at) in zip(answers(events), asks, strict=True):
        first = by_itself is None
        prompt = first_prompt(question, SYSTEM) if first else next_prompt(question, was_cut=not by_itself)
        expected = reference.ask(prompt, at, 6)
        assert (answer.ids, answer.token_times) == expected[:2] and answer.start_time == at
        assert str(answer.newest_frame_times) == str(expected[2])
        by_itself = answer.ids[-1] == END
    assert session.cache.said[0].tolist() == reference.said
    assert_same_scores(ear, reference.ear)
    assert_equals_one_forward(model, session, events, ear, frames)
    assert len({token for answer in answers(events) for token in answer.ids}) >= 6


def test_events_tell_everything_in_order(model):
    frames = frames_at(at_rate(5, 8))
    session = open_session(model, iter(frames))
    events = run(session, (QUESTIONS[0], 1.1), (QUESTIONS[1], 5.3))
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == [t for t, _ in frames]
    times = [event.time for event in events if not isinstance(event, ResponseEnded)]
    assert times == sorted(times)
    speaking = False
    for before, event in zip([None, *events], events, strict=False):
        if isinstance(event, ResponseStarted | ResponseEnded):
            assert speaking == isinstance(event, ResponseEnded)
            speaking = not speaking
        if isinstance(event, Token):
            assert speaking and event.frame_age >= 0
        if isinstance(event, Silence):
            assert not speaking and isinstance(before, FrameSeen) and before.time == event.time
    assert not speaking
    for answer in answers(events):
        spoken = [e for e in events if isinstance(e, Token) and e.time in answer.token_times]
        assert [token.id for token in spoken] == answer.ids
        assert [token.frame_time for token in spoken] == answer.newest_frame_times


def test_nothing_is_said_that_nobody_reads(model):
    made = []

    def frames():
        for frame in frames_at(at_rate(2, 8)):
            made.append(frame[0])
            yield frame

    session = open_session(model, frames())
    session.ask(QUESTIONS[0], at=1.0)
    assert made == []
    for event in session:
        if isinstance(event, FrameSeen):
            assert made[-1] <= event.t_sec + 0.5  # the frame after it, to know that it is not due
        if isinstance(event, Token):
            assert session.statistics().tokens == 1
            break
    session.close()


def test_hours(model):
    """Turns an hour apart, with frames between: times and positions grow, and nothing drifts."""
    times = [600.0 * k for k in range(25)]  # four hours
    frames, ear = frames_at(times), Ear()
    session = open_session(model, iter(frames), logits_processor=[ear], tokens_per_second=0.01)
    events = run(session, *[(question, 3600.5 * (1 + k)) for k, question in enumerate(QUESTIONS[:3])])
    assert [answer.start_time for answer in answers(events)] == [3600.5, 7201.0, 10801.5]
    assert_equals_one_forward(model, session, events, ear, frames)


@pytest.mark.parametrize("kind", ["stream", "images", "file", "path", "opened", "buffer", "bytes"])
def test_sources(model, tmp_path, kind):
    path = write_video(tmp_path / "clip.mp4", range(0, 2000, 250))
    images = [(t / 4, np.full((16, 16, 3), 20 * t, np.uint8)) for t in range(8)]
    sources = {
        "stream": lambda: PROCESSOR.stream(images),
        "images": lambda: images,
        "file": lambda: str(path),
        "path": lambda: path,
        "opened": lambda: path.open("rb"),
        "buffer": lambda: io.BytesIO(path.read_bytes()),
        "bytes": path.read_bytes,
    }
    with nothing_left_behind():
        source = sources[kind]()
        events = run(open_session(model, source, fps=2), (QUESTIONS[0], 0.5))
        if kind == "opened":
            source.close()  # it is the caller's
    every = 1 if kind == "stream" else 2
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == [t / 4 for t in range(0, 8, every)]
    assert len(answers(events)) == 1


def test_frames_without_times_have_the_rate_given(model):
    pixels = [pixels for _, pixels in frames_at(at_rate(4, 2))]
    events = run(open_session(model, iter(pixels), fps=4), (QUESTIONS[0], 0.5))
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == at_rate(4, 2)


# Interruptions.


def cut_after(count, question):
    """Asks when so many tokens have been told, once."""
    seen = itertools.count(1)

    def on_event(session, event):
        if isinstance(event, Token) and next(seen) == count:
            session.ask(question)

    return on_event


@pytest.mark.parametrize("count", range(1, 8))
def test_interrupted_at_every_token(model, count):
    """The answer of 7 tokens is cut after each; the last cut comes after its end."""
    system = SYSTEM if count % 2 else None
    frames, ear, start = frames_at(at_rate(3, 9)), Ear({0: 7}), 1.2
    session = open_session(model, iter(frames), system=system, logits_processor=[ear], max_new_tokens=7)
    events = run(session, (QUESTIONS[0], start), on_event=functools.partial(cut_after(count, QUESTIONS[1]), session))
    first, second = answers(events)
    reasons = [event.reason for event in events if isinstance(event, ResponseEnded)]
    assert len(first.ids) == count and reasons[0] == ("end" if count == 7 else "interrupted")
    assert second.start_time == start + (count - 1) / 2 == first.token_times[-1]

    # A conversation that was never interrupted: its first answer ends after so many tokens by their number.
    reference = Reference(model, frames)
    reference.ear = Ear({0: 7})
    expected, times, _ = reference.ask(first_prompt(QUESTIONS[0], system), start, count)
    assert (first.ids, first.token_times) == (expected, times)
    expected, times, newest = reference.ask(next_prompt(QUESTIONS[1], was_cut=count < 7), second.start_time, 7)
    assert (second.ids, second.token_times, second.newest_frame_times) == (expected, times, newest)
    assert_same_scores(ear, reference.ear)

    # History is what was delivered, the unfinished turn is closed once, and nothing else.
    delivered = [event.id for event in events if isinstance(event, Token)]
    assert delivered == first.ids + second.ids
    for kept in (session.cache.said, session.cache.history):
        assert kept[0].tolist() == reference.said
    assert session.cache.history_mask.all()
    closed = reference.said[: -len(second.ids)]
    assert closed.count(END) == 4  # of the system prompt, the two questions and the first answer
    assert_messages(session, events, system)
    assert_equals_one_forward(model, session, events, ear, frames)


def assert_messages(session, events, system):
    expected = [{"role": "system", "content": system}] if system else []
    for event in events:
        if isinstance(event, ResponseStarted):
            expected += [{"role": "user", "content": event.question}, {"role": "assistant", "content": ""}]
        if isinstance(event, Token):
            expected[-1]["content"] += event.text
    assert session.messages == expected


@pytest.mark.parametrize("count", [1, 4])
def test_an_interrupted_session_is_a_fresh_one_that_was_cut(model, count):
    """Another way to the same history: a session whose first answer a criterion of the caller's ends."""
    frames, ears, heard = frames_at(at_rate(3, 9)), (Ear(), Ear()), []
    session = open_session(model, iter(frames), logits_processor=[ears[0]])
    run(session, (QUESTIONS[0], 1.0), on_event=functools.partial(cut_after(count, QUESTIONS[1]), session))

    def cut(input_ids, scores, **kwargs):
        return torch.tensor([len(heard) == count])

    def on_event(event):
        if isinstance(event, Token):
            heard.append(event)
        if isinstance(event, ResponseEnded) and event.answer.question == QUESTIONS[0]:
            assert event.reason == "end"
            fresh.ask(QUESTIONS[1])

    fresh = open_session(model, iter(frames), logits_processor=[ears[1]], stopping_criteria=[cut])
    events = run(fresh, (QUESTIONS[0], 1.0), on_event=on_event)
    assert [len(answer.ids) for answer in answers(events)] == [count, 6]
    assert fresh.cache.said.tolist() == session.cache.said.tolist() and fresh.messages == session.messages
    assert_same_scores(*ears)


def test_a_question_at_a_frame_waits_for_the_token_under_way(model):
    frames, ear = frames_at(at_rate(4, 8)), Ear()
    session = open_session(model, iter(frames), logits_processor=[ear])
    asked = []

    def on_event(event):
        if isinstance(event, FrameSeen) and event.t_sec == 2.0:
            session.ask(QUESTIONS[1])
            asked.append(event.time)

    events = run(session, (QUESTIONS[0], 1.2), on_event=on_event)
    first, second = answers(events)
    assert asked == [2.2] and first.token_times == [1.2, 1.7, 2.2] and second.start_time == 2.2
    assert_messages(session, events, None)
    assert_equals_one_forward(model, session, events, ear, frames)


def test_interrupted_again_and_again(model):
    """Every answer is cut after one more token than the one before, ten times."""
    frames, ear = frames_at(at_rate(3, 40)), Ear()
    session = open_session(model, iter(frames), logits_processor=[ear], max_new_tokens=30)
    spoken = Counter()

    def on_event(event):
        if isinstance(event, ResponseStarted):
            spoken["turn"], spoken["token"] = spoken["turn"] + 1, 0
        if isinstance(event, Token):
            spoken["token"] += 1
            if spoken["token"] == spoken["turn"] < 10:
                session.ask(f"{spoken['turn']} ?")

    events = run(session, (QUESTIONS[0], 1.0), on_event=on_event)
    assert [len(answer.ids) for answer in answers(events)] == [*range(1, 10), 30]
    assert session.cache.said[0].tolist().count(END) >= 1 + 2 * 9 + 1
    assert_messages(session, events, None)
    assert_equals_one_forward(model, session, events, ear, frames)


@pytest.fixture(scope="module")
def shipped():
    folder = tiny_checkpoint()
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_the_shipped_checkpoint_interrupted(shipped, count):
    model, processor = shipped
    world = World.sample(3, "train", duration=9.0)
    times = at_rate(2, 8)
    images = render([world], [times], size=48)[0].permute(0, 2, 3, 1).contiguous().numpy()
    frames = [(frame.t_sec, frame.pixel_values) for frame in processor.stream(list(zip(times, images, strict=True)))]
    ear, ears = Ear(), Ear()
    options = {"tokens_per_second": 2, "max_new_tokens": 7, "do_sample": False}
    session = StreamingSession(
        model, processor, list(zip(times, images, strict=True)), logits_processor=[ear], **options
    )
    asks = ("what do you see ?", "what is it doing ?")
    events = run(session, (asks[0], 1.5), on_event=functools.partial(cut_after(count, asks[1]), session))
    first, second = answers(events)
    assert len(first.ids) == count and first.text

    encode = functools.partial(processor.tokenizer, add_special_tokens=False)
    reference = Reference(model, frames)
    reference.ear = ears
    expected, *_ = reference.ask(encode(f"<user> {asks[0]} <assistant>")["input_ids"], 1.5, count)
    assert first.ids == expected
    ended = first.ids[-1] == processor.tokenizer.eos_token_id
    prompt = encode(f"<eos> <user> {asks[1]} <assistant>")["input_ids"]
    expected, times, newest = reference.ask(prompt[int(ended) :], second.start_time, 7)
    assert (second.ids, second.token_times, second.newest_frame_times) == (expected, times, newest)
    assert session.cache.said[0].tolist() == reference.said
    assert_same_scores(ear, ears)
    assert_messages(session, events, None)
    assert_equals_one_forward(model, session, events, ear, frames)


# When one may ask.


def test_questions_come_in_the_order_of_their_times(model):
    session = open_session(model, iter(frames_at(at_rate(2, 12))), max_new_tokens=2)
    events = run(session, ("c", 8.0), ("a", 1.0), ("b", 4.0))
    assert [(answer.question, answer.start_time) for answer in answers(events)] == [("a", 1.0), ("b", 4.0), ("c", 8.0)]


def test_of_two_that_are_due_the_earlier_one_comes_first(model):
    session = open_session(model, iter(frames_at([0.0, 5.0])))
    events = run(session, ("b", 1.4), ("a", 1.2), ("before", 0.0))
    assert [answer.question for answer in answers(events)] == ["before", "a", "b"]
    # The token after 1.0 s is spoken at 1.5 s: then both are due, and the second interrupts the first.
    assert [answer.token_times for answer in answers(events)][:2] == [[0.0, 0.5, 1.0, 1.5], [1.5]]


def test_a_time_that_has_passed_is_now_and_no_time_is_now(model):
    session = open_session(model, iter(frames_at(at_rate(1, 6))), max_new_tokens=1)

    def on_event(event):
        if isinstance(event, Silence) and event.time in (2.0, 4.0):
            session.ask(f"at {event.time}", None if event.time == 2.0 else 1.0)

    events = run(session, ("first", None), on_event=on_event)
    assert [(a.question, a.start_time) for a in answers(events)] == [("first", 0.0), ("at 2.0", 2.0), ("at 4.0", 4.0)]


def test_what_is_asked_at_the_last_moment_is_answered(model):
    session = open_session(model, iter(frames_at([0.0, 1.0])), max_new_tokens=2)
    asked = iter(["again ?", "and again ?"])

    def on_event(event):
        if (isinstance(event, Silence) and event.time == 1.0) or isinstance(event, ResponseEnded):
            for question in itertools.islice(asked, 1):
                session.ask(question)

    events = run(session, ("long after the end ?", 99.0), on_event=on_event)
    assert [answer.question for answer in answers(events)] == ["again ?", "and again ?", "long after the end ?"]
    assert answers(events)[-1].token_times == [99.0, 99.5]
    with pytest.raises(RuntimeError, match="the session has ended"):
        session.ask("too late ?")


def test_a_question_is_answered_or_refused_but_never_lost(model):
    """Even one that comes when the source has just ended."""
    session = open_session(model, iter(frames_at([0.0])), max_new_tokens=1)
    watch, questions = session._clock.watch, iter(["now ?"])

    def watch_and_ask(*args):
        arrivals = watch(*args)
        if arrivals is None:
            for question in questions:
                session.ask(question)
        return arrivals

    session._clock.watch = watch_and_ask
    assert [answer.question for answer in answers(run(session))] == ["now ?"]


def test_without_a_frame_the_answer_is_the_text_models(model):
    asks = [(QUESTIONS[0], None), (QUESTIONS[1], 20.0)]
    for tokens_per_second in (2, None):
        options = {"tokens_per_second": tokens_per_second, "max_new_tokens": 4}
        session = open_session(model, iter(()), **options)
        shorter = asks if tokens_per_second else [asks[0], (QUESTIONS[1], 0.3)]
        events = run(session, *shorter)
        assert [answer.question for answer in answers(events)] == [QUESTIONS[0], QUESTIONS[1]]
        said, count = session.cache.said, len(answers(events)[1].ids)
        alone = model.generate(said[:, :-count], max_new_tokens=4, do_sample=False)
        assert alone.tolist() == said.tolist()
        assert not [e for e in events if isinstance(e, FrameSeen)] and all(
            math.isnan(e.frame_age) for e in events if isinstance(e, Token)
        )
        assert session.statistics().token_frame_age is None
    assert run(open_session(model, iter(()))) == []


# Ends.


def test_reasons(model):
    frames = frames_at(at_rate(2, 4))

    def why(**options):
        events = run(open_session(model, iter(frames), **options), (QUESTIONS[0], 1.0))
        return [event.reason for event in events if isinstance(event, ResponseEnded)]

    free = answers(run(open_session(model, iter(frames)), (QUESTIONS[0], 1.0)))[0].ids
    assert len(set(free)) > 2 and END not in free
    assert why() == ["length"]
    assert why(logits_processor=[Ear({0: 6})]) == ["end"], "the last token that fits ends it"
    assert why(logits_processor=[Ear({0: 3})]) == ["end"]
    assert why(eos_token_id=free[2]) == ["end"]
    assert why(eos_token_id=[7, free[1]]) == ["end"]
    config = type(model.generation_config)(eos_token_id=free[1])
    assert why(generation_config=config) == ["end"]
    assert why(stopping_criteria=[lambda ids, scores, **_: torch.tensor([int(ids[0, -1]) == free[2]])]) == ["end"]


@pytest.mark.parametrize("at", [FrameSeen, Silence, ResponseStarted, Token, ResponseEnded])
@pytest.mark.parametrize("tokens_per_second", [2, None])
def test_closed_at_any_event_it_keeps_what_was_delivered(model, at, tokens_per_second):
    with nothing_left_behind():
        longest = 3 if at is ResponseEnded else 200
        session = open_session(
            model, iter(frames_at(at_rate(5, 20))), tokens_per_second=tokens_per_second, max_new_tokens=longest
        )
        session.ask(QUESTIONS[0], 0.6)
        events = []
        for event in session:
            events.append(event)
            speaking = any(isinstance(e, ResponseStarted) for e in events)
            if isinstance(event, at) and (speaking or at is Silence):
                session.close()
                session.close()
        assert list(session) == []
    delivered = [event for event in events if isinstance(event, Token)]
    if any(isinstance(event, ResponseStarted) for event in events):
        assert session.messages[0] == {"role": "user", "content": QUESTIONS[0]}
        assert "".join(m["content"] for m in session.messages[1:]) == "".join(token.text for token in delivered)
        said = session.cache.said[0].tolist()
        assert said == first_prompt(QUESTIONS[0]) + [token.id for token in delivered]
        assert session.cache.history[0].tolist() == said
    assert session.statistics().tokens == len(delivered)
    with pytest.raises(RuntimeError, match="the session has ended"):
        session.ask("too late ?")


def test_control_c_while_nothing_happens(model):
    """It reaches the reader at once, and the block closes the session."""
    with nothing_left_behind():
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt), open_session(model, silent_camera(), tokens_per_second=None) as session:
            assert [type(next(session)) for _ in range(2)] == [FrameSeen, Silence]
            later(0.2, signal.pthread_kill, threading.main_thread().ident, signal.SIGINT)
            next(session)
        assert time.monotonic() - began < 10 and list(session) == []


def test_never_begun_and_closed(model):
    with nothing_left_behind():
        session = open_session(model, iter(frames_at([0.0])), tokens_per_second=None)
        assert session.statistics().seconds == 0
        session.ask("anybody ?")
        session.close()
        assert list(session) == []


@pytest.mark.parametrize("end", ["close", "error"])
def test_the_source_is_closed_even_while_it_is_at_work(model, end):
    closed = threading.Event()

    def pictures():
        try:
            for k in itertools.count():
                yield 0.1 * k, torch.zeros(3, 16, 16)
                time.sleep(0.05 * bool(k))
        finally:
            closed.set()

    with nothing_left_behind():
        session = open_session(model, pictures(), tokens_per_second=None, typo=1)
        while not isinstance(event := next(session), FrameSeen) or event.t_sec < 0.2:
            pass
        if end == "close":
            session.close()
        else:
            session.ask(QUESTIONS[0])
            with pytest.raises(ValueError, match="typo"):
                list(session)
        assert closed.is_set()


def later(seconds, function, *args):
    timer = threading.Timer(seconds, function, args)
    timer.start()
    return timer


def silent_camera(frames=1):
    """One frame, and then nothing for a long time."""
    return Camera([pixels for _, pixels in frames_at([0.0] * (frames + 1))], [0.0] * frames + [20.0])


def test_closing_from_another_thread_ends_the_waiting_in_silence(model):
    with nothing_left_behind():
        session = open_session(model, silent_camera(), tokens_per_second=None)
        closer, began = later(0.3, session.close), time.monotonic()
        events = list(session)
        closer.join()
        assert [type(event) for event in events] == [FrameSeen, Silence] and time.monotonic() - began < 10


def test_closing_ends_the_waiting_for_a_first_frame(model):
    with nothing_left_behind():
        session = open_session(model, silent_camera(0), tokens_per_second=None)
        session.ask(QUESTIONS[0])
        closer, began = later(0.3, session.close), time.monotonic()
        events = list(session)
        closer.join()
        assert [type(event) for event in events] == [ResponseStarted] and time.monotonic() - began < 10
        assert session.messages == [{"role": "user", "content": QUESTIONS[0]}]


def test_a_question_from_another_thread_ends_the_silence(model):
    with nothing_left_behind(), open_session(model, silent_camera(), tokens_per_second=None) as session:
        assert [type(next(session)) for _ in range(2)] == [FrameSeen, Silence]
        asker, began = later(0.2, session.ask, QUESTIONS[0]), time.monotonic()
        assert isinstance(next(session), ResponseStarted) and time.monotonic() - began < 10
        asker.join()


def test_a_question_may_be_set_before_one_that_is_waited_for(model):
    with nothing_left_behind(), open_session(model, silent_camera(), tokens_per_second=None) as session:
        session.ask("much later ?", at=60.0)
        assert [type(next(session)) for _ in range(2)] == [FrameSeen, Silence]
        asker = later(0.2, lambda: session.ask("soon ?", at=session.statistics().seconds + 0.2))
        began = time.monotonic()
        event = next(session)
        asker.join()
        assert isinstance(event, ResponseStarted) and event.question == "soon ?"
        assert time.monotonic() - began < 10


@pytest.mark.parametrize("tokens_per_second", [2, None])
def test_a_source_may_close_the_session_that_reads_it(model, tokens_per_second):
    def frames():
        yield from frames_at([0.0])
        session.close()
        yield from frames_at([0.1])

    with nothing_left_behind():
        session = open_session(model, frames(), tokens_per_second=tokens_per_second)
        assert len(list(session)) <= 2
        session.close()


def test_a_camera_may_close_the_session_that_reads_it(model):
    class Closing(Camera):
        def __next__(self):
            session.close()
            time.sleep(0.02)  # the session has ended, and the camera is still at work
            return super().__next__()

    with nothing_left_behind():
        session = open_session(model, Closing([torch.zeros(3, 16, 16)], [0.0]), tokens_per_second=None)
        assert list(session) == []
        session.close()


# Async.


def test_async_for_tells_the_same(model):
    def session():
        session = open_session(model, iter(frames_at(at_rate(3, 8))))
        session.ask(QUESTIONS[0], 1.0)
        session.ask(QUESTIONS[1], 2.0)
        return session

    async def main():
        async with session() as watched:
            return [event async for event in watched]

    with nothing_left_behind():
        asynchronous = asyncio.run(main())
        assert told(asynchronous) == told(session())


def test_async_with_closes(model):
    camera = silent_camera()

    async def main():
        async with open_session(model, camera, tokens_per_second=None) as session:
            assert isinstance(await anext(session), FrameSeen)
        with pytest.raises(StopAsyncIteration):
            await anext(session)

    with nothing_left_behind():
        asyncio.run(main())
    assert camera.closed.is_set()


def test_a_coroutine_asks_while_another_listens(model):
    async def main():
        async with open_session(model, silent_camera(), tokens_per_second=None, max_new_tokens=3) as session:
            events = []

            async def listen():
                async for event in session:
                    events.append(event)
                    if isinstance(event, ResponseEnded):
                        break

            listener = asyncio.create_task(listen())
            await asyncio.sleep(0.1)
            session.ask(QUESTIONS[0])
            await asyncio.wait_for(listener, 20)
            return events

    with nothing_left_behind():
        assert len(answers(asyncio.run(main()))) == 1


def test_a_cancelled_listener_loses_no_event(model):
    async def main():
        async with open_session(model, silent_camera(), tokens_per_second=None, max_new_tokens=3) as session:
            events = [await anext(session), await anext(session)]
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(anext(session), 0.03)
            session.ask(QUESTIONS[0])
            await asyncio.sleep(0.2)  # the event is there before anybody waits
            while not isinstance(events[-1], ResponseEnded):
                events.append(await anext(session))
            return [type(event) for event in events]

    with nothing_left_behind():
        expected = [FrameSeen, Silence, ResponseStarted, Token, Token, Token, ResponseEnded]
        assert asyncio.run(main()) == expected


def test_an_event_that_nobody_came_for_was_not_delivered(model):
    """The listener is cancelled while a token is made, and the session closed: that token is not history."""
    gate = threading.Event()

    def slow(input_ids, scores):
        assert gate.wait(10)
        return scores

    async def main():
        async with open_session(model, iter(frames_at([0.0, 60.0])), logits_processor=[slow]) as session:
            session.ask(QUESTIONS[0])
            events = [await anext(session), await anext(session)]
            assert [type(event) for event in events] == [ResponseStarted, FrameSeen]
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(session), 0.1)
            gate.set()
            await asyncio.sleep(0.3)
        return session

    with nothing_left_behind():
        session = asyncio.run(main())
    assert session.cache.said[0].tolist() == first_prompt(QUESTIONS[0])
    assert session.messages == [{"role": "user", "content": QUESTIONS[0]}] and session.statistics().tokens == 0


def test_many_sessions_wait_in_one_loop(model):
    """More than an event loop has threads for."""

    async def main():
        sessions = [open_session(model, silent_camera(), tokens_per_second=None) for _ in range(40)]

        silent = asyncio.Semaphore(0)

        async def watch(session):
            async with session:
                assert [type(await anext(session)) for _ in range(2)] == [FrameSeen, Silence]
                silent.release()
                return await asyncio.wait_for(anext(session), 60)

        watchers = [asyncio.create_task(watch(session)) for session in sessions]
        for _ in sessions:
            await silent.acquire()
        for session in sessions:
            session.ask(QUESTIONS[0])
        return await asyncio.gather(*watchers)

    with nothing_left_behind():
        assert all(isinstance(event, ResponseStarted) for event in asyncio.run(main()))


# Numbers.


def test_statistics_are_what_the_events_say(model):
    session = open_session(model, iter(frames_at(at_rate(3, 12))))
    asked, heard = time.monotonic(), []

    def on_event(event):
        if isinstance(event, Token):
            heard.append(time.monotonic() - asked)
            assert session.statistics().tokens == len(heard)
        if isinstance(event, ResponseEnded):
            time.sleep(0.05)

    events = run(session, (QUESTIONS[0], None), (QUESTIONS[1], 6.2), on_event=on_event)
    statistics, seen = session.statistics(), [event for event in events if isinstance(event, FrameSeen)]
    spoken = [event for event in events if isinstance(event, Token)]
    assert (statistics.turns, statistics.tokens) == (2, len(spoken)) == (2, 12)
    assert (statistics.frames_seen, statistics.frames_encoded, statistics.frames_dropped) == (37, 37, 0)
    assert statistics.seconds == 12.0 and statistics.reconnects == 0 and len(seen) == 37
    for spread, values in (
        (statistics.frame_age, [event.age for event in seen]),
        (statistics.token_frame_age, [event.frame_age for event in spoken]),
    ):
        p50, p95, maximum = np.percentile(values, [50, 95, 100])
        assert (spread.p50, spread.p95, spread.maximum) == pytest.approx((p50, p95, maximum))
    assert 0 < statistics.first_token_latency.maximum <= max(heard[0], heard[6] - heard[5])
    assert statistics.tokens_per_second > 0
    assert statistics.visual_bytes == session.cache.visual_bytes > 0
    assert statistics.text_tokens == session.cache.said.shape[1] - 1


def test_what_the_caller_does_is_not_the_models_time(model):
    session = open_session(model, iter(frames_at([0.0])), logits_processor=[Ear(pace=0.01)])

    def on_event(event):
        if isinstance(event, Token):
            time.sleep(0.2)

    run(session, (QUESTIONS[0], None), on_event=on_event)
    assert 1 / 0.2 < session.statistics().tokens_per_second <= 100


def test_a_question_of_later_is_late_only_after_its_time(model):
    session = open_session(model, iter(frames_at([0.0])), tokens_per_second=None, max_new_tokens=1)
    run(session, (QUESTIONS[0], 1.0))
    assert session.statistics().first_token_latency.maximum < 0.7


def test_time_stands_still_after_the_end(model):
    session = open_session(model, iter(frames_at([0.0, 0.1])), tokens_per_second=None)
    run(session)
    seconds = session.statistics().seconds
    time.sleep(0.05)
    assert session.statistics().seconds == seconds >= 0.1


# Arguments and surroundings.


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"policy": "whenever"}, ValueError, "policy='whenever' must be one of on-question"),
        ({"backpressure": "never"}, ValueError, "backpressure='never' must be one of block, drop_oldest, latest"),
        ({"tokens_per_second": 0}, ValueError, "tokens_per_second=0 must be positive"),
        ({"fps": 0}, ValueError, "fps must be a positive number, not 0"),
        ({"fps": math.nan}, ValueError, "fps must be a positive number, not nan"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0 must be positive"),
        ({"max_new_tokens": 50, "max_text_tokens": 50}, ValueError, "leave room in max_text_tokens=50"),
        ({"streamer": print, "frames": None}, TypeError, "frames: the session says itself"),
    ],
)
def test_arguments_that_do_not_fit(model, change, error, message):
    with nothing_left_behind(), pytest.raises(error, match=message):
        open_session(model, iter(frames_at([0.0])), **change)


def test_an_argument_that_generate_does_not_know_ends_the_session(model):
    with nothing_left_behind():
        session = open_session(model, iter(frames_at([0.0])), typo=1)
        with pytest.raises(ValueError, match="typo"):
            run(session, (QUESTIONS[0], None))
        assert list(session) == []


@pytest.mark.parametrize("tokens_per_second", [2, None])
def test_it_computes_as_the_thread_that_reads_it(model, tokens_per_second):
    """Autocast and inference mode are a thread's own, and the session has threads of its own."""
    frames = frames_at([0.0])
    ear, reference = Ear(), Reference(model, frames)
    session = open_session(
        model, iter(frames), logits_processor=[ear], tokens_per_second=tokens_per_second, max_new_tokens=3
    )
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        run(session, (QUESTIONS[0], None))
        reference.ask(first_prompt(QUESTIONS[0]), 0.0, 3)
    assert_same_scores(ear, reference.ear)
    plain = Reference(model, frames)
    plain.ask(first_prompt(QUESTIONS[0]), 0.0, 3)
    assert (plain.ear.steps[0][1] - ear.steps[0][1]).abs().max() > 1e-3


def test_sampling_is_repeatable(model):
    def sample():
        torch.manual_seed(4)
        session = open_session(model, iter(frames_at(at_rate(2, 6))), do_sample=True, temperature=2.0)
        return answers(run(session, (QUESTIONS[0], 0.5), (QUESTIONS[1], 2.0)))

    assert told(sample()) == told(sample())


def test_a_static_cache_says_the_same(model):
    """Also where the oldest turns have to be forgotten, because no more text fits."""
    told, sizes = [], []
    for options in ({}, {"cache_implementation": "static"}):
        session = open_session(model, iter(frames_at(at_rate(2, 20))), max_text_tokens=100, **options)
        events = run(session, *[(question, 1.0 + 5 * k) for k, question in enumerate(QUESTIONS)])
        told.append([str(event) for event in events])
        sizes.append(session.statistics().text_tokens)
        assert len(session.messages) < 8 and sizes[-1] <= 100
    assert told[0] == told[1] and sizes[0] == sizes[1]
    assert type(session.cache).__name__ == "StaticStreamingCache"
