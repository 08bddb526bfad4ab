"""The files that a checkpoint's repository shall have, and no others, written into a folder of their own."""

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from streamchat_hf.convert.streamformer import video_processor_for
from streamchat_hf.hub.card import read_config, render_card, weight_facts
from streamchat_hf.modeling.modeling_streamchat import StreamChatForConditionalGeneration
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel
from streamchat_hf.modeling.modeling_videollm_online import VideoLLMOnlineForConditionalGeneration
from streamchat_hf.processing.processing_streamchat import StreamChatProcessor
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

RECORDS = ("eval.json", "training_log.json")  # how good it is, and how it came about
# Model and processor of those that talk.
TALKERS: dict[str, tuple[Any, Any]] = {
    "streamchat": (StreamChatForConditionalGeneration, StreamChatProcessor),
    "videollm_online": (VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor),
}
VIDEO_PROCESSOR = "video_preprocessor_config.json"
# Whatever people write on the web is in a vocabulary, paths included; nothing of this machine gets there.
VOCABULARIES = ("tokenizer.json", "vocab.json", "merges.txt")
SECRETS = {
    "a Hub token": re.compile(r"\bhf_[A-Za-z0-9]{16,}"),
    "a bearer token": re.compile(r"\bBearer\s+[\w.~+/=-]{16,}"),
}
HOMES = ("home", "Users", "root", "tmp", "private", "var/folders")


def stage(
    model: str | Path, dest: str | Path, repo_id: str, license: str | None = None, base_models: Sequence[str] = ()
) -> dict[str, int]:
    """Writes a checkpoint as it shall lie on the Hub, by loading and saving it.

    That are weights as safetensors, in the type they are stored in; configurations, processor and tokenizer; the code
    that reads them; the card; and `eval.json` and `training_log.json` if the checkpoint has them. What else lies
    in its folder stays there. Of absolute paths in JSON files the last part is kept.

    Args:
        model: The folder of a StreamChat or a VideoLLM-online with its processor, or of a StreamFormer; a StreamFormer
            without a video processor gets one for the frames of its configuration.
        dest: The folder to write, empty or not yet there.
        repo_id: Where the card says the checkpoint is found.
        license: Of the weights; see `card.render_card`.
        base_models: Hub ids of what the weights were made from; see `card.render_card`.

    Returns:
        Bytes by file name.

    Raises:
        FileNotFoundError: If a part is missing.
        FileExistsError: If there is something in `dest`.
        ValueError: If the checkpoint is of another model, or a file would publish a token or a path of this machine.
    """
    model, dest = Path(model), Path(dest)
    config = read_config(model)
    if dest.exists() and any(dest.iterdir()):
        raise FileExistsError(f"{dest} is not empty")
    (_save_talker if config["model_type"] in TALKERS else _save_streamformer)(model, dest, config)
    for name in RECORDS:
        if (model / name).is_file():
            (dest / name).write_text((model / name).read_text())
    for path in dest.rglob("*.json"):
        if path.name not in VOCABULARIES:
            _shorten_paths(path)
    render_card(dest, repo_id, license, base_models).save(dest / "README.md")
    refuse_private_text(dest)
    return {path.relative_to(dest).as_posix(): path.stat().st_size for path in _files(dest)}


def refuse_private_text(folder: Path) -> None:
    """Looks through all files that are text for what must not be published.

    Raises:
        ValueError: Naming file and line; a token is not repeated.
    """
    machine = _path_of_machine()
    for path in _files(folder):
        if path.suffix == ".safetensors":
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            place = f"{path.name}, line {number},"
            for what, pattern in SECRETS.items():
                if found := pattern.search(line):
                    raise ValueError(f"{place} holds {what}, {found[0][:10]}…: remove it first")
            if path.name not in VOCABULARIES and (found := machine.search(line)):
                raise ValueError(f"{place} holds a path of this machine, {found[0]}: remove it first")


def _files(folder: Path) -> list[Path]:
    """Also those in folders: a tokenizer with several chat templates has one."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _path_of_machine() -> re.Pattern[str]:
    """Absolute paths in anybody's home or in a folder for temporary files, by convention and on this machine."""
    here = {str(folder).strip("/") for folder in (Path.home(), tempfile.gettempdir())} - {""}
    folders = "|".join(re.escape(folder) for folder in [*HOMES, *sorted(here)])
    return re.compile(rf"(?:file://|(?<![\w.~/-]))/(?:{folders})/[\w.-]+|\b[A-Za-z]:\\+Users\\+[\w.-]+")


def _save_talker(source: Path, dest: Path, config: dict[str, Any]) -> None:
    if not (source / "processor_config.json").is_file():
        raise FileNotFoundError(f"{source} has no processor_config.json: save the processor into it, too")
    kind, processor = TALKERS[config["model_type"]]
    _save_model(kind, source, dest, config)
    processor.from_pretrained(source).save_pretrained(dest)


def _save_streamformer(source: Path, dest: Path, config: dict[str, Any]) -> None:
    _save_model(StreamFormerModel, source, dest, config)
    if (source / VIDEO_PROCESSOR).is_file():
        processor = StreamFormerVideoProcessor.from_pretrained(source)
    else:
        processor = video_processor_for(config["image_size"])
    processor.save_pretrained(dest)


def _save_model(kind: Any, source: Path, dest: Path, config: dict[str, Any]) -> None:
    """Weights, configuration and code; weights that are stored in another type than they compute in stay so."""
    model, loading = kind.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    if wrong := sorted(loading["missing_keys"] | loading["unexpected_keys"]):  # which loading only warns of
        raise ValueError(f"{source} is not whole: {len(wrong)} weights are missing or unknown, such as {wrong[:3]}")
    _, dtypes = weight_facts(source)
    if len(dtypes) == 1 and dtypes[0] != config.get("dtype", dtypes[0]):
        model = model.to(getattr(torch, dtypes[0]))
    model.save_pretrained(dest)
    saved = json.loads((dest / "config.json").read_text())
    for part, original in ((saved, config), *((saved[key], config[key]) for key in saved.keys() & _parts(config))):
        if "dtype" in original:
            part["dtype"] = original["dtype"]
    (dest / "config.json").write_text(json.dumps(saved, indent=2) + "\n")


def _parts(config: dict[str, Any]) -> set[str]:
    return {key for key in ("text_config", "vision_config") if isinstance(config.get(key), dict)}


def _shorten_paths(path: Path) -> None:
    values = json.loads(path.read_text())
    shortened = without_folders(values)
    if shortened != values:
        path.write_text(json.dumps(shortened, indent=1, ensure_ascii=False) + "\n")


def without_folders(value: Any) -> Any:
    """What JSON can hold, with every string that is an absolute path of several parts reduced to the last."""
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_folders(item) for item in value]
    if isinstance(value, str):
        return next((path.name for path in _as_paths(value) if path.is_absolute() and len(path.parts) > 2), value)
    return value


def _as_paths(value: str) -> Iterator[PurePosixPath | PureWindowsPath]:
    yield PurePosixPath(value.removeprefix("file://"))
    yield PureWindowsPath(value)
