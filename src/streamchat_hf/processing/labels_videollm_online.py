"""What VideoLLM-online learns of a conversation: the messages' `learn` flags to characters, and characters to labels.

    <bos>SYSTEM
                                 a stream of two frames, K = 1, `,` between frames:
    [<v>,<v>]                    `<v>` -> `,` (stay silent), the last `<v>` -> `]` and line break (speak now)
    Assistant: Hello.<eos>       `Assistant`, `:`, the words, `<eos>`

A range covers what is to be predicted, so the position before it gets the label: labels are pre-shifted.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, NamedTuple

IGNORED = -100
CLOSE = "]\n"


class Marks(NamedTuple):
    """What a conversation is written with.

    Attributes:
        placeholder: stands for one token of a frame.
        frame_num_tokens: tokens of a frame, K.
        interval: between two frames; `""`: nothing, and silence is the end-of-answer token.
        bos: before the system prompt.
        eos: after every answer.
    """

    placeholder: str
    frame_num_tokens: int
    interval: str
    bos: str
    eos: str


def message_texts(conversation: Sequence[dict[str, Any]], marks: Marks) -> list[str]:
    """The text of each message; together they are what the chat template writes.

    Args:
        conversation: messages `{"role": "system" | "user" | "assistant", "content": str}` and
            `{"role": "stream", "num_frames": int}`.
        marks: what it is written with.

    Raises:
        ValueError: for another role, or a system prompt that is not the first message.
    """
    texts = []
    for place, message in enumerate(conversation):
        role = message["role"]
        if role == "stream":
            frames = [marks.placeholder * marks.frame_num_tokens] * message["num_frames"]
            texts.append(f"\n[{marks.interval.join(frames)}]" if frames else "")
        elif role == "system" and place == 0:
            texts.append(f"{marks.bos}{message['content']}\n")
        elif role == "user":
            texts.append(f"\nUser: {message['content']}")
        elif role == "assistant":
            texts.append(f"\nAssistant: {message['content']}{marks.eos}")
        else:
            raise ValueError(f"message {place} has the role {role!r}, not system (first), user, assistant or stream")
    return texts


def learn_ranges(conversation: Sequence[dict[str, Any]], marks: Marks, compat: bool = False) -> list[tuple[int, int]]:
    """The characters that are learned.

    Of an assistant's message with `learn`, everything from `Assistant:` to the token that ends it. Of a stream with
    `learn=True`, what follows each of its frames; with `learn=k`, of its first k frames. After its last frame comes
    the decision to speak, so that frame is learned only if the assistant's message follows: when a user will ask
    something, or a recording ends, cannot be seen.

    Args:
        conversation: messages as for `message_texts`, each with an optional `learn`: bool or int.
        marks: what it is written with.
        compat: the ranges of the authors' code. A last frame is learned as "speak" whatever follows it; and without
            an interval its range is two characters too long, which ends in the middle of `Assistant`.

    Returns:
        `(start, stop)` in characters of the whole text, in order.

    Raises:
        ValueError: as `message_texts`.
    """
    texts = message_texts(conversation, marks)
    shown = [(message, text) for message, text in zip(conversation, texts, strict=True) if text]
    ranges: list[tuple[int, int]] = []
    offset = 0
    for place, (message, text) in enumerate(shown):
        if message["role"] == "assistant" and message.get("learn"):
            ranges.append((offset + len("\n"), offset + len(text)))
        elif message["role"] == "stream":
            following = shown[place + 1][0]["role"] if place + 1 < len(shown) else None
            answered = compat or following == "assistant"
            ranges += _stream_ranges(message, offset + len("\n["), marks, answered, compat)
        offset += len(text)
    return ranges


def learned_frames(message: dict[str, Any]) -> int:
    """How many frames of a stream are learned, by its `learn`: all, none, or the first so many."""
    learn = message.get("learn", False)
    return message["num_frames"] * learn if isinstance(learn, bool) else min(learn, message["num_frames"])


def _stream_ranges(
    message: dict[str, Any], start: int, marks: Marks, answered: bool, compat: bool
) -> list[tuple[int, int]]:
    """The ranges of one stream whose first frame begins at the character `start`."""
    count, frame = message["num_frames"], marks.frame_num_tokens * len(marks.placeholder)
    # Without an interval the next frame's placeholder is the target, which stands for silence: see below.
    silence = len(marks.interval or marks.placeholder)
    ends = [start + frame + i * (frame + len(marks.interval)) for i in range(count)]
    ranges = [(end, end + silence) for end in ends[:-1]]
    ranges.append((ends[-1], ends[-1] + (silence + 1 if compat else len(CLOSE))))
    return ranges[: min(learned_frames(message), count if answered else count - 1)]


def labels_from_ranges(
    input_ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    ranges: Sequence[tuple[int, int]],
    v_placeholder_id: int,
    eos_token_id: int,
    compat: bool = False,
) -> list[int]:
    """Pre-shifted labels: `labels[j]` is the target of `logits[j]`, the token at j + 1 where that one is learned.

    A token belongs to the range in which it starts. Where a tokenizer merges characters across the end of a range,
    such as `]`, line break and `A`, the merged token is learned as part of the earlier range, as it is what must be
    said there; one merged across a start only, with characters that are given, is not learned. Several tokens of one
    character are learned together. Ends of offsets are not used, because some tokenizers give wrong ones.

    Args:
        input_ids: L tokens of the whole text, without padding.
        offsets: L pairs of characters that they span.
        ranges: from `learn_ranges`.
        v_placeholder_id: as a target, where there is no interval, it means silence and becomes `eos_token_id`.
        eos_token_id: ends an answer.
        compat: as the authors' code, which needs exactly one token to start where a range starts and where it stops.

    Returns:
        L labels, -100 where nothing is learned.

    Raises:
        ValueError: if there are not as many offsets as tokens.
        RuntimeError: with `compat`, where the authors' code raises it.
    """
    if len(input_ids) != len(offsets):
        raise ValueError(f"{len(input_ids)} tokens, but {len(offsets)} offsets")
    starts = [start for start, _ in offsets]
    labels = [IGNORED] * len(input_ids)
    for start, stop in ranges:
        if compat:
            first = _only_token(starts, start)
            last = _only_token(starts, stop) if starts[-1] >= stop else len(starts)
        else:
            # Nothing comes before the first token that could predict it.
            first, last = max(bisect_left(starts, start), 1), bisect_left(starts, stop)
        for j in range(first, last):
            labels[j - 1] = eos_token_id if input_ids[j] == v_placeholder_id else input_ids[j]
    return labels


def _only_token(starts: list[int], character: int) -> int:
    """The token that starts at a character, as the authors look it up."""
    if starts.count(character) != 1:
        raise RuntimeError(f"a Tensor with {starts.count(character)} elements cannot be converted to Scalar")
    return starts.index(character)
