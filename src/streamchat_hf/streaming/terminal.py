"""A session in a terminal: the conversation while it goes on, its numbers, and questions typed meanwhile."""

import codecs
import math
import os
import re
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from streamchat_hf.streaming.answer import Answer
from streamchat_hf.streaming.events import Event, FrameSeen, ResponseEnded, ResponseStarted, Token
from streamchat_hf.streaming.session import StreamingSession
from streamchat_hf.streaming.statistics import SessionStatistics, Spread
from streamchat_hf.streaming.words import SpokenWord, spoken_words

try:
    import termios
    import tty
except ImportError:  # Windows: there a terminal gives whole lines
    termios = tty = None  # type: ignore[assignment]

REFRESHES = 10  # per second
END = "\x04"  # Ctrl-D
# What arrow and function keys send.
ESCAPE_SEQUENCE = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O.|.)?")


class Chat:
    """Runs a session in a terminal.

    On a terminal the answer grows word by word above a line of numbers; a turn that has ended scrolls away upwards.
    Elsewhere each answer is printed when it has ended, as a table of its words and a sentence.

    Args:
        session: The session.
        tokenizer: The tokenizer of its processor.
        console: Where to show it.
        questions: File descriptor from which every line is a question, asked when it arrives; `None` to read none.

    Attributes:
        answers: Every answer, the one that was cut off at the end included.
    """

    def __init__(self, session: StreamingSession, tokenizer: Any, console: Console, questions: int | None = None):
        self.answers: list[Answer] = []
        self._session, self._tokenizer, self._console = session, tokenizer, console
        self._asked = 0
        self._lines: Lines | None = None
        if questions is not None:
            keys = console.is_interactive and os.isatty(questions) and termios is not None
            self._lines = Lines(questions, self._ask_now, self._no_more_questions, keys)
        self._view = View(session, self._lines.read_typed if self._lines and self._lines.keys else None)

    def ask(self, question: str, at: float | None = None) -> None:
        """Asks, as the session's own `ask` does."""
        self._session.ask(question, at)
        self._asked += 1
        if self._session.policy == "activation":  # the answer may be long in coming
            self._console.print(Text(f"watching for: {question}", style="dim"))

    def run(self) -> None:
        """Shows the session until it ends, or until all is answered and nobody can ask any more.

        Whatever ends it, the session is closed, the terminal is as it was, and what was said stands on the screen.
        """
        try:
            with ExitStack() as stack:
                if self._lines is not None:
                    stack.enter_context(self._lines.reading())
                if self._console.is_interactive:
                    live = Live(self._view, console=self._console, refresh_per_second=REFRESHES, transient=True)
                    stack.enter_context(live)
                stack.enter_context(self._session)
                for event in self._session:
                    self._take(event)
                    if self._all_is_said():
                        break
        finally:
            if self._view.turn is not None:
                self._end(self._view.turn.answer(self._tokenizer), "interrupted")

    def _take(self, event: Event) -> None:
        if isinstance(event, FrameSeen):
            self._view.newest_frame = event.t_sec
        elif isinstance(event, ResponseStarted):
            self._view.turn = Turn(event.question, event.time)
        elif isinstance(event, Token) and self._view.turn is not None:
            self._view.turn.tokens.append(event)
        elif isinstance(event, ResponseEnded):
            self._end(event.answer, event.reason)

    def _end(self, answer: Answer, reason: str) -> None:
        turn, self._view.turn = self._view.turn, None
        self.answers.append(answer)
        if self._console.is_interactive and turn is not None:
            turn.cut_off = reason == "interrupted"
            self._console.print(turn)
        else:
            self._console.print(word_table(answer.question, answer.start_time, answer.words))
            self._console.print(Text(f"{answer.text}{' (interrupted)' if reason == 'interrupted' else ''}".strip()))

    def _ask_now(self, question: str) -> None:
        try:
            self.ask(question)
        except ValueError as error:  # whoever typed it can ask again
            self._console.print(Text(str(error), style="red"))
        except RuntimeError:  # the session has just ended
            pass

    def _all_is_said(self) -> bool:
        if self._session.policy != "on-question":  # it may say more as long as there is something to see
            return False
        # Who asks nothing here watches a recording, which asks by itself.
        no_more = self._lines.ended if self._lines is not None else self._asked > 0
        return no_more and len(self.answers) >= self._asked

    def _no_more_questions(self) -> None:
        # Otherwise the end of the answer under way ends the session.
        if self._all_is_said():
            self._session.close()


@dataclass
class Turn:
    """A question and what has been said about it so far.

    Attributes:
        question: What was asked.
        time: When, in seconds of the stream.
        tokens: What was said.
        cut_off: Whether it was interrupted.
    """

    question: str
    time: float
    tokens: list[Token] = field(default_factory=list)
    cut_off: bool = False

    def answer(self, tokenizer: Any) -> Answer:
        """The answer so far."""
        ids, times, frame_times = ([getattr(t, name) for t in self.tokens] for name in ("id", "time", "frame_time"))
        words = spoken_words(tokenizer, ids, times, frame_times)
        return Answer(self.question, self.time, words, ids, times, frame_times)

    def __rich__(self) -> Table:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_column(justify="right", style="dim", no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(justify="right", style="dim", no_wrap=True)
        grid.add_row(seconds(self.time), Text(self.question, style="bold"))
        said = Text("".join(token.text for token in self.tokens).strip())
        if self.cut_off:
            said.append(" (interrupted)", style="dim")
        if self.tokens:
            age = f"frame age {seconds(self.tokens[-1].frame_age)}"
            grid.add_row(seconds(self.tokens[0].time), said, age)
        else:
            grid.add_row("", said)
        return grid


class View:
    """The lower end of the screen: the answer under way, the session's numbers, the line being typed.

    Args:
        session: The session whose numbers are shown.
        read_typed: Gives the line being typed; `None` if it is not shown.

    Attributes:
        turn: The question being answered.
        newest_frame: Time in seconds of the newest frame that was seen.
    """

    def __init__(self, session: StreamingSession, read_typed: Callable[[], str] | None = None):
        self.turn: Turn | None = None
        self.newest_frame = math.nan
        self._session, self._read_typed = session, read_typed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts: list[Any] = [] if self.turn is None else [self.turn, ""]
        parts.append(status_line(self._session.statistics(), self.newest_frame))
        if self._read_typed is not None:
            typed = self._read_typed()
            hint = "" if typed else "type a question; Ctrl-C ends"
            parts.append(Text.assemble(("› ", "bold"), typed, "▏", (hint, "dim")))
        # On a screen too small the newest words and what is below them stay.
        lines = console.render_lines(Group(*parts), options.update(height=None), pad=False)
        for line in lines[-max(options.size.height - 1, 1) :]:
            yield from line
            yield Segment.line()


class Lines:
    """Reads lines in a thread of its own.

    Args:
        fd: File descriptor to read from.
        on_line: Called with each line that is not empty.
        on_end: Called when nothing more can come.
        keys: Whether to take the keys of a terminal one by one, so that the line being typed can be shown elsewhere.

    Attributes:
        keys: As given.
        ended: Whether nothing more can come.
    """

    def __init__(self, fd: int, on_line: Callable[[str], None], on_end: Callable[[], None], keys: bool = False):
        self.keys, self.ended = keys, False
        self._fd, self._on_line, self._on_end = fd, on_line, on_end
        self._typed = ""
        self._stop = threading.Event()

    def read_typed(self) -> str:
        """The line being typed."""
        return self._typed

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Reads until the end of the block; the terminal is then as it was."""
        thread = threading.Thread(target=self._read, name="streamchat questions", daemon=True)
        with key_by_key(self._fd) if self.keys else nullcontext():
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                if termios is not None:  # otherwise nothing ends its waiting
                    thread.join()

    def _read(self) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while not self.ended and not self._stop.is_set():
            data = self._next_bytes()
            if data is not None:
                self._take(decode(data) if data else "\n" + END)

    def _next_bytes(self) -> bytes | None:
        """What has come, empty at the end; `None` if nothing comes in a while."""
        try:
            if termios is not None and not select.select([self._fd], [], [], 0.05)[0]:
                return None
            # Not through sys.stdin: a thread that waits inside its buffer would crash the interpreter's exit.
            return os.read(self._fd, 4096)
        except OSError:  # the terminal is gone
            return b""

    def _take(self, text: str) -> None:
        for key in ESCAPE_SEQUENCE.sub("", text):
            if key in "\r\n":
                line, self._typed = self._typed.strip(), ""
                if line:
                    self._on_line(line)
            elif key in "\x7f\b":
                self._typed = self._typed[:-1]
            elif key == "\x15":  # Ctrl-U
                self._typed = ""
            elif key == END and not self._typed:
                self.ended = True
                self._on_end()
            elif key.isprintable():
                self._typed += key


@contextmanager
def key_by_key(fd: int) -> Iterator[None]:
    """A terminal that hands over each key at once and shows none; afterwards it is as it was."""
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd, termios.TCSADRAIN)  # what was typed already is kept
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def status_line(statistics: SessionStatistics, newest_frame: float) -> Text:
    """A session's numbers in one line."""
    if math.isnan(newest_frame):
        return Text("waiting for the first frame", style="dim")
    speed = statistics.tokens_per_second
    parts = (
        f"{statistics.seconds:.1f} s",
        f"{statistics.frames_seen} seen, {statistics.frames_encoded} encoded, {statistics.frames_dropped} dropped",
        f"frame age {seconds(statistics.seconds - newest_frame)}",
        f"{'–' if speed is None else f'{speed:.1f}'} tokens/s",
        f"{statistics.reconnects} reconnects",
    )
    return Text(" · ".join(parts), style="dim")


def statistics_table(statistics: SessionStatistics) -> Table:
    """A session's numbers at its end."""

    def percentiles(values: Spread | None) -> str:
        if values is None:
            return "–"
        return f"p50 {values.p50:.3f} s, p95 {values.p95:.3f} s, max {values.maximum:.3f} s"

    speed = statistics.tokens_per_second
    rows = {
        "stream time": f"{statistics.seconds:.1f} s",
        "frames": f"{statistics.frames_seen} seen, {statistics.frames_encoded} encoded, "
        f"{statistics.frames_dropped} dropped, {statistics.reconnects} reconnects",
        "answers": f"{statistics.turns}, {statistics.tokens} tokens"
        + (f" at {speed:.1f} per second" if speed is not None else ""),
        "age of a frame": percentiles(statistics.frame_age),
        "age behind a token": percentiles(statistics.token_frame_age),
        "first token after": percentiles(statistics.first_token_latency),
        "memory": f"{statistics.visual_bytes / 2**20:.1f} MiB of frames, {statistics.text_tokens} tokens of text",
    }
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), value)
    return table


def word_table(question: str, at: float, words: list[SpokenWord]) -> Table:
    """Words with their times."""
    table = Table(title=Text(f"{at:.1f} s  {question}", style="bold"), title_justify="left")
    table.add_column("spoken at", justify="right")
    table.add_column("word")
    table.add_column("newest frame", justify="right")
    table.add_column("frame age", justify="right")
    for word in words:
        table.add_row(seconds(word.time), Text(word.text), seconds(word.frame_time), seconds(word.frame_age))
    return table


@contextmanager
def live_word_table(console: Console, question: str, at: float) -> Iterator[Callable[[list[SpokenWord]], None]]:
    """A table that grows while words are spoken; on a screen too small it shows the newest ones until the end."""
    spoken: list[SpokenWord] = []
    room = max(console.height - 6, 1)
    with Live(word_table(question, at, spoken), console=console, auto_refresh=False) as live:

        def show(words: list[SpokenWord]) -> None:
            spoken[:] = words
            live.update(word_table(question, at, words[-room:]), refresh=True)

        yield show
        live.update(word_table(question, at, spoken))
    if not console.is_terminal:
        console.print()  # there rich leaves the last line open


def seconds(time: float) -> str:
    """A time as people read it; a dash for what there is not."""
    return "–" if math.isnan(time) else f"{time:.2f} s"
