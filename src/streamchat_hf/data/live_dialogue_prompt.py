"""What is asked about the past, the present and the future of a video, and how a language model answers it.

The model sees the annotations of a whole video and one question. It writes what an assistant that watches live would
say at every moment at which something begins or ends (VideoLLM-online, 2406.11816, section 3.2).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from dataclasses import dataclass
from typing import Any

from streamchat_hf.data.live_conversation import LiveQuery
from streamchat_hf.data.synthesize_prompt import ROUNDING, BadAnswer, Messages
from streamchat_hf.data.synthesize_segment import Caption

QUERIES = {
    "past": (
        "What have I done so far?",
        "What just happened?",
        "Sum up what I have done up to now.",
        "Which steps are already finished?",
        "What was I doing before this?",
        "Remind me of the last thing I did.",
        "How did I get to this point?",
        "What have you seen until now?",
        "Which part of {goal} is done?",
        "Recap my work on {goal}.",
    ),
    "now": (
        "What am I doing now?",
        "What do you see right now?",
        "Describe my action as it happens.",
        "What is going on at the moment?",
        "Which step is this?",
        "Tell me what my hands are doing.",
        "Follow along and say what I do.",
        "What is happening in front of me?",
        "Which part of {goal} am I at?",
        "Keep me posted on {goal}.",
    ),
    "next": (
        "What should I do next?",
        "What comes after this?",
        "Guide me through the next step.",
        "What will probably happen now?",
        "Tell me what to prepare for.",
        "Help me go on from here.",
        "Which action follows?",
        "What is still left to do?",
        "What is next for {goal}?",
        "Help me with {goal}.",
    ),
}

SYSTEM = """\
You write training data for an assistant that watches a video live through the user's glasses and answers by itself \
whenever something changes.

You get what happens in a video, with times in seconds, a question that the user asks, and the moments at which the \
assistant speaks. Imagine at each moment that the question has been asked before and still holds. Write for each \
moment what the assistant says to it then:
- It has seen the video up to that moment. About the past and the present it tells only what has happened by then; \
what happens later may be used only if the question asks what to do next.
- It is true until the next moment, and it can stand alone: the user may have asked just then.
- One or two short spoken sentences, addressed to the user as "you". Say only what the description says. Never speak \
of descriptions, times or seconds.

Reply with one JSON object and nothing else, with an answer for every moment in the same order:
{"answers": [{"time": 12.0, "text": "..."}, ...]}"""
PROMPT_VERSION = hashlib.sha256(SYSTEM.encode()).hexdigest()[:8]

# More than this in one reply and models lose count.
MOST_MOMENTS = 64

# An assistant that watches has no clock to read from: what the times of the prompt leave in a text is dropped.
_TELLS_TIME = re.compile(r"\bseconds?\b|^\s*\d+(\.\d+)?\s*s\b", re.IGNORECASE)


@dataclass(frozen=True)
class LiveTimeline:
    """What happens in a video, or in one step of it.

    Attributes:
        video: Path of the video, or its name.
        captions: What can be seen when, in seconds of the video, in the order of their starts.
        goal: What all of it is for: `"make an omelette"`; may be empty.
    """

    video: str
    captions: tuple[Caption, ...]
    goal: str = ""

    @property
    def start(self) -> float:
        """When the first caption begins, in seconds."""
        return self.captions[0].start

    @property
    def end(self) -> float:
        """When the last one ends, in seconds."""
        return max(caption.end for caption in self.captions)

    @property
    def moments(self) -> list[float]:
        """When something begins or ends, in seconds, ascending: whenever the assistant has something to say."""
        return sorted({time for caption in self.captions for time in (caption.start, caption.end)})

    @property
    def id(self) -> str:
        """The same for the same captions and goal of the same video."""
        content = json.dumps([self.video, self.goal, [[c.start, c.end, c.text] for c in self.captions]])
        return f"{self.video.rpartition('/')[2]}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def draw_queries(timeline: LiveTimeline, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Draw different questions for a timeline: `(tense, question)`.

    Tenses take turns, so that each has its share. A higher count only adds questions.

    Args:
        timeline: What they are asked about. Only if it has a goal, questions name one.
        count: How many; there are fewer if it asks for more than there are.
        seed: Of the choice.
    """
    rng = random.Random(f"live dialogue/{seed}/{timeline.id}")
    goal = timeline.goal.strip().rstrip(".")
    fitting = {
        tense: [text.format(goal=goal) for text in rng.sample(texts, len(texts)) if goal or "{goal}" not in text]
        for tense, texts in QUERIES.items()
    }
    tenses = rng.sample(list(fitting), len(fitting))
    rounds = range(max(map(len, fitting.values())))
    return [(tense, fitting[tense][i]) for i in rounds for tense in tenses if i < len(fitting[tense])][:count]


def build_messages(timeline: LiveTimeline, query: str) -> Messages:
    """Return the conversation that asks for the answers to one question."""
    lines = [f"{caption.start}s-{caption.end}s: {caption.text}" for caption in timeline.captions]
    goal = [f"The user's goal: {timeline.goal}"] if timeline.goal else []
    moments = ", ".join(str(time) for time in timeline.moments)
    asked = [f"The user asks: {query}", f"The assistant speaks at: {moments}"]
    content = "\n".join(["What happens in the video:", *lines, *goal, *asked])
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]


def read_answers(text: str, timeline: LiveTimeline, query: str) -> LiveQuery:
    """Read a model's answers to one question.

    Whatever stands around the JSON object is passed over. An answer that is the one before once more is left out:
    nobody says the same thing twice.

    Args:
        text: What the model wrote.
        timeline: What it was asked about.
        query: The question.

    Raises:
        BadAnswer: If it is no answer for every moment. Its kind is `"broken_json"`, `"missing_field"`, `"empty"`,
            `"wrong_times"` or `"tells_time"`.
    """
    text = text.rpartition("</think>")[2].strip()
    if not text:
        raise BadAnswer("empty", "nothing was written")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(text, max(text.find("{"), 0))
    except (ValueError, RecursionError):
        raise BadAnswer("broken_json", f"no JSON object in {text[:80]!r}") from None
    found = value.get("answers") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise BadAnswer("missing_field", f"'answers' is {found!r}, not a list")
    moments = timeline.moments
    if len(found) != len(moments):
        raise BadAnswer("wrong_times", f"{len(found)} answers for {len(moments)} moments")
    answers: list[tuple[float, str]] = []
    for moment, answer in zip(moments, found, strict=True):
        words = _words(answer, moment)
        if not answers or answers[-1][1] != words:
            answers.append((moment, words))
    return LiveQuery(query, tuple(answers))


def _words(answer: Any, moment: float) -> str:
    time, words = (answer.get("time"), answer.get("text")) if isinstance(answer, dict) else (None, None)
    if not isinstance(words, str) or isinstance(time, bool) or not isinstance(time, int | float):
        raise BadAnswer("missing_field", f"{answer!r} has no time and text")
    if not math.isfinite(time) or abs(time - moment) > ROUNDING:
        raise BadAnswer("wrong_times", f"an answer at {time} s instead of {moment} s")
    words = " ".join(words.split())
    if not words:
        raise BadAnswer("empty", f"no words at {moment} s")
    try:
        words.encode()
    except UnicodeEncodeError:  # half an emoji, written as \ud83d: no tokenizer takes it
        raise BadAnswer("broken_json", f"the answer at {moment} s is no text") from None
    if _TELLS_TIME.search(words):
        raise BadAnswer("tells_time", words[:80])
    return words
