import json
import re
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from streamchat_hf import tiny_checkpoint
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.hub.card import render_card, weight_facts

FILES = ("config.json", "processor_config.json", "model.safetensors", "eval.json", "training_log.json")


@pytest.fixture
def tiny(tmp_path):
    """The files of the shipped checkpoint that a card is made from."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in FILES:
        shutil.copy(tiny_checkpoint() / name, folder)
    return folder


def change(path, *keys, to):
    values = part = json.loads(path.read_text())
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = to
    path.write_text(json.dumps(values))


def test_metadata_say_what_the_files_say(tiny):
    card = render_card(tiny, "acme/talker", "apache-2.0", ["acme/qwen", "acme/eye"])
    data = ModelCard(card.content).data
    scores = json.loads((tiny / "eval.json").read_text())["state_accuracy"]
    assert data.license == "apache-2.0" and data.base_model == ["acme/qwen", "acme/eye"]
    assert data.library_name == "transformers" and data.pipeline_tag == "video-text-to-text"
    assert data.tags == ["video", "streaming", "streamchat", "streamworld"] and data.model_name == "talker"
    values = [result.metric_value for result in data.eval_results if result.metric_type == "accuracy"]
    assert values == [round(scores[viewer], 4) for viewer in ("fresh", "frozen", "grey")]
    assert 'AutoModel.from_pretrained("acme/talker", trust_remote_code=True)' in card.content


@pytest.mark.parametrize(
    ("name", "keys", "value", "said"),
    [
        ("config.json", ["visual_window"], 31, "the newest 31 frames"),
        ("config.json", ["cross_attention_layers"], [1], "cross-attention at layers 1;"),
        ("config.json", ["text_config", "vocab_size"], 4321, "It knows the 4321 words"),
        ("config.json", ["dtype"], "bfloat16", "parameters, bfloat16."),
        (
            "processor_config.json",
            ["video_processor", "size"],
            {"height": 30, "width": 50},
            "frames of 30 x 50 pixels",
        ),
        ("eval.json", ["by_kind", "count", "fresh"], 0.123, "| count | 12.3 % |"),
        ("training_log.json", ["commit"], "0123abc", "at commit `0123abc`"),
        ("training_log.json", ["recipe", "seed"], 77, "seed 77"),
    ],
)
def test_every_number_is_from_a_file(tiny, name, keys, value, said):
    assert said not in render_card(tiny).content
    change(tiny / name, *keys, to=value)
    assert said in render_card(tiny).content


def test_a_videollm_online_has_a_card_of_its_own(videollm_online):
    card = render_card(videollm_online, "me/watcher")
    assert card.data.tags == ["video", "streaming", "videollm_online", "streamworld"]
    assert "| 1.23 | 0.25 s | 67.9 % |" in card.content and "its patches, averaged to 1 x 2" in card.content
    (videollm_online / "training_log.json").unlink()
    assert "Nothing has been measured" in render_card(videollm_online).content


def test_parameters_are_counted_in_the_headers_of_all_shards(streamchat):
    from streamchat_hf import StreamChatForConditionalGeneration

    model = StreamChatForConditionalGeneration.from_pretrained(streamchat)
    (streamchat / "model.safetensors").unlink()
    model.save_pretrained(streamchat, max_shard_size="40KB")
    assert len(list(streamchat.glob("*.safetensors"))) > 1
    assert weight_facts(streamchat) == (sum(p.numel() for p in model.parameters()), ["float32"])
    assert f"{model.num_parameters():,} parameters, float32." in render_card(streamchat).content


@pytest.mark.parametrize("missing", FILES[1:])
def test_a_file_that_is_not_there_leaves_no_trace(tiny, missing):
    (tiny / missing).unlink()
    text = render_card(tiny).content
    said = {
        "processor_config.json": [],
        "model.safetensors": ["parameters"],
        "eval.json": ["## Results", "model-index", "eval streamworld"],
        "training_log.json": ["## Training", "streamchat train", "learned StreamWorld"],
    }
    assert not [words for words in said[missing] if words in text]
    assert not re.search(r"None|Undefined|\{\{|\}\}|TODO|\[More", text)


def test_a_configuration_alone_makes_a_card(tiny):
    for name in FILES[1:]:
        (tiny / name).unlink()
    text = render_card(tiny).content
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["Use", "The frame behind every word", "Limits", "Papers"]
    assert "Nothing has been measured" in text and "48 x 48 pixels" in text and "license" not in text


def test_base_models_and_datasets_come_from_the_log(streamchat):
    data = render_card(streamchat).data
    assert data.base_model == ["Qwen/Qwen2-7B-Instruct"] and data.datasets == ["acme/talks"]
    assert "/data/secret" not in render_card(streamchat).content
    assert render_card(streamchat, base_models=["acme/mine"]).data.base_model == ["acme/mine"]


def test_the_hub_accepts_them(tiny, streamchat, streamformer, hub):
    for folder in (tiny, streamchat, streamformer):
        render_card(folder, "me/model", "apache-2.0").validate()
    assert [request.status for request in hub.requests] == [200, 200, 200]


@pytest.mark.parametrize("kind", ["streamchat", "streamformer"])
def test_the_python_of_a_card_runs(kind, tmp_path, monkeypatch, request):
    if kind == "streamformer":
        from streamchat_hf import StreamFormerVideoProcessor

        folder = request.getfixturevalue("streamformer")
        StreamFormerVideoProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    else:
        folder = tiny_checkpoint()
    monkeypatch.chdir(tmp_path)
    write_mp4(World.sample(57, "heldout", duration=4.0), "clip.mp4")
    text = render_card(folder).content.replace(f"path/to/{folder.name}", str(folder))
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, kind, "exec"), names)
    if kind == "streamchat":
        assert len(names["tokens"]) == names["output"].frame_age.shape[1] > 4
    else:
        assert torch.allclose(names["output"].last_hidden_state, names["features"][:, -1:], atol=1e-4)


def test_a_streamformer_that_looks_both_ways_is_not_said_to_stream(streamformer):
    assert "frame by frame" in " ".join(render_card(streamformer).content.split())
    change(streamformer / "config.json", "enable_causal_temporal", to=False)
    text = " ".join(render_card(streamformer).content.split())
    assert "over all frames of a clip at once" in text and "frame by frame" not in text


def test_other_folders_are_refused(tiny):
    change(tiny / "config.json", "model_type", to="qwen2")
    with pytest.raises(ValueError, match="a model of type 'qwen2', not streamchat or streamformer"):
        render_card(tiny)
    (tiny / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json is no JSON"):
        render_card(tiny)
    (tiny / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="is no checkpoint: it has no config.json"):
        render_card(tiny)
