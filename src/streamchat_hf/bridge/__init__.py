"""StreamBridge: a video LLM that ships in transformers watches a stream and answers about it."""

from streamchat_hf.bridge.bridge import StreamBridge

__all__ = ["StreamBridge"]
