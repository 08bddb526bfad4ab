import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from streamchat_hf import StreamFormerVideoProcessor, tiny_checkpoint
from streamchat_hf.hub.staging import refuse_private_text, stage

TOWER_CODE = {
    *("cache_streamformer.py", "configuration_streamformer.py", "modeling_streamformer.py"),
    *("frames_streamchat.py", "sources_streamchat.py", "video_processing_streamformer.py"),
}
STREAMFORMER = {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json", *TOWER_CODE}
STREAMCHAT = {
    *("README.md", "config.json", "generation_config.json", "model.safetensors", "processor_config.json"),
    *("chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "training_log.json", *TOWER_CODE),
    *("backbones_streamchat.py", "cache_static_streamchat.py", "cache_streamchat.py", "clock_streamchat.py"),
    *("configuration_streamchat.py", "generation_streamchat.py", "layers_streamchat.py", "modeling_streamchat.py"),
    *("processing_frames_streamchat.py", "processing_streamchat.py", "reader_streamchat.py"),
    *("rotary_streamchat.py", "timeline_streamchat.py"),
}


def read(path: Path):
    return json.loads(path.read_text())


def test_the_shipped_checkpoint_is_staged_whole(tmp_path):
    files = stage(tiny_checkpoint(), tmp_path / "staged", "me/tiny", "apache-2.0")
    assert set(files) == {path.name for path in (tmp_path / "staged").iterdir()} == {*STREAMCHAT, "eval.json"}
    assert files == {path.name: path.stat().st_size for path in (tmp_path / "staged").iterdir()}
    assert not [path for path in (tmp_path / "staged").iterdir() if path.is_symlink()]
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_checkpoint(), tmp_path / "staged"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}  # stored so
    assert read(tmp_path / "staged" / "config.json") == read(tiny_checkpoint() / "config.json")  # computed in float32
    assert 'from_pretrained("me/tiny"' in (tmp_path / "staged" / "README.md").read_text()


def test_of_a_run_only_the_checkpoint_is_staged(streamchat, tmp_path):
    assert (streamchat / "training_args.bin").exists() and (streamchat / "latest").is_symlink()
    assert set(stage(streamchat, tmp_path / "staged", "me/talker")) == STREAMCHAT
    keys = {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText"}
    assert set(read(tmp_path / "staged" / "config.json")["auto_map"]) == {*keys, "AutoModelForMultimodalLM"}


def test_a_videollm_online_is_staged_with_its_processor(videollm_online, tmp_path):
    files = stage(videollm_online, tmp_path / "staged", "me/watcher")
    assert {"modeling_videollm_online.py", "processing_videollm_online.py", "processor_config.json"} <= set(files)
    before, after = (load_file(folder / "model.safetensors") for folder in (videollm_online, tmp_path / "staged"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert 'from_pretrained("me/watcher"' in (tmp_path / "staged" / "README.md").read_text()


def test_a_streamformer_gets_a_video_processor(streamformer, tmp_path):
    assert set(stage(streamformer, tmp_path / "staged", "me/tower")) == STREAMFORMER
    assert read(tmp_path / "staged" / "video_preprocessor_config.json")["size"] == {"height": 16, "width": 16}
    pixels = torch.randn(1, 2, 3, 16, 16)
    one, other = (AutoModel.from_pretrained(folder).eval() for folder in (streamformer, tmp_path / "staged"))
    assert torch.equal(one(pixels).last_hidden_state, other(pixels).last_hidden_state)


def test_a_streamformer_keeps_the_video_processor_that_it_has(streamformer, tmp_path):
    StreamFormerVideoProcessor(size={"height": 32, "width": 24}, fps=3.0).save_pretrained(streamformer)
    assert set(stage(streamformer, tmp_path / "staged", "me/tower")) == STREAMFORMER
    saved = read(tmp_path / "staged" / "video_preprocessor_config.json")
    assert (saved["size"], saved["fps"]) == ({"height": 32, "width": 24}, 3.0)


def test_paths_keep_their_last_part(streamchat, tmp_path):
    log = read(streamchat / "training_log.json")
    log["arguments"] |= {"a": ["/home/me/data/x.json", "C:\\Users\\me\\y.json"], "b": {"c": "file:///tmp/z"}}
    log["arguments"] |= {"fine": "runs/final", "slash": "/", "words": "left / right"}
    (streamchat / "training_log.json").write_text(json.dumps(log))
    stage(streamchat, tmp_path / "staged", "me/talker")
    staged = read(tmp_path / "staged" / "training_log.json")
    assert staged["recipe"]["vision_backbone"] == "streamformer" and staged["arguments"]["output_dir"] == "run"
    assert staged["arguments"]["a"] == ["x.json", "y.json"] and staged["arguments"]["b"] == {"c": "z"}
    assert staged["arguments"] | {"fine": "runs/final", "slash": "/", "words": "left / right"} == staged["arguments"]
    assert staged["log"] == log["log"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("token: hf_abcdefghijklmnopqrstuvwxyz01234567", "a Hub token, hf_abcdefg…"),
        ('{"Authorization": "Bearer eyJhbGciOiJIUzI1NiJ9.e30"}', "a bearer token, Bearer eyJ…"),
        ("read from /home/someone/data.json today", "a path of this machine, /home/someone"),
        ("(/tmp/run7/rows.jsonl)", "a path of this machine, /tmp/run7"),
        ("see file:///root/notes", "a path of this machine, file:///root/notes"),
        ('"C:\\\\Users\\\\someone\\\\x"', "a path of this machine, C:"),
    ],
)
def test_what_is_private_is_refused(text, what, tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "b.json").write_text(f"\n{text}\n")
    with pytest.raises(ValueError) as error:
        refuse_private_text(tmp_path)
    assert str(error.value).startswith(f"b.json, line 2, holds {what}") and "remove it first" in str(error.value)
    assert "wxyz01234567" not in str(error.value)


def test_the_home_of_this_machine_is_known_wherever_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/mnt/people/someone"))
    (tmp_path / "a.json").write_text('"from /mnt/people/someone/data"')
    with pytest.raises(ValueError, match="/mnt/people/someone/data"):
        refuse_private_text(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["https://acme.org/home/page", "hf_hub_download(x)", "a/tmp/b", "Bearer {token}", "a home / a root", "/dev/x"],
)
def test_what_only_looks_private_is_not(text, tmp_path):
    (tmp_path / "a.md").write_text(text)
    refuse_private_text(tmp_path)


def test_a_vocabulary_may_hold_any_path(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"/home/user": 1}')
    refuse_private_text(tmp_path)


def test_a_token_in_a_log_stops_the_staging(streamchat, tmp_path):
    log = read(streamchat / "training_log.json")
    log["recipe"]["datasets"].append({"path": "acme/private", "token": "hf_abcdefghijklmnopqrstuvwxyz01234567"})
    (streamchat / "training_log.json").write_text(json.dumps(log))
    with pytest.raises(ValueError, match="training_log.json, line .* holds a Hub token"):
        stage(streamchat, tmp_path / "staged", "me/talker")


def test_parts_that_are_missing_are_named(streamchat, streamformer, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        stage(tmp_path, tmp_path / "staged", "me/x")
    (streamchat / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no processor_config.json"):
        stage(streamchat, tmp_path / "staged", "me/x")
    (streamformer / "model.safetensors").rename(streamformer / "pytorch_model.bin")
    with pytest.raises(OSError, match="model.safetensors"):
        stage(streamformer, tmp_path / "staged", "me/x")


def test_weights_that_do_not_fit_are_not_made_up(streamformer, tmp_path):
    weights = load_file(streamformer / "model.safetensors")
    renamed = {name.replace("layers.1.mlp.fc1", "layers.1.mlp.fc9"): tensor for name, tensor in weights.items()}
    save_file(renamed, streamformer / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not whole: 4 weights are missing or unknown, such as .*layers.1.mlp.fc1"):
        stage(streamformer, tmp_path / "staged", "me/tower")


def test_nothing_is_written_over(streamformer, tmp_path):
    with pytest.raises(FileExistsError, match="is not empty"):
        stage(streamformer, streamformer, "me/tower")
