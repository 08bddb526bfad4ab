import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchat_hf.metrics.etbench.etbench_answers import (
    bracketed_letter,
    leading_letter,
    parse_captions,
    parse_spans,
    without_preamble,
)

FIXTURES = Path(__file__).parents[2] / "fixtures" / "etbench"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "etbench"
examples = settings(max_examples=300, deadline=None)


def golden(name):
    """The cases of the repository, and those beside it if they are there."""
    return [
        case for folder in (FIXTURES, SHARED) if folder.is_dir() for case in json.loads((folder / name).read_text())
    ]


def test_spans_are_those_of_the_official_parser():
    for case in golden("parse_spans.json"):
        if "raises" in case:
            with pytest.raises(ValueError):
                parse_spans(case["text"])
        else:
            assert parse_spans(case["text"]) == [tuple(span) for span in case["output"] or []], case["text"]


def test_captions_are_those_of_the_official_parser():
    for case in golden("parse_captions.json"):
        expected = case["output"] or {"spans": [], "captions": []}
        spans = [tuple(span) for span in expected["spans"]]
        assert parse_captions(case["text"]) == list(zip(spans, expected["captions"], strict=True)), case["text"]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("10.0s - 20.0s", []),
        ("10 – 20, 10 — 20", []),
        ("starts at 5 seconds and ends at 10 seconds", []),
        ("starts at 5 seconds\nends at 10 seconds", [(5, 10)]),
        ("starts at 5s\nends at 10s", []),
        ("starts at 5.5s\nends at 10.5s", [(5, 10)]),
        ("the weekend at 9!the friend of 3", [(3, 9)]),
        ("01:10 - 02:20", [(2, 10)]),
        ("1,200 - 1,300", [(1, 200)]),
        ("-5 - 10", [(5, 10)]),
        ("5-10-15", [(5, 10)]),
        ("2024-01-05 .. 3 - 9", [(1, 2024), (3, 9)]),
        ("1 - 2, then 5 to 9", [(1, 2)]),
        ("5 to 9 and 9\tto\t12", [(5, 9)]),
        ("<10> - <20>, (3, 9), 7to12", []),
        ("1e3 - 2e3", [(2, 3)]),
        ("10\u00a0-\u00a020", [(10, 20)]),
    ],
)
def test_odd_spans(text, spans):
    assert parse_spans(text) == spans


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        (
            "Here are the events: 0 - 5 he sits down. 5 - 9 he stands up.",
            [((0, 5), "here are the events:"), ((5, 9), "he sits down.")],
        ),
        ("0 - 9 seconds, a second helping of seconds", [((0, 9), "a second helping of")]),
        ("start time: 3.0s, ending time: 1 description: he sits\ndescription: he stands", [((1, 3), "he sits")]),
        ("start time 3, end time 9, he sits down", []),
        ("start time: 3 seconds\nend time: 9 seconds\nAt 5 seconds he Sits", [((5, 45), "he Sits")]),
        ("At 25 seconds, a man Runs. At 3 seconds, he falls.", [((5, 45), "a man Runs.")]),
        ("1:05 a man runs", [((45, 85), "1:05 a man runs.")]),
        ("a: long\nbetween 1:05 and 1:15 he runs", [((65, 75), "between 1:05 and 1:15 he runs")]),
        ("1 and 2 and 3 go. then 7 goes", [((7, 47), "then 7 goes.")]),
        ("1..5 is no number\nbut 6 is one", [((6, 46), "but 6 is one")]),
        ("at 5 he\nat 6 he.", [((6, 46), "at 6 he.")]),  # seven characters are too few
        ("at 20 seconds, he sits", [((20, 60), "he sits.")]),
    ],
)
def test_odd_captions(text, captions):
    assert parse_captions(text) == captions


# The rules once more, without regular expressions.


def number(text, start):
    """The end of the number that starts here: digits, full stops, digits."""
    end = start
    for belongs in (str.isdecimal, lambda character: character == ".", str.isdecimal):
        while end < len(text) and belongs(text[end]):
            end += 1
        if end == start:
            return None
    return end


def skip_blanks(text, start):
    while start < len(text) and text[start].isspace():
        start += 1
    return start


def hyphen(text, start):
    start = skip_blanks(text, start)
    return skip_blanks(text, start + 1) if text[start : start + 1] == "-" else None


def word_to(text, start):
    after = skip_blanks(text, start)
    return skip_blanks(text, after + 2) if after > start and text[after - 1 : after + 3] == " to " else None


def pairs(text, between):
    """(start, end, one number, other number) from left to right."""
    at = 0
    while at < len(text):
        first = number(text, at)
        second = None if first is None else between(text, first)
        end = None if second is None else number(text, second)
        if end is None:
            at += 1
        else:
            yield at, end, text[at:first], text[second:end]
            at = end


def naive_spans(text):
    text = text.lower()
    found = [pair[2:] for pair in pairs(text, hyphen)] or [pair[2:] for pair in pairs(text, word_to)]
    if not found:
        lines = text.replace("!", "\n").replace("?", "\n").split("\n")
        lines = [line for line in lines if "start" in line or "end" in line or "happen" in line]
        times = [time for time in map(first_whole_number, lines) if time is not None]
        found = [(times[i], times[i + 1]) for i in range(0, len(times) - 1, 2)]
    return [tuple(sorted((float(one), float(other)))) for one, other in found]


def first_whole_number(line):
    """Neither before nor behind it stands a letter, digit or underscore."""
    padded = f" {line} "
    word = [character.isalnum() or character == "_" for character in padded]
    for start in range(1, len(padded)):
        if padded[start].isdecimal() and not word[start - 1]:
            end = start
            while padded[end].isdecimal():
                end += 1
            tail = end + 1
            while padded[end] == "." and tail < len(padded) and padded[tail].isdecimal():
                tail += 1
            if tail > end + 1 and not word[tail]:
                return padded[start:tail]
            if not word[end]:
                return padded[start:end]
    return None


def naive_listed_captions(text):
    """The captions of a text with hyphens between times; None if it has none."""
    rest = text = text.lower()
    found = list(pairs(text, hyphen))
    for start, end, *_ in found:
        rest = "\n".join(rest.split(text[start:end]))
    captions = [
        piece.strip().strip(", ").strip() for piece in "".join(rest.split("seconds")).split("\n") if len(piece) > 5
    ]
    spans = [tuple(sorted((float(one), float(other)))) for *_, one, other in found]
    return list(zip(spans, captions, strict=False))


NUMBERS = ["1", "2", "30", "4.5", "6.", "7.7", "1..2", "٣"]
MARKS = ["-", " - ", " to ", "to", " ", "\t", "\n", ".", ":", ", ", "!", "_", "* "]
WORDS = ["Start", " ends ", "happen", "s", " seconds", " second ", "he sits down", "description: "]
LABELS = ["start time: ", "ending time: ", "start time 3, end time 4"]
fragments = st.lists(st.sampled_from([*NUMBERS, *MARKS, *WORDS, *LABELS]), max_size=14).map("".join)


@examples
@given(fragments)
def test_spans_agree_with_the_naive_way(text):
    try:
        expected = naive_spans(text)
    except ValueError:
        with pytest.raises(ValueError):
            parse_spans(text)
    else:
        assert parse_spans(text) == expected
        assert all(start <= end for start, end in expected)


@examples
@given(fragments)
def test_listed_captions_agree_with_the_naive_way(text):
    try:
        expected = naive_listed_captions(text)
    except ValueError:
        assert parse_captions(text) == []
    else:
        # Without them there is at most one caption, read in another way.
        assert parse_captions(text) == expected if expected else len(parse_captions(text)) <= 2
        assert all(start <= end for (start, end), _ in parse_captions(text))


@pytest.mark.parametrize(
    ("text", "letter"), [("it is (B) or (C)", "b"), ("(BC) (d)", "d"), ("[B]", None), ("(5)", None), ("(B", None)]
)
def test_a_letter_in_brackets(text, letter):
    assert bracketed_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Best Option: (B) is it", "b"),
        ("  (( c", "c"),
        ("best option:D", "d"),
        ("A man walks", "a"),
        ("B: it is", None),
        ("B\n", None),
        ("Both", None),
    ],
)
def test_a_letter_that_leads(text, letter):
    assert leading_letter(without_preamble(text)) == letter
