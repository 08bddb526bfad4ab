import random
from collections import Counter

import numpy as np
import pytest

from streamchat_hf.evaluation.pairwise_judge_prompt import CHOICES
from streamchat_hf.evaluation.pairwise_judge_score import OUTCOMES, combine, order_effect, score_outcomes

FLIPPED = {"first": "second", "second": "first", "tie": "tie"}


def naive_interval(outcomes, counted, resamples=2000):
    """Videos put back into an urn, drawn one by one with all of their questions."""
    videos = sorted({video for video, _ in outcomes})
    rng = random.Random(5)
    shares = []
    for _ in range(resamples):
        drawn = [outcome for video in rng.choices(videos, k=len(videos)) for v, outcome in outcomes if v == video]
        shares.append(sum(outcome in counted for outcome in drawn) / len(drawn))
    return np.quantile(shares, (0.025, 0.975))


def sample(videos, most=3, seed=0):
    rng = random.Random(seed)
    weights = [(0.6, 0.3, 0.1), (0.2, 0.2, 0.6)]
    return [
        (f"{video}.mp4", rng.choices(OUTCOMES, weights[video % 2])[0])
        for video in range(videos)
        for _ in range(rng.randint(1, most))
    ]


def test_one_answer_is_better_only_if_it_is_in_both_orders():
    """The table in full: the choice where A is shown first, and where B is."""
    found = {(ab, ba): combine(ab, ba) for ab in CHOICES for ba in CHOICES}
    assert found.pop(("first", "second")) == "win"
    assert found.pop(("second", "first")) == "loss"
    assert set(found.values()) == {"tie"} and len(found) == 7


@pytest.mark.parametrize("ab", CHOICES)
@pytest.mark.parametrize("ba", CHOICES)
def test_swapping_the_two_swaps_wins_and_losses(ab, ba):
    swapped = {"win": "loss", "loss": "win", "tie": "tie"}
    assert combine(ba, ab) == swapped[combine(ab, ba)]


def test_shares_are_counts_over_all():
    outcomes = sample(20)
    scores, counts = score_outcomes(outcomes), Counter(outcome for _, outcome in outcomes)
    for outcome in OUTCOMES:
        assert scores[outcome]["n"] == counts[outcome]
        assert scores[outcome]["share"] == pytest.approx(counts[outcome] / len(outcomes))
    assert scores["win_or_tie"]["n"] == counts["win"] + counts["tie"]
    assert sum(scores[outcome]["share"] for outcome in OUTCOMES) == pytest.approx(1)


@pytest.mark.parametrize(("videos", "most"), [(40, 1), (12, 5)])
def test_intervals_are_those_of_drawing_videos_one_by_one(videos, most):
    outcomes = sample(videos, most, seed=3)
    scores = score_outcomes(outcomes)
    for name, counted in [*((outcome, {outcome}) for outcome in OUTCOMES), ("win_or_tie", {"win", "tie"})]:
        # Quantiles of 2000 draws stray by about a tenth of the half width.
        low, high = naive_interval(outcomes, counted)
        assert np.allclose(scores[name]["interval"], (low, high), atol=0.15 * (high - low) / 2)


def test_questions_about_one_video_are_no_independent_evidence():
    outcomes = sample(30, 1)
    many = [(video, outcome) for video, outcome in outcomes for _ in range(10)]
    assert score_outcomes(many)["win"]["interval"] == score_outcomes(outcomes)["win"]["interval"]


def test_the_same_seed_draws_the_same():
    outcomes = sample(30)
    assert score_outcomes(outcomes, 1) == score_outcomes(outcomes, 1) != score_outcomes(outcomes, 2)


def test_without_questions_there_is_no_share_and_with_one_video_no_interval():
    nothing, one = score_outcomes([]), score_outcomes([("a", "win"), ("a", "tie")])
    assert nothing["win"] == {"n": 0, "share": None, "interval": None}
    assert one["win"] == {"n": 1, "share": 0.5, "interval": None}


def test_the_effect_of_the_order_is_counted():
    always_first, fair = [("first", "first")] * 3, [("first", "second"), ("tie", "tie")]
    assert order_effect(always_first) == {
        "same_in_both_orders": 0.0,
        "preferred": {"first": 6, "second": 0, "tie": 0},
    }
    assert order_effect(always_first + fair)["same_in_both_orders"] == pytest.approx(2 / 5)
    assert order_effect([("first", "tie")])["same_in_both_orders"] == 0
    assert order_effect([(choice, FLIPPED[choice]) for choice in CHOICES])["same_in_both_orders"] == 1
    assert order_effect([])["same_in_both_orders"] is None
