"""What a language model is asked to write, and whether it has written it (StreamChat, section 2.2)."""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from streamchat_hf.data.synthesize_segment import Segment

# Words per second of an answer. Lively speech has 3, and 5 is as fast as anybody follows; below one word in four
# seconds the words have lost the video that they are about.
SLOWEST, FASTEST = 0.25, 5.0
# A model that rounds the times it was given has not left the segment.
ROUNDING = 0.1

SYSTEM = f"""\
You write training data for an assistant that watches a video live and talks about it while it goes on.

You get the dense captions of one segment of a video, with times in seconds. Imagine the segment being watched live. \
Pick a moment "start" in it at which a user says something to the assistant, and a moment "end" at which the \
assistant has finished its answer. Write:
- "instruction": what the user says at "start". It is about what is on the screen now and what comes next: to follow \
what happens, to notice a change, to describe a scene as it unfolds, to help with what the user is doing. Users see \
the video, never the captions.
- "answer": what the assistant says from "start" to "end", word after word at an even pace. At each word it has seen \
the video up to that moment and nothing of what follows. So it tells things in the order in which they happen, and \
none before it happens.

Say only what the captions say. Do not mention captions, segments or seconds. Use plain spoken sentences, about two \
words per second, never more than {FASTEST:g}. "start" and "end" lie inside the segment. Let the instruction differ \
in kind and wording from those of the examples.

Reply with one JSON object and nothing else:
{{"instruction": "...", "answer": "...", "start": 12.0, "end": 20.5}}"""
PROMPT_VERSION = hashlib.sha256(SYSTEM.encode()).hexdigest()[:8]

Messages = list[dict[str, str]]

_REFUSAL = re.compile(
    r"""\W*(?: i\s?['’]?\s?a?m\s+ (?:(?:very|so|really|truly)\s+)? (?:sorry|afraid|unable|not\s+able)
             | i\s+ (?:can\s?not|can['’]?t|won['’]?t|will\s+not|must\s+decline) \b
             | sorry\b | (?:my\s+)?apologies\b | i\s+apologi[sz]e\b | unfortunately,?\s+i\b | as\s+an\s+ai\b )""",
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class Draft:
    """A dense instruction as it was written: asked at `start`, answered until `end`, in seconds."""

    instruction: str
    answer: str
    start: float
    end: float


@dataclass(frozen=True)
class Example:
    """A segment with what a good answer made of it."""

    segment: Segment
    draft: Draft


class BadAnswer(ValueError):
    """An answer that is no dense instruction of its segment.

    Attributes:
        kind: `"refused"`, `"broken_json"`, `"missing_field"`, `"empty"`, `"times_outside"`, `"too_fast"` or
            `"too_slow"`.
    """

    def __init__(self, kind: str, problem: str):
        super().__init__(problem)
        self.kind = kind


def caption_lines(segment: Segment) -> list[str]:
    """Return a segment's captions as a prompt shows them: `"[12.0 - 15.5] A man opens the door."`."""
    return [f"[{caption.start} - {caption.end}] {caption.text}" for caption in segment.captions]


def build_messages(segment: Segment, examples: Sequence[Example], system: str = SYSTEM) -> Messages:
    """Return the conversation that asks for an instruction: system text, examples as earlier turns, the segment."""
    messages = [{"role": "system", "content": system}]
    for example in examples:
        messages.append({"role": "user", "content": _question(example.segment)})
        messages.append({"role": "assistant", "content": json.dumps(vars(example.draft), ensure_ascii=False)})
    return [*messages, {"role": "user", "content": _question(segment)}]


def _question(segment: Segment) -> str:
    return "\n".join([f"Segment from {segment.start} to {segment.end} seconds:", *caption_lines(segment)])


def read_object(text: str) -> dict[str, Any]:
    """Read the JSON object that a model was asked for.

    Whatever stands around it is passed over: a code fence, thoughts in `<think>`, a kind word.

    Raises:
        BadAnswer: If there is none. Its kind is `"empty"`, `"refused"` or `"broken_json"`.
    """
    text = text.rpartition("</think>")[2].strip()
    if not text:
        raise BadAnswer("empty", "nothing was written")
    try:
        # Not strict: line breaks inside of strings harm nobody.
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, max(text.find("{"), 0))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        refused = _REFUSAL.match(text) is not None
        raise BadAnswer("refused" if refused else "broken_json", f"no JSON object in {text[:80]!r}")
    return value


def read_answer(text: str, segment: Segment) -> Draft:
    """Read a model's answer.

    Args:
        text: What the model wrote, see `read_object`.
        segment: What it was asked about.

    Returns:
        The draft, its times within the segment and its white space reduced to single blanks.

    Raises:
        BadAnswer: If it is no dense instruction of this segment.
    """
    value = read_object(text)
    instruction, answer = _words(value, "instruction"), _words(value, "answer")
    if _REFUSAL.match(answer):
        raise BadAnswer("refused", answer[:80])
    return check_draft(Draft(instruction, answer, _seconds(value, "start"), _seconds(value, "end")), segment)


def check_draft(draft: Draft, segment: Segment) -> Draft:
    """Return a draft with its times within the segment.

    Raises:
        BadAnswer: If words are missing, times are outside, or nobody speaks at this pace.
    """
    if not (draft.instruction and draft.answer):
        raise BadAnswer("empty", "no instruction or no answer")
    times = f"{draft.start} to {draft.end} s"
    start, end = max(draft.start, segment.start), min(draft.end, segment.end)
    if not (abs(start - draft.start) <= ROUNDING and abs(end - draft.end) <= ROUNDING and start < end):
        raise BadAnswer("times_outside", f"{times} is not inside {segment.start} to {segment.end} s")
    pace = len(draft.answer.split()) / (end - start)
    if pace > FASTEST:
        raise BadAnswer("too_fast", f"{pace:.2g} words per second from {times}, at most {FASTEST:g}")
    if pace < SLOWEST:
        raise BadAnswer("too_slow", f"{pace:.2g} words per second from {times}, at least {SLOWEST:g}")
    return replace(draft, start=start, end=end)


def _words(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if not isinstance(text, str):
        raise BadAnswer("missing_field", f"{name} is {text!r}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError:  # half an emoji, written as \ud83d: no tokenizer takes it
        raise BadAnswer("broken_json", f"{name} is no text") from None
    return " ".join(text.split())


def _seconds(value: dict[str, Any], name: str) -> float:
    number = value.get(name)
    if isinstance(number, bool) or not isinstance(number, int | float | str):
        raise BadAnswer("missing_field", f"{name} is {number!r}, not a number of seconds")
    try:
        return float(number)
    except OverflowError:
        return math.inf
    except ValueError:
        raise BadAnswer("missing_field", f"{name} is {number!r}, not a number of seconds") from None
