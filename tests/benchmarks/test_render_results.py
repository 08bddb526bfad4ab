import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("render_results", ROOT / "benchmarks" / "render_results.py")
render_results = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(render_results)

SCORES = json.loads(render_results.SCORES.read_text())


def test_readme_shows_the_numbers_of_the_shipped_checkpoint():
    readme = (ROOT / "README.md").read_text()
    assert readme == render_results.rendered(readme, SCORES)


def test_card_shows_the_numbers_of_the_shipped_checkpoint():
    assert (render_results.CHECKPOINT / "README.md").read_text() == render_results.shipped_card()


def test_only_what_is_between_the_markers_changes():
    readme = f"before\n{render_results.BEGIN}of last year\n{render_results.END}after\n"
    new = render_results.rendered(readme, SCORES)
    assert new.startswith(f"before\n{render_results.BEGIN}") and new.endswith(f"{render_results.END}after\n")
    assert "of last year" not in new and render_results.rendered(new, SCORES) == new


@pytest.mark.parametrize("missing", ["BEGIN", "END"])
def test_a_missing_marker_is_an_error(missing):
    readme = f"{render_results.BEGIN}{render_results.END}".replace(getattr(render_results, missing), "")
    with pytest.raises(ValueError, match="needs the lines"):
        render_results.rendered(readme, SCORES)
