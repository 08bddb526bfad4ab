"""The card of a checkpoint: the template in `model_cards/`, filled from the files in the checkpoint's folder.

Nothing in it is typed by hand. What a file would say that is not there is left out.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCard, ModelCardData, RepoCard
from safetensors import safe_open

from streamchat_hf.hub.results import dialogue_table, eval_results, results_table
from streamchat_hf.hub.training_facts import describe, training_facts
from streamchat_hf.package_data import package_data

# The Hub's words for what the models do; it has none for features of a video.
PIPELINE_TAGS = {
    "streamchat": "video-text-to-text",
    "streamformer": "feature-extraction",
    "videollm_online": "video-text-to-text",
}
# As safetensors writes them in a header, and as torch calls them.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def render_card(
    folder: str | Path, repo_id: str | None = None, license: str | None = None, base_models: Sequence[str] = ()
) -> ModelCard:
    """Writes the card of a checkpoint of this package.

    Args:
        folder: Holds `config.json`, and if there are any the weights as safetensors, `training_log.json` (of
            `streamchat train`), `eval.json` (of `streamchat eval streamworld --json`) and the processor's file.
        repo_id: Where the checkpoint will be found on the Hub. `None`: the card names the folder.
        license: Of the weights, as the Hub spells licences: `"apache-2.0"`.
        base_models: Hub ids of what the weights were made from. Empty: as the training log has it.

    Raises:
        FileNotFoundError: If there is no `config.json`.
        ValueError: If the checkpoint is of another model, or a file is no JSON.
    """
    folder = Path(folder)
    config = read_config(folder)
    kind = config["model_type"]
    scores, log = _read(folder / "eval.json"), _read(folder / "training_log.json")
    training = None if log is None else training_facts(log)
    name = (repo_id or folder.resolve().name).rpartition("/")[2]
    only_streamworld = training is not None and training.only_streamworld
    data = ModelCardData(
        license=license,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[kind],
        tags=["video", "streaming", kind, *(["streamworld"] if only_streamworld else [])],
        base_model=list(base_models or (training.base_models if training else ())) or None,
        datasets=list(training.datasets) or None if training else None,
        model_name=name if scores else None,  # of the results
        eval_results=eval_results(scores) if scores else None,
    )
    parameters, dtypes = weight_facts(folder)
    return fill(
        ModelCard,
        data,
        kind,
        name=name,
        source=repo_id or f"path/to/{name}",
        config=config,
        vision=config.get("vision_config"),
        text=config.get("text_config"),
        parameters=parameters,
        dtypes=dtypes,
        dtype=config.get("dtype"),
        frame_size=_frame_size(folder, config),
        training=training,
        training_section=describe(training) if training else None,
        scores=scores,
        results=results_table(scores) if scores else None,
        dialogue=dialogue_table(log) if log and kind == "videollm_online" else None,
    )


def fill(card: type[RepoCard], data: CardData, template: str, **values: Any) -> Any:
    """A card of this class from the template of this name in `model_cards/`."""
    path = package_data("model_cards") / f"{template}.md"
    content = card.from_template(data, template_path=str(path), **values).content
    return card(re.sub(r"\n{3,}", "\n\n", content) + "\n")  # what is left out leaves its empty lines


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint of ours.

    Raises:
        FileNotFoundError: If there is no `config.json`.
        ValueError: If it is of another model, or no JSON.
    """
    config = _read(folder / "config.json")
    if config is None:
        raise FileNotFoundError(f"{folder} is no checkpoint: it has no config.json")
    if config.get("model_type") not in PIPELINE_TAGS:
        raise ValueError(
            f"{folder} holds a model of type {config.get('model_type')!r}, not {' or '.join(PIPELINE_TAGS)}"
        )
    return config


def weight_facts(folder: Path) -> tuple[int, list[str]]:
    """How many parameters the safetensors files of a folder hold, and in which types, from their headers alone."""
    parameters, dtypes = 0, set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118 -- not a dict
                part = weights.get_slice(name)
                parameters += math.prod(part.get_shape())
                dtypes.add(DTYPES.get(part.get_dtype(), part.get_dtype()))
    return parameters, sorted(dtypes)


def _frame_size(folder: Path, config: dict[str, Any]) -> str:
    """Height and width that frames are resized to; without a processor those the position embeddings are for."""
    processor = _read(folder / "processor_config.json") or {}
    video = processor.get("video_processor") or _read(folder / "video_preprocessor_config.json") or {}
    side = config.get("vision_config", config)["image_size"]
    size = video.get("size") or {"height": side, "width": side}
    return f"{size['height']} x {size['width']}"


def _read(path: Path) -> Any:
    """The content of a JSON file, `None` if there is none.

    Raises:
        ValueError: If it is no JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
