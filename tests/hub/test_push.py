import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from transformers import AutoModel

from hub_double import Fault
from streamchat_hf import tiny_checkpoint
from streamchat_hf.hub import push as module
from streamchat_hf.hub.push import PushError, push
from streamchat_hf.hub.verification import BrokenPushError

REPO = "me/talker"
GIT = ".gitattributes"
COMMIT, UPLOAD = "/commit/", "/upload/"


@pytest.fixture
def verified(monkeypatch):
    """What was verified, without the minutes of doing it: the files of a folder, or the revision of a repository."""
    calls = []

    def verify(source, revision=None, expected=None, token=None):
        calls.append((revision, token) if revision else {path.name for path in Path(source).iterdir()})
        assert expected["numbers"]

    monkeypatch.setattr(module, "verify", verify)
    return calls


def uploads(hub) -> int:
    return sum(UPLOAD in request.path for request in hub.requests)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def other(folder: Path) -> None:
    """Makes another model of a StreamFormer."""
    model = AutoModel.from_pretrained(folder)
    model.layers[0].mlp.fc1.bias.data += 1
    model.save_pretrained(folder)


def test_everything_is_one_commit_between_two_verifications(streamformer, hub, verified):
    report = push(REPO, streamformer, license="apache-2.0", base_models=["acme/eye"], message="the first one")
    first, made = hub.commits(REPO)
    assert set(first.files) == {GIT} and made.message == "the first one" and made.id == report.commit
    assert set(made.files) == {*report.files, GIT} == {*report.added, GIT}
    assert {name: len(made.files[name]) for name in report.files} == report.files
    assert made.files["README.md"].decode() == report.card
    assert "license: apache-2.0" in report.card and "- acme/eye" in report.card
    assert verified == [set(report.files), (made.id, hub.token)]
    assert (report.exists, report.private, report.branch, report.note) == (False, True, "main", None)
    assert hub.is_private(REPO) and report.commit in report.url


def test_a_dry_run_changes_nothing(streamformer, hub, verified):
    report = push(REPO, streamformer, dry_run=True, private=False)
    assert not hub.repos and all(request.method == "GET" for request in hub.requests)
    assert (report.exists, report.private, report.commit, report.url) == (False, False, None, None)
    assert set(report.added) == set(report.files) and len(verified) == 1 and report.card.startswith("---\n")


@pytest.mark.parametrize("logged_in", [True, False])
def test_a_dry_run_needs_no_network(logged_in, streamformer, verified, monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: "token" if logged_in else None)
    assert constants.HF_HUB_OFFLINE
    report = push(REPO, streamformer, dry_run=True)
    assert (
        report.exists is None and report.private is None and report.added == () and "model.safetensors" in report.files
    )
    assert ("HF_HUB_OFFLINE" if logged_in else "not logged in") in report.note


def test_a_second_push_tells_what_changes_and_removes_what_is_stale(streamformer, hub, verified):
    push(REPO, streamformer)
    stale = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "rotary_old.py", "eval.json"]
    theirs = ["LICENSE", "pictures/a.png", "examples/demo.py", "examples/part.safetensors"]
    api = HfApi(token=hub.token)
    for name in (*stale, *theirs):
        api.upload_file(path_or_fileobj=b"{}", path_in_repo=name, repo_id=REPO)
    before = hub.commits(REPO)
    other(streamformer)
    planned = push(REPO, streamformer, dry_run=True)
    assert hub.commits(REPO) == before
    report = push(REPO, streamformer)
    for told in (planned, report):
        assert told.changed == ("model.safetensors",) and told.added == () and set(told.deleted) == set(stale)
        assert set(told.kept) == {GIT, *theirs} and set(told.unchanged) == told.files.keys() - {"model.safetensors"}
        assert told.exists and told.parent == before[-1].id
    assert hub.commits(REPO)[:-1] == before
    assert set(hub.files(REPO)) == {*report.files, GIT, *theirs}


def test_small_files_are_compared_by_content(streamformer, hub, verified):
    push(REPO, streamformer)
    there = hub.files(REPO)["config.json"].replace(b"true", b"null")
    HfApi(token=hub.token).upload_file(path_or_fileobj=there, path_in_repo="config.json", repo_id=REPO)
    assert push(REPO, streamformer).changed == ("config.json",)
    assert b"null" not in hub.files(REPO)["config.json"].replace(b'"sliding_window": null', b"")


def test_pushing_the_same_again_makes_no_commit(streamformer, hub, verified):
    first = push(REPO, streamformer)
    again = push(REPO, streamformer)
    assert again.commit == first.commit == hub.commits(REPO)[-1].id and len(hub.commits(REPO)) == 2
    assert (again.added, again.changed, again.deleted) == ((), (), ()) and uploads(hub) == 1


def test_a_repository_that_exists_stays_public(streamformer, hub, verified):
    HfApi(token=hub.token).create_repo(REPO, private=False)
    assert push(REPO, streamformer, private=True).private is False
    assert not hub.is_private(REPO)


def test_a_branch_is_made_where_main_is(streamformer, hub, verified):
    push(REPO, streamformer)
    other(streamformer)
    planned = push(REPO, streamformer, revision="next", dry_run=True)
    report = push(REPO, streamformer, revision="next")
    assert planned.changed == report.changed == ("model.safetensors",) and report.branch == "next"
    assert len(hub.commits(REPO)) == 2 and verified[-1] == (report.commit, hub.token)
    assert hub.files(REPO) != hub.files(REPO, "next") and hub.files(REPO).keys() == hub.files(REPO, "next").keys()


def test_it_goes_on_only_when_confirmed(streamformer, hub, verified):
    asked = []
    report = push(REPO, streamformer, confirm=lambda report: bool(asked.append(report)))
    assert asked == [report] and report.commit is None and not hub.repos
    assert push(REPO, streamformer, confirm=lambda report: True).commit == hub.commits(REPO)[-1].id


def test_what_does_not_work_here_is_not_sent(streamformer, hub, monkeypatch):
    def verify(*args, **options):
        raise BrokenPushError("the push is broken: it does not run")

    monkeypatch.setattr(module, "verify", verify)
    with pytest.raises(BrokenPushError):
        push(REPO, streamformer)
    assert not hub.repos


def test_a_server_that_is_busy_is_asked_again(streamformer, hub, verified):
    hub.faults.append(Fault("PUT", UPLOAD, status=503))
    assert push(REPO, streamformer).commit == hub.commits(REPO)[-1].id
    assert uploads(hub) == 2 and not hub.faults


@pytest.mark.parametrize("status", [503, None], ids=["busy", "dropped"])
def test_a_push_that_breaks_at_the_commit_leaves_main_and_can_be_repeated(status, streamformer, hub, verified):
    push(REPO, streamformer)
    before = hub.commits(REPO)
    other(streamformer)
    hub.faults.append(Fault("POST", COMMIT, status=status))
    with pytest.raises(PushError) as error:
        push(REPO, streamformer)
    assert "push again" in str(error.value) and "\n" not in str(error.value) and not hub.faults
    assert ("answers 503" if status else "the connection to the Hub broke") in str(error.value)
    assert hub.commits(REPO) == before
    sent = uploads(hub)
    report = push(REPO, streamformer)
    assert hub.commits(REPO)[:-1] == before and hub.files(REPO)["config.json"] == content(streamformer)["config.json"]
    assert report.commit == hub.commits(REPO)[-1].id and uploads(hub) == sent  # what was uploaded is there


def test_what_somebody_else_commits_meanwhile_is_not_overwritten(streamformer, hub, verified):
    push(REPO, streamformer)
    other(streamformer)

    def meanwhile(report):
        HfApi(token=hub.token).upload_file(path_or_fileobj=b"hello", path_in_repo="README.md", repo_id=REPO)
        return True

    with pytest.raises(PushError, match=f"somebody else has changed {REPO} meanwhile: push again"):
        push(REPO, streamformer, confirm=meanwhile)
    assert hub.files(REPO)["README.md"] == b"hello"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("POST", "/repos/create", 403), "you may not write to me/talker: it is somebody else's"),
        (Fault("POST", "/preupload/", 403), "you may not write to me/talker: it is somebody else's"),
        (Fault("GET", "/whoami", 503), "the Hub answers 503"),
        (Fault("GET", "/api/models/me/talker", None), "the connection to the Hub broke"),
        (Fault("POST", "/preupload/", 422), "the Hub refuses with 422"),
    ],
    ids=lambda value: value.path if isinstance(value, Fault) else "",
)
def test_what_the_hub_refuses_is_said_in_one_line(fault, said, streamformer, hub, verified):
    hub.faults.append(fault)
    fault.times = 20
    with pytest.raises(PushError, match=said) as error:
        push(REPO, streamformer)
    assert "\n" not in str(error.value) and hub.token not in str(error.value)
    assert REPO not in [name for _, name in hub.repos] or set(hub.files(REPO)) == {GIT}


@pytest.mark.parametrize(
    ("token", "said"), [(None, "not logged in: run `hf auth login`"), ("wrong", "the Hub does not know your token")]
)
def test_who_is_not_known_is_told_before_any_work(token, said, hub, verified, monkeypatch):
    monkeypatch.setattr(module, "get_token", lambda: token)
    with pytest.raises(PushError, match=said):
        push(REPO, "no/such/folder")
    assert not verified


@pytest.mark.parametrize("name", ["talker", "a/b/c", "me/talk er", "me/-x"])
def test_a_repository_has_an_owner_and_a_name(name, streamformer):
    with pytest.raises(ValueError):
        push(name, streamformer, dry_run=True)


def start(hub, folder: Path, home: Path, *options: str) -> subprocess.Popen:
    """A push in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("push_script.py")), REPO, str(folder), *options]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=hub.environment(home, OMP_NUM_THREADS="1"), text=True, **pipes)


def sent(hub, folder: Path, home: Path, *options: str) -> str:
    """The commit of a push that goes well."""
    with start(hub, folder, home, *options) as pushing:
        said, errors = pushing.communicate()
    assert pushing.returncode == 0, errors[-2000:]
    return said.split()[-1]


@pytest.mark.slow
def test_a_push_that_is_killed_while_it_uploads_leaves_main_and_can_be_repeated(streamformer, hub, tmp_path):
    sent(hub, streamformer, tmp_path / "home")
    before = hub.commits(REPO)
    other(streamformer)
    hub.faults.append(Fault("PUT", UPLOAD, status=None, then=lambda: pushing.kill()))
    with start(hub, streamformer, tmp_path / "home") as pushing:
        pushing.communicate()
    assert pushing.returncode == -signal.SIGKILL and not hub.faults
    assert hub.commits(REPO) == before
    assert sent(hub, streamformer, tmp_path / "home") == hub.commits(REPO)[-1].id
    assert hub.commits(REPO)[:-1] == before and hub.files(REPO) != before[-1].files


@pytest.mark.slow
def test_the_shipped_checkpoint_works_from_the_hub(hub, tmp_path):
    commit = sent(hub, tiny_checkpoint(), tmp_path / "home", "--verify")
    made = hub.commits(REPO)[-1]
    assert commit == made.id and hub.is_private(REPO)
    assert set(made.files) == {*(path.name for path in tiny_checkpoint().iterdir() if path.is_file()), GIT}
    read = {request.path for request in hub.requests if request.method == "GET" and request.status == 200}
    assert f"/{REPO}/resolve/{made.id}/modeling_streamchat.py" in read
