"""Small talkers that chat as Qwen2.5 does, cameras, and what a session is compared with and must leave behind."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamchat_helpers import tiny_model, whole
from streamchat_hf import StreamChatProcessor, StreamFormerVideoProcessor
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, Token

SYSTEM = "You watch a stream."
QUESTIONS = ("what do you see ?", "and now ?", "where is it ?", "why ?")
# Qwen2.5's own, without its tools.
QWEN_TEMPLATE = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "system" and not loop.first or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@cache
def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's special tokens and chat template, some 300 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["system user assistant what do you see and now where is it why"] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=QWEN_TEMPLATE,
    )


def chat_processor() -> StreamChatProcessor:
    """A processor for frames of 16 x 16."""
    return StreamChatProcessor(StreamFormerVideoProcessor(size={"height": 16, "width": 16}), chat_tokenizer())


def chat_model(seed: int = 5, **changes):
    """A tiny random model for that tokenizer, whose answers vary."""
    tokenizer = chat_tokenizer()
    text = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "tie_word_embeddings": False}
    model = tiny_model(seed, text_config=text, tie_word_embeddings=False, **changes)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)  # otherwise it goes on with the word it has begun with
    return model


class Ear:
    """A logits processor that listens: the scores of every step, and how many tokens had been said before it.

    Args:
        ends: After how many tokens an answer ends, by its number; the others end when the model likes.
        pace: Seconds that a step takes longer.

    Attributes:
        steps: Tokens said before each step, and its scores.
        forced: Steps in which the model had no free choice, by the tokens said before.
    """

    def __init__(self, ends: dict[int, int] | None = None, pace: float = 0.0):
        self.steps: list[tuple[int, torch.Tensor]] = []
        self.forced: set[int] = set()
        self.ends, self._pace = ends or {}, pace
        self._turn, self._said = -1, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        time.sleep(self._pace)
        length = input_ids.shape[1]
        if not self.steps or length > self.steps[-1][0] + 1:
            self._turn, self._said = self._turn + 1, 0
        self.steps.append((length, scores[0].clone()))
        self._said += 1
        end = chat_tokenizer().eos_token_id
        if self._turn in self.ends:
            self.forced.add(length)
            scores = scores.clone()
            scores[:, end] = torch.inf if self._said == self.ends[self._turn] else -torch.inf
        return scores

    @property
    def turns(self) -> list[int]:
        """Where each turn begins that the model did not speak itself."""
        lengths = [length for length, _ in self.steps]
        return [0] + [before + 1 for before, now in pairwise(lengths) if now > before + 1]


def answers(events: list) -> list:
    """The answers among the events of a session."""
    return [event.answer for event in events if isinstance(event, ResponseEnded)]


def assert_equals_one_forward(model, session, events: list, ear: Ear, frames: list) -> None:
    """The session's conversation through one full forward pass gives the scores of every step.

    Args:
        model: The model.
        session: The session, when it has ended.
        events: All that it told.
        ear: What listened to it.
        frames: The frames it saw, in order.
    """
    said = session.cache.said[0].tolist()
    tokens = iter([event for event in events if isinstance(event, Token)])
    spoken = {length: next(tokens) for length, _ in ear.steps}  # where the token stands
    assert next(tokens, None) is None
    times, now = [], None
    for position in reversed(range(len(said))):
        # A prompt's tokens are spoken with the first of the answer: what it sees has come by then.
        now = spoken[position].time if position in spoken else now
        times.insert(0, now)
    assert [said[position] for position in spoken] == [token.id for token in spoken.values()]
    taken = [event.time for event in events if isinstance(event, FrameSeen)]
    reference = whole(model, said, times, ear.turns, frames[: len(taken)], frame_times=taken)
    for length, scores in ear.steps:
        torch.testing.assert_close(scores, reference[length - 1], atol=1e-4, rtol=0)
        assert reference[length - 1].argmax() == said[length] or length in ear.forced


class Camera:
    """A live source.

    Args:
        frames: Pixels `(C, H, W)`, one after the other.
        waits: Seconds before each.
    """

    source, live = "camera", True

    def __init__(self, frames: Iterable[torch.Tensor], waits: Iterable[float]):
        self._frames = zip(frames, waits, strict=False)
        self.closed = threading.Event()

    def __iter__(self) -> "Camera":
        return self

    def __next__(self) -> tuple[float, torch.Tensor]:
        pixels, wait = next(self._frames)
        if self.closed.wait(wait):
            raise StopIteration
        return 0.0, pixels

    def close(self) -> None:
        self.closed.set()


@contextmanager
def nothing_left_behind() -> Iterator[None]:
    """No thread and no open file more than before; a test's own timers may take a moment."""
    threads, files = set(threading.enumerate()), Counter(open_files())
    yield
    left = set(threading.enumerate()) - threads
    assert {thread for thread in left if not isinstance(thread, threading.Timer)} == set()
    assert Counter(open_files()) - files == Counter()


def open_files() -> list[str]:
    """The files that this process has open."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the one that lists them
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return sorted(name for name in names if name.startswith("/") and not name.startswith(("/dev/", "/proc/")))
