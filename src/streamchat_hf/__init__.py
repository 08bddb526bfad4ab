"""Video language models that keep watching while they talk.

Importing this package teaches transformers' Auto classes our model types, so a checkpoint loads without
`trust_remote_code`.
"""

from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)

# Without torchvision `transformers.AutoVideoProcessor` is a placeholder that raises; this is the class itself.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from streamchat_hf.bridge import StreamBridge
from streamchat_hf.modeling.cache_static_streamchat import StaticStreamingCache
from streamchat_hf.modeling.cache_streamchat import StreamingCache
from streamchat_hf.modeling.cache_streamformer import StreamFormerCache
from streamchat_hf.modeling.configuration_streambridge_activation import StreamBridgeActivationConfig
from streamchat_hf.modeling.configuration_streamchat import StreamChatConfig
from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.configuration_videollm_online import VideoLLMOnlineConfig
from streamchat_hf.modeling.generation_streamchat import StreamingGenerationMixin
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel
from streamchat_hf.modeling.modeling_streamchat import StreamChatForConditionalGeneration, StreamChatModel
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel
from streamchat_hf.modeling.modeling_videollm_online import VideoLLMOnlineForConditionalGeneration
from streamchat_hf.modeling.timeline_streamchat import timeline
from streamchat_hf.processing.frames_streamchat import VideoFrame, VideoStream
from streamchat_hf.processing.processing_streamchat import StreamChatProcessor
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor
from streamchat_hf.streaming.session import StreamingSession
from streamchat_hf.vision_tower_streamformer import StreamFormerVisionConfig, StreamFormerVisionModel

__version__ = "0.1.0"

__all__ = [
    "StaticStreamingCache",
    "StreamBridge",
    "StreamBridgeActivationConfig",
    "StreamBridgeActivationModel",
    "StreamChatConfig",
    "StreamChatForConditionalGeneration",
    "StreamChatModel",
    "StreamChatProcessor",
    "StreamFormerCache",
    "StreamFormerConfig",
    "StreamFormerModel",
    "StreamFormerVideoProcessor",
    "StreamingCache",
    "StreamingGenerationMixin",
    "StreamingSession",
    "VideoFrame",
    "VideoLLMOnlineConfig",
    "VideoLLMOnlineForConditionalGeneration",
    "VideoLLMOnlineProcessor",
    "VideoStream",
    "timeline",
    "tiny_checkpoint",
]

AutoConfig.register("streamformer", StreamFormerConfig)
AutoConfig.register("streamchat", StreamChatConfig)
AutoConfig.register("videollm_online", VideoLLMOnlineConfig)
AutoConfig.register("streambridge_activation", StreamBridgeActivationConfig)
AutoModel.register(StreamFormerConfig, StreamFormerModel)
AutoModel.register(StreamBridgeActivationConfig, StreamBridgeActivationModel)
for _auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    _auto.register(StreamChatConfig, StreamChatForConditionalGeneration)
    _auto.register(VideoLLMOnlineConfig, VideoLLMOnlineForConditionalGeneration)
AutoVideoProcessor.register(StreamFormerConfig, StreamFormerVideoProcessor)
AutoProcessor.register(StreamChatConfig, StreamChatProcessor)
AutoProcessor.register(VideoLLMOnlineConfig, VideoLLMOnlineProcessor)
AutoProcessor.register(StreamBridgeActivationConfig, VideoLLMOnlineProcessor)
AutoConfig.register("streamformer_vision_model", StreamFormerVisionConfig)
AutoModel.register(StreamFormerVisionConfig, StreamFormerVisionModel)


def tiny_checkpoint() -> Path:
    """The shipped tiny StreamChat: model and processor in one folder, trained on StreamWorld.

    Returns:
        A folder for `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained`.
    """
    return Path(__file__).parent / "assets" / "tiny-streamchat"
