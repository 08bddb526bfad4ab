"""Which checkpoints of a run are whole, however the run ended.

The trainer writes a checkpoint file by file into its final folder, and its state, a JSON object, last of all; one that
broke off has no state, or half of one. (That no other process still writes then is what [`StreamChatTrainer`] adds.)
"""

import json
import logging
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME
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
