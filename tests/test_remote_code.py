"""A folder saved by us loads, streams, fine-tunes and saves again where our package does not exist."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from remote_code_script import stream
from streamchat_helpers import tiny_model
from streamchat_hf import StreamChatProcessor, StreamFormerVideoProcessor
from streamchat_hf.data.streamworld_dialogue import build_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = build_tokenizer()
    model = tiny_model(text_config={"vocab_size": len(tokenizer)})
    processor = StreamChatProcessor(
        StreamFormerVideoProcessor(size={"height": 16, "width": 16}), tokenizer, chat_template=tokenizer.chat_template
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder, stream(model, processor)


def run(source, folder, **environment):
    """The script in a fresh process with module caches of its own."""
    script = Path(__file__).with_name("remote_code_script.py")
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(folder / "home"),
        "HF_MODULES_CACHE": str(folder / "modules"),
        "HF_HUB_OFFLINE": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, str(script), str(source), str(folder / "tuned")],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT ")[1])


def check(result, expected):
    assert set(result["answers"]) == {
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
        "AutoModelForMultimodalLM",
    }
    assert all(answer == [*map(list, expected)] for answer in result["answers"].values())
    before, after = result["losses"]
    assert after < before
    assert result["tuned"] == result["tuned_again"]
    assert {"model.safetensors", "modeling_streamchat.py", "processing_streamchat.py"} <= set(result["files"])
    assert not [name for name in result["files"] if name.endswith((".bin", ".pt", ".pkl"))]


def test_from_a_folder(checkpoint, tmp_path):
    folder, expected = checkpoint
    check(run(folder, tmp_path), expected)


def test_from_a_hub_cache(checkpoint, tmp_path):
    """The Hub checks every file's imports, a folder only those of the entry: the cache is the stricter test."""
    folder, expected = checkpoint
    repository = tmp_path / "hub" / "models--acme--streamchat-tiny"
    shutil.copytree(folder, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    check(run("acme/streamchat-tiny", tmp_path, HF_HUB_CACHE=str(tmp_path / "hub")), expected)


def test_without_trust_no_code_runs(checkpoint, tmp_path):
    folder, _ = checkpoint
    script = "from transformers import AutoModel; import sys; sys.modules['streamchat_hf'] = None; "
    script += f"AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=False)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode != 0 and "trust_remote_code=True" in done.stderr
    assert not list(tmp_path.rglob("modeling_streamchat.py"))
