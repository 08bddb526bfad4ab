"""What is asked about a StreamWorld, the words of a perfect viewer, and the tokenizer of this tiny language."""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from streamchat_hf.data.streamworld import COLOURS, COUNTS, DIGITS, MOTIONS, SHAPES, TICK, SceneState, World

ASK = "ask"
TELL = "tell"
WATCH = "watch"

NOTHING, GONE, BACK = "nothing", "gone", "back"
NOW, QUIET = "now", "."
EOS = "<eos>"

VALUES = {
    "colour": COLOURS,
    "shape": SHAPES,
    "motion": MOTIONS,
    "digit": DIGITS,
    "count": COUNTS,
    "presence": (NOTHING, GONE, BACK),
}
KIND_OF = {word: kind for kind, words in VALUES.items() for word in words}

_TELL = ("keep telling the {} .", "always say the {} .", "name the {} again and again .")
_ASK = {
    "colour": ("what colour is it ?", "which colour does it have ?", "say the colour once ."),
    "shape": ("what shape is it ?", "which shape does it have ?", "say the shape once ."),
    "digit": ("what digit is it ?", "which digit do you see ?", "say the digit once ."),
    "motion": ("where does it go ?", "which motion does it have ?", "say the motion once ."),
    "count": ("how many are there ?", "what count is it ?", "say the count once ."),
}
_WATCH = ("what do you see ?", "what is happening ?", "describe it and keep watching .")
_ANSWER = {
    "colour": ("it", "is"),
    "shape": ("it", "is"),
    "digit": ("it", "is"),
    "motion": ("it", "goes"),
    "count": ("there", "are"),
}
_DESCRIPTION = {
    "shape": ("a", "{colour}", "{shape}", ",", "{motion}"),
    "digit": ("a", "{colour}", "{digit}", ",", "{motion}"),
    "count": ("{count}", "{colour}", "ones"),
}

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set text = message['content'] -%}
{%- else -%}
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '<user> ' + text + ' ' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '<assistant> ' -}}{%- generation -%}{{- text + ' <eos>' -}}{%- endgeneration -%}{{- ' ' -}}
{%- else -%}
{{- raise_exception('StreamWorld knows the roles user and assistant only') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        kind: `TELL` (say one attribute again and again), `WATCH` (describe, then report changes) or `ASK` (one short
            answer with an end).
        attr: The attribute in question; `None` for `WATCH`.
        text: The user's words.
    """

    kind: str
    attr: str | None
    text: str


@dataclass(frozen=True)
class Word:
    """One spoken word.

    Attributes:
        text: The word; it is one token.
        kind: For a value word the attribute it tells, `"presence"` for nothing, gone and back; `"change"` for the
            words that say whether something changed (`now` and `.`); `None` for connecting words.
        time: When it is spoken, in seconds.
    """

    text: str
    kind: str | None
    time: float


def questions(kind: str, attr: str | None = None) -> tuple[Question, ...]:
    """Return all wordings of one question.

    Args:
        kind: `TELL`, `WATCH` or `ASK`.
        attr: The attribute in question, for `TELL` and `ASK`.

    Raises:
        ValueError: For an unknown kind, or an attribute that does not go with it.
    """
    texts: tuple[str, ...]
    if kind == WATCH and attr is None:
        texts = _WATCH
    elif kind == TELL and attr in _ASK:
        texts = tuple(text.format(attr) for text in _TELL)
    elif kind == ASK and attr in _ASK:
        texts = _ASK[attr]
    else:
        raise ValueError(f"no question of kind {kind!r} about {attr!r}")
    return tuple(Question(kind, attr, text) for text in texts)


def plan(world: World, question: Question) -> tuple[str, ...]:
    """Return the words that begin the answer, with values as `"{slot}"`; empty for `TELL`."""
    if question.attr is None:
        return _DESCRIPTION[world.kind]
    return (*_ANSWER[question.attr], "{" + question.attr + "}") if question.kind == ASK else ()


def word_times(ask_time: float, words_per_second: float, until: float) -> list[float]:
    """Return the times in seconds, whole milliseconds, of words from `ask_time` on that are spoken before `until`."""
    times: list[float] = []
    while (time := round(1000 * (ask_time + len(times) / words_per_second)) / 1000) < until:
        times.append(time)
    return times


def grid(duration: float) -> list[float]:
    """Return the times of frames at two per second, in which every state is visible."""
    return [i * TICK for i in range(round(duration / TICK))]


def can_answer(world: World, question: Question, word_times: Sequence[float], frame_times: Sequence[float]) -> bool:
    """Whether the frames show what the answer's first words must tell.

    Something must be visible while it is described or asked for, and a motion needs two frames. `TELL` can also be
    asked while nothing is visible, unless it is about the motion.
    """
    first = plan(world, question)
    if not word_times or not frame_times or frame_times[0] > word_times[0] or len(word_times) < len(first):
        return False
    if question.kind == TELL:
        return question.attr != "motion" or world.motion_visible(_newest(frame_times, word_times[0]))
    for item, time in zip(first, word_times, strict=False):
        frame = _newest(frame_times, time)
        if not world.state(frame).present or (item == "{motion}" and not world.motion_visible(frame)):
            return False
    return True


def answer(
    world: World, question: Question, ask_time: float, word_times: Sequence[float], frame_times: Sequence[float]
) -> list[Word]:
    """Return what a perfect viewer of the given frames says.

    Every word tells the newest frame that is visible at its own time (`frame_times <= time`), not the world.
    An answer to `ASK` ends by itself; it has at most three words. The end-of-turn token is not among the words.

    Args:
        world: What the frames show.
        question: What is asked; of an attribute that the scene has.
        ask_time: Of the question, in seconds.
        word_times: When a word can be spoken, in seconds, ascending, from `ask_time` on.
        frame_times: Of the frames, in seconds, ascending.

    Raises:
        ValueError: If the scene has no such attribute, no frame is visible yet, or nothing is visible where the answer
            has to describe something.
    """
    if question.attr is not None and question.attr not in world.slots:
        raise ValueError(f"a {world.kind} scene has no {question.attr} to tell")
    if not frame_times or frame_times[0] > ask_time:
        raise ValueError(f"no frame is visible at {ask_time} s")
    states = [world.state(_newest(frame_times, time)) for time in word_times]
    if question.kind == TELL and question.attr is not None:
        texts = [state.tell(question.attr) for state in states]
    else:
        first = plan(world, question)
        texts = [_fill(item, state) for item, state in zip(first, states, strict=False)]
        if question.kind == WATCH and len(states) > len(first):
            texts += _watch(first, states, texts)
    return [Word(text, _kind(text), time) for text, time in zip(texts, word_times, strict=False)]


def _newest(frame_times: Sequence[float], time: float) -> float:
    return frame_times[bisect.bisect_right(frame_times, time) - 1]


def _fill(item: str, state: SceneState) -> str:
    if not state.present:
        raise ValueError("nothing is visible while the answer describes it")
    return state.tell(item[1:-1]) if item.startswith("{") else item


def _kind(text: str) -> str | None:
    return "change" if text in (NOW, QUIET) else KIND_OF.get(text)


def _watch(first: Sequence[str], states: Sequence[SceneState], described: Sequence[str]) -> list[str]:
    """Report changes after the description: `now` and a value for each, the one that waits longest first."""
    said: dict[str, str] = {}
    waiting: dict[str, None] = {}  # slots whose value differs from what was said, in the order in which that was seen
    texts: list[str] = []
    slot: str | None = None  # what the next word tells, after "now"
    for step, state in enumerate(states):
        if step < len(first):
            if first[step].startswith("{"):
                said[first[step][1:-1]] = described[step]
            _note(state, said, waiting)
            continue
        if step == len(first):
            said["presence"] = BACK
        _note(state, said, waiting)
        # Until it is back nothing else can be told of what has gone.
        due = "presence" if "presence" in waiting else next(iter(waiting), None) if state.present else None
        if slot is not None:
            slot = due or slot
            said[slot] = _value(state, slot)
            waiting.pop(slot, None)
            texts.append(said[slot])
            slot = None
        else:
            slot = due
            texts.append(NOW if due else QUIET)
    return texts


def _note(state: SceneState, said: dict[str, str], waiting: dict[str, None]) -> None:
    for slot, value in said.items():
        if slot != "presence" and not state.present:
            continue
        if _value(state, slot) == value:
            waiting.pop(slot, None)
        else:
            waiting.setdefault(slot)


def _value(state: SceneState, slot: str) -> str:
    if slot == "presence":
        return BACK if state.present else GONE
    return getattr(state, slot)


def draw_ask_time(
    rng: random.Random,
    world: World,
    question: Question,
    words_per_second: float,
    frame_times: Sequence[float],
    window: tuple[float, float],
    on_grid: bool,
) -> float | None:
    """Draw a time at which the question can be answered from the frames.

    Args:
        rng: Where randomness comes from.
        world: What the frames show.
        question: What is asked.
        words_per_second: How fast the answer is spoken.
        frame_times: Of the frames, in seconds, ascending.
        window: Earliest and latest time in seconds.
        on_grid: Whether to ask at a multiple of `TICK`, else at any millisecond.

    Returns:
        Seconds in whole milliseconds, or `None` if a few draws found none.
    """
    step = round(1000 * TICK) if on_grid else 1
    low, high = -(-round(1000 * window[0]) // step), round(1000 * window[1]) // step
    for _ in range(8 if low <= high else 0):
        time = rng.randint(low, high) * step / 1000
        if can_answer(world, question, word_times(time, words_per_second, world.duration), frame_times):
            return time
    return None


def vocabulary() -> tuple[str, ...]:
    """Return all tokens in the order of their ids: special tokens, values, then connecting and asking words."""
    values = [word for words in VALUES.values() for word in words]
    spoken = [word for words in (*_ANSWER.values(), *_DESCRIPTION.values()) for word in words if "{" not in word]
    asked = [word for attr in _ASK for kind in (TELL, ASK) for q in questions(kind, attr) for word in q.text.split()]
    asked += [word for question in questions(WATCH) for word in question.text.split()]
    return tuple(dict.fromkeys(["<pad>", "<unk>", "<user>", "<assistant>", EOS, *values, NOW, QUIET, *spoken, *asked]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer: lower case, one token per word or punctuation mark, decoding joins by spaces.

    Its chat template writes `<user> question <assistant> answer <eos>`. It takes content as a string or as a list of
    typed items, of which only text is written: frames reach the model beside the text.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary())}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token=EOS,
        extra_special_tokens=["<user>", "<assistant>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
