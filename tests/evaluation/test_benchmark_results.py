import pytest
import yaml
from huggingface_hub import ModelCard

from streamchat_hf.evaluation.benchmark_results import (
    Score,
    card_block,
    conditions,
    eval_results,
    number,
    results_page,
)

RESULTS = {
    "benchmark": "ovobench",
    "protocol": "streaming",
    "clock": "simulated",
    "tokens_per_second": 10.0,
    "model": "you/model",
    "fps": 1.0,
    "deadline": 2.0,
    "seed": None,
    "rows": [{"late": True}, {"late": False}, {"late": False, "error": "x.mp4: cut off"}],
}
SCORES = [Score("accuracy", "EPM", 61.538461, 13), Score("accuracy", "total", None)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "streaming, simulated clock, 10 tokens per second, 1 fps"),
        ({"clock": "wall", "tokens_per_second": None}, "streaming, wall clock, 1 fps"),
        ({"protocol": "official", "clock": None, "fps": 2.5}, "official, 2.5 fps"),
    ],
)
def test_the_conditions_are_said_in_a_few_words(changes, said):
    assert conditions({**RESULTS, **changes}) == said


def test_the_page_has_a_table_and_counts_what_went_wrong():
    lines = results_page(RESULTS, SCORES).splitlines()
    assert lines[0].startswith("OVO-Bench, you/model: streaming, simulated clock")
    assert "| EPM | accuracy | 61.54 | 13 |" in lines and "| total | accuracy | – | – |" in lines
    assert lines[-1] == "3 answers: 1 late, 1 about videos that could not be watched to the end."


def test_the_block_is_what_the_hub_reads_in_a_card():
    block = card_block(RESULTS, SCORES)
    [index] = yaml.safe_load(block)["model-index"]
    [result] = index["results"]
    assert result["dataset"]["args"] == {
        **{"protocol": "streaming", "clock": "simulated", "tokens_per_second": 10.0, "fps": 1.0, "deadline": 2.0}
    }
    assert result["metrics"] == [{"type": "accuracy", "value": 61.5385, "name": "EPM, streaming"}]
    card = ModelCard(f"---\n{block}---\n# Model\n")
    assert card.data.eval_results == eval_results(RESULTS, SCORES)
    assert card_block(RESULTS, SCORES[1:]) == ""


def test_numbers():
    assert [number(value) for value in (None, 3, 1640, 0.12345, 100.0)] == ["–", "3", "1640", "0.1235", "100"]
