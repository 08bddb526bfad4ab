"""A session with a model that chooses when to speak: its events are those of its loop, whoever asks it and when."""

import threading
from itertools import pairwise

import pytest
import torch

from live_loop_helpers import Spy, live_model, live_processor, whole
from session_helpers import Camera, answers, chat_model, chat_processor, nothing_left_behind
from streamchat_hf import StreamingSession
from streamchat_hf.streaming.answer import Answer
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, ResponseStarted, Silence, Token
from streamchat_hf.streaming.recording import Recording
from videollm_online_helpers import pixels

SYSTEM, QUESTION = "look .", "what is it?"
FRAME = "<v>" * 5
BEGINNING = f"<|begin_of_text|>{SYSTEM}\n\n["
ANSWERING = f"User: {QUESTION}\nAssistant:"
SILENT, TALKATIVE = 1e-12, 1.0  # thresholds


@pytest.fixture(scope="module")
def processor():
    return live_processor(SYSTEM)


@pytest.fixture
def model(processor):
    return live_model(processor)


@pytest.fixture
def open_session(model, processor):
    def opened(source, **options):
        defaults = {"tokens_per_second": 4, "max_new_tokens": 3, "do_sample": False, "threshold": SILENT}
        return StreamingSession(model, processor, source, **defaults | options)

    return opened


@pytest.fixture
def sometimes(model, processor) -> float:
    """A threshold under which some frames pass in silence and others do not."""
    cache = model.new_cache()
    cache.hear(written(processor, BEGINNING))
    model.refresh_visual(cache, list(frames(12)), SILENT)
    return sorted(cache.silence)[6]


def frames(count: int, fps: float = 2.0):
    return iter([(i / fps, picture) for i, picture in enumerate(pixels(count))])


def run(session, *asks, on_event=None) -> list:
    for question, at in asks:
        session.ask(question, at)
    events = []
    with nothing_left_behind(), session:
        for event in session:
            events.append(event)
            if on_event is not None:
                on_event(event)
    return events


def read(session) -> list[int]:
    """All that the model has read and will read next."""
    return session.cache.ids + session.cache.pending


def written(processor, beginning: str, *parts: str | Answer) -> list[int]:
    """The same, written out by hand: texts, and answers with the token that ends them."""
    ids, end = processor.tokenizer(beginning, add_special_tokens=False)["input_ids"], processor.tokenizer.eos_token_id
    for part in parts:
        if isinstance(part, str):
            ids += processor.piece_ids(part)
        else:
            ids += part.ids + [end] * (part.ids[-1] != end)
    return ids


def kinds(events: list) -> str:
    letters = {FrameSeen: "f", Silence: "-", ResponseStarted: "(", Token: "t", ResponseEnded: ")"}
    return "".join(letters[type(event)] for event in events)


def test_silence_and_speech(open_session):
    assert kinds(run(open_session(frames(3)))) == "f-f-f-"
    events = run(open_session(frames(2), threshold=TALKATIVE, tokens_per_second=100, max_new_tokens=2))
    assert kinds(events).replace("tt", "t") == "f(t)f(t)"
    started = [event for event in events if isinstance(event, ResponseStarted)]
    assert [(event.question, event.time) for event in started] == [("", 0.0), ("", 0.5)]
    assert [answer.question for answer in answers(events)] == ["", ""]


def test_events_tell_everything_in_order(open_session, sometimes):
    events = run(open_session(frames(12), threshold=sometimes), (QUESTION, 1.1), ("and now?", 3.0))
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == [i / 2 for i in range(12)]
    times = [event.time for event in events if not isinstance(event, ResponseEnded)]
    assert times == sorted(times)
    for before, event in pairwise(events):
        if isinstance(event, Token):
            assert isinstance(before, ResponseStarted | Token)
            assert event.frame_age >= 0
        if isinstance(event, Silence):
            assert isinstance(before, FrameSeen)
    asked = [(answer.question, answer.start_time) for answer in answers(events) if answer.question]
    assert [question for question, _ in asked] == [QUESTION, "and now?"]
    assert any(not answer.question for answer in answers(events))
    assert any(isinstance(event, Silence) for event in events)


@pytest.mark.parametrize("threshold", [SILENT, "sometimes", TALKATIVE])
def test_a_session_equals_one_forward(model, open_session, sometimes, threshold):
    spy = Spy(model)
    session = open_session(frames(10), threshold=sometimes if threshold == "sometimes" else threshold)
    events = run(session, (QUESTION, 0.7), ("and now?", 0.8), ("why?", 3.1))
    expected = whole(model, torch.tensor([read(session)]), 10)
    tokens = [event.id for event in events if isinstance(event, Token)]
    assert len(spy.logits) == 10 + len(tokens)
    for place, logits in spy.logits.items():
        torch.testing.assert_close(logits, expected[place], atol=1e-4, rtol=0)
    assert session.statistics().tokens == len(tokens)
    assert session.statistics().text_tokens == len(session.cache.ids)


def test_a_question_while_it_watches(open_session, processor):
    session = open_session(frames(3))
    [answer] = answers(run(session, (QUESTION, 0.7)))
    parts = (f"{BEGINNING}{FRAME},{FRAME}", f"]\n{ANSWERING}", answer, f"\n[{FRAME}")
    assert read(session) == written(processor, *parts)
    assert answer.start_time == 0.7
    assert set(answer.newest_frame_times) == {0.5}


@pytest.mark.parametrize(("count", "watched"), [(2, [f"\n[{FRAME},{FRAME}"]), (0, [])])
def test_a_question_before_any_frame(open_session, processor, count, watched):
    session = open_session(frames(count))
    [answer] = answers(run(session, (QUESTION, None)))
    assert read(session) == written(processor, f"<|begin_of_text|>{SYSTEM}\n\n{ANSWERING}", answer, *watched)


def test_a_question_right_after_an_answer(open_session, processor):
    session, asks = open_session(frames(1), threshold=TALKATIVE), [QUESTION]
    events = run(session, on_event=lambda event: isinstance(event, ResponseEnded) and asks and session.ask(asks.pop()))
    first, second = answers(events)
    parts = (f"{BEGINNING}{FRAME}", "]\nAssistant:", first, f"\n{ANSWERING}", second)
    assert read(session) == written(processor, *parts)


@pytest.mark.parametrize("at", [0.0, 2.25])
def test_a_question_that_stands_is_not_answered_at_once(open_session, processor, sometimes, at):
    session = open_session(frames(12), threshold=sometimes)
    session.ask(QUESTION, at, stands=True)
    events = run(session)
    started = [(event.question, event.time) for event in events if isinstance(event, ResponseStarted)]
    assert len(started) > 1 and all(question == (QUESTION if time >= at else "") for question, time in started)
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == [i / 2 for i in range(12)]
    said = processor.tokenizer.decode(session.cache.ids)
    assert f"User: {QUESTION}\n[" in said and "\nAssistant:" not in said.replace("]\nAssistant:", "")


def test_a_question_that_nothing_would_answer(open_session):
    with (
        open_session(frames(2), policy="on-question") as session,
        pytest.raises(ValueError, match="a question that stands would never be answered"),
    ):
        session.ask(QUESTION, stands=True)


def test_a_question_cannot_hold_a_frame_and_the_session_goes_on(open_session):
    with nothing_left_behind(), open_session(frames(2)) as session:
        with pytest.raises(ValueError, match="<v> stands for a frame, a question cannot hold it: 'what is <v>"):
            session.ask("what is <v> ?", at=0.5)
        session.ask(QUESTION, at=0.5)
        assert [answer.question for answer in answers(session)] == [QUESTION]


def test_a_question_in_the_middle_of_an_answer(model, open_session, processor):
    model.lm_head.register_forward_hook(  # never ends by itself
        lambda module, args, output: output.index_fill(-1, torch.tensor([processor.tokenizer.eos_token_id]), -50.0)
    )
    session = open_session(frames(1), threshold=TALKATIVE, max_new_tokens=50)
    spoken, asks = [], [QUESTION]

    def on_event(event):
        spoken.extend([event.id] if isinstance(event, Token) else [])
        if len(spoken) == 4 and asks:
            session.ask(asks.pop())

    events = run(session, on_event=on_event)
    first, second = [event for event in events if isinstance(event, ResponseEnded)]
    assert (first.reason, len(first.answer.ids), first.answer.question) == ("interrupted", 4, "")
    assert (second.reason, len(second.answer.ids), second.answer.question) == ("length", 50, QUESTION)
    parts = (f"{BEGINNING}{FRAME}", "]\nAssistant:", first.answer, f"\n{ANSWERING}", second.answer)
    assert read(session) == written(processor, *parts)


def test_policies(model, processor, open_session):
    asked_only = open_session(frames(3), threshold=TALKATIVE, policy="on-question")
    assert kinds(run(asked_only, (QUESTION, 0.6))).replace("tt", "t").replace("tt", "t") == "f-f-(t)f-"
    assert open_session(frames(1)).policy == "streaming-eos"
    with pytest.raises(ValueError, match="policy='whenever' must be one of streaming-eos, on-question"):
        open_session(frames(1), policy="whenever")
    with pytest.raises(ValueError, match="policy='streaming-eos' must be one of on-question"):
        StreamingSession(chat_model(), chat_processor(), frames(1), policy="streaming-eos")


def test_what_is_forgotten_leaves_the_messages_too(open_session):
    session = open_session(frames(60), max_text_tokens=120, tokens_per_second=50)
    run(session, *((f"question {number}?", 3.0 * number or None) for number in range(9)))
    assert session.cache.max_context == 120
    assert len(session.cache.ids) <= 120
    messages = session.messages
    assert messages[:2] == [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "question 0?"}]
    assert {"role": "user", "content": "question 8?"} in messages
    assert 3 < len(messages) < 10


def test_wall_clock(open_session):
    session = open_session(Camera(pixels(5), [0.05] * 5), threshold=TALKATIVE, tokens_per_second=None)
    session.ask(QUESTION)
    events = run(session)
    assert kinds(events)[:2] == "(t"  # it answers before there is a frame
    assert sum(isinstance(event, FrameSeen) for event in events) >= 1
    statistics = session.statistics()
    assert statistics.frames_seen == 5
    assert statistics.first_token_latency.p50 > 0
    assert statistics.visual_bytes == session.cache.visual_bytes > 0


def test_a_recording_is_played_back_to_the_same_tokens(open_session, sometimes, tmp_path):
    session = open_session(
        Camera(pixels(6), [0.05] * 6),
        threshold=sometimes,
        tokens_per_second=None,
        record=tmp_path / "r",
        backpressure="block",
    )
    events = run(session, (QUESTION, 0.1))
    recording = Recording(tmp_path / "r")
    again = run(open_session(recording, threshold=sometimes, tokens_per_second=None))
    assert recording.tokens == [event.id for event in events if isinstance(event, Token)] != []
    assert [str(event) for event in again] == [str(event) for event in events]


def test_a_recorded_question_that_stands_stands_again(open_session, sometimes, tmp_path):
    session = open_session(frames(12), record=tmp_path, threshold=sometimes)
    session.ask(QUESTION, 2.25, stands=True)
    first = run(session)
    assert {event["kind"] for event in Recording(tmp_path).events} == {"standing", "silence", "token"}
    again = run(open_session(Recording(tmp_path), threshold=sometimes))
    assert [e for e in again if not isinstance(e, ResponseEnded)] == [
        e for e in first if not isinstance(e, ResponseEnded)
    ]
    assert [answer.ids for answer in answers(again)] == [answer.ids for answer in answers(first)] != []


def test_a_recording_that_ended_before_the_first_word(open_session, tmp_path):
    session = open_session(frames(2), threshold=TALKATIVE, record=tmp_path / "r")
    with session:
        for event in session:
            if isinstance(event, ResponseStarted):
                break
    again = run(open_session(Recording(tmp_path / "r"), threshold=TALKATIVE, tokens_per_second=None))
    assert kinds(again) == "f-"


@pytest.mark.parametrize("tokens_per_second", [4, None])
def test_a_broken_source_keeps_what_was_said(open_session, tokens_per_second):
    def broken():
        yield from frames(2, fps=20)
        raise OSError("the cable is out")

    session = open_session(broken(), threshold=TALKATIVE, tokens_per_second=tokens_per_second, backpressure="block")
    events = []
    with nothing_left_behind(), pytest.raises(RuntimeError, match="the cable is out") as caught:
        for event in session:
            events.append(event)
    said = [event.id for event in events if isinstance(event, Token)]
    assert said
    assert "".join(map(chr, said)) in "".join(map(chr, caught.value.partial[0].tolist())) or len(answers(events)) > 1


@pytest.mark.parametrize("at", [FrameSeen, ResponseStarted, Token, ResponseEnded])
def test_closed_at_any_event_it_keeps_what_was_delivered(open_session, processor, at):
    session = open_session(frames(8), threshold=TALKATIVE, max_new_tokens=20)
    events = []
    with nothing_left_behind():
        for event in session:
            events.append(event)
            if isinstance(event, at):
                session.close()
    said = [event.id for event in events if isinstance(event, Token)]
    ids = read(session)
    if at is not FrameSeen:
        assert ids[-1] == processor.tokenizer.eos_token_id
        assert ids[: -1 if said[-1:] != ids[-1:] else None][-len(said) or len(ids) :] == said
    assert session.statistics().tokens == len(said)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("streamchat")]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cache_implementation": "static"}, ValueError, "cache_implementation='static' does not work"),
        ({"num_beams": 3}, TypeError, "num_beams"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens=0 must be positive"),
        ({"typo": 1}, ValueError, "does not take typo"),
    ],
)
def test_arguments_that_do_not_fit(open_session, change, error, message):
    with nothing_left_behind(), pytest.raises(error, match=message):
        open_session(frames(1), **change)
