"""Small activation models, and conversations for them."""

import torch

from streamchat_hf import StreamFormerVideoProcessor, VideoLLMOnlineProcessor
from streamchat_hf.data.live_streamworld import build_live_tokenizer
from streamchat_hf.modeling.configuration_streambridge_activation import StreamBridgeActivationConfig
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel
from videollm_online_helpers import CLOSE, END, OPEN, START, TEXT, VISION, V

PLACES = 5  # four visual tokens and <ACT>


def tiny_config(vision: str = "siglip_vision_model", text: str = "qwen2", **changes) -> StreamBridgeActivationConfig:
    """A configuration of well under 100k parameters."""
    vision_config = VISION | {"model_type": vision}
    if vision == "streamformer":
        vision_config |= {"lora_rank": 2, "sliding_window": 6}
    text_config = TEXT | {"model_type": text} | changes.pop("text_config", {})
    values = {
        "frame_token_pooled": [2, 2],
        "v_placeholder_id": V,
        "eos_token_id": END,
        "stream_start_ids": OPEN,
        "response_start_ids": CLOSE,
    }
    return StreamBridgeActivationConfig(vision_config=vision_config, text_config=text_config, **values | changes)


def tiny_model(seed: int = 0, **changes) -> StreamBridgeActivationModel:
    """A random model whose every part matters and whose scores vary."""
    torch.manual_seed(seed)
    model = StreamBridgeActivationModel(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim < 2 else 0.12))
        model.connector[2].weight.mul_(6)
        model.score.weight.mul_(4)
    return model


def world_processor(side: int = 32, places: int = PLACES) -> VideoLLMOnlineProcessor:
    """A processor for StreamWorld's words."""
    video_processor = StreamFormerVideoProcessor(size={"height": side, "width": side})
    tokenizer = build_live_tokenizer()
    return VideoLLMOnlineProcessor(
        video_processor, tokenizer, None, places, None, frame_fps=2.0, system_prompt="keep watching ."
    )


def world_model(processor: VideoLLMOnlineProcessor, seed: int = 0, **changes) -> StreamBridgeActivationModel:
    """A random model for it."""
    ids = processor.token_ids()
    del ids["frame_token_interval_id"]
    return tiny_model(seed, text_config={"vocab_size": len(processor.tokenizer)}, **{**ids, **changes})


def conversation(*frames: int, places: int = PLACES, seed: int = 0) -> list[int]:
    """Token ids: a question, and for each number of frames a run of them and an answer."""
    words = iter(torch.randint(9, 61, (100,), generator=torch.Generator().manual_seed(seed)).tolist())
    ids = [START, next(words), next(words)]
    for count in frames:
        ids += [*OPEN, *[V] * (places * count), *CLOSE, next(words), next(words), END]
    return ids
