"""What the documentation says works: its Python runs, its commands exist, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from streamchat_cli.main import app
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(page.read_text()) if kind == language]


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("streamchat ")]


def pages_with(found) -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if found(page)]


@pytest.mark.parametrize("page", pages_with(lambda page: blocks(page, "python")))
def test_python_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_mp4(World.sample(57, "heldout", duration=8.0), "clip.mp4")
    names: dict = {"__name__": page.stem}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


@pytest.mark.parametrize("page", pages_with(commands))
def test_commands_exist_with_their_options(page):
    for _, *words in commands(page):
        command = get_command(app)
        context = typer.Context(command)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        command.make_context("streamchat", words, parent=context)  # raises on what it does not know


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    assert [link for link in links if not link.startswith("https://") and not (page.parent / link).exists()] == []
