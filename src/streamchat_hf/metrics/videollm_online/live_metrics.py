"""LM-PPL, TimeDiff, Fluency and LM correctness of one streaming dialogue, from one forward pass over it.

The metrics of VideoLLM-online (Chen et al., CVPR 2024, section 4.2). A dialogue is cut into turns after every end of
sequence; what follows the last one is ignored. In a turn, S are the learned frames (labelled positions whose input is
a frame token: the last token of a frame) and M the learned words (the other labelled positions). Labels are
pre-shifted: `labels[i]` is the target of `logits[i]`. On a frame the model *responds* if the silence token is not its
argmax, or has a probability below the threshold. Per turn:

- LM-PPL is exp(mean cross-entropy over M), and LM correctness the share of M before the first wrong word.
- The response is *due* on the last frame of S whose label is not silence. `frame_diff` is how many frames too early
  (positive) or too late (negative) it came. If nobody responded in S, the frames that follow are looked at: as many as
  the next turn has, but fewer than this turn has, with the cache cut after the last frame of S, so that the written
  answer has not been seen. A response that does not come there either is *missed*, and counts as late by the whole
  turn.
- Fluency is the share of S and M, in order, before the first mistake.

A turn without M has no LM-PPL and no LM correctness, one without S no `frame_diff`, and without either no fluency. A
sample has the means over its turns, of the absolute `frame_diff`.

With `compat=True` numbers are those of the authors' code, mistakes included. What the default corrects:

1. *Silence was punctual.* Who never responded had `frame_diff` 0 and possibly fluency 1 in the last turn and in turns
   of one frame, and otherwise the same as one who responded at the very last moment. It is missed: late by the turn.
2. *A wrong frame counted as right.* After an early response fluency counted the frame of the response too.
3. *Frames of a silent turn owed a response.* Labels were not looked at, so that silence was late where every label is
   silence, as before a question that nobody can foresee. There silence is right, and a response early by what was
   left.
4. *Other frames were looked at.* The frames of turns without labels were not counted, so that `first_frame` was too
   small afterwards; and it left out those between the last learned frame and the end of its turn.
5. *Nothing to measure was perfect.* Samples without any turn, words or frames had LM-PPL 1, `frame_diff` 0, fluency 1
   and LM correctness 1, which went into the mean of the data set. They have None, and are left out of it.
6. *Token 0 as silence.* Below the threshold all probabilities were zeroed before the argmax, which is then token 0:
   with this as the silence token, a threshold made a model more silent.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100  # what cross-entropy leaves out unless told otherwise

# (past_len, first_frame, n_frames) -> logits: see `live_metrics`.
LookAhead = Callable[[int, int, int], Tensor]


@torch.no_grad()
def live_metrics(
    input_ids: Tensor,
    labels: Tensor,
    logits: Tensor,
    *,
    frame_num_tokens: int,
    v_placeholder_id: int,
    eos_token_id: int,
    frame_token_interval_id: int | None = None,
    threshold: float | None = None,
    look_ahead: LookAhead | None = None,
    compat: bool = False,
) -> dict[str, Any]:
    """Score one dialogue.

    Args:
        input_ids: (T,), the whole dialogue with frame tokens.
        labels: (T,), pre-shifted; -100 where nothing is learned.
        logits: (T, V) of one forward pass over the dialogue; or (labelled positions, V), only the rows with a label,
            which is all that is needed.
        frame_num_tokens: K, the tokens of a frame.
        v_placeholder_id: The frame token; it may lie outside the vocabulary.
        eos_token_id: It ends a turn; and is the silence token if there is no token between frames.
        frame_token_interval_id: The token between frames, which is then the silence token.
        threshold: θ; a frame responds if p(silence) < θ, too. With None or 0 the argmax alone decides. `generate` does
            the same, but for θ between 0 and 0.5: there p(silence) < θ alone decides, whatever the argmax.
        look_ahead: Called as `look_ahead(past_len, first_frame, n_frames)` for a turn in which nobody responded though
            it was due and frames follow. It continues the dialogue after its first `past_len` tokens, and thus without
            the written answer, with frames `first_frame` to `first_frame + n_frames - 1` of the dialogue (counted from
            0), each preceded by the token between frames if there is one; and returns the logits of all these tokens
            or only those of the last token of each frame: (n_frames · (K + 1 or K), V) or (n_frames, V).
        compat: Whether to score as the authors' code does.

    Returns:
        `lm_ppl`, `frame_diff` (frames, absolute), `fluency` and `lm_correctness`: means over the turns that have them,
        else None; `missed`: the number of turns whose response never came; and `turns`: a dict per turn with a label,
        with the same keys (its `frame_diff` signed: positive is early, its `missed` a bool) and its tokens `[start,
        stop)`.

    Raises:
        ValueError: For shapes that do not fit each other, and without `look_ahead` where it is needed.
    """
    input_ids, labels = input_ids.to(logits.device), labels.to(logits.device)
    labelled = labels != IGNORE
    row_of = _rows(input_ids, labels, logits, labelled)
    is_frame = input_ids == v_placeholder_id
    silence = eos_token_id if frame_token_interval_id is None else frame_token_interval_id
    stride = frame_num_tokens + (frame_token_interval_id is not None)
    spans = _spans(input_ids == eos_token_id)
    num_frames = [int(is_frame[start:stop].sum()) // frame_num_tokens for start, stop in spans]
    responds = partial(_responds, silence=silence, threshold=threshold, compat=compat)
    frames_ahead = partial(_looked_ahead, look_ahead, stride)
    turns: list[dict[str, Any]] = []
    counted_frames = 0  # of the turns with labels, which is where the authors take the frames to look at
    for turn, (start, stop) in enumerate(spans):
        if not labelled[start:stop].any():
            continue
        frames = start + (labelled & is_frame)[start:stop].nonzero()[:, 0]  # S
        words = start + (labelled & ~is_frame)[start:stop].nonzero()[:, 0]  # M
        row: dict[str, Any] = {"start": start, "stop": stop, **dict.fromkeys(_MEANS), "missed": False}
        right_words = 0
        if len(words):
            right_words, row["lm_ppl"] = _wording(logits[row_of[words]].float(), labels[words])
            row["lm_correctness"] = right_words / len(words)
        if len(frames):
            loud = responds(logits[row_of[frames]])
            due = labels[frames] != silence
            past_len = int(frames[-1]) + 1
            next_frames = num_frames[turn + 1] if turn + 1 < len(spans) else 0
            n_frames = max(0, min(next_frames, num_frames[turn] - 1))  # as far as it could have been early
            first_frame = counted_frames + num_frames[turn]
            if not compat:
                first_frame = int(is_frame[:past_len].sum()) // frame_num_tokens
            later = partial(_first_ahead, responds, frames_ahead, past_len, first_frame, n_frames)
            if compat:
                row["frame_diff"], row["missed"] = _timing_compat(loud, n_frames, later)
                right = _fluent_compat(len(frames), row["frame_diff"], right_words)
            else:
                row["frame_diff"], row["missed"] = _timing(loud, due, num_frames[turn], later)
                right = _leading(loud == due)
                right += right_words if right == len(frames) else 0
            if len(words):
                row["fluency"] = right / (len(frames) + len(words))
        counted_frames += num_frames[turn]
        turns.append(row)
    means = {
        name: _mean([row[name] for row in turns], nothing if compat else None) for name, nothing in _MEANS.items()
    }
    return {**means, "missed": sum(row["missed"] for row in turns), "turns": turns}


# What a sample has, and what the authors' code says where there is nothing to measure.
_MEANS = {"lm_ppl": 1.0, "frame_diff": 0.0, "fluency": 1.0, "lm_correctness": 1.0}


def _spans(is_end: Tensor) -> list[tuple[int, int]]:
    """From where to where each turn goes, its end of sequence included."""
    stops = (is_end.nonzero()[:, 0] + 1).tolist()
    return list(zip([0, *stops], stops, strict=False))


def _wording(logits: Tensor, targets: Tensor) -> tuple[int, float]:
    """How many words are right before the first that is not; and the perplexity of all."""
    return _leading(logits.argmax(-1) == targets), float(cross_entropy(logits, targets).exp())


def _timing(loud: Tensor, due: Tensor, num_frames: int, later: Callable[[], int | None]) -> tuple[int, bool]:
    """How early the response is, in frames, and whether it never came.

    Args:
        loud: (|S|,), whether the model responds on each learned frame.
        due: (|S|,), whether the label of each says so. Only the last one is what the turn's answer follows; an earlier
            one stands before a question, where neither silence nor speech is a mistake in time.
        num_frames: Of the whole turn.
        later: The first of the frames that follow on which it responds.
    """
    last = len(due) - 1
    if not due.any():
        early = _first(loud)
        return (0 if early is None else len(due) - early), False
    when = last - int(due.flip(0).int().argmax())
    early = _first(loud[:when] & ~due[:when])
    if early is not None:
        return when - early, False
    late = _first(loud[when:])
    if late is not None:
        return -late, False
    next_one = later()
    # Missed is later than anything that can be looked at.
    return when - last - (num_frames if next_one is None else next_one + 1), next_one is None


def _timing_compat(loud: Tensor, n_frames: int, later: Callable[[], int | None]) -> tuple[int, bool]:
    early = _first(loud)
    if early is not None:
        return len(loud) - 1 - early, False
    next_one = later()
    return -n_frames if next_one is None else -(next_one + 1), next_one is None


def _fluent_compat(learned_frames: int, frame_diff: int, right_words: int) -> int:
    if frame_diff == 0:
        return learned_frames + right_words
    return learned_frames - (frame_diff if frame_diff > 0 else 1)


def _responds(rows: Tensor, silence: int, threshold: float | None, compat: bool) -> Tensor:
    """Whether the model responds: (n, V) -> (n,)."""
    scores = rows.float().softmax(-1)
    loud = scores.argmax(-1) != silence
    if threshold:
        below = scores[:, silence] < threshold
        loud = torch.where(below, silence != 0, loud) if compat else loud | below
    return loud


def _first_ahead(responds: Callable, frames_ahead: Callable, past_len: int, first_frame: int, n: int) -> int | None:
    """The first of the n frames that follow on which the model responds."""
    return _first(responds(frames_ahead(past_len, first_frame, n))) if n else None


def _looked_ahead(look_ahead: LookAhead | None, stride: int, past_len: int, first_frame: int, n_frames: int) -> Tensor:
    """The logits of the last token of each frame that follows: (n_frames, V)."""
    asked = f"{n_frames} frames from frame {first_frame} on, after the first {past_len} tokens"
    if look_ahead is None:
        raise ValueError(
            f"nobody responded before token {past_len}, and there is no look-ahead: give logits of {asked}"
        )
    logits = look_ahead(past_len, first_frame, n_frames)
    if logits.dim() != 2 or len(logits) not in (n_frames, n_frames * stride):
        shape = f"({n_frames}, V) or ({n_frames * stride}, V)"
        raise ValueError(f"the look-ahead logits of {asked} must be {shape}, not {tuple(logits.shape)}")
    return logits if len(logits) == n_frames else logits[stride - 1 :: stride]


def _rows(input_ids: Tensor, labels: Tensor, logits: Tensor, labelled: Tensor) -> Tensor:
    """Which row of the logits belongs to each position: (T,)."""
    if input_ids.dim() != 1 or labels.shape != input_ids.shape or logits.dim() != 2:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (input_ids, labels, logits))
        raise ValueError(f"one dialogue is input_ids (T,), labels (T,), logits (T, V), not {shapes}")
    if len(logits) == len(input_ids):
        return torch.arange(len(input_ids), device=logits.device)
    if len(logits) == int(labelled.sum()):
        return labelled.cumsum(0) - 1
    raise ValueError(f"{len(logits)} rows of logits for {len(labels)} tokens, {int(labelled.sum())} of them labelled")


def _first(flags: Tensor) -> int | None:
    return int(flags.int().argmax()) if flags.any() else None


def _leading(flags: Tensor) -> int:
    """How many are true before the first that is not."""
    return int(flags.int().cumprod(0).sum())


def _mean(values: list[float | None], nothing: float | None) -> float | None:
    known = [abs(value) for value in values if value is not None]
    return sum(known) / len(known) if known else nothing
