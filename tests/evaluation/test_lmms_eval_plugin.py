"""The plugin against a double of the interface of lmms-eval, and against lmms-eval where it is installed."""

import importlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4

PLUGIN = "streamchat_hf.evaluation.lmms_eval_plugin"
IS_INSTALLED = importlib.util.find_spec("lmms_eval") is not None


class Lmms:
    """What a model inherits."""

    is_simple = True

    def __init__(self):
        self.task_dict, self.rank = {}, 0
        self.cache_hook = SimpleNamespace(add_partial=lambda *_: None)


@dataclass(frozen=True)
class ModelManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class ChatMessages:
    """Messages whose parts have a type, and then a text, or a URL and perhaps times."""

    def __init__(self, messages):
        blank = {"start_time": None, "end_time": None}
        self.messages = [
            SimpleNamespace(role=one["role"], content=[SimpleNamespace(**blank | part) for part in one["content"]])
            for one in messages
        ]


@pytest.fixture
def plugin(monkeypatch):
    """The module as lmms-eval imports it."""
    names = {
        "lmms_eval.api.model": {"lmms": Lmms},
        "lmms_eval.models.registry_v2": {"ModelManifest": ModelManifest},
        "lmms_eval.protocol": {"ChatMessages": ChatMessages},
    }
    for path, things in names.items():
        parts = path.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(path)
        module.__dict__.update(things)
        monkeypatch.setitem(sys.modules, path, module)
    monkeypatch.delitem(sys.modules, PLUGIN, raising=False)
    yield importlib.import_module(PLUGIN)
    sys.modules.pop(PLUGIN, None)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_mp4(World.sample(57, "heldout", duration=4.0), path)
    return str(path)


def user(*parts):
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def video(path, **times):
    return {"type": "video", "url": path, **times}


def ask(model, *messages, **options):
    """A request of one task, as lmms-eval makes it."""
    model.task_dict = {"task": {"test": [{"messages": list(messages)}]}}
    arguments = ("context", lambda doc: doc["messages"], {"max_new_tokens": 8, **options}, 0, "task", "test")
    (answer,) = model.generate_until([SimpleNamespace(args=arguments)])
    return answer


@pytest.fixture
def seen(plugin, monkeypatch):
    """What each session is given: frames, options, and the question with its time."""
    sessions = []
    module = importlib.import_module("streamchat_hf.streaming.session")
    real = module.StreamingSession

    class Session(real):
        def __init__(self, model, processor, frames, **options):
            sessions.append({"frames": list(frames), **options})
            super().__init__(model, processor, frames, **options | {"system": None})  # the tiny model knows none

        def ask(self, question, at=None, stands=False):
            sessions[-1] |= {"question": question, "at": at}
            super().ask(question, at, stands)

    monkeypatch.setattr(module, "StreamingSession", Session)
    return sessions


def test_lmms_eval_finds_the_class_by_its_name(plugin):
    manifest = plugin.manifest()
    module, name = manifest.chat_class_path.rsplit(".", 1)
    assert (manifest.model_id, module) == ("streamchat", PLUGIN)
    found = getattr(plugin, name)
    assert issubclass(found, Lmms) and found.is_simple is False


def test_the_entry_point_leads_to_the_manifest():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["lmms_eval.models"] == {"streamchat": f"{PLUGIN}:manifest"}
    assert "lmms-eval" in project["optional-dependencies"]


def test_a_video_is_asked_about_when_it_has_been_seen(plugin, seen, clip):
    model = plugin.StreamingModel(max_frames=6, batch_size="1")
    answer = ask(model, user(video(clip), "What colour is the ball?"))
    (session,) = seen
    times = [t_sec for t_sec, _ in session["frames"]]
    assert times == pytest.approx([k * 4.0 / 6 for k in range(6)], abs=0.11)
    assert (session["question"], session["at"]) == ("What colour is the ball?", times[-1])
    assert session["max_new_tokens"] == 8 and session["do_sample"] is False
    assert isinstance(answer, str) and answer and answer == ask(model, user(video(clip), "What colour is the ball?"))


def test_texts_are_put_together_and_the_system_prompt_is_kept(plugin, seen, clip):
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    ask(plugin.StreamingModel(max_frames=2), system, user("Look:", video(clip)), user("what now?"))
    assert (seen[0]["system"], seen[0]["question"]) == ("Be brief.", "Look:\nwhat now?")


def test_a_part_of_a_video(plugin, seen, clip):
    ask(plugin.StreamingModel(max_frames=4), user(video(clip, start_time=2.0, end_time=4.0), "what now?"))
    assert [t_sec for t_sec, _ in seen[0]["frames"]] == pytest.approx([2.0, 2.5, 3.0, 3.5], abs=0.11)


def test_images_are_frames_of_a_second_each_and_nothing_is_no_frame(plugin, seen):
    images = [{"type": "image", "url": Image.new("RGB", (32, 32), colour)} for colour in ("red", "blue")]
    model = plugin.StreamingModel()
    assert ask(model, user(*images, "what now?")) and ask(model, user("what now?"))
    assert [t_sec for t_sec, _ in seen[0]["frames"]] == [0.0, 1.0]
    assert (seen[1]["frames"], seen[1]["at"]) == ([], None)


def test_an_answer_ends_before_the_stopping_text(plugin, clip):
    model = plugin.StreamingModel(max_frames=2)
    whole = ask(model, user(video(clip), "what colour ?"))
    stop = whole.split()[1]
    assert ask(model, user(video(clip), "what colour ?"), until=["", stop]) == whole.split(stop)[0].strip()
    assert ask(model, user(video(clip), "what colour ?"), until=stop) == whole.split(stop)[0].strip()


def test_a_temperature_samples(plugin, seen, clip):
    ask(plugin.StreamingModel(max_frames=2), user(video(clip), "what now?"), temperature=0.7)
    assert seen[0]["do_sample"] is True and seen[0]["temperature"] == 0.7


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user(video("a.mp4"), video("b.mp4"))], "one video or images can be looked at, not video, video"),
        ([user({"type": "audio", "url": "a.wav"})], "not audio"),
        ([{"role": "assistant", "content": []}], "examples before the question are not supported"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(plugin, messages, message):
    with pytest.raises(ValueError, match=message):
        ask(plugin.StreamingModel(), *messages)


def test_what_a_session_cannot_do_is_refused(plugin):
    model = plugin.StreamingModel()
    with pytest.raises(NotImplementedError, match="streamchat eval ovobench"):
        model.generate_until_multi_round([])
    with pytest.raises(NotImplementedError, match="a session has no likelihoods"):
        model.loglikelihood([])
    with pytest.raises(ValueError, match="give batch_size 1"):
        plugin.StreamingModel(batch_size=2)
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        plugin.StreamingModel(max_frames=0)


TASK = """\
task: streamworld_clip
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function functions.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function functions.process_results
generation_kwargs: {{max_new_tokens: 8}}
metric_list: [{{metric: words, aggregation: mean, higher_is_better: true}}]
"""
FUNCTIONS = """
def doc_to_visual(doc):
    return [doc["video"]]

def process_results(doc, results):
    return {"words": len(results[0].split())}
"""


@pytest.mark.slow
@pytest.mark.skipif(not IS_INSTALLED, reason="lmms-eval is not installed: make test-lmms-eval")
def test_lmms_eval_runs_a_task(tmp_path, clip):
    data = tmp_path / "questions.json"
    data.write_text(json.dumps([{"question": "what colour ?", "answer": "red", "video": clip}] * 2))
    (tmp_path / "streamworld_clip.yaml").write_text(TASK.format(data=data))
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    command = [sys.executable, "-m", "lmms_eval", "--model", "streamchat", "--model_args", "max_frames=4"]
    options = ["--tasks", "streamworld_clip", "--include_path", tmp_path, "--batch_size", "1"]
    where = ["--output_path", tmp_path / "out", "--verbosity", "ERROR"]
    done = subprocess.run([*command, *options, *where], capture_output=True, text=True, cwd=tmp_path, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    score = json.loads(results.read_text())["results"]["streamworld_clip"]
    assert next(value for name, value in score.items() if name.startswith("words,")) > 0
