import subprocess
import sys

from cli_helpers import run


def test_help_lists_the_commands():
    output = run("--help").output
    assert all(name in output for name in ("demo", "chat", "replay", "train", "eval", "convert"))
    assert "streamworld" in run("eval", "--help").output
    assert "streamformer" in run("convert", "--help").output


def test_help_loads_nothing_of_what_takes_long():
    code = "from streamchat_cli.main import app; import sys; print({'torch', 'streamchat_hf'} & {*sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout == "set()\n"


def test_without_the_extra_one_line_says_which_to_install():
    code = "import sys; sys.modules['typer'] = None; import streamchat_cli.main"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr == "the streamchat command needs typer: pip install 'streamchat-hf[cli]'\n"
