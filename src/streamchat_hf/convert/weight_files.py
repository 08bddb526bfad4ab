"""What a checkpoint's folder or Hub repository says and holds: config.json, and weights in safetensors."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file


def read_config(source: str | Path, name: str = CONFIG_NAME) -> dict[str, Any]:
    """What `config.json`, or another file, of a folder or Hub id says.

    Raises:
        OSError: if there is none.
        ValueError: if it is not a JSON object.
    """
    config = cached_file(str(source), name)
    if config is None:
        raise FileNotFoundError(f"{source} has no {name}: take the one that was published with the weights")
    return _read_object(Path(config))


def read_weights(source: str | Path, name: str = SAFE_WEIGHTS_NAME) -> dict[str, torch.Tensor]:
    """All weights of a folder or Hub id, by name, from one safetensors file or from the shards its index names.

    Args:
        source: folder or Hub id.
        name: what the one file is called.

    Raises:
        OSError: if there are none (pickled weights are not read), or a file is missing or damaged.
        ValueError: if the index does not name shards.
    """
    weights: dict[str, torch.Tensor] = {}
    for path in _files(str(source), name):
        try:
            weights |= load_file(path)
        except SafetensorError as error:
            raise OSError(f"{path} is damaged or incomplete ({error}): download it again") from None
    return weights


def list_problems(problems: dict[str, list[str]]) -> str:
    """How many weights there are of each kind of problem, and the names of the first three."""
    listed = []
    for what, names in problems.items():
        names = list(dict.fromkeys(names))
        if names:
            more = ", …" if len(names) > 3 else ""
            listed.append(f"{len(names)} {what} ({', '.join(names[:3])}{more})")
    return "; ".join(listed)


def _files(source: str, name: str) -> list[str]:
    single = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    if single is not None:
        return [single]
    index = cached_file(source, f"{name}.index.json", _raise_exceptions_for_missing_entries=False)
    if index is None:
        raise FileNotFoundError(
            f'{source} has no {name}; pickled weights are not read. Convert them once: python -c "import '
            "torch, safetensors.torch as s; w = torch.load('WEIGHTS.bin', map_location='cpu', weights_only=True); "
            f"s.save_file({{k: v.clone() for k, v in w.get('model', w).items()}}, '{name}')\""
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
