"""The double of the Hub behaves like the Hub wherever our tests rely on it, seen through the Hub's own client."""

import base64
import hashlib
import io
import json
import time
from pathlib import Path

import pytest
from httpx2 import NetworkError, RemoteProtocolError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, HfFileSystem, ModelCard, hf_hub_download
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from hub_double import Fault, HubDouble

# huggingface_hub hands its uploads to httpx2 in a way that it calls outdated.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

WEIGHTS = bytes(range(256)) * 40
BORN_WITH = {".gitattributes"}
BAD_CARD = base64.b64encode(b"---\ntags: 1\n---").decode()


@pytest.fixture
def hub(monkeypatch):
    """The client in this process, which is offline otherwise and would look for large files elsewhere."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 120)
    with HubDouble() as double:
        yield double


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def impatient(monkeypatch):
    """The client's waits between its attempts, as a list, none of them waited for."""
    waits = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", Clock(waits))
    return waits


class Clock:
    def __init__(self, waits):
        self.sleep, self.time, self.monotonic = waits.append, time.time, time.monotonic


def push(api, files, repo_id="me/x", **more):
    api.create_repo(repo_id, exist_ok=True)
    operations = [CommitOperationAdd(path, io.BytesIO(content)) for path, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="push", **more)


def status(call):
    with pytest.raises(HfHubHTTPError) as error:
        call()
    return error.value.response.status_code


def test_what_is_pushed_is_what_is_there(hub, api, tmp_path):
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "code/a b.py": b"x = 1\n", "empty": b""}
    made = push(api, files)
    held = hub.files("me/x")
    assert held.keys() == files.keys() | BORN_WITH
    assert {path: held[path] for path in files} == files
    for path, content in files.items():
        local = hf_hub_download("me/x", path, endpoint=hub.url, token=hub.token, cache_dir=tmp_path)
        assert Path(local).read_bytes() == content
        assert made.oid in local
    assert set(api.list_repo_files("me/x")) == held.keys()
    info = api.model_info("me/x", files_metadata=True)
    assert info.sha == made.oid == hub.commits("me/x")[-1].id
    large = next(file for file in info.siblings if file.lfs)
    assert (large.rfilename, large.lfs.sha256) == ("model.safetensors", hashlib.sha256(WEIGHTS).hexdigest())
    folder, code = api.get_paths_info("me/x", ["code", "code/a b.py", "nothing"])
    assert (folder.path, code.path, code.size) == ("code", "code/a b.py", 6)
    assert [e.path for e in api.list_repo_tree("me/x", "code", expand=True)] == ["code/a b.py"]


def test_large_files_can_come_in_parts(hub, api):
    hub.part_size = 1000
    push(api, {"model.safetensors": WEIGHTS})
    assert hub.files("me/x")["model.safetensors"] == WEIGHTS
    assert sum(request.method == "PUT" for request in hub.requests) == -(-len(WEIGHTS) // 1000)


def test_what_has_not_changed_is_not_sent_again(hub, api):
    push(api, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    sent = [request.method for request in hub.requests].count("PUT")
    push(api, {"config.json": b"{}", "model.safetensors": WEIGHTS})
    assert len(hub.commits("me/x")) == 2
    assert [request.method for request in hub.requests].count("PUT") == sent == 1


def test_kinds_of_repositories_do_not_meet(hub, api):
    for kind in ("model", "dataset", "space"):
        api.create_repo("me/x", repo_type=kind, **({"space_sdk": "static"} if kind == "space" else {}))
        api.upload_file(path_or_fileobj=kind.encode(), path_in_repo="kind", repo_id="me/x", repo_type=kind)
    assert {kind: hub.files("me/x", repo_type=kind)["kind"].decode() for kind in ("model", "dataset", "space")} == {
        kind: kind for kind in ("model", "dataset", "space")
    }
    assert api.dataset_info("me/x").sha != api.space_info("me/x").sha
    api.delete_repo("me/x", repo_type="dataset")
    assert not api.repo_exists("me/x", repo_type="dataset") and api.repo_exists("me/x", repo_type="space")


def test_who_holds_no_token_reads_what_is_public_and_writes_nothing(hub, api):
    push(api, {"a": b"1"})
    api.create_repo("me/secret", private=True)
    assert hub.is_private("me/secret") and not hub.is_private("me/x")
    before = hub.files("me/x")
    anybody = HfApi(endpoint=hub.url, token=False)
    stranger = HfApi(endpoint=hub.url, token="hf_wrong")
    assert "a" in anybody.list_repo_files("me/x")
    with pytest.raises(RepositoryNotFoundError):
        anybody.model_info("me/secret")
    for who in (anybody, stranger):
        assert status(lambda who=who: who.create_repo("me/y")) == 401
        assert status(lambda who=who: push_only(who)) == 401
        assert status(lambda who=who: who.create_tag("me/x", tag="v1")) == 401
        assert status(lambda who=who: who.create_branch("me/x", branch="b")) == 401
        assert status(lambda who=who: who.delete_repo("me/x")) == 401
    assert status(lambda: stranger.model_info("me/secret")) == 401
    assert status(stranger.whoami) == 401
    assert api.whoami()["name"] == "me"
    assert hub.files("me/x") == before and ("model", "me/y") not in hub.repos


def push_only(api):
    api.create_commit("me/x", [CommitOperationAdd("a", b"2")], commit_message="push")


def test_a_token_does_not_travel_with_an_upload(hub, api):
    push(api, {"model.safetensors": WEIGHTS})
    uploads = [request for request in hub.requests if request.path.startswith("/upload/")]
    assert uploads and not any("authorization" in request.headers for request in uploads)


def test_kinds_of_not_found_are_told_apart(hub, api, tmp_path):
    push(api, {"a": b"1"})
    places = {"endpoint": hub.url, "token": hub.token, "cache_dir": tmp_path}
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download("me/nothing", "a", **places)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("me/x", "b", **places)
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("me/x", "a", revision="v9", **places)
    # That a file is missing is known offline too, from then on.
    assert [path.name for path in tmp_path.rglob(".no_exist/*/*")] == ["b"]


def test_a_repository_is_created_once(api):
    api.create_repo("me/x")
    assert status(lambda: api.create_repo("me/x")) == 409
    assert api.create_repo("me/x", exist_ok=True).repo_id == api.create_repo("x", exist_ok=True).repo_id == "me/x"


def test_a_commit_on_a_parent_that_is_no_longer_the_last_is_refused(hub, api):
    first = push(api, {"a": b"1"})
    push(api, {"a": b"2"}, parent_commit=first.oid)
    assert status(lambda: push(api, {"a": b"3"}, parent_commit=first.oid)) == 412
    assert hub.files("me/x")["a"] == b"2"


def test_a_commit_is_whole_or_not_at_all(hub, api):
    push(api, {"a": b"1", "d/b": b"2", "d/c": b"3"})
    wrong = [CommitOperationAdd("a", b"9"), CommitOperationDelete("nothing")]
    with pytest.raises(EntryNotFoundError):
        api.create_commit("me/x", wrong, commit_message="wrong")
    assert hub.files("me/x")["a"] == b"1"
    api.create_commit("me/x", [CommitOperationDelete("d/")], commit_message="less")
    assert hub.files("me/x").keys() == {"a"} | BORN_WITH


def test_revisions_stay_what_they_were(hub, api):
    first = push(api, {"a": b"1"})
    api.create_tag("me/x", tag="v1")
    assert status(lambda: api.create_tag("me/x", tag="v1")) == 409
    second = push(api, {"a": b"2"})
    api.create_branch("me/x", branch="try/this", revision="v1")
    third = push(api, {"a": b"3"}, revision="try/this")
    for revision, content in [("v1", b"1"), (first.oid, b"1"), ("main", b"2"), ("try/this", b"3"), (third.oid, b"3")]:
        assert hub.files("me/x", revision)["a"] == content
    assert [commit.commit_id for commit in api.list_repo_commits("me/x")][:2] == [second.oid, first.oid]
    assert [commit.id for commit in hub.commits("me/x")][-2:] == [first.oid, second.oid]
    refs = api.list_repo_refs("me/x")
    assert {branch.name: branch.target_commit for branch in refs.branches} == {
        "main": second.oid,
        "try/this": third.oid,
    }
    assert [tag.target_commit for tag in refs.tags] == [first.oid]
    api.delete_tag("me/x", tag="v1")
    api.delete_branch("me/x", branch="try/this")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag("me/x", tag="v1")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("me/x", revision="try/this")


@pytest.mark.parametrize("asked", ["bytes=0-0", "bytes=10-99", "bytes=250-", "bytes=-7", "bytes=0-99999999"])
def test_a_range_of_a_file(hub, api, asked):
    push(api, {"model.safetensors": WEIGHTS})
    answer = get_session().get(f"{hub.url}/me/x/resolve/main/model.safetensors", headers={"Range": asked})
    first, _, last = asked.removeprefix("bytes=").partition("-")
    wanted = WEIGHTS[int(first) :][: int(last) - int(first) + 1 if last else None] if first else WEIGHTS[-int(last) :]
    assert (answer.status_code, answer.content) == (206, wanted)
    assert answer.headers["Content-Range"].endswith(f"/{len(WEIGHTS)}")


def test_a_range_behind_the_end_is_refused(hub, api):
    push(api, {"a": b"123"})
    headers = {"Range": "bytes=3-"}
    assert get_session().get(f"{hub.url}/me/x/resolve/main/a", headers=headers).status_code == 416


def test_a_file_system_reads_pieces(hub, api):
    push(api, {"model.safetensors": WEIGHTS})
    system = HfFileSystem(endpoint=hub.url, token=hub.token, skip_instance_cache=True)
    with system.open("me/x/model.safetensors", block_size=100) as file:
        file.seek(1000)
        assert file.read(50) == WEIGHTS[1000:1050]


@pytest.mark.parametrize(
    ("metadata", "wrong"),
    [
        ("license: apache-2.0\ntags:\n- video", None),
        ("license: [1, 2]", "license"),
        ("license: My License!", "license"),
        ("tags: video", "tags"),
        ("model-index:\n- name: x", "model-index"),
        ("license: {", "YAML"),
        ("- x", "mapping"),
    ],
)
def test_metadata_of_cards_is_checked_when_asked_and_when_committed(hub, api, metadata, wrong):
    card = f"---\n{metadata}\n---\n# x\n"
    answer = get_session().post(f"{hub.url}/api/validate-yaml", json={"content": card, "repoType": "model"})
    if wrong is None:
        assert answer.status_code == 200 and not answer.json()["warnings"]
        push(api, {"README.md": card.encode()})
        assert ModelCard(hub.files("me/x")["README.md"].decode()).data.license == "apache-2.0"
        return
    assert answer.status_code == 400
    with pytest.raises(ValueError, match=wrong):
        push(api, {"README.md": card.encode()})
    assert "README.md" not in hub.files("me/x")


def test_a_card_without_metadata_is_worth_a_warning(hub, api):
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        push(api, {"README.md": b"# x"})


def test_the_client_survives_a_server_that_is_busy_for_a_moment(hub, api, impatient):
    for place in ("preupload", "objects/batch", "/verify"):
        hub.faults.append(Fault("POST", place, status=503))
    hub.faults.append(Fault("PUT", "/upload/", status=500))
    push(api, {"model.safetensors": WEIGHTS})
    assert hub.files("me/x")["model.safetensors"] == WEIGHTS
    assert not hub.faults and len(impatient) == 4


def test_a_fault_strikes_as_often_as_it_says(hub, api):
    struck = []
    api.create_repo("me/x")
    hub.faults.append(Fault("GET", "/api/models/me/x$", status=418, times=2, then=lambda: struck.append(1)))
    assert [status(lambda: api.model_info("me/x")) for _ in range(2)] == [418, 418]
    assert api.model_info("me/x").id == "me/x" and len(struck) == 2
    assert [request.status for request in hub.requests] == [200, 418, 418, 200]


@pytest.mark.parametrize(("method", "path"), [("PUT", "/upload/"), ("POST", "/commit/main")])
def test_a_push_whose_connection_drops_leaves_main_untouched_and_completes_when_repeated(
    hub, api, impatient, method, path
):
    push(api, {"a": b"1", "model.safetensors": WEIGHTS[1:]})
    before, head = hub.files("me/x"), hub.commits("me/x")[-1]
    hub.faults.append(Fault(method, path, status=None, times=99))
    new = {"a": b"2", "model.safetensors": WEIGHTS}
    with pytest.raises((RuntimeError, RemoteProtocolError, NetworkError)):
        push(api, new)
    assert hub.requests[-1].status is None
    assert hub.files("me/x") == before and hub.commits("me/x")[-1] == head
    hub.faults.clear()
    push(api, new)
    assert {path: hub.files("me/x")[path] for path in new} == new


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lfsFile", {"path": "m.safetensors", "algo": "sha256", "oid": "00", "size": 1}),  # never uploaded
        ("file", {"path": "README.md", "encoding": "base64", "content": BAD_CARD}),
    ],
)
def test_a_client_that_does_not_check_is_checked(hub, api, key, value):
    api.create_repo("me/x")
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": key, "value": value}]
    content = "\n".join(map(json.dumps, lines))
    headers = {"Authorization": f"Bearer {hub.token}"}
    answer = get_session().post(f"{hub.url}/api/models/me/x/commit/main", content=content, headers=headers)
    assert answer.status_code == 400 and hub.files("me/x").keys() == BORN_WITH


def test_an_upload_that_is_not_what_it_says_is_refused(hub, api):
    api.create_repo("me/x")
    operation = CommitOperationAdd("model.safetensors", WEIGHTS)
    operation.path_or_fileobj = WEIGHTS[::-1]  # its checksum is taken already
    with pytest.raises(RuntimeError, match="Error while uploading 'model.safetensors'"):
        api.create_commit("me/x", [operation], commit_message="push")
    assert hub.files("me/x").keys() == BORN_WITH and not hub.repos["model", "me/x"].objects


def test_processes_of_a_test_see_the_double_and_none_of_our_own_settings(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    seen = hub.environment(tmp_path, HF_DATASETS_OFFLINE="0")
    assert (seen["HF_ENDPOINT"], seen["HF_TOKEN"], seen["HF_DATASETS_OFFLINE"]) == (hub.url, hub.token, "0")
    assert not seen.keys() & {"PYTHONPATH", "HF_HUB_OFFLINE"}


def test_bad_requests_are_named(hub, api):
    api.create_repo("me/x")
    with pytest.raises(BadRequestError, match="pull requests"):
        api.create_commit("me/x", [CommitOperationAdd("a", b"1")], commit_message="x", create_pr=True)
