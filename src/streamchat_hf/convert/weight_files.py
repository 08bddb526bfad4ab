"""What a checkpoint's folder or Hub repository says and holds: config.json, and weights in safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file


def read_config(source: str | Path) -> dict[str, Any]:
    """What `config.json` of a folder or Hub id says.

    Raises:
        OSError: if there is none.
        ValueError: if it is not a JSON object.
    """
    config = cached_file(str(source), CONFIG_NAME)
    if config is None:
        raise FileNotFoundError(f"{source} has no config.json: take the one that was published with the weights")
    return _read_object(Path(config))


def read_weights(source: str | Path) -> dict[str, torch.Tensor]:
    """All weights of a folder or Hub id, by name, from one safetensors file or from the shards its index names.

    Raises:
        OSError: if there are none (pickled weights are not read), or a file is missing or damaged.
        ValueError: if the index does not name shards.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in _files(str(source)):
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise OSError(f"{path} is damaged or incomplete ({error}): download it again") from None
    return weights


def _files(source: str) -> list[str]:
    single = cached_file(source, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return [single]
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False)
    if index is None:
        raise FileNotFoundError(
            f'{source} has no model.safetensors; pickled weights are not read. Convert them once: python -c "import '
            "torch, safetensors.torch as s; w = torch.load('WEIGHTS.bin', map_location='cpu', weights_only=True); "
            "s.save_file({k: v.clone() for k, v in w.get('model', w).items()}, 'model.safetensors')\""
        )
    shards = _read_object(Path(index)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise ValueError(f"{index} names no shards in its weight_map: download it again")
    return [cached_file(source, shard) for shard in sorted(set(shards.values()))]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except ValueError as error:  # of JSON or of UTF-8
        raise ValueError(f"{path} is not JSON ({error}): download it again") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is not a JSON object: download it again")
    return value
