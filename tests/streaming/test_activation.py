"""The policy "activation": a second model says when to answer, beside talkers of every kind, over one source."""

import re
import threading
from types import SimpleNamespace

import pytest
import torch

import activation_helpers
import bridge_helpers
from activation_watcher_helpers import Bell, images
from live_loop_helpers import live_model, live_processor
from session_helpers import Camera, answers, chat_model, chat_processor, nothing_left_behind
from streamchat_hf.streaming.activation import SharedFrames, open_watcher
from streamchat_hf.streaming.activation_watcher import ActivationWatcher
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, ResponseStarted, Silence
from streamchat_hf.streaming.recording import Recording
from streamchat_hf.streaming.session import StreamingSession

KINDS = ("streamchat", "videollm-online", "bridge")
TIMES = [0.5 * k for k in range(12)]


def talker(kind):
    """A model of a kind with random weights, and its processor."""
    if kind == "streamchat":
        return chat_model(), chat_processor()
    if kind == "videollm-online":
        processor = live_processor()
        return live_model(processor), processor
    bridge = bridge_helpers.tiny_bridge()
    return bridge, bridge.processor


def session(kind, bell, source=None, **options):
    options = {"tokens_per_second": 8.0, "fps": 2.0, "max_new_tokens": 3, "do_sample": False, **options}
    source = images(TIMES) if source is None else source
    return StreamingSession(*talker(kind), source, activation=bell, **options)


def run(kind, bell, asked=(("what is it ?", 0.0),), **options):
    with session(kind, bell, **options) as held:
        for question in asked:
            held.ask(*question)
        events = list(held)
    return held, events


def spoken_texts(held):
    """What was said, as the conversation has it."""
    return [whole(message["content"]) for message in held.messages if message["role"] == "assistant"]


def whole(text):
    """A text without what is half a character at its end."""
    return text.strip().rstrip("\ufffd ")


def heard(bell):
    """The answers that a watcher has heard."""
    return [whole(text) for kind, text in bell.heard if kind == "said"]


def starts(events):
    return [(event.question, event.time) for event in events if isinstance(event, ResponseStarted)]


@pytest.mark.parametrize(("asked", "seen"), [(None, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), (2.0, TIMES)])
def test_frames_come_at_the_rate_that_the_watcher_has_learnt(asked, seen):
    bell = Bell(fps=1.0)
    run("streamchat", bell, fps=asked)
    assert bell.watched == seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_talker_speaks_when_and_only_when_the_watcher_says_so(kind):
    bell = Bell([1.5, 4.0])
    held, events = run(kind, bell)
    assert held.policy == "activation"
    assert starts(events) == [("what is it ?", 1.5), ("what is it ?", 4.0)]
    said = answers(events)
    assert all(answer.ids and answer.question == "what is it ?" for answer in said)
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == TIMES == bell.watched
    assert bell.heard[0] == ("ask", "what is it ?") and heard(bell) == spoken_texts(held)
    at = [kind for kind, _ in bell.heard].index("said")
    assert bell.heard[at - 1] == ("watch", [1.5]), "an answer is heard right after the frame that it answers"


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_question_it_is_never_time_to_answer(kind):
    _, events = run(kind, Bell(TIMES), asked=())
    assert starts(events) == []
    assert sum(isinstance(event, Silence) for event in events) == len(TIMES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_before_any_frame_waits_for_them(kind):
    bell = Bell([0.0])
    held, events = run(kind, bell, asked=[("early ?", None)])
    assert bell.heard[0] == ("ask", "early ?") and starts(events) == [("early ?", 0.0)]
    asked = [message["content"] for message in held.messages if message["role"] == "user"]
    assert asked == ["early ?"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_session_without_frames_answers_nothing(kind):
    _, events = run(kind, Bell([0.0]), source=[])
    assert events == []


@pytest.mark.parametrize("kind", KINDS)
def test_of_two_questions_at_once_the_last_one_stands(kind):
    bell = Bell([2.0])
    held, events = run(kind, bell, asked=[("first ?", 1.0), ("second ?", 1.0)])
    assert [what for what in bell.heard if what[0] == "ask"] == [("ask", "first ?"), ("ask", "second ?")]
    assert starts(events) == [("second ?", 2.0)]
    asked = [message["content"] for message in held.messages if message["role"] == "user"]
    # Whoever reads the conversation as it goes on has heard both; StreamChat is only asked what it answers.
    assert asked == (["second ?"] if kind == "streamchat" else ["first ?", "second ?"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_cannot_hold_a_frame_of_either_model(kind):
    with session(kind, Bell()) as held:
        for word in held._talker.frame_words:
            with pytest.raises(ValueError, match=f"{re.escape(word)} stands for a frame"):
                held.ask(f"what is {word} ?")
        assert "<bell>" in held._talker.frame_words


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_interrupts_the_answer_under_way_and_takes_its_place(kind):
    bell = Bell([1.0, 3.0])
    with session(kind, bell, max_new_tokens=12, eos_token_id=None) as held:
        held.ask("first ?")
        held.ask("second ?", at=1.25)
        events = list(held)
    first, second = [event for event in events if isinstance(event, ResponseEnded)]
    assert first.reason == "interrupted" and 1 <= len(first.answer.ids) <= 3
    assert second.answer.question == "second ?" and second.answer.start_time == 3.0
    assert heard(bell) == spoken_texts(held)
    # Frames that came while it spoke lie before the second question and are not shown for it.
    at = bell.heard.index(("ask", "second ?"))
    assert all(time > 1.0 for kind, what in bell.heard[at:] if kind == "watch" for time in what)


def test_streamchat_is_asked_again_and_the_others_go_on():
    for kind, count in (("streamchat", 2), ("videollm-online", 1), ("bridge", 1)):
        held, _ = run(kind, Bell([1.0, 3.0]))
        roles = [message["role"] for message in held.messages if message["role"] != "system"]
        assert roles.count("user") == count and roles.count("assistant") == 2


def test_frames_that_streamchat_takes_while_it_speaks_are_watched_too():
    bell = Bell([1.0])
    run("streamchat", bell, tokens_per_second=1.0, max_new_tokens=4, eos_token_id=None)
    assert bell.watched == TIMES
    taken = next(what for kind, what in bell.heard if kind == "watch" and len(what) > 1)
    assert taken[0] == 1.5, "those that came meanwhile come with the next one"


def test_frames_that_were_taken_before_a_question_do_not_count_for_it():
    bell = Bell([1.0, 1.5])
    options = {"tokens_per_second": 1.0, "max_new_tokens": 9, "eos_token_id": None}
    _, events = run("streamchat", bell, asked=[("first ?", 0.0), ("second ?", 1.6)], **options)
    # Its second token comes at 2.0, with the frames of 1.5 and 2.0, and is the last one.
    assert starts(events) == [("first ?", 1.0)]
    at = bell.heard.index(("ask", "second ?"))
    assert bell.heard[at + 1] == ("watch", [2.5])


@pytest.mark.parametrize("kind", KINDS)
def test_one_source_is_prepared_for_both_models(kind):
    bell, source = Bell(side=6), images(TIMES)
    run(kind, bell, source=source)
    expected = [bell.processor.video_processor.preprocess_frame(image) for _, image in source]
    assert len(bell.shown) == len(source)
    assert all(torch.equal(a, b) for a, b in zip(bell.shown, expected, strict=True))


def test_pixels_that_are_ready_feed_both_only_if_they_fit():
    pixels = [(t, torch.zeros(3, 16, 16)) for t in TIMES]
    bell = Bell([1.0], side=16)
    _, events = run("streamchat", bell, source=iter(pixels))
    assert starts(events) and len(bell.shown) == len(TIMES)
    with (
        pytest.raises(RuntimeError, match="the activation model sees frames of 8 x 8, not of 16 x 16: give"),
        session("streamchat", Bell(), source=iter(pixels)) as held,
    ):
        list(held)


def test_under_the_wall_clock_both_are_fed_in_the_thread_that_reads():
    pixels = [torch.zeros(3, 16, 16) for _ in range(12)]
    bell, threads = Bell(side=16), set()
    encode = bell.encode_frames
    bell.encode_frames = lambda *args: threads.add(threading.current_thread().name) or encode(*args)
    bell.watch = lambda frames: bell.heard.append(("watch", [f.t_sec for f in frames])) or len(bell.heard) == 4
    options = {"tokens_per_second": None, "backpressure": "block", "fps": None}
    with nothing_left_behind(), session("streamchat", bell, Camera(pixels, [0.01] * 12), **options) as held:
        held.ask("what is it ?")
        events = list(held)
    seen = [event.t_sec for event in events if isinstance(event, FrameSeen)]
    assert len(bell.shown) == 12 and threads == {"streamchat encode"}
    assert bell.watched == [t for t in seen if t <= bell.watched[-1]]
    assert len(answers(events)) == 1


def test_a_watcher_that_fails_ends_the_session_with_its_reason():
    bell = Bell(side=16)

    def broken(frames, state):
        raise ValueError("no such weights")

    bell.encode_frames = broken
    with session("streamchat", bell) as held, pytest.raises(RuntimeError, match="no such weights"):
        list(held)


def test_a_broken_source_is_named_as_ever(tmp_path):
    path = tmp_path / "broken.mp4"
    path.write_bytes(b"no video")
    with session("streamchat", Bell(), str(path)) as held, pytest.raises(RuntimeError, match="broken.mp4"):
        list(held)


def test_who_wants_the_policy_needs_a_model_for_it():
    with pytest.raises(ValueError, match="policy='activation' needs an activation model"):
        session("streamchat", None, policy="activation")
    with session("streamchat", Bell(), policy="on-question") as held:
        held.ask("now ?")
        assert starts(list(held)) == [("now ?", 0.0)]
    with pytest.raises(ValueError, match="policy='streaming-eos' must be one of activation, on-question"):
        session("streamchat", Bell(), policy="streaming-eos")


def test_it_is_neither_recorded_nor_played_back(tmp_path):
    with pytest.raises(ValueError, match="can be neither recorded nor played back"):
        session("streamchat", Bell(), record=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with session("streamchat", None, record=tmp_path / "b") as held:
        held.ask("now ?")
        list(held)
    with pytest.raises(ValueError, match="can be neither recorded nor played back"):
        session("streamchat", Bell(), source=Recording(tmp_path / "b"))


def activation():
    processor = activation_helpers.world_processor()
    return activation_helpers.world_model(processor, threshold=0.5), processor


@pytest.mark.parametrize("kind", KINDS)
def test_a_real_watcher_gives_the_same_alarms_as_alone(kind):
    model, processor = activation()
    source = images(TIMES, side=48)
    held, events = run(kind, (model, processor), source=source, asked=[("say the colour once .", 0.0)])
    alone, expected = ActivationWatcher(model, processor), []
    spoken = iter(spoken_texts(held))
    alone.ask("say the colour once .")
    for t, image in source:
        if alone.watch([(t, processor.video_processor.preprocess_frame(image))]):
            expected.append(t)
            alone.said(next(spoken))
    assert [time for _, time in starts(events)] == expected != []


def test_every_session_of_a_bridge_has_a_watcher_to_itself():
    model, processor = activation()
    bridge = bridge_helpers.tiny_bridge(activation=ActivationWatcher(model, processor, 0.25))
    options = {"tokens_per_second": 8.0, "fps": 2.0, "max_new_tokens": 2}
    for asked in (True, False):
        with StreamingSession(bridge, bridge.processor, images(TIMES), **options) as held:
            assert held.policy == "activation"
            if asked:
                held.ask("what is it ?")
            assert bool(starts(list(held))) == asked
    watcher = open_watcher(bridge, None)
    assert watcher.question is None and watcher.threshold == 0.25
    watcher.ask("used")
    with pytest.raises(ValueError, match="another session"):
        open_watcher(bridge, watcher)


def test_shared_frames_leave_other_sources_alone():
    shared = SharedFrames(Bell())
    plain = SimpleNamespace()
    shared.look_at(plain)
    assert vars(plain) == {}
    shared.encode_with(lambda frames, cache: (frames, cache))([(t, torch.zeros(3, 8, 8)) for t in (0.0, 1.0, 1.0)], 0)
    assert [frame.t_sec for frame in shared.take_until(0.5)] == [0.0]
    assert [frame.t_sec for frame in shared.take_until(1.0)] == [1.0, 1.0]
    assert shared.take_until(float("nan")) == []
