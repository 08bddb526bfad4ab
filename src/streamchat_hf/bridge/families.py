"""The families of video LLMs that StreamBridge knows, by the `model_type` of their configuration."""

from typing import Any

from streamchat_hf.bridge.family import Family
from streamchat_hf.bridge.llava_onevision import LlavaOnevision
from streamchat_hf.bridge.qwen2_5_vl import Qwen2_5_VL
from streamchat_hf.bridge.qwen3_vl import Qwen3VL

FAMILIES: dict[str, type[Family]] = {
    "llava_onevision": LlavaOnevision,
    "qwen2_5_vl": Qwen2_5_VL,
    "qwen3_vl": Qwen3VL,
}


def family_of(config: Any) -> type[Family]:
    """The adapter for a model's configuration.

    Raises:
        ValueError: if there is none.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"a model of type {config.model_type!r} cannot be bridged, only {', '.join(FAMILIES)}")
    return FAMILIES[config.model_type]
