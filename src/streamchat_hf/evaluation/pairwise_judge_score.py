"""What two verdicts say together, and how sure a share of them is."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from streamchat_hf.evaluation.pairwise_judge_prompt import CHOICES, EQUAL, FIRST, SECOND

WIN, TIE, LOSS = OUTCOMES = ("win", "tie", "loss")
RESAMPLES = 2_000


def combine(a_first: str, b_first: str) -> str:
    """Return what becomes of A: the better of two answers is better wherever it stands, anything else is a tie.

    Args:
        a_first: The choice where A was shown first.
        b_first: The choice where B was.
    """
    return {(FIRST, SECOND): WIN, (SECOND, FIRST): LOSS}.get((a_first, b_first), TIE)


def order_effect(choices: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return how much the order in which two answers are shown decides.

    Args:
        choices: Of every question the choice where A was shown first, and the one where B was.

    Returns:
        `"same_in_both_orders"`, the share of the questions of which the judge says the same in both, `None` without
        questions; and `"preferred"`, how often it chose what.
    """
    same = sum(combine(*pair) != TIE or pair == (EQUAL, EQUAL) for pair in choices)
    preferred = Counter(choice for pair in choices for choice in pair)
    return {
        "same_in_both_orders": same / len(choices) if choices else None,
        "preferred": {choice: preferred[choice] for choice in CHOICES},
    }


def score_outcomes(outcomes: Iterable[tuple[str, str]], seed: int = 0) -> dict[str, Any]:
    """Return the shares of wins, ties and losses, with bootstrap intervals of 95 %.

    Questions about one video stand and fall together, so that videos are drawn, each with all of its questions.

    Args:
        outcomes: The video and the outcome of every question.
        seed: Of the bootstrap.

    Returns:
        Of `"win"`, `"tie"`, `"loss"` and `"win_or_tie"` the count `"n"`, the `"share"` of all, and the `"interval"`
        `[low, high]`; no share without questions, no interval with fewer than two videos.
    """
    by_video: dict[str, Counter[str]] = {}
    for video, outcome in outcomes:
        by_video.setdefault(video, Counter())[outcome] += 1
    counts = np.array([[found[outcome] for outcome in OUTCOMES] for found in by_video.values()]).reshape(-1, 3)
    names = (*OUTCOMES, "win_or_tie")
    counts = np.column_stack([counts, counts[:, 0] + counts[:, 1]])  # (videos, 4)
    videos, questions = len(counts), int(counts[:, :3].sum())
    intervals: list[Any] = [None] * len(names)
    if videos > 1:
        times_drawn = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), RESAMPLES)
        drawn = times_drawn @ counts  # (RESAMPLES, 4)
        shares = drawn / drawn[:, :3].sum(1, keepdims=True)
        intervals = np.quantile(shares, (0.025, 0.975), axis=0).T.tolist()
    return {
        name: {"n": int(n), "share": int(n) / questions if questions else None, "interval": interval}
        for name, n, interval in zip(names, counts.sum(0), intervals, strict=True)
    }
