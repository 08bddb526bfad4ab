"""`streamchat push`: a checkpoint goes to the Hub in one commit, proven to work before and after."""

import contextlib
import dataclasses
import fnmatch
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

# The base of what the client's own errors and those of a broken connection are: `httpx2`, which only it depends on.
from huggingface_hub.errors import HTTPError as ConnectionBroken
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

import streamchat_hf
from streamchat_hf.hub.staging import stage
from streamchat_hf.hub.verification import verify
from streamchat_hf.hub.verify_script import answer

MAIN = "main"
# What saving a model or a processor has ever written. Of these a repository keeps none that is not part of the push:
# loading might find it, and what it says would be of another model.
OURS = (
    *("*.safetensors", "*.safetensors.index.json", "*.py", "config.json", "generation_config.json", "eval.json"),
    *("training_log.json", "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("merges.txt", "chat_template.jinja", "chat_template.json"),
)


class PushError(RuntimeError):
    """The Hub could not be asked, or said no."""


@dataclasses.dataclass(frozen=True)
class PushReport:
    """What a push does to a repository, or has done.

    Attributes:
        repo_id: The repository, `owner/name`.
        branch: The branch of the commit.
        files: Everything the checkpoint consists of there: bytes by name.
        card: The text of its README.md.
        exists: Whether there is such a repository; `None` if the Hub was not asked.
        private: Whether it is private, or will be; `None` if the Hub was not asked.
        added: Names of files that are new there.
        changed: Of files that are there with another content.
        unchanged: Of files that are there already.
        deleted: Of files of an earlier checkpoint.
        kept: Of files that are somebody else's and stay.
        parent: The commit that all this was compared with; `None` if there is none.
        commit: The commit that was made; that of before if nothing had changed. `None`: nothing was pushed.
        url: Where a person can look at it; `None`: nothing was pushed.
        note: Why the Hub was not asked; `None` if it was.
    """

    repo_id: str
    branch: str
    files: dict[str, int]
    card: str
    exists: bool | None = None
    private: bool | None = None
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    unchanged: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    parent: str | None = None
    commit: str | None = None
    url: str | None = None
    note: str | None = None


def push(
    repo_id: str,
    model: str | Path,
    *,
    private: bool = True,
    dry_run: bool = False,
    license: str | None = None,
    base_models: Sequence[str] = (),
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    confirm: Callable[[PushReport], bool] | None = None,
) -> PushReport:
    """Publishes a checkpoint: stages it, runs it from there, commits it, and runs it from the Hub.

    Everything is one commit, with the deletion of what an earlier checkpoint left: whoever loads the branch at any
    moment gets the old model or the new one. A push that breaks off leaves the branch as it was, and the same push
    again completes it; what is already uploaded is not uploaded again.

    Args:
        repo_id: `owner/name`. It is created if it does not exist.
        model: The folder of a checkpoint; see `staging.stage`.
        private: Whether a repository that is created is private. One that exists stays as it is.
        dry_run: Only report what would be done. Needs neither network nor login, and says less without.
        license: Of the weights, for the card.
        base_models: Hub ids of what the weights were made from, for the card.
        revision: The branch to commit to, created if it does not exist. Default: `main`.
        message: Of the commit.
        token: Default: the one you are logged in with.
        confirm: Called with the report when everything is ready; nothing is done unless it returns `True`.

    Returns:
        What was done, or would be.

    Raises:
        FileNotFoundError, ValueError: If the checkpoint is not whole, or would publish what is private.
        BrokenPushError: If the checkpoint does not work by itself. On the Hub that names the commit.
        PushError: If the Hub cannot be reached or refuses; in one line.
    """
    _check_name(repo_id)
    token = token or get_token()
    api = HfApi(token=token)
    if not dry_run:
        _check_login(api, repo_id)
    with tempfile.TemporaryDirectory(prefix="streamchat-push-") as scratch:
        folder = Path(scratch) / repo_id.partition("/")[2]
        files = stage(model, folder, repo_id, license, base_models)
        expected = answer(str(folder))
        verify(folder, expected=expected)
        report = PushReport(repo_id, revision or MAIN, files, (folder / "README.md").read_text())
        try:
            report = compare(api, folder, report, private)
        except PushError as error:
            if not dry_run:
                raise
            report = dataclasses.replace(report, note=str(error))
        if dry_run or (confirm is not None and not confirm(report)):
            return report
        report = commit(api, folder, report, private, message)
    verify(repo_id, report.commit, expected, token)
    return report


def compare(api: HfApi, folder: Path, report: PushReport, private: bool) -> PushReport:
    """Looks at what is in the repository now.

    Args:
        api: The Hub.
        folder: What shall be there.
        report: Naming the repository and branch, and the files in the folder.
        private: Whether the repository shall be private if it does not exist.

    Returns:
        The report with what would change.

    Raises:
        PushError: If the Hub cannot be reached or refuses.
    """
    if api.token is None:
        raise PushError(f"not logged in: what is in {report.repo_id} was not looked at")
    with hub_errors(report.repo_id):
        try:
            info = api.model_info(report.repo_id)
        except RepositoryNotFoundError:
            return dataclasses.replace(report, exists=False, private=private, added=tuple(report.files))
        branch, head = report.branch, None
        with contextlib.suppress(RevisionNotFoundError):
            head = api.model_info(report.repo_id, revision=branch).sha
        if head is None:  # the branch will begin where the main one is
            branch = MAIN
        entries = api.list_repo_tree(report.repo_id, recursive=True, revision=head or branch)
        there = {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}
    same = {name for name in report.files if name in there and _is_same(folder / name, there[name])}
    stale = {name for name in there.keys() - report.files.keys() if _is_ours(name)}
    return dataclasses.replace(
        report,
        exists=True,
        private=bool(info.private),
        added=tuple(sorted(report.files.keys() - there.keys())),
        changed=tuple(sorted(report.files.keys() & there.keys() - same)),
        unchanged=tuple(sorted(same)),
        deleted=tuple(sorted(stale)),
        kept=tuple(sorted(there.keys() - report.files.keys() - stale)),
        parent=head,
    )


def commit(api: HfApi, folder: Path, report: PushReport, private: bool, message: str | None = None) -> PushReport:
    """Makes the one commit, on top of what the report was compared with.

    Args:
        api: The Hub.
        folder: The files.
        report: From `compare`.
        private: Whether the repository is private if it has to be created.
        message: Of the commit.

    Returns:
        The report with the commit.

    Raises:
        PushError: If the Hub cannot be reached or refuses; also if somebody else has committed since the comparison.
    """
    with hub_errors(report.repo_id):
        if not report.exists:
            api.create_repo(report.repo_id, private=private, exist_ok=True)
        if report.branch != MAIN:
            api.create_branch(report.repo_id, branch=report.branch, exist_ok=True)
        # So a commit that landed while its answer was lost cannot land twice.
        parent = report.parent or api.model_info(report.repo_id, revision=report.branch).sha
        made = api.create_commit(
            report.repo_id,
            [
                *(CommitOperationAdd(name, folder / name) for name in (*report.added, *report.changed)),
                *(CommitOperationDelete(name) for name in report.deleted),
            ],
            commit_message=message or f"Push with streamchat-hf {streamchat_hf.__version__}",
            revision=report.branch,
            parent_commit=parent,
        )
    return dataclasses.replace(report, commit=made.oid, url=made.commit_url)


@contextlib.contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Whatever the Hub's client raises becomes one line that says what to do."""
    again = f"{repo_id} holds what it held before, or all of the push: push again"
    try:
        yield
    except OfflineModeIsEnabled:
        raise PushError("offline: HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = " ".join((error.server_message or "").split())
        meaning = {
            401: "the Hub does not know your token: log in again with `hf auth login`, or set HF_TOKEN",
            403: f"you may not write to {repo_id}: it is somebody else's, or your token is for reading only",
            404: f"{repo_id} is not there, or not for you to see",
            412: f"somebody else has changed {repo_id} meanwhile: push again",
        }.get(status, f"the Hub answers {status}; {again}" if status >= 500 else f"the Hub refuses with {status}")
        raise PushError(f"{meaning} ({said})" if said else meaning) from error
    except ConnectionBroken as error:
        raise PushError(f"the connection to the Hub broke ({type(error).__name__}: {error}); {again}") from error


def _check_name(repo_id: str) -> None:
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"{repo_id!r} is no repository: give owner/name")


def _check_login(api: HfApi, repo_id: str) -> None:
    """Before minutes of work are spent."""
    if api.token is None:
        raise PushError("not logged in: run `hf auth login`, or set HF_TOKEN")
    with hub_errors(repo_id):
        api.whoami()


def _is_ours(name: str) -> bool:
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in OURS)


def _is_same(path: Path, there: RepoFile) -> bool:
    if there.lfs is None:
        return git_hash(path.read_bytes()) == there.blob_id
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
