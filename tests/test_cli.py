import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from fake_talker import FakeProcessor, FakeTalker
from streamchat_hf import cli
from streamchat_hf.streaming.words import SpokenWord

SCRIPT = "a red circle , left now blue . <eos>"
runner = CliRunner()


@pytest.fixture
def fake(monkeypatch):
    processor = FakeProcessor()
    talker = FakeTalker(processor.tokenizer, SCRIPT)
    loaded = []
    monkeypatch.setattr(cli, "_load", lambda *args: loaded.append(args) or (talker, processor))
    processor.loaded = loaded
    return processor


def run(*args: object, code: int = 0):
    result = runner.invoke(cli.app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def test_help_lists_the_commands():
    output = run("--help").output
    assert all(name in output for name in ("demo", "chat", "train", "eval", "convert"))
    assert "streamworld" in run("eval", "--help").output
    assert "streamformer" in run("convert", "--help").output


def test_chat_shows_words_with_stream_time_and_frame_age(fake, tmp_path):
    path = tmp_path / "answer.json"
    question = "what do you see ?"
    output = run(
        *("chat", "clip.mp4", question, "--at", 2, "--fps", 1, "--tokens-per-second", 2, "--json", path)
    ).output
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert rows[:2] == [["2.00 s", "a", "2.00 s", "0.00 s"], ["2.50 s", "red", "2.00 s", "0.50 s"]]
    assert [row[1] for row in rows] == SCRIPT.split()[:-1]
    assert "a red circle , left now blue ." in output.splitlines()
    value = json.loads(path.read_text())
    assert (value["answer"], value["question"]) == ("a red circle , left now blue .", question)
    assert value["words"][1] == {"text": "red", "time": 2.5, "newest_frame_time": 2.0, "frame_age": 0.5}
    assert fake.closed == 1


def test_the_newest_words_stay_on_a_small_screen_and_all_stand_there_in_the_end():
    screen = io.StringIO()
    words = [SpokenWord(f"word{i}", i / 2, i / 2) for i in range(20)]
    with cli._live_table(Console(file=screen, force_terminal=True, height=12, width=80), "?", 0.0) as show:
        for n in range(1, 21):
            before = screen.tell()
            show(words[:n])
            assert f"word{n - 1} " in screen.getvalue()[before:]
            assert "word0 " in screen.getvalue()[before:] or n > 5
        before = screen.tell()
    assert all(f"{word.text} " in screen.getvalue()[before:] for word in words)


def test_chat_draws_the_frames_it_saw(fake, tmp_path):
    path = tmp_path / "strip.png"
    output = run("chat", "clip", "?", "--fps", 1, "--tokens-per-second", 2, "--filmstrip", path).output
    assert f"film strip: {path}" in output.replace("\n", "")
    # Frame 3 as it was before it was normalised: -0.7 · 0.5 + 0.5 = 0.15 of 255.
    colours = {colour for _, colour in Image.open(path).getcolors(1 << 20)}
    assert (38, 38, 38) in colours


def test_the_film_strip_of_a_chat_has_the_frozen_answer_beneath(fake, tmp_path, monkeypatch):
    seen, ask = [], cli.ask

    def spy(model, processor, question, frames, **options):
        frames = list(frames)
        seen.append([frame[0] for frame in frames])
        return ask(model, processor, question, frames, **options)

    monkeypatch.setattr(cli, "ask", spy)
    flags = ("--at", 3, "--fps", 1, "--tokens-per-second", 2)
    assert "frozen:" not in run("chat", "clip", "?", *flags).output and len(seen) == 1
    output = run("chat", "clip", "?", *flags, "--filmstrip", tmp_path / "strip.png").output
    assert "frozen:" in output
    assert seen[1:] == [[float(t) for t in range(10)], [0.0, 1.0, 2.0, 3.0]]


def test_chat_cuts_and_passes_the_model_on(fake):
    flags = ("--tokens-per-second", 2, "--max-new-tokens", 2, "--model", "me/x", "--trust-remote-code")
    assert "a red" in run("chat", "clip", "?", *flags).output.splitlines()
    assert fake.loaded == [("me/x", True)]


@pytest.mark.parametrize("model", [None, "me/x"])
def test_remote_code_runs_only_when_asked_for(model, monkeypatch):
    seen = []

    class Auto:
        @classmethod
        def from_pretrained(cls, path, trust_remote_code):
            seen.append((path, trust_remote_code))
            return cls()

        def eval(self):
            return self

    monkeypatch.setattr(cli, "AutoModel", Auto)
    monkeypatch.setattr(cli, "AutoProcessor", Auto)
    cli._load(model, False)
    assert seen == [(model or str(cli.tiny_checkpoint()), False)] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("chat", "nowhere.mp4", "?"), "nowhere.mp4: no such video (second line)"),
        (("demo", "--duration", "0.5"), "at least 1 second"),
        (("chat", "clip", "?", "--filmstrip", "/no/such/folder/strip.png"), "/no/such/folder/strip.png"),
    ],
)
def test_errors_are_one_line(fake, args, message):
    result = run(*args, code=1)
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert message in result.stderr and "Traceback" not in result.output


def test_a_defect_keeps_its_traceback(fake, monkeypatch):
    monkeypatch.setattr(cli, "ask", lambda *args, **kwargs: {}["typo"])
    result = runner.invoke(cli.app, ["chat", "clip", "?"])
    assert isinstance(result.exception, KeyError)


def test_demo_compares_watching_with_frozen(fake, tmp_path):
    strip, path = tmp_path / "strip.png", tmp_path / "demo.json"
    output = run("demo", "--out", strip, "--json", path, "--at", 1, "--duration", 5).output
    assert Image.open(strip).format == "PNG" and str(strip) in output.replace("\n", "")
    value = json.loads(path.read_text())
    assert max(token["newest_frame_time"] for token in value["live"]["tokens"]) > 1.0
    assert {token["newest_frame_time"] for token in value["frozen"]["tokens"]} == {1.0}
    # The clip ends after 5 seconds, and so does the answer.
    assert len(value["live"]["tokens"]) == min(8, len(SCRIPT.split()))
    assert "frozen:" in output and "watching on:" in output
    assert fake.closed == 2


def test_eval_prints_its_table_and_writes_everything(fake, tmp_path, monkeypatch):
    result = {
        "state_accuracy": {"fresh": 0.9, "frozen": 0.25, "grey": 0.1, "oracle": 0.3, "chance": 0.2},
        "by_kind": {"colour": {"fresh": 1.0, "frozen": 0.5, "grey": None, "chance": 0.25, "n": 4}},
        "n": 8,
        "rows": [{"word": "red"}],
    }
    calls = []
    module = type(sys)("streamchat_hf.evaluation.streamworld")
    module.evaluate = lambda *args, **kwargs: calls.append(kwargs) or result
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / "eval.json"
    output = run("eval", "streamworld", "--seed", 3, "--split", "seen", "--clips", 2, "--json", path).output
    assert calls == [{"seed": 3, "split": "seen", "clips": 2, "progress": False}]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
    assert rows == [["colour", "100.0", "50.0", "–", "25.0", "4"], ["all", "90.0", "25.0", "10.0", "20.0", "8"]]
    assert json.loads(path.read_text()) == result


def test_train_runs_the_recipe(tmp_path, monkeypatch):
    calls = []
    module = type(sys)("streamchat_hf.training.streamworld")
    module.train = lambda *args, **kwargs: calls.append((*args, kwargs)) or tmp_path / "final"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    output = run("train", "recipe.yaml", "--output_dir", tmp_path, "--no-resume").output
    assert calls == [(Path("recipe.yaml"), tmp_path, {"resume": False})]
    assert output.replace("\n", "") == f"written: {tmp_path / 'final'}"


def test_convert_calls_the_converter(tmp_path, monkeypatch):
    calls = []
    module = type(sys)("streamchat_hf.convert.streamformer")
    module.convert_streamformer = lambda *args: calls.append(args)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    run("convert", "streamformer", "published", tmp_path)
    assert calls == [("published", tmp_path)]


def test_without_the_extra_one_line_says_which_to_install():
    code = "import sys; sys.modules['typer'] = None; import streamchat_hf.cli"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr == "the streamchat command needs typer: pip install 'streamchat-hf[cli]'\n"


@pytest.mark.slow
def test_demo_as_a_newcomer_runs_it(tmp_path):
    command = [sys.executable, "-c", "from streamchat_hf.cli import app; app()", "demo", "--json", "demo.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (result.returncode, result.stderr) == (0, "")
    assert Image.open(tmp_path / "filmstrip.png").width > 1000
    value = json.loads((tmp_path / "demo.json").read_text())
    assert value["live"]["answer"] != value["frozen"]["answer"]
