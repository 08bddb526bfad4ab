"""Readers of conversations: plain JSONL of our own, LLaVA's conversation JSON, and TRL's `messages`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

from streamchat_hf.data.annotations import (
    Annotation,
    BadRow,
    BadRows,
    Item,
    Turn,
    field,
    json_items,
    json_object,
    seconds,
)

_PLACEHOLDER = re.compile(r"\s*<(?:image|video)>\s*")
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}


def read_jsonl(path: str, bad: BadRows) -> Iterator[Annotation]:
    """Reads our plain form: `{"video": path, "start": s, "end": s, "instruction": ..., "answer": ...}`.

    `"image"` stands in place of `"video"` for a picture, neither for a text. `"turns"` may hold a list of objects with
    `"instruction"`, `"answer"`, `"start"` and `"end"` instead. Without `"start"` the question is asked after the last
    frame; without `"end"` the answer takes as long as it takes to say it. `"id"` is optional.

    Args:
        path: A `.jsonl` file, or a `.json` file with a list.
        bad: Where bad rows are reported.
    """
    return _read(path, bad, _plain)


def read_llava(path: str, bad: BadRows) -> Iterator[Annotation]:
    r"""Reads LLaVA's conversations, the form in which LLaVA-Video-178K and the usual image mixes are published.

    `{"id": ..., "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": ...}],
    "video": path}`, with `"image"` for a picture and neither for a text. The placeholder, which may be `<image>` for a
    video too, is removed.

    Args:
        path: A `.json` file with a list, or a `.jsonl` file.
        bad: Where bad rows are reported.
    """
    return _read(path, bad, _llava)


def read_messages(path: str, bad: BadRows) -> Iterator[Annotation]:
    """Reads TRL's conversational rows: `{"messages": [{"role": "user", "content": ...}, ...], "images": [path]}`.

    Content is a string or a list of parts. The file of an `"image"` or `"video"` part stands in the part itself, as
    `"image"` or `"video"`, `"path"` or `"url"`, or in a column of the row: `"image"`, `"images"`, `"video"`,
    `"videos"`. It is a path or a `file://` address.

    Args:
        path: A `.jsonl` file, or a `.json` file with a list.
        bad: Where bad rows are reported.
    """
    return _read(path, bad, _messages)


def _read(path: str, bad: BadRows, parse: Callable[[Item], Annotation]) -> Iterator[Annotation]:
    for item in json_items(path, bad):
        try:
            annotation = parse(item)
        except BadRow as error:
            bad.add(item.source, error)
        else:
            yield annotation


def _plain(item: Item) -> Annotation:
    kind, media = _medium(_columns(item.value))
    rows = field(item.value, "turns", list) if "turns" in item.value else [item.value]
    turns = []
    for source, row in zip(_sources(item, len(rows)), rows, strict=True):
        instruction, answer = field(row, "instruction", str), field(row, "answer", str)
        start, end = (None if row.get(name) is None else seconds(row[name]) for name in ("start", "end"))
        if start is None and end is not None:
            raise BadRow("wrong layout", "an end without a start")
        turns.append(Turn(source, instruction, answer, start, end))
    if any(turn.start is not None for turn in turns):
        if kind != "video":
            raise BadRow("wrong layout", "times without a video")
        kind = "dense"
    return Annotation(_id(item), item.source, kind, media, tuple(turns))


def _llava(item: Item) -> Annotation:
    kind, media = _medium(_columns(item.value))
    said = []
    for message in field(item.value, "conversations", list):
        role, text = _role(field(message, "from", str)), field(message, "value", str)
        said.append((role, _PLACEHOLDER.sub(" ", text) if media and role == "user" else text))
    return Annotation(_id(item), item.source, kind, media, _turns(item, said))


def _messages(item: Item) -> Annotation:
    found = _columns(item.value)
    said = []
    asked = False  # whether a part stands for an image or a video
    for message in field(item.value, "messages", list):
        content = field(message, "content", (str, list))
        texts = [content] if isinstance(content, str) else []
        for part in content if isinstance(content, list) else ():
            kind = field(part, "type", str)
            if kind == "text":
                texts.append(field(part, "text", str))
            elif kind in ("video", "image"):
                asked = True
                found += [(kind, part[name]) for name in (kind, "path", "url") if part.get(name) is not None][:1]
            else:
                raise BadRow("wrong layout", f"a part of type {kind!r}")
        said.append((_role(field(message, "role", str)), "\n".join(texts)))
    kind, media = _medium(found)
    if asked and not media:
        raise BadRow("wrong layout", "neither a part nor a column names the file of an image or a video")
    return Annotation(_id(item), item.source, kind, media, _turns(item, said))


def _columns(row: Any) -> list[tuple[str, Any]]:
    """What the fields `"video"`, `"videos"`, `"image"` and `"images"` of a row hold, each with its kind."""
    found = []
    for kind in ("video", "image"):
        for value in (json_object(row).get(kind), row.get(f"{kind}s")):
            values = value if isinstance(value, list) else [] if value is None else [value]
            found += [(kind, each) for each in values]
    return found


def _medium(found: list[tuple[str, Any]]) -> tuple[str, tuple[str, ...]]:
    """The kind of a row and the path of its only medium."""
    media = list(dict.fromkeys((kind, _local_path(value)) for kind, value in found))
    if len(media) > 1:
        raise BadRow("several media", ", ".join(path for _, path in media))
    return (media[0][0], (media[0][1],)) if media else ("text", ())


def _local_path(value: Any) -> str:
    """The path in a field: itself, a `file://` address, or the `{"path": ...}` that `datasets` writes."""
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str) or not path:
        raise BadRow("wrong layout", f"the path of an image or a video is expected, not {path!r}")
    return unquote(path.removeprefix("file://")) if path.startswith("file://") else path


def _id(item: Item) -> str:
    return str(item.value.get("id", item.key))


def _role(name: str) -> str:
    if name not in _ROLES:
        raise BadRow("wrong layout", f"unknown speaker {name!r}")
    return _ROLES[name]


def _turns(item: Item, said: list[tuple[str, str]]) -> tuple[Turn, ...]:
    """Pairs questions with answers; what the system says stands before the first question."""
    preface = ""
    if said and said[0][0] == "system":
        preface, said = f"{said[0][1]}\n\n", said[1:]
    pairs = list(zip(said[::2], said[1::2], strict=False))
    if len(said) % 2 or any((ask[0], answer[0]) != ("user", "assistant") for ask, answer in pairs):
        raise BadRow("wrong layout", f"not question and answer in turn: {', '.join(role for role, _ in said)}")
    return tuple(
        Turn(source, preface * (number == 0) + ask, answer)
        for number, (source, ((_, ask), (_, answer))) in enumerate(zip(_sources(item, len(pairs)), pairs, strict=True))
    )


def _sources(item: Item, count: int) -> list[str]:
    """Where each turn of an item stands."""
    return [item.source if count == 1 else f"{item.source} turn {number}" for number in range(1, count + 1)]
