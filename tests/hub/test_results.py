import copy

import pytest

from streamchat_hf.hub.results import eval_results, results_table

SCORES = {
    "state_accuracy": {"fresh": 0.9123, "frozen": 0.25, "grey": None, "oracle": 0.3, "chance": 0.2},
    "by_kind": {"colour": {"fresh": 1.0, "frozen": None, "grey": 0.1, "chance": 0.25, "n": 4}},
    "n": 8,
    "moved": {"fresh": {"n": 6, "accuracy": 0.9}, "frozen": {"n": 6, "accuracy": 0.05}},
    "unmoved": {"fresh": {"n": 2, "accuracy": 1.0}, "frozen": {"n": 2, "accuracy": 0.8}},
    "in_heldout_combo": {"fresh": {"n": 5, "accuracy": 0.875}},
    "changes": {"fresh": {"n": 7, "reported": 0.95, "reports": 9, "false_reports": 0.0}},
    **{"split": "heldout", "seed": 3, "clips": 20},
}


def test_table_has_a_row_per_kind_and_one_for_all():
    lines = results_table(SCORES).splitlines()
    assert "| words about | watching on | frozen | blind | chance | words |" in lines
    assert "| colour | 100.0 % | – | 10.0 % | 25.0 % | 4 |" in lines
    assert "| **all** | 91.2 % | 25.0 % | – | 20.0 % | 8 |" in lines
    assert "From `streamchat eval streamworld --split heldout --seed 3 --clips 20`." in lines


def test_details_say_what_the_pooled_numbers_hide():
    text = " ".join(results_table(SCORES).split())
    assert "90.0 % watching on, 5.0 % frozen; where it has not: 100.0 % and 80.0 %" in text
    assert "87.5 % of 5 words" in text
    assert "95.0 % of 7 are reported" in text and "0.0 % of 9 reports are false" in text


@pytest.mark.parametrize(
    ("split", "said"), [("heldout", "never shown together in training"), ("seen", "that training shows")]
)
def test_the_table_says_which_worlds_these_were(split, said):
    assert said in " ".join(results_table({**SCORES, "split": split}).split())


def test_metadata_name_the_viewer_and_leave_out_what_was_not_measured():
    found = {result.metric_name: result.metric_value for result in eval_results(SCORES)}
    assert found == {"true words, watching on": 0.9123, "true words, frozen": 0.25}
    [first, *_] = eval_results(SCORES)
    assert (first.dataset_split, first.dataset_args) == ("heldout", {"seed": 3, "clips": 20})


def test_the_streaming_score_is_told_where_it_was_measured():
    scores = copy.deepcopy(SCORES)
    assert "streaming_score" not in results_table(scores)
    scores["streaming_score"] = {"fresh": {"score": 0.75}, "frozen": {"score": 0.125}, "grey": {"score": None}}
    assert "a little late: 0.750 watching on, 0.125 frozen, – blind." in " ".join(results_table(scores).split())
    found = {result.metric_name: result.metric_value for result in eval_results(scores)}
    assert found["streaming score, watching on"] == 0.75 and "streaming score, blind" not in found
