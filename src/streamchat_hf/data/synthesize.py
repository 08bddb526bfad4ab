"""Dense instructions out of dense captions, written by a language model (StreamChat, section 2.2).

Asking is slow and costs money, so every answer goes into a log as soon as it is there, and nothing is asked twice.
Everything else is computed again from the log and the review file on every run: the same ones give the same data.
"""

import os
import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamchat_hf.data.synthesize_dedup import THRESHOLD, Embed, find_duplicates
from streamchat_hf.data.synthesize_llm import LanguageModel, Messages
from streamchat_hf.data.synthesize_log import ask_once, replace_lines
from streamchat_hf.data.synthesize_prompt import (
    PROMPT_VERSION,
    BadAnswer,
    Example,
    build_messages,
    read_answer,
)
from streamchat_hf.data.synthesize_review import (
    DROP,
    KEEP,
    NEW,
    ReviewEntry,
    append_review,
    read_review,
    shipped_examples,
)
from streamchat_hf.data.synthesize_segment import LONGEST, Segment, choose_segments, list_segments, read_captions

# What can become of a segment; every one ends in exactly one of these.
OUTCOMES = (
    "kept",
    "duplicate",
    "dropped",
    "refused",
    "broken_json",
    "missing_field",
    "empty",
    "times_outside",
    "too_fast",
    "too_slow",
    "http_error",
)
EXAMPLES = 3  # shown with each segment
UNREAD = 200


@dataclass(frozen=True)
class Synthesis:
    """How a run went.

    Attributes:
        counts: Of segments by what became of them, with the keys of `OUTCOMES`.
        asked: How many the model has answered in this run; the other answers were in the log or under review.
        unread: How many entries of the review file wait for a verdict.
        silent_videos: How many videos have no captions that make a segment of the right length.
    """

    counts: dict[str, int]
    asked: int
    unread: int
    silent_videos: int


def synthesize(
    captions: str | os.PathLike,
    out: str | os.PathLike,
    model: LanguageModel,
    *,
    seed: int = 0,
    limit: int | None = None,
    longest: float = LONGEST,
    workers: int = 8,
    review: str | os.PathLike | None = None,
    unread: int = UNREAD,
    embed: Embed | None = None,
    threshold: float = THRESHOLD,
    progress: bool = False,
) -> Synthesis:
    """Make dense instructions.

    Args:
        captions: Dense captions as JSONL, see `read_captions`.
        out: JSONL to write: `{"video", "start", "end", "instruction", "answer", "id", "made_by"}`, in the order of the
            segments whatever the order of the answers. The log lies beside it, with the ending `.progress.jsonl`: an
            interrupted run goes on from there. Its answers hold for the model and the prompt that they were made with.
        model: Who writes.
        seed: Of the choice of segments and examples.
        limit: How many segments; by default one per video.
        longest: Length of a segment, in seconds.
        workers: How many conversations at once.
        review: Review file. What stands there is not asked again, and goes out as it stands there unless it is to be
            dropped; what a person has approved replaces the shipped examples. New instructions are written into it.
        unread: How many entries without a verdict the review file may have.
        embed: For near duplicates, see `find_duplicates`.
        threshold: The same.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: For a captions or review file with something wrong in it; the line is named.
        ConnectionError: If the model has answered none of `GIVE_UP_AFTER` segments in a row.
    """
    out = Path(out)
    if out.resolve() == Path(captions).resolve():
        raise ValueError(f"{out} holds the captions; write the instructions elsewhere")
    candidates = [list_segments(video, longest) for video in read_captions(captions)]
    segments = choose_segments(candidates, seed, limit)
    entries = read_review(review) if review is not None else {}
    made_by = {"model": model.name, "prompt": PROMPT_VERSION, "seed": seed}
    log = out.with_suffix(".progress.jsonl")
    approved = [Example(entry.segment, entry.draft) for entry in entries.values() if entry.verdict == KEEP]
    shipped = shipped_examples()
    requests = {
        segment.id: partial(_conversation, segment, approved=approved, shipped=shipped, seed=seed)
        for segment in segments
        if segment.id not in entries
    }
    answers, asked = ask_once(log, model, requests, made_by, workers, progress, "segment")
    counts, kept = _judge(segments, answers, entries)
    pairs = [(entry.draft.instruction, entry.draft.answer) for entry in kept]
    copies = find_duplicates(pairs, [entry.verdict == KEEP for entry in kept], embed, threshold)
    kept = [entry for i, entry in enumerate(kept) if i not in copies]
    counts["duplicate"], counts["kept"] = len(copies), len(kept)
    replace_lines(out, map(_row, kept))
    waiting = 0
    if review is not None:
        waiting = sum(entry.verdict == NEW for entry in entries.values())
        fresh = [entry for entry in kept if entry.id not in entries][: max(unread - waiting, 0)]
        append_review(review, fresh)
        waiting += len(fresh)
    return Synthesis({outcome: counts[outcome] for outcome in OUTCOMES}, asked, waiting, candidates.count([]))


def _conversation(segment: Segment, approved: list[Example], shipped: list[Example], seed: int) -> Messages:
    return build_messages(segment, _examples(segment, approved, shipped, seed))


def _examples(segment: Segment, approved: list[Example], shipped: list[Example], seed: int) -> list[Example]:
    """Draw the examples that are shown with a segment: approved ones, as far as there are any."""
    rng = random.Random(f"{seed}/{segment.id}")
    ours = rng.sample(approved, min(EXAMPLES, len(approved)))
    return rng.sample(shipped, EXAMPLES - len(ours)) + ours


def _judge(
    segments: list[Segment], answers: dict[str, dict[str, Any]], entries: dict[str, ReviewEntry]
) -> tuple[Counter[str], list[ReviewEntry]]:
    """Return what became of the segments, and the instructions among them."""
    counts: Counter[str] = Counter()
    good = []
    for segment in segments:
        entry, record = entries.get(segment.id), answers.get(segment.id)
        if entry is not None:
            if entry.verdict == DROP:
                counts["dropped"] += 1
            else:
                good.append(entry)
        elif record is None:
            counts["http_error"] += 1
        else:
            try:
                draft = read_answer(record["text"], segment)
                good.append(ReviewEntry(segment.id, segment, draft, NEW, record["made_by"]))
            except BadAnswer as error:
                counts[error.kind] += 1
    return counts, good


def _row(entry: ReviewEntry) -> dict[str, Any]:
    draft = entry.draft
    row = {"video": entry.segment.video, "start": draft.start, "end": draft.end}
    return row | {"instruction": draft.instruction, "answer": draft.answer, "id": entry.id, "made_by": entry.made_by}
