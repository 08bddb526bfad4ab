"""The authors' StreamFormer checkpoint, or any SigLIP vision model, becomes a [`StreamFormerModel`]."""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.activations import ACT2FN

from streamchat_hf.convert.streamformer_names import AUTHORS, SIGLIP, fit
from streamchat_hf.convert.weight_files import read_config, read_weights
from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

# What the features depend on and the weights' shapes do not say, or say only together with it.
_DECISIVE = (
    *("model_type", "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "layer_norm_eps", "enable_causal_temporal"),
)
_SAME_FIELDS = (
    *("image_size", "patch_size", "num_channels", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
    *("layer_norm_eps", "qkv_bias"),
)
_SIGLIP_TYPES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model", "paligemma")
# What checkpoints hold beside the backbone: causal masks of the first num_frames frames, and what it was trained with.
_EXTRAS = {
    "causal masks": r"\.temporal_attention\.attention\.mask$",
    "position ids": r"(^|\.)embeddings\.position_ids$",
    "text tower": r"^(text_encoder|text_model)\.",
    "task heads": r"^task_heads\.",
    "loss scale and bias": r"^logit_(scale|bias)$",
}
Loaded = tuple[StreamFormerModel, dict[str, int]]  # and how many weights of each kind were ignored
_OURS_ALONE = re.compile(r"\.temporal_|\.lora_|\.time_embeddings$")


@dataclass(frozen=True)
class Conversion:
    """What [`convert_streamformer`] did.

    Attributes:
        model: the model that was written.
        origin: `"StreamFormer"` or `"SigLIP"`.
        ignored: how many weights of the source the model has no use for, by what they are.
    """

    model: StreamFormerModel
    origin: str
    ignored: dict[str, int]


def convert_streamformer(source: str | Path, dest: str | Path, **config) -> Conversion:
    """Rewrites a checkpoint of the authors' code (Go2Heart/StreamFormer) or of SigLIP as ours, with the same features.

    The authors' may be the backbone alone or the training class around it, with LoRA or without. It keeps LoRA
    unmerged, and gets clamped learned time embeddings and no window. Of SigLIP, SigLIP 2 and PaliGemma the vision
    tower is taken; see [`streamformer_from_siglip`]. Fresh weights are the same in every conversion.

    Args:
        source: folder or Hub id with `config.json` and safetensors, in one file or sharded.
        dest: folder to write, model and video processor; `StreamFormerModel.from_pretrained(dest)` reads it. A
            StreamFormer of ours that lies there is overwritten.
        **config: fields of [`StreamFormerConfig`] that the source does not decide: `sliding_window`, and for SigLIP
            also such as `temporal_position`, `num_frames` and `lora_rank`.

    Returns:
        The model, and what was ignored.

    Raises:
        OSError: if the source has no config or no safetensors (pickled weights are not read), a file is damaged, or
            something else lies in `dest`. Nothing is written then.
        ValueError: if the source is of another architecture or incomplete, naming the first offending weights or
            fields, or decides what was asked for. Nothing is written then.
    """
    dest = Path(dest)
    _check_dest(dest)
    said = read_config(source)
    model_type = said.get("model_type")
    if model_type in _SIGLIP_TYPES:
        origin, load = "SigLIP", _load_siglip
    elif model_type in ("timesformer", None):
        origin, load = "StreamFormer", _load_authors
    else:
        raise ValueError(
            f"{source} is of model type {model_type!r}: this converts timesformer (the published StreamFormer) and "
            f"{', '.join(_SIGLIP_TYPES)}"
        )
    model, ignored = load(str(source), said, config)
    model.save_pretrained(dest)
    video_processor_for(model.config.image_size).save_pretrained(dest)
    return Conversion(model, origin, ignored)


def streamformer_from_siglip(siglip_vision_model, **config) -> StreamFormerModel:
    """A StreamFormer that starts from SigLIP, and until it is trained gives every frame SigLIP's own features.

    Time is added by fresh temporal attention behind gates of 0; fresh LoRA starts at B = 0, and learned time
    embeddings, which no gate guards, at 0.

    Where both run the same attention in float32, features of patches are SigLIP's to the last bit. So are pooled
    features, one frame at a time and with eager attention, if the head size is 4^n (its scale is rounded elsewhere)
    and weights lie in memory alike: a matrix times one vector is summed by alignment, which what was just read has
    from its file and `copy.deepcopy` evens out. Else pooled features agree within rounding, as do all features of
    SigLIP 2 with variable resolution: it multiplies flat patches where this convolves. It also resizes position
    embeddings bilinearly, this bicubically, so only frames of its own grid's size agree.

    Args:
        siglip_vision_model: a `SiglipVisionModel` or `Siglip2VisionModel`.
        **config: fields of [`StreamFormerConfig`] that SigLIP does not decide, such as `lora_rank`,
            `temporal_position` or `sliding_window`.

    Returns:
        The model, with SigLIP's data type.

    Raises:
        ValueError: if the model is not a SigLIP vision model, or does not have the chosen shape.
    """
    siglip = siglip_vision_model.config
    if siglip.model_type not in ("siglip_vision_model", "siglip2_vision_model"):
        raise ValueError(f"needs a SiglipVisionModel, not a model of type {siglip.model_type!r}")
    return _from_siglip(siglip, siglip_vision_model.state_dict(), "the SigLIP model", config)


def video_processor_for(image_size: int) -> StreamFormerVideoProcessor:
    """The video processor of a StreamFormer whose frames have this side in pixels; SigLIP's mean and deviation."""
    return StreamFormerVideoProcessor(size={"height": image_size, "width": image_size})


def _check_dest(dest: Path) -> None:
    if not dest.exists() or (dest.is_dir() and not any(dest.iterdir())):
        return
    try:
        ours = json.loads((dest / "config.json").read_text())["model_type"] == StreamFormerConfig.model_type
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise FileExistsError(f"{dest} exists and is not a StreamFormer of ours: name an empty or a new folder")


def _load_authors(
    source: str, said: dict[str, Any], config: dict[str, Any]
) -> tuple[StreamFormerModel, dict[str, int]]:
    if decided := sorted(config.keys() - {"sliding_window"}):
        raise ValueError(f"{source} decides {', '.join(decided)} by its weights: leave it out")
    if (kind := said.get("attention_type", "divided_space_time")) != "divided_space_time":
        raise ValueError(f"{source}: attention_type={kind!r}, only divided_space_time is StreamFormer")
    stored = read_weights(source)
    weights = {name.removeprefix("timesformer."): tensor for name, tensor in stored.items()}
    if len(weights) < len(stored):
        twice = next(name for name in stored if f"timesformer.{name}" in stored)
        raise ValueError(f"{source} has both {twice} and timesformer.{twice}: keep one of the two")
    if "embeddings.cls_token" in weights:
        raise ValueError(
            f"{source} is a stock TimeSformer: it has embeddings.cls_token and no temporal_attention_gating. Convert "
            "the published StreamFormer, or a SigLIP to start from"
        )
    if absent := [field for field in _DECISIVE if said.get(field) is None]:
        raise ValueError(
            f"{source}: config.json lacks {', '.join(absent)}, which the weights do not tell: take the config.json "
            "that was published with them"
        )
    weights, ignored = _split(weights)
    fields = {field: said[field] for field in _SAME_FIELDS if field in said} | {
        "num_frames": _rows(weights, "embeddings.time_embeddings", StreamFormerConfig.num_frames),
        "enable_causal_temporal": said["enable_causal_temporal"],
        "temporal_position": "learned",
        "lora_rank": _rows(weights, "_lora_a.weight", 0),
        "use_pooling_head": any(name.startswith("head.") for name in weights),
    }
    model = _new_model(fields | config, source)
    return _fill(model, fit(_shapes(model), weights, AUTHORS, source), weights), ignored


def _load_siglip(
    source: str, said: dict[str, Any], config: dict[str, Any]
) -> tuple[StreamFormerModel, dict[str, int]]:
    siglip = _checked(source, functools.partial(AutoConfig.for_model, **said))
    siglip = getattr(siglip, "vision_config", siglip)
    weights, ignored = _split(read_weights(source))
    # Whole models, and vision models saved by older versions, have a prefix; the tower is where the patches go in.
    entrance = "embeddings.patch_embedding.weight"
    prefixes = [name.removesuffix(entrance) for name in weights if name.endswith(entrance)]
    if len(prefixes) != 1:
        raise ValueError(f"{source} has {len(prefixes)} weights named {entrance}, expected 1: is it SigLIP?")
    tower = {
        name.removeprefix(prefixes[0]): tensor for name, tensor in weights.items() if name.startswith(prefixes[0])
    }
    if rest := len(weights) - len(tower):
        ignored["rest of the model"] = rest
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _from_siglip(siglip, tower, source, config), ignored


def _from_siglip(
    siglip, weights: Mapping[str, torch.Tensor], source: str, config: dict[str, Any]
) -> StreamFormerModel:
    fields = {field: getattr(siglip, field) for field in _SAME_FIELDS if hasattr(siglip, field)} | {
        "attention_probs_dropout_prob": siglip.attention_dropout,
        "use_pooling_head": siglip.vision_use_head,
    }
    if siglip.model_type == "siglip2_vision_model":
        fields["image_size"] = math.isqrt(siglip.num_patches) * siglip.patch_size
        weights = _with_convolution(weights, siglip.patch_size)
    model = _new_model(fields | config, source)
    shapes = _shapes(model)
    fitted = fit({name: shapes[name] for name in shapes if not _OURS_ALONE.search(name)}, weights, SIGLIP, source)
    fresh = {
        name: torch.zeros_like(tensor) if name == "embeddings.time_embeddings" else tensor
        for name, tensor in model.state_dict().items()
        if _OURS_ALONE.search(name)
    }
    return _fill(model, fresh | fitted, weights)


def _with_convolution(weights: Mapping[str, torch.Tensor], patch: int) -> dict[str, torch.Tensor]:
    """SigLIP 2 multiplies flat patches, rows, columns, channels: (D, p*p*C) -> (D, C, p, p)."""
    name = "embeddings.patch_embedding.weight"
    flat = weights.get(name)
    if flat is None or flat.ndim != 2 or flat.shape[1] % patch**2:
        return dict(weights)  # what is wrong with it, `fit` says
    return {**weights, name: flat.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2)}


def _split(weights: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, int]]:
    """The backbone's weights, and how many others there are of each kind."""
    kinds = {
        name: next((kind for kind, pattern in _EXTRAS.items() if re.search(pattern, name)), None) for name in weights
    }
    counts = Counter(kind for kind in kinds.values() if kind is not None)
    return {name: weights[name] for name, kind in kinds.items() if kind is None}, {
        kind: counts[kind] for kind in _EXTRAS if counts[kind]
    }


def _rows(weights: Mapping[str, torch.Tensor], ending: str, default: int) -> int:
    """Length of the matrix, or matrices, of which the first has a name that ends so."""
    matrices = (tensor for name, tensor in weights.items() if name.endswith(ending) and tensor.ndim > 1)
    return next((tensor.shape[-2] for tensor in matrices), default)


def _shapes(model: StreamFormerModel) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _new_model(fields: dict[str, Any], source: str) -> StreamFormerModel:
    if fields["hidden_act"] not in ACT2FN:
        raise ValueError(f"{source}: config.json says hidden_act={fields['hidden_act']!r}, which is no activation")
    return StreamFormerModel(_checked(source, functools.partial(StreamFormerConfig, **fields)))


def _checked(source: str, make):
    """Makes a configuration; what it finds wrong is a `ValueError` of one line."""
    try:
        return make()
    except StrictDataclassError as error:
        raise ValueError(f"{source}: {' '.join(str(error).split())}") from None


def _fill(
    model: StreamFormerModel, fitted: dict[str, torch.Tensor], weights: Mapping[str, torch.Tensor]
) -> StreamFormerModel:
    # The narrowest type that holds them all without loss.
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in weights.values()})
    model.to(dtype).load_state_dict(fitted)
    return model.eval()
