"""Questions about what a StreamWorld clip has shown, asked when it is over, each with four possible answers.

None can be answered from the last frame: what was true at first has changed since, and changes have to be counted. Of
four answers one is right and, where the question is about the beginning, one is what the last frame shows. Whoever
does not look is right in one case of four.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from tokenizers import AddedToken
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from streamchat_hf.data.streamworld import COLOURS, COUNTS, MOTIONS, SHAPES, World
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.data.streamworld_render import render

QUESTIONS = {
    "first_colour": "what colour was it first ?",
    "first_shape": "what shape was it first ?",
    "first_motion": "where did it go first ?",
    "changes": "how often did it change ?",
}
VALUES = {"first_colour": COLOURS, "first_shape": SHAPES, "first_motion": MOTIONS, "changes": COUNTS}
OPTIONS = 4
VIDEO_TOKEN = "<video>"

_FIRST_MOTION_FRAMES = 3  # that show the first motion, at least

_NEW_WORDS = ("was", "first", "did", "often", "change")
_IGNORED = -100


@dataclass(frozen=True)
class PastQuestion:
    """A clip with a question about it; nothing is rendered yet.

    Attributes:
        kind: A key of `QUESTIONS`.
        world: What the frames show.
        frame_times: Of the T frames, in seconds.
        options: Four words, one of them right, in random order.
        answer: Which of them.
    """

    kind: str
    world: World
    frame_times: tuple[float, ...]
    options: tuple[str, ...]
    answer: int

    @property
    def text(self) -> str:
        """The user's words."""
        return QUESTIONS[self.kind]


class StreamWorldQuestions(Dataset):
    """Item i depends on (seed, split, i) and the other arguments alone; kinds take turns.

    Args:
        length: Number of items.
        seed: Any integer.
        split: Of the worlds; see `World.sample`.
        kinds: Which of `QUESTIONS` are asked.
        num_frames: Frames T of a clip.
        fps: Frames per second, at least 2: a slower viewer misses states.

    Raises:
        ValueError: For an unknown kind, less than two frames per second, or a clip of less than five seconds, in which
            too little would change.

    Example:
    ```python
    questions = StreamWorldQuestions(length=1000)
    questions[0].text, questions[0].options, questions[0].answer
    ```
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        kinds: Sequence[str] = tuple(QUESTIONS),
        num_frames: int = 16,
        fps: float = 2.0,
    ):
        unknown = [kind for kind in kinds if kind not in QUESTIONS]
        if unknown or not kinds:
            raise ValueError(f"unknown kinds {unknown}: expected some of {tuple(QUESTIONS)}")
        if fps < 2 or num_frames / fps < 5:
            raise ValueError(f"{num_frames} frames at {fps} per second: give at least 2 per second, for 5 seconds")
        self.length, self.seed, self.split, self.kinds = length, seed, split, tuple(kinds)
        self.num_frames, self.fps = num_frames, fps

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> PastQuestion:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        kind = self.kinds[index % len(self.kinds)]
        rng = random.Random(f"streamworld questions/{self.split}/{self.seed}/{kind}/{index}")
        times = tuple(round(1000 * i / self.fps) / 1000 for i in range(self.num_frames))
        wanted = rng.choice(VALUES[kind])  # every answer is equally frequent, however rare its worlds are
        while True:
            world = World.sample(rng.getrandbits(48), self.split, self.num_frames / self.fps)
            if true_answer(kind, world, times) == wanted:
                break
        wrong = rng.sample([value for value in VALUES[kind] if value != wanted], len(VALUES[kind]) - 1)
        if kind != "changes":
            now = getattr(world.state(times[-1]), kind.removeprefix("first_"))
            wrong.sort(key=lambda value: value != now)  # what the last frame shows is always among the wrong ones
        options = rng.sample([wanted, *wrong[: OPTIONS - 1]], OPTIONS)
        return PastQuestion(kind, world, times, tuple(options), options.index(wanted))


def true_answer(kind: str, world: World, times: Sequence[float]) -> str | None:
    """What a viewer of these frames answers.

    Args:
        kind: A key of `QUESTIONS`.
        world: What the frames show.
        times: Of the frames, in seconds.

    Returns:
        A word of `VALUES[kind]`; or `None` if the question does not fit the clip: nothing is visible at first or in
        the end, the scene has no such attribute or the same value at first and in the end, a first motion is short, or
        what changes does so never or more often than there are words for.
    """
    states = [world.state(time) for time in times]
    first, last = states[0], states[-1]
    if not (first.present and last.present):
        return None
    if kind == "changes":
        shown = [(state.colour, state.name) for state in states if state.present]
        changes = sum(a != b for before, after in pairwise(shown) for a, b in zip(before, after, strict=True))
        # Several objects change more often than one: a single frame would tell.
        return COUNTS[changes - 1] if world.kind != "count" and 0 < changes <= len(COUNTS) else None
    slot = kind.removeprefix("first_")
    if slot not in world.slots or getattr(first, slot) == getattr(last, slot):
        return None
    if slot == "motion":
        # In the very first frame no motion shows.
        begin = range(1, 1 + _FIRST_MOTION_FRAMES)
        lasts = all(world.motion_visible(times[i]) and states[i].motion == first.motion for i in begin)
        return first.motion if lasts and world.motion_visible(times[-1]) else None
    return getattr(first, slot)


def question_tokenizer() -> PreTrainedTokenizerFast:
    """StreamWorld's tokenizer with the words of these questions and `VIDEO_TOKEN`, the place of a visual token."""
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([AddedToken(word, single_word=True) for word in _NEW_WORDS])
    tokenizer.add_tokens([AddedToken(VIDEO_TOKEN, special=True)], special_tokens=True)
    return tokenizer


class QuestionCollator:
    """Renders questions and writes them as one batch: `collator(samples)`.

    Args:
        tokenizer: Of `question_tokenizer`.
        video_tokens: How often `VIDEO_TOKEN` stands before the question; 0 for a model that sees beside its text.
        size: Height and width of a frame in pixels.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, video_tokens: int = 0, size: int = 48):
        self.tokenizer, self.video_tokens, self.size = tokenizer, video_tokens, size

    def __call__(self, samples: Sequence[PastQuestion]) -> dict[str, Tensor]:
        """Collate B samples.

        Returns:
            `input_ids`, `attention_mask` and `labels` (B, L), padded on the right: the question, the right word and
            the end, of which the latter two are labels, not shifted, and the rest is -100.
            `pixel_values_videos`: float32 (B, T, 3, size, size), in -1..1.
        """
        rows = [self.prompt(sample.text) for sample in samples]
        answers = [self.option_ids(sample)[sample.answer] for sample in samples]
        shape = (len(rows), max(len(row) for row in rows) + 2)
        input_ids, labels = torch.full(shape, self.tokenizer.pad_token_id), torch.full(shape, _IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        for i, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            end = len(row) + 2
            said = torch.tensor([answer, self.tokenizer.eos_token_id])
            input_ids[i, :end] = torch.cat([torch.tensor(row), said])
            labels[i, end - 2 : end], attention_mask[i, :end] = said, 1
        frames = render([sample.world for sample in samples], [sample.frame_times for sample in samples], self.size)
        pixels = frames.float().div_(127.5).sub_(1)
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "pixel_values_videos": pixels,
        }

    def prompt(self, text: str) -> list[int]:
        """Tokens of a question, up to where the answer begins."""
        message = [{"role": "user", "content": VIDEO_TOKEN * self.video_tokens + " " + text}]
        encoded = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        return list(encoded["input_ids"])

    def option_ids(self, sample: PastQuestion) -> list[int]:
        """Tokens of the four options, one each."""
        return list(self.tokenizer.convert_tokens_to_ids(list(sample.options)))


def chosen_options(logits: Tensor, labels: Tensor, options: Tensor) -> Tensor:
    """Which option a model finds most likely, as multiple choice is scored.

    Args:
        logits: (B, L, vocabulary) of a collated batch.
        labels: (B, L) of that batch: the answer is the first that is not -100.
        options: int64 (B, 4), the tokens of the options.

    Returns:
        int64 (B,), the number of the option.
    """
    before = (labels != _IGNORED).int().argmax(1) - 1  # the position that says the answer
    return logits[torch.arange(len(logits)), before].gather(1, options).argmax(1)
