"""Bytes and text to tensors: what travels to the Hub beside a checkpoint's weights."""

from .frames_streamchat import VideoFrame, VideoStream, VideoStreamError
from .processing_streamchat import CHAT_TEMPLATE, StreamChatProcessor
from .video_processing_streamformer import StreamFormerVideoProcessor

__all__ = [
    "CHAT_TEMPLATE",
    "StreamChatProcessor",
    "StreamFormerVideoProcessor",
    "VideoFrame",
    "VideoStream",
    "VideoStreamError",
]
