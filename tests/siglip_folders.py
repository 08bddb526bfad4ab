"""Random checkpoints of all that has a SigLIP inside, and the features of a frame."""

from pathlib import Path

import torch
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

TOWER = {"hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4}
SHAPE = {"image_size": 32, "patch_size": 8}


def paligemma() -> PaliGemmaForConditionalGeneration:
    text = {"model_type": "gemma", "head_dim": 16, "num_key_value_heads": 1, **TEXT, "vocab_size": 40}
    vision = {"model_type": "siglip_vision_model", "vision_use_head": False, **SHAPE, **TOWER}
    return PaliGemmaForConditionalGeneration(
        PaliGemmaConfig(vision_config=vision, text_config=text, projection_dim=64, image_token_index=3)
    )


NAFLEX = {"patch_size": 8, "num_patches": 16}
# How each is made, where its tower is, and what else is in it.
SIGLIPS = {
    "siglip_vision_model": (lambda: SiglipVisionModel(SiglipVisionConfig(**SHAPE, **TOWER)), lambda m: m, {}),
    "siglip": (
        lambda: SiglipModel(SiglipConfig(vision_config=SHAPE | TOWER, text_config=TEXT)),
        lambda m: m.vision_model,
        {"text tower": 22, "loss scale and bias": 2},
    ),
    "siglip2_vision_model": (lambda: Siglip2VisionModel(Siglip2VisionConfig(**NAFLEX, **TOWER)), lambda m: m, {}),
    "siglip2": (
        lambda: Siglip2Model(Siglip2Config(vision_config=NAFLEX | TOWER, text_config=TEXT)),
        lambda m: m.vision_model,
        {"text tower": 22, "loss scale and bias": 2},
    ),
    "paligemma": (paligemma, lambda m: m.model.vision_tower, {"rest of the model": 13}),
}


def save_siglip(kind: str, folder: Path, **saving):
    """A random model, saved; the tower in it."""
    make, tower, _ = SIGLIPS[kind]
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder, **saving)
    return tower(model)


@torch.no_grad()
def siglips_features(tower, frame):
    """Of one frame `(1, 3, height, width)`; SigLIP 2 wants it in flat patches: rows, columns, channels."""
    if tower.config.model_type == "siglip_vision_model":
        return tower(frame)
    flat = frame.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
    shapes = torch.tensor([[frame.shape[2] // 8, frame.shape[3] // 8]])
    return tower(flat, pixel_attention_mask=torch.ones(1, flat.shape[1], dtype=torch.int32), spatial_shapes=shapes)
