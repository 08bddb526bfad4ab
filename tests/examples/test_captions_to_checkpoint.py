"""The way from captions to a checkpoint, with a scripted language model that sees nothing but captions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripted_endpoint import ScriptedEndpoint, streamworld_script
from streamchat_hf.data.streamworld_dialogue import VALUES

SCRIPT = Path(__file__).parents[2] / "examples" / "captions_to_checkpoint.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_model_that_learned_from_captions_alone_beats_the_untrained_one_on_every_kind_of_word(tmp_path):
    size = {"videos": 400, "instructions": 1000, "steps": 0.4, "clips": 60}
    words = [str(word) for key, value in size.items() for word in (f"--{key}", value)]
    online = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}  # else none is called
    with ScriptedEndpoint(streamworld_script) as endpoint:
        command = [sys.executable, SCRIPT, tmp_path, "--model", "scripted", "--base-url", endpoint.url, *words]
        subprocess.run(command, env=online, check=True)
        asked = [request.messages[-1]["content"] for request in endpoint.requests]
    assert len(asked) == size["instructions"] and not any("answer" in captions for captions in asked)
    scores = json.loads((tmp_path / "scores.json").read_text())
    trained, untrained = (scores[name]["by_kind"] for name in ("trained", "untrained"))
    assert trained.keys() == VALUES.keys()
    assert {kind: trained[kind]["score"] > untrained[kind]["score"] for kind in trained} == dict.fromkeys(
        trained, True
    )
    assert scores["trained"]["score"] > 0.5 > 0.1 > scores["untrained"]["score"]
