"""Small StreamChats, streams and the whole-sequence replay that streaming is compared with."""

import copy

import torch
from transformers import AutoModelForCausalLM

from streamchat_hf import StreamChatConfig, StreamChatForConditionalGeneration
from streamchat_hf.modeling.timeline_streamchat import NEVER, to_milliseconds

END, PAD = 1, 0


def tiny_config(vision: str = "streamformer", **changes) -> StreamChatConfig:
    """A configuration of well under 100k parameters."""
    vision_config = {
        "model_type": vision,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 8,
    }
    if vision == "streamformer":
        vision_config |= {"lora_rank": 2, "temporal_position": "rotary", "sliding_window": 6}
    text_config = {
        "vocab_size": 61,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "bos_token_id": None,
    }
    values = {"cross_attention_layers": [0, 2, 3], "visual_window": 5, "gate_init": 0.7} | changes
    text_config |= values.pop("text_config", {})
    return StreamChatConfig(vision_config=vision_config, text_config=text_config, **values)


def tiny_model(seed: int = 0, **changes) -> StreamChatForConditionalGeneration:
    """A random model whose every branch matters: nothing in it stays at zero."""
    torch.manual_seed(seed)
    model = StreamChatForConditionalGeneration(tiny_config(**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "visual_gate" in name or "cross_attn_gate" in name:
                continue
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.12))
    return model


def frames_at(times: list[float], seed: int = 0, size: int = 16) -> list[tuple[float, torch.Tensor]]:
    """Random frames at given seconds."""
    generator = torch.Generator().manual_seed(seed)
    return [(t, torch.randn(3, size, size, generator=generator)) for t in times]


def at_rate(fps: float, seconds: float, offset: float = 0.0) -> list[float]:
    """Presentation times of a steady camera."""
    return [offset + k / fps for k in range(int((seconds - offset) * fps) + 1)]


def whole(model, tokens, token_times, turns, frames, frame_times=None):
    """Logits `(len(tokens), vocabulary)` of one conversation in a single forward pass; times in seconds."""
    times = [t for t, _ in frames] if frame_times is None else frame_times
    turn_starts = torch.zeros(1, len(tokens), dtype=torch.bool)
    turn_starts[0, turns] = True
    with torch.no_grad():
        return model(
            input_ids=torch.tensor([tokens]),
            pixel_values_videos=torch.stack([pixels for _, pixels in frames])[None],
            token_times=torch.tensor([[to_milliseconds(t) for t in token_times]]),
            frame_times=torch.tensor([[to_milliseconds(t) for t in times]]),
            turn_starts=turn_starts,
        ).logits[0]


def pad_frames(rows: list[list[tuple[float, torch.Tensor]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Streams of different length as one padded batch: pixels `(B, T, C, H, W)` and times `(B, T)`."""
    count = max(len(row) for row in rows)
    pixels = torch.zeros(len(rows), count, *rows[0][0][1].shape)
    times = torch.full((len(rows), count), NEVER)
    for i, row in enumerate(rows):
        for k, (t, frame) in enumerate(row):
            pixels[i, k], times[i, k] = frame, to_milliseconds(t)
    return pixels, times


def qwen_twin(model):
    """transformers' own Qwen2 with the same weights."""
    config = copy.deepcopy(model.config.text_config)
    qwen = AutoModelForCausalLM.from_config(config).eval()
    text = {
        f"model.{name}": tensor
        for name, tensor in model.model.language_model.state_dict().items()
        if "cross_attn" not in name and "visual_" not in name
    }
    qwen.load_state_dict({**text, "lm_head.weight": model.lm_head.weight})
    return qwen
