"""Runs in processes of their own: two are one, and however often one is killed, the curve stays the same.

Run as a script, it trains by a recipe again and again, in a child that dies at one place after the other.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from training_runs import losses, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
ROOT = Path(__file__).parents[2]
# Where a child dies: in its so-manieth step; while it writes a file the so-manieth time, half written; or while it
# removes an older checkpoint.
DEATHS = [
    {"step": 3},
    {"file": "model.safetensors", "times": 1},
    {"step": 2},
    {"file": "optimizer.pt", "times": 1},
    {"file": "scheduler.pt", "times": 2},
    {"step": 1},
    {"removing": True},
    {"file": "rng_state.pth", "times": 1},
    {"file": "trainer_state.json", "times": 1},
    {"file": "trainer_state.json", "times": 2},
]


def environment(**changes) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1", **changes}


def run(*words, **changes) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment(**changes), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def assert_same(one: Path, other: Path, atol: float) -> None:
    first, second = (load_file(path / "final" / "model.safetensors") for path in (one, other))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=atol, rtol=0, msg=name)
    ours, theirs = losses(one), losses(other)
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[step] - theirs[step]) for step in ours) <= atol


LAUNCHERS = {
    "torchrun": ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29611),
    "accelerate": (
        *("-m", "accelerate.commands.launch", "--main_process_port", 29612),
        *("--config_file", ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml"),
    ),
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("stage", ["pretrain_stage1", "sft"])
def test_two_processes_are_one(tmp_path, launcher, stage):
    """The same updates from the same rows; a broken row in one of them holds up neither."""
    same = {"stage": stage, "max_steps": 4, "save_steps": 2, "global_batch_size": 8, "optim": "sgd"}
    same |= {"learning_rate": 0.05, "activation_checkpointing": True}
    if stage == "sft":
        same |= {"eval_strategy": "steps", "eval_steps": 4, "eval_clips": 1}
    one, two = (write_recipe(tmp_path, n, per_device_train_batch_size=4, **same) for n in ("one", "two"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text().replace("clip.mp4", "gone.mp4", 1))
    run("-m", "streamchat_hf.training", one)
    done = run(*LAUNCHERS[launcher], "-m", "streamchat_hf.training", two)
    assert_same(tmp_path / "one", tmp_path / "two", atol=1e-6)
    assert "gone.mp4: no such file" in done.stderr
    logs = [json.loads((tmp_path / n / "final" / "training_log.json").read_text())["log"] for n in ("one", "two")]
    for name in ("skipped_rows", "eval_streamworld_fresh", "eval_streamworld_frozen"):
        one, two = ([entry[name] for entry in log if name in entry] for log in logs)
        assert one == two and bool(one) == (name == "skipped_rows" or stage == "sft")
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoint-4").glob("rng_state*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]


def test_two_processes_resume_as_one_run(tmp_path):
    same = {"max_steps": 4, "save_steps": 1, "per_device_train_batch_size": 4, "dataloader_num_workers": 1}
    straight, broken = (write_recipe(tmp_path, name, **same) for name in ("straight", "broken"))
    two = (*LAUNCHERS["torchrun"], "-m", "streamchat_hf.training")
    run(*two, straight)
    run(*two, broken)
    for step in (3, 4):
        (tmp_path / "broken" / f"checkpoint-{step}" / "trainer_state.json").unlink()
    (tmp_path / "broken" / "final" / "model.safetensors").unlink()
    done = run(*two, broken)
    assert "checkpoint-4 was not written to its end and is removed" in done.stderr
    assert_same(tmp_path / "straight", tmp_path / "broken", atol=0.0)


def test_not_a_number_in_one_process_stops_both(tmp_path):
    recipe = write_recipe(tmp_path, "nan", per_device_train_batch_size=4, max_steps=6, save_steps=1)
    words = [*LAUNCHERS["torchrun"], __file__, recipe, "poison"]
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode != 0
    assert "NonFiniteError" in done.stderr and "row3 (rows.jsonl:1)" in done.stderr
    assert "in another process" in done.stderr
    for path in (tmp_path / "nan").glob("checkpoint-*"):
        assert all(value.isfinite().all() for value in load_file(path / "model.safetensors").values())


def test_killed_ten_times_it_ends_on_the_same_curve(tmp_path):
    same = {"max_steps": 24, "save_steps": 2, "save_total_limit": 1, "warmup_steps": 3, "logging_steps": 1}
    straight, killed = (write_recipe(tmp_path, name, **same) for name in ("straight", "killed"))
    run("-m", "streamchat_hf.training", straight)
    done = run(__file__, killed, "die")
    story = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"death"')]
    assert [chapter["status"] for chapter in story] == [-signal.SIGKILL] * len(DEATHS) + [0]
    begun = [chapter["from"] for chapter in story]
    assert begun == sorted(begun) and begun[-1] > begun[0] == 0
    assert any(chapter["broken"] for chapter in story)
    assert_same(tmp_path / "straight", tmp_path / "killed", atol=0.0)
    assert list(losses(tmp_path / "killed")) == list(range(1, 25))


def die_writing(name: str, times: int) -> None:
    """From now on, the so-manieth file of that name is written by half, and then the process is killed."""
    seen = 0

    def watch(path) -> None:
        nonlocal seen
        seen += os.path.basename(os.fspath(path)) == name
        if seen == times and os.path.basename(os.fspath(path)) == name:
            with open(path, "r+b") as file:
                file.truncate(os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    import safetensors.torch
    import transformers.modeling_utils
    from transformers import TrainerState

    save, save_file, to_json = torch.save, safetensors.torch.save_file, TrainerState.save_to_json

    def watched(write, position):
        def call(*args, **kwargs):
            write(*args, **kwargs)
            if isinstance(args[position], str | os.PathLike):
                watch(args[position])

        return call

    torch.save = watched(save, 1)
    transformers.modeling_utils.safe_save_file = watched(save_file, 1)
    TrainerState.save_to_json = watched(to_json, 1)


def die_in_step(step: int) -> None:
    """The so-manieth step of this process is its last: the gradients are there, the update is not made."""
    from streamchat_hf.training.sft import StreamChatTrainer

    norm, steps = StreamChatTrainer._get_grad_norm, 0

    def get_grad_norm(*args, **kwargs):
        nonlocal steps
        steps += 1
        if steps == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return norm(*args, **kwargs)

    StreamChatTrainer._get_grad_norm = get_grad_norm


def die_removing() -> None:
    """The first checkpoint that this process removes loses its weights, and then the process is killed."""
    import shutil

    def rmtree(path, **kwargs):
        (Path(path) / "model.safetensors").unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    shutil.rmtree = rmtree


def poison_row() -> None:
    """Makes the pixels of a row not a number."""
    from streamchat_hf.training import sft

    collate = sft.DenseCollator.__call__

    def collate_poisoned(self, rows):
        batch = collate(self, rows)
        for i, one in enumerate(rows):
            if one["id"].startswith("row3"):
                batch["pixel_values_videos"][i] = torch.nan
        return batch

    sft.DenseCollator.__call__ = collate_poisoned


def live_and_die(recipe: str) -> None:
    """Trains in one child after the other; what was there before and how it ended is printed as JSON."""
    from streamchat_hf.training.checkpoints import checkpoints, is_whole, last_whole_checkpoint
    from streamchat_hf.training.sft import train

    output_dir = Path(recipe).with_suffix("")
    for death in (*DEATHS, {}):
        last = last_whole_checkpoint(output_dir)
        broken = [path.name for path in checkpoints(output_dir) if not is_whole(path)]
        child = os.fork()
        if child == 0:
            if "step" in death:
                die_in_step(death["step"])
            elif "removing" in death:
                die_removing()
            elif death:
                die_writing(death["file"], death["times"])
            train(recipe)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        begun = 0 if last is None else int(last.name.rpartition("-")[2])
        print(json.dumps({"death": death, "from": begun, "broken": broken, "status": status}), flush=True)


if __name__ == "__main__":
    recipe, what = sys.argv[1:]
    if what == "poison":
        from streamchat_hf.training.sft import train

        poison_row()
        train(recipe)
    else:
        live_and_die(recipe)
