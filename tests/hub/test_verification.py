import json
import subprocess
import types

import pytest

from streamchat_hf import tiny_checkpoint
from streamchat_hf.hub import verification
from streamchat_hf.hub.staging import stage
from streamchat_hf.hub.verification import BrokenPushError, verify
from streamchat_hf.hub.verify_script import answer

SOUND = {"tokens": [1, 2], "frame_age": [0.0, 0.5], "numbers": [1.0, -2.0]}


@pytest.fixture
def process(monkeypatch):
    """Instead of a process: what it is called with, and what it answers."""
    seen = types.SimpleNamespace(answer=SOUND, code=0, error="")

    def run(command, **options):
        seen.command, seen.options = command, options
        return subprocess.CompletedProcess(
            command, seen.code, f"chatter\nRESULT {json.dumps(seen.answer)}", seen.error
        )

    monkeypatch.setattr(verification.subprocess, "run", run)
    return seen


def test_a_checkpoint_of_ours_works_without_the_package(streamformer, tmp_path):
    stage(streamformer, tmp_path / "staged", "me/tower")
    expected = answer(str(tmp_path / "staged"))
    assert verify(tmp_path / "staged", expected=expected).keys() == expected.keys()


@pytest.mark.slow
def test_a_videollm_online_speaks_without_the_package(videollm_online, tmp_path):
    stage(videollm_online, tmp_path / "staged", "me/watcher")
    expected = answer(str(tmp_path / "staged"))
    assert len(expected["frame_age"]) == 8 * 2  # two words after every frame
    assert verify(tmp_path / "staged", expected=expected) == expected


@pytest.mark.slow
def test_the_shipped_checkpoint_works_without_the_package(tmp_path):
    stage(tiny_checkpoint(), tmp_path / "staged", "me/tiny")
    expected = answer(str(tmp_path / "staged"))
    assert verify(tmp_path / "staged", expected=expected)["tokens"] == expected["tokens"]


@pytest.mark.slow
def test_code_that_is_missing_is_found_out(streamformer, tmp_path):
    stage(streamformer, tmp_path / "staged", "me/tower")
    (tmp_path / "staged" / "cache_streamformer.py").unlink()
    with pytest.raises(BrokenPushError, match=r"staged does not run by itself: .*cache_streamformer\.py"):
        verify(tmp_path / "staged")


@pytest.mark.slow
def test_code_that_needs_the_package_is_found_out(streamformer, tmp_path):
    stage(streamformer, tmp_path / "staged", "me/tower")
    code = tmp_path / "staged" / "modeling_streamformer.py"
    code.write_text(f"import streamchat_hf\n{code.read_text()}")
    with pytest.raises(BrokenPushError, match="does not run by itself: .*streamchat_hf"):
        verify(tmp_path / "staged")


def test_the_process_has_nothing_of_ours(process, tmp_path, monkeypatch):
    for name in ("PYTHONPATH", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.setenv(name, "mine")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    verify(tmp_path)
    variables = process.options["env"]
    assert not {"PYTHONPATH", "HF_TOKEN", "HF_HUB_CACHE"} & variables.keys() and variables["HF_HUB_OFFLINE"] == "1"
    assert variables["HF_MODULES_CACHE"].startswith(variables["HF_HOME"]) and process.options["cwd"] != str(tmp_path)
    assert process.command[1] == "-P" and process.command[3:] == [str(tmp_path)]
    verify("me/talker", "abc", token="secret")
    variables = process.options["env"]
    assert variables["HF_TOKEN"] == "secret" and variables["HF_HUB_OFFLINE"] == "0"
    assert process.command[3:] == ["me/talker", "abc"]


def test_the_same_answer_passes(process):
    process.answer = SOUND | {"numbers": [1.0001, -2.0001]}
    assert verify("me/talker", expected=SOUND) == process.answer


@pytest.mark.parametrize(
    "change", [{"tokens": [1, 3]}, {"frame_age": [0.0, 0.0]}, {"numbers": [1.1, -2.0]}, {"tokens": None}]
)
def test_another_answer_is_refused(process, change):
    process.answer = SOUND | change
    with pytest.raises(BrokenPushError, match="the push is broken: me/talker@abc answers .* the model here"):
        verify("me/talker", "abc", expected=SOUND)


@pytest.mark.parametrize("change", [{"frame_age": [0.0, float("nan")]}, {"numbers": [float("inf"), 1.0]}])
def test_what_is_not_finite_is_refused(process, change):
    process.answer = SOUND | change
    with pytest.raises(BrokenPushError, match="not finite"):
        verify("me/talker")


def test_the_last_lines_say_why(process):
    process.code, process.error = 1, "\n".join(f"line {k}" for k in range(20))
    with pytest.raises(BrokenPushError) as error:
        verify("me/talker")
    assert "line 19" in str(error.value) and "line 13" not in str(error.value) and "\n" not in str(error.value)
