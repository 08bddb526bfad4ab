"""Small VideoLLM-onlines and conversations for them."""

import torch

from streamchat_hf import VideoLLMOnlineConfig, VideoLLMOnlineForConditionalGeneration

PAD, END, START = 0, 1, 2
INTERVAL, V = 3, 61  # <v> lies outside the vocabulary, as in the published model
OPEN, CLOSE = [4, 5], [6, 7, 8]
TEXT = {
    "model_type": "llama",
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": START,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def tiny_config(vision: str = "siglip_vision_model", text: str = "llama", **changes) -> VideoLLMOnlineConfig:
    """A configuration of well under 100k parameters; five tokens a frame."""
    vision_config = VISION | {"model_type": vision}
    if vision == "streamformer":
        vision_config |= {"lora_rank": 2, "sliding_window": 6}
    text_config = TEXT | {"model_type": text} | changes.pop("text_config", {})
    values = {
        "frame_token_pooled": [2, 2],
        "v_placeholder_id": V,
        "frame_token_interval_id": INTERVAL,
        "eos_token_id": END,
        "stream_start_ids": OPEN,
        "response_start_ids": CLOSE,
    }
    return VideoLLMOnlineConfig(vision_config=vision_config, text_config=text_config, **values | changes)


def tiny_model(seed: int = 0, **changes) -> VideoLLMOnlineForConditionalGeneration:
    """A random model whose every part matters: nothing in it stays at zero."""
    torch.manual_seed(seed)
    model = VideoLLMOnlineForConditionalGeneration(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.12))
    return model


def pixels(count: int, seed: int = 0) -> torch.Tensor:
    """Random frames `(count, 3, 32, 32)`."""
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def run_of_frames(count: int, tokens: int = 5) -> list[int]:
    """Token ids of so many frames, the interval between them."""
    return ([INTERVAL, *[V] * tokens] * count)[1:]


def conversation(*frames: int, tokens: int = 5, seed: int = 0) -> list[int]:
    """Token ids: a prompt, and for each number of frames a run of them and an answer."""
    words = iter(torch.randint(9, 61, (100,), generator=torch.Generator().manual_seed(seed)).tolist())
    ids = [START, next(words), next(words)]
    for count in frames:
        ids += [*OPEN, *run_of_frames(count, tokens), *CLOSE, next(words), next(words), END]
    return ids


def stream_labels(ids: list[int]) -> list[int]:
    """Pre-shifted labels: at every frame's last token and in every answer the next token, elsewhere -100."""
    labels, answering = [], False
    for token, following in zip(ids, [*ids[1:], -100], strict=True):
        answering = token == CLOSE[-1] or (answering and token != END)
        last_of_frame = token == V != following
        labels.append(following if answering or last_of_frame else -100)
    return labels
