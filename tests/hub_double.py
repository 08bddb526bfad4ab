"""A double of the Hub: a local server that speaks what `huggingface_hub` asks for, and can be told to misbehave.

It keeps what a test may lean on: who may read and write, what a commit does and when it is refused, what is answered
for things that do not exist. Any namespace may be written to, there are no pull requests, one page holds all.
"""

import base64
import contextlib
import fnmatch
import hashlib
import http.server
import json
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

DATE = "2026-01-01T00:00:00.000Z"
LFS = ("*.safetensors", "*.parquet", "*.arrow", "*.bin", "*.pt", "*.pkl", "*.mp4", "*.png", "*.onnx", "*.npy", "*.tar")
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS).encode()


@dataclass(frozen=True)
class Commit:
    """What a repository held at a time: all of its files, of which those in `lfs` are stored as large ones."""

    id: str
    message: str
    files: dict[str, bytes]
    lfs: frozenset[str] = frozenset()
    parent: "Commit | None" = None

    def history(self) -> list["Commit"]:
        """This one and those before it, the oldest first."""
        return [*(self.parent.history() if self.parent else []), self]


@dataclass
class Repo:
    id: str
    kind: str
    private: bool
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # large files by their SHA-256, committed or not yet

    def add(self, branch: str, message: str, files: dict[str, bytes], lfs: set[str]) -> Commit:
        parent = self.branches.get(branch)
        content = [parent.id if parent else "", message, *(f"{p} {_sha1(f)}" for p, f in sorted(files.items()))]
        commit = Commit(_sha1("\n".join(content).encode()), message, files, frozenset(lfs & files.keys()), parent)
        self.branches[branch] = commit
        return commit

    def at(self, revision: str) -> Commit:
        """The commit of a branch, a tag or a whole id."""
        known = self.tags | self.branches
        known |= {commit.id: commit for head in list(known.values()) for commit in head.history()}
        if revision not in known:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return known[revision]


@dataclass
class Request:
    """What was asked, and what the answer's status was: `None` if the connection was closed without one."""

    method: str
    path: str
    headers: dict[str, str]
    status: int | None = None


@dataclass
class Fault:
    """What goes wrong, the first `times` that a request fits.

    Attributes:
        method: of the request.
        path: a regular expression, searched in the request's path and query.
        status: answered instead. `None` closes the connection without an answer, in the middle of the request's body.
        times: how often.
        then: called when it strikes, before the answer or the end of the connection.
    """

    method: str
    path: str
    status: int | None = 503
    times: int = 1
    then: Callable[[], Any] | None = None


class Refusal(Exception):
    """An answer that says no; `code` is what the client tells the kinds of "not found" apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None, **headers: str):
        super().__init__(message)
        self.status, self.body = status, {"error": message} if body is None else body
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.headers |= {name.replace("_", "-"): value for name, value in headers.items()}


@dataclass
class Call:
    """A request on its way to its handler: the parts of its path, its query, its body; and the repository, if any."""

    hub: "HubDouble"
    headers: dict[str, str]
    query: dict[str, list[str]]
    body: bytes
    parts: dict[str, str]
    repo: Repo | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Answer = tuple[int, Any, dict[str, str]]
ROUTES: list[tuple[str, re.Pattern, str, Callable[[Call], Any]]] = []
# Parts of a path as the client writes it: a slash within a revision is quoted.
PARTS = {
    "kind": "models|datasets|spaces",
    "prefix": "datasets/|spaces/|",
    "repo": "[^/]+/[^/]+?",
    "path": ".+",
}


def route(method: str, path: str, needs: str = "") -> Callable:
    """Names the handler of a path.

    Args:
        method: HEAD goes where GET goes.
        path: with parts in braces: as in `PARTS`, or anything without a slash.
        needs: `"token"`; or `"read"` or `"write"`: of the repository in the path, which the handler is given.
    """
    pattern = re.sub(r"\{(\w+)\}", lambda part: f"(?P<{part[1]}>{PARTS.get(part[1], '[^/]+')})", path)

    def register(handler: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), needs, handler))
        return handler

    return register


# Accounts, cards, repositories.


@route("GET", "/api/whoami-v2", needs="token")
def whoami(call: Call) -> Any:
    token = {"displayName": "double", "role": "write"}
    return {"type": "user", "name": call.hub.user, "orgs": [], "auth": {"type": "access_token", "accessToken": token}}


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Any:
    card = call.json["content"]
    if errors := card_errors(card):
        body = {"errors": [{"message": message} for message in errors], "warnings": []}
        raise Refusal(400, "Invalid metadata in README.md", body=body)
    warnings = [] if front_matter(card) else [{"message": "empty or missing yaml metadata in repo card"}]
    return {"errors": [], "warnings": warnings}


@route("POST", "/api/repos/create", needs="token")
def create_repo(call: Call) -> Any:
    kind, repo_id = _named(call)
    body = {"url": f"{call.hub.url}/{'' if kind == 'model' else kind + 's/'}{repo_id}", "name": repo_id, "id": repo_id}
    if (kind, repo_id) in call.hub.repos:
        raise Refusal(409, "You already created this repo", body={"error": "You already created this repo", **body})
    repo = call.hub.repos[kind, repo_id] = Repo(repo_id, kind, call.json.get("visibility") == "private")
    repo.add("main", "initial commit", {".gitattributes": GIT_ATTRIBUTES}, set())
    return body


@route("DELETE", "/api/repos/delete", needs="token")
def delete_repo(call: Call) -> Any:
    if call.hub.repos.pop(_named(call), None) is None:
        raise Refusal(404, "Repository not found", "RepoNotFound")


def _named(call: Call) -> tuple[str, str]:
    asked = call.json
    return asked.get("type") or "model", f"{asked.get('organization') or call.hub.user}/{asked['name']}"


@route("PUT", "/api/{kind}/{repo}/settings", needs="write")
def settings(call: Call) -> Any:
    if "visibility" in call.json:
        call.repo.private = call.json["visibility"] == "private"
    return {"private": call.repo.private}


@route("GET", "/api/{kind}/{repo}", needs="read")
@route("GET", "/api/{kind}/{repo}/revision/{revision}", needs="read")
def repo_info(call: Call) -> Any:
    repo, commit = call.repo, call.repo.at(call.parts.get("revision", "main"))
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    if "blobs" in call.query:
        for sibling in siblings:
            entry = file_entry(commit, sibling["rfilename"])
            sibling |= {"size": entry["size"], "blobId": entry["oid"]}
            if "lfs" in entry:
                sibling["lfs"] = {**entry["lfs"], "sha256": entry["lfs"]["oid"]}
    card = front_matter(commit.files.get("README.md", b"").decode())
    card = card if isinstance(card, dict) else {}
    info = {
        "author": repo.id.split("/")[0],
        "sha": commit.id,
        "lastModified": DATE,
        "createdAt": DATE,
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
        "siblings": siblings,
    }
    if repo.kind == "model":
        info |= {"library_name": card.get("library_name"), "pipeline_tag": card.get("pipeline_tag")}
    if "securityStatus" in call.query:
        info["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    if wanted := call.query.get("expand"):
        info = {name: info.get(name) for name in wanted}
    return {"_id": _sha1(repo.id.encode())[:24], "id": repo.id, **info}


# What a repository holds, and had held.


@route("GET", "/api/{kind}/{repo}/refs", needs="read")
def refs(call: Call) -> Any:
    def listed(known: dict[str, Commit], folder: str) -> list[dict[str, str]]:
        return [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": c.id} for n, c in known.items()]

    found = {"branches": listed(call.repo.branches, "heads"), "tags": listed(call.repo.tags, "tags")}
    return {**found, "converts": [], "pullRequests": []}


@route("GET", "/api/{kind}/{repo}/commits/{revision}", needs="read")
def commits(call: Call) -> Any:
    author = [{"user": call.hub.user}]
    newest_first = reversed(call.repo.at(call.parts["revision"]).history())
    return [{"id": c.id, "title": c.message, "message": "", "authors": author, "date": DATE} for c in newest_first]


@route("GET", "/api/{kind}/{repo}/tree/{revision}", needs="read")
@route("GET", "/api/{kind}/{repo}/tree/{revision}/{path}", needs="read")
def tree(call: Call) -> Any:
    commit, folder = call.repo.at(call.parts["revision"]), call.parts.get("path", "").strip("/")
    inside = f"{folder}/" if folder else ""
    entries = [entry for entry in all_entries(commit) if entry["path"].startswith(inside)]
    if not entries:
        raise Refusal(404, f"{folder} does not exist", "EntryNotFound", X_Repo_Commit=commit.id)
    if call.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
        entries = [entry for entry in entries if "/" not in entry["path"][len(inside) :]]
    return detailed(commit, entries, call.query)


@route("POST", "/api/{kind}/{repo}/paths-info/{revision}", needs="read")
def paths_info(call: Call) -> Any:
    commit, asked = call.repo.at(call.parts["revision"]), parse_qs(call.body.decode())
    wanted = {path.strip("/") for path in asked.get("paths", [])}
    return detailed(commit, [entry for entry in all_entries(commit) if entry["path"] in wanted], asked)


@route("GET", "/{prefix}{repo}/resolve/{revision}/{path}", needs="read")
def resolve(call: Call) -> Answer:
    commit, path = call.repo.at(call.parts["revision"]), call.parts["path"]
    if path not in commit.files:
        raise Refusal(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.id)
    content, entry = commit.files[path], file_entry(commit, path)
    headers = {"X-Repo-Commit": commit.id, "ETag": f'"{entry["oid"]}"', "Accept-Ranges": "bytes"}
    if "lfs" in entry:
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(content))}
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("range", ""))
    if not asked or not (asked[1] or asked[2]):
        return 200, content, headers
    first = int(asked[1]) if asked[1] else max(len(content) - int(asked[2]), 0)
    last = min(int(asked[2]), len(content) - 1) if asked[1] and asked[2] else len(content) - 1
    if first > last:
        raise Refusal(416, "Range Not Satisfiable", Content_Range=f"bytes */{len(content)}")
    return 206, content[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"}


# Writing: what is large is uploaded first, to addresses that need no token, and named in the commit.


@route("POST", "/api/{kind}/{repo}/preupload/{revision}", needs="write")
def preupload(call: Call) -> Any:
    commit = call.repo.at(call.parts["revision"])
    files = []
    for file in call.json["files"]:
        path = file["path"]
        large = any(fnmatch.fnmatch(path.split("/")[-1], pattern) for pattern in LFS) or file["size"] > 10_000_000
        known = file_entry(commit, path) if path in commit.files else {}
        # A client leaves out of its commit what it finds here already.
        oid = known.get("lfs", known).get("oid")
        files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
    return {"files": files, "commitOid": commit.id}


@route("POST", "/{prefix}{repo}[.]git/info/lfs/objects/batch", needs="write")
def lfs_batch(call: Call) -> Any:
    here = f"{call.hub.url}/{call.parts['prefix']}{call.parts['repo']}.git/info/lfs"
    objects = []
    for asked in call.json["objects"]:
        answer = {"oid": asked["oid"], "size": asked["size"]}
        if asked["oid"] not in call.repo.objects:
            ticket = secrets.token_hex(8)
            call.hub.tickets[ticket] = {"repo": call.repo, "oid": asked["oid"], "parts": {}}
            upload: dict[str, Any] = {"href": f"{call.hub.url}/upload/{ticket}"}
            if asked["size"] > call.hub.part_size and "multipart" in call.json["transfers"]:
                count = -(-asked["size"] // call.hub.part_size)
                parts = {str(k): f"{call.hub.url}/upload/{ticket}/{k}" for k in range(1, count + 1)}
                upload["header"] = {"chunk_size": str(call.hub.part_size), **parts}
            answer["actions"] = {"upload": upload, "verify": {"href": f"{here}/verify"}}
        objects.append(answer)
    return {"transfer": "multipart" if any("header" in str(o) for o in objects) else "basic", "objects": objects}


@route("PUT", "/upload/{ticket}")
@route("PUT", "/upload/{ticket}/{part}")
@route("POST", "/upload/{ticket}")
def upload(call: Call) -> Answer:
    """A whole object, a part of one, or the word that all parts are there."""
    ticket, content = call.hub.tickets.get(call.parts["ticket"]), call.body
    if ticket is None:
        raise Refusal(403, "Request has expired")
    etag = f'"{hashlib.md5(content).hexdigest()}"'
    if "part" in call.parts:
        ticket["parts"][int(call.parts["part"])] = (content, etag)
        return 200, None, {"ETag": etag}
    if ticket["parts"]:
        said = [(part["partNumber"], part["etag"]) for part in call.json["parts"]]
        if said != [(number, part[1]) for number, part in sorted(ticket["parts"].items())]:
            raise Refusal(400, "InvalidPart")
        content = b"".join(part[0] for _, part in sorted(ticket["parts"].items()))
    if hashlib.sha256(content).hexdigest() != ticket["oid"]:
        raise Refusal(400, "BadDigest")
    ticket["repo"].objects[ticket["oid"]] = content
    return 200, None, {"ETag": etag}


@route("POST", "/{prefix}{repo}[.]git/info/lfs/verify", needs="write")
def lfs_verify(call: Call) -> Any:
    if len(call.repo.objects.get(call.json["oid"], b"")) != call.json["size"]:
        raise Refusal(404, "the object is not there, or not whole")
    return {}


@route("POST", "/api/{kind}/{repo}/commit/{revision}", needs="write")
def commit(call: Call) -> Any:
    """All of the operations, or none."""
    if "create_pr" in call.query:
        raise Refusal(400, "pull requests are beyond this double")
    branch, lines = call.parts["revision"], [json.loads(line) for line in call.body.splitlines()]
    if branch not in call.repo.branches:
        raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    header, head = lines[0]["value"], call.repo.branches[branch]
    if header.get("parentCommit", head.id) != head.id:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    files, lfs = dict(head.files), set(head.lfs)
    for line in lines[1:]:
        key, value = line["key"], line["value"]
        path = value["path"]
        if key == "file":
            files[path] = base64.b64decode(value["content"])
            lfs.discard(path)
        elif key == "lfsFile":
            if value["oid"] not in call.repo.objects:
                raise Refusal(400, f"the large file {path} was not uploaded")
            files[path] = call.repo.objects[value["oid"]]
            lfs.add(path)
        else:
            gone = [name for name in files if name == path or name.startswith(f"{path.rstrip('/')}/")]
            if not gone:
                raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            for name in gone:
                del files[name]
    if errors := card_errors(files.get("README.md", b"").decode()):
        raise Refusal(400, "; ".join(errors))
    made = call.repo.add(branch, header["summary"], files, lfs)
    url = f"{call.hub.url}/{'' if call.repo.kind == 'model' else call.repo.kind + 's/'}{call.repo.id}/commit/{made.id}"
    return {"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""}


@route("POST", "/api/{kind}/{repo}/branch/{name}", needs="write")
def create_branch(call: Call) -> None:
    start = call.repo.at(call.json.get("startingPoint", "main"))
    _create_ref(call.repo.branches, call.parts["name"], start)


@route("DELETE", "/api/{kind}/{repo}/branch/{name}", needs="write")
def delete_branch(call: Call) -> None:
    if call.parts["name"] == "main":
        raise Refusal(403, "the main branch stays")
    _delete_ref(call.repo.branches, call.parts["name"])


@route("POST", "/api/{kind}/{repo}/tag/{revision}", needs="write")
def create_tag(call: Call) -> None:
    _create_ref(call.repo.tags, call.json["tag"], call.repo.at(call.parts["revision"]))


@route("DELETE", "/api/{kind}/{repo}/tag/{name}", needs="write")
def delete_tag(call: Call) -> None:
    _delete_ref(call.repo.tags, call.parts["name"])


def _create_ref(known: dict[str, Commit], name: str, commit: Commit) -> None:
    if name in known:
        raise Refusal(409, f"{name} already exists")
    known[name] = commit


def _delete_ref(known: dict[str, Commit], name: str) -> None:
    if known.pop(name, None) is None:
        raise Refusal(404, f"Invalid rev id: {name}", "RevisionNotFound")


# How files and cards are described.


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def file_entry(commit: Commit, path: str) -> dict[str, Any]:
    content = commit.files[path]
    stored, lfs = content, {}
    if path in commit.lfs:
        oid = hashlib.sha256(content).hexdigest()
        stored = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        lfs = {"lfs": {"oid": oid, "size": len(content), "pointerSize": len(stored)}}
    blob = _sha1(b"blob %d\0" % len(stored) + stored)
    return {"type": "file", "path": path, "size": len(content), "oid": blob, **lfs}


def all_entries(commit: Commit) -> list[dict[str, Any]]:
    folders = {str(folder) for path in commit.files for folder in Path(path).parents} - {"."}
    entries = [{"type": "directory", "path": path, "size": 0, "oid": _sha1(path.encode())} for path in folders]
    return sorted([*entries, *(file_entry(commit, path) for path in commit.files)], key=lambda entry: entry["path"])


def detailed(commit: Commit, entries: list[dict[str, Any]], query: dict[str, list[str]]) -> list[dict[str, Any]]:
    if query.get("expand", ["false"])[0].lower() in ("true", "1"):
        last = {"id": commit.id, "title": commit.message, "date": DATE}
        safe = {"status": "safe", "avScan": None, "pickleImportScan": None}
        entries = [{**entry, "lastCommit": last, "securityFileStatus": safe} for entry in entries]
    return entries


def front_matter(card: str) -> Any:
    block = re.match(r"\A\s*---\r?\n(.*?)\r?\n?---[ ]*(\r?\n|\Z)", card, re.DOTALL)
    return yaml.safe_load(block[1]) if block else None


def card_errors(card: str) -> list[str]:
    """What is wrong with the metadata of a card."""
    try:
        data = front_matter(card) or {}
    except yaml.YAMLError as error:
        return [f"not YAML: {error}"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"]
    errors = []
    for name in ("license", "library_name", "pipeline_tag"):
        if not isinstance(data.get(name, ""), str):
            errors.append(f'"{name}" must be a string')
    if isinstance(data.get("license"), str) and not re.fullmatch(r"[a-z0-9.\-]+", data["license"]):
        errors.append(f'"license" must be a known identifier, not {data["license"]!r}')
    for name in ("tags", "datasets", "configs"):
        if not isinstance(data.get(name, []), list):
            errors.append(f'"{name}" must be an array')
    try:
        for model in data.get("model-index", []):
            assert isinstance(model["name"], str)
            for result in model["results"]:
                types = [result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"]]
                assert all(isinstance(text, str) for text in types)
                assert all(isinstance(metric["type"], str) and "value" in metric for metric in result["metrics"])
    except (AssertionError, AttributeError, KeyError, TypeError) as error:
        errors.append(f'"model-index" is malformed: {error!r}')
    return errors


class HubDouble:
    """The server, in threads of its own; all it knows is in memory, and gone with it.

    Attributes:
        user: Who the token belongs to, and what a repository's name without a slash goes to.
        token: The only one that may write. Any other is refused, even where none is needed.
        requests: What was asked, in order.
        faults: What is to go wrong; the first that fits a request strikes, and is removed when it is used up.
        part_size: Bytes from which on a large file is uploaded in parts.
    """

    def __init__(self) -> None:
        self.user, self.token = "me", f"hf_{secrets.token_hex(17)}"
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.part_size = 10_000_000
        self.repos: dict[tuple[str, str], Repo] = {}
        self.tickets: dict[str, dict[str, Any]] = {}
        self._lock = threading.RLock()
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True

            def serve(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    hub._serve(self)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

            def log_message(self, *args: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "HubDouble":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def environment(self, home: Path | str, **more: str) -> dict[str, str]:
        """All variables of a process that takes this for the Hub and keeps its caches in `home`.

        A library reads them when it is imported, and a client that is offline refuses this server too: what talks to
        it runs in a process of its own.
        """
        hidden = ("PYTHONPATH", "HUGGING_FACE_HUB_TOKEN", "TRANSFORMERS_OFFLINE")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and k not in hidden}
        return kept | {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(Path(home) / "modules"),
            "HF_HUB_DISABLE_XET": "1",  # a protocol of its own, to servers elsewhere
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_ETAG_TIMEOUT": "120",
            "HF_HUB_DOWNLOAD_TIMEOUT": "120",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **more,
        }

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """What a repository holds, the `.gitattributes` that it is born with included."""
        with self._lock:
            return dict(self.repos[repo_type, repo_id].at(revision).files)

    def commits(self, repo_id: str, repo_type: str = "model") -> list[Commit]:
        """Of the main branch, the newest last; the first is the empty repository's."""
        with self._lock:
            return self.repos[repo_type, repo_id].branches["main"].history()

    def is_private(self, repo_id: str, repo_type: str = "model") -> bool:
        return self.repos[repo_type, repo_id].private

    def _serve(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in handler.headers.items()}
        request = Request(handler.command, handler.path, headers)
        with self._lock:
            self.requests.append(request)
            fault = self._strike(request)
        body = read_body(handler, half=fault is not None and fault.status is None)
        if fault is not None and fault.then is not None:
            fault.then()
        if fault is not None and fault.status is None:
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            if fault is not None:
                raise Refusal(fault.status, "a fault of the test")
            with self._lock:
                status, content, more = self._answer(request, body)
        except Refusal as refusal:
            status, content, more = refusal.status, refusal.body, refusal.headers
        if not isinstance(content, bytes):
            more = {"Content-Type": "application/json", **more}
            content = b"" if content is None else json.dumps(content).encode()
        request.status = status
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **more}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(content)

    def _strike(self, request: Request) -> Fault | None:
        for fault in self.faults:
            if fault.method == request.method and re.search(fault.path, request.path):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None

    def _answer(self, request: Request, body: bytes) -> Answer:
        address = urlsplit(request.path)
        method = "GET" if request.method == "HEAD" else request.method
        authorization = request.headers.get("authorization")
        # Addresses of uploads are secret themselves.
        if authorization not in (None, f"Bearer {self.token}") and not address.path.startswith("/upload/"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        for known, pattern, needs, handler in ROUTES:
            if known == method and (match := pattern.fullmatch(address.path)):
                parts = {name: unquote(value) for name, value in match.groupdict().items()}
                call = Call(self, request.headers, parse_qs(address.query), body, parts)
                if needs in ("token", "write") and authorization is None:
                    raise Refusal(401, "Invalid username or password.")
                if needs in ("read", "write"):
                    kind = parts.get("kind", parts.get("prefix", "")).rstrip("/").removesuffix("s") or "model"
                    call.repo = self.repos.get((kind, parts["repo"]))
                    if authorization is None and (call.repo is None or call.repo.private):
                        raise Refusal(401, "Invalid username or password.", "RepoNotFound")
                    if call.repo is None:
                        raise Refusal(404, "Repository not found", "RepoNotFound")
                answer = handler(call)
                return answer if isinstance(answer, tuple) else (200, answer, {})
        raise Refusal(404, f"this double does not know {request.method} {address.path}")


def read_body(handler: http.server.BaseHTTPRequestHandler, half: bool = False) -> bytes:
    """A request's body, however it is sent; or only its first half, where that is known."""
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        length = int(handler.headers.get("Content-Length", 0))
        return handler.rfile.read(length // 2 if half else length)
    chunks = []
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        chunks.append(handler.rfile.read(size // 2 if half else size))
        if half:
            return chunks[0]
        handler.rfile.readline()
    handler.rfile.readline()
    return b"".join(chunks)
