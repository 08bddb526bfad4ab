"""Which checkpoints of a run are whole, however the run ended.

The trainer writes a checkpoint file by file into its final folder, and its state, a JSON object, last of all; one that
broke off has no state, or half of one.
"""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

logger = logging.getLogger(__name__)


def is_whole(checkpoint: Path) -> bool:
    """Whether everything of a checkpoint was written."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    except (OSError, ValueError):
        return False
    return True


def checkpoints(output_dir: Path) -> list[Path]:
    """All checkpoints in a folder, whole or not, in the order of their steps."""
    numbered = {
        int(number): path
        for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if path.is_dir() and (number := path.name.rpartition("-")[2]).isdigit()
    }
    return [numbered[step] for step in sorted(numbered)]


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The checkpoint to go on from, `None` if there is none."""
    return next((path for path in reversed(checkpoints(output_dir)) if is_whole(path)), None)


def remove_broken_checkpoints(output_dir: Path) -> None:
    """Removes what is not whole, and says so: counted among the checkpoints to keep it would displace whole ones."""
    for path in checkpoints(output_dir):
        if not is_whole(path):
            logger.warning("%s was not written to its end and is removed", path)
            shutil.rmtree(path)


def refuse_another_run(output_dir: Path, resume: bool) -> None:
    """Raises `ValueError` if a run that shall not go on would begin in a folder that holds one."""
    if not resume and checkpoints(output_dir):
        raise ValueError(f"{output_dir} holds checkpoints of another run: remove them, or leave out no_resume")


def train_from_last(trainer: Any) -> None:
    """Trains, going on from the last whole checkpoint if there is one."""
    output_dir = Path(trainer.args.output_dir)
    if trainer.args.should_save:
        remove_broken_checkpoints(output_dir)
    last = last_whole_checkpoint(output_dir)
    trainer.train(resume_from_checkpoint=None if last is None else str(last))


class WholeCheckpoints:
    """What a `transformers.Trainer` has to do for that, before it in a trainer's bases."""

    args: Any
    accelerator: Any

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        # A pickle of the arguments, with paths of this machine. Nothing reads it; the log has them as text.
        if self.args.should_save:
            Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink()

    def _save_rng_state(self, output_dir: str) -> None:
        # The last thing that every process writes. The main one then writes the state, which makes the checkpoint
        # count as whole, and removes an older one: not before all others have written theirs.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
