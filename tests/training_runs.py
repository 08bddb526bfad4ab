"""Small checkpoints, rows and recipes to train with, and a process that does it: `python training_runs.py RECIPE`."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamchat_helpers import tiny_model
from streamchat_hf import StreamChatProcessor, StreamFormerVideoProcessor
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.processing.processing_streamchat import CHAT_TEMPLATE as CHATML
from video_files import corner_picture, write_video

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)
PROSE = "The person in the video is cooking right now. What is happening? It's a red circle, moving left: look!"


def bpe_tokenizer(template: str = CHATML, prose: str = PROSE, size: int = 300) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of many small pieces, with a template of other people's models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([prose], trainer)
    end = "<|im_end|>" if template == CHATML else "</s>"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=end, pad_token="<pad>", chat_template=template
    )


def small_model(tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any) -> tuple:
    """A random model of some ten thousand parameters that fits a tokenizer, and its processor."""
    tokenizer = build_tokenizer() if tokenizer is None else tokenizer
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text_config = {"vocab_size": len(tokenizer), **special}
    model = tiny_model(**{"text_config": text_config, "visual_window": 8, **changes})
    video_processor = StreamFormerVideoProcessor(size={"height": 16, "width": 16}, fps=1.0)
    return model, StreamChatProcessor(video_processor, tokenizer, chat_template=tokenizer.chat_template)


def turn(instruction: str, answer: str, times: list[float] | None = None) -> dict[str, Any]:
    """A turn whose words are spoken at the times given, and whose question comes with the first."""
    start, end = (times[0], times[-1]) if times else (None, None)
    return {"instruction": instruction, "answer": answer, "start": start, "end": end, "word_times": times or []}


def row(kind: str, media: Path | str, *turns: dict[str, Any], name: str = "row") -> dict[str, Any]:
    """A row of the loader."""
    return {"id": name, "source": "rows.jsonl:1", "kind": kind, "media": str(media), "turns": list(turns)}


def write_rows(folder: Path, count: int = 24) -> Path:
    """A file of rows of all four kinds about one clip and one picture, no two alike."""
    clip = write_video(folder / "clip.mp4", range(0, 8000, 250))
    Image.fromarray(corner_picture()).save(folder / "picture.png")
    values = ["red", "green", "blue", "yellow", "circle", "square", "left", "up", "one", "two"]
    rows = []
    for i in range(count):
        said = [values[i % 10], values[(3 * i + 1) % 10], values[i // 10], "now", values[(7 * i) % 10]]
        times = [0.5 + 0.1 * (i % 7) + k * (1 + i % 2) / 2 for k in range(len(said))]
        kind, media = [
            ("dense", clip),
            ("dense", clip),
            ("video", clip),
            ("image", folder / "picture.png"),
            ("text", ""),
        ][i % 5]
        first = turn("what do you see ?", " ".join(said), times if kind == "dense" else None)
        later = [time + 4 for time in times[:2]]
        second = turn("what colour is it ?", " ".join(said[:2]), later if kind == "dense" else None)
        rows.append(row(kind, media, first, *[second][: i % 2], name=f"row{i}"))
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in rows))
    return path


def write_recipe(folder: Path, name: str = "recipe", **changes: Any) -> Path:
    """A recipe that trains a small model on those rows for eight updates of eight rows."""
    if not (folder / "rows.jsonl").exists():
        write_rows(folder)
    if not (folder / "model").exists():
        for part in small_model():
            part.save_pretrained(folder / "model")
    recipe = {
        "trainer": "sft",
        "stage": "sft",
        "model_name_or_path": str(folder / "model"),
        "datasets": [{"path": "json", "data_files": str(folder / "rows.jsonl"), "cache_dir": str(folder / "cache")}],
        "fps": 2.0,
        "max_frames": 8,
        "output_dir": str(folder / name),
        "max_steps": 8,
        "per_device_train_batch_size": 8,
        "learning_rate": 3.0e-3,
        "logging_steps": 1,
        "save_steps": 2,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def losses(output_dir: Path) -> dict[int, float]:
    """The loss of every step of a finished run."""
    log = json.loads((output_dir / "final" / "training_log.json").read_text())["log"]
    return {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
