"""The way from captions to a checkpoint, with a scripted language model that sees nothing but captions.

Small: what a whole run leads to is in `benchmarks/captions_to_checkpoint.json`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripted_endpoint import ScriptedEndpoint, streamworld_script

SCRIPT = Path(__file__).parents[2] / "examples" / "captions_to_checkpoint.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_learns_to_tell_what_it_sees_from_captions_alone(tmp_path):
    size = {"videos": 120, "instructions": 240, "steps": 0.12, "clips": 24}
    words = [str(word) for key, value in size.items() for word in (f"--{key}", value)]
    online = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}  # else none is called
    with ScriptedEndpoint(streamworld_script) as endpoint:
        command = [sys.executable, SCRIPT, tmp_path, "--model", "scripted", "--base-url", endpoint.url, *words]
        subprocess.run(command, env=online, check=True)
        assert len(endpoint.requests) == size["instructions"]
    result = json.loads((tmp_path / "scores.json").read_text())
    trained, untrained = (result["scores"][name] for name in ("trained", "untrained"))
    assert trained["score"] > 0.2 > 0.05 > untrained["score"]
    assert trained["by_kind"]["colour"]["score"] > 0.3
