"""Augmentation of streaming dialogue that reduces what text alone gives away (VideoLLM-online, 2406.11816).

A model can learn to go on from the answers before instead of from the frames. So one answer is replaced by another
one, by an empty one, or left out; and either that is put right after the next frame, or it is not, and then the frames
after it, whose decisions would rest on a wrong past, are not learned.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from streamchat_hf.data.live_conversation import LiveMessage, learned_frames

CORRECTION = "(Sorry, the last response is wrong) "


def augment(conversation: Sequence[LiveMessage], rng: random.Random, compat: bool = False) -> list[LiveMessage]:
    """Spoil one learned answer, not the last one, as the authors do.

    It is replaced by the text of another learned answer, by nothing said, or left out, each choice equally likely.
    Then, equally likely,

    - it is put right: after a replaced one comes one frame and `"(Sorry, the last response is wrong) "` with the true
      text, and one that was left out comes one frame late. This needs a stream of more than one frame behind it, and
      for a late one a stream before it; otherwise the conversation stays as it is.
    - or it is not: the stream behind it is not learned. One that was left out joins the streams around it, of which
      all frames but the last of the first one are learned.

    What was not learned stays so: no frame before a question becomes one to speak at. The authors' code takes the
    streams next to the answer to be learned whole, whatever they say: one before a question, which learns all of its
    frames but the last, learns that one, too, once an answer has moved into it.

    Args:
        conversation: Messages in the form of `LiveSample`; neither the list nor the messages are changed.
        rng: Where randomness comes from; equal states give equal conversations.
        compat: Whether to learn of those streams what the authors' code does.

    Returns:
        Messages with the same number of frames. Those that moved have no `time`. With less than two learned answers,
        the conversation itself.
    """
    conversation = list(conversation)
    answers = [i for i, message in enumerate(conversation) if message["role"] == "assistant" and message.get("learn")]
    if len(answers) < 2:
        return conversation
    i = rng.choice(answers[:-1])
    real = conversation[i]["content"]
    others = dict.fromkeys(conversation[j]["content"] for j in answers if conversation[j]["content"] != real)
    fake = rng.choice([*others, "", None])
    put_right = rng.random() < 0.5
    # What is said in place of the answer and of the streams next to it.
    before = _frames(conversation[i - 1]) if i else None
    after = _frames(conversation[i + 1])
    start, stop = i - (before is not None), i + 1 + (after is not None)
    if put_right:
        middle = _put_right(before, after, fake, real, compat)
        if middle is None:
            return conversation
    else:
        middle = _left_wrong(before, after, fake, compat)
    return [*conversation[:start], *middle, *conversation[stop:]]


def _put_right(
    before: LiveMessage | None, after: LiveMessage | None, fake: str | None, real: str, compat: bool
) -> list[LiveMessage] | None:
    """The wrong answer and the true one a frame later; `None` if there is no room for that."""
    if after is None or after["num_frames"] < 2:
        return None
    rest = _stream(after["num_frames"] - 1, _learned(after, compat) - 1)
    if fake is not None:
        return [*_listed(before), _answer(fake, learn=False), _stream(1, 1), _answer(CORRECTION + real), rest]
    if before is None:
        return None
    return [_stream(before["num_frames"] + 1, _silent(before, compat)), _answer(real), rest]


def _left_wrong(
    before: LiveMessage | None, after: LiveMessage | None, fake: str | None, compat: bool
) -> list[LiveMessage]:
    """The wrong answer, or none, and frames behind it that are not learned."""
    unlearned = None if after is None else _stream(after["num_frames"], 0)
    if fake is not None:
        return [*_listed(before), _answer(fake, learn=False), *_listed(unlearned)]
    if before is None:
        return _listed(unlearned)
    frames = before["num_frames"] + (0 if after is None else after["num_frames"])
    return [_stream(frames, _silent(before, compat))]


def _learned(message: LiveMessage, compat: bool) -> int:
    """How many frames of a stream are learned; to the authors' code, all."""
    return message["num_frames"] if compat else learned_frames(message)


def _silent(message: LiveMessage, compat: bool) -> int:
    """How many frames of a stream are learned, but for the last one, at which the assistant spoke."""
    return min(_learned(message, compat), message["num_frames"] - 1)


def _frames(message: LiveMessage) -> LiveMessage | None:
    return message if message["role"] == "stream" else None


def _listed(message: LiveMessage | None) -> list[LiveMessage]:
    return [] if message is None else [message]


def _answer(content: str, learn: bool = True) -> LiveMessage:
    return LiveMessage(role="assistant", content=content, learn=learn)


def _stream(frames: int, learned: int) -> LiveMessage:
    """A stream that learns its first so many frames; a bool says all or none, as rows do."""
    learn = learned if 0 < learned < frames else learned == frames
    return LiveMessage(role="stream", num_frames=frames, learn=learn)
