"""videollm_online: does a streaming dialogue model speak at the right moment, and say the right thing?

Definitions, and everything in which the default differs from the authors' code (`compat=True`), stand in
`live_metrics.py` and on the card. `evaluate` copies both files, so they import nothing of the package beside them.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import datasets
import evaluate
import torch

from .live_metrics import LookAhead, live_metrics

_DESCRIPTION = """\
Scores streaming dialogues by one forward pass over each: the perplexity of the answers (LM-PPL), how far from its
moment each answer came (TimeDiff), the share of tokens and silences before the first mistake of a turn (Fluency), and
the share of an answer's words before its first wrong one (LM correctness).
"""
_CITATION = """\
@inproceedings{chen2024videollm,
  title = {VideoLLM-online: Online Video Large Language Model for Streaming Video},
  author = {Chen, Joya and Lv, Zhaoyang and Wu, Shiwei and Lin, Kevin Qinghong and Song, Chenan and Gao, Difei and
            Liu, Jia-Wei and Gao, Ziteng and Mao, Dongxing and Shou, Mike Zheng},
  booktitle = {CVPR},
  year = {2024},
}
"""
_INPUTS = """
Args:
    predictions: per dialogue a dict with input_ids (T), labels (T; pre-shifted, -100 where nothing is learned), logits
        (T, V), frame_num_tokens, v_placeholder_id and eos_token_id; optionally frame_token_interval_id (None),
        threshold (None), frame_fps (None) and appends: a list of {past_len, n_frames, first_frame, input_ids, logits},
        one for each turn in which nobody responded and frames follow. Other keys are ignored (n_frames and
        input_ids, too), and so is a leading dimension of 1.
    compat: whether to score as the authors' code does, with its mistakes.
Returns:
    lm_ppl, frame_diff, time_diff, fluency, lm_correctness, missed, n and samples; see the card.
"""
_INTEGER, _NUMBER = datasets.Value("int64"), datasets.Value("float64")
_TOKENS, _LOGITS = datasets.List(_INTEGER), datasets.List(datasets.List(datasets.Value("float32")))
_APPEND = {"past_len": _INTEGER, "first_frame": _INTEGER, "logits": _LOGITS}
_ROW = {
    "input_ids": _TOKENS,
    "labels": _TOKENS,
    "logits": _LOGITS,
    "frame_num_tokens": _INTEGER,
    "v_placeholder_id": _INTEGER,
    "eos_token_id": _INTEGER,
    "frame_token_interval_id": _INTEGER,
    "threshold": _NUMBER,
    "frame_fps": _NUMBER,
    "appends": datasets.List(_APPEND),
}
_OPTIONAL = {"frame_token_interval_id": None, "threshold": None, "frame_fps": None, "appends": ()}
_DIMENSIONS = {"input_ids": 1, "labels": 1, "logits": 2}
_MEANS = ("lm_ppl", "frame_diff", "time_diff", "fluency", "lm_correctness")


class VideollmOnline(evaluate.Metric):
    """The metric `videollm_online`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": _ROW}),
        )

    # The library's check of types wants every key in every dict and one number of dimensions, so that is made before
    # it.

    def add_batch(self, *, predictions=None, **kwargs):
        """Add dialogues, as `compute` takes them."""
        super().add_batch(predictions=[_row(row) for row in predictions or []], **kwargs)

    def add(self, *, prediction=None, **kwargs):
        """Add one dialogue."""
        # The library knows `prediction` only beside a `reference`, which is none of the features here.
        self.add_batch(predictions=[prediction], **kwargs)

    def _compute(self, predictions: Sequence[Mapping[str, Any]], compat: bool = False) -> dict[str, Any]:
        samples = [_sample(row, compat) for row in predictions]
        return {
            **{name: _mean(sample[name] for sample in samples) for name in _MEANS},
            "missed": sum(sample["missed"] for sample in samples),
            "n": len(samples),
            "samples": samples,
        }


def _sample(row: Mapping[str, Any], compat: bool) -> dict[str, Any]:
    fps = row["frame_fps"]
    if fps is not None and not fps > 0:
        raise ValueError(f"frame_fps must be a positive number of frames per second, not {fps}")
    sample = live_metrics(
        *(_tensor(row[name], name) for name in _DIMENSIONS),
        frame_num_tokens=row["frame_num_tokens"],
        v_placeholder_id=row["v_placeholder_id"],
        eos_token_id=row["eos_token_id"],
        frame_token_interval_id=row["frame_token_interval_id"],
        threshold=row["threshold"],
        look_ahead=_recorded(row["appends"]),
        compat=compat,
    )
    known = fps is not None and sample["frame_diff"] is not None
    return {**sample, "time_diff": sample["frame_diff"] / fps if known else None}


def _recorded(appends: Sequence[Mapping[str, Any]]) -> LookAhead:
    """The look-ahead forward passes that were made beforehand."""
    by_past_len = {append["past_len"]: append for append in appends}

    def look_ahead(past_len: int, first_frame: int, n_frames: int) -> torch.Tensor:
        append = by_past_len.get(past_len)
        asked = f"past_len={past_len}, n_frames={n_frames}, first_frame={first_frame}"
        if append is None:
            raise ValueError(f"nobody responded before token {past_len}: appends needs an item with {asked}")
        if append["first_frame"] != first_frame:
            # Recorded by the authors' code after a turn without labels; wrong frames, but all that there is.
            warnings.warn(f"appends: first_frame is {append['first_frame']} where {asked} was needed", stacklevel=2)
        return _tensor(append["logits"], "logits")

    return look_ahead


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    row = _shaped({**_OPTIONAL, **row}, "a dialogue", _ROW)
    return {**row, "appends": [_shaped(append, "an item of appends", _APPEND) for append in row["appends"] or ()]}


def _shaped(row: Mapping[str, Any], what: str, names: Iterable[str]) -> dict[str, Any]:
    missing = [name for name in names if name not in row]
    if missing:
        raise ValueError(f"{what} needs {', '.join(missing)}; it has {', '.join(row)}")
    return {name: _tensor(row[name], name).tolist() if name in _DIMENSIONS else row[name] for name in names}


def _tensor(values: Any, name: str) -> torch.Tensor:
    """The values without leading dimensions of 1, as int64 (T,) or float32 (T, V)."""
    dimensions = _DIMENSIONS[name]
    tensor = torch.as_tensor(values, dtype=torch.int64 if dimensions == 1 else torch.float32)
    while tensor.dim() > dimensions and len(tensor) == 1:
        tensor = tensor[0]
    if not tensor.numel():
        tensor = tensor.reshape((0, 1)[:dimensions])
    if tensor.dim() != dimensions:
        raise ValueError(f"{name} of one dialogue has {dimensions} dimensions, not the shape {tuple(tensor.shape)}")
    return tensor


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
