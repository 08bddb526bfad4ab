"""online_action_detection against cases computed by hand, against the formula written out, and by what must hold."""

import doctest
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import evaluate
import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard

from streamchat_hf import metrics

FOLDER = Path(metrics.__file__).parent / "online_action_detection"
METRIC = metrics.load("online_action_detection")


def one_class(scores, labels):
    """AP and cAP of class 1 beside background."""
    row = METRIC.compute(predictions=[[0.0, score] for score in scores], references=labels)["by_class"]["1"]
    return row["AP"], row["cAP"]


def twin(scores, labels):
    """The formulas, frame by frame: a frame's rank is that of the last one with its score."""
    positives = sum(labels)
    w = Fraction(len(labels) - positives, positives)
    ap = cap = Fraction(0)
    for score, label in zip(scores, labels, strict=True):
        if label:
            above = [other for value, other in zip(scores, labels, strict=True) if value >= score]
            tp, fp = sum(above), len(above) - sum(above)
            ap += Fraction(tp, tp + fp) / positives
            cap += tp / (tp + (fp / w if fp else 0)) / positives
    return float(ap), float(cap)


@pytest.mark.parametrize(
    ("scores", "labels", "ap", "cap"),
    [
        ([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0], 1.0, 1.0),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], (1 + 2 / 3) / 2, (1 + 2 / 3) / 2),  # scikit-learn's example; w = 1
        ([4, 3, 2, 1], [0, 1, 0, 0], 1 / 2, 1 / (1 + 1 / 3)),  # w = 3
        ([4, 3, 2, 1], [0, 0, 0, 1], 1 / 4, 1 / 2),  # last of four; however rare, a half
        ([4, 3, 2, 1], [1, 0, 1, 1], (1 + 2 / 3 + 3 / 4) / 3, (1 + 2 / 5 + 3 / 6) / 3),  # w = 1/3
        ([2, 2, 1, 1], [1, 0, 0, 1], (1 / 2 + 2 / 4) / 2, (1 / 2 + 2 / 4) / 2),  # two ties
        ([3, 2, 2, 2], [1, 0, 1, 0], (1 + 2 / 4) / 2, (1 + 2 / 4) / 2),
        ([1, 2, 3], [1, 1, 1], 1.0, 1.0),  # no negatives
        ([float("-inf"), float("inf"), float("-inf")], [0, 1, 0], 1.0, 1.0),
    ],
)
def test_hand_computed(scores, labels, ap, cap):
    assert one_class(scores, labels) == (pytest.approx(ap, abs=1e-12), pytest.approx(cap, abs=1e-12))
    assert twin(scores, labels) == (pytest.approx(ap, abs=1e-12), pytest.approx(cap, abs=1e-12))


def random_case(rng):
    n = int(rng.integers(1, 40))
    labels = (rng.random(n) < rng.random()).astype(int)
    labels[rng.integers(n)] = 1
    return rng.integers(0, int(rng.integers(2, 60)), n).tolist(), labels.tolist()  # with many ties, few, or none


def test_the_formulas_written_out():
    rng = np.random.default_rng(0)
    for _ in range(60):
        scores, labels = random_case(rng)
        assert one_class(scores, labels) == pytest.approx(twin(scores, labels), abs=1e-12)


def test_several_classes_are_the_twin_of_each():
    rng = np.random.default_rng(2)
    scores, labels = rng.integers(0, 9, (80, 4)), rng.integers(0, 4, 80)
    result = METRIC.compute(predictions=scores, references=labels)
    rows = [twin(scores[:, index].tolist(), (labels == index).astype(int).tolist()) for index in (1, 2, 3)]
    assert [(row["AP"], row["cAP"]) for row in result["by_class"].values()] == [pytest.approx(row) for row in rows]
    assert (result["mAP"], result["mcAP"]) == pytest.approx(np.mean(rows, axis=0).tolist())
    assert [row["positives"] for row in result["by_class"].values()] == np.bincount(labels)[1:].tolist()


def test_a_perfect_detector_has_1():
    labels = np.random.default_rng(3).integers(0, 5, 100)
    result = METRIC.compute(predictions=np.eye(5)[labels], references=labels)
    assert result["mAP"] == result["mcAP"] == 1.0 and result["n"] == 100
    assert set(result["by_class"]) == {"1", "2", "3", "4"}


def test_chance_has_the_share_of_positives_and_a_half():
    rng = np.random.default_rng(4)
    labels = rng.choice(3, 20_000, p=[0.88, 0.1, 0.02])
    rows = METRIC.compute(predictions=rng.random((20_000, 3)), references=labels)["by_class"]
    assert rows["1"]["AP"] == pytest.approx(0.1, abs=0.01) and rows["1"]["cAP"] == pytest.approx(0.5, abs=0.02)
    assert rows["2"]["AP"] == pytest.approx(0.02, abs=0.01) and rows["2"]["cAP"] == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("positives", [1, 3, 9])
def test_a_constant_has_exactly_the_share_of_positives_and_a_half(positives):
    labels = [1] * positives + [0] * (10 - positives)
    for order in (labels, labels[::-1]):
        assert one_class([0.3] * 10, order) == (pytest.approx(positives / 10, abs=1e-12), 0.5)


def test_ten_times_the_negatives_lower_the_plain_score_and_not_the_calibrated_one():
    scores, labels = [5, 4, 3, 2, 1], [1, 0, 1, 0, 1]
    many = [*scores, *[4, 2] * 9], [*labels, *[0] * 18]  # both negatives ten times
    assert one_class(*many)[1] == pytest.approx(one_class(scores, labels)[1], abs=1e-12)
    assert one_class(*many)[0] < one_class(scores, labels)[0]


def test_only_the_order_of_the_scores_matters():
    rng = np.random.default_rng(5)
    scores, labels = rng.integers(-8, 8, (60, 3)).astype(float), rng.integers(0, 3, 60)
    plain = METRIC.compute(predictions=scores, references=labels)
    for same in (scores * 4 - 3, scores**3, np.exp(scores), np.arctan(scores), scores + np.array([0, 100, -100])):
        assert METRIC.compute(predictions=same, references=labels) == plain


def test_the_order_of_the_frames_is_irrelevant():
    rng = np.random.default_rng(6)
    scores, labels = rng.integers(0, 4, (60, 3)), rng.integers(0, 3, 60)
    shuffled = rng.permutation(60)
    plain = METRIC.compute(predictions=scores, references=labels)
    assert METRIC.compute(predictions=scores[shuffled], references=labels[shuffled]) == plain


def test_background_is_no_class_but_its_frames_are_negatives():
    scores, labels = [[9, 0.9, 0], [9, 0.8, 0], [0, 0.7, 1]], [1, 0, 2]
    result = METRIC.compute(predictions=scores, references=labels)
    assert set(result["by_class"]) == {"1", "2"} and result["mAP"] == 1.0
    without = METRIC.compute(predictions=scores, references=labels, background=None)
    assert without["by_class"]["0"] == {"AP": 1 / 2, "cAP": 1 / (1 + 1 / 2), "positives": 1}  # w = 2
    assert set(METRIC.compute(predictions=scores, references=labels, background=2)["by_class"]) == {"0", "1"}


@pytest.mark.parametrize("ignore", [3, -100, 21])
def test_ambiguous_frames_are_left_out(ignore):
    rng = np.random.default_rng(7)
    scores, labels = rng.random((50, 4)), rng.integers(0, 3, 50)
    marked = rng.random(50) < 0.3
    labels[marked] = ignore
    result = METRIC.compute(predictions=scores, references=labels, ignore=ignore)
    assert result["ignored"] == marked.sum() and result["n"] == 50 - marked.sum()
    rest = METRIC.compute(predictions=scores[~marked], references=labels[~marked])
    for index in ("1", "2"):
        assert result["by_class"][index] == rest["by_class"][index]
    assert ("3" in result["by_class"]) == (ignore != 3)


def test_an_ambiguous_frame_is_left_out_whatever_else_it_has():
    result = METRIC.compute(predictions=[[0, 1], [0, 2], [0, 0]], references=[[1], [1, 9], [0]], ignore=9)
    assert (result["n"], result["ignored"], result["by_class"]["1"]["positives"]) == (2, 1, 1)


def test_a_frame_may_have_several_classes():
    scores = [[0, 0.9, 0.8], [0, 0.8, 0.9], [0, 0.1, 0.1], [1, 0, 0]]
    both = METRIC.compute(predictions=scores, references=[[1, 2], [2], [], [0]])
    assert both["by_class"]["1"] == both["by_class"]["2"] | {"positives": 1} and both["mAP"] == 1.0
    first = METRIC.compute(predictions=scores, references=[1, 2, 0, 0])
    assert first["mAP"] == 1.0 and first["by_class"]["2"]["positives"] == 1
    assert METRIC.compute(predictions=scores, references=[[1, 2], 2, 0, 0]) == both


def test_a_class_that_no_frame_has_is_no_part_of_the_means():
    result = METRIC.compute(
        predictions=[[0, 1, 5], [1, 0, 5]], references=[1, 0], class_names=["background", "run", "jump"]
    )
    assert result["by_class"]["jump"] == {"AP": None, "cAP": None, "positives": 0}
    assert result["mAP"] == result["mcAP"] == result["by_class"]["run"]["AP"] == 1.0
    nothing = METRIC.compute(predictions=[[0, 1]], references=[0])
    assert nothing["mAP"] is None and nothing["mcAP"] is None and nothing["n"] == 1


def test_no_frames_are_no_score():
    for options in ({}, {"class_names": ["background", "run"]}):
        result = METRIC.compute(predictions=[], references=[], **options)
        assert result["mAP"] is None and result["n"] == 0
    assert result["by_class"] == {"run": {"AP": None, "cAP": None, "positives": 0}}


def test_arrays_and_tensors_are_taken():
    scores, labels = [[0.5, 0.25], [0.25, 0.75], [0.5, 0.5]], [0, 1, 1]
    plain = METRIC.compute(predictions=scores, references=labels)
    for kind in (np.array, torch.tensor):
        assert METRIC.compute(predictions=kind(scores), references=kind(labels)) == plain
    assert METRIC.compute(predictions=np.float32(scores), references=[np.array([index]) for index in labels]) == plain


@pytest.mark.parametrize(
    ("scores", "labels", "options", "message"),
    [
        ([[0, 1]], [0, 1], {}, "scores of 1 frames, but labels of 2"),
        ([[0, 1], [0]], [0, 1], {}, "frame 1 has 1 scores, but frame 0 has 2"),
        ([[0, 1], [0, float("nan")]], [0, 1], {}, "the score of frame 1 for class 1 is not a number"),
        ([[0, 1], [0, None]], [0, 1], {}, "the score of frame 1 for class 1 is not a number"),
        ([[0, 1], [0, 1]], [0, 2], {}, "frame 1 has class 2, but there are 2 classes"),
        ([[0, 1]], [-1], {}, "frame 0 has class -1, but there are 2 classes"),
        ([[0, 1]], [-1], {"ignore": -100}, "frame 0 has class -1, but there are 2 classes"),
        ([[0, 1]], [1.5], {}, "a frame is labelled with a class index or a list of them, not 1.5"),
        ([[0, 1]], ["1"], {}, "a frame is labelled with a class index or a list of them, not '1'"),
        ([[0, 1]], [None], {}, "a frame is labelled with a class index"),
        ([[0, 1]], [[True, False]], {}, "a frame is labelled with a class index"),
        ([[0, 1, 2]], [[0, 1, 0]], {}, "indices are expected, not a row of 0 and 1"),
        ([[0, 1]], [0], {"background": 2}, "background is 2, but there are 2 classes"),
        ([[0, 1]], [0], {"class_names": ["run"]}, "1 class names for 2 scores per frame"),
        ([[0, 1]], [0], {"class_names": ["run", "run"]}, "two classes have the same name"),
    ],
)
def test_what_makes_no_sense_is_refused(scores, labels, options, message):
    with pytest.raises(ValueError) as error:
        METRIC.compute(predictions=scores, references=labels, **options)
    assert message in str(error.value)
    assert METRIC.compute(predictions=[[0, 1]], references=[1])["n"] == 1  # and leaves nothing behind


def test_evaluate_loads_the_folder_and_takes_frames_one_by_one(tmp_path):
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path))
    assert metric.name == "online_action_detection" and set(metric.features) == {"predictions", "references"}
    rng = np.random.default_rng(8)
    scores, labels = rng.random((12, 3)).tolist(), rng.integers(0, 3, 12).tolist()
    for score, label in zip(scores, labels, strict=True):
        metric.add(prediction=score, reference=label)
    one_by_one = metric.compute(ignore=None)
    for half in (slice(0, 6), slice(6, 12)):
        metric.add_batch(predictions=scores[half], references=labels[half])
    assert one_by_one == metric.compute() == METRIC.compute(predictions=scores, references=labels)


def test_the_file_needs_nothing_of_the_package():
    source = (FOLDER / "online_action_detection.py").read_text()
    lines = [line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert set(lines) - set(sys.stdlib_module_names) == {"datasets", "evaluate", "numpy"}


def test_the_card_is_valid_and_its_examples_give_what_they_show(monkeypatch):
    card = RepoCard.load(FOLDER / "README.md")
    assert card.data.title == "online_action_detection" and {"evaluate", "metric"} <= set(card.data.tags)
    assert card.data.sdk == "static" and card.data.license == "apache-2.0"
    monkeypatch.chdir(FOLDER.parent)
    examples = ModuleType("card")
    examples.__doc__ = card.text.replace("```", "")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in finder.find(examples, "card", globs={}):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 5
