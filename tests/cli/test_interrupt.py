"""`streamchat chat` in a process of its own, on a real terminal: what is typed, and how Ctrl-C ends it."""

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import pytest

from live_servers import LiveServer
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4

termios = pytest.importorskip("termios")
pytestmark = pytest.mark.slow

# The command gets a terminal of its own, as a shell would give it one.
START = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from streamchat_cli import main, watch; "
RUN = "main.app(prog_name='streamchat')"
SLOW_IMPORT = (
    "import importlib.machinery as m, sys; find = m.PathFinder.find_spec; "
    "m.PathFinder.find_spec = classmethod(lambda cls, name, *args: "
    "(name == {module!r} and print('importing', flush=True)) or find(name, *args)); "
)
SLOW_LOADING = "import time; watch.load = lambda *args: print('loading') or time.sleep(60); "
ENDS_WITHIN = 1.0  # seconds after Ctrl-C
ATTEMPTS = 3


class Terminal:
    """A command that runs on a terminal.

    Args:
        args: what follows `streamchat chat`.
        before: Python that runs before.
    """

    def __init__(self, *args: object, before: str = ""):
        self.output = b""
        self._master, self._slave = os.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 110, 0, 0))
        self._mode = termios.tcgetattr(self._slave)
        command = [sys.executable, "-c", START + before + RUN, "chat", *map(str, args)]
        self._process = subprocess.Popen(
            command,
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, condition: Callable[[bytes], bool], seconds: float = 90.0) -> None:
        """Waits until the output since the last call fulfils a condition."""
        start, limit = len(self.output), time.monotonic() + seconds
        while not condition(self.output[start:]):
            assert self._process.poll() is None and time.monotonic() < limit, self.output.decode()
            self._read(0.01)

    def ctrl_c(self) -> float:
        """Presses it, waits for the end, and gives the seconds between."""
        pressed = time.monotonic()
        self.type("\x03")
        while self._process.poll() is None:
            assert time.monotonic() < pressed + 60, self.output.decode()
            self._read(0.002)
        return time.monotonic() - pressed

    def check_end(self) -> str:
        """What stands there in the end, with the terminal as it was and nothing said about the code."""
        while self._read(0.1):
            pass
        assert self._process.returncode == 128 + signal.SIGINT, self.output.decode()
        assert termios.tcgetattr(self._slave) == self._mode
        assert self.output.count(b"\x1b[?25l") == self.output.count(b"\x1b[?25h")  # the cursor
        text = self.output.decode()
        assert "Traceback" not in text and "Fatal" not in text and "terminate called" not in text
        return text

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        self.output += os.read(self._master, 65536)
        return True


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "clip.mp4"
    write_mp4(World.sample(57, "heldout", duration=20.0), path)
    return path


@contextmanager
def chatting(*args: object, before: str = ""):
    terminal = Terminal(*args, before=before)
    try:
        yield terminal
    finally:
        terminal.close()


def ends_in_time(scenario: Callable[[], float]) -> None:
    """Asserts that Ctrl-C is quick in a scenario, which may be repeated on a busy machine."""
    taken = []
    while not taken or (taken[-1] > ENDS_WITHIN and len(taken) < ATTEMPTS):
        taken.append(scenario())
    print("seconds from Ctrl-C to the end:", " ".join(f"{seconds:.2f}" for seconds in taken))
    assert taken[-1] <= ENDS_WITHIN


def test_while_an_answer_is_spoken(clip, tmp_path):
    path = tmp_path / "chat.json"

    def scenario() -> float:
        with (
            LiveServer("mpegts", clip) as server,
            chatting(server.url, "--max-new-tokens", 3000, "--json", path) as me,
        ):
            me.wait_for(lambda new: b"seen" in new)
            me.type("describe it and keep watchng\x7f\x7fing .\r")
            me.wait_for(lambda new: new.count(b"frame age") > 10)
            me.type("what colour is it ?\r")  # in the midst of the first answer
            me.wait_for(lambda new: b"(interrupted)" in new)
            me.type("describe it and keep watching .\r")
            me.wait_for(lambda new: new.count(b"frame age") > 10)
            seconds = me.ctrl_c()
            assert me.check_end().count("stream time") == 1
        return seconds

    ends_in_time(scenario)
    value = json.loads(path.read_text())
    questions = [answer["question"] for answer in value["answers"]]
    assert questions == ["describe it and keep watching .", "what colour is it ?", "describe it and keep watching ."]
    assert all(answer["words"] for answer in value["answers"])
    assert value["statistics"]["frames_seen"] > 0 and value["statistics"]["turns"] >= 2


def test_in_silence(clip):
    def scenario() -> float:
        with LiveServer("mpegts", clip) as server, chatting(server.url) as me:
            me.wait_for(lambda new: b"seen" in new)
            seconds = me.ctrl_c()
            assert "stream time" in me.check_end()
        return seconds

    ends_in_time(scenario)


def test_when_the_stream_has_stopped(clip):
    def scenario() -> float:
        with LiveServer("mpegts", clip, stall_after=30) as server, chatting(server.url) as me:
            me.wait_for(lambda new: b"20 seen" in new)
            time.sleep(2.0)
            seconds = me.ctrl_c()
            assert "stream time" in me.check_end()
        return seconds

    ends_in_time(scenario)


# Under the simulated clock the session itself, and not a reader beside it, hangs in the source.
@pytest.mark.parametrize("flags", [(), ("what do you see ?",), ("?", "--tokens-per-second", 2)], ids=str)
def test_before_the_first_frame(flags):
    def scenario() -> float:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
            with chatting(url, *flags) as me:
                me.wait_for(lambda new: new.count(b"waiting for the first frame") > 5)
                seconds = me.ctrl_c()
                assert "stream time" in me.check_end()
        return seconds

    ends_in_time(scenario)


def test_while_a_playlist_does_not_answer():
    def scenario() -> float:
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            chatting(f"http://127.0.0.1:{silent.getsockname()[1]}/live.m3u8") as me,
            silent.accept()[0],
        ):
            seconds = me.ctrl_c()
            me.check_end()
        return seconds

    ends_in_time(scenario)


@pytest.mark.parametrize("module", ["torch", "transformers", "streamchat_hf"])
def test_while_the_libraries_are_imported(module, clip):
    def scenario() -> float:
        with chatting(clip, before=SLOW_IMPORT.format(module=module)) as me:
            me.wait_for(lambda new: b"importing" in new)
            seconds = me.ctrl_c()
            assert "Traceback" not in me.check_end()
        return seconds

    ends_in_time(scenario)


def test_while_the_model_is_loaded(clip):
    def scenario() -> float:
        with chatting(clip, before=SLOW_LOADING) as me:
            me.wait_for(lambda new: b"loading" in new)
            seconds = me.ctrl_c()
            me.check_end()
        return seconds

    ends_in_time(scenario)


def test_on_pipes(clip):
    def scenario() -> float:
        code = "from streamchat_cli import main; " + RUN
        command = [sys.executable, "-c", code, "chat", clip, "--max-new-tokens", "3000"]
        with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, env=os.environ) as process:
            process.stdin.write("what colour is it ?\n")
            process.stdin.flush()
            while "spoken at" not in process.stdout.readline():
                pass
            process.stdin.write("describe it and keep watching .\n")
            process.stdin.flush()
            time.sleep(0.5)
            signalled = time.monotonic()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate()
            seconds = time.monotonic() - signalled
        assert (process.returncode, errors) == (128 + signal.SIGINT, "")
        assert "(interrupted)" in output and "stream time" in output and "\x1b" not in output
        return seconds

    ends_in_time(scenario)
