import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchat_hf.metrics.etbench.etbench_tasks import (
    THRESHOLDS,
    score_any_span,
    score_choice,
    score_choice_and_span,
    score_highlight,
    score_single_span,
    score_span_set,
    score_summary,
)

examples = settings(max_examples=200, deadline=None)
tenths = st.integers(0, 300).map(lambda tenth: tenth / 10)
spans = st.lists(st.tuples(tenths, tenths).filter(lambda span: span[0] != span[1]).map(sorted), min_size=1, max_size=4)


def sample(answer, tgt=(10, 20), **more):
    return {"task": "task", "source": "source", "idx": 3, "a": answer, "tgt": tgt, **more}


def said(times):
    return ", ".join(f"{start} - {end}" for start, end in times) or "nothing"


def float32_iou(one, other):
    """Step by step in single precision."""
    (a, b), (c, d) = (tuple(map(np.float32, span)) for span in (one, other))
    both = max(min(b, d) - max(a, c), np.float32(0))
    return both / (((b - a) + (d - c)) - both)


def test_seven_tenths_are_too_little_for_one_span_and_enough_for_a_set():
    assert score_single_span([sample("12 - 19")])["F1"] == 0.75
    assert score_span_set([sample("12 - 19", [[10, 20]])])["F1"] == 1.0
    for answer in ("10 - 11", "10 - 13", "10 - 15"):
        alone, of_set = score_single_span([sample(answer)]), score_span_set([sample(answer, [[10, 20]])])
        assert {f"F1@{t}": alone[f"F1@{t}"] for t in THRESHOLDS} == {f"F1@{t}": of_set[f"F1@{t}"] for t in THRESHOLDS}


@examples
@given(st.lists(st.tuples(spans, spans), min_size=1, max_size=4))
def test_single_spans_agree_with_the_naive_way(cases):
    ious = [float(float32_iou(references[0], answers[0])) for references, answers in cases]
    result = score_single_span([sample(said(answers), references[0]) for references, answers in cases])
    shares = [np.mean([iou >= threshold for iou in ious]) for threshold in THRESHOLDS]
    assert [result[f"F1@{threshold}"] for threshold in THRESHOLDS] == pytest.approx(shares, abs=1e-5)
    assert [result["F1"], result["mIoU"]] == pytest.approx([np.mean(shares), np.mean(ious)], abs=1e-5)
    best = [max(float(float32_iou(one, answers[0])) for one in references) for references, answers in cases]
    result = score_any_span([sample(said(answers), references) for references, answers in cases])
    assert result["mIoU"] == pytest.approx(np.mean(best), abs=1e-5)
    assert result["R@0.5"] == pytest.approx(np.mean([iou >= 0.5 for iou in best]), abs=1e-5)


@examples
@given(st.lists(st.tuples(spans, spans | st.just([])), min_size=1, max_size=4))
def test_sets_of_spans_agree_with_the_naive_way(cases):
    result = score_span_set([sample(said(answers), references) for references, answers in cases])
    for threshold in THRESHOLDS:
        scores = []
        for references, answers in cases:
            meets = {
                (i, j)
                for i, one in enumerate(references)
                for j, other in enumerate(answers)
                if float32_iou(one, other) >= np.float32(threshold)
            }
            recall = len({i for i, _ in meets}) / len(references)
            precision = len({j for _, j in meets}) / max(len(answers), 1)
            scores.append(2 / (1 / recall + 1 / precision) if meets else 0)
        assert result[f"F1@{threshold}"] == pytest.approx(np.mean(scores), abs=1.1e-5)
    assert result["Failed"] == sum(not answers for _, answers in cases)


@examples
@given(st.lists(st.tuples(spans, spans | st.just([])), min_size=1, max_size=4))
def test_summaries_agree_with_the_naive_way(cases):
    def seconds(times):
        return {second for start, end in times for second in range(round(start), round(end))}

    scores = []
    for references, answers in cases:
        if answers:
            true, chosen = seconds(references), seconds(answers)
            both = len(true & chosen)
            scores.append(2 * both / (len(true) + len(chosen)) if both else 0)
    result = score_summary([sample(said(answers), references) for references, answers in cases])
    assert result["F1"] == pytest.approx(np.mean(scores) if scores else 0, abs=1.1e-5)
    assert result["Total"] - result["Failed"] == len(scores)


def test_a_summary_ends_after_a_thousand_seconds():
    assert score_summary([sample("990 - 1500", [[980, 1200]])])["F1"] == pytest.approx(2 / 3, abs=1e-5)
    assert score_summary([sample(f"0 - {'9' * 400}", [[0, 1000]])])["F1"] == 1.0


@pytest.mark.parametrize(
    ("answer", "hit"),
    [("0:15", 0), ("5 - 15", 0), ("Top 3: 15", 0), ("-15", 0), ("at 20.0 s", 1), ("10", 1), (".5", 0), ("35", 1)],
)
def test_the_first_number_is_the_highlight(answer, hit):
    annotators = [[[10, 20]], [[30, 40]]]
    assert score_highlight([sample(answer, annotators)]) == {"Total": 1, "Failed": 0, "F1": hit}
    assert score_highlight([sample(answer, [[10, 20], [30, 40]])])["F1"] == hit


def test_a_highlight_without_a_number_failed():
    assert score_highlight([sample("fifteen", [[10, 20]]), sample("15", [[10, 20]])])["Failed"] == 1


def nearest(text, options):
    """The option with the word last said in the text; so tests say which is nearest."""
    return next((i for i, option in enumerate(options) if text.split()[-1] in option.lower()), 0)


OPTIONS = ["red one", "green two", "pink three", "grey four"]


@pytest.mark.parametrize(
    ("answer", "right", "failed"),
    [
        ("(B)", True, 0),
        ("I say (b).", True, 0),
        ("B", True, 0),
        ("Best Option: B) green", True, 0),
        ("C (B)", True, 0),
        ("b\n", True, 1),  # no letter form, but in none of the others there is a b
        ("(A) but two", True, 0),  # a wrong letter leaves the last word to what is most like it
        ("A two", True, 0),
        ("(Z) three", False, 0),
        ("it is two", True, 1),
        ("", False, 1),
        ("Best option: (", False, 1),
    ],
)
def test_choices(answer, right, failed):
    result = score_choice([sample(answer, o=OPTIONS, p=1)], nearest)
    assert result == {"Total": 1, "Failed": failed, "Acc": float(right)}


def test_options_may_be_spans():
    seen = []
    choose = lambda text, options: seen.append((text, options)) or 0  # noqa: E731
    score_choice([sample("The first", o=[[0.0, 5.0], [5, 9], "never", "x"], p=0)], choose)
    assert seen == [("the first", ["(A) 0.0 - 5.0", "(B) 5 - 9", "(C) never", "(D) x"])]


def test_the_first_sample_says_how_many_letters_there_are():
    fifth = sample("E", o=[*OPTIONS, "white five"], p=4)
    assert score_choice([fifth], nearest)["Acc"] == 1.0
    assert score_choice([sample("A", o=OPTIONS, p=0), fifth], lambda *_: 0)["Acc"] == 0.5


def test_other_numbers_of_options_are_scored_with_a_warning():
    with pytest.warns(UserWarning, match="etbench: task source 3: there are 3 options"):
        assert score_choice([sample("C", o=OPTIONS[:3], p=2)], nearest)["Acc"] == 1.0


@pytest.mark.parametrize(
    ("answer", "accuracy", "recall", "failed"),
    [
        ("B. It happens in 10 - 20.", 1, 1, 0),
        ("(b) 10 - 14", 1, 0.5, 0),
        ("A. 10 - 20", 0, 0, 0),  # here a wrong letter is the last word
        ("(A) two", 0, 0, 0),
        ("E. 10 - 20 two", 1, 1, 0),
        ("it is two", 1, 0, 1),
        ("", 0, 0, 1),
    ],
)
def test_a_span_counts_only_with_the_right_choice(answer, accuracy, recall, failed):
    result = score_choice_and_span([sample(answer, o=OPTIONS, p=1)], nearest)
    assert (result["Acc"], result["mRec"], result["Failed"]) == (accuracy, recall, failed)


def test_the_text_of_a_choice_keeps_its_capitals_beside_a_span():
    seen = []
    for score in (score_choice, score_choice_and_span):
        score([sample("best option: The Man", o=OPTIONS, p=1)], lambda text, _: seen.append(text) or 0)
    assert seen == ["the man", "The Man"]


def test_what_is_no_text_or_no_number_failed_with_a_warning():
    with pytest.warns(UserWarning, match="etbench: task source 3: the answer None is no text and counts as failed"):
        assert score_single_span([sample(None)])["Failed"] == 1
    with pytest.warns(UserWarning, match=r"could not convert string to float: '12..5': the answer counts as failed"):
        assert score_single_span([sample("7 - 12..5"), sample("10 - 20")])["mIoU"] == 0.5


def test_spans_without_length_have_no_iou():
    with pytest.warns(UserWarning, match="mIoU is not a number, as in the official script"):
        result = score_single_span([sample("5 - 5", [5, 5])])
    assert math.isnan(result["mIoU"]) and result["F1"] == 0.0
    with pytest.warns(UserWarning, match="have no length, which do not meet"):
        assert score_span_set([sample("5 - 5", [[5, 5]])])["F1"] == 0.0
