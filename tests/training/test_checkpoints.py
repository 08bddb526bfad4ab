"""Only whole checkpoints count."""

from types import SimpleNamespace

import pytest

from streamchat_hf.training.checkpoints import (
    checkpoints,
    is_whole,
    last_whole_checkpoint,
    refuse_another_run,
    remove_broken_checkpoints,
    train_from_last,
)


def write(folder, step, state):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"...")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


def test_the_last_whole_one_counts_and_the_broken_ones_go(tmp_path, caplog):
    assert last_whole_checkpoint(tmp_path / "new") is None and checkpoints(tmp_path / "new") == []
    state = '{\n  "global_step": 8\n}'
    whole = [write(tmp_path, step, state) for step in (8, 9)]
    broken = [write(tmp_path, 12, state[:-1]), write(tmp_path, 100, None), write(tmp_path, 101, "")]
    (tmp_path / "checkpoint-notes").mkdir()
    (tmp_path / "checkpoint-200").write_text("no folder")
    assert checkpoints(tmp_path) == [*whole, *broken]
    assert [is_whole(path) for path in checkpoints(tmp_path)] == [True, True, False, False, False]
    assert last_whole_checkpoint(tmp_path) == whole[1]
    remove_broken_checkpoints(tmp_path)
    assert checkpoints(tmp_path) == whole
    assert [path.name in caplog.text for path in (*whole, *broken)] == [False, False, True, True, True]


def test_a_run_that_shall_not_go_on_needs_a_folder_of_its_own(tmp_path):
    refuse_another_run(tmp_path, resume=False)
    write(tmp_path, 8, None)
    refuse_another_run(tmp_path, resume=True)
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        refuse_another_run(tmp_path, resume=False)


def test_training_goes_on_from_the_last_whole_one(tmp_path):
    begun = []
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path), should_save=True),
        train=lambda resume_from_checkpoint: begun.append(resume_from_checkpoint),
    )
    train_from_last(trainer)
    whole, broken = write(tmp_path, 8, "{}"), write(tmp_path, 9, "{")
    train_from_last(trainer)
    assert begun == [None, str(whole)] and not broken.exists()
