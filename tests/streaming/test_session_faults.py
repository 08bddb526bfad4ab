"""Sources that fail: one clear error with source and time, what was said is kept, and nothing stays behind."""

import itertools
import sys
import threading
import time

import pytest
import torch
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from session_helpers import (
    QUESTIONS,
    Camera,
    Ear,
    answers,
    chat_model,
    chat_processor,
    chat_tokenizer,
    nothing_left_behind,
)
from streamchat_helpers import at_rate, frames_at
from streamchat_hf import StreamingSession
from streamchat_hf.modeling.reader_streamchat import StreamingError
from streamchat_hf.streaming.events import FrameSeen, ResponseStarted, Silence, Token
from streamchat_hf.streaming.recording import Recording
from video_files import write_video

PROCESSOR = chat_processor()
GOOD = frames_at([0.1 * k for k in range(7)])  # the last good frame is at 0.6 s
CLOCKS = pytest.mark.parametrize("tokens_per_second", [20, None], ids=["simulated", "wall"])
SPEAKING = pytest.mark.parametrize("speaking", [True, False], ids=["mid-answer", "in silence"])


@pytest.fixture(scope="module")
def model():
    return chat_model()


class Faulty:
    """Good frames, then one fault."""

    def __init__(self, fault):
        self._frames, self._fault = iter(GOOD), fault
        self.closed = 0

    def __iter__(self):
        return self

    def __next__(self):
        for frame in self._frames:
            return frame
        if isinstance(self._fault, BaseException):
            raise self._fault
        return self._fault

    def close(self):
        self.closed += 1


def fail(model, source, speaking, **options):
    """The session, its events and its error, when it is in the middle of an answer, or has said two tokens before."""
    defaults = {"max_new_tokens": 500, "do_sample": False, "backpressure": "block"}
    ear = Ear({0: 500 if speaking else 2}, pace=0.0 if options.get("tokens_per_second") else 0.02)
    events = []
    with nothing_left_behind():
        session = StreamingSession(model, PROCESSOR, source, logits_processor=[ear], **defaults | options)
        session.ask(QUESTIONS[0], 0.3)
        with pytest.raises(StreamingError) as caught:
            for event in session:
                events.append(event)
        assert list(session) == []
    with pytest.raises(RuntimeError, match="the session has ended"):
        session.ask("and now ?")
    return session, events, caught.value


def assert_kept(session, events, error, speaking):
    """What was delivered is in the events, the error, the cache and the messages, and nothing else is."""
    delivered = [event for event in events if isinstance(event, Token)]
    assert (len(answers(events)) == 0) == speaking and delivered
    assert isinstance(events[-1], (FrameSeen | Token) if speaking else Silence)
    prompt = chat_tokenizer().apply_chat_template(
        [{"role": "user", "content": QUESTIONS[0]}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    expected = prompt + [token.id for token in delivered]
    assert error.partial.tolist() == session.cache.said.tolist() == [expected]
    text = "".join(token.text for token in delivered)
    assert session.messages == [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": text},
    ]
    assert session.statistics().tokens == len(delivered)


@CLOCKS
@SPEAKING
@pytest.mark.parametrize(
    "fault, message",
    [
        (OSError("camera unplugged"), "Faulty failed after 0.600 s: camera unplugged"),
        ((0.2, GOOD[0][1]), "Faulty: time runs backwards, 0.200 s after 0.600 s"),
        ((0.7, torch.zeros(3, 8, 16)), r"Faulty at 0.700 s: the frame's shape changed from \(3, 16, 16\)"),
        ((0.7, torch.zeros(1, 16, 16)), r"Faulty at 0.700 s: the frame's shape changed"),
        ((0.7, torch.zeros(16, 16)), r"Faulty at 0.700 s: a frame must be a tensor"),
        ((0.7, "picture.png"), r"Faulty at 0.700 s: a frame must be a tensor \(C, H, W\), not str"),
        ((None, GOOD[0][1]), "Faulty after 0.600 s: a frame's time must be in seconds, not None"),
        (torch.zeros(3, 16, 16), "Faulty: frames without times need fps="),
    ],
    ids=["raises", "backwards", "shape", "channels", "flat", "no tensor", "no time", "bare"],
)
def test_one_clear_error(model, fault, message, speaking, tokens_per_second):
    source = Faulty(fault)
    session, events, error = fail(model, source, speaking, tokens_per_second=tokens_per_second)
    assert_kept(session, events, error, speaking)
    with pytest.raises(StreamingError, match=message):
        raise error
    assert source.closed
    # A simulated step looks for a frame that is not due any more and fails at it: what was due then is not shown.
    seen = [event.t_sec for event in events if isinstance(event, FrameSeen)]
    assert seen == [t for t, _ in GOOD if t < 0.6 or not tokens_per_second]


@SPEAKING
def test_a_source_that_ends_the_process_ends_the_session(model, speaking):
    session, events, error = fail(model, Faulty(SystemExit("bye")), speaking)
    assert_kept(session, events, error, speaking)
    assert "Faulty: bye" in str(error)


@CLOCKS
def test_bare_frames_whose_shape_changes(model, tokens_per_second):
    pixels = [frame for _, frame in GOOD] + [torch.zeros(3, 16, 8)]
    session, events, error = fail(model, iter(pixels), True, fps=10, tokens_per_second=tokens_per_second)
    assert_kept(session, events, error, True)
    assert "list_iterator at 0.700 s: the frame's shape changed" in str(error)


@CLOCKS
@pytest.mark.parametrize("question", [True, False])
def test_frames_that_fit_no_model(model, tokens_per_second, question):
    """Asked before its only frame, a simulated answer has begun without; under the wall clock it waits for it."""
    source, events = iter([(0.5, torch.zeros(1, 16, 16))]), []
    session = StreamingSession(model, PROCESSOR, source, tokens_per_second=tokens_per_second, do_sample=False)
    if question:
        session.ask(QUESTIONS[0], 0.1)
    message = "at 0.500 s: encoding failed: .* 3 channels"
    with nothing_left_behind(), pytest.raises(StreamingError, match=message) as caught:
        events.extend(session)
    delivered = [event.id for event in events if isinstance(event, Token)]
    assert bool(delivered) == bool(question and tokens_per_second) and not session.cache.streams[0].frames_taken
    assert (caught.value.partial is None) == (not question)
    if question:
        partial = caught.value.partial[0].tolist()
        assert partial[len(partial) - len(delivered) :] == delivered and len(partial) > len(delivered)
        assert [m["role"] for m in session.messages] == ["user", "assistant"][: 1 + bool(delivered)]


@SPEAKING
def test_a_camera_that_stalls(model, speaking):
    camera = Camera(itertools.cycle([GOOD[0][1]]), [0.1] * 7 + [1.0])
    session, events, error = fail(model, camera, speaking, frame_timeout=0.6)
    assert_kept(session, events, error, speaking)
    [newest] = [event.t_sec for event in events if isinstance(event, FrameSeen)][-1:]
    assert str(error) == f"camera after {newest:.3f} s: no frame arrived within 0.6 s"
    assert camera.closed.is_set()


def test_a_camera_that_never_begins(model):
    """Whether it is waited for in silence or before the first word."""
    for question in (QUESTIONS[0], None):
        camera, events = Camera([GOOD[0][1]], [1.5]), []
        session = StreamingSession(model, PROCESSOR, camera, frame_timeout=0.3)
        if question:
            session.ask(question)
        with nothing_left_behind(), pytest.raises(StreamingError, match="camera.*: no frame arrived within 0.3 s"):
            events.extend(session)
        assert [type(event) for event in events] == ([ResponseStarted] if question else [])


class Hanging:
    """Gives so many frames, and then hangs until it is let go."""

    def __init__(self, frames, live):
        self.source, self.live, self.let_go = "hanging", live, threading.Event()
        self._frames = iter(GOOD[:frames])

    def __iter__(self):
        return self

    def __next__(self):
        for frame in self._frames:
            return frame
        self.let_go.wait(60)
        raise StopIteration


def threads_since(before):
    return {thread.name for thread in set(threading.enumerate()) - before}


def test_a_camera_that_hangs_for_ever_is_left_behind(model):
    """Nothing can end its thread, but nobody waits for it; the session itself has come to its end."""
    before, camera, events = set(threading.enumerate()), Hanging(1, live=True), []
    session = StreamingSession(model, PROCESSOR, camera, logits_processor=[Ear(pace=1.0)])
    assert isinstance(next(session), FrameSeen)
    session.ask(QUESTIONS[0])
    listener = threading.Thread(target=lambda: events.extend(session))
    listener.start()
    while not any(isinstance(event, ResponseStarted) for event in events):
        time.sleep(0.01)
    began = time.monotonic()
    session.close()  # in the middle of a token that takes longer than one waits for a source
    assert threads_since(before) - {listener.name} == {"streamchat grab"} and time.monotonic() - began < 10
    listener.join()
    camera.let_go.set()


@pytest.mark.parametrize("frames", [0, 3])
def test_a_source_that_hangs_under_a_simulated_clock_is_left_behind(model, frames):
    before, source = set(threading.enumerate()), Hanging(frames, live=False)
    session = StreamingSession(model, PROCESSOR, source, tokens_per_second=2)
    closer = threading.Timer(0.3, session.close)
    closer.start()
    assert len(list(session)) == 2 * max(frames - 1, 0)
    closer.join(10)
    assert threads_since(before) == {"streamchat session"}
    source.let_go.set()


def test_closing_a_source_may_fail(model):
    class Broken(Faulty):
        def close(self):
            super().close()
            raise OSError("no such device")

    for speaking in (True, False):
        source = Broken(OSError("camera unplugged"))
        session, events, error = fail(model, source, speaking, tokens_per_second=20)
        assert_kept(session, events, error, speaking)
        assert "camera unplugged" in str(error) and source.closed


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    even = {"options": {"movflags": "faststart"}, "codec_options": {"g": "1"}}  # every frame takes as much as the next
    whole = write_video(folder / "whole.mp4", range(0, 3000, 100), **even).read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 3 // 4])
    (folder / "beheaded.mp4").write_bytes(whole[:60])
    (folder / "no pictures").mkdir()
    return folder


@CLOCKS
@pytest.mark.parametrize("name", ["missing.mp4", "empty.mp4", "text.mp4", "beheaded.mp4", "no pictures"])
@pytest.mark.parametrize("question", [True, False])
def test_files_that_are_no_video(model, files, name, tokens_per_second, question):
    reasons = {"missing.mp4": "no such file", "empty.mp4": "the file is empty", "no pictures": "holds no images"}
    reason = reasons.get(name, "not a video, or a damaged one|there is no video stream")
    session, events = (
        StreamingSession(model, PROCESSOR, str(files / name), fps=4, tokens_per_second=tokens_per_second),
        [],
    )
    if question:
        session.ask(QUESTIONS[0], 0.0)
    with (
        nothing_left_behind(),
        pytest.raises(StreamingError, match=f"{name} failed before its first frame: .*({reason})"),
    ):
        events.extend(session)
    assert [type(event) for event in events] in ([], [ResponseStarted])
    assert not session.statistics().frames_seen


@CLOCKS
@SPEAKING
def test_a_file_that_was_cut_off(model, files, tokens_per_second, speaking):
    path = str(files / "cut.mp4")
    session, events, error = fail(model, path, speaking, fps=5, tokens_per_second=tokens_per_second)
    assert_kept(session, events, error, speaking)
    seen = [event.t_sec for event in events if isinstance(event, FrameSeen)]
    newest = 1.8
    assert str(error).startswith(f"{path} failed after {newest:.3f} s: ")
    assert seen == pytest.approx(at_rate(5, newest)[: len(seen)]) and newest - seen[-1] < 0.5
    assert seen[-1] == newest or tokens_per_second


def test_the_conversation_can_go_on_with_another_source(model):
    """The cache of a session that failed is whole: what was delivered is history."""
    session, _, error = fail(model, Faulty(OSError("unplugged")), True, tokens_per_second=20)
    prompt = torch.tensor([chat_tokenizer()("<|im_end|>\n<|im_start|>user\nand now ?<|im_end|>\n")["input_ids"]])
    out = model.generate(
        prompt,
        past_key_values=session.cache,
        frames=iter(frames_at([2.0, 2.5])),
        start_time=2.0,
        tokens_per_second=20,
        max_new_tokens=3,
        do_sample=False,
    )
    assert session.cache.said[0].tolist() == error.partial[0].tolist() + out[0].tolist()


def test_a_recording_of_a_session_that_failed_is_whole(model, tmp_path):
    _, events, _ = fail(model, Faulty(OSError("unplugged")), True, tokens_per_second=20, record=tmp_path / "run")
    assert Recording(tmp_path / "run").tokens == [event.id for event in events if isinstance(event, Token)]


def test_a_disk_that_is_full_is_an_error_like_any_other(model, tmp_path, monkeypatch):
    import streamchat_hf.streaming.recording as recording

    def full(tensors, path):
        raise OSError("No space left on device")

    monkeypatch.setattr(recording, "save_file", full)
    session = StreamingSession(model, PROCESSOR, iter(GOOD), tokens_per_second=2, record=tmp_path / "run")
    with nothing_left_behind(), pytest.raises(StreamingError, match="at 0.000 s: encoding failed: No space left"):
        list(session)


def test_an_exception_of_the_reader_leaves_nothing_behind(model):
    session = StreamingSession(model, PROCESSOR, iter(GOOD))
    session.ask(QUESTIONS[0])
    with nothing_left_behind(), pytest.raises(KeyboardInterrupt), session:
        for event in session:
            if isinstance(event, Token):
                raise KeyboardInterrupt
    assert len(session.messages) == 2


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A function that loads a class from a folder, as the Hub does, under a module name of its own."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    before = set(sys.modules)
    yield get_class_from_dynamic_module
    for name in set(sys.modules) - before:
        if name.startswith("transformers_modules"):
            del sys.modules[name]


@SPEAKING
def test_remote_code_brings_its_own_errors(model, tmp_path, remote, speaking):
    """A checkpoint's classes are not the package's: nothing may ask for these by type."""
    folder = tmp_path / "checkpoint"
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    loaded = remote("modeling_streamchat.StreamChatForConditionalGeneration", folder).from_pretrained(folder).eval()
    processor = remote("processing_streamchat.StreamChatProcessor", folder).from_pretrained(folder)
    assert not isinstance(loaded, type(model)) and not isinstance(processor, type(PROCESSOR))

    told, errors = [], []
    for talker, reader in ((model, PROCESSOR), (loaded, processor)):
        ear, events = Ear({0: 500 if speaking else 2}), []
        session = StreamingSession(
            *(talker, reader, Faulty(OSError("unplugged"))),
            tokens_per_second=20,
            do_sample=False,
            record=tmp_path / type(talker).__module__,
            logits_processor=[ear],
        )
        session.ask(QUESTIONS[0], 0.3)
        with pytest.raises(RuntimeError) as caught:
            events.extend(session)
        told.append([str(event) for event in events])
        errors.append(caught.value)
        assert_kept(session, events, caught.value, speaking)
    assert told[0] == told[1]
    assert isinstance(errors[0], StreamingError) and not isinstance(errors[1], StreamingError)
    assert type(errors[1]).__name__ == "StreamingError" and str(errors[1]) == str(errors[0])
    assert type(errors[1]).__module__.startswith("transformers_modules.")
    recording = Recording(tmp_path / type(loaded).__module__)
    replay = StreamingSession(loaded, processor, recording, do_sample=False, logits_processor=[Ear(ear.ends)])
    told = [event.id for event in replay if isinstance(event, Token)]
    assert told == Recording(tmp_path / type(model).__module__).tokens
