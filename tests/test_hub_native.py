"""The Hub without a command of ours: what transformers and datasets push by themselves loads without this package."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from trl import ModelConfig

import hub_live_script
import hub_script
import remote_code_script
from hub_double import Fault, HubDouble
from live_loop_helpers import live_model, live_processor
from streamchat_helpers import tiny_model
from streamchat_hf import (
    StreamChatForConditionalGeneration,
    StreamChatProcessor,
    StreamFormerVideoProcessor,
    tiny_checkpoint,
)
from streamchat_hf.training.sft import SFTRecipe, _log
from training_runs import small_model, write_recipe, write_rows

TESTS = Path(__file__).parent
ROOMS = [TESTS.parent / "src" / "streamchat_hf" / room for room in ("modeling", "processing")]
ALL_CODE = {path.name for room in ROOMS for path in room.glob("*.py")} - {"__init__.py"}
CODE = {name for name in ALL_CODE if not name.endswith(("_videollm_online.py", "_activation.py"))}
STREAMCHAT = {
    ".gitattributes",
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "processor_config.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    *CODE,
}
STREAMFORMER = {
    ".gitattributes",
    "README.md",
    "config.json",
    "model.safetensors",
    "video_preprocessor_config.json",
    "configuration_streamformer.py",
    "modeling_streamformer.py",
    "cache_streamformer.py",
    "video_processing_streamformer.py",
    "frames_streamchat.py",
    "sources_streamchat.py",
}
PUSH = """
from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor

StreamChatForConditionalGeneration.from_pretrained({folder!r}).push_to_hub({repo!r})
StreamChatProcessor.from_pretrained({folder!r}).push_to_hub({repo!r})
"""
LIVE_PUSH = PUSH.replace("StreamChat", "VideoLLMOnline")
HIDDEN = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from remote_code_script import NotInstalled
sys.meta_path.insert(0, NotInstalled())
"""
# Of any machine; the slash in front of a name is not one within an address or a relative path.
ABSOLUTE = re.compile(rb"(?<![\w.:/*-])(/(home|root|tmp|work|mnt|var|opt|usr|Users|private)/[\w.-]+|[A-Z]:\\\\?\w)")


@pytest.fixture
def hub():
    with HubDouble() as double:
        yield double


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random model, and one with other weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    for name, seed in (("one", 0), ("other", 1)):
        model, processor = small_model(seed=seed)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    return folder


def start(hub, folder, words, **environment):
    folder.mkdir(exist_ok=True)
    variables = hub.environment(folder / "home", **environment)
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *map(str, words)], env=variables, cwd=folder, **pipes)


def run(hub, folder, *words, fails=False, **environment):
    """A process that takes the double for the Hub; gives what it printed, or what it complained about."""
    process = start(hub, folder, words, **environment)
    said, complained = process.communicate()
    assert (process.returncode != 0) == fails, complained[-3000:]
    return complained if fails else said


def push(hub, folder, source, repo, **more):
    return run(hub, folder, "-c", PUSH.format(folder=str(source), repo=repo), **more)


def load(hub, folder, script, repo, **environment):
    """Loads where the package is not; gives what the script says and the tensors that it leaves."""
    tuned = folder / ("offline" if environment else "online")
    said = run(hub, folder, TESTS / script, repo, tuned, **environment)
    return json.loads(said.split("RESULT ")[1]), load_file(f"{tuned}.safetensors")


def assert_publishable(hub, repo, files, *private, repo_type="model"):
    """A repository is exactly these files, and none tells where it was made, or how to write to it."""
    held = hub.files(repo, repo_type=repo_type)
    assert held.keys() == files
    assert not [name for name in held if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle"))]
    secrets = [hub.token, str(Path.home()), str(TESTS.parent), *map(str, private)]
    for name, content in held.items():
        assert not [secret for secret in secrets if len(secret) > 1 and secret.encode() in content], name
        if not name.endswith((".safetensors", ".parquet")):
            assert not ABSOLUTE.search(content), (name, ABSOLUTE.search(content))


def assert_loads(hub, folder, repo, source):
    """A StreamChat loads from the Hub, and then without it, and says and does what the original did."""
    model = StreamChatForConditionalGeneration.from_pretrained(source).eval()
    processor = StreamChatProcessor.from_pretrained(source)
    expected = [list(part) for part in remote_code_script.stream(model, processor)]
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        asked = len(hub.requests)
        result, logits = load(hub, folder, "remote_code_script.py", repo, **environment)
        assert (len(hub.requests) == asked) == bool(environment)
        assert set(result["answers"]) == set(logits) == {auto.__name__ for auto in remote_code_script.AUTO}
        for auto in result["answers"]:
            assert result["answers"][auto] == expected
            assert torch.equal(logits[auto], remote_code_script.logits(model))
        before, after = result["losses"]
        assert after < before
        assert result["tuned"] == result["tuned_again"]
        assert set(result["files"]) >= CODE


def test_a_tower_that_is_pushed_alone_loads_where_the_package_is_not(hub, tmp_path):
    tower = tiny_model().model.vision_tower
    video_processor = StreamFormerVideoProcessor(size={"height": 16, "width": 16})
    tower.save_pretrained(tmp_path / "tower")
    video_processor.save_pretrained(tmp_path / "tower")
    code = f"""
from streamchat_hf import StreamFormerModel, StreamFormerVideoProcessor

StreamFormerModel.from_pretrained({str(tmp_path / "tower")!r}).push_to_hub("me/tower")
StreamFormerVideoProcessor.from_pretrained({str(tmp_path / "tower")!r}).push_to_hub("me/tower")
"""
    run(hub, tmp_path / "one", "-c", code)
    assert_publishable(hub, "me/tower", STREAMFORMER, tmp_path)
    expected = hub_script.features(tower.eval(), video_processor)
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        asked = len(hub.requests)
        result, features = load(hub, tmp_path / "two", "hub_script.py", "me/tower", **environment)
        assert (len(hub.requests) == asked) == bool(environment)
        assert features.keys() == expected.keys()
        assert all(torch.equal(features[name], expected[name]) for name in expected)
        before, after = result["losses"]
        assert after < before and result["same"]
        assert set(result["files"]) == STREAMFORMER - {".gitattributes", "README.md"}


@pytest.mark.slow
@pytest.mark.parametrize("which", ["random", "shipped"])
def test_a_model_and_a_processor_that_are_pushed_load_where_the_package_is_not(hub, checkpoint, tmp_path, which):
    source = checkpoint / "one" if which == "random" else tiny_checkpoint()
    push(hub, tmp_path / "one", source, f"me/{which}")
    assert_publishable(hub, f"me/{which}", STREAMCHAT, tmp_path, checkpoint)
    assert_loads(hub, tmp_path / "two", f"me/{which}", source)


@pytest.mark.slow
def test_a_model_that_speaks_by_itself_loads_where_the_package_is_not(hub, tmp_path):
    processor = live_processor()
    model = live_model(processor)
    model.save_pretrained(tmp_path / "live")
    processor.save_pretrained(tmp_path / "live")
    run(hub, tmp_path / "one", "-c", LIVE_PUSH.format(folder=str(tmp_path / "live"), repo="me/live"))
    code = {name for name in hub.files("me/live") if name.endswith(".py")}
    assert {name for name in ALL_CODE if name.endswith("_videollm_online.py")} <= code < ALL_CODE
    assert_publishable(hub, "me/live", (STREAMCHAT - CODE) | code, tmp_path)
    responses, expected = hub_live_script.watch(model.eval(), processor)
    assert responses
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):
        asked = len(hub.requests)
        result, tensors = load(hub, tmp_path / "two", "hub_live_script.py", "me/live", **environment)
        assert (len(hub.requests) == asked) == bool(environment)
        assert result["responses"] == [list(response) for response in responses]
        torch.testing.assert_close(tensors["logits"], expected, rtol=1e-5, atol=1e-5)
        assert result["tuned"] == result["again"]
        assert set(result["files"]) >= code


@pytest.mark.slow
def test_a_run_pushes_its_result_and_nothing_else(hub, tmp_path):
    """The checkpoints that it leaves to go on from hold optimizer states and pickles, and stay here."""
    there = {"push_to_hub": True, "hub_model_id": "me/run", "hub_private_repo": True, "hub_token": hub.token}
    recipe = write_recipe(tmp_path, "run", max_steps=2, save_steps=1, **there)
    run(hub, tmp_path / "one", "-m", "streamchat_hf.training", recipe)
    assert list((tmp_path / "run").glob("checkpoint-*/optimizer.pt"))
    assert_publishable(hub, "me/run", STREAMCHAT | {"training_log.json"}, tmp_path)
    assert [commit.message for commit in hub.commits("me/run")] == ["initial commit", "End of training"]
    assert hub.is_private("me/run")
    log = json.loads(hub.files("me/run")["training_log.json"])
    assert log["recipe"]["datasets"][0]["data_files"] == "rows.jsonl" and log["arguments"]["output_dir"] == "run"
    assert [entry["step"] for entry in log["log"] if "loss" in entry] == [1, 2]
    assert_loads(hub, tmp_path / "two", "me/run", tmp_path / "run" / "final")


@pytest.mark.slow
def test_a_run_with_adapters_pushes_the_merged_model(hub, tmp_path):
    lora = {"use_peft": True, "lora_target_modules": "all-linear", "save_strategy": "no"}
    recipe = write_recipe(tmp_path, "lora", max_steps=1, **lora, push_to_hub=True, hub_model_id="me/lora")
    run(hub, tmp_path / "one", "-m", "streamchat_hf.training", recipe)
    assert (tmp_path / "lora" / "adapter" / "adapter_model.safetensors").exists()
    assert_publishable(hub, "me/lora", STREAMCHAT | {"training_log.json"}, tmp_path)
    final = (tmp_path / "lora" / "final" / "model.safetensors").read_bytes()
    assert hub.files("me/lora")["model.safetensors"] == final


@pytest.mark.slow
def test_a_run_does_not_push_its_checkpoints(hub, tmp_path):
    recipe = write_recipe(tmp_path, "all", max_steps=1, push_to_hub=True, hub_model_id="me/all")
    overrides = ("--hub_strategy", "checkpoint")
    complaint = run(hub, tmp_path / "one", "-m", "streamchat_hf.training", recipe, *overrides, fails=True)
    assert 'hub_strategy="checkpoint" would push checkpoints: only "end" is possible' in complaint
    assert ("model", "me/all") not in hub.repos


@pytest.mark.slow
def test_what_the_plain_trainer_pushes_at_the_end_loads_but_holds_a_pickle(hub, checkpoint, tmp_path):
    """As the documentation warns: transformers uploads its arguments, and while it trains no code of the model."""
    code = f"""
from transformers import Trainer, TrainingArguments

import remote_code_script
from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor

model = StreamChatForConditionalGeneration.from_pretrained({str(checkpoint / "one")!r})
arguments = TrainingArguments(
    {str(tmp_path / "plain")!r}, max_steps=1, use_cpu=True, remove_unused_columns=False, report_to="none",
    push_to_hub=True, hub_model_id="me/plain", save_steps=1,
)
trainer = Trainer(
    model, arguments, train_dataset=[0], data_collator=lambda rows: remote_code_script.conversation(model),
    processing_class=StreamChatProcessor.from_pretrained({str(checkpoint / "one")!r}),
)
trainer.train()
trainer.push_to_hub()
"""
    run(hub, tmp_path / "one", "-c", f"import sys\nsys.path.insert(0, {str(TESTS)!r})\n{code}")
    _, on_the_way, end = hub.commits("me/plain")
    assert on_the_way.message == "Training in progress, step 1" and end.message == "End of training"
    assert "modeling_streamchat.py" not in on_the_way.files
    held = hub.files("me/plain")
    assert held.keys() == STREAMCHAT | {"training_args.bin"}
    assert str(tmp_path).encode() in held["training_args.bin"]
    assert_loads(hub, tmp_path / "two", "me/plain", tmp_path / "plain")


def test_a_log_that_is_pushed_tells_no_path_and_no_credentials():
    sources = [
        {"path": "me/data", "token": "hf_secret", "storage_options": {"key": "secret"}},
        {"annotations": ["/data/one/a.jsonl", "b.jsonl"], "media_folder": "/data/one/clips/"},
        {"path": "json", "data_files": {"train": "file:///data/one/*.jsonl"}},
    ]
    arguments = SimpleNamespace(to_dict=lambda: {"output_dir": "/data/runs/one", "eos_token": "<eos>"})
    trainer = SimpleNamespace(args=arguments, state=SimpleNamespace(log_history=[{"step": 1, "loss": 2.0}]))
    log = _log(trainer, SFTRecipe("sft", sources), ModelConfig(model_name_or_path="/data/runs/zero/final"))
    assert log["recipe"]["datasets"] == [
        {"path": "me/data"},
        {"annotations": ["a.jsonl", "b.jsonl"], "media_folder": "clips"},
        {"path": "json", "data_files": {"train": "*.jsonl"}},
    ]
    assert log["arguments"] == {"output_dir": "one", "eos_token": "<eos>"}
    assert log["model"] == {"model_name_or_path": "final"} and log["log"] == trainer.state.log_history
    assert sources[0]["token"] == "hf_secret"  # a run that goes on needs it


@pytest.mark.slow
def test_weights_and_code_of_an_earlier_revision_stay_within_reach(hub, checkpoint, tmp_path):
    first, then = str(checkpoint / "one"), str(checkpoint / "other")
    code = f"""
{PUSH.format(folder=first, repo="me/versions")}
from huggingface_hub import HfApi

HfApi().create_tag("me/versions", tag="v1")
{PUSH.format(folder=then, repo="me/versions")}
for name in ("modeling_streamchat.py", "processing_streamchat.py"):
    HfApi().upload_file(path_or_fileobj=b"raise RuntimeError('newer code')", path_in_repo=name, repo_id="me/versions")
"""
    run(hub, tmp_path / "one", "-c", code)
    code = f"""{HIDDEN}
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

from remote_code_script import logits

def weights(**revisions):
    AutoProcessor.from_pretrained("me/versions", trust_remote_code=True, **revisions)
    return logits(AutoModel.from_pretrained("me/versions", trust_remote_code=True, **revisions).eval())

try:
    weights()
except RuntimeError as error:
    assert str(error) == "newer code"
else:
    raise SystemExit("the code of main was not run")
save_file({{"v1": weights(revision="v1"), "main": weights(code_revision="v1")}}, "logits.safetensors")
"""
    run(hub, tmp_path / "two", "-c", code)
    found = load_file(tmp_path / "two" / "logits.safetensors")
    for revision, folder in (("v1", first), ("main", then)):
        model = StreamChatForConditionalGeneration.from_pretrained(folder).eval()
        assert torch.equal(found[revision], remote_code_script.logits(model))
    assert not torch.equal(found["v1"], found["main"])


@pytest.mark.slow
def test_a_push_that_breaks_off_changes_nothing_and_completes_when_repeated(hub, checkpoint, tmp_path):
    push(hub, tmp_path / "one", checkpoint / "one", "me/broken")
    before, commits = hub.files("me/broken"), hub.commits("me/broken")
    words = ["-c", PUSH.format(folder=str(checkpoint / "other"), repo="me/broken")]
    # Killed in the middle of the weights.
    process = start(hub, tmp_path / "one", words)
    hub.faults.append(Fault("PUT", "/upload/", status=None, then=process.kill))
    process.communicate()
    assert process.returncode < 0 and not hub.faults
    assert hub.files("me/broken") == before and hub.commits("me/broken") == commits
    # All is uploaded, and the connection drops at the commit.
    hub.faults.append(Fault("POST", "/api/models/me/broken/commit/", status=None))
    complaint = run(hub, tmp_path / "one", *words, fails=True)
    assert "RemoteProtocolError" in complaint or "NetworkError" in complaint or "ReadError" in complaint
    assert not hub.faults
    assert hub.files("me/broken") == before and hub.commits("me/broken") == commits
    run(hub, tmp_path / "one", *words)
    held = hub.files("me/broken")
    assert held.keys() == before.keys()
    assert held["model.safetensors"] == (checkpoint / "other" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_wrong_token_is_one_clear_error_and_a_busy_server_none(hub, checkpoint, tmp_path):
    complaint = push(hub, tmp_path / "one", checkpoint / "one", "me/refused", fails=True, HF_TOKEN="hf_wrong")
    last = complaint[complaint.rindex("HfHubHTTPError") :]
    assert "401" in last and "Invalid credentials in Authorization header" in last
    assert ("model", "me/refused") not in hub.repos
    for method, path in (("POST", "/preupload/"), ("POST", "objects/batch"), ("PUT", "/upload/"), ("POST", "/verify")):
        hub.faults.append(Fault(method, path, status=503))
    push(hub, tmp_path / "one", checkpoint / "one", "me/patient")
    assert not hub.faults and hub.files("me/patient").keys() == STREAMCHAT


@pytest.mark.slow
def test_rows_that_are_pushed_load_and_stream_where_the_package_is_not(hub, tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    path = write_rows(media, 10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    dense = [row for row in lines if row["kind"] == "dense"]
    items = [{"id": row["id"], "video": row["media"], "turns": row["turns"]} for row in dense]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    code = f"""
import json, os
from streamchat_hf.data.dense_instruction import load_dense_instruction

rows = load_dense_instruction("jsonl", annotations={str(path)!r}, cache_dir={str(tmp_path / "cache")!r})
rows = rows.map(lambda row: {{key: os.path.relpath(row[key], {str(media)!r}) for key in ("media", "source")}})
rows.push_to_hub("me/rows")
print("RESULT", json.dumps(rows.to_list()))
"""
    pushed = json.loads(run(hub, tmp_path / "one", "-c", code).split("RESULT ")[1])
    assert [row["id"] for row in pushed] == [item["id"] for item in items]
    assert {row["media"] for row in pushed} == {"clip.mp4"}
    assert all(row["source"].startswith("rows.jsonl:") for row in pushed)
    code = f"""{HIDDEN}
import json
from datasets import load_dataset

whole = load_dataset("me/rows", split="train")
streamed = load_dataset("me/rows", split="train", streaming=True)
print("RESULT", json.dumps([whole.to_list(), list(streamed)]))
"""
    whole, streamed = json.loads(run(hub, tmp_path / "two", "-c", code).split("RESULT ")[1])
    assert whole == streamed == pushed
    files = {".gitattributes", "README.md", "data/train-00000-of-00001.parquet"}
    assert_publishable(hub, "me/rows", files, tmp_path, repo_type="dataset")
