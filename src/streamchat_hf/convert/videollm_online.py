"""The authors' VideoLLM-online adapter, its language model and its SigLIP become one model of ours."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils.hub import cached_file

from streamchat_hf.convert.weight_files import list_problems, read_config, read_weights
from streamchat_hf.modeling.backbones_videollm_online import load_text_backbone, load_vision_backbone
from streamchat_hf.modeling.configuration_videollm_online import VideoLLMOnlineConfig
from streamchat_hf.modeling.modeling_videollm_online import (
    VideoLLMOnlineConnector,
    VideoLLMOnlineForConditionalGeneration,
)
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

SIGLIP = "google/siglip-large-patch16-384"
# What the authors' code takes from the command line and stores nowhere; those of the published model, v1+.
_V1_PLUS: dict[str, Any] = {"frame_token_cls": True, "frame_token_pooled": [3, 3], "frame_fps": 2.0}
_INTERVAL = ","

_PREFIX = "base_model.model."
# Fields of a LoRA adapter that change what its matrices mean, and the value of the published one.
_PLAIN = {"peft_type": "LORA", "use_dora": False, "use_rslora": False, "fan_in_fan_out": False, "bias": "none"}
_PLAIN |= {"rank_pattern": {}, "alpha_pattern": {}}


@dataclass(frozen=True)
class Conversion:
    """What [`convert_videollm_online`] did.

    Attributes:
        model: the model that was written.
        processor: its processor.
        base: where the language model came from.
        vision: where the vision tower came from.
        rank: of the adapter.
        merged: how many matrices of the language model it changed.
    """

    model: VideoLLMOnlineForConditionalGeneration
    processor: VideoLLMOnlineProcessor
    base: str
    vision: str
    rank: int
    merged: int


@torch.no_grad()
def convert_videollm_online(
    source: str | Path, dest: str | Path, base: str | Path | None = None, vision: str | Path = SIGLIP
) -> Conversion:
    """Merges an adapter of the authors' code (showlab/videollm-online) into its language model and adds its SigLIP.

    The adapter says neither how many tokens a frame has nor what lies between two frames. Taken is what the published
    model v1+ was trained with: one pooled and 3 x 3 averaged tokens, a comma between frames, two frames per second.
    Answers are greedy, as theirs are, even if the language model's own settings sample.

    Args:
        source: folder or Hub id with `adapter_config.json`, `adapter_model.safetensors` and the tokenizer; without a
            tokenizer, the language model's is taken.
        dest: folder to write, model and processor, for the Auto classes. A VideoLLM-online of ours that lies there is
            overwritten.
        base: folder or Hub id of the language model. Default: the one the adapter names.
        vision: folder or Hub id of the SigLIP whose features the adapter was trained on.

    Returns:
        The model, its processor, and what they were made of. The data type is that of the language model.

    Raises:
        OSError: if files are missing or damaged (pickled weights are not read), or something else lies in `dest`.
            Nothing is written then.
        ValueError: if the adapter does not fit the language model or the vision tower, naming the first offending
            weights, or is not plain LoRA. Nothing is written then.
    """
    dest = Path(dest)
    _check_dest(dest)
    adapter = _read_adapter_config(source)
    weights = _read_adapter(source)
    base = str(base or adapter.get("base_model_name_or_path") or "")
    if not base:
        raise ValueError(f"{source} does not name its language model: give it as base")

    text, tower = load_text_backbone(base), load_vision_backbone(str(vision))
    if tower.config.model_type != "siglip_vision_model":
        raise ValueError(
            f"{vision} is of type {tower.config.model_type!r}: adapters were trained on SigLIP's features"
        )
    connector = VideoLLMOnlineConnector(tower.config.hidden_size, text.config.hidden_size)
    targets = _targets(text, adapter["target_modules"])
    _check_weights(weights, _expected(targets, connector, adapter["r"]), targets, f"{source} does not fit {base}")
    _merge(text, targets, weights, adapter["lora_alpha"] / adapter["r"])

    processor = _processor(source, base, tower.config.image_size)
    model = VideoLLMOnlineForConditionalGeneration.from_backbones(text, tower, **processor.token_ids(), **_V1_PLUS)
    model.model.connector.load_state_dict({name: weights[f"connector.{name}"] for name in connector.state_dict()})
    # The authors' code always takes the most probable word, whatever the language model does by itself.
    model.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    model.save_pretrained(dest)
    processor.save_pretrained(dest)
    return Conversion(model, processor, base, str(vision), adapter["r"], len(targets))


def _check_dest(dest: Path) -> None:
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    try:
        ours = json.loads((dest / "config.json").read_text())["model_type"] == VideoLLMOnlineConfig.model_type
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{dest} exists and is not a VideoLLM-online of ours: name an empty or a new folder")


def _read_adapter_config(source: str | Path) -> dict[str, Any]:
    adapter = read_config(source, "adapter_config.json")
    if absent := [field for field in ("r", "lora_alpha", "target_modules") if not adapter.get(field)]:
        raise ValueError(f"{source}: adapter_config.json lacks {', '.join(absent)}: is it a LoRA adapter?")
    for field, value in _PLAIN.items():
        if (adapter.get(field) or value) != value:
            raise ValueError(f"{source}: adapter_config.json says {field}={adapter[field]!r}, only {value!r} is read")
    return adapter


def _read_adapter(source: str | Path) -> dict[str, torch.Tensor]:
    """The adapter's weights, named as in the language model it was trained on."""
    weights = read_weights(source, "adapter_model.safetensors")
    if strangers := [name for name in weights if not name.startswith(_PREFIX)]:
        raise ValueError(f"{source} is not an adapter as PEFT saves it: {strangers[0]} does not begin with {_PREFIX}")
    return {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items()}


def _targets(text: PreTrainedModel, wanted: str | list[str]) -> dict[str, torch.nn.Linear]:
    """The linear layers an adapter changes, by name: PEFT's rule for a regular expression, and for a list of names."""
    if isinstance(wanted, str):
        pattern = wanted
    else:
        pattern = rf"(.*\.)?({'|'.join(map(re.escape, wanted))})"
    return {
        name: module
        for name, module in text.named_modules()
        if isinstance(module, torch.nn.Linear) and re.fullmatch(pattern, name)
    }


def _expected(
    targets: Mapping[str, torch.nn.Linear], connector: torch.nn.Module, rank: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights that an adapter must have."""
    shapes = {f"connector.{name}": tuple(tensor.shape) for name, tensor in connector.state_dict().items()}
    for name, linear in targets.items():
        shapes[f"{name}.lora_A.weight"] = (rank, linear.in_features)
        shapes[f"{name}.lora_B.weight"] = (linear.out_features, rank)
    return shapes


def _check_weights(
    weights: Mapping[str, torch.Tensor],
    expected: dict[str, tuple[int, ...]],
    targets: Mapping[str, torch.nn.Linear],
    what: str,
) -> None:
    # PEFT also saves the head that the adapter of the head was trained beside.
    known = expected | {f"{name}.base_layer.weight": tuple(linear.weight.shape) for name, linear in targets.items()}
    problems = {
        "missing": [_PREFIX + name for name in expected if name not in weights],
        "of another shape": [
            f"{_PREFIX}{name} is {tuple(tensor.shape)}, expected {known[name]}"
            for name, tensor in weights.items()
            if name in known and tuple(tensor.shape) != known[name]
        ],
        "unknown": [_PREFIX + name for name in weights if name not in known],
    }
    if any(problems.values()):
        raise ValueError(
            f"{what}: {list_problems(problems)}. Take the adapter, its adapter_config.json, the language model and "
            "the SigLIP of one and the same training"
        )


def _merge(
    text: PreTrainedModel, targets: Mapping[str, torch.nn.Linear], weights: Mapping[str, torch.Tensor], scale: float
) -> None:
    """W <- W + scale * B A, computed in float32."""
    head = text.get_output_embeddings()
    if text.config.tie_word_embeddings and any(linear is head for linear in targets.values()):
        # The adapter changes the head only, so the embeddings must not follow.
        head.weight = torch.nn.Parameter(head.weight.clone())
        text.config.tie_word_embeddings = False
    for name, linear in targets.items():
        before = weights.get(f"{name}.base_layer.weight", linear.weight)
        update = weights[f"{name}.lora_B.weight"].float() @ weights[f"{name}.lora_A.weight"].float()
        linear.weight.copy_(before.float() + scale * update)


def _processor(source: str | Path, base: str, image_size: int) -> VideoLLMOnlineProcessor:
    file = cached_file(str(source), "tokenizer_config.json", _raise_exceptions_for_missing_entries=False)
    return VideoLLMOnlineProcessor(
        StreamFormerVideoProcessor(size={"height": image_size, "width": image_size}, do_pad=True),
        AutoTokenizer.from_pretrained(base if file is None else str(source)),
        frame_num_tokens=VideoLLMOnlineConfig(**_V1_PLUS).frame_num_tokens,
        frame_token_interval=_INTERVAL,
        frame_fps=_V1_PLUS["frame_fps"],
    )
