"""Only whole checkpoints count."""

from streamchat_hf.training.checkpoints import (
    checkpoints,
    is_whole,
    last_whole_checkpoint,
    remove_broken_checkpoints,
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
