"""ovobench: the official numbers, and a result where the official script has none."""

import json
import random
from pathlib import Path

import evaluate
import pytest

from metric_cards import METRICS, check_card, check_imports
from streamchat_hf import metrics

# What the benchmark's models answered may not be copied (CC BY-NC-SA 4.0).
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "ovobench"
METRIC = metrics.load("ovobench")
BACKWARD = {"id": 0, "task": "EPM", "response": "A", "ground_truth": "A"}
REALTIME = {"id": 1, "task": "OCR", "response": "A", "ground_truth": "A"}
FORWARD = {"id": 2, "task": "CRR", "test_info": [{"response": "Yes", "type": 1}]}


def file(backward=(BACKWARD,), realtime=(REALTIME,), forward=(FORWARD,)):
    return {"backward": list(backward), "realtime": list(realtime), "forward": list(forward)}


def accuracy(task, **lists):
    return METRIC.compute(predictions=[file(**lists)])["tasks"][task]["acc"]


def golden(pattern):
    paths = sorted(SHARED.glob(pattern))
    if not paths:
        pytest.skip("the recorded scores lie in ../shared, which is not here")
    return [json.loads(path.read_text()) for path in paths]


def check(result, expected):
    assert set(result["tasks"]) == set(expected["tasks"])
    for task, row in expected["tasks"].items():
        assert result["tasks"][task] == {**row, "acc": pytest.approx(row["acc"], abs=1e-6)}
    assert result["groups"] == pytest.approx(expected["groups"], abs=1e-6)
    if "total" in expected:
        assert result["total"] == pytest.approx(expected["total"], abs=1e-6)


def test_answers_of_real_models_have_their_official_scores():
    for answers, expected in zip(golden("*.results.json"), golden("*.scores.json"), strict=True):
        check(METRIC.compute(predictions=[answers["results"]]), expected)


@pytest.mark.filterwarnings("ignore:ovobench")
def test_odd_answers_have_their_official_scores():
    for case in golden("synthetic_cases.json")[0]:
        check(METRIC.compute(predictions=[case["results"]]), case["expected"])


@pytest.mark.parametrize(
    ("response", "truth", "right"),
    [
        ("B", "B", True),
        ("(B) is it", "B", True),
        ("Answer: C", "A", True),  # the letter may be part of a word
        ("b", "B", False),
        ("", "B", False),
        (None, "B", False),
        (["B"], "B", True),
        (["B."], "B", False),
    ],
)
def test_a_letter_counts_anywhere_in_the_response(response, truth, right):
    answered = {**BACKWARD, "response": response, "ground_truth": truth}
    assert accuracy("EPM", backward=[answered]) == 100 * right
    assert accuracy("EPM", realtime=[answered], backward=[{**BACKWARD, "task": "ASI"}]) == 100 * right


@pytest.mark.parametrize(
    ("response", "count", "right"),
    [
        ("3", 3, True),
        ("They did it 3 times.", 3, True),
        ("-3", 3, True),
        ("1 or 2", 12, True),
        ("1 or 2", 1, False),
        ("03", 3, False),
        ("3.0", 30, True),
        ("three", 3, False),
        ("", 0, False),
        (None, 0, False),
    ],
)
def test_all_digits_joined_are_the_count(response, count, right):
    answered = {"id": 3, "task": "REC", "test_info": [{"response": response, "count": count}]}
    assert accuracy("REC", forward=[answered]) == 100 * right


@pytest.mark.parametrize("task", ["SSR", "CRR"])
@pytest.mark.parametrize(
    ("response", "kind", "right"),
    [
        ("Yes", 1, True),
        ("Yes", 0, False),
        ("No", 0, True),
        ("Now I see: Yes", 0, True),
        ("Y", 1, True),
        ("N", 0, True),
        ("Y", 0, False),
        ("Y.", 1, False),
        ("yes", 1, False),
        (None, 0, False),
        (["No"], 0, True),
    ],
)
def test_yes_and_no_are_words_or_one_letter(task, response, kind, right):
    answered = {"id": 3, "task": task, "test_info": [{"response": response, "type": kind}]}
    assert accuracy(task, forward=[answered]) == 100 * right


def test_averages_do_not_depend_on_how_many_queries_a_task_has():
    wrong = {**BACKWARD, "task": "ASI", "response": "B"}
    polls = {**FORWARD, "test_info": [{"response": "No", "type": kind} for kind in (0, 1, 1, 1)]}
    result = METRIC.compute(predictions=[file(backward=[BACKWARD] * 9 + [wrong], forward=[polls])])
    assert result["groups"] == {"backward": 50.0, "realtime": 100.0, "forward": 25.0}
    assert result["total"] == pytest.approx(175 / 3)
    assert result["tasks"]["CRR"] == {"group": "forward", "n": 4, "correct": 1, "acc": 25.0}


def test_several_files_are_one():
    rng = random.Random(0)
    entries = [{**BACKWARD, "task": task, "response": rng.choice("AB")} for task in ("EPM", "ASI", "HLD") * 5]
    parts = [file(backward=entries[:7]), file(backward=entries[7:], realtime=[], forward=[])]
    whole = METRIC.compute(predictions=[file(backward=entries)])
    assert METRIC.compute(predictions=parts) == whole
    shuffled = METRIC.compute(predictions=[file(backward=rng.sample(entries, 15))])
    assert shuffled == {**whole, "groups": pytest.approx(whole["groups"]), "total": pytest.approx(whole["total"])}


def test_without_a_group_there_is_no_total():
    with pytest.warns(UserWarning, match="nothing of backward, forward, so there is no total"):
        result = METRIC.compute(predictions=[{"realtime": [REALTIME]}])
    assert result == {
        "tasks": {"OCR": {"group": "realtime", "n": 1, "correct": 1, "acc": 100.0}},
        "groups": {"realtime": 100.0},
        "total": None,
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 3, "task": "REC", "test_info": [{"response": ["3"], "count": 3}]}, "REC 3: a list is no count"),
        ({"id": 3, "task": "REC", "test_info": [{"response": 3, "count": 3}]}, "REC 3: the response 3 is no text"),
        ({"id": 3, "task": "SSR", "test_info": [{"response": True, "type": 1}]}, "the response True is no text"),
        ({"id": 3, "task": "CRR", "test_info": [{"answer": "Yes", "type": 1}]}, "CRR 3: there is no 'response'"),
    ],
)
def test_where_the_official_script_dies_the_answer_is_wrong(entry, message):
    with pytest.warns(UserWarning, match=message):
        assert accuracy(entry["task"], forward=[entry]) == 0.0


def test_an_answer_under_another_key_is_wrong_and_said():
    with pytest.warns(UserWarning, match="EPM 0: there is no 'response', which counts as wrong"):
        assert accuracy("EPM", backward=[{"id": 0, "task": "EPM", "answer": "A", "ground_truth": "A"}]) == 0.0


@pytest.mark.parametrize(
    ("group", "entry", "message"),
    [
        ("backward", {"id": 3, "response": "A", "ground_truth": "A"}, "an entry of backward has no 'task'"),
        ("realtime", {"id": 3, "task": "OCR", "response": "A"}, "OCR 3 has no 'ground_truth'"),
        ("forward", {"id": 3, "task": "REC", "test_info": [{"response": "3"}]}, "REC 3 has no 'count'"),
        ("forward", {"id": 3, "task": "SSR", "test_info": [{"response": "No"}]}, "SSR 3 has no 'type'"),
        ("forward", {"id": 3, "task": "CRR"}, "CRR 3 has no 'test_info'"),
    ],
)
def test_what_an_entry_lacks_is_named(group, entry, message):
    with pytest.raises(ValueError, match=f"^ovobench: {message}$"):
        METRIC.compute(predictions=[file(**{group: [entry]})])
    assert METRIC.compute(predictions=[file()])["total"] == 100.0  # and leaves nothing behind


@pytest.mark.parametrize("entry", [{"id": 3, "task": "SSR", "test_info": []}, {**FORWARD, "task": "XYZ"}])
def test_a_task_without_queries_is_left_out(entry):
    with pytest.warns(UserWarning, match="has no queries and is left out"):
        result = METRIC.compute(predictions=[file(forward=[FORWARD, entry])])
    assert list(result["tasks"]) == ["EPM", "OCR", "CRR"] and result["total"] == 100.0


def test_what_is_no_result_file_is_refused_and_leaves_nothing_behind():
    with pytest.raises(ValueError, match="a result file of OVO-Bench is a dict"):
        METRIC.compute(predictions=[file(), [BACKWARD]])
    assert METRIC.compute(predictions=[file()])["tasks"]["EPM"]["n"] == 1


def test_evaluate_loads_the_folder_and_takes_files_one_by_one(tmp_path):
    metric = evaluate.load(str(METRICS / "ovobench"), cache_dir=str(tmp_path))
    metric.add(prediction=file(realtime=[]))
    metric.add(prediction=file(backward=[], forward=[]))
    assert metric.compute() == METRIC.compute(predictions=[file()])


def test_the_folder_stands_alone_and_its_card_is_true():
    check_imports("ovobench", ["datasets", "evaluate"])
    check_card("ovobench")
