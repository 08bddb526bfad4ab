"""The card of a dataset of dense instructions: the template in `model_cards/`, filled from a builder."""

from collections.abc import Iterator, Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from streamchat_hf.hub.card import fill

# What the columns of `data.dense_instruction.FEATURES` are.
MEANINGS = {
    "id": "of the row",
    "source": "file and line it was read from",
    "kind": "`dense` (spoken while the video plays), `video` and `image` (asked after it) or `text`",
    "media": "path of the video or image",
    "turns": "the conversation",
    "turns.instruction": "what is asked",
    "turns.answer": "what is said",
    "turns.start": "when it is asked",
    "turns.end": "when the last word is spoken",
    "turns.word_times": "when each word is spoken",
}
# The Hub's classes of size, each with its bound.
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M", 10_000_000: "1M<n<10M"}


def render_dataset_card(builder: Any, repo_id: str, license: str | None = None) -> DatasetCard:
    """Writes the card of the rows that a `DenseInstruction` builder has prepared.

    Args:
        builder: After `download_and_prepare()`.
        repo_id: Where the dataset will be found on the Hub.
        license: Of the rows, as the Hub spells licences.

    Raises:
        ValueError: If the builder has not prepared its rows.
    """
    splits = {name: split.num_examples for name, split in (builder.info.splits or {}).items()}
    if not splits:
        raise ValueError("the builder has no rows yet: call download_and_prepare() first")
    rows = sum(splits.values())
    name = repo_id.rpartition("/")[2]
    data = DatasetCardData(
        license=license,
        pretty_name=name,
        task_categories=["video-text-to-text"],
        size_categories=[next((size for bound, size in SIZES.items() if rows < bound), "n>10M")],
        tags=["video", "streaming", "dense-instruction"],
    )
    return fill(
        DatasetCard,
        data,
        "dense_instruction",
        name=name,
        source=repo_id,
        config=builder.config.name,
        splits=splits,
        left_out=", ".join(f"{count} x {reason}" for reason, count in builder.bad_rows.counts.items()),
        columns={column: (kind, MEANINGS.get(column, "")) for column, kind in _columns(builder.info.features)},
    )


def _columns(features: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and types, those of records in a list after the list."""
    for name, feature in features.items():
        inner = getattr(feature, "feature", None)  # of a list
        kind = "list" if isinstance(inner, dict) else getattr(inner or feature, "dtype", "")
        yield f"{prefix}{name}", kind if inner is None or kind == "list" else f"list of {kind}"
        if isinstance(inner, dict):
            yield from _columns(inner, f"{prefix}{name}.")
