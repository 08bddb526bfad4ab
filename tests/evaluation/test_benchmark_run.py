import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from benchmark_helpers import LIVE, Toy, load_failing, load_toy, square
from cli_helpers import run as run_command
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Viewer
from streamchat_hf.evaluation.benchmark_run import LOG, WorkLog, describe, run

TESTS = Path(__file__).parents[1]
FILES = {"results.json", "results.md", "card.yaml", "squares.json", LOG}


def quiet(benchmark, out, load=load_toy, jobs=1):
    return run(benchmark, load, out, jobs=jobs, progress=False)


def contents(folder: Path) -> dict[str, bytes]:
    """What follows from the work; the log is in the order in which it was done."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != LOG}


@pytest.fixture
def whole(tmp_path):
    """The files of a run that was not disturbed."""
    quiet(Toy(), tmp_path / "whole")
    return contents(tmp_path / "whole")


def test_results_have_everything_that_decides_them_and_no_trace_of_this_machine(tmp_path):
    results = quiet(Toy(how=LIVE), tmp_path / "out" / "deep")
    assert {path.name for path in (tmp_path / "out" / "deep").iterdir()} == FILES
    text = (tmp_path / "out" / "deep" / "results.json").read_text()
    assert json.loads(text) == results and str(tmp_path) not in text
    assert results["rows"] == [{"number": i, "square": i * i, "third": 1 / 3} for i in range(6)]
    assert results["scores"] == {"sum": 55}
    settings = {key: results[key] for key in ("benchmark", "protocol", "clock", "tokens_per_second", "model", "seed")}
    assert settings == dict(zip(settings, ("streamworld", "streaming", "simulated", 2.0, "toy", None), strict=True))
    assert {"python", "streamchat-hf", "torch", "transformers"} <= set(results["versions"])
    assert "55" in (tmp_path / "out" / "deep" / "results.md").read_text()


def test_a_clock_that_nothing_depends_on_is_not_written_down(tmp_path):
    slow, fast = (Conditions("official", 1.0, tokens_per_second=speed) for speed in (1.0, 2.0))
    assert describe(Toy(how=slow)) == describe(Toy(how=fast))
    assert describe(Toy(how=slow))["clock"] is None


@pytest.mark.parametrize("done", range(7))
def test_a_run_goes_on_after_any_piece_to_the_same_files(whole, tmp_path, done):
    quiet(Toy(), tmp_path / "out")
    log = tmp_path / "out" / LOG
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[: 1 + done]) + b'{"piece": "5", "ro')  # cut off while the next one was written
    asked = []
    quiet(Toy(), tmp_path / "out", lambda: Viewer(lambda number: asked.append(number) or square(number), 1))
    assert asked == list(range(done, 6))
    assert contents(tmp_path / "out") == whole and log.read_bytes() == b"".join(lines)


def test_rows_stand_in_the_order_of_the_work_whoever_was_ready_first(whole, tmp_path):
    quiet(Toy(), tmp_path / "out")
    log = tmp_path / "out" / LOG
    head, *lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([head, *reversed(lines)]))
    quiet(Toy(), tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_a_run_that_is_done_loads_no_model(tmp_path):
    first = quiet(Toy(), tmp_path)
    assert quiet(Toy(), tmp_path, load=None) == first


def test_what_was_written_before_an_error_is_kept(whole, tmp_path):
    def fails(number):
        if number == 3:
            raise KeyError("of the model")
        return square(number)

    with pytest.raises(KeyError):
        quiet(Toy(), tmp_path / "out", lambda: Viewer(fails, 1))
    assert len((tmp_path / "out" / LOG).read_text().splitlines()) == 1 + 3
    quiet(Toy(), tmp_path / "out")
    assert contents(tmp_path / "out") == whole


@pytest.mark.slow
def test_an_error_in_one_of_several_jobs_ends_them_all(tmp_path):
    done = tmp_path / "done"
    done.mkdir()
    with pytest.raises(KeyError):
        quiet(Toy(pieces=30, wait=0.5), tmp_path / "out", partial(load_failing, done, 1), jobs=2)
    for worker in multiprocessing.active_children():
        worker.join(60)
    assert len(list(done.iterdir())) < 15  # a second job may start late, but what is left is left


def test_a_piece_with_an_error_is_tried_again(tmp_path):
    @dataclass(frozen=True)
    class Torn(Toy):
        def answer(self, piece, viewer):
            return [{"square": 0, "error": "torn"}] if (piece, viewer.processor) == ("2", 0) else [{"square": 1}]

    asked = []
    first = quiet(Torn(), tmp_path / "out", lambda: Viewer(square, 0))
    again = quiet(Torn(), tmp_path / "out", lambda: asked.append(1) or Viewer(square, 1))
    assert (first["scores"], again["scores"]) == ({"sum": 5}, {"sum": 6}) and asked == [1]
    assert quiet(Torn(), tmp_path / "out", load=None) == again


def test_other_weights_of_the_same_name_are_another_run(tmp_path):
    results = run(Toy(), load_toy, tmp_path, progress=False, weights={"model": "a"})
    assert results["weights"] == {"model": "a"}
    with pytest.raises(ValueError, match="weights {'model': 'a'} there and {'model': 'b'} here"):
        run(Toy(), load_toy, tmp_path, progress=False, weights={"model": "b"})


def test_another_run_is_not_gone_on_with(tmp_path):
    quiet(Toy(pieces=2), tmp_path)
    with pytest.raises(ValueError, match="pieces 2 there and 3 here"):
        quiet(Toy(pieces=3), tmp_path)
    with pytest.raises(ValueError, match="protocol 'official' there and 'streaming' here"):
        quiet(Toy(pieces=2, how=LIVE), tmp_path)
    (tmp_path / LOG).write_text("[]\n")
    with pytest.raises(ValueError, match="no log of a benchmark"):
        quiet(Toy(pieces=2), tmp_path)


def test_jobs_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="at least 1"):
        quiet(Toy(), tmp_path / "out", jobs=0)
    wall = replace(LIVE, clock="wall", tokens_per_second=None)
    with pytest.raises(ValueError, match="slow each other down"):
        quiet(Toy(how=wall), tmp_path / "out", jobs=2)
    assert not (tmp_path / "out").exists()


def test_the_log_reads_back_what_it_was_given(tmp_path):
    with WorkLog(tmp_path / LOG, {"seed": 1}) as log:
        log.append("ä", [{"words": [("a", 0.1)]}])
    with WorkLog(tmp_path / LOG, {"seed": 1}) as again:
        assert again.done == log.done == {"ä": [{"words": [["a", 0.1]]}]}


SCRIPT = """
import sys
from pathlib import Path
from benchmark_helpers import Toy, load_toy
from streamchat_hf.evaluation.benchmark_run import run
if __name__ == "__main__":
    run(Toy(pieces=40, wait=0.2), load_toy, Path(sys.argv[1]), jobs=int(sys.argv[2]), progress=False)
"""


def kill_after_two(process: subprocess.Popen, out: Path, pieces: int) -> None:
    """Lets a run do two pieces of work or a few more, and kills it."""
    log = out / LOG
    while not log.exists() or log.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 2 <= log.read_bytes().count(b"\n") - 1 < pieces and not (out / "results.json").exists()


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_to_the_same_files_and_leaves_no_process(tmp_path, jobs):
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = [sys.executable, str(script), str(out), str(jobs)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    kill_after_two(process, out, 40)
    with suppress(ProcessLookupError):  # its children end with it
        while True:
            os.killpg(process.pid, 0)
            time.sleep(0.01)
    for folder in (out, tmp_path / "whole"):
        quiet(Toy(pieces=40), folder)
    assert contents(out) == contents(tmp_path / "whole")


def test_the_shipped_model_goes_on_after_a_kill(tmp_path):
    """The same with the command itself: real videos, a real model."""
    words = ["eval", "streamworld", "--protocol", "streaming", "--clips", "10", "--tokens-per-second", "2", "--out"]
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = [sys.executable, "-m", "streamchat_cli", *words, str(out)]
    kill_after_two(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), out, 10)
    for folder in (out, undisturbed):
        run_command(*words, folder)
    assert contents(out) == contents(undisturbed)
