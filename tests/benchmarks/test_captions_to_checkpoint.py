import json

import captions_to_checkpoint as benchmark
from streamchat_hf.data.streamworld_dialogue import VALUES

RESULT = json.loads(benchmark.SCORES.read_text())


def test_the_page_has_the_scores_of_the_file():
    page = benchmark.PAGE.read_text()
    assert benchmark.rendered(page, RESULT) == page


def test_what_was_learned_from_captions_beats_the_untrained_model_on_every_kind_of_word():
    trained, untrained = (RESULT["scores"][name]["by_kind"] for name in ("trained", "untrained"))
    assert trained.keys() == untrained.keys() == VALUES.keys()
    assert {kind for kind in VALUES if trained[kind]["score"] > untrained[kind]["score"]} == VALUES.keys()
