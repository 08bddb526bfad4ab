"""StreamWorld with deadlines: a fact that is asked for must be told while it is still true.

    asked "what colour is it ?"          it turns blue
      │  red ──────────────────────────────┤ deadline
      └─► it ─► is ─► red  (in time)       │  red  (late)

The deadline is the world's, not ours, and so is the answer: no annotator, no judge, no number to choose. A model that
speaks half as fast needs twice as long to its word. Under `official` the world stands still and that costs nothing.
"""

import math
import random
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from streamchat_hf.data.streamworld import TICK, World
from streamchat_hf.data.streamworld_dialogue import ASK, NOTHING, VALUES, Question, plan, questions
from streamchat_hf.data.streamworld_english import english_question, speaks_english, streamworld_word
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Row, Video, Viewer, answer_row, ask_once
from streamchat_hf.evaluation.benchmark_results import Score

# As the shipped checkpoint was trained, and more words than any answer needs.
FPS, MAX_NEW_TOKENS = 2.0, 8
# The video goes on behind the deadline, to hear what is said too late.
PATIENCE = 8.0


class Fact(NamedTuple):
    """A question about a world, and until when it has the same answer.

    Attributes:
        world: What the frames show.
        question: Of the kind `ASK`.
        slot: The attribute asked for.
        value: Its value.
        asked: When it is asked, in seconds.
        deadline: When the value changes, the object vanishes, or the world ends.
    """

    world: World
    question: Question
    slot: str
    value: str
    asked: float
    deadline: float


def draw_fact(seed: int, split: str, number: int, duration: float = 10.0) -> Fact:
    """Draws a world and a question about it; the same arguments always give the same.

    The question comes at any tick of half a second within the first seven tenths of the world at which the attribute
    shows. Neither it nor the world is chosen for a deadline that a speaker of some speed can meet.
    """
    rng = random.Random(f"streamworld fact/{split}/{seed}/{number}")
    while True:
        world = World.sample(rng.getrandbits(48), split, duration)
        slot = rng.choice(world.slots)
        question = rng.choice(questions(ASK, slot))
        ticks = [tick * TICK for tick in range(2, round(0.7 * duration / TICK) + 1)]
        shown = [t for t in ticks if (world.motion_visible(t) if slot == "motion" else world.state(t).present)]
        if shown:
            asked = rng.choice(shown)
            value = world.state(asked).tell(slot)
            changes = (e.time for e in world.events if e.time > asked and world.state(e.time).tell(slot) != value)
            return Fact(world, question, slot, value, asked, next(changes, duration))


@dataclass(frozen=True)
class StreamWorldBenchmark:
    """Questions about StreamWorlds, one for each world, every one in a conversation of its own.

    Attributes:
        how: Under which conditions they are asked; the deadline is the world's.
        model_name: What the model is called in the results.
        seed: Of worlds and questions.
        split: Of the worlds; see `World.sample`.
        clips: How many worlds.
    """

    how: Conditions
    model_name: str
    seed: int = 0
    split: str = "heldout"
    clips: int = 300
    name: ClassVar[str] = "streamworld"

    def settings(self) -> Row:
        """Which worlds."""
        return {"deadline": None, "seed": self.seed, "split": self.split, "clips": self.clips}

    def work(self) -> list[str]:
        """The numbers of the worlds."""
        return [str(number) for number in range(self.clips)]

    def answer(self, piece: str, viewer: Viewer) -> list[Row]:
        """The row of one world: what was asked, what was said, and what [`judge`] makes of it.

        A model that speaks English is asked in English, and what it says is taken back into StreamWorld's words.
        """
        fact = draw_fact(self.seed, self.split, int(piece))
        english = speaks_english(viewer.processor.tokenizer.get_vocab())
        question = english_question(fact.question.text) if english else fact.question.text
        # A frame of the question's own moment belongs to the clip.
        clip = (0.0, fact.asked if self.how.is_live else math.nextafter(fact.asked, math.inf))
        with tempfile.TemporaryDirectory() as folder:
            video = Video(f"{piece}.mp4", Path(folder) / f"{piece}.mp4")
            write_mp4(fact.world, video.path)
            until = fact.deadline + PATIENCE
            said = answer_row(video, partial(ask_once, viewer, video, question, self.how, clip, until))
        words = said["words"]
        if english:
            words = [[streamworld_word(text, fact.world.slots), *times] for text, *times in words]
        asked = {"clip": int(piece), "slot": fact.slot, "question": question, "value": fact.value}
        times = {"time": fact.asked, "deadline": fact.deadline}
        return [{**asked, **times, **said, **judge(fact, words, self.how)}]

    def files(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """None: there is no other format."""
        return {}

    def scores(self, rows: Sequence[Row]) -> Row:
        """Shares of all questions.

        Returns:
            `n`; `in_time`, the score; `true_when_spoken`, which forgives all delay; `possible`, the score of a perfect
            viewer who speaks at this speed (`None` under the wall clock); and the same for each attribute, `by_kind`.
        """
        kinds = sorted({row["slot"] for row in rows})
        by_kind = {kind: _shares([row for row in rows if row["slot"] == kind]) for kind in kinds}
        return {**_shares(rows), "by_kind": by_kind}

    def headline(self, scores: Row) -> list[Score]:
        """The score of each attribute and of all questions, and that without deadlines."""
        n, kinds = scores["n"], scores["by_kind"].items()
        return [
            *(Score("accuracy", f"{kind}, told in time", row["in_time"], row["n"]) for kind, row in kinds),
            Score("accuracy", "told in time", scores["in_time"], n),
            Score("accuracy", "true when spoken", scores["true_when_spoken"], n),
        ]


def judge(fact: Fact, words: Sequence[Sequence[Any]], how: Conditions) -> Row:
    """Judges an answer by its first word that is a value of what was asked for, or `nothing`.

    Args:
        fact: What was asked.
        words: `[text, spoken, newest frame]`, in seconds.
        how: Under `official` the world stands still at the question.

    Returns:
        `word` and `spoken`, `None` if there is none; `in_time`, whether the fact was told before the deadline; `late`,
        whether the word came after it; `true_when_spoken`, whether it was true of the world when it was spoken; and
        `possible`, whether a perfect viewer of this speed can tell the fact in time, `None` under the wall clock.
    """
    word, spoken = _first_value(fact.slot, words)
    late = how.is_live and spoken >= fact.deadline
    truth = fact.world.state(spoken).tell(fact.slot) if how.is_live else fact.value
    return {
        "word": word,
        "spoken": None if word is None else spoken,
        "in_time": word == fact.value and not late,
        "late": late,
        "true_when_spoken": word == truth,
        "possible": _is_possible(fact, how),
    }


def _first_value(slot: str, words: Sequence[Sequence[Any]]) -> tuple[str | None, float]:
    for text, time, _ in words:
        word = re.sub(r"\W", "", text.lower())
        if word in (*VALUES[slot], NOTHING):
            return word, time
    return None, math.inf


def _is_possible(fact: Fact, how: Conditions) -> bool | None:
    if not how.is_live:
        return True
    if how.tokens_per_second is None:
        return None
    before = len(plan(fact.world, fact.question)) - 1  # words before the value; the first is spoken at once
    return fact.asked + before / how.tokens_per_second < fact.deadline


def _shares(rows: Sequence[Row]) -> Row:
    def share(key: str) -> float | None:
        flags = [row[key] for row in rows if row[key] is not None]
        return sum(flags) / len(flags) if flags else None

    return {"n": len(rows), **{key: share(key) for key in ("in_time", "true_when_spoken", "possible")}}
