"""Instructions that say the same: exact copies always go, near copies where a sentence encoder finds them."""

import os
from collections.abc import Callable, Sequence

import numpy as np

# With all-MiniLM-L6-v2 nothing that asks for something else comes this close; see the test of its name.
THRESHOLD = 0.85
_BATCH = 64

Embed = Callable[[Sequence[str]], np.ndarray]


class SentenceEncoder:
    """The mean of an encoder's last hidden states over the words of a sentence, of length 1.

    Args:
        model: Folder or Hub id of any transformers encoder, such as sentence-transformers/all-MiniLM-L6-v2.
    """

    def __init__(self, model: str | os.PathLike):
        from transformers import AutoModel, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._model = AutoModel.from_pretrained(model).eval()

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 (len(texts), D)."""
        import torch

        rows = [np.zeros((0, self._model.config.hidden_size), np.float32)]
        for start in range(0, len(texts), _BATCH):
            batch = self._tokenizer(
                list(texts[start : start + _BATCH]), padding=True, truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state  # (batch, L, D)
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            rows.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(rows)


def find_duplicates(
    pairs: Sequence[tuple[str, str]],
    pinned: Sequence[bool],
    embed: Embed | None = None,
    threshold: float = THRESHOLD,
) -> set[int]:
    """Return which pairs to drop, so that one of every cluster of equal or similar ones stays.

    Clusters are made greedily: a pair that resembles none of those that stay begins one of its own. Pinned pairs come
    first and always stay; then the others in their order, so more pairs at the end change nothing for those before.

    Args:
        pairs: Instructions with their answers.
        pinned: Which of them a person wants to keep.
        embed: Returns unit vectors of texts. Without it only pairs are dropped that are equal but for case, white
            space and closing punctuation, instruction and answer together.
        threshold: Cosine similarity of two instructions from which on they are near copies.

    Returns:
        Indices into `pairs`.
    """
    order = sorted(range(len(pairs)), key=lambda i: not pinned[i])
    seen: set[tuple[str, str]] = set()
    fresh = []
    for i in order:
        key = (_plain(pairs[i][0]), _plain(pairs[i][1]))
        if pinned[i] or key not in seen:
            fresh.append(i)
        seen.add(key)
    stay = set(fresh if embed is None else _first_of_clusters(fresh, pairs, pinned, embed, threshold))
    return set(order) - stay


def _first_of_clusters(
    indices: list[int], pairs: Sequence[tuple[str, str]], pinned: Sequence[bool], embed: Embed, threshold: float
) -> list[int]:
    vectors = embed([pairs[i][0] for i in indices])
    kept = np.empty_like(vectors)
    stay: list[int] = []
    for i, vector in zip(indices, vectors, strict=True):
        if pinned[i] or not stay or float((kept[: len(stay)] @ vector).max()) < threshold:
            kept[len(stay)] = vector
            stay.append(i)
    return stay


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" .!?")
