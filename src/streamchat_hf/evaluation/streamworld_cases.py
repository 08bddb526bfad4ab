"""What a model is asked about StreamWorld in an evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_dialogue import (
    TELL,
    WATCH,
    Question,
    draw_ask_time,
    grid,
    questions,
    word_times,
)


@dataclass(frozen=True)
class StreamWorldCase:
    """One question about one world.

    Attributes:
        world: What the frames show.
        question: What is asked.
        ask_time: When, in seconds; something is visible then.
        word_times: When the words of the answer are spoken, in seconds: from `ask_time` until the world ends.
    """

    world: World
    question: Question
    ask_time: float
    word_times: tuple[float, ...]


def streamworld_cases(
    count: int,
    split: str = "seen",
    seed: int = 0,
    words_per_second: float = 2.0,
    duration: float = 10.0,
    silence: float = 0.0,
) -> Iterator[StreamWorldCase]:
    """Yield cases: two questions to tell one attribute, then one to describe and watch, and so on.

    Every question comes 0.5 to 2 seconds after the beginning, or after the silence, while something is visible.

    Args:
        count: Number of cases.
        split: Of the worlds; see `World.sample`.
        seed: Any integer; case i depends on (seed, split, i) and the speed and duration alone.
        words_per_second: How fast the answers are spoken.
        duration: Of each world, in seconds, without the silence.
        silence: Seconds that a world lasts before anything is asked.
    """
    earliest, latest, until = silence + 0.5, silence + 2.0, silence + duration
    for i in range(count):
        rng = random.Random(f"streamworld case/{split}/{seed}/{i}")
        ask_time = None
        while ask_time is None:
            world = World.sample(rng.getrandbits(48), split, until)
            kind, attr = (WATCH, None) if i % 3 == 2 else (TELL, rng.choice(world.slots))
            question = rng.choice(questions(kind, attr))
            frames = grid(until)
            ask_time = draw_ask_time(rng, world, question, words_per_second, frames, (earliest, latest), on_grid=True)
            if ask_time is not None and not world.state(ask_time).present:
                ask_time = None
        times = tuple(word_times(ask_time, words_per_second, until))
        yield StreamWorldCase(world, question, ask_time, times)
