"""Adapters that can be merged into the model they were trained in."""

from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists


def untie_adapted_ends(model: Any, lora: PeftConfig) -> None:
    """Where adapters change the head or the embedding of a model in which both are one matrix, makes them two.

    Merged into one, what was learned for one end would change the other.

    Args:
        model: what is going to get adapters.
        lora: which of its matrices get them.
    """
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    ends = [name for name, module in model.named_modules() if module is head or module is embedding]
    if model.config.tie_word_embeddings and any(check_target_module_exists(lora, name) for name in ends):
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
