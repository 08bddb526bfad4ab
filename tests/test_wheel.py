"""The wheel alone, in an environment of its own and outside the tree.

The dependencies are those of the environment that runs the tests: they come in by a path, without the link to the tree
that an editable install leaves beside them.
"""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "streamchat_hf"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    flags = ("--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *flags, ROOT], check=True)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """Runs a script of the environment in an empty folder; gives what it wrote."""
    folder = tmp_path_factory.mktemp("elsewhere")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel], check=True)
    purelib = subprocess.check_output(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    (Path(purelib.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "work").mkdir()

    def run(*words: object) -> str:
        done = subprocess.run(
            [python.with_name(str(words[0])), *map(str, words[1:])],
            cwd=folder / "work",
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    where = run("python", "-c", "import streamchat_hf, streamchat_cli; print(streamchat_hf.__file__)")
    assert where.startswith(str(folder))
    run.folder = folder / "work"
    return run


def test_it_carries_what_is_no_code(wheel):
    """As files: the links of the checkpoint's code to the package's own end here."""
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = {
        f"streamchat_hf/{path.relative_to(root)}"
        for root, folder in ((ROOT, "recipes"), (ROOT, "model_cards"), (PACKAGE, "assets"), (PACKAGE, "metrics"))
        for path in (root / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert shipped | {"streamchat_hf/py.typed", "streamchat_cli/main.py"} <= names
    assert not [name for name in names if name.startswith(("tests", "docs")) or name.endswith((".pyc", ".mp4"))]
    code = zipfile.ZipFile(wheel).read("streamchat_hf/assets/tiny-streamchat/modeling_streamchat.py")
    assert code == (PACKAGE / "modeling" / "modeling_streamchat.py").read_bytes()


def test_the_demo_runs(run):
    run("streamchat", "demo", "--json", "demo.json")
    said = json.loads((run.folder / "demo.json").read_text())
    assert said["live"]["answer"] != said["frozen"]["answer"]
    assert (run.folder / "filmstrip.png").is_file()


def test_a_tiny_recipe_trains(run):
    recipe = yaml.safe_load((ROOT / "recipes/streamchat/tiny_stage1.yaml").read_text())
    source = yaml.safe_dump([{"name": "streamworld", "clips": 4, "seed": 1}], default_flow_style=True)
    small = {"max_steps": 1, "eval_strategy": "no", "eval_clips": 0, "global_batch_size": 2}
    words = [word for key, value in small.items() for word in (f"--{key}", value)]
    run(
        "streamchat",
        "train",
        "streamchat/tiny_stage1.yaml",
        "--per_device_train_batch_size",
        2,
        "--datasets",
        source,
        *words,
    )
    assert (run.folder / recipe["output_dir"] / "final" / "model.safetensors").is_file()


def test_a_push_is_tried(run):
    output = run("streamchat", "push", "me/x", "--dry-run")
    assert "model.safetensors" in output


def test_the_metric_is_there(run):
    code = "from streamchat_hf import metrics; m = metrics.load('streaming_score'); "
    code += "fact = {'slot': 'colour', 'value': 'red', 'start': 0.0, 'end': 1.0}; "
    code += "print(m.compute(predictions=[[{'word': 'red', 'time': 0.5}]], references=[[fact]])['score'])"
    assert run("python", "-c", code).strip() == "1.0"
