"""COIN and LTA scoring: the authors' numbers, what the default corrects, and distances against the definition."""

import functools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from streamchat_hf.evaluation import videollm_online_offline as offline
from streamchat_hf.evaluation.videollm_online_offline import (
    LTANames,
    coin_accuracy,
    coin_procedure_accuracy,
    edit_distances,
    lta_scores,
    lta_word,
    mean_aued,
    mean_edit_distance,
    score_offline,
)

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "videollm_online_metrics" / "F_offline_metrics.json").read_text()
)
STEPS = GOLDEN["coin_single"]["categories"]


@functools.cache
def levenshtein(a, b):
    """The definition."""
    if not a or not b:
        return len(a) + len(b)
    replaced = levenshtein(a[1:], b[1:]) + (a[0] != b[0])
    return min(replaced, levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1)


@pytest.mark.parametrize(
    ("case", "score"),
    [("coin_single", coin_accuracy), ("coin_procedure", coin_procedure_accuracy)],
)
def test_compat_gives_the_authors_coin_numbers(case, score):
    case = GOLDEN[case]
    result = score(case["predictions"], case["labels"], case["categories"], compat=True)
    assert result["accuracy"] == case["expected"]["accuracy"]


def test_an_answer_stands_for_the_nearest_category():
    case = GOLDEN["coin_single"]
    nearest = offline._Nearest(case["categories"])
    assert [nearest(text.lower().rstrip(".")) for text in case["predictions"]] == case["fuzzy"]


def test_of_equally_near_categories_the_first_by_alphabet():
    for order in (["cat", "bat", "rat"], ["rat", "cat", "bat"]):
        assert offline._Nearest(order)("hat") == "bat"
    assert coin_accuracy(["hat", "hat"], ["bat", "cat"], ["rat", "cat", "bat"])["accuracy"] == 50.0


def test_distances_are_the_definition():
    rng = random.Random(0)
    for _ in range(60):
        words = ["".join(rng.choices("abc", k=rng.randint(0, 7))) for _ in range(rng.randint(1, 6))]
        text = "".join(rng.choices("abcd", k=rng.randint(0, 7)))
        nearest = offline._Nearest(words)(text)
        assert (levenshtein(text, nearest), nearest) == min((levenshtein(text, word), word) for word in words)
    sources, targets = np.random.default_rng(0).integers(0, 3, (2, 20, 6))
    table = edit_distances(sources, targets)
    for source, target, row in zip(sources, targets, table, strict=True):
        assert row.tolist() == [levenshtein(tuple(source), tuple(target[:length])) for length in range(7)]
    assert (edit_distances(sources[:1], targets) == edit_distances(np.repeat(sources[:1], 20, 0), targets)).all()


def test_the_default_counts_every_step_and_does_not_care_for_capitals_and_blanks():
    case = GOLDEN["coin_procedure"]
    result = coin_procedure_accuracy(case["predictions"], case["labels"], case["categories"])
    assert result == {"accuracy": 5 / 9 * 100, "n": 9}
    written = ["\n 1. CUT THE NOODLE. \n\n2) Boil water"]
    labels = [["cut the noodle", "boil water"]]
    assert coin_procedure_accuracy(written, labels, ["cut the noodle", "boil water"])["accuracy"] == 100.0
    assert coin_procedure_accuracy(written, labels, ["cut the noodle", "boil water"], compat=True)["accuracy"] < 100.0


def test_an_answer_without_words_is_wrong():
    assert coin_accuracy(["", " .\n"], ["boil water"] * 2, STEPS)["accuracy"] == 0.0
    assert coin_accuracy(["", ""], ["boil water"] * 2, STEPS, compat=True)["accuracy"] == 100.0
    assert coin_procedure_accuracy(["1. "], [["boil water", "boil water"]], STEPS) == {"accuracy": 0.0, "n": 2}


def test_labels_and_categories_may_be_written_as_the_answers_are():
    assert (
        coin_accuracy([" install SIM card"], ["Install SIM card."], ["Install SIM card.", "Clean SSD."])["accuracy"]
        == 100.0
    )


def test_nothing_to_count_is_no_accuracy():
    for compat in (False, True):
        assert coin_accuracy([], [], STEPS, compat) == coin_procedure_accuracy([], [], STEPS, compat)
        assert coin_accuracy([], [], STEPS, compat) == {"accuracy": None, "n": 0}


def test_lta_distances_are_the_authors():
    predictions, labels = np.array(GOLDEN["lta"]["preds"]), np.array(GOLDEN["lta"]["labels"])
    assert mean_edit_distance(predictions, labels) == pytest.approx(GOLDEN["lta"]["ED20"], abs=1e-12)
    assert mean_aued(predictions, labels) == pytest.approx(GOLDEN["lta"]["AUED"], abs=1e-12)


def test_lta_distances_are_the_definition():
    rng = np.random.default_rng(1)
    predictions, labels = rng.integers(0, 3, (3, 2, 5)), rng.integers(0, 3, (3, 5))

    def expected(z):
        best = [
            min(levenshtein(tuple(answer[:z]), tuple(label[:z])) for answer in answers)
            for answers, label in zip(predictions, labels, strict=True)
        ]
        return sum(best) / 3 / z

    assert mean_edit_distance(predictions, labels) == pytest.approx(expected(5))
    curve = [expected(z) for z in range(1, 6)]
    assert mean_aued(predictions, labels) == pytest.approx((sum(curve) - (curve[0] + curve[-1]) / 2) / 4)
    assert mean_aued(predictions[..., :1], labels[:, :1]) == expected(1)


def test_taxonomy_words():
    assert {name: lta_word(name) for name in GOLDEN["lta_words"]} == GOLDEN["lta_words"]


PARSE = GOLDEN["lta_parse"]
NAMES = LTANames(PARSE["verbs"], PARSE["nouns"])


@pytest.mark.parametrize("case", PARSE["cases"], ids=lambda case: case["text"][:12])
def test_reading_actions(case):
    authors = [tuple(pair) for pair in case["verb_noun"]]
    assert NAMES.read(case["text"], PARSE["num_actions"], compat=True) == authors
    unreadable = [(-1, -1)] * PARSE["num_actions"]
    assert NAMES.read(case["text"], PARSE["num_actions"]) == (authors if "." in case["text"] else unreadable)


def test_text_of_actions_is_read_back():
    assert NAMES.text([(0, 0), (2, 1)]) == PARSE["to_text"]
    rng = random.Random(2)
    for _ in range(20):
        actions = [(rng.randrange(3), rng.randrange(3)) for _ in range(20)]
        assert NAMES.read(NAMES.text(actions), 20) == actions


def lta_rows(*texts):
    return {
        "predictions": [list(answers) for answers in texts],
        "verb_labels": [[0, 0, 2]] * len(texts),
        "noun_labels": [[0, 1, 1]] * len(texts),
    }


def test_lta_scores_verbs_nouns_and_both():
    right, half = NAMES.text([(0, 0), (0, 1), (2, 1)]), NAMES.text([(0, 0), (0, 0), (1, 1)])
    result = lta_scores(**lta_rows([half, right], [half, half]), names=NAMES)
    assert [result[kind]["ED"] for kind in ("verb", "noun", "action")] == pytest.approx([1 / 6, 1 / 6, 1 / 3])
    assert lta_scores(**lta_rows([half, right]), names=NAMES)["action"] == {"ED": 0.0, "AUED": 0.0}
    assert result["n"] == 2


def test_an_unreadable_lta_answer_earns_nothing():
    result = lta_scores(**lta_rows(["no list"]), names=NAMES)
    assert [result[kind]["ED"] for kind in ("verb", "noun", "action")] == [1.0, 1.0, 1.0]
    authors = lta_scores(**lta_rows(["no list"]), names=NAMES, compat=True)
    assert authors["verb"]["ED"] == pytest.approx(1 / 3)


def write(tmp_path, **data):
    path = tmp_path / "predictions.json"
    path.write_text(json.dumps(data))
    return path


def test_files_are_scored_as_their_rows(tmp_path):
    for benchmark, case, score in (
        ("coin_step", "coin_single", coin_accuracy),
        ("coin_next", "coin_single", coin_accuracy),
        ("coin_task", "coin_single", coin_accuracy),
        ("coin_procedure", "coin_procedure", coin_procedure_accuracy),
        ("coin_task_procedure", "coin_procedure", coin_procedure_accuracy),
    ):
        case = GOLDEN[case]
        pairs = zip(case["predictions"], case["labels"], strict=True)
        rows = [{"prediction": prediction, "label": label} for prediction, label in pairs]
        path = write(tmp_path, benchmark=benchmark, categories=case["categories"], rows=rows)
        for compat in (False, True):
            expected = score(case["predictions"], case["labels"], case["categories"], compat)
            assert score_offline(path, compat=compat) == expected
    columns = lta_rows(["no list", PARSE["to_text"]], ["1. Put pot", "nothing"])
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    path = write(tmp_path, benchmark="ego4d_lta", verbs=PARSE["verbs"], nouns=PARSE["nouns"], rows=rows)
    for compat in (False, True):
        assert score_offline(path, compat) == lta_scores(**columns, names=NAMES, compat=compat)
    empty = write(tmp_path, benchmark="ego4d_lta", verbs=["take"], nouns=["pot"], rows=[])
    assert score_offline(empty)["verb"] == {"ED": None, "AUED": None} and score_offline(empty)["n"] == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"benchmark": "coin"}, "predictions.json: benchmark is 'coin', not one of coin_step, coin_next"),
        ({"rows": []}, "benchmark is None"),
        ({"benchmark": "coin_step", "rows": []}, "coin_step needs categories beside the rows"),
        ({"benchmark": "coin_step", "categories": [], "rows": []}, "there are no categories to choose from"),
        ({"benchmark": "coin_step", "categories": ["a"], "rows": {}}, "rows must be a list"),
        ({"benchmark": "coin_step", "categories": ["a"], "rows": [{"label": "a"}]}, "row 0 lacks prediction"),
        ({"benchmark": "coin_step", "categories": ["a"], "rows": [7]}, "row 0 must be an object, not 7"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=message):
        score_offline(write(tmp_path, **data))


def test_clips_must_have_equally_many_answers_and_labels():
    with pytest.raises(ValueError, match="clip 1 has 2 answers, clip 0 has 1"):
        lta_scores(**lta_rows(["a"], ["a", "b"]), names=NAMES)
    columns = lta_rows(["a"], ["a"])
    with pytest.raises(ValueError, match="clip 1 has 1 verb labels, clip 0 has 3"):
        lta_scores(**{**columns, "verb_labels": [[0, 0, 2], [0]]}, names=NAMES)
    with pytest.raises(ValueError, match=r"verb labels of shape \(2, 1\), but noun labels of shape \(2, 3\)"):
        lta_scores(**{**columns, "verb_labels": [[0], [0]]}, names=NAMES)
