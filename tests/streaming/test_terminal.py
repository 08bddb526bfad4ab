import io
import itertools
import os
import re
import threading
import time
from contextlib import contextmanager

import pytest
import torch
from rich.console import Console

from fake_talker import FakeProcessor, scripted_talker
from streamchat_hf.modeling.reader_streamchat import StreamingError
from streamchat_hf.streaming.events import Token
from streamchat_hf.streaming.session import StreamingSession
from streamchat_hf.streaming.terminal import (
    Chat,
    Lines,
    Turn,
    View,
    live_word_table,
    statistics_table,
    status_line,
)
from streamchat_hf.streaming.words import SpokenWord

termios = pytest.importorskip("termios")

SCRIPT = "a red circle , left now blue . <eos>"
QUESTION = "what do you see ?"
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Camera:
    """Frames that come for ever, in real time; what it is told to do happens with a frame."""

    live, source = True, "camera"

    def __init__(self, **at_frame):
        self.at_frame = {int(name.removeprefix("frame")): action for name, action in at_frame.items()}
        self.closed = threading.Event()
        self._count = itertools.count()

    def __iter__(self):
        return self

    def __next__(self):
        if self.closed.wait(0.02):
            raise StopIteration
        index = next(self._count)
        self.at_frame.get(index, lambda: None)()
        return 0.0, torch.full((3, 16, 16), index / 100 % 1.0)

    def close(self):
        self.closed.set()


def screen(width: int = 80, height: int = 24) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=height, highlight=False)


def plain() -> Console:
    return Console(file=io.StringIO(), width=80, highlight=False)


def shown(console: Console) -> list[str]:
    return [line.rstrip() for line in CONTROL.sub("", console.file.getvalue()).splitlines()]


def make_session(source, pace: float = 0.0, script: str = SCRIPT, **options):
    processor = FakeProcessor()
    talker = scripted_talker(processor.tokenizer, script, pace)
    return StreamingSession(talker, processor, source, do_sample=False, **options), processor.tokenizer


def clip(seconds: int = 10):
    return FakeProcessor(seconds).stream("clip", fps=1)


def watched(questions: int | None = None, console: Console | None = None, **options):
    """A chat about a clip under the simulated clock."""
    session, tokenizer = make_session(clip(), tokens_per_second=2, **options)
    return Chat(session, tokenizer, console or plain(), questions)


def tokens(words: str, start: float, age: float = 0.5) -> list[Token]:
    return [Token(i, " " * (i > 0) + word, start + i / 2, start + i / 2 - age) for i, word in enumerate(words.split())]


@contextmanager
def pipe(text: str = ""):
    """A pipe with a text in it: where it is read, and how more is written or it is closed."""
    reading, writing = os.pipe()
    ends = [writing]

    def write(more: str | None) -> None:
        if more is None:
            os.close(ends.pop())
        else:
            os.write(writing, more.encode())

    write(text)
    try:
        yield reading, write
    finally:
        for end in (reading, *ends):
            os.close(end)


def wait_until(condition) -> None:
    limit = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


# The view


def test_the_answer_grows_above_the_numbers_and_the_line_being_typed():
    session, _ = make_session(clip(), tokens_per_second=2)
    with session:
        view = View(session, lambda: "and n")
        console = screen()
        console.print(view)
        assert shown(console) == ["waiting for the first frame", "› and n▏"]
        next(session)
        view.newest_frame = -0.25
        view.turn = Turn(QUESTION, 2.0, tokens("a red circle", 2.25))
        console = screen(width=100)
        console.print(view)
        question, answer, _, numbers, line = shown(console)
        assert question.split(maxsplit=2) == ["2.00", "s", QUESTION]
        assert re.fullmatch(r"2.25 s  a red circle +frame age 0.50 s", answer)
        assert re.fullmatch(  # a frame may have been read ahead
            r"0.0 s · [12] seen, [12] encoded, 0 dropped · frame age 0.25 s · – tokens/s · 0 reconnects", numbers
        )
        assert line == "› and n▏"


def test_on_a_small_screen_the_newest_words_and_what_is_below_them_stay():
    session, _ = make_session(clip(), tokens_per_second=2)
    with session:
        view = View(session, lambda: "")
        view.turn = Turn(QUESTION, 2.0, tokens(" ".join(f"word{i}" for i in range(100)), 2.0))
        console = screen(width=60, height=8)
        console.print(view)
    lines = shown(console)
    assert len(lines) == 7 and "word99" in lines[-4] and "word0 " not in lines[0]
    assert lines[-1] == "› ▏type a question; Ctrl-C ends"


def test_what_was_said_stands_on_the_screen_in_the_end():
    chat = watched(console=(console := screen()))
    chat.ask(QUESTION, at=2.0)
    chat.run()
    lines = [line for line in shown(console) if "circle" in line or QUESTION in line]
    assert re.fullmatch(r"2.00 s  what do you see \?", lines[-2])
    assert re.fullmatch(r"2.00 s  a red circle , left now blue \. +frame age 0.00 s", lines[-1])
    assert console.file.getvalue().count("\x1b[?25l") == console.file.getvalue().count("\x1b[?25h") == 1


def test_elsewhere_each_answer_is_a_table_and_a_sentence_without_control_characters():
    chat = watched(console=(console := plain()))
    chat.ask(QUESTION, at=2.0)
    chat.run()
    output = console.file.getvalue()
    assert output.isprintable() or set(re.findall(r"[^ -~]", output)) <= set("\n┏━┳┓┃┡╇┩│└─┴┘")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown(console) if line.startswith("│")]
    assert rows[1] == ["2.50 s", "red", "2.00 s", "0.50 s"]
    assert shown(console)[-1] == "a red circle , left now blue ."


def test_the_numbers_in_the_end():
    session, _ = make_session(clip(), tokens_per_second=2)
    session.ask(QUESTION, at=2.0)
    console = plain()
    console.print(statistics_table(session.statistics()))
    assert any(re.fullmatch(r"age of a frame +–", line) for line in shown(console))
    list(session)
    console = plain()
    console.print(statistics_table(session.statistics()))
    assert shown(console)[:2] == [
        "stream time         9.0 s",
        "frames              10 seen, 10 encoded, 0 dropped, 0 reconnects",
    ]
    assert re.fullmatch(r"answers +1, 9 tokens at [\d.]+ per second", shown(console)[2])
    assert "age behind a token  p50 0.000 s, p95 0.500 s, max 0.500 s" in shown(console)
    assert str(status_line(session.statistics(), 8.5)).startswith(
        "9.0 s · 10 seen, 10 encoded, 0 dropped · frame age 0.5"
    )


def test_the_newest_words_stay_on_a_small_screen_and_all_stand_there_in_the_end():
    console = screen(height=12)
    words = [SpokenWord(f"word{i}", i / 2, i / 2) for i in range(20)]
    with live_word_table(console, "?", 0.0) as show:
        for n in range(1, 21):
            before = console.file.tell()
            show(words[:n])
            assert f"word{n - 1} " in console.file.getvalue()[before:]
            assert "word0 " in console.file.getvalue()[before:] or n > 5
        before = console.file.tell()
    assert all(f"{word.text} " in console.file.getvalue()[before:] for word in words)


# The chat


def test_without_more_questions_a_chat_ends_with_the_answer():
    chat = watched()
    chat.ask(QUESTION, at=2.0)
    chat.run()
    [answer] = chat.answers
    assert (answer.text, answer.start_time) == ("a red circle , left now blue .", 2.0)
    assert chat._session.statistics().seconds < 9.0  # the clip would go on


def test_every_line_is_a_question_and_after_the_last_the_chat_ends():
    with pipe("what is it ?\n\n  where is it ?") as (reading, write):
        write(None)
        chat = watched(reading)
        chat.run()
    assert [answer.question for answer in chat.answers] == ["what is it ?", "where is it ?"]


def test_a_line_interrupts_the_answer_under_way():
    with pipe() as (reading, write):
        camera = Camera(frame2=lambda: write("first\n"), frame9=lambda: write("second\n"))
        session, tokenizer = make_session(camera, pace=0.1, script="a red circle left now blue up . <eos>")
        chat = Chat(session, tokenizer, console := plain(), reading)
        camera.at_frame[10] = lambda: write(None)
        chat.run()
    first, second = chat.answers
    assert 0 < len(first.ids) < 9 == len(second.ids)
    assert f"{first.text} (interrupted)" in shown(console)


def test_the_end_of_the_lines_ends_a_silent_chat():
    with pipe() as (reading, write):
        camera = Camera(frame3=lambda: write(None))
        session, tokenizer = make_session(camera)
        chat = Chat(session, tokenizer, plain(), reading)
        chat.run()
    assert chat.answers == [] and camera.closed.is_set()


def test_a_line_that_cannot_be_asked_is_said_to_be_so_and_the_chat_goes_on():
    with pipe("what is <v> ?\nwhat is it ?\n") as (reading, write):
        write(None)
        session, tokenizer = make_session(clip())
        session._talker.frame_words = ("<v>",)
        chat = Chat(session, tokenizer, console := plain(), reading)
        chat.run()
    assert [answer.question for answer in chat.answers] == ["what is it ?"]
    assert "<v> stands for a frame, a question cannot hold it: 'what is <v> ?'" in shown(console)


def test_lines_that_come_after_the_end_are_ignored():
    with pipe() as (reading, _):
        chat = watched(reading)
        chat.ask(QUESTION)
        chat._session.close()
        chat._ask_now("too late ?")
        assert chat._asked == 1


def test_an_error_leaves_what_was_said():
    def fail():
        raise OSError("the cable is out")

    session, tokenizer = make_session(Camera(frame8=fail), pace=0.1)
    chat = Chat(session, tokenizer, console := plain())
    chat.ask(QUESTION)
    with pytest.raises(StreamingError, match="the cable is out"):
        chat.run()
    [answer] = chat.answers
    assert 0 < len(answer.ids) < 9 and answer.ids == tokenizer(answer.text, add_special_tokens=False)["input_ids"]
    assert f"{answer.text} (interrupted)" in shown(console)


@pytest.mark.parametrize("tokens_per_second", [None, 2])
def test_a_source_that_hangs_does_not_hold_up_the_end(tokens_per_second):
    plugged_in, waiting = threading.Event(), threading.Event()

    def hang():
        waiting.set()
        plugged_in.wait()

    source = Camera(frame2=hang)
    source.live = tokens_per_second is None
    session, tokenizer = make_session(source, tokens_per_second=tokens_per_second)
    chat = Chat(session, tokenizer, plain())
    running = threading.Thread(target=chat.run)
    running.start()
    assert waiting.wait(10)
    began = time.monotonic()
    session.close()
    running.join(10)
    assert time.monotonic() - began < 1.0 and not running.is_alive()
    plugged_in.set()


# The lines


@contextmanager
def typing(**options):
    """A terminal whose keys are read: its two ends, the reader, and what it has read."""
    master, slave = os.openpty()
    before, read = termios.tcgetattr(slave), []
    lines = Lines(slave, read.append, lambda: read.append(None), keys=True)
    try:
        with lines.reading():
            yield lambda text: os.write(master, text if isinstance(text, bytes) else text.encode()), lines, read
    finally:
        assert termios.tcgetattr(slave) == before
        assert not [thread for thread in threading.enumerate() if thread.name == "streamchat questions"]
        os.close(master)
        os.close(slave)


def test_keys_are_shown_while_the_line_grows():
    with typing() as (write, lines, read):
        for key, typed in zip("wh?", ("w", "wh", "wh?"), strict=True):
            write(key)
            wait_until(lambda typed=typed: lines.read_typed() == typed)
        assert read == []
        write("\r")
        wait_until(lambda: read == ["wh?"])
        assert lines.read_typed() == "" and not lines.ended


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ("whatt\x7f is it\n", "what is it"),
        ("\x7f\x7fwhat\n", "what"),
        ("nonsense\x15what\n", "what"),
        ("\x1b[A\x1b[1;5Cw\x1bOPh\x1bat\x1b\n", "wht"),  # arrows, function keys, Alt-a, Escape
        ("\twhat\x00\x0c ?\n", "what ?"),
        ("wo ist die Größe ? 何\n", "wo ist die Größe ? 何"),
        ("\n  \nwhat\n", "what"),
    ],
)
def test_a_line_can_be_edited(keys, line):
    with typing() as (write, _, read):
        write(keys)
        wait_until(lambda: read == [line])


def test_a_character_may_come_in_pieces():
    with typing() as (write, _, read):
        for byte in "ü".encode():
            write(bytes([byte]))
            time.sleep(0.02)
        write("\n")
        wait_until(lambda: read == ["ü"])


def test_control_d_ends_an_empty_line_only():
    with typing() as (write, lines, read):
        write("wh\x04at\n")
        wait_until(lambda: read == ["what"])
        write("\x04")
        wait_until(lambda: read == ["what", None])
        assert lines.ended


def test_the_terminal_is_restored_after_an_error():
    with pytest.raises(KeyboardInterrupt), typing():
        raise KeyboardInterrupt


def test_a_terminal_that_is_gone_ends_the_lines():
    master, slave = os.openpty()
    read = []
    lines = Lines(slave, read.append, lambda: read.append(None))
    with lines.reading():
        os.close(master)
        wait_until(lambda: read == [None])
    os.close(slave)
