"""Makes a trained StreamWorld checkpoint the one that ships with the package, with its scores and its card.

    make train-tiny
    python benchmarks/ship_tiny.py runs/streamworld/final

Without a folder it scores the shipped one again.

Weights are stored as bfloat16 and computed in float32. The code that a checkpoint carries is linked to the package's
own, so that the two cannot differ.
"""

import json
import shutil
import sys
from pathlib import Path

import torch

import render_results
import streamchat_hf
from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor, tiny_checkpoint
from streamchat_hf.evaluation.streamworld import evaluate


def store(source: Path, dest: Path) -> None:
    """Writes model and processor to `dest`, half as large as in `source`; what was there is gone."""
    shutil.rmtree(dest, ignore_errors=True)
    model = StreamChatForConditionalGeneration.from_pretrained(source).to(torch.bfloat16)
    model.save_pretrained(dest)
    StreamChatProcessor.from_pretrained(source).save_pretrained(dest)
    config = json.loads((dest / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    (dest / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (dest / "training_log.json").write_text((source / "training_log.json").read_text())
    link_code(dest)


def link_code(dest: Path) -> None:
    """Replaces the code that saving has copied by links to the package's."""
    package = Path(streamchat_hf.__file__).parent
    for copy in dest.glob("*.py"):
        room = next(room for room in ("modeling", "processing") if (package / room / copy.name).exists())
        copy.unlink()
        copy.symlink_to(Path("../..") / room / copy.name)


if __name__ == "__main__":
    folder = tiny_checkpoint()
    if len(sys.argv) > 1:
        store(Path(sys.argv[1]), folder)
    model = StreamChatForConditionalGeneration.from_pretrained(folder).eval()
    result = evaluate(model, StreamChatProcessor.from_pretrained(folder))
    result.pop("rows")
    render_results.SCORES.write_text(json.dumps(result, indent=1) + "\n")
    render_results.main()
