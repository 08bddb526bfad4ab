"""What a language model is asked to write for a StreamEval set, and what does not pass (StreamChat, section 4)."""

import hashlib
import re

from streamchat_hf.data.synthesize_prompt import FASTEST, BadAnswer, Draft, Messages, caption_lines, read_object
from streamchat_hf.data.synthesize_segment import CaptionedVideo, Segment

SYSTEM = f"""\
You write a benchmark for assistants that watch a video live and talk about it while it goes on.

You get the dense captions of one segment of a video, with times in seconds. Imagine a user who watches it live, \
together with the assistant. Pick a moment "start" in it at which the user asks something, and a moment "end" at \
which a good answer is over. Write:
- "instruction": what the user asks at "start", about what is on the screen then and what comes next. It can only be \
answered by watching this part of the video: not from the question itself, from what everybody knows, or from another \
part. Users see the video, never the captions.
- "answer": what a perfect assistant says from "start" to "end", word after word at an even pace. At each word it has \
seen the video up to that moment and nothing of what follows. So it tells things in the order in which they happen, \
and none before it happens.

Say only what the captions say, in words of your own. Do not mention captions, segments or seconds. Use plain spoken \
sentences, about two words per second, never more than {FASTEST:g}. "start" and "end" lie inside the segment.

Reply with one JSON object and nothing else:
{{"instruction": "...", "answer": "...", "start": 12.0, "end": 20.5}}"""

CHECK_SYSTEM = """\
You check the questions of a benchmark for assistants that watch a video live and talk about it while it goes on.

You get what can be seen while a question is asked and answered, what can be seen elsewhere in the same video, both \
with times in seconds, the question with the moment at which it is asked, and the reference answer with the moment at \
which it is over. Say of each of these whether it is true:
- "visible": all that the answer says can be seen while it is given, and it tells nothing before it happens.
- "needed": somebody who has seen only the rest of the video, or no video at all, could not give this answer.
- "live": a user who watches the video live would ask this at this moment, about what is on the screen or comes next.

Reply with one JSON object and nothing else:
{"visible": true, "needed": true, "live": true}"""
PROMPT_VERSION = hashlib.sha256((SYSTEM + CHECK_SYSTEM).encode()).hexdigest()[:8]

_CHECKS = ("visible", "needed", "live")

# So many words in a row that a question shares with a caption are quoted from it; a whole caption is, if it is at
# least a short sentence.
_QUOTE, _SENTENCE = 8, 4
# The user has a screen: what the prompt is made of, and times to read off a clock, stand only there. The 1980s and the
# 90s are no seconds.
_MENTION = re.compile(
    r"\bcaptions?\b|\btime\s?stamps?\b|\b(?:this|the|video) segments?\b"
    r"|\b(?!(?:1\d\d|20\d|[2-9])0s\b)\d+(?:\.\d+)?\s*(?:s|secs?|seconds?)\b",
    re.IGNORECASE,
)


def refuse_leaks(draft: Draft, video: CaptionedVideo) -> None:
    """Refuse a question that quotes a caption of its video, or shows in any other way that there are some.

    Raises:
        BadAnswer: Of kind `"leaks"`.
    """
    for text in (draft.instruction, draft.answer):
        if mention := _MENTION.search(text):
            raise BadAnswer("leaks", f"{mention[0]!r} in {text[:80]!r}")
    question = _words(draft.instruction)
    for caption in video.captions:
        words = _words(caption.text)
        length = min(_QUOTE, max(len(words), _SENTENCE))
        if _runs(question, length) & _runs(words, length):
            raise BadAnswer("leaks", f"{draft.instruction[:80]!r} quotes {caption.text[:80]!r}")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _runs(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def build_check_messages(draft: Draft, video: CaptionedVideo) -> Messages:
    """Return the conversation that asks whether a question needs what is visible around it, and nothing else.

    Raises:
        BadAnswer: Of kind `"not_visible"`, if no caption says anything about the time of the question.
    """
    around = Segment(video.path, tuple(c for c in video.captions if c.start < draft.end and draft.start < c.end))
    elsewhere = Segment(video.path, tuple(c for c in video.captions if c not in around.captions))
    if not around.captions:
        raise BadAnswer("not_visible", f"there is no caption between {draft.start} and {draft.end} s")
    lines = ["Seen while the question is asked and answered:", *caption_lines(around)]
    lines += ["Seen elsewhere in the video:", *(caption_lines(elsewhere) or ["nothing"])]
    lines += [f"Asked at {draft.start} seconds: {draft.instruction}", f"Answer, until {draft.end}: {draft.answer}"]
    return [{"role": "system", "content": CHECK_SYSTEM}, {"role": "user", "content": "\n".join(lines)}]


def read_check(text: str) -> None:
    """Read what the check has found, and refuse a question that it does not let pass.

    Raises:
        BadAnswer: Of kind `"not_visible"`, `"not_needed"` or `"not_live"`; or one of `read_object` or
            `"missing_field"`, if this is no check.
    """
    value = read_object(text)
    found = {name: value.get(name) for name in _CHECKS}
    for name, holds in found.items():
        if not isinstance(holds, bool):
            raise BadAnswer("missing_field", f"{name} is {holds!r}, not true or false")
    for name, holds in found.items():
        if not holds:
            raise BadAnswer(f"not_{name}", "says the check")
