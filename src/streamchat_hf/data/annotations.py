"""What all annotation formats share: the record they are read into, JSON that knows its lines, media, and bad rows.

A reader is a generator of `Annotation`s. Whatever is wrong in one record is reported to a `BadRows` with the file and
the line, and never hides the next record.
"""

from __future__ import annotations

import glob
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import av
from PIL import Image

VIDEO_EXTENSIONS = (".mp4", ".mkv", ".webm", ".avi")  # of several files with one name the first of these is taken
_EXAMPLES = 3
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Turn:
    """One question with its answer, as an annotation has it.

    Attributes:
        source: Where it stands: `file:line`, and what else it takes to find it.
        instruction: What is asked.
        answer: What is said.
        start: When it is asked, in seconds of the video; `None` if it is asked after the last frame.
        end: When the last word is spoken, in seconds; `None` if the annotation does not say.
        word_times: When each word is spoken, in seconds, where that is known and not to be computed.
    """

    source: str
    instruction: str
    answer: str
    start: float | None = None
    end: float | None = None
    word_times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Annotation:
    """What an annotation file says about one video, image or text.

    Attributes:
        id: The dataset's own name for it.
        source: `file:line`, and in brackets the key or index within a JSON document.
        kind: `"dense"` (its turns have times), `"video"`, `"image"` or `"text"`.
        media: Paths, or paths without extension where the dataset has only an id; the first that exists is meant.
        turns: In any order.
    """

    id: str
    source: str
    kind: str
    media: tuple[str, ...]
    turns: tuple[Turn, ...]


class BadRow(ValueError):
    """Something in an annotation that cannot be used.

    Args:
        reason: A few words, the same for all cases of one kind: they are counted.
        detail: What it is in this case.
        source: `file:line`, once it is known.
    """

    def __init__(self, reason: str, detail: str = "", source: str = "") -> None:
        super().__init__(": ".join(filter(None, (source, reason, detail))))
        self.reason, self.detail = reason, detail


class BadRows:
    """Counts what is bad by its reason, or refuses the first.

    Args:
        refuse: Whether to raise instead of counting.

    Attributes:
        counts: How often each reason was found.
        examples: The first few of each reason, as `file:line: detail`.
    """

    def __init__(self, refuse: bool = False) -> None:
        self.refuse = refuse
        self.counts: dict[str, int] = {}
        self.examples: dict[str, list[str]] = {}

    def add(self, source: str, error: BadRow) -> None:
        """Counts something bad.

        Args:
            source: `file:line`.
            error: What it is.

        Raises:
            BadRow: With its source, if bad rows are refused.
        """
        if self.refuse:
            raise BadRow(error.reason, error.detail, source)
        self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
        examples = self.examples.setdefault(error.reason, [])
        if len(examples) < _EXAMPLES:
            examples.append(f"{source}: {error.detail}")

    def to_json(self) -> str:
        """Writes the counts and examples."""
        return json.dumps({"counts": self.counts, "examples": self.examples}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> BadRows:
        """Reads what `to_json` wrote."""
        bad = cls()
        vars(bad).update(json.loads(text))
        return bad

    def __str__(self) -> str:
        return ", ".join(f"{n} × {reason} ({'; '.join(self.examples[reason])})" for reason, n in self.counts.items())


class Item(NamedTuple):
    """A piece of a JSON file that can be read by itself.

    Attributes:
        source: `file:line`, and in brackets the key or index within a JSON document.
        key: The key or index; in a file of lines the number of the line.
        value: What is there.
    """

    source: str
    key: str
    value: Any


def json_items(path: str, bad: BadRows, inside: str | None = None) -> Iterator[Item]:
    """Reads a JSON file piece by piece: the lines of a `.jsonl` file, else the members of the list or object it holds.

    Lines are read one at a time. Of a document the text is read whole, but one member of it decoded at a time. So each
    piece is known by its line, and a defect, which is reported, costs only what cannot be read: the line, or the rest
    of the document.

    Args:
        path: Of the file.
        bad: Where defects are reported.
        inside: If a document is an object with this key, the members of its value are meant.
    """
    return _lines(path, bad) if path.endswith(".jsonl") else _document(path, bad, inside)


def _lines(path: str, bad: BadRows) -> Iterator[Item]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            source = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:  # no JSON, or no UTF-8
                bad.add(source, BadRow("not JSON", str(error)))
            else:
                yield Item(source, str(number), value)


def _document(path: str, bad: BadRows, inside: str | None) -> Iterator[Item]:
    at, line = 0, 1
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
        for begin, key, value in _members(text, _start(text, inside)):
            line += text.count("\n", at, begin)
            at = begin
            yield Item(f"{path}:{line}[{key}]", key, value)
    except json.JSONDecodeError as error:
        bad.add(f"{path}:{error.lineno}", BadRow("not JSON", f"{error.msg} at column {error.colno}"))
    except UnicodeDecodeError as error:
        bad.add(f"{path}:1", BadRow("not JSON", str(error)))


def _start(text: str, inside: str | None) -> int:
    """Where the value of a key of the outermost object begins; 0 if it has none. Decodes what stands before alone."""
    try:
        return next((where for _, key, where in _members(text, 0, last=inside) if key == inside), 0)
    except json.JSONDecodeError:
        return 0  # where it is met again and reported, after what stands before it


def _members(text: str, at: int, last: str | None = None) -> Iterator[tuple[int, str, Any]]:
    """Where each member of the list or object at a position begins, its index or key, and its value.

    It ends with the key `last`, and then gives not the value but where that begins.
    """
    decoder = json.JSONDecoder()
    at = _skip(text, at)
    closing = {"[": "]", "{": "}"}.get(text[at : at + 1])
    if closing is None:
        raise json.JSONDecodeError("Expecting a list or an object", text, at)
    at, count = _skip(text, at + 1), 0
    while text[at : at + 1] != closing:
        begin, key = at, str(count)
        if closing == "}":
            key, at = decoder.raw_decode(text, at)
            at = _expect(text, at, ":")
            if key == last:
                yield begin, key, at
                return
        value, at = decoder.raw_decode(text, at)
        yield begin, key, value
        count, at = count + 1, _skip(text, at)
        if text[at : at + 1] != closing:
            at = _expect(text, at, ",")


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches everywhere


def _expect(text: str, at: int, sign: str) -> int:
    """Where the text goes on after a sign and the white space around it."""
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise json.JSONDecodeError(f"Expecting {sign!r}", text, at)
    return _skip(text, at + 1)


def json_object(value: Any) -> dict[str, Any]:
    """Returns a value of a JSON file that has to be an object.

    Raises:
        BadRow: It is none.
    """
    if not isinstance(value, dict):
        raise BadRow("wrong layout", f"an object is expected, not {_short(value)}")
    return value


def field(value: Any, name: str, kind: type | tuple[type, ...]) -> Any:
    """Returns a field of a JSON object.

    Args:
        value: The object.
        name: Of the field.
        kind: What it has to be.

    Raises:
        BadRow: The value is no object, has no such field, or the field is of another kind.
    """
    found = json_object(value).get(name)
    if not isinstance(found, kind):
        raise BadRow("wrong layout", f"no field {name!r}" if name not in value else f"{name!r} is {_short(found)}")
    return found


def seconds(value: Any) -> float:
    """Returns a time of a JSON file in seconds.

    Raises:
        BadRow: It is no number, or not a finite one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRow("wrong layout", f"a time in seconds is expected, not {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def annotation_files(annotations: str | os.PathLike | Sequence[str | os.PathLike], pattern: str) -> list[str]:
    """Lists annotation files, those of a folder in the order of their names.

    Args:
        annotations: A file, a folder, a glob pattern, or several of these.
        pattern: Which files of a folder and of the folders in it are meant.

    Raises:
        FileNotFoundError: There is no file at one of them.
    """
    found = []
    for place in [annotations] if isinstance(annotations, str | os.PathLike) else annotations:
        name = os.fspath(place)
        if os.path.isdir(name):
            files = glob.glob(os.path.join(glob.escape(name), "**", pattern), recursive=True)
        else:
            files = [name] if os.path.isfile(name) else glob.glob(name, recursive=True)
        if not files:
            raise FileNotFoundError(f"no annotation file at {name}")
        found += sorted(files)
    return found


class MediaFiles:
    """Finds media on the local disk and reads their headers, of each file once.

    Args:
        check: Whether files have to exist and their headers to be readable.
    """

    def __init__(self, check: bool = True) -> None:
        self.check = check
        self._folders: dict[str, dict[str, str]] = {}
        self._headers: dict[str, float | BadRow | None] = {}

    def find(self, annotation: Annotation) -> tuple[str, float | None]:
        """Returns the path of an annotation's medium and, of a video, how long it is.

        Returns:
            The path, `""` for a text; and seconds, `None` for images and texts, and if nothing is to be checked.

        Raises:
            BadRow: There is no such file, it cannot be read, or its header does not tell its duration.
        """
        if annotation.kind == "text":
            return "", None
        noun = "image" if annotation.kind == "image" else "video"
        path = next(filter(None, map(self._existing, annotation.media)), None)
        if not self.check:
            return path or annotation.media[0] + VIDEO_EXTENSIONS[0], None
        if path is None:
            raise BadRow(f"missing {noun}", f"no file {annotation.media[0]}")
        if path not in self._headers:
            try:
                self._headers[path] = video_seconds(path) if noun == "video" else None
                if noun == "image":
                    _look_at_image(path)
            except BadRow as error:
                self._headers[path] = error
        header = self._headers[path]
        if isinstance(header, BadRow):
            raise header
        return path, header

    def _existing(self, path: str) -> str | None:
        if os.path.splitext(path)[1]:
            return path if not self.check or os.path.isfile(path) else None
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = _videos_below(folder)
        return self._folders[folder].get(name)


def _videos_below(folder: str) -> dict[str, str]:
    """Every video of a folder and the folders in it by its name without extensions; some downloads have two."""
    found = []
    for where, _, names in os.walk(folder, followlinks=True):
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in VIDEO_EXTENSIONS:
                inner, second = os.path.splitext(stem)
                stem = inner if second.lower() in VIDEO_EXTENSIONS else stem
                found.append((VIDEO_EXTENSIONS.index(extension.lower()), os.path.join(where, name), stem))
    return {stem: path for _, path, stem in sorted(found, reverse=True)}


def video_seconds(path: str) -> float:
    """Returns how long a video is, from its header alone.

    Raises:
        BadRow: It cannot be opened, holds no video, or its header does not tell.
    """
    try:
        with av.open(path) as container:
            if not container.streams.video:
                raise BadRow("unreadable video", f"there is no video in {path}")
            stream = container.streams.video[0]
            if stream.duration is not None and stream.time_base is not None:
                return float(stream.duration * stream.time_base)
            if container.duration is not None:
                return container.duration / av.time_base
    except (av.FFmpegError, OSError) as error:
        raise BadRow("unreadable video", str(error)) from error
    raise BadRow("unreadable video", f"the header of {path} does not tell its duration")


def _look_at_image(path: str) -> None:
    try:
        Image.open(path).close()
    except OSError as error:
        raise BadRow("unreadable image", str(error)) from error
