"""Ways to learn when to speak, which VideoLLM-online compares (2406.11816, sections 3.1 and 4.2, table 1a).

    streaming     user: q   [frame , frame , frame]        assistant: a   every frame decides: silence, or to speak
    interleaved   user: q   [frame , frame , frame]        assistant: a   only the last frame is learned: to speak
    per-frame     user: q   [frame] assistant: <eos>  [frame] assistant: <eos>  [frame] assistant: a

The three differ in nothing but the layout and what of it is learned: same questions, same frames, same answers.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamchat_hf.data.live_conversation import LiveMessage, LiveSample, learned_frames

METHODS = ("streaming", "interleaved", "per-frame")


def check_method(method: str) -> str:
    """Return the name of a learning method.

    Raises:
        ValueError: If there is no such method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown learning method {method!r}: expected one of {METHODS}")
    return method


def per_frame(sample: LiveSample) -> LiveSample:
    """Lay a row out so that every frame is a turn, in which silence is an empty answer (section 3.1, equation 2).

    An answer is learned whole, the empty one as well: that is language modelling. It is learned where the frame is
    that it stands for, so of the frames before a question all but the last one, and likewise at the end.

    Args:
        sample: As `lay_out` makes it; it is not changed.
    """
    conversation: list[LiveMessage] = []
    messages = sample["conversation"]
    for message, follower in zip(messages, [*messages[1:], None], strict=True):
        if message["role"] != "stream":
            conversation.append(message)
            continue
        frames, learned = message["num_frames"], learned_frames(message)
        answered = follower is not None and follower["role"] == "assistant"
        for k in range(frames):
            conversation.append(LiveMessage(role="stream", num_frames=1, learn=False))
            if k < frames - 1 or not answered:
                conversation.append(LiveMessage(role="assistant", content="", learn=k < learned))
    laid_out = sample.copy()
    laid_out["conversation"] = conversation
    return laid_out


def without_silence(
    input_ids: Sequence[int], labels: Sequence[int], v_placeholder_id: int, silence_token_id: int
) -> list[int]:
    """Take away what frames learn of silence: what is left of the labels is the language modelling of equation 3.

    Args:
        input_ids: L tokens of a conversation.
        labels: L pre-shifted targets.
        v_placeholder_id: The token of frames.
        silence_token_id: Their target where there is nothing to say.

    Returns:
        L labels, -100 where nothing is learned.
    """
    return [
        -100 if token == v_placeholder_id and label == silence_token_id else label
        for token, label in zip(input_ids, labels, strict=True)
    ]
