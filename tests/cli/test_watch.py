import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from cli_helpers import run, table_rows
from fake_talker import FakeStream, scripted_talker
from live_loop_helpers import live_model, live_processor
from streamchat_cli import watch
from streamchat_hf.streaming import filmstrip, session
from streamchat_hf.streaming.terminal import Chat
from video_files import write_video


@pytest.fixture
def typed():
    """Puts a text before the command's input; pytest has closed the real one."""
    before = os.dup(0)

    def type_in(text: str) -> None:
        reading, writing = os.pipe()
        os.write(writing, text.encode())
        os.close(writing)
        os.dup2(reading, 0)
        os.close(reading)

    yield type_in
    os.dup2(before, 0)
    os.close(before)


def test_chat_shows_words_with_stream_time_and_frame_age(fake, tmp_path):
    path = tmp_path / "answer.json"
    question = "what do you see ?"
    output = run(
        *("chat", "clip.mp4", question, "--at", 2, "--fps", 1, "--tokens-per-second", 2, "--json", path)
    ).output
    rows = table_rows(output)
    assert rows[:2] == [["2.00 s", "a", "2.00 s", "0.00 s"], ["2.50 s", "red", "2.00 s", "0.50 s"]]
    assert [row[1] for row in rows] == fake.script.split()[:-1]
    assert "a red circle , left now blue ." in output.splitlines()
    value = json.loads(path.read_text())
    assert (value["answer"], value["question"]) == ("a red circle , left now blue .", question)
    assert value["words"][1] == {"text": "red", "time": 2.5, "newest_frame_time": 2.0, "frame_age": 0.5}
    assert list(value) == ["question", "start_time", "answer", "words", "tokens", "statistics"]
    assert (value["statistics"]["turns"], value["statistics"]["tokens"]) == (1, 9)
    assert "stream time" not in output
    assert fake.closed == 1


def test_every_line_of_the_input_is_a_question(fake, typed, tmp_path):
    path = tmp_path / "answers.json"
    typed("what colour is it ?\nwhat do you see ?\n")
    output = run("chat", "clip", "--fps", 1, "--tokens-per-second", 2, "--json", path).output
    value = json.loads(path.read_text())
    assert [answer["question"] for answer in value["answers"]] == ["what colour is it ?", "what do you see ?"]
    assert (
        value["question"] == "what colour is it ?" and value["answers"][1]["answer"] == fake.script[: -len(" <eos>")]
    )
    assert "stream time" in output  # the statistics


def test_a_chat_needs_something_to_answer(fake, typed):
    typed("")
    assert "nothing was asked" in run("chat", "clip", "--tokens-per-second", 2, code=1).stderr
    assert "QUESTION" in run("chat", "clip", "--filmstrip", "strip.png", code=1).stderr


def test_chat_passes_its_options_on(fake, monkeypatch):
    calls = {}
    stream, open_session = fake.stream, session.StreamingSession
    monkeypatch.setattr(fake, "stream", lambda *args, **kwargs: calls.update(kwargs) or stream(*args, **kwargs))
    monkeypatch.setattr(
        session, "StreamingSession", lambda *args, **kwargs: calls.update(kwargs) or open_session(*args, **kwargs)
    )
    fake.tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    flags = ("--backpressure", "drop_oldest", "--system", "be short .", "--stall-timeout", 7, "--live")
    run("chat", "clip", "?", "--tokens-per-second", 2, *flags, "--policy", "on-question")
    assert calls == {
        **{"fps": None, "live": True, "stall_timeout": 7.0, "frame_timeout": 12.0, "record": None, "do_sample": False},
        **{"backpressure": "drop_oldest", "system": "be short .", "tokens_per_second": 2.0, "max_new_tokens": 64},
        **{"policy": "on-question", "activation": None},
    }
    run("chat", "clip", "?", "--tokens-per-second", 2, "--no-live")
    assert calls["live"] is False and calls["backpressure"] == "latest"


def test_a_model_that_speaks_by_itself_is_watched_to_the_end(monkeypatch, tmp_path):
    processor = live_processor()
    talker = live_model(processor)
    talker.config.silence_threshold = 1.0  # every frame says something
    monkeypatch.setattr(watch, "load", lambda *args: (talker, processor))
    path, clip = tmp_path / "said.json", write_video(tmp_path / "clip.mp4", range(0, 2000, 250))
    options = ("--tokens-per-second", 4, "--max-new-tokens", 2, "--json", path)
    run("chat", clip, *options)
    answers = json.loads(path.read_text())["answers"]
    assert [(answer["question"], answer["start_time"]) for answer in answers] == [("", i / 2) for i in range(4)]
    run("chat", clip, "what is it?", "--at", 0.7, *options)
    assert [answer["question"] for answer in json.loads(path.read_text())["answers"]].count("what is it?") == 1
    run("chat", clip, "what is it?", "--at", 0.7, "--policy", "on-question", *options)
    assert json.loads(path.read_text())["question"] == "what is it?"
    strip = ("--filmstrip", tmp_path / "strip.png")
    assert "add --policy on-question" in run("chat", clip, "?", *strip, *options, code=1).stderr


def test_an_error_keeps_the_statistics_and_what_was_said(fake, tmp_path, monkeypatch):
    def fail_late(stream):
        frame = read(stream)
        if frame[0] > 4:
            raise OSError("the cable is out")
        return frame

    read = FakeStream.__next__
    monkeypatch.setattr(FakeStream, "__next__", fail_late)
    path = tmp_path / "answer.json"
    result = run("chat", "clip", "?", "--at", 2, "--tokens-per-second", 2, "--json", path, code=1)
    assert result.stderr == "error: clip failed after 4.000 s: the cable is out\n"
    assert "a red circle , (interrupted)" in result.stdout.splitlines()
    assert "5 seen, 4 encoded" in result.stdout
    value = json.loads(path.read_text())
    assert (value["answer"], value["statistics"]["frames_seen"]) == ("a red circle ,", 5)


def test_ctrl_c_prints_the_statistics(fake, tmp_path, monkeypatch):
    def interrupt(chat, event):
        take(chat, event)
        if len(seen := seen_tokens(chat)) == 3:
            raise KeyboardInterrupt
        return seen

    def seen_tokens(chat):
        return chat._view.turn.tokens if chat._view.turn else []

    take = Chat._take
    monkeypatch.setattr(Chat, "_take", interrupt)
    path = tmp_path / "answer.json"
    output = run("chat", "clip", "?", "--at", 2, "--tokens-per-second", 2, "--json", path, code=130).output
    assert "a red circle (interrupted)" in output.splitlines() and "stream time" in output
    assert json.loads(path.read_text())["answer"] == "a red circle"
    assert fake.closed == 1


def test_a_recorded_chat_is_replayed_to_the_same_tokens(fake, tmp_path, monkeypatch):
    folder, path = tmp_path / "recording", tmp_path / "replay.json"
    flags = ("--at", 2, "--fps", 1, "--tokens-per-second", 2)
    told = run("chat", "clip", "what do you see ?", *flags, "--record", folder).output
    output = run("replay", folder, "--json", path).output
    assert output == told + "the same 9 tokens as recorded\n"
    assert json.loads(path.read_text())["statistics"]["tokens"] == 9
    other = scripted_talker(fake.tokenizer, "a red square , left now blue . <eos>")
    monkeypatch.setattr(watch, "load", lambda *args: (other, fake))
    assert "said otherwise than recorded, from token 3 of 9 on" in run("replay", folder, code=1).stderr
    assert "no-recording" in run("replay", tmp_path / "no-recording", code=1).stderr


def test_chat_draws_the_frames_it_saw(fake, tmp_path):
    path = tmp_path / "strip.png"
    output = run("chat", "clip", "?", "--fps", 1, "--tokens-per-second", 2, "--filmstrip", path).output
    assert f"film strip: {path}" in output.replace("\n", "")
    # Frame 3 as it was before it was normalised: -0.7 · 0.5 + 0.5 = 0.15 of 255.
    colours = {colour for _, colour in Image.open(path).getcolors(1 << 20)}
    assert (38, 38, 38) in colours


def test_the_film_strip_of_a_chat_has_the_frozen_answer_beneath(fake, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(filmstrip, "draw_filmstrip", lambda *args: drawn.append(args))
    flags = ("--at", 3, "--fps", 1, "--tokens-per-second", 2)
    assert "frozen:" not in run("chat", "clip", "?", *flags).output and drawn == []
    output = run("chat", "clip", "?", *flags, "--filmstrip", tmp_path / "strip.png").output
    assert "frozen:" in output
    [(words, images, path, question, at, frozen)] = drawn
    assert (path, question, at) == (tmp_path / "strip.png", "?", 3.0)
    assert [word.frame_time for word in words] == [3.0, 3.0, 4.0, 4.0, 5.0, 5.0, 6.0, 6.0]
    assert [(word.text, word.time) for word in frozen] == [(word.text, word.time) for word in words]
    assert {word.frame_time for word in frozen} == {3.0}
    assert [time for time, _ in images][:7] == [float(t) for t in range(7)]
    assert fake.closed == 3


def test_a_live_source_cannot_be_watched_again(fake, tmp_path):
    flags = ("--live", "--tokens-per-second", 2, "--filmstrip", tmp_path / "strip.png")
    assert "frozen:" not in run("chat", "clip", "?", *flags).output


def test_chat_cuts_and_passes_the_model_on(fake):
    flags = ("--tokens-per-second", 2, "--max-new-tokens", 2, "--model", "me/x", "--trust-remote-code")
    assert "a red" in run("chat", "clip", "?", *flags).output.splitlines()
    assert fake.loaded == [("me/x", True)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("chat", "nowhere.mp4", "?"), "nowhere.mp4: no such video (second line)"),
        (("demo", "--duration", "0.5"), "at least 1 second"),
        (
            ("chat", "clip", "?", "--tokens-per-second", 2, "--filmstrip", "/no/folder/strip.png"),
            "/no/folder/strip.png",
        ),
        (("chat", "clip", "?", "--system", "be short ."), "StreamWorld knows the roles user and assistant only"),
        (("chat", "clip", "?", "--policy", "at-will"), "policy='at-will' must be one of on-question"),
        (("chat", "clip", "?", "--backpressure", "none"), "backpressure='none' must be one of block"),
    ],
)
def test_errors_are_one_line(fake, args, message):
    result = run(*args, code=1)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and "Traceback" not in result.output


def test_demo_compares_watching_with_frozen(fake, tmp_path):
    strip, path = tmp_path / "strip.png", tmp_path / "demo.json"
    output = run("demo", "--out", strip, "--json", path, "--at", 1, "--duration", 5).output
    assert Image.open(strip).format == "PNG" and str(strip) in output.replace("\n", "")
    value = json.loads(path.read_text())
    assert max(token["newest_frame_time"] for token in value["live"]["tokens"]) > 1.0
    assert {token["newest_frame_time"] for token in value["frozen"]["tokens"]} == {1.0}
    # The clip ends after 5 seconds, and so does the answer.
    assert len(value["live"]["tokens"]) == min(8, len(fake.script.split()))
    assert "frozen:" in output and "watching on:" in output
    assert fake.closed == 2


@pytest.mark.slow
def test_demo_as_a_newcomer_runs_it(tmp_path):
    command = [sys.executable, "-c", "from streamchat_cli.main import app; app()", "demo", "--json", "demo.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stderr) == (0, "")
    assert Image.open(tmp_path / "filmstrip.png").width > 1000
    value = json.loads((tmp_path / "demo.json").read_text())
    assert value["live"]["answer"] != value["frozen"]["answer"]
