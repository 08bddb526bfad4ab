"""Round-decayed compression (StreamBridge, section 3.2.2 and appendix I): old rounds lose detail, the newest does not.

While the input is too long, the two oldest frames of the oldest round that still has two become one, their average
over time in every place of the image. So a round keeps at least one frame, text is never pooled, and an old round has
one blurred frame for its beginning and sharp ones after it. The authors remove R = int((L - max_length) / k) + 1
frames of k tokens, one more than is needed when it divides; here R = ceil((L - max_length) / k).

The newest round is the last one with frames: what is asked and answered behind it without anything new to see does not
make its frames old. The authors stop when every old round has one frame. A stream that lasts for days goes on: then
the oldest rounds are forgotten with their text, all but the newest question; then the newest round's own oldest frames
are pooled, all but its newest one; and last of all it is forgotten, if something was asked behind it.

Frames know how many they stand for. As long as old rounds can pay, compressing after every frame therefore gives what
compressing the whole past at once would give.
"""

from collections.abc import Sequence
from dataclasses import replace

from streamchat_hf.bridge.rounds import Frame, FrameTokens, Round, pool


def visual_tokens(frame: Frame) -> int:
    """How many tokens a frame takes if nothing but its visual tokens stands in the input."""
    return len(frame.rows)


def compress(
    rounds: Sequence[Round],
    max_length: int,
    frame_tokens: FrameTokens = visual_tokens,
    run_tokens: int = 0,
) -> list[Round]:
    """Shortens rounds until they fit; those that fit stay as they are.

    Args:
        rounds: oldest first; the last one is the newest.
        max_length: how many tokens they may take together.
        frame_tokens: how many one frame takes.
        run_tokens: how many the frames of a round take beside that.

    Returns:
        The rounds, oldest first, of at most `max_length` tokens. The given ones are not changed.

    Raises:
        ValueError: if they cannot fit, with all that may go gone.
    """
    rounds = list(rounds)
    excess = sum(each.length(frame_tokens, run_tokens) for each in rounds) - max_length
    newest = max((index for index, each in enumerate(rounds) if each.frames), default=len(rounds) - 1)
    for index in range(newest):
        rounds[index], excess = _pool_oldest(rounds[index], excess, frame_tokens, kept=0)
    for index in (*range(newest), *range(newest + 1, len(rounds) - 1)):
        rounds[index], excess = _forget(rounds[index], excess, frame_tokens, run_tokens)
    if rounds:
        rounds[newest], excess = _pool_oldest(rounds[newest], excess, frame_tokens, kept=1)
    if newest < len(rounds) - 1:
        rounds[newest], excess = _forget(rounds[newest], excess, frame_tokens, run_tokens)
    if excess > 0:
        raise ValueError(
            f"{excess} tokens too many for max_length: the newest question, the newest round's text and two of its "
            f"frames need {max_length + excess}, and there is room for {max_length}. Give a larger max_length"
        )
    return [each for each in rounds if each.opening or each.frames or each.text]


def _forget(each: Round, excess: int, frame_tokens: FrameTokens, run_tokens: int) -> tuple[Round, int]:
    """Forgets a round, all but the newest question, if there is an excess; tells what of that is left."""
    if excess <= 0:
        return each, excess
    left = each.forgotten() or Round()
    return left, excess - each.length(frame_tokens, run_tokens) + left.length(frame_tokens, run_tokens)


def _pool_oldest(each: Round, excess: int, frame_tokens: FrameTokens, kept: int) -> tuple[Round, int]:
    """Pools as many of a round's oldest frames as are needed, but not its `kept` newest; tells what excess is left."""
    if not each.frames:
        return each, excess
    frames, pooled = each.frames, 1
    head = frames[0]  # what the first `pooled` frames become, as far as its length depends on it
    while excess > 0 and pooled < len(frames) - kept:
        longer = head._replace(t_sec=frames[pooled].t_sec, since=head.t_sec if head.since is None else head.since)
        excess -= frame_tokens(head) + frame_tokens(frames[pooled]) - frame_tokens(longer)
        head, pooled = longer, pooled + 1
    if pooled == 1:
        return each, excess
    return replace(each, frames=(pool(frames[:pooled]), *frames[pooled:])), excess
