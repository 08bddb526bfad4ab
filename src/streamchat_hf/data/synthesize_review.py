"""The file in which a person reviews instructions, and which gives them back as examples."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from streamchat_hf.data.synthesize_prompt import BadAnswer, Draft, Example, caption_lines, check_draft
from streamchat_hf.data.synthesize_segment import Caption, Segment

NEW, KEEP, DROP = "new", "keep", "drop"
VERDICTS = (NEW, KEEP, DROP)

HEADER = """\
# Read each entry, correct what is wrong, and write a verdict:
#   keep   goes into the data and serves the model as an example
#   drop   never goes into the data
#   new    not read yet: goes into the data, is no example
# instruction, answer, start and end are yours to change: what stands here goes out instead of what the model wrote.
# Entries that you delete come back.
"""

_CAPTION = re.compile(r"\[(\d+(?:\.\d+)?) - (\d+(?:\.\d+)?)\] (.+)")
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C: thousands of entries in a second


@dataclass(frozen=True)
class ReviewEntry:
    """One instruction under review.

    Attributes:
        id: Of its segment when it was made.
        segment: What it is about.
        draft: How it stands now.
        verdict: `"new"`, `"keep"` or `"drop"`.
        made_by: Where it comes from.
    """

    id: str
    segment: Segment
    draft: Draft
    verdict: str = NEW
    made_by: dict[str, Any] = field(default_factory=dict)


def read_review(path: str | os.PathLike) -> dict[str, ReviewEntry]:
    """Read a review file.

    Args:
        path: YAML, a list of entries. A file that does not exist has none.

    Returns:
        The entries by id, in the order of the file.

    Raises:
        ValueError: For everything that is wrong in the file, a line each: `path:line: what`.
    """
    path = Path(path)
    entries: dict[str, ReviewEntry] = {}
    problems = []
    for item, lines in _items(path) if path.exists() else ():
        try:
            entry = _entry(item)
            if entry.id in entries:
                raise _Problem("id", f"{entry.id} stands here twice")
            entries[entry.id] = entry
        except _Problem as problem:
            problems.append(f"{path}:{lines.get(problem.field, lines[''])}: {problem}")
    if problems:
        raise ValueError("\n".join(problems))
    return entries


def append_review(path: str | os.PathLike, entries: Iterable[ReviewEntry], header: str = HEADER) -> None:
    """Write entries below what a person has in the file, or into a new file below `header`, on how to edit it."""
    path = Path(path)
    text = "" if path.exists() else header
    text += "".join("\n" + _text(entry) for entry in entries)  # the blank line also ends a last line without an end
    with open(path, "a", encoding="utf-8") as file:
        file.write(text)


def shipped_examples() -> list[Example]:
    """The examples of the package, for as long as a person has approved too few."""
    entries = read_review(Path(__file__).with_name("synthesize_examples.yaml"))
    return [Example(entry.segment, entry.draft) for entry in entries.values()]


class _Problem(ValueError):
    """What is wrong with one field of an entry."""

    def __init__(self, name: str, text: str):
        super().__init__(text)
        self.field = name


def _items(path: Path) -> Iterable[tuple[Any, dict[str, int]]]:
    """Yield entries with the lines of their fields; under `""` that of the entry itself."""
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if root is None:  # nothing but comments
            return
        if not isinstance(root, yaml.SequenceNode):
            raise ValueError(f"{path}:{root.start_mark.line + 1}: expected a list of entries")
        for node in root.value:
            lines = {"": node.start_mark.line + 1}
            if isinstance(node, yaml.MappingNode):
                lines |= {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
            yield loader.construct_object(node, deep=True), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from None


def _entry(item: Any) -> ReviewEntry:
    if not isinstance(item, dict):
        raise _Problem("", f"expected an entry with fields, not {item!r}")
    verdict = _get(item, "verdict", str)
    if verdict not in VERDICTS:
        raise _Problem("verdict", f"unknown verdict {verdict!r}: expected {', '.join(VERDICTS)}")
    captions = tuple(_caption(line) for line in _get(item, "captions", list))
    if not captions:
        raise _Problem("captions", "there are no captions")
    segment = Segment(_get(item, "video", str), captions)
    draft = Draft(
        " ".join(_get(item, "instruction", str).split()),
        " ".join(_get(item, "answer", str).split()),
        float(_get(item, "start", (int, float))),
        float(_get(item, "end", (int, float))),
    )
    try:
        draft = draft if verdict == DROP else check_draft(draft, segment)
    except BadAnswer as error:
        fields = {"empty": "answer" if draft.instruction else "instruction", "times_outside": "start"}
        raise _Problem(fields.get(error.kind, "answer"), str(error)) from None
    made_by = _get({"made_by": {}, **item}, "made_by", dict)
    return ReviewEntry(_get(item, "id", str), segment, draft, verdict, made_by)


def _get(item: dict[str, Any], name: str, kind: Any) -> Any:
    value = item.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Problem(name, f"{name} is missing" if value is None else f"{name} cannot be {value!r}")
    return value


def _caption(line: Any) -> Caption:
    match = _CAPTION.fullmatch(line) if isinstance(line, str) else None
    if match is None:
        raise _Problem("captions", f"expected a caption such as '[0.0 - 2.5] A door opens.', not {line!r}")
    return Caption(float(match[1]), float(match[2]), match[3])


class _Folded(str):
    """Running text, which YAML writes below its key, free of quotes: it can be edited like any text."""


class _Dumper(yaml.SafeDumper):
    pass


def _scalar(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # A path may hold line breaks of Unicode, which would be read as blanks unless they are escaped.
    style = ">" if isinstance(text, _Folded) else None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _scalar)
_Dumper.add_representer(_Folded, _scalar)


def _text(entry: ReviewEntry) -> str:
    draft = entry.draft
    item = {
        "id": entry.id,
        "verdict": entry.verdict,
        "video": entry.segment.video,
        "captions": caption_lines(entry.segment),
        "start": draft.start,
        "end": draft.end,
        "instruction": _Folded(draft.instruction),
        "answer": _Folded(draft.answer),
        "made_by": entry.made_by,
    }
    return yaml.dump([item], Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
