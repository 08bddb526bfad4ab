"""A benchmark's annotation file and its videos, where they are found on this machine."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from streamchat_hf.evaluation.benchmark_protocol import Video


def read_annotations(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from None


def digest(path: Path) -> str:
    """Return what tells one annotation file from another: the beginning of its SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def find_videos(folder: Path, names: Iterable[str]) -> dict[str, Video]:
    """Find videos by the names that annotations have for them.

    A video lies in the folder under its whole name, such as `Ego4D/clips/x.mp4`, or under the last part of it.

    Args:
        folder: Where the videos are.
        names: As the annotations have them.

    Returns:
        The videos by name, in the order of their first appearance.

    Raises:
        FileNotFoundError: If some are missing, with their number.
        ValueError: If a name is no relative path, or two names lead to one file.
    """
    found: dict[str, Video] = {}
    names_of: dict[Path, str] = {}
    missing = []
    for name in dict.fromkeys(names):
        if Path(name).is_absolute():
            raise ValueError(f"{name}: a video is named by its path within the folder of the videos")
        places = (folder / name, folder / Path(name).name)
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            missing.append(name)
        elif (other := names_of.setdefault(path, name)) != name:
            raise ValueError(f"{path}: both {other} and {name}; put each video where its whole name says")
        else:
            found[name] = Video(name, path)
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(missing) + len(found)} videos are missing, such as {missing[0]}"
        )
    return found
