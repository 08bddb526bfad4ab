import dataclasses
import json

import pytest

from cli_helpers import run, table_rows
from streamchat_cli import publish
from streamchat_hf import tiny_checkpoint
from streamchat_hf.hub import push as hub_push
from streamchat_hf.hub.push import PushReport

REPORT = PushReport(
    repo_id="me/x",
    branch="main",
    files={"config.json": 1200, "model.safetensors": 34567},
    card="# A card",
    exists=True,
    private=False,
    added=("config.json",),
    changed=("model.safetensors",),
    deleted=("old.py",),
    kept=("notes/mine.txt",),
)


@pytest.fixture
def calls(monkeypatch):
    """What the library was asked to do; it does as it is told."""
    calls = []

    def push(*args, confirm, **options):
        calls.append((args, options))
        if options["dry_run"] or not confirm(REPORT):
            return REPORT
        return dataclasses.replace(REPORT, commit="abc", url="https://hub/me/x/commit/abc")

    monkeypatch.setattr(hub_push, "push", push)
    monkeypatch.setattr(publish.os, "isatty", lambda _: True)
    return calls


@pytest.mark.parametrize(("typed", "pushed"), [("y\n", True), ("n\n", False)])
def test_one_sees_what_would_change_and_is_asked(calls, typed, pushed):
    output = run("push", "me/x", typed=typed).output
    rows = {(cells[0], cells[2]) for cells in table_rows(output)}
    assert {("config.json", "new"), ("old.py", "deleted"), ("notes/mine.txt", "not ours")} <= rows
    assert "34,567" in output and "# A card" in output and "the repository is public already, and stays so" in output
    assert ("pushed: https://hub/me/x/commit/abc" in output) == pushed
    assert ("nothing was pushed" in output) != pushed


def test_what_is_asked_for_is_passed_on(calls, tmp_path):
    path = tmp_path / "push.json"
    models = ("--base-model", "a/b", "--base-model", "c/d")
    flags = ("--public", "--license", "mit", "--revision", "next", "--message", "better", "--yes", "--json", path)
    output = run("push", "me/x", "--model", tmp_path, *models, *flags).output
    options = {"private": False, "dry_run": False, "license": "mit", "base_models": ["a/b", "c/d"]}
    assert calls == [(("me/x", tmp_path), {**options, "revision": "next", "message": "better"})]
    assert "push this" not in output and json.loads(path.read_text())["commit"] == "abc"


def test_a_dry_run_shows_and_stops(calls):
    output = run("push", "me/x", "--dry-run").output
    assert "deleted" in output and "nothing was pushed" in output
    [((_, model), options)] = calls
    assert model == tiny_checkpoint() and options["dry_run"] and options["private"]


def test_nobody_is_asked_where_nobody_is(calls, monkeypatch):
    monkeypatch.setattr(publish.os, "isatty", lambda _: False)
    assert "--dry-run shows, then pass --yes" in run("push", "me/x", code=1).stderr and not calls
    run("push", "me/x", "--dry-run")
