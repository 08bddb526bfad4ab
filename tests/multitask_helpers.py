"""Small towers and random micro-batches for the six tasks."""

import torch
from transformers import SiglipTextConfig, SiglipTextModel

from streamchat_hf import StreamFormerConfig, StreamFormerModel
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.training.multitask import FrozenTexts, LossOptions, MultitaskAlignment

NAMES = ("red", "green", "blue", "circle")


def tiny_tower(seed: int = 0, **changes) -> StreamFormerModel:
    """A random StreamFormer whose every branch matters: nothing in it stays at zero."""
    values = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    values |= {"image_size": 16, "patch_size": 8, "lora_rank": 2}
    torch.manual_seed(seed)
    model = StreamFormerModel(StreamFormerConfig(**values | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def tiny_texts(size: int = 16, **changes) -> FrozenTexts:
    """A random text tower for StreamWorld's words."""
    tokenizer = build_tokenizer()
    values = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    values |= {"max_position_embeddings": 8, "projection_size": size, "vocab_size": len(tokenizer)}
    torch.manual_seed(1)
    return FrozenTexts(SiglipTextModel(SiglipTextConfig(**values | changes)), tokenizer)


def tiny_module(tower: StreamFormerModel | None = None, **options) -> MultitaskAlignment:
    """Both together, with names of classes as they are."""
    tower = tiny_tower() if tower is None else tower
    return MultitaskAlignment(
        tower, tiny_texts(), logit_bias=-2.0, options=LossOptions(**options), action_templates=["{}"]
    )


def batch(task: str, videos: int = 3, frames: int = 4, seed: int = 0) -> dict:
    """A random micro-batch, in which two videos share their text."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(videos, frames, 3, 16, 16, generator=generator)
    shape = {"action": (videos,), "temporal": (videos, frames)}.get(task.split("_")[0], (videos, frames, 16, 16))
    first = 0 if task == "action_recognition" else -1
    labels = torch.randint(first, len(NAMES), shape, generator=generator)
    texts = list(NAMES)
    if task in ("video_text_retrieval", "temporal_grounding", "referring_segmentation"):
        texts = ["a red circle", "a blue circle , left", "a red circle", "three red ones"][:videos]
        labels = None if task == "video_text_retrieval" else labels > 1
    return {"task": task, "pixel_values_videos": pixels, "texts": texts, "labels": labels}
