"""streamingbench: the official counts, and a result where the official script has none."""

import json
from pathlib import Path

import evaluate
import pytest

from metric_cards import METRICS, check_card, check_imports
from streamchat_hf import metrics

GOLDEN = Path(__file__).parents[2] / "fixtures" / "streamingbench" / "count_cases.json"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "streamingbench" / "count_cases.json"
METRIC = metrics.load("streamingbench")


def check(cases):
    for case in cases:
        result = METRIC.compute(predictions=case["data"], task=case["task"], model=case["model"])
        if "raises" not in case:
            assert result == case["expected_stats"], case["name"]


@pytest.mark.filterwarnings("ignore:streamingbench")
def test_counts_are_the_official_ones():
    check(json.loads(GOLDEN.read_text()))


@pytest.mark.filterwarnings("ignore:streamingbench")
def test_counts_are_the_official_ones_in_every_recorded_case():
    if not SHARED.is_file():
        pytest.skip("the other recorded cases lie in ../shared, which is not here")
    check(json.loads(SHARED.read_text()))


def question(response, answer="B", kind="Counting"):
    return {"task_type": kind, "time_stamp": "0:00:20", "answer": answer, "me": response}


def count(*questions, task="real", model="me"):
    entries = [{"questions": [one]} for one in questions]
    return METRIC.compute(predictions=[entries] if task == "sqa" else entries, task=task, model=model)


@pytest.mark.parametrize("task", ["real", "omni", "sqa"])
@pytest.mark.parametrize(
    ("response", "right"),
    [("B", True), ("B. green", True), ("Because", True), ("b", False), (" B", False), ("(B)", False), (["B"], True)],
)
def test_the_first_character_is_the_answer(task, response, right):
    row = {"total": 1, "correct": int(right), "accuracy": float(right)}
    assert count(question(response), task=task) == {"Counting": row} | ({} if task == "sqa" else {"total": row})


def test_the_total_is_over_all_questions_and_not_over_their_types():
    result = count(*[question("B")] * 3, question("A", kind="Spatial"))
    assert result["total"] == {"total": 4, "correct": 3, "accuracy": 0.75}
    assert [row["accuracy"] for name, row in result.items() if name != "total"] == [1.0, 0.0]


@pytest.mark.parametrize("response", ["", None])
def test_an_empty_response_is_wrong_but_not_counted_in_sqa(response):
    with pytest.warns(UserWarning, match="has no first character and counts as wrong"):
        assert count(question("B"), question(response))["total"] == {"total": 2, "correct": 1, "accuracy": 0.5}
    assert count(question("B"), question(response), task="sqa")["Counting"]["total"] == 1


def test_a_response_that_is_no_text_is_wrong():
    with pytest.warns(UserWarning, match="Counting at 0:00:20.*the response 7 has no first character"):
        assert count(question(7))["total"]["accuracy"] == 0.0
    assert count(question([""]), question("B"))["total"]["total"] == 1  # an empty first text is not counted


def test_questions_of_others_are_not_counted():
    with pytest.warns(UserWarning, match="no question has an answer of 'you'"):
        assert count(question("B"), model="you") == {}


def proactive(*said, truth="0:01:00", output="3"):
    entry = {"task_type": "Proactive Output", "ground_truth_time_stamp": truth, "ground_truth_output": output}
    return {**entry, "me": {"dialog_history": [{"time": time, "content": content} for time, content in said]}}


@pytest.mark.parametrize(
    ("said", "in_time", "right"),
    [
        ([(60, "3")], True, True),
        ([(58, "it shows 3-2")], True, True),
        ([(62, "three")], True, False),
        ([(57, "3")], False, False),
        ([(63, "3")], False, False),
        ([(60, "3"), (64, "no")], False, False),  # what comes last counts
        ([(62.5, "3")], False, False),
    ],
)
def test_a_proactive_answer_is_due_within_two_seconds(said, in_time, right):
    row = count(proactive(*said), task="proactive")["Proactive Output"]
    assert row == {
        "total": 1,
        "time_correct": in_time,
        "answer_correct": right,
        "time_accuracy": in_time,
        "answer_accuracy": right,
    }


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"answered": False, "dialog_history": []}, "there is no dialog history, which counts as wrong"),
        (None, "there is no dialog history, which counts as wrong"),
        ({"dialog_history": [{"time": 60, "content": None}]}, "the last content None is no text"),
    ],
)
def test_without_a_history_a_proactive_answer_is_wrong(answer, message):
    with pytest.warns(UserWarning, match=message):
        row = count({**proactive(), "me": answer}, proactive((60, "3")), task="proactive")["Proactive Output"]
    assert (row["total"], row["answer_correct"]) == (2, 1)


@pytest.mark.parametrize(
    ("asked", "task", "key", "name"),
    [
        (question("B"), "real", "answer", "Counting at 0:00:20, '[?]'"),
        (question(""), "omni", "task_type", "a question at 0:00:20, '[?]'"),
        (proactive((60, "3")), "proactive", "ground_truth_time_stamp", "Proactive Output at [?], '[?]'"),
        (proactive((60, "3")), "proactive", "ground_truth_output", "Proactive Output at [?], '[?]'"),
    ],
)
def test_what_a_question_lacks_is_named(asked, task, key, name):
    with pytest.raises(ValueError, match=f"^streamingbench: {name} has no '{key}'$"):
        count({name: value for name, value in asked.items() if name != key}, task=task)
    assert count(question("B"))["total"]["total"] == 1  # and leaves nothing behind


@pytest.mark.parametrize(
    ("entries", "task", "message"),
    [
        ([], "reel", "task is one of real, omni, sqa, proactive, not 'reel'"),
        ([{"questions": []}], "sqa", "the entries of sqa are lists, one for each video"),
        ([[{"questions": []}]], "real", "the entries of real are dicts"),
        ([{"question": "?"}], "real", "an entry of StreamingBench is a dict with questions"),
    ],
)
def test_what_makes_no_sense_is_refused(entries, task, message):
    with pytest.raises(ValueError, match=message):
        METRIC.compute(predictions=[*entries, *entries], task=task, model="me")
    assert count(question("B"))["total"]["total"] == 1  # and leaves nothing behind


def test_evaluate_loads_the_folder_and_takes_entries_one_by_one(tmp_path):
    metric = evaluate.load(str(METRICS / "streamingbench"), cache_dir=str(tmp_path))
    for response in "AB":
        metric.add(prediction={"questions": [question(response)]})
    assert metric.compute(task="real", model="me") == count(question("A"), question("B"))


def test_the_folder_stands_alone_and_its_card_is_true():
    check_imports("streamingbench", ["datasets", "evaluate"])
    check_card("streamingbench")
