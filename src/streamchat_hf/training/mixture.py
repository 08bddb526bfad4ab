"""Rows from several sources, mixed by weight, in an order that depends on nothing but a seed."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from streamchat_hf.data.dense_instruction import FEATURES, load_dense_instruction
from streamchat_hf.training.dense_collator import split_turns


def load_source(source: dict[str, Any], fps: float, max_frames: int) -> datasets.Dataset:
    """Loads the rows of one source, those that are too long for `max_frames` cut by their turns.

    Args:
        source: Arguments of [`load_dense_instruction`], with the `name` of its configuration; or, with a `path`, those
            of `datasets.load_dataset`, for rows that were written or pushed before. `split` is `"train"` by default.
        fps: Frames per second of dense rows.
        max_frames: The most frames of a sample.

    Returns:
        Rows as in `dense_instruction.FEATURES`.

    Raises:
        ValueError: If the source has no row, or lacks columns.
    """
    arguments = {"split": "train", **{key: value for key, value in source.items() if key != "weight"}}
    load = datasets.load_dataset if "path" in arguments else load_dense_instruction
    rows = load(**arguments)
    missing = set(FEATURES) - set(rows.column_names)
    if missing or len(rows) == 0:
        raise ValueError(
            f"source {source} has {len(rows)} rows and no column {', '.join(sorted(missing)) or 'missing'}"
        )
    return rows.select_columns(list(FEATURES)).map(
        _split_batch,
        batched=True,
        fn_kwargs={"fps": fps, "max_frames": max_frames},
        features=FEATURES,
        desc=f"Cutting rows to {max_frames} frames",
    )


def _split_batch(batch: dict[str, list], fps: float, max_frames: int) -> dict[str, list]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    cut = [part for row in rows for part in split_turns(row, fps, max_frames)]
    return {name: [row[name] for row in cut] for name in batch}


def mixture_order(sizes: Sequence[int], weights: Sequence[float] | None, length: int, seed: int) -> np.ndarray:
    """Which rows of concatenated sources a run reads, one after the other.

    Each place in the order draws its source by weight and takes that source's next row. A source passes through all of
    its rows, shuffled, before it begins again, shuffled anew. The beginning of a longer order is the shorter one.

    Args:
        sizes: How many rows each source has.
        weights: How often each source is drawn, in any unit. `None`: the sources are one, whose rows come once each
            before any comes again.
        length: How many rows to read.
        seed: Any non-negative integer.

    Returns:
        `(length,)` int64 numbers of rows, counted through all sources.
    """
    if weights is None:
        sizes, weights = [sum(sizes)], [1.0]
    shares = np.asarray(weights, dtype=np.float64)
    drawn = np.random.default_rng([seed, 0]).choice(len(sizes), size=length, p=shares / shares.sum())
    order, first = np.empty(length, dtype=np.int64), 0
    for source, size in enumerate(sizes):
        places = np.flatnonzero(drawn == source)
        passes = range(-(-len(places) // size))
        rows = [np.random.default_rng([seed, 1 + source, number]).permutation(size) for number in passes]
        order[places] = first + np.concatenate([np.empty(0, np.int64), *rows])[: len(places)]
        first += size
    return order


def load_mixture(
    sources: Sequence[dict[str, Any]], fps: float, max_frames: int
) -> tuple[datasets.Dataset, list[int], list[float] | None]:
    """Loads sources, as [`load_source`] does, one after the other.

    Args:
        sources: Each with its `weight`, or all without.
        fps: Frames per second of dense rows.
        max_frames: The most frames of a sample.

    Returns:
        All rows, the number of rows of each source, and the weights, `None` if there are none.

    Raises:
        ValueError: If there is no source, only some have weights, or a weight is not positive.
    """
    weights = [source.get("weight") for source in sources]
    given = [weight for weight in weights if weight is not None]
    if not sources or len(given) not in (0, len(sources)) or any(not weight > 0 for weight in given):
        raise ValueError(f"give at least one source, all with a positive weight or all without, not {weights}")
    rows = [load_source(source, fps, max_frames) for source in sources]
    return datasets.concatenate_datasets(rows), [len(part) for part in rows], given or None
