"""A model that answers by a rule, rendered videos, and a benchmark that needs neither."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LogitsProcessorList

from live_loop_helpers import live_processor, talkative_model
from session_helpers import chat_model, chat_processor, chat_tokenizer
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Video, Viewer
from streamchat_hf.evaluation.benchmark_results import Score

# Under the simulated clock of tests a token takes half a second.
SPEED = 2.0
OFFICIAL = Conditions("official", 1.0, max_new_tokens=100)
LIVE = Conditions("streaming", 1.0, tokens_per_second=SPEED, max_new_tokens=100)


def answering(rule: Callable[[str, float], str]) -> Viewer:
    """A real model with its processor, but it answers as `rule(question, seconds of the clip)` says.

    One character is one token. What it was asked is kept in its model's `asked`.
    """
    model, processor, tokenizer = chat_model(), chat_processor(), chat_tokenizer()
    model.asked, speak = [], model.generate

    def generate(conversation, **kwargs):
        text = tokenizer.decode(conversation[0])
        question = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        model.asked.append((question, kwargs["start_time"]))
        characters = rule(question, kwargs["start_time"])
        ids = [tokenizer(one, add_special_tokens=False)["input_ids"] for one in characters]
        rest = iter([*(token for one in ids for token in one), tokenizer.eos_token_id])

        def say(input_ids, scores):
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(rest)]), 0.0)

        return speak(conversation, logits_processor=LogitsProcessorList([say]), **kwargs)

    model.generate = generate
    return Viewer(model, processor)


def live_viewer() -> Viewer:
    """A random model that speaks when it likes, with its processor."""
    processor = live_processor()
    text = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": processor.tokenizer.eos_token_id}
    return Viewer(talkative_model(2, text_config=text | {"pad_token_id": None}, **processor.token_ids()), processor)


def write_video(folder: Path, name: str = "x.mp4", duration: float = 8.0, seed: int = 0) -> Video:
    """Renders a world into the folder; a small file of two frames per second."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(World.sample(seed, duration=duration), path, fps=2, size=32)
    return Video(name, path)


@dataclass(frozen=True)
class Toy:
    """A benchmark of `pieces` numbers to be squared, each of which takes a moment."""

    pieces: int = 6
    wait: float = 0.0
    how: Conditions = OFFICIAL
    name: str = "streamworld"
    model_name: str = "toy"

    def settings(self):
        return {"pieces": self.pieces}

    def work(self):
        return [str(i) for i in range(self.pieces)]

    def answer(self, piece, viewer):
        time.sleep(self.wait)
        return [{"number": int(piece), "square": viewer.model(int(piece)), "third": viewer.processor / 3}]

    def files(self, rows):
        return {"squares.json": json.dumps([row["square"] for row in rows])}

    def scores(self, rows):
        return {"sum": sum(row["square"] for row in rows)}

    def headline(self, scores):
        return [Score("sum", "all", scores["sum"], self.pieces)]


def square(number: int) -> int:
    return number * number


def load_failing(folder: Path, failing: int):
    """Who squares, leaves a file for each number, and fails at one of them."""

    def leave(number: int) -> int:
        if number == failing:
            raise KeyError("of the model")
        (folder / str(number)).touch()
        return square(number)

    return Viewer(leave, 1)


def load_toy():
    """Who squares."""
    return Viewer(square, 1)
