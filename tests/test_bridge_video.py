"""mp4 files in, multi-turn and proactive sessions out, over bridged tiny models and a tiny activation model."""

import json

import pytest
import torch

import activation_helpers
from bridge_helpers import FAMILIES, tiny_bridge
from cli_helpers import run, table_rows
from live_loop_helpers import live_model, live_processor
from session_helpers import answers, nothing_left_behind
from streamchat_hf import tiny_checkpoint
from streamchat_hf.data.proactive_streamworld import ProactiveStreamWorld
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.streaming.activation_watcher import ActivationWatcher
from streamchat_hf.streaming.events import FrameSeen, ResponseStarted, Silence
from streamchat_hf.streaming.session import StreamingSession
from video_files import real_clip

SOURCES = ("streamworld", "bikes.mp4")
OPTIONS = {"fps": 2.0, "tokens_per_second": 10.0, "max_new_tokens": 3, "do_sample": False}


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    world = ProactiveStreamWorld(1, split="heldout", num_frames=16)[0]["world"]
    path = tmp_path_factory.mktemp("videos") / "world.mp4"
    write_mp4(world, path, fps=10, size=48)
    return {"streamworld": path, "bikes.mp4": real_clip("bikes.mp4")}


@pytest.fixture(scope="module")
def activation():
    processor = activation_helpers.world_processor()
    return activation_helpers.world_model(processor, threshold=0.5), processor


def session(bridge, path, *asks, **options):
    with nothing_left_behind(), StreamingSession(bridge, bridge.processor, str(path), **OPTIONS, **options) as held:
        for ask in asks:
            held.ask(*ask)
        return held, list(held)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_multi_turn(videos, family, source):
    bridge = tiny_bridge(family)
    held, events = session(bridge, videos[source], ("what is it ?", 1.0), ("and now ?", 3.2), ("why ?", None))
    seen = [event.t_sec for event in events if isinstance(event, FrameSeen)]
    assert len(seen) > 6 and seen[:4] == pytest.approx([0.0, 0.5, 1.0, 1.5], abs=0.04)
    said = answers(events)
    assert [answer.question for answer in said] == ["why ?", "what is it ?", "and now ?"]
    assert [answer.start_time for answer in said] == [0.0, 1.0, 3.2]
    for answer in said[1:]:
        newest = max(time for time in seen if time <= answer.start_time)
        assert answer.ids and set(answer.newest_frame_times) == {newest}
    assert [message["role"] for message in held.messages] == ["user", "assistant"] * 3
    assert [frame.t_sec for frame in held.cache.frames] == seen


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("family", FAMILIES)
def test_proactive(videos, activation, family, source):
    model, processor = activation
    bridge = tiny_bridge(family, activation=ActivationWatcher(model, processor))
    held, events = session(bridge, videos[source], ("say the colour once it is a circle .",))
    assert held.policy == "activation"
    started = [event.time for event in events if isinstance(event, ResponseStarted)]
    frames = [event.t_sec for event in events if isinstance(event, FrameSeen)]
    silent = sum(isinstance(event, Silence) for event in events)
    assert started and len(started) + silent == len(frames) and silent
    # A watcher alone in front of the same file, which hears the same answers, says so at the same frames.
    alone, expected = ActivationWatcher(model, processor), []
    alone.ask("say the colour once it is a circle .")
    spoken = iter([message["content"] for message in held.messages if message["role"] == "assistant"])
    for frame in processor.stream(str(videos[source]), fps=2.0):
        if alone.watch([frame]):
            expected.append(frame.t_sec)
            alone.said(next(spoken).strip())
    assert started == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, activation):
    """A bridged model and an activation model as checkpoints of transformers."""
    saved, folder = tiny_bridge(), tmp_path_factory.mktemp("checkpoints")
    saved.model.save_pretrained(folder / "llava")
    saved.processor.tokenizer.save_pretrained(folder / "llava")
    (folder / "llava" / "chat_template.jinja").write_text(saved.processor.chat_template)
    processors = json.dumps({"video_processor": saved.processor.settings})
    (folder / "llava" / "processor_config.json").write_text(processors)
    for part in activation:
        part.save_pretrained(folder / "activation")
    live = live_processor()
    for part in (live_model(live), live):
        part.save_pretrained(folder / "live")
    return folder


def test_chat_bridges_a_checkpoint_of_transformers(videos, folders, tmp_path):
    path = tmp_path / "answer.json"
    options = ("--fps", 2, "--tokens-per-second", 10, "--max-new-tokens", 3, "--model", folders / "llava")
    run("chat", videos["streamworld"], "what is it ?", "--at", 2, *options, "--json", path)
    value = json.loads(path.read_text())
    assert value["question"] == "what is it ?" and value["start_time"] == 2.0 and len(value["tokens"]) == 3
    proactive = (*options, "--activation", folders / "activation", "--policy", "activation", "--json", path)
    output = run("chat", videos["streamworld"], "say the colour once it is a circle .", *proactive).output
    assert "watching for: say the colour once it is a circle ." in output.splitlines()[0]
    value = json.loads(path.read_text())
    assert value["statistics"]["turns"] >= 1 and value["statistics"]["frames_encoded"] == 16
    assert value["question"] == "say the colour once it is a circle ."


@pytest.mark.slow
def test_one_command_compares_models_and_policies(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    path = tmp_path / "result.json"
    models = (tiny_checkpoint(), folders / "live", folders / "llava")
    arguments = ("--activation", folders / "activation", "--worlds", 3, "--json", path)
    rows = table_rows(run("bench", "proactive", *models, *arguments).output)
    policies = {
        tiny_checkpoint().name: ["on-question", "activation"],
        "live": ["streaming-eos", "on-question", "activation"],
        "llava": ["on-question", "activation"],
    }
    assert [row[:2] for row in rows] == [[name, policy] for name, known in policies.items() for policy in known]
    runs = json.loads(path.read_text())["runs"]
    assert len({json.dumps([row["due"] for row in each["rows"]]) for each in runs}) == 1, "the same task for all"
    assert all(each["alarms"] == 3 for each in runs if each["policy"] == "on-question")


def test_chat_says_what_does_not_go_together(videos, folders):
    chat = ("chat", videos["streamworld"], "?", "--model", folders / "llava")
    assert (
        "leave one out" in run(*chat, "--activation", folders / "activation", "--policy", "on-question", code=1).output
    )
    assert "needs an activation model" in run(*chat, "--policy", "activation", code=1).output
    assert "does not say when to answer" in run(*chat, "--activation", folders / "llava", code=1).output
    other = run("chat", videos["streamworld"], "?", "--model", folders / "activation", code=1).output
    assert "a streambridge_activation cannot watch a stream" in " ".join(other.split())
    assert torch.get_default_dtype() == torch.float32
