"""Runs a benchmark: video by video, in several processes, going on where a run before was killed.

work ─► what the log has is done ─► answer the rest, log each video when it is ready ─► results, in the order of work

Everything that is written follows from the log and the settings: however often a run is cut off and started again,
and however many processes share the work, the files are the same.
"""

import importlib.metadata
import json
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol

import torch
from tqdm.auto import tqdm

from streamchat_hf.evaluation.benchmark_protocol import Conditions, Row, Viewer
from streamchat_hf.evaluation.benchmark_results import Score, card_block, results_page

LOG = "progress.jsonl"
PACKAGES = ("streamchat-hf", "torch", "transformers", "av")

Load = Callable[[], Viewer]


class Benchmark(Protocol):
    """What a benchmark must know to be run. It is copied into the processes that answer."""

    @property
    def name(self) -> str:
        """Of the benchmark."""

    @property
    def how(self) -> Conditions:
        """Under which conditions it is asked."""

    @property
    def model_name(self) -> str:
        """What the model is called in the results."""

    def settings(self) -> Row:
        """What else decides the results, such as a digest of the annotations."""

    def work(self) -> list[str]:
        """The names of all pieces of work, usually videos, in the order of the results.

        Raises:
            ValueError: If the annotations are not those of this benchmark.
            FileNotFoundError: If a video is missing.
        """

    def answer(self, piece: str, viewer: Viewer) -> list[Row]:
        """One row for each question of a piece, of plain JSON values."""

    def files(self, rows: Sequence[Row]) -> Mapping[str, str]:
        """Files in the benchmark's own format, by name."""

    def scores(self, rows: Sequence[Row]) -> Row:
        """The benchmark's numbers, as its metric gives them."""

    def headline(self, scores: Row) -> list[Score]:
        """The numbers that one reads first."""


def run(
    benchmark: Benchmark,
    load: Load,
    out: Path,
    jobs: int = 1,
    progress: bool = True,
    weights: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Runs a benchmark, or what is left of it, and writes its files.

    Args:
        benchmark: What is asked.
        load: Gives who answers; called once in each process that does.
        out: The folder for the results: `results.json`, `results.md`, `card.yaml`, the benchmark's own files, and the
            log that a run goes on from. It is made if need be.
        jobs: How many processes answer; one: this one.
        progress: Whether to show a progress bar.
        weights: What tells the models from others of the same name, such as digests; a part of the settings.

    Returns:
        The content of `results.json`.

    Raises:
        ValueError: If the log is that of a run with other settings, or the wall clock were shared by several jobs.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    if jobs > 1 and benchmark.how.is_live and benchmark.how.clock == "wall":
        raise ValueError("under the wall clock several jobs would slow each other down: one only")
    work, settings = benchmark.work(), describe(benchmark)
    if weights is not None:
        settings["weights"] = dict(weights)
    out.mkdir(parents=True, exist_ok=True)
    with WorkLog(out / LOG, settings) as log:
        # What failed before may have been the machine's fault: it is tried again.
        failed = {piece for piece, rows in log.done.items() if any("error" in row for row in rows)}
        left = [piece for piece in work if piece not in log.done or piece in failed]
        with tqdm(total=len(work), initial=len(work) - len(left), unit="video", disable=not progress) as bar:
            for piece, rows in _answers(benchmark, load, left, jobs):
                log.append(piece, rows)
                bar.update()
        rows = [row for piece in work for row in log.done[piece]]
    _write(out, benchmark.files(rows))  # first: a scorer that misses something costs nothing then
    results = {**settings, "scores": benchmark.scores(rows), "rows": rows}
    headline = benchmark.headline(results["scores"])
    text = json.dumps(results, indent=1, ensure_ascii=False) + "\n"
    page, card = results_page(results, headline), card_block(results, headline)
    _write(out, {"results.json": text, "results.md": page, "card.yaml": card})
    return results


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def describe(benchmark: Benchmark) -> dict[str, Any]:
    """Everything that decides the results, with versions; no wall-clock time and no path of this machine."""
    how, versions = benchmark.how, {"python": platform.python_version()}
    for name in PACKAGES:
        versions[name] = importlib.metadata.version(name)
    settings = {
        "benchmark": benchmark.name,
        "protocol": how.protocol,
        "clock": how.clock if how.is_live else None,
        "tokens_per_second": how.tokens_per_second if how.is_live else None,
        "model": benchmark.model_name,
        "fps": how.fps,
        "deadline": how.deadline if how.is_live else None,
        "max_new_tokens": how.max_new_tokens,
        **{"seed": None, **benchmark.settings()},
        "versions": versions,
    }
    return json.loads(json.dumps(settings))


class WorkLog:
    """The rows of every piece of work that is ready, as JSONL behind one line with the settings. A context manager.

    Args:
        path: The file; it is made if need be. What was being written when a run was killed is cut off.
        settings: Of the run.

    Attributes:
        done: Rows by piece of work.

    Raises:
        ValueError: If the file is that of a run with other settings, or no such file.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self.done: dict[str, list[Row]] = {}
        whole = path.read_bytes() if path.exists() else b""
        length = whole.rfind(b"\n") + 1
        lines = whole[:length].splitlines()
        try:
            before = json.loads(lines[0])["settings"] if lines else settings
            for line in lines[1:]:
                record = json.loads(line)
                self.done[record["piece"]] = record["rows"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path}: no log of a benchmark; remove it, or write into another folder") from None
        if other := [key for key in {**before, **settings} if before.get(key) != settings.get(key)]:
            told = ", ".join(f"{key} {before.get(key)!r} there and {settings.get(key)!r} here" for key in other)
            raise ValueError(f"{path}: of a run with other settings ({told}); remove it, or write into another folder")
        if length < len(whole):
            os.truncate(path, length)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 -- closed by __exit__
        if not lines:
            self._write({"settings": settings})

    def __enter__(self) -> "WorkLog":
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def append(self, piece: str, rows: list[Row]) -> None:
        """Keeps the rows of a piece of work, as they will be read again."""
        self.done[piece] = json.loads(json.dumps(rows))
        self._write({"piece": piece, "rows": rows})

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()


def _answers(benchmark: Benchmark, load: Load, left: list[str], jobs: int) -> Iterator[tuple[str, list[Row]]]:
    """Yield the rows of each piece of work as soon as they are there."""
    if not left:
        return
    if jobs == 1:
        viewer = load()
        for piece in left:
            yield piece, benchmark.answer(piece, viewer)
        return
    # A process that is forked from one with threads may hang.
    context = multiprocessing.get_context("spawn")
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, context, _begin_job, (benchmark, load, threads))
    try:
        futures = {pool.submit(_answer_in_job, piece): piece for piece in left}
        for future in as_completed(futures):
            yield futures[future], future.result()
        pool.shutdown()
    except BaseException:  # nothing new is begun, and nobody waits for what has been, as `with` would
        workers = list(pool._processes.values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        raise


# What a process of its own answers with.
_job: dict[str, Any] = {}


def _begin_job(benchmark: Benchmark, load: Load, threads: int) -> None:
    """Loads the model, and ends this process as soon as its parent has ended, however that came."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    _job.update(benchmark=benchmark, viewer=load())


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _answer_in_job(piece: str) -> list[Row]:
    return _job["benchmark"].answer(piece, _job["viewer"])
