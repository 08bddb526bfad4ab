import json
from pathlib import Path

import render_results

ROOT = Path(__file__).parents[2]

SCORES = json.loads(render_results.SCORES.read_text())


def test_readme_shows_the_numbers_of_the_shipped_checkpoint():
    readme = (ROOT / "README.md").read_text()
    assert readme == render_results.rendered(readme, SCORES)


def test_card_shows_the_numbers_of_the_shipped_checkpoint():
    assert (render_results.CHECKPOINT / "README.md").read_text() == render_results.shipped_card()
