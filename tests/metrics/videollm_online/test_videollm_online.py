"""videollm_online: the authors' numbers on recorded forward passes, and the metric as `evaluate` uses it."""

import doctest
import json
import sys
from pathlib import Path
from types import ModuleType

import evaluate
import pytest
import torch
from huggingface_hub import RepoCard
from safetensors.torch import load_file

from streamchat_hf import metrics

FOLDER = Path(metrics.__file__).parent / "videollm_online"
GOLDEN = Path(__file__).parents[2] / "fixtures" / "videollm_online_metrics"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "videollm_online"
METRIC = metrics.load("videollm_online")
NAMES = ("lm_ppl", "frame_diff", "fluency", "lm_correctness")


def read(path):
    """A recorded case: its tensors as lists with all that its description has."""
    case, tensors = json.loads(path.read_text()), load_file(path.with_suffix(".safetensors"))
    for index, append in enumerate(case["appends"]):
        append |= {name: tensors[f"append{index}_{name}"].tolist() for name in ("input_ids", "logits")}
    return {**case, **{name: tensors[name].tolist() for name in ("input_ids", "labels", "logits")}}


CASES = {path.stem: path for path in sorted(GOLDEN.glob("A*.json"))}


def check_compat(case):
    result = METRIC.compute(predictions=[case], compat=True)
    assert {name: result[name] for name in NAMES} == pytest.approx(case["expected"], abs=1e-4)
    assert result["frame_diff"] == case["expected"]["frame_diff"]
    turns = result["samples"][0]["turns"]
    lists = [[abs(row[name]) for row in turns if row[name] is not None] for name in NAMES]
    assert [values for values in lists if values] == [
        pytest.approx(values, abs=1e-4) for values in case["per_turn"]["stacked_lists_in_call_order"]
    ]


@pytest.mark.filterwarnings("error:appends:UserWarning")  # a look-ahead at other frames than the authors'
@pytest.mark.parametrize("name", CASES)
def test_compat_gives_the_authors_numbers(name):
    check_compat(read(CASES[name]))


@pytest.mark.filterwarnings("error:appends:UserWarning")
def test_compat_gives_the_authors_numbers_on_every_recorded_case():
    paths = sorted(SHARED.glob("A*.json"))
    if not paths:
        pytest.skip("the other recorded cases lie in ../shared, which is not here")
    for path in paths:
        check_compat(read(path))


# frame_diff, fluency and missed where they are not the authors' numbers, with the correction's number on the card.
CORRECTED = {
    "A03_early_by_3": (3, 1 / 11, 0),  # 2
    "A04_early_first_frame": (5, 0, 0),  # 2
    "A06_never_nonlast_turn": ((4 + 0) / 2, 0.65, 1),  # 1
    "A07_never_capped_by_next": ((6 + 0) / 2, 0.5 * (5 / 12 + 1), 1),  # 1
    "A08_never_last_turn": (2.5, 0.5 * (1 + 4 / 11), 1),  # 1
    "A09_never_one_frame_turn": (0.5, 0.5, 1),  # 1
    "A13_early_and_wrong_lm": (1, 13 / 22, 0),  # 2
    "A14_soft060_thr0.725": (5, 0, 0),  # 2
    "A15_soft045_thr0.5": (2.5, 0.5, 0),  # 2
    "A15_soft045_thr0.725": (2.5, 0.5, 0),  # 2
    "A16_late_thr0.0": (2, 0.65, 1),  # 1
    "A16_late_thr0.5": (2, 0.65, 1),  # 1
    "A18_partial_learn_int": (0, 1, 0),  # 3
}


@pytest.mark.parametrize("name", CASES)
def test_the_default_corrects_what_the_card_says_and_nothing_else(name):
    case = read(CASES[name])
    result = METRIC.compute(predictions=[case])
    authors = case["expected"]
    expected = CORRECTED.get(name, (authors["frame_diff"], authors["fluency"], 0))
    assert [result[key] for key in ("frame_diff", "fluency", "missed")] == pytest.approx(expected, abs=1e-6)
    assert [result[key] for key in ("lm_ppl", "lm_correctness")] == pytest.approx(
        [authors["lm_ppl"], authors["lm_correctness"]], abs=1e-4
    )


def test_the_data_set_has_the_mean_over_its_dialogues():
    cases = [
        {**read(CASES[name]), "frame_fps": fps} for name, fps in zip(sorted(CASES)[:8], [1.0, 2.0] * 4, strict=True)
    ]
    whole = METRIC.compute(predictions=cases)
    single = [METRIC.compute(predictions=[case]) for case in cases]
    for name in (*NAMES, "time_diff"):
        assert whole[name] == pytest.approx(sum(one[name] for one in single) / 8)
    assert whole["missed"] == sum(one["missed"] for one in single) and whole["n"] == 8
    assert [sample["time_diff"] for sample in whole["samples"]] == [
        one["frame_diff"] / case["frame_fps"] for one, case in zip(single, cases, strict=True)
    ]
    assert METRIC.compute(predictions=[read(CASES["A05_late_by_2"])])["time_diff"] is None


EMPTY = {"input_ids": [[1, 3]], "labels": [[-100, -100]], "logits": [[[0.0, 1.0]] * 2]}
EMPTY |= {"frame_num_tokens": 1, "v_placeholder_id": 9, "eos_token_id": 2, "frame_fps": 2}


def test_nothing_to_measure_is_left_out_of_the_mean():
    case = {**read(CASES["A05_late_by_2"]), "frame_fps": 2}
    alone, both = METRIC.compute(predictions=[case]), METRIC.compute(predictions=[case, EMPTY])
    assert [both[name] for name in (*NAMES, "time_diff")] == [alone[name] for name in (*NAMES, "time_diff")]
    assert both["n"] == 2 and both["samples"][1]["turns"] == []
    for rows in ([EMPTY], []):
        assert [METRIC.compute(predictions=rows)[name] for name in (*NAMES, "time_diff")] == [None] * 5
    authors = METRIC.compute(predictions=[EMPTY], compat=True)
    assert [authors[name] for name in (*NAMES, "time_diff")] == [1.0, 0.0, 1.0, 1.0, 0.0]


def test_lists_arrays_and_tensors_with_or_without_a_leading_dimension():
    case = read(CASES["A17_late_append_thr0.725"])
    expected = METRIC.compute(predictions=[case])

    def convert(row, how):
        return {key: how(value) if key in ("input_ids", "labels", "logits") else value for key, value in row.items()}

    for how in (torch.tensor, lambda x: torch.tensor(x).numpy(), lambda x: x[0], lambda x: torch.tensor(x)[0]):
        row = {**convert(case, how), "appends": [convert(append, how) for append in case["appends"]]}
        assert METRIC.compute(predictions=[row]) == expected


def test_appends_of_no_use_are_ignored_and_a_missing_one_is_named():
    case = read(CASES["A05_late_by_2"])
    other = {**case["appends"][0], "past_len": 3}
    more = {**case, "appends": [other, *case["appends"]]}
    assert METRIC.compute(predictions=[more]) == METRIC.compute(predictions=[case])
    for appends in ([], None, [other]):
        with pytest.raises(ValueError, match="appends needs an item with past_len=11, n_frames=3, first_frame=4"):
            METRIC.compute(predictions=[{**case, "appends": appends}])


def test_a_look_ahead_at_other_frames_is_told():
    case = read(CASES["A05_late_by_2"])
    case["appends"][0]["first_frame"] = 0
    with pytest.warns(UserWarning, match="first_frame is 0 where past_len=11, n_frames=3, first_frame=4 was needed"):
        METRIC.compute(predictions=[case])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_fps": 0}, "frame_fps must be a positive number of frames per second, not 0"),
        ({"input_ids": [[1, 3], [1, 3]]}, r"input_ids of one dialogue has 1 dimensions, not the shape \(2, 2\)"),
        ({"labels": [-100]}, r"one dialogue is input_ids \(T,\), labels \(T,\), logits \(T, V\), not \(2,\), \(1,\)"),
        ({"appends": [{"past_len": 1}]}, "an item of appends needs first_frame, logits; it has past_len"),
    ],
)
def test_what_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        METRIC.compute(predictions=[{**EMPTY, **change}])
    assert METRIC.compute(predictions=[EMPTY])["n"] == 1  # and leaves nothing behind


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match="a dialogue needs labels, logits, frame_num_tokens, v_placeholder_id"):
        METRIC.compute(predictions=[{"input_ids": [1]}])


def test_evaluate_loads_the_folder_and_takes_dialogues_one_by_one(tmp_path):
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path))
    assert metric.name == "videollm_online" and set(metric.features) == {"predictions"}
    cases = [read(CASES[name]) for name in ("A03_early_by_3", "A05_late_by_2")]
    for case in cases:
        metric.add(prediction=case)
    one_by_one = metric.compute()
    metric.add_batch(predictions=cases)
    assert one_by_one == metric.compute() == METRIC.compute(predictions=cases)
    assert metric.compute(predictions=cases, compat=True)["fluency"] == pytest.approx((0.18181818 + 0.65) / 2)


def test_the_files_need_nothing_of_the_package():
    for name in ("videollm_online.py", "live_metrics.py"):
        lines = [
            line.split() for line in (FOLDER / name).read_text().splitlines() if line.startswith(("import ", "from "))
        ]
        found = {words[1].split(".")[0] for words in lines} - {""}  # "" is the file beside it
        assert found - set(sys.stdlib_module_names) <= {"datasets", "evaluate", "torch"}


def test_the_card_is_valid_and_its_examples_give_what_they_show(monkeypatch):
    card = RepoCard.load(FOLDER / "README.md")
    assert card.data.title == "videollm_online" and {"evaluate", "metric"} <= set(card.data.tags)
    assert card.data.sdk == "static" and card.data.license == "apache-2.0"
    monkeypatch.chdir(FOLDER.parent)
    examples = ModuleType("card")
    examples.__doc__ = card.text.replace("```", "")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in finder.find(examples, "card", globs={}):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 5
