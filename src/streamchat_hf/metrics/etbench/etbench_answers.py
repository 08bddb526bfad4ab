"""What ET-Bench's own script reads in an answer: spans of time, captions with their spans, the letter of an option.

A model answers in words, and how they are read decides its score as much as what it saw. So the rules are the
script's to the letter, where they are odd too; each oddity is named where it happens. Spans are (start, end) in
seconds, start first.
"""

import re

Span = tuple[float, float]

# Digits, any run of full stops, digits: 12, 12.5 and 12. are numbers, and 12..5 is one that nobody can read.
_NUMBER = r"\d+\.*\d*"
_HYPHEN = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})")
_TO = re.compile(rf"({_NUMBER})\s* to \s*({_NUMBER})")
_WHOLE_NUMBER = re.compile(r"\b(\d+\.\d+|\d+)\b")  # not the 5 of 5s, but the 5 of 5.3s

_LABELLED = re.compile(rf"(start|end)(?:ing)? time: ({_NUMBER})")
_UNLABELLED = re.compile(rf"start time {_NUMBER}, end time {_NUMBER}")
_MINUTES = re.compile(rf"({_NUMBER}):({_NUMBER})")
_LAST_RESORT_NUMBER = re.compile(rf"{_NUMBER}(?!\.)")
_RADIUS = 20.0  # seconds around a single moment

_IN_BRACKETS = re.compile(r"\(([A-Za-z])\)")


def parse_spans(text: str) -> list[Span]:
    """Return the spans that an answer to a grounding task names; none: it failed.

    The first of these that finds anything: numbers with a hyphen between; with the word to; the first number of every
    line (or what ends with ! or ?) with start, end or happen in it, paired in order.

    Raises:
        ValueError: For a number such as 12..5.
    """
    text = text.lower()
    pairs = _HYPHEN.findall(text) or _TO.findall(text)
    if not pairs:
        lines = [line for line in re.split(r"[!?\n]", text) if re.search("start|end|happen", line)]
        found = [number.group(1) for number in map(_WHOLE_NUMBER.search, lines) if number]
        pairs = list(zip(found[::2], found[1::2], strict=False))
    return [_span(float(one), float(other)) for one, other in pairs]


def parse_captions(text: str) -> list[tuple[Span, str]]:
    """Return the captions that an answer to a captioning task gives, each with its span; none: it failed."""
    try:
        spans, captions = _listed(text.lower())
    except ValueError:
        return []
    # What stands between the times is taken in order, so words before the first time shift all captions by one.
    captions = [caption.strip().strip(", ").rstrip() for caption in captions if len(caption) > 5]
    return list(zip(spans, captions, strict=False)) or _single(text)


def _listed(text: str) -> tuple[list[Span], list[str]]:
    pairs = list(_HYPHEN.finditer(text))
    if pairs:
        rest = text
        for pair in pairs:  # everywhere it occurs: 0 - 1 also goes from 10 - 15
            rest = rest.replace(pair.group(), "\n")
        return [_span(float(pair[1]), float(pair[2])) for pair in pairs], rest.replace("seconds", "").split("\n")
    times: dict[str, list[str]] = {"start": [], "end": []}
    for label, number in _LABELLED.findall(text):
        times[label].append(number)
    if times["start"] and times["end"]:
        spans = [_span(float(start), float(end)) for start, end in zip(times["start"], times["end"], strict=False)]
        return spans, re.findall(r"description: (.*)", text) or re.findall(r"\*\s*(.*)", text)
    if _UNLABELLED.search(text):
        raise ValueError("ET-Bench does not read times without a colon")
    return [], []


def _single(text: str) -> list[tuple[Span, str]]:
    """The first line, or else sentence, in which a time can be found; after the last "seconds" is its caption."""
    if "\n" in text:
        pieces = [line for line in text.split("\n") if len(line) > 7]
    else:
        pieces = [f"{sentence}." for sentence in text.split(".") if len(sentence) > 7]
    for piece in pieces:
        parts = piece.split("seconds")
        try:
            span = _moment(parts[0])
        except ValueError:
            continue
        if span is not None:
            return [(span, parts[-1].strip(",").strip())]
    return []


def _moment(text: str) -> Span | None:
    """The span of a text with one time, if it has one: with a hyphen, with colons, or as one number or two."""
    pair, colons = _HYPHEN.search(text), text.count(":")
    if pair is not None:
        times = [float(number) for number in pair.groups()]
    elif colons in (1, 2):
        times = [60.0 * int(minutes) + int(seconds) for minutes, seconds in _MINUTES.findall(text)][:colons]
        if len(times) < colons:
            return None
    else:
        times = [float(number) for number in _LAST_RESORT_NUMBER.findall(text)]
    if len(times) == 1:
        time = times[0]
        times = [time - _RADIUS, time + _RADIUS] if time > _RADIUS else [time, time + 2 * _RADIUS]
    return _span(round(times[0], 2), round(times[1], 2)) if len(times) == 2 else None


def _span(one: float, other: float) -> Span:
    return (one, other) if one <= other else (other, one)


def bracketed_letter(text: str) -> str | None:
    """Return the first letter that stands alone in round brackets, in lower case."""
    found = _IN_BRACKETS.search(text)
    return found.group(1).lower() if found else None


def without_preamble(text: str) -> str:
    """Return an answer without "Best Option:" and opening brackets before it."""
    if text.lower().startswith("best option:"):
        text = text[len("best option:") :]
    return text.lstrip().lstrip("(").lstrip()


def leading_letter(text: str) -> str | None:
    """Return the first character, in lower case, if nothing or one of `.,) ` follows: A man walks is option a."""
    return text[0].lower() if len(text) == 1 or text[1:2] in tuple(".,) ") else None
