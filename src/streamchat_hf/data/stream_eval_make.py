"""A StreamEval set out of dense captions, written by a language model (StreamChat, section 4).

The model writes a question with its answer about each segment, and checks what it has written against the rest of the
video. As in `synthesize`, nothing is asked twice, and what was asked is judged again on every run.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamchat_hf.data.stream_eval import StreamEvalQuestion
from streamchat_hf.data.stream_eval_prompt import (
    PROMPT_VERSION,
    SYSTEM,
    build_check_messages,
    read_check,
    refuse_leaks,
)
from streamchat_hf.data.synthesize_dedup import Embed, find_duplicates
from streamchat_hf.data.synthesize_llm import LanguageModel
from streamchat_hf.data.synthesize_log import Record, ask_once, replace_lines
from streamchat_hf.data.synthesize_prompt import BadAnswer, build_messages, read_answer
from streamchat_hf.data.synthesize_review import DROP, KEEP, NEW, ReviewEntry, append_review, read_review
from streamchat_hf.data.synthesize_segment import (
    LONGEST,
    CaptionedVideo,
    Segment,
    choose_segments,
    list_segments,
    read_captions,
)

# What can become of a segment; every one ends in exactly one of these.
OUTCOMES = (
    "kept",
    "unread",
    "dropped",
    "duplicate",
    "leaks",
    "not_visible",
    "not_needed",
    "not_live",
    "refused",
    "broken_json",
    "missing_field",
    "empty",
    "times_outside",
    "too_fast",
    "too_slow",
    "http_error",
)

HEADER = """\
# Read each entry beside its video, correct what is wrong, and write a verdict:
#   keep   goes into the set
#   drop   does not
#   new    not read yet: does not go into the set before somebody has
# instruction, answer, start and end are yours to change: what stands here goes out instead of what the model wrote.
# Entries that you delete come back.
"""

Ask = Callable[..., tuple[dict[str, Record], int]]


@dataclass(frozen=True)
class StreamEvalRun:
    """How a run went.

    Attributes:
        counts: Of segments by what became of them, with the keys of `OUTCOMES`.
        asked: How often the model has answered in this run; its other answers were in the log.
        silent_videos: How many videos have no captions that make a segment of the right length.
    """

    counts: dict[str, int]
    asked: int
    silent_videos: int


def make_stream_eval(
    captions: str | os.PathLike,
    out: str | os.PathLike,
    model: LanguageModel,
    *,
    seed: int = 0,
    limit: int | None = None,
    longest: float = LONGEST,
    workers: int = 8,
    review: str | os.PathLike | None = None,
    embed: Embed | None = None,
    progress: bool = False,
) -> StreamEvalRun:
    """Make a StreamEval set.

    Args:
        captions: Dense captions as JSONL, see `read_captions`.
        out: JSONL to write, see `read_stream_eval`, in the order of the segments. The log lies beside it, with the
            ending `.progress.jsonl`: an interrupted run goes on from there. Its answers hold for the model and the
            prompts that they were made with.
        model: Who writes, and checks what it has written.
        seed: Of the choice of segments.
        limit: How many segments; by default one per video.
        longest: Length of a segment, in seconds.
        workers: How many conversations at once.
        review: Review file. With one, only what a person has kept goes out; new questions are written into it. What
            stands there is asked for no more.
        embed: For near duplicates, see `find_duplicates`.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For a captions or review file with something wrong in it; the line is named.
        ConnectionError: If the model has answered none of `GIVE_UP_AFTER` requests in a row.
    """
    out = Path(out)
    if out.resolve() == Path(captions).resolve():
        raise ValueError(f"{out} holds the captions; write the questions elsewhere")
    videos = read_captions(captions)
    candidates = [list_segments(video, longest) for video in videos]
    whole = {segment.id: video for video, found in zip(videos, candidates, strict=True) for segment in found}
    segments = choose_segments(candidates, seed, limit)
    reviewed = read_review(review) if review is not None else {}
    made_by = {"model": model.name, "prompt": PROMPT_VERSION, "seed": seed}
    log = out.with_suffix(".progress.jsonl")
    ask = partial(ask_once, log, model, made_by=made_by, workers=workers, progress=progress)
    fresh = [segment for segment in segments if segment.id not in reviewed]
    written, problems, asked = _write_and_check(fresh, whole, ask)
    counts = Counter(problems.values())
    entries = []
    for segment in segments:
        entry = reviewed.get(segment.id) or written.get(segment.id)
        if entry is not None and entry.verdict == DROP:
            counts["dropped"] += 1
        elif entry is not None:
            entries.append(entry)
    copies = find_duplicates(
        [(entry.draft.instruction, entry.draft.answer) for entry in entries],
        [entry.verdict == KEEP for entry in entries],
        embed,
    )
    entries = [entry for i, entry in enumerate(entries) if i not in copies]
    kept = [entry for entry in entries if review is None or entry.verdict == KEEP]
    counts += Counter(duplicate=len(copies), kept=len(kept), unread=len(entries) - len(kept))
    if review is not None:
        append_review(review, [entry for entry in entries if entry.id not in reviewed], HEADER)
    replace_lines(out, map(_row, kept))
    return StreamEvalRun({outcome: counts[outcome] for outcome in OUTCOMES}, asked, candidates.count([]))


def _write_and_check(
    segments: list[Segment], whole: dict[str, CaptionedVideo], ask: Ask
) -> tuple[dict[str, ReviewEntry], dict[str, str], int]:
    """Return what passes by segment, what is wrong with the others, and how often the model has answered."""
    answers, asked = ask(
        {segment.id: partial(build_messages, segment, (), SYSTEM) for segment in segments}, unit="question"
    )
    written, checks = {}, {}
    problems = {segment.id: "http_error" for segment in segments if segment.id not in answers}
    for segment in segments:
        if segment.id in answers:
            record, video = answers[segment.id], whole[segment.id]
            try:
                draft = read_answer(record["text"], segment)
                refuse_leaks(draft, video)
                messages = build_check_messages(draft, video)
            except BadAnswer as error:
                problems[segment.id] = error.kind
            else:
                written[segment.id] = ReviewEntry(segment.id, segment, draft, NEW, record["made_by"])
                digest = hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:10]
                checks[segment.id] = f"{segment.id}/check-{digest}", messages
    found, checked = ask({name: partial(list, messages) for name, messages in checks.values()}, unit="check")
    for question, (name, _) in checks.items():
        try:
            if name not in found:
                raise BadAnswer("http_error", "no answer")
            read_check(found[name]["text"])
        except BadAnswer as error:
            problems[question] = error.kind
            del written[question]
    return written, problems, asked + checked


def _row(entry: ReviewEntry) -> dict[str, Any]:
    draft = entry.draft
    return asdict(
        StreamEvalQuestion(entry.id, entry.segment.video, draft.start, draft.instruction, draft.answer, draft.end)
    )
