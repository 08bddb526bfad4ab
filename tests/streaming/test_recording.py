"""What a session saw and when, written down and played back: the same tokens, the same events, the same arithmetic."""

import json
import shutil
import threading
import time

import pytest
import torch

from session_helpers import (
    QUESTIONS,
    SYSTEM,
    Camera,
    Ear,
    answers,
    assert_equals_one_forward,
    chat_model,
    chat_processor,
    nothing_left_behind,
)
from streamchat_helpers import at_rate, frames_at
from streamchat_hf import StreamingSession
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, ResponseStarted, Silence, Token
from streamchat_hf.streaming.recording import EVENTS, FRAMES, Recorder, Recording
from video_files import write_video

PROCESSOR = chat_processor()
OPTIONS = {"max_new_tokens": 25, "do_sample": False, "system": SYSTEM}
FAILURES = (torch.zeros(1, 16, 16), "encoding failed")


@pytest.fixture(scope="module")
def model():
    return chat_model()


def told(events):
    """Events as text, in which one NaN equals another."""
    return [str(event) for event in events]


def watch(model, source, on_event=None, asks=(), **options):
    """A session, the events that it told, and what listened to it."""
    ear = Ear(pace=options.pop("pace", 0.0))
    session = StreamingSession(model, PROCESSOR, source, logits_processor=[ear], **OPTIONS | options)
    for question, at in asks:
        session.ask(question, at)
    events = []
    with nothing_left_behind(), session:
        for event in session:
            events.append(event)
            if on_event is not None:
                on_event(session, event)
    return session, events, ear


def assert_replay(model, folder, session, events, ear):
    """The recording in `folder` gives the same events, and the same scores to the last bit."""
    replay, again, heard = watch(model, Recording(folder))
    assert told(again[: len(events)]) == told(events)
    assert [length for length, _ in heard.steps] == [length for length, _ in ear.steps]
    for (_, scores), (_, expected) in zip(heard.steps, ear.steps, strict=True):
        assert torch.equal(scores, expected)
    assert replay.messages == session.messages
    assert replay.cache.said.tolist() == session.cache.said.tolist()
    assert Recording(folder).tokens == [event.id for event in events if isinstance(event, Token)]
    return again


def test_a_live_run_with_interruptions_replays(model, tmp_path):
    """Real threads, a camera whose frames come when they like, questions from the reader and from another thread."""
    pictures = frames_at(at_rate(20, 3))
    waits = (0.01 + 0.07 * torch.rand(len(pictures), generator=torch.Generator().manual_seed(1))).tolist()
    camera = Camera([pixels for _, pixels in pictures], waits)
    interrupted, typed = [], []

    def on_event(session, event):
        spoken = [e for e in interrupted if isinstance(e, Token)]
        interrupted.append(event)
        if isinstance(event, Token) and len(spoken) in (4, 11):
            session.ask(QUESTIONS[1 + (len(spoken) == 11)])
        if isinstance(event, Token) and len(spoken) == 14:
            typed.append(threading.Timer(0.05, session.ask, (QUESTIONS[3],)))
            typed[0].start()

    session, events, ear = watch(
        *(model, camera, on_event, [(QUESTIONS[0], 0.4)]), record=tmp_path / "run", pace=0.02, backpressure="latest"
    )
    typed[0].join()
    said = answers(events)
    assert [answer.question for answer in said] == list(QUESTIONS)
    assert [len(answer.ids) for answer in said[:2]] == [5, 7]
    statistics, seen = session.statistics(), [event for event in events if isinstance(event, FrameSeen)]
    assert statistics.frames_encoded == len(seen) >= 10
    assert len({token.frame_time for token in events if isinstance(token, Token)}) >= 4, "answers followed the video"
    again = assert_replay(model, tmp_path / "run", session, events, ear)
    assert len(again) == len(events)

    pixels, number = [], 0
    while sum(len(chunk) for chunk in pixels) < len(seen):
        pixels.append(Recording(tmp_path / "run").frames(number))
        number += 1
    frames = [frame for chunk in pixels for frame in chunk]
    assert [t for t, _ in frames] == [event.t_sec for event in seen]
    assert_equals_one_forward(model, session, events, ear, frames)


def test_a_file_replays(model, tmp_path):
    """A file under the wall clock: its own presentation times, and more frames than are encoded."""
    path = write_video(tmp_path / "clip.mp4", range(0, 1500, 40))
    session, events, ear = watch(
        *(model, str(path), None, [(QUESTIONS[0], 0.3), (QUESTIONS[1], 0.8)]), record=str(tmp_path / "run"), pace=0.01
    )
    assert len(answers(events)) == 2 and events[0].t_sec == 0.0
    again = assert_replay(model, tmp_path / "run", session, events, ear)
    assert len(again) == len(events)
    # What was seen is presented with its own times, and never before they had come.
    assert all(event.age >= 0 for event in events if isinstance(event, FrameSeen))


@pytest.mark.parametrize("fps", [2, 30])
def test_a_simulated_run_replays(model, tmp_path, fps):
    """Several frames are encoded at once there, and so they are again."""
    frames = frames_at(at_rate(fps, 5))
    session, events, ear = watch(
        *(model, iter(frames), None, [(QUESTIONS[0], 0.6), (QUESTIONS[1], 2.0)]),
        record=tmp_path / "run",
        tokens_per_second=3,
    )
    chunks = len(list((tmp_path / "run" / FRAMES).iterdir()))
    assert chunks < len(frames) if fps == 30 else chunks == len(frames)
    again = assert_replay(model, tmp_path / "run", session, events, ear)
    assert len(again) == len(events)


@pytest.mark.parametrize("tokens", [1, 3, 9])
def test_a_run_that_was_closed_in_the_middle_of_an_answer_replays(model, tmp_path, tokens):
    def close(session, event):
        if isinstance(event, Token):
            heard.append(event)
            if len(heard) == tokens:
                session.close()

    heard = []
    camera = Camera([pixels for _, pixels in frames_at(at_rate(20, 4))], [0.03] * 80)
    session, events, ear = watch(*(model, camera, close, [(QUESTIONS[0], 0.2)]), record=tmp_path / "run", pace=0.01)
    assert isinstance(events[-1], Token) and len(heard) == tokens
    rest = assert_replay(model, tmp_path / "run", session, events, ear)[len(events) :]
    assert [type(event) for event in rest] == [ResponseEnded] and rest[0].reason == "interrupted"
    assert rest[0].answer.ids == [token.id for token in heard]


@pytest.mark.parametrize("at", [ResponseStarted, FrameSeen])
def test_a_run_that_was_closed_before_the_first_word_replays(model, tmp_path, at):
    def close(session, event):
        if isinstance(event, at) and event.time >= 1.0:
            session.close()

    frames = frames_at([0.0, 0.5, 1.1])
    session, events, _ = watch(
        *(model, iter(frames), close, [(QUESTIONS[0], 1.1)]), record=tmp_path / "run", tokens_per_second=2
    )
    assert not [event for event in events if isinstance(event, Token)] and session.statistics().turns == 0
    _, again, _ = watch(model, Recording(tmp_path / "run"))
    seen = [event for event in events if isinstance(event, FrameSeen | Silence) and event.time < 1.0]
    assert told(again)[: len(seen)] == told(seen) and not answers(again)


def test_a_run_whose_source_failed_replays_up_to_there(model, tmp_path):
    def frames():
        yield from frames_at(at_rate(4, 3))
        raise OSError("unplugged")

    events, ear = [], Ear()
    session = StreamingSession(
        *(model, PROCESSOR, frames()), tokens_per_second=2, record=tmp_path / "run", logits_processor=[ear], **OPTIONS
    )
    session.ask(QUESTIONS[0], 1.0)
    with pytest.raises(RuntimeError, match="unplugged"):
        events.extend(session)
    events = [event for event in events if isinstance(event, Token)]
    _, again, _ = watch(model, Recording(tmp_path / "run"))
    assert Recording(tmp_path / "run").tokens == answers(again)[0].ids and len(answers(again)[0].ids) == 4


def test_a_replay_counts_what_it_shows(model, tmp_path):
    frames = frames_at(at_rate(4, 4))
    session, *_ = watch(
        *(model, iter(frames), None, [(QUESTIONS[0], 1.0)]), record=tmp_path / "run", tokens_per_second=2
    )
    replay, *_ = watch(model, Recording(tmp_path / "run"))
    for name in ("seconds", "frames_encoded", "turns", "tokens", "frame_age", "token_frame_age", "text_tokens"):
        assert getattr(replay.statistics(), name) == getattr(session.statistics(), name)


def test_a_replay_can_be_recorded_again(model, tmp_path):
    frames = frames_at(at_rate(30, 4))
    watch(*(model, iter(frames), None, [(QUESTIONS[0], 1.0)]), record=tmp_path / "run", tokens_per_second=2)
    watch(model, Recording(tmp_path / "run"), record=tmp_path / "copy")
    files = sorted(path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert len(files) > 3
    for name in files:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "copy" / name).read_bytes()


def test_another_model_sees_what_this_one_saw(model, tmp_path):
    """It may say less, or be told to: frames come when they came, and no question is lost."""
    frames = frames_at(at_rate(4, 9))
    asks = [(QUESTIONS[0], 1.0), (QUESTIONS[1], 6.0)]
    _, events, _ = watch(*(model, iter(frames), None, asks), record=tmp_path / "run", tokens_per_second=4)
    _, again, _ = watch(chat_model(0), Recording(tmp_path / "run"), max_new_tokens=3)
    seen, seen_again = ([e for e in every if isinstance(e, FrameSeen)] for every in (events, again))
    assert told(seen_again) == told(seen)
    assert [(a.question, a.start_time, len(a.ids)) for a in answers(again)] == [
        (*ask, 3) for ask in ((QUESTIONS[0], 1.0), (QUESTIONS[1], 6.0))
    ]


def test_nobody_else_asks_in_a_replay(model, tmp_path):
    watch(*(model, iter(frames_at([0.0])), None, [(QUESTIONS[0], 0.0)]), record=tmp_path / "run", tokens_per_second=2)
    session = StreamingSession(model, PROCESSOR, Recording(tmp_path / "run"), **OPTIONS)
    with pytest.raises(RuntimeError, match="a recording asks its own questions"):
        session.ask("and me ?")
    session.close()


def test_a_folder_is_recorded_into_once(model, tmp_path):
    Recorder(tmp_path / "run").close()
    with nothing_left_behind(), pytest.raises(FileExistsError, match=EVENTS):
        StreamingSession(model, PROCESSOR, iter(()), record=tmp_path / "run")


def test_lines_are_on_disk_at_once(tmp_path):
    recorder = Recorder(tmp_path / "run")
    recorder.question("why ?\n日本", 1.5)
    assert json.loads((tmp_path / "run" / EVENTS).read_text()) == {
        "kind": "question",
        "time": 1.5,
        "text": "why ?\n日本",
    }
    recorder.watched(2.0, [1.75])
    assert [event["kind"] for event in Recording(tmp_path / "run").events] == ["question", "silence"]
    recorder.close()
    recorder.close()


def test_frames_are_kept_as_they_are(tmp_path):
    recorder, seen = Recorder(tmp_path), []
    encode = recorder.observe(lambda frames, cache: seen.append((frames, cache)))
    pictures = torch.randn(3, 6, 5, 3, dtype=torch.bfloat16).permute(0, 3, 1, 2)  # not in one piece
    encode([(0.1 + 0.2, pictures[0]), (1.0, pictures[1])], "cache")
    encode([(2.0, pictures[2])], "cache")
    recorder.close()
    recording = Recording(tmp_path)
    [(first, a), (second, b)], [(third, c)] = recording.frames(0), recording.frames(1)
    assert (first, second, third) == (0.1 + 0.2, 1.0, 2.0)
    assert torch.equal(torch.stack([a, b, c]), pictures) and a.dtype == torch.bfloat16
    assert [cache for _, cache in seen] == ["cache"] * 2


@pytest.fixture(scope="module")
def whole_recording(model, tmp_path_factory):
    folder, frames = tmp_path_factory.mktemp("recorded") / "run", frames_at(at_rate(4, 3))
    watch(*(model, iter(frames), None, [(QUESTIONS[0], 1.0)]), record=folder, tokens_per_second=2)
    return folder


@pytest.fixture
def recorded(whole_recording, tmp_path):
    """A recording to be damaged."""
    return shutil.copytree(whole_recording, tmp_path / "run")


GOOD = '{"kind": "silence", "time": 0.5, "frames": [0.5]}'


@pytest.mark.parametrize(
    "line, reason",
    [
        (GOOD[:-9], "Invalid control character"),
        ("", "Expecting value"),
        ("\udcff\udcfe", "utf-8"),
        ("[1, 2]", "no object"),
        ("7", "no object"),
        (GOOD.replace("silence", "noise"), "kind 'noise' must be one of question, standing, silence, token"),
        (GOOD.replace("kind", "kinds"), "'kind'"),
        (GOOD.replace("0.5,", "null,"), "NoneType"),
        (GOOD.replace("0.5,", "NaN,"), "not times"),
        (GOOD.replace("[0.5]", '["a"]'), "could not convert"),
        (GOOD.replace("[0.5]", "0.5"), "frames is 0.5"),
        (GOOD.replace("frames", "frame"), "'frames'"),
        (GOOD.replace("silence", "token"), "'token'"),
        ('{"kind": "question", "time": 0.5, "text": 3}', "text is 3"),
        ('{"kind": "question", "time": -0.5, "text": "why ?"}', "time runs backwards"),
    ],
)
def test_a_damaged_line_is_named(recorded, line, reason):
    lines = (recorded / EVENTS).read_text().splitlines(keepends=True)
    lines[2] = line + "\n"
    (recorded / EVENTS).write_text("".join(lines), errors="surrogateescape")
    with nothing_left_behind(), pytest.raises(ValueError, match=f"{EVENTS}, line 3, is no event: .*({reason})"):
        Recording(recorded)


def test_what_is_no_recording(tmp_path):
    with pytest.raises(FileNotFoundError, match=EVENTS):
        Recording(tmp_path)


@pytest.mark.parametrize("number", [0, 5, 7])
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "other tensors", "other frames"])
def test_damaged_frames_are_named(model, recorded, number, damage):
    """In silence as in the middle of an answer; what was said before has been told."""
    file = recorded / FRAMES / f"{number:08d}.safetensors"
    content, message = file.read_bytes(), file.name
    if damage == "gone":
        file.unlink()
    elif damage == "other tensors":
        file.write_bytes(content.replace(b"times", b"tides"))
    elif damage == "other frames":
        file.write_bytes((recorded / FRAMES / "00000001.safetensors").read_bytes())
        message = "run: a frame of .* was seen, but one of 0.25 s is kept"
    else:
        file.write_bytes(content[: 0 if damage == "empty" else len(content) // 2])
    session, events = StreamingSession(model, PROCESSOR, Recording(recorded), **OPTIONS), []
    with nothing_left_behind(), pytest.raises(ValueError, match=message):
        events.extend(session)
    assert list(session) == []
    delivered = [event.id for event in events if isinstance(event, Token)]
    assert delivered == Recording(recorded).tokens[: len(delivered)] and (len(delivered) > 0) == (number >= 5)
    assert "".join(m["content"] for m in session.messages if m["role"] == "assistant") == "".join(
        event.text for event in events if isinstance(event, Token)
    )


def test_a_replay_waits_for_nothing(model, tmp_path):
    camera = Camera([pixels for _, pixels in frames_at([0.0] * 4)], [0.3] * 4)
    watch(*(model, camera, None, [(QUESTIONS[0], 0.7)]), record=tmp_path / "run")
    began = time.monotonic()
    watch(model, Recording(tmp_path / "run"), on_event=lambda session, event: None)
    assert len([e for e in Recording(tmp_path / "run").events if e["kind"] != "question"]) > 4
    assert time.monotonic() - began < 20
