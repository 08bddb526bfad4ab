"""What a language model has answered, kept in a log as soon as it is there: asking is slow and costs money."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from streamchat_hf.data.synthesize_llm import LanguageModel, Messages, NoAnswer

# So many requests in a row without an answer: the server is down, or the key is wrong.
GIVE_UP_AFTER = 16

# An answer, `{"id", "text", "made_by"}`.
Record = dict[str, Any]

logger = logging.getLogger(__name__)


def read_log(path: Path, made_by: Mapping[str, Any]) -> dict[str, Record]:
    """Return the answers of a log, by request, cutting off what was being written when the run before was killed.

    Args:
        path: JSONL; no file is an empty log.
        made_by: Answers of another `"model"` or `"prompt"` are left out.

    Raises:
        ValueError: For a log with something else in it; the line is named.
    """
    if not path.exists():
        return {}
    whole = path.read_bytes()
    length = whole.rfind(b"\n") + 1
    if length < len(whole):
        os.truncate(path, length)
    records = {}
    for number, line in enumerate(whole[:length].splitlines(), start=1):
        try:
            record = json.loads(line)
            record = {key: record[key] for key in ("id", "text", "made_by")}
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}:{number}: no record of an answer; remove the line to ask again") from None
        if all(record["made_by"].get(key) == made_by[key] for key in ("model", "prompt")):
            records[record["id"]] = record
    return records


def ask_once(
    path: Path,
    model: LanguageModel,
    requests: Mapping[str, Callable[[], Messages]],
    made_by: Mapping[str, Any],
    workers: int,
    progress: bool,
    unit: str,
) -> tuple[dict[str, Record], int]:
    """Ask what the log has no answer to, see `read_log` and `ask_and_log`.

    Returns:
        The answers that there are, by request, and how many of them are new.
    """
    answers = read_log(path, made_by)
    missing = {request: make for request, make in requests.items() if request not in answers}
    new = ask_and_log(path, model, missing, made_by, workers, progress, unit)
    answers |= new
    return {request: answers[request] for request in requests if request in answers}, len(new)


def ask_and_log(
    path: Path,
    model: LanguageModel,
    requests: Mapping[str, Callable[[], Messages]],
    made_by: Mapping[str, Any],
    workers: int,
    progress: bool,
    unit: str,
) -> dict[str, Record]:
    """Ask, and append every answer to the log as soon as it is there.

    Args:
        path: The log.
        model: Who answers.
        requests: What makes each conversation, by request.
        made_by: Stands in the records.
        workers: How many conversations at once.
        progress: Whether to show a progress bar.
        unit: What a request is called there.

    Returns:
        The new answers, by request.

    Raises:
        ConnectionError: If the model has answered none of `GIVE_UP_AFTER` requests in a row.
    """
    records = {}
    with open(path, "a", encoding="utf-8") as file:
        for request, text in _ask(model, requests, workers, progress, unit):
            records[request] = {"id": request, "text": text, "made_by": made_by}
            file.write(json.dumps(records[request]) + "\n")
            file.flush()
    return records


def _ask(
    model: LanguageModel, requests: Mapping[str, Callable[[], Messages]], workers: int, progress: bool, unit: str
) -> Iterator[tuple[str, str]]:
    """Yield each answer as soon as it is there."""
    stop, lock = threading.Event(), threading.Lock()
    in_a_row = 0

    def ask(make: Callable[[], Messages]) -> str:
        nonlocal in_a_row
        if stop.is_set():
            raise NoAnswer("not asked any more")
        try:
            text = model.ask(make(), stop)
        except NoAnswer as error:
            with lock:
                in_a_row += 1
                if in_a_row < GIVE_UP_AFTER:
                    raise
                stop.set()  # here, so that no worker asks once more
            raise ConnectionError(f"no answer for {GIVE_UP_AFTER} {unit}s in a row; {error}") from None
        with lock:
            in_a_row = 0
        return text

    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(requests), unit=unit, disable=not progress) as bar:
        futures = {pool.submit(ask, make): request for request, make in requests.items()}
        try:
            for future in as_completed(futures):
                bar.update()
                try:
                    text = future.result()
                except NoAnswer as error:
                    if not stop.is_set():
                        logger.warning("%s", error)
                    continue
                yield futures[future], text
        finally:  # an error, Ctrl-C, or simply the end: whoever waits for a server to come back stops doing so
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def replace_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write JSONL, replacing the file at once, so that nobody ever reads half of it."""
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    os.replace(part, path)
