"""Training samples from StreamWorld: a map-style dataset of light specifications, and a collator that renders them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from streamchat_hf.data.streamworld import COLOURS, ODD_SHAPES, SHAPES, World
from streamchat_hf.data.streamworld_dialogue import (
    ASK,
    TELL,
    WATCH,
    Question,
    Word,
    answer,
    build_tokenizer,
    can_answer,
    draw_ask_time,
    plan,
    questions,
    word_times,
)
from streamchat_hf.data.streamworld_render import render

PADDED_FRAME_TIME = torch.iinfo(torch.int64).max
IGNORED = -100
TARGET_SLOTS = ("colour", "shape", "digit", "motion", "count")


@dataclass(frozen=True)
class StreamWorldMix:
    """Which samples a dataset draws.

    Attributes:
        tell: Weight of "keep telling the colour .".
        watch: Weight of "what do you see ?".
        ask: Weight of "what colour is it ?".
        one_attribute: Share of samples whose object is made of something that no word names: in `tints` of them an
            unnamed colour, asked for its shape, digit or count; else an odd shape, asked for its colour. Without them
            a talker learns how probable a shape is given the colour's word, which is 0 for held-out combinations.
        tints: Share of unnamed colours among those.
        unnamed_watch: Share of those one-attribute samples that are described and watched all the same. Where a word
            is missing another of its kind stands in, which is not learned: what is said of the shape, the digit and
            the changes then cannot come from the colour that was said before.
        scenes: Of worlds of each kind (`"shape"`, `"digit"`, `"count"`) the share that is kept, in (0, 1]; all if
            it is not named.
        steady: Share of the worlds of several objects whose colour stays, as it does in held-out worlds.
        two_turns: Share of samples with two questions.
        stalled: Share of samples whose frames stop arriving while the talk goes on.
    """

    tell: float = 0.4
    watch: float = 0.4
    ask: float = 0.2
    one_attribute: float = 0.4
    tints: float = 0.7
    unnamed_watch: float = 0.0
    scenes: Mapping[str, float] = field(default_factory=dict, hash=False)
    steady: float = 0.0
    two_turns: float = 0.4
    stalled: float = 0.15


@dataclass(frozen=True)
class Turn:
    """One question with its answer.

    Attributes:
        question: What is asked.
        ask_time: When, in seconds.
        words: The answer, up to its end or to the interruption.
        end: `"spoken"` if the answer ends by itself, `"forced"` if it is broken off before the next question, `"open"`
            if it goes on until the clip stops.
    """

    question: Question
    ask_time: float
    words: tuple[Word, ...]
    end: str


@dataclass(frozen=True)
class StreamWorldSample:
    """A clip with its talk; nothing is rendered yet.

    Attributes:
        world: What the frames show.
        frame_times: Seconds.
        turns: In order.
        stand_ins: For each value that no word names, the word that is spoken in its place and not learned.
    """

    world: World
    frame_times: tuple[float, ...]
    turns: tuple[Turn, ...]
    stand_ins: Mapping[str, str] = field(default_factory=dict, hash=False)


class StreamWorldDataset(Dataset):
    """Item i depends on (seed, i, split, mix) alone, so that workers, epochs and resumed runs agree.

    Args:
        length: Number of items.
        seed: Any integer.
        split: Of the worlds; see `World.sample`.
        mix: What to draw.
        num_frames: Frames of a clip.
        fps: Frames per second. The default shows every state and every motion as soon as it is named.

    Raises:
        ValueError: If held-out worlds were to have attributes that no word names; nothing is held out of those.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        mix: StreamWorldMix = StreamWorldMix(),
        num_frames: int = 20,
        fps: float = 2.0,
    ):
        if split == "heldout" and mix.one_attribute:
            raise ValueError(f"held-out worlds have names for everything: one_attribute={mix.one_attribute} must be 0")
        self.length, self.seed, self.split, self.mix = length, seed, split, mix
        self.num_frames, self.fps = num_frames, fps

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> StreamWorldSample:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        rng = random.Random(f"streamworld sample/{self.seed}/{index}")
        frame_times = tuple(round(1000 * i / self.fps) / 1000 for i in range(self.num_frames))
        if rng.random() < self.mix.stalled:
            frame_times = frame_times[: rng.randint(self.num_frames // 5, self.num_frames * 3 // 4)]
        while True:
            world, attr = self._world(rng)
            if world.kind in self.mix.scenes and rng.random() >= self.mix.scenes[world.kind]:
                continue
            turns = self._turns(rng, world, attr, frame_times)
            if turns:
                return StreamWorldSample(world, frame_times, turns, _stand_ins(rng, world))

    def _world(self, rng: random.Random) -> tuple[World, str | None]:
        """Draw a world, and the attribute to ask for if there is only one that has a name."""
        palette = shapes = "named"
        if rng.random() < self.mix.one_attribute:
            palette, shapes = ("tinted", "named") if rng.random() < self.mix.tints else ("named", "odd")
        world = World.sample(rng.getrandbits(48), self.split, self.num_frames / self.fps, palette, shapes)
        if world.kind == "count" and self.mix.steady and rng.random() < self.mix.steady:
            world = replace(world, events=tuple(event for event in world.events if event.kind != "colour"))
        attr = world.slot if palette == "tinted" else "colour" if shapes == "odd" else None
        return world, attr

    def _turns(
        self, rng: random.Random, world: World, attr: str | None, frame_times: Sequence[float]
    ) -> tuple[Turn, ...]:
        speed = rng.choices((2.0, 1.5, 3.0), (70, 15, 15))[0]
        first = self._question(rng, world, attr)
        two = rng.random() < self.mix.two_turns
        asked = self._ask_time(rng, world, first, speed, frame_times, (0.0, 0.2 * world.duration))
        if asked is None:
            return ()
        if two:
            needed = len(plan(world, first)) / speed
            stop = asked + needed + rng.uniform(0.05, 0.25) * world.duration
            second = self._question(rng, world, attr)
            window = (stop, stop + 0.15 * world.duration)
            asked_again = self._ask_time(rng, world, second, speed, frame_times, window)
            if asked_again is not None:
                turn = self._turn(world, first, asked, speed, frame_times, stop)
                return (turn, self._turn(world, second, asked_again, speed, frame_times, None))
        return (self._turn(world, first, asked, speed, frame_times, None),)

    def _question(self, rng: random.Random, world: World, attr: str | None) -> Question:
        weights = {TELL: self.mix.tell, WATCH: self.mix.watch if attr is None else 0.0, ASK: self.mix.ask}
        kind = rng.choices(list(weights), list(weights.values()))[0]
        if attr is not None and self.mix.unnamed_watch and rng.random() < self.mix.unnamed_watch:
            kind = WATCH
        if kind != WATCH and attr is None:
            attr = rng.choice(world.slots)
        return rng.choice(questions(kind, attr if kind != WATCH else None))

    def _ask_time(
        self,
        rng: random.Random,
        world: World,
        question: Question,
        speed: float,
        frame_times: Sequence[float],
        window: tuple[float, float],
    ) -> float | None:
        return draw_ask_time(rng, world, question, speed, frame_times, window, on_grid=rng.random() < 0.5)

    def _turn(
        self,
        world: World,
        question: Question,
        asked: float,
        speed: float,
        frame_times: Sequence[float],
        stop: float | None,
    ) -> Turn:
        times = word_times(asked, speed, world.duration if stop is None else stop)
        words = answer(world, question, asked, times, frame_times)
        end = "spoken" if question.kind == ASK else "open" if stop is None else "forced"
        return Turn(question, asked, tuple(words), end)


def _stand_ins(rng: random.Random, world: World) -> dict[str, str]:
    """Draw a word for every value of a world that none names."""
    colours = dict(zip(world.colours, rng.sample(COLOURS, len(COLOURS)), strict=True))
    shapes = dict(zip(ODD_SHAPES, rng.sample(SHAPES, len(ODD_SHAPES)), strict=True))
    return {name: word for name, word in (colours | shapes).items() if name not in COLOURS}


def at_the_end(sample: StreamWorldSample) -> StreamWorldSample:
    """The same questions, asked when the clip is over: as many words about a scene that stands still.

    Questions to which nothing can be said by then are left out.
    """
    end, turns = sample.frame_times[-1], []
    for turn in sample.turns:
        times = [end] * len(turn.words)
        if can_answer(sample.world, turn.question, times, sample.frame_times):
            words = answer(sample.world, turn.question, end, times, sample.frame_times)
            turns.append(replace(turn, ask_time=end, words=tuple(words), end="spoken"))
    return replace(sample, turns=tuple(turns))


class StreamWorldCollator:
    """Renders samples and writes them as one batch for the model: `collator(samples)`.

    Args:
        tokenizer: Of StreamWorld's language; built when `None`.
        size: Height and width of a frame in pixels.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None = None, size: int = 48):
        self.tokenizer = build_tokenizer() if tokenizer is None else tokenizer
        self.size = size
        self._vocabulary = self.tokenizer.get_vocab()
        self._prompts: dict[str, list[int]] = {}

    def __call__(self, samples: Sequence[StreamWorldSample]) -> dict[str, Any]:
        """Collate B samples.

        Returns:
            `input_ids`, `attention_mask`, `token_times` (int64 milliseconds), `turn_starts` (bool) and `labels`: all
            (B, L), padded on the right. Labels are not shifted and are -100 outside the answers; an end that the user
            forced is among the ids but not among the labels.
            `pixel_values_videos`: float32 (B, T, 3, size, size), in -1..1.
            `frame_times`: int64 (B, T), milliseconds, the largest int64 where a frame is missing.
            `frame_targets`: per slot of `TARGET_SLOTS` int64 (B, T), the token id of what the frame shows, or -100
            where it has no such attribute, no word for it, nothing is visible, or a motion does not show yet.
            `centres`: float32 (B, T, 2), x and y of a single visible object in 0..1, else NaN.
        """
        rows = [self._tokens(sample) for sample in samples]
        length = max(len(ids) for ids, _, _, _ in rows)
        shape = (len(rows), length)
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        labels, token_times = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.int64)
        attention_mask, turn_starts = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
        for i, (ids, targets, times, starts) in enumerate(rows):
            n = len(ids)
            input_ids[i, :n], labels[i, :n] = torch.tensor(ids), torch.tensor(targets)
            token_times[i, :n], token_times[i, n:] = torch.tensor(times), times[-1]
            attention_mask[i, :n] = 1
            turn_starts[i, starts] = True
        frame_targets, centres = self._frame_targets(samples)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_times": token_times,
            "turn_starts": turn_starts,
            "labels": labels,
            **self._frames(samples),
            "frame_targets": frame_targets,
            "centres": centres,
        }

    def _tokens(self, sample: StreamWorldSample) -> tuple[list[int], list[int], list[int], list[int]]:
        ids: list[int] = []
        labels: list[int] = []
        times: list[int] = []
        starts: list[int] = []
        for turn in sample.turns:
            prompt = self._prompt(turn.question.text)
            words = [self._vocabulary[sample.stand_ins.get(word.text, word.text)] for word in turn.words]
            learned = [word.text not in sample.stand_ins for word in turn.words]
            starts.append(len(ids))
            ids += prompt + words
            labels += [IGNORED] * len(prompt)
            labels += [word if known else IGNORED for word, known in zip(words, learned, strict=True)]
            times += [_milliseconds(turn.ask_time)] * len(prompt) + [_milliseconds(word.time) for word in turn.words]
            if turn.end != "open":
                ids.append(self.tokenizer.eos_token_id)
                labels.append(self.tokenizer.eos_token_id if turn.end == "spoken" else IGNORED)
                times.append(times[-1])
        return ids, labels, times, starts

    def _prompt(self, text: str) -> list[int]:
        if text not in self._prompts:
            message = [{"role": "user", "content": text}]
            encoded = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
            self._prompts[text] = encoded["input_ids"]
        return self._prompts[text]

    def _frames(self, samples: Sequence[StreamWorldSample]) -> dict[str, Tensor]:
        frames = render([sample.world for sample in samples], [sample.frame_times for sample in samples], self.size)
        times = torch.full(frames.shape[:2], PADDED_FRAME_TIME)
        for i, sample in enumerate(samples):
            times[i, : len(sample.frame_times)] = torch.tensor([_milliseconds(time) for time in sample.frame_times])
        return {"pixel_values_videos": frames.float().div_(127.5).sub_(1), "frame_times": times}

    def _frame_targets(self, samples: Sequence[StreamWorldSample]) -> tuple[dict[str, Tensor], Tensor]:
        shape = (len(samples), max(len(sample.frame_times) for sample in samples))
        targets = {slot: torch.full(shape, IGNORED) for slot in TARGET_SLOTS}
        centres = torch.full((*shape, 2), torch.nan)
        for i, sample in enumerate(samples):
            rows = [_visible_words(sample.world, time) for time in sample.frame_times]
            for slot, target in targets.items():
                ids = [self._vocabulary[words[slot]] if slot in words else IGNORED for words in rows]
                target[i, : len(ids)] = torch.tensor(ids)
            if sample.world.kind != "count":
                shown = [sample.world.shown(time) or ((torch.nan, torch.nan),) for time in sample.frame_times]
                centres[i, : len(shown)] = torch.tensor(shown)[:, 0]
        return targets, centres


def _visible_words(world: World, time: float) -> dict[str, str]:
    """Return the words that are true of one frame, given the frame half a second before."""
    state = world.state(time)
    if not state.present:
        return {}
    words = {slot: getattr(state, slot) for slot in world.slots}
    words["shape" if state.shape is not None else "digit"] = state.name
    if state.colour not in COLOURS:
        del words["colour"]
    if state.shape is not None and state.shape not in SHAPES:
        del words["shape"]
    if "motion" in words and not world.motion_visible(time):
        del words["motion"]
    return words


def _milliseconds(seconds: float) -> int:
    return round(1000 * seconds)
