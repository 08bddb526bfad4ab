import json
import os
import subprocess
import sys

import pytest

from streamchat_hf import metrics

REFERENCE = [{"slot": "colour", "value": "red", "start": 0, "end": 2}]


def test_an_unknown_name_names_those_there_are():
    with pytest.raises(ValueError, match="there is no metric 'accuracy', only: .*streaming_score"):
        metrics.load("accuracy")


def test_without_evaluate_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate.loading", None)
    with pytest.raises(ImportError, match=r"pip install 'streamchat-hf\[eval\]'"):
        metrics.load("streaming_score")


def test_instances_are_independent():
    one, two = metrics.load("streaming_score"), metrics.load("streaming_score")
    one.add(prediction=[{"word": "red", "time": 1}], reference=REFERENCE)
    two.add(prediction=[], reference=REFERENCE)
    assert [one.compute()["score"], two.compute()["score"]] == [1.0, 0.0]


SCRIPT = """
import json
from streamchat_hf import metrics
metric = metrics.load("streaming_score")
result = metric.compute(predictions=[[]], references=[[{"slot": "colour", "value": "red", "start": 0, "end": 2}]])
print(json.dumps(result["score"]))
"""


def test_nothing_is_written_to_the_cache(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path), "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == 0.0
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name == "streaming_score"] == []
