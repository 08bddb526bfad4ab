import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("render_results", ROOT / "benchmarks" / "render_results.py")
render_results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(render_results)

SCORES = {
    "state_accuracy": {"fresh": 0.9123, "frozen": 0.25, "grey": 0.1, "oracle": 0.3, "chance": 0.2},
    "by_kind": {"colour": {"fresh": 1.0, "frozen": None, "grey": 0.1, "chance": 0.25, "n": 4}},
    "n": 8,
    "moved": {"fresh": {"n": 6, "accuracy": 0.9}, "frozen": {"n": 6, "accuracy": 0.05}},
    "unmoved": {"fresh": {"n": 2, "accuracy": 1.0}, "frozen": {"n": 2, "accuracy": 0.8}},
    "in_heldout_combo": {"fresh": {"n": 5, "accuracy": 0.875}},
    "changes": {"fresh": {"n": 7, "reported": 0.95, "reports": 9, "false_reports": 0.0}},
    **{"split": "heldout", "seed": 3, "clips": 20},
}


def test_readme_shows_the_numbers_of_the_shipped_checkpoint():
    readme = (ROOT / "README.md").read_text()
    assert readme == render_results.rendered(readme, json.loads(render_results.SCORES.read_text()))


def test_card_shows_the_numbers_of_the_shipped_checkpoint():
    assert (render_results.CHECKPOINT / "README.md").read_text() == render_results.shipped_card()


def test_details_say_what_the_pooled_numbers_hide():
    text = " ".join(render_results.table(SCORES).split())
    assert "90.0 % watching on, 5.0 % frozen; where it has not: 100.0 % and 80.0 %" in text
    assert (
        "87.5 % of 5 words" in text and "95.0 % of 7 are reported" in text and "0.0 % of 9 reports are false" in text
    )


def test_table_has_a_row_per_kind_and_one_for_all():
    lines = render_results.table(SCORES).splitlines()
    assert "| colour | 100.0 % | – | 10.0 % | 25.0 % | 4 |" in lines
    assert "| **all** | 91.2 % | 25.0 % | 10.0 % | 20.0 % | 8 |" in lines
    assert "From `streamchat eval streamworld --split heldout --seed 3 --clips 20`." in lines


def test_only_what_is_between_the_markers_changes():
    readme = f"before\n{render_results.BEGIN}old\n{render_results.END}after\n"
    new = render_results.rendered(readme, SCORES)
    assert new.startswith(f"before\n{render_results.BEGIN}") and new.endswith(f"{render_results.END}after\n")
    assert "old" not in new and render_results.rendered(new, SCORES) == new


@pytest.mark.parametrize("missing", ["BEGIN", "END"])
def test_a_missing_marker_is_an_error(missing):
    readme = f"{render_results.BEGIN}{render_results.END}".replace(getattr(render_results, missing), "")
    with pytest.raises(ValueError, match="needs the lines"):
        render_results.rendered(readme, SCORES)
