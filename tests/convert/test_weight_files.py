"""Files of weights: whole, sharded, broken, pickled."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from streamchat_hf.convert.streamformer import convert_streamformer
from streamchat_hf.convert.weight_files import read_config, read_weights

CASE = Path(__file__).parents[1] / "fixtures" / "streamformer_case_a"


@pytest.fixture
def source(tmp_path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(CASE / name, folder / name)
    return folder


@pytest.fixture
def sharded(tmp_path) -> Path:
    folder = tmp_path / "sharded"
    sizes = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
    SiglipVisionModel(SiglipVisionConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(
        folder, max_shard_size="100kB"
    )
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def refused(source: Path, kind: type[Exception], message: str) -> str:
    """Nothing is written, and the error is one line."""
    with pytest.raises(kind, match=message) as error:
        convert_streamformer(source, source.with_name("ours"))
    assert not source.with_name("ours").exists()
    return str(error.value)


def test_reads_what_is_there(source):
    assert read_config(source)["model_type"] == "timesformer"
    stored = load_file(CASE / "model.safetensors")
    found = read_weights(source)
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], stored[name]) for name in stored)


def test_shards_are_put_together(sharded):
    found = read_weights(sharded)
    shards = [load_file(path) for path in sharded.glob("*.safetensors")]
    assert len(found) == sum(map(len, shards))
    assert convert_streamformer(sharded, sharded.with_name("ours")).origin == "SigLIP"


def test_a_missing_shard_is_named(sharded):
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    refused(sharded, OSError, lost.name)


def test_a_shard_that_is_not_in_the_index_leaves_weights_missing(sharded):
    index = sharded / "model.safetensors.index.json"
    said = json.loads(index.read_text())
    lost = sorted(set(said["weight_map"].values()))[0]
    said["weight_map"] = {name: shard for name, shard in said["weight_map"].items() if shard != lost}
    index.write_text(json.dumps(said))
    refused(sharded, ValueError, "missing|0 weights named")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "names no shards"),
        ('{"weight_map": 1}', "names no"),
    ],
)
def test_a_broken_index_is_named(sharded, text, message):
    (sharded / "model.safetensors.index.json").write_text(text)
    assert "index.json" in refused(sharded, ValueError, message)


@pytest.mark.parametrize("kept", [0, 5, 100, 20_000, -1])
def test_a_damaged_file_is_named(source, kept):
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    error = refused(source, OSError, r"model\.safetensors is damaged or incomplete \(.*\): download it again")
    assert "\n" not in error


def test_a_pointer_instead_of_weights_is_a_damaged_file(source):
    (source / "model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 520529784\n"
    )
    refused(source, OSError, "damaged or incomplete")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "is not a JSON object")])
def test_a_broken_config_is_named(source, text, message):
    (source / "config.json").write_text(text)
    assert "config.json" in refused(source, ValueError, message)


def test_a_folder_without_a_config_is_refused(source):
    (source / "config.json").unlink()
    refused(source, OSError, r"config\.json")


def test_a_source_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "nothing", OSError, "nothing")


def test_pickled_weights_are_refused_with_the_conversion_named_and_the_conversion_works(source, monkeypatch):
    torch.save({"model": load_file(source / "model.safetensors")}, source / "WEIGHTS.bin")
    (source / "model.safetensors").unlink()
    error = refused(source, OSError, "Convert them once: python -c")
    monkeypatch.chdir(source)
    exec(error.split('python -c "')[1].rsplit('"', 1)[0])
    found = convert_streamformer(source, source.with_name("ours")).model
    stored = load_file(CASE / "model.safetensors")
    assert found.num_parameters() == sum(value.numel() for name, value in stored.items() if not name.endswith(".mask"))
