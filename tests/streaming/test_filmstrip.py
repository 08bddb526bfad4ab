import math

import numpy as np
import pytest
from PIL import Image, ImageColor

from streamchat_hf.streaming import filmstrip
from streamchat_hf.streaming.filmstrip import _columns, draw_filmstrip
from streamchat_hf.streaming.words import SpokenWord

FRAMES = [(i / 2, Image.new("RGB", (16, 8), (10 * i, 0, 0))) for i in range(24)]


def words(text: str, start: float = 1.0, rate: float = 2.0, frozen: bool = False) -> list[SpokenWord]:
    times = [start + i / rate for i in range(len(text.split()))]
    return [
        SpokenWord(w, t, start if frozen else math.floor(t * 2) / 2) for w, t in zip(text.split(), times, strict=True)
    ]


def pixels(path, colour: str) -> int:
    return int((np.asarray(Image.open(path)) == ImageColor.getrgb(colour)).all(-1).sum())


def test_each_word_stands_under_its_frame():
    columns = _columns(words("a red circle"), FRAMES, [])
    assert [(c.time, c.words) for c in columns] == [
        (1.0, [("a", False)]),
        (1.5, [("red", False)]),
        (2.0, [("circle", False)]),
    ]


def test_several_words_share_a_frame():
    columns = _columns(words("a red circle , left", rate=6.0), FRAMES, [])
    assert [[w for w, _ in c.words] for c in columns] == [["a", "red", "circle"], [",", "left"]]


def test_frozen_words_stand_where_the_live_ones_do_and_differences_are_marked():
    columns = _columns(words("a red circle now"), FRAMES, words("a blue circle", frozen=True))
    assert [c.frozen for c in columns] == [[("a", False)], [("blue", False)], [("circle", False)], []]
    assert [c.words[0][1] for c in columns] == [False, True, False, True]


def test_a_word_that_has_seen_nothing_stands_under_the_first_frame():
    columns = _columns([SpokenWord("a", 0.0, math.nan), SpokenWord("red", 0.5, 0.5)], FRAMES, [])
    assert [c.time for c in columns] == [0.0, 0.5]


def test_long_answers_take_several_rows(tmp_path):
    short = Image.open(draw_filmstrip(words("up " * 10), FRAMES, tmp_path / "short.png", "where ?", 1.0))
    long = Image.open(draw_filmstrip(words("up " * 11), FRAMES, tmp_path / "long.png", "where ?", 1.0))
    assert long.width == short.width and long.height > short.height
    assert short.format == "PNG"


def test_marks_and_outline_are_drawn_only_where_they_belong(tmp_path):
    same = draw_filmstrip(words("a b"), FRAMES, tmp_path / "same.png", "?", 1.0, words("a b", frozen=True))
    other = draw_filmstrip(words("a b"), FRAMES, tmp_path / "other.png", "?", 1.0, words("a c", frozen=True))
    alone = draw_filmstrip(words("a b"), FRAMES, tmp_path / "alone.png", "?", 0.5)
    assert pixels(alone, filmstrip.CHANGED) == 0 < pixels(same, filmstrip.CHANGED)  # the legend's sample
    assert pixels(other, filmstrip.CHANGED) > pixels(same, filmstrip.CHANGED)
    # Asked before any frame that is drawn: none is outlined.
    assert pixels(alone, filmstrip.ASKED) == 0 < pixels(same, filmstrip.ASKED)


def test_only_frames_with_words_are_drawn(tmp_path):
    path = draw_filmstrip(words("a b"), FRAMES, tmp_path / "strip.png", "?", 1.0)
    drawn = [time for time, image in FRAMES if pixels(path, "rgb({},{},{})".format(*image.getpixel((0, 0))))]
    # Frame 0 is black, as is the border of a frame that is wider than high.
    assert drawn == [0.0, 1.0, 1.5]


def test_a_question_too_long_is_cut(tmp_path):
    path = draw_filmstrip(words("a b"), FRAMES, tmp_path / "strip.png", "what do you see ? " * 30, 1.0)
    right = np.asarray(Image.open(path))[:, -filmstrip.MARGIN + 2 :]
    assert (right == 255).all()


def test_columns_keep_apart(tmp_path):
    path = draw_filmstrip(words("a b"), FRAMES, tmp_path / "strip.png", "?", 1.0)
    image = np.asarray(Image.open(path)).astype(int)
    row = image[filmstrip.MARGIN + filmstrip.TITLE_SIZE + 30 + filmstrip.HOLE + 18 + filmstrip.TILE // 2]
    first = np.flatnonzero((row == (20, 0, 0)).all(-1))
    second = np.flatnonzero((row == (30, 0, 0)).all(-1))
    assert len(first) and len(second) == filmstrip.TILE
    assert second[0] - first[-1] > filmstrip.GAP - 4


@pytest.mark.parametrize(("spoken", "frames", "message"), [([], FRAMES, "words"), (words("a"), [], "frames")])
def test_nothing_to_draw_is_an_error(tmp_path, spoken, frames, message):
    with pytest.raises(ValueError, match=message):
        draw_filmstrip(spoken, frames, tmp_path / "strip.png", "?", 1.0)
    assert not (tmp_path / "strip.png").exists()
