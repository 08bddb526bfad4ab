"""Proof that a checkpoint works where the package is not installed: in a fresh process, with fresh caches."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import constants

SCRIPT = Path(__file__).with_name("verify_script.py")
LINES = 6  # of what a process said last
TOLERANCE = 1e-2  # of bfloat16's order; the same machine is far below it
Answer = Mapping[str, list]


class BrokenPushError(RuntimeError):
    """A checkpoint does not work by itself, or says otherwise than the model it was made of."""


def verify(
    source: str | Path, revision: str | None = None, expected: Answer | None = None, token: str | None = None
) -> Answer:
    """Loads a checkpoint with nothing but the code it carries and lets it watch a short clip.

    Args:
        source: Folder or Hub id.
        revision: Branch, tag or commit, of a Hub id.
        expected: What it has to answer, from `verify_script.answer`. `None`: anything sound.
        token: For a private repository.

    Returns:
        What it answered; see `verify_script.answer`.

    Raises:
        BrokenPushError: If it does not load or run, a token knows no frame, or the answer is another one.
    """
    folder = Path(source).resolve() if Path(source).is_dir() else None
    name = f"{source}@{revision}" if revision else str(source)
    with tempfile.TemporaryDirectory(prefix="streamchat-verify-") as home:
        done = subprocess.run(
            [sys.executable, "-P", str(SCRIPT), str(folder or source), *([revision] if revision else [])],
            env=_environment(home, offline=folder is not None, token=token),
            cwd=home,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    answered = done.stdout.rpartition("RESULT ")[2]
    if done.returncode != 0 or not answered:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise BrokenPushError(f"the push is broken: {name} does not run by itself: {' | '.join(said[-LINES:])}")
    result: Answer = json.loads(answered)
    values = [*result["numbers"], *result.get("frame_age", [])]
    if not all(map(math.isfinite, values)):
        raise BrokenPushError(f"the push is broken: {name} gives numbers or frame ages that are not finite: {values}")
    if expected is not None and not _same(result, expected):
        raise BrokenPushError(f"the push is broken: {name} answers {dict(result)}, the model here {dict(expected)}")
    return result


def _environment(home: str, offline: bool, token: str | None) -> dict[str, str]:
    """Variables of a process that finds nothing of ours: no package, no cached files or code, no login but `token`."""
    hidden = ("PYTHONPATH", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_XET_CACHE")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return kept | {
        "HF_ENDPOINT": constants.ENDPOINT,
        "HF_HOME": home,
        "HF_MODULES_CACHE": str(Path(home) / "modules"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **({"HF_HUB_OFFLINE": "1"} if offline else {}),
        **({"HF_TOKEN": token} if token else {}),
    }


def _same(one: Answer, other: Answer) -> bool:
    pairs = zip(one["numbers"], other["numbers"], strict=True)
    close = all(math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) for a, b in pairs)
    return close and one.get("tokens") == other.get("tokens") and one.get("frame_age") == other.get("frame_age")
