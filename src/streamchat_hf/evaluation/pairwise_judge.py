"""A language model judges which of two models answers better while a video goes on (StreamChat, section 4).

Each pair of answers is shown in both orders, and what the judge says of one order has to hold in the other. Every
reply goes into a log as soon as it is there, nothing is asked twice, and the result is computed from the log again on
every run: a run that was killed goes on and writes the same.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from streamchat_hf.data.annotations import BadRow, BadRows, field, json_items, seconds
from streamchat_hf.data.stream_eval import read_stream_eval
from streamchat_hf.data.synthesize_llm import LanguageModel
from streamchat_hf.data.synthesize_log import Record, ask_once
from streamchat_hf.data.synthesize_prompt import Messages
from streamchat_hf.evaluation.pairwise_judge_prompt import (
    CRITERIA,
    OVERALL,
    PROMPT_VERSION,
    MalformedVerdict,
    Verdict,
    build_messages,
    read_verdict,
)
from streamchat_hf.evaluation.pairwise_judge_score import OUTCOMES, combine, order_effect, score_outcomes

ATTEMPTS = 3  # for one verdict
MALFORMED, UNANSWERED = "malformed", "unanswered"


@dataclass(frozen=True)
class Answers:
    """What one model answered.

    Attributes:
        path: Of the file.
        model: Its name.
        rows: By the ids of the questions the fields `"video"`, `"time"`, `"question"` and `"answer"`.
    """

    path: str
    model: str
    rows: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Comparison:
    """Two answers in one order.

    Attributes:
        name: Of its requests; the same for the same question with the same answers.
        question: What was asked.
        first: The answer that is shown first.
        second: The other one.
        reference: A good answer, if there is one.
    """

    name: str
    question: str
    first: str
    second: str
    reference: str | None

    def messages(self, problem: str = "") -> Messages:
        """Return the conversation; see `build_messages`."""
        return build_messages(self.question, self.first, self.second, self.reference, problem)


def read_answers(path: str | os.PathLike) -> Answers:
    """Read an answers file, as `streamchat eval streamchat-eval` writes it.

    Args:
        path: JSONL, a line per question: `{"id", "model", "video", "time", "question", "answer", ...}`.

    Raises:
        ValueError: For a line that is no such answer, is of another model, or has the id of another one; it names the
            file and the line. And for a file without answers.
    """
    rows: dict[str, dict[str, Any]] = {}
    model = None
    for item in json_items(os.fspath(path), BadRows(refuse=True)):
        try:
            name, model = field(item.value, "id", str), model or field(item.value, "model", str)
            row = {key: field(item.value, key, str) for key in ("video", "question", "answer")}
            row["time"] = seconds(item.value.get("time"))
            if item.value["model"] != model:
                raise BadRow("another model", f"{item.value['model']!r} after {model!r}")
            if name in rows:
                raise BadRow("id twice", name)
        except BadRow as error:
            raise BadRow(error.reason, error.detail, item.source) from None
        rows[name] = row
    if model is None:
        raise ValueError(f"{os.fspath(path)}: there are no answers")
    return Answers(os.fspath(path), model, rows)


def judge_answers(
    answers_a: str | os.PathLike,
    answers_b: str | os.PathLike,
    judge: LanguageModel,
    log: str | os.PathLike,
    *,
    questions: str | os.PathLike | None = None,
    seed: int = 0,
    workers: int = 8,
    progress: bool = False,
) -> dict[str, Any]:
    """Have a language model judge which answers are better: A wins, ties or loses.

    A wins a question if the judge prefers its answer in both orders, loses it if it prefers B's in both, and ties
    otherwise. A reply that is no verdict is asked for again, `ATTEMPTS` times in all; then the question is counted
    apart as `"malformed"`. So is one without a reply as `"unanswered"`, which the next run asks again.

    Args:
        answers_a: Answers file, see `read_answers`.
        answers_b: The other one, with answers to the same questions.
        judge: Who judges.
        log: JSONL; the replies of the same judge to the same prompts that stand in it are not asked for again.
        questions: The StreamEval set, for its reference answers; without it the judge sees none.
        seed: Of the bootstrap.
        workers: How many conversations at once.
        progress: Whether to show a progress bar.

    Returns:
        `"judge"`, `"prompt"`, `"models"`, `"references"` (how many questions have one), `"seed"`; `"counts"` of the
        questions by what became of them; `"scores"`, those of `score_outcomes` overall and by criterion;
        `"same_in_both_orders"`, the share of the questions whose verdict does not depend on the order, and
        `"preferred"`, the verdicts by the place of the answer they prefer; `"rows"`, one per question, in the order
        of A's file.

    Raises:
        ValueError: If a file cannot be read, or the two do not answer the same questions.
        ConnectionError: If the judge has answered none of `GIVE_UP_AFTER` requests in a row.
    """
    a, b = read_answers(answers_a), read_answers(answers_b)
    _match(a, b)
    references = _references(a, questions)
    comparisons = {name: _both_orders(name, a, b, references.get(name)) for name in a.rows}
    made_by = {"model": judge.name, "prompt": PROMPT_VERSION}
    ask = partial(ask_once, Path(log), judge, made_by=made_by, workers=workers, progress=progress)
    found = _ask([one for pair in comparisons.values() for one in pair], ask)
    rows = []
    for name, row in a.rows.items():
        shown = {key: row[key] for key in ("video", "time", "question")}
        rows.append({"id": name, **shown, **_outcome([found[one.name] for one in comparisons[name]])})
    judged = [row for row in rows if row["outcome"] in OUTCOMES]
    by_criterion = [(row["video"], {OVERALL: row["outcome"], **row["criteria"]}) for row in judged]
    counts = Counter(row["outcome"] for row in rows)
    return {
        "judge": judge.name,
        "prompt": PROMPT_VERSION,
        "models": {"a": a.model, "b": b.model},
        "references": len(references),
        "seed": seed,
        "counts": {outcome: counts[outcome] for outcome in (*OUTCOMES, MALFORMED, UNANSWERED)},
        "scores": {
            name: score_outcomes([(video, outcomes[name]) for video, outcomes in by_criterion], seed)
            for name in (OVERALL, *CRITERIA)
        },
        **order_effect([(row["orders"][0][OVERALL], row["orders"][1][OVERALL]) for row in judged]),
        "rows": rows,
    }


def _match(a: Answers, b: Answers) -> None:
    """Raise a `ValueError` unless both have answered the same questions."""
    for one, other in ((a, b), (b, a)):
        missing = sorted(one.rows.keys() - other.rows.keys())
        if missing:
            raise ValueError(
                f"{other.path} has no answer to {len(missing)} of the questions of {one.path}, such as {missing[0]}"
            )
    for name, row in a.rows.items():
        for key in ("video", "time", "question"):
            if row[key] != b.rows[name][key]:
                raise ValueError(
                    f"{name} has the {key} {row[key]!r} in {a.path} and {b.rows[name][key]!r} in {b.path}"
                )


def _references(answers: Answers, path: str | os.PathLike | None) -> dict[str, str]:
    """Return the reference answers that there are to the questions that were answered."""
    if path is None:
        return {}
    questions = {question.id: question for question in read_stream_eval(path)}
    for name, row in answers.rows.items():
        if name not in questions or questions[name].question != row["question"]:
            raise ValueError(f"{os.fspath(path)} has no question {name}: {row['question'][:80]!r}")
    return {name: reference for name in answers.rows if (reference := questions[name].reference) is not None}


def _both_orders(name: str, a: Answers, b: Answers, reference: str | None) -> list[Comparison]:
    """Return the comparison that shows the answer of A first, and the one that shows that of B first."""
    row, said = a.rows[name], {"a": a.rows[name]["answer"], "b": b.rows[name]["answer"]}
    comparisons = []
    for first, second in ("ab", "ba"):
        texts = row["question"], said[first], said[second], reference
        digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:10]
        comparisons.append(Comparison(f"{name}/{first}{second}-{digest}", *texts))
    return comparisons


def _ask(
    comparisons: Sequence[Comparison], ask: Callable[..., tuple[dict[str, Record], int]]
) -> dict[str, Verdict | MalformedVerdict | None]:
    """Return by the comparisons' names the verdict, or what was wrong with the last reply, or that there is none."""
    found: dict[str, Verdict | MalformedVerdict | None] = dict.fromkeys((one.name for one in comparisons), None)
    pending = dict.fromkeys(comparisons, "")
    for attempt in range(1, ATTEMPTS + 1):
        requests = {f"{one.name}/{attempt}": partial(one.messages, problem) for one, problem in pending.items()}
        replies, _ = ask(requests, unit="verdict")
        asked, pending = list(pending), {}
        for one in asked:
            record = replies.get(f"{one.name}/{attempt}")
            try:
                found[one.name] = None if record is None else read_verdict(record["text"])
            except MalformedVerdict as error:
                found[one.name] = error
                pending[one] = str(error)
        if not pending:
            break
    return found


def _outcome(orders: Sequence[Verdict | MalformedVerdict | None]) -> dict[str, Any]:
    """Return what becomes of a question: the outcome, also by criterion, and what was said of either order."""
    said: list[dict[str, Any]] = []
    for first, found in zip("ab", orders, strict=True):
        if isinstance(found, Verdict):
            said.append({"first": first, **found.choices, "justification": found.justification})
        else:
            said.append({"first": first, "problem": "no reply" if found is None else str(found)})
    if all(isinstance(found, Verdict) for found in orders):
        by = {name: combine(said[0][name], said[1][name]) for name in (OVERALL, *CRITERIA)}
        return {"outcome": by.pop(OVERALL), "criteria": by, "orders": said}
    return {"outcome": UNANSWERED if None in orders else MALFORMED, "criteria": None, "orders": said}
