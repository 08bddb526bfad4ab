"""A picture of an answer: the frames it was spoken on, each word under its frame, the frozen answer beneath."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from streamchat_hf.streaming.words import SpokenWord

TILE = 168  # pixels, the side of one frame's cell
GAP = 14
MARGIN = 48
COLUMNS = 10
HOLE = 18
LINE = 36  # height of a line of words
WORD_SIZE, SMALL_SIZE, TITLE_SIZE = 27, 19, 34

PAPER = "#ffffff"
INK = "#16181d"
FROZEN_INK = "#9aa0aa"
FILM = "#363b47"
FILM_EDGE = "#f4f1ea"
TIME_INK = "#e3e6ec"
CHANGED = "#ffe6a3"
ASKED = "#f2b01e"


class _Column(NamedTuple):
    time: float
    image: Image.Image
    words: list[tuple[str, bool]]  # a word, and whether the frozen answer said something else
    frozen: list[tuple[str, bool]]


def draw_filmstrip(
    words: Sequence[tuple[str, float, float]],
    frames: Sequence[tuple[float, Image.Image]],
    path: str | Path,
    question: str,
    ask_time: float,
    frozen_words: Sequence[tuple[str, float, float]] = (),
) -> Path:
    """Writes the answer as a strip of film.

    Only frames that a word was spoken on are drawn, in rows of ten. A word that differs from the frozen answer's word
    at the same place carries a mark.

    Args:
        words: The answer, `(text, time, frame_time)` each, times in seconds.
        frames: The stream's frames, `(time in seconds, image)`, in order of time.
        path: The PNG to write.
        question: What was asked.
        ask_time: When it was asked, in seconds; the newest frame by then is outlined.
        frozen_words: The answer of the same model when it sees nothing after `ask_time`.

    Returns:
        The path written.

    Raises:
        ValueError: There is no frame, or no word, to draw.
    """
    columns = _columns([SpokenWord(*w) for w in words], frames, [SpokenWord(*w) for w in frozen_words])
    rows = [columns[i : i + COLUMNS] for i in range(0, len(columns), COLUMNS)]
    # The newest frame at the question; every drawn frame may be later, when the first one came after it.
    asked_frame = max((c.time for c in columns if c.time <= ask_time), default=None)
    live_lines = max(len(_lines(c.words)) for c in columns)
    frozen_lines = max(len(_lines(c.frozen)) for c in columns)

    strip_height = TILE + 2 * (HOLE + 2 * 9) + 26
    row_height = strip_height + 12 + LINE * (live_lines + frozen_lines) + 26
    header = MARGIN + TITLE_SIZE + 30
    footer = SMALL_SIZE + MARGIN + 4
    # At least six columns wide, or the legend does not fit.
    width = 2 * MARGIN + max(max(map(len, rows)), 6) * (TILE + GAP) + GAP
    image = Image.new("RGB", (width, header + row_height * len(rows) + footer), PAPER)
    draw = ImageDraw.Draw(image)
    _draw_header(draw, width, question, ask_time)
    for i, row in enumerate(rows):
        top = header + i * row_height
        _draw_film(image, draw, row, top, strip_height, asked_frame)
        _draw_words(draw, row, top + strip_height + 12, live_lines)
    _draw_legend(draw, header + row_height * len(rows), ask_time, bool(frozen_words))
    path = Path(path)
    image.save(path, format="PNG", optimize=True)
    return path


def _columns(
    words: list[SpokenWord], frames: Sequence[tuple[float, Image.Image]], frozen: list[SpokenWord]
) -> list[_Column]:
    if not frames:
        raise ValueError("a film strip needs frames, and none was given")
    if not words:
        raise ValueError("a film strip needs words, and none was given")
    times = [t for t, _ in frames]

    def newest(time: float) -> int:
        # A word that has seen no frame yet stands under the first.
        return 0 if math.isnan(time) else max(bisect_right(times, time + 1e-6) - 1, 0)

    columns: dict[int, _Column] = {}
    for i, word in enumerate(words):
        at = newest(word.frame_time)
        column = columns.setdefault(at, _Column(*frames[at], [], []))
        differs = bool(frozen) and (i >= len(frozen) or frozen[i].text != word.text)
        column.words.append((word.text, differs))
    # A frozen word stands where the live answer was at that moment: under what it did not see.
    for word in frozen:
        spoken = max((w.frame_time for w in words if w.time <= word.time + 1e-6), default=words[0].frame_time)
        columns[newest(spoken)].frozen.append((word.text, False))
    return [columns[at] for at in sorted(columns)]


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _lines(words: list[tuple[str, bool]]) -> list[list[tuple[str, bool]]]:
    """Words of one column, as many on a line as fit the width of a frame."""
    lines: list[list[tuple[str, bool]]] = []
    for word in words:
        if lines and _length([*lines[-1], word]) <= TILE + GAP // 2:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines


def _length(line: list[tuple[str, bool]]) -> float:
    return _font(WORD_SIZE).getlength(" ".join(word for word, _ in line))


def _draw_header(draw: ImageDraw.ImageDraw, width: int, question: str, ask_time: float) -> None:
    asked = f"asked at {ask_time:.1f} s"
    small, title = _font(SMALL_SIZE), _font(TITLE_SIZE)
    room = width - 2 * MARGIN - small.getlength(asked) - 40
    text = f"“{question}”"
    while title.getlength(text) > room and len(text) > 4:
        text = text[:-3] + "…”"
    draw.text((MARGIN, MARGIN), text, font=title, fill=INK)
    draw.text((width - MARGIN, MARGIN + 12), asked, font=small, fill=FROZEN_INK, anchor="ra")


def _left(i: int) -> int:
    return MARGIN + GAP + i * (TILE + GAP)


def _draw_film(
    image: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: list[_Column],
    top: int,
    height: int,
    asked_frame: float | None,
) -> None:
    right = _left(len(row))
    draw.rounded_rectangle((MARGIN, top, right, top + height), radius=10, fill=FILM)
    for edge in (top + 9, top + height - 9 - HOLE):
        holes = (right - MARGIN - GAP) // (2 * HOLE)
        for n in range(holes):
            x = MARGIN + (n + 0.5) * (right - MARGIN) / holes - HOLE / 2
            draw.rounded_rectangle((x, edge, x + HOLE, edge + HOLE), radius=4, fill=FILM_EDGE)
    frame_top = top + HOLE + 2 * 9
    for i, column in enumerate(row):
        left = _left(i)
        draw.rectangle((left, frame_top, left + TILE - 1, frame_top + TILE - 1), fill="#000000")
        fitted = _fit(column.image)
        image.paste(fitted, (left + (TILE - fitted.width) // 2, frame_top + (TILE - fitted.height) // 2))
        if column.time == asked_frame:
            draw.rectangle((left - 3, frame_top - 3, left + TILE + 2, frame_top + TILE + 2), outline=ASKED, width=4)
        centre = (left + TILE / 2, frame_top + TILE + 14)
        draw.text(centre, f"{column.time:.1f} s", font=_font(SMALL_SIZE), fill=TIME_INK, anchor="mm")


def _fit(image: Image.Image) -> Image.Image:
    scale = TILE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _draw_words(draw: ImageDraw.ImageDraw, row: list[_Column], top: int, live_lines: int) -> None:
    for i, column in enumerate(row):
        for n, line in enumerate(_lines(column.words)):
            _draw_line(draw, line, _left(i), top + n * LINE, INK)
        for n, line in enumerate(_lines(column.frozen)):
            _draw_line(draw, line, _left(i), top + (live_lines + n) * LINE, FROZEN_INK)


def _draw_line(draw: ImageDraw.ImageDraw, line: list[tuple[str, bool]], left: int, top: int, ink: str) -> None:
    font = _font(WORD_SIZE)
    x, middle = left + (TILE - _length(line)) / 2, top + LINE / 2
    for word, marked in line:
        length = font.getlength(word)
        if marked:
            box = (x - 7, top + 1, x + length + 7, top + LINE - 1)
            draw.rounded_rectangle(box, radius=9, fill=CHANGED)
        draw.text((x, middle), word, font=font, fill=ink, anchor="lm")
        x += length + font.getlength(" ")


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, ask_time: float, frozen: bool) -> None:
    font = _font(SMALL_SIZE)
    parts: list[tuple[str, str, str | None]]
    parts = [("each word stands under the newest frame when it was spoken", INK, None)]
    if frozen:
        parts.append((f"same model, video frozen at {ask_time:.1f} s (outlined)", FROZEN_INK, None))
        parts.append(("what watching changed", INK, CHANGED))
    x = float(MARGIN)
    for text, ink, fill in parts:
        length = font.getlength(text)
        if fill:
            draw.rounded_rectangle((x - 8, top - 5, x + length + 8, top + SMALL_SIZE + 7), radius=7, fill=fill)
        draw.text((x, top), text, font=font, fill=ink)
        x += length + 36
