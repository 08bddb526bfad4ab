"""Processor of StreamChat: conversations with videos and images to model inputs, and sources to streams of frames."""

import os
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from transformers.image_utils import load_image

from .processing_frames_streamchat import FrameProcessorMixin
from .video_processing_streamformer import NEVER, as_clips, is_clip, pad_clips

# ChatML, as Qwen2.5 and SmolLM2 were trained with. What the model learns to say, the answer and the token that ends
# its turn, is marked for `return_assistant_tokens_mask`. Visual items leave no trace: what is seen reaches the model
# through its cross-attention, never through the prompt.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- set content = namespace(text='') %}
    {%- if message['content'] is string %}
        {%- set content.text = message['content'] %}
    {%- else %}
        {%- for item in message['content'] if item['type'] == 'text' %}
            {%- set content.text = content.text + item['text'] %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
        {{- content.text + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- content.text + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


class StreamChatProcessor(FrameProcessorMixin):
    """Wraps a [`StreamFormerVideoProcessor`] and a tokenizer.

    What is shown in one conversation forms one timeline: its images and clips follow one another, each beginning with
    the last frame before it, and an image is a clip of one frame.

    Args:
        video_processor: turns frames into pixels.
        tokenizer: turns text into tokens.
        chat_template: Jinja template; `None` takes the tokenizer's, or else ChatML.

    Example:
    ```python
    content = [{"type": "video", "path": "kitchen.mp4"}, {"type": "text", "text": "What happened?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )  # input_ids, attention_mask, pixel_values_videos (1, frames, 3, height, width), frame_times (1, frames)
    frames = processor.stream("kitchen.mp4", fps=5)
    ```
    """

    text_kwargs = {"padding": True}

    def __init__(self, video_processor=None, tokenizer=None, chat_template: str | dict | None = None):
        if chat_template is None:
            chat_template = getattr(tokenizer, "chat_template", None) or CHAT_TEMPLATE
        super().__init__(video_processor, tokenizer, chat_template=chat_template)

    @property
    def unused_input_names(self) -> list[str]:
        """Token types, which some tokenizers return and the model does not take."""
        return ["token_type_ids"]

    def prepare_inputs_layout(self, images=None, text=None, videos=None, audio=None, **kwargs) -> tuple:
        """Sorts images and videos into one list of clips per text; an image is a clip of one frame at time 0.

        Args:
            images: an image or a list of them, loaded or by path or URL; for several texts one each, or one list each.
            text: one text or several.
            videos: a clip or a list of them; for several texts one each, or one list each.
            audio: not supported.
            **kwargs: not used.

        Raises:
            ValueError: if the images or videos cannot be assigned to the texts.
        """
        text = [text] if isinstance(text, str) else text
        count = None if text is None else len(text)
        shown = [_per_text(images, count, _is_image, "images"), _per_text(videos, count, _is_video, "videos")]
        given = [rows for rows in shown if rows is not None]
        if not given:
            return None, text, None, audio
        if len({len(rows) for rows in given}) > 1:
            raise ValueError(f"images for {len(given[0])} texts, but videos for {len(given[1])}")
        return None, text, [[clip for clips in row for clip in clips] for row in zip(*given, strict=True)], audio

    def _process_videos(self, videos: list[list], **kwargs) -> tuple:
        # Called with what `prepare_inputs_layout` returned. Tensors come in any case and are converted at the end.
        kwargs.pop("return_tensors", None)
        features = self.video_processor([clip for row in videos for clip in row], **kwargs)
        if any(len(row) != 1 for row in videos):
            clips = zip(features["pixel_values_videos"], features["frame_times"], strict=True)
            features.update(pad_clips([_join([next(clips) for _ in row], features) for row in videos]))
        return features, []

    def _normalize_conversations(self, conversation) -> tuple[list, bool]:
        # A message's content becomes its text, so that any template can render it; what it shows is kept beside it
        # until the next step takes it away.
        conversations, is_batched = super()._normalize_conversations(conversation)
        for message in (message for messages in conversations for message in messages):
            content = message.get("content")
            if isinstance(content, list | tuple):
                message["content"] = "".join(item["text"] for item in content if item["type"] == "text")
                message["_shown"] = [item for item in content if item["type"] != "text"]
        return conversations, is_batched

    def _multimodal_inputs_from_conversations(self, conversations, *args, **kwargs) -> tuple:
        rows = []
        for messages in conversations:
            items = [item for message in messages for item in message.pop("_shown", [])]
            rows.append([clip for item in items for clip in _read_item(item)])
        return [[] for _ in rows], rows, [], {}


def _read_item(item: dict) -> list:
    """The clips of a visual item of a message: `{"type": "video" | "image", "path" | "url" | ...: ...}`.

    Raises:
        ValueError: for an item of another type.
    """
    if item["type"] not in ("image", "video"):
        raise ValueError(f"content of type {item['type']!r}: StreamChat takes text, images and videos")
    sources = [item[key] for key in (item["type"], "url", "path", "base64") if key in item]
    return [_as_still(source) for source in sources] if item["type"] == "image" else as_clips(sources)


def _is_image(item: Any) -> bool:
    return isinstance(item, str | os.PathLike | Image.Image) or getattr(item, "ndim", None) == 3


def _is_video(item: Any) -> bool:
    return is_clip(item) or isinstance(item, Image.Image) or getattr(item, "ndim", None) == 3


def _as_still(image: Any) -> list:
    """A clip of one frame at time 0."""
    return [(0.0, load_image(os.fspath(image)) if isinstance(image, str | os.PathLike) else image)]


def _per_text(items: Any, texts: int | None, is_one: Callable[[Any], bool], what: str) -> list[list] | None:
    """Assigns images or videos to texts, as one list of clips per text; `texts=None`: each stands alone.

    Raises:
        ValueError: if their numbers do not match.
    """
    if items is None:
        return None
    items = [items] if is_one(items) else list(items)
    if any(not is_one(item) for item in items):
        rows = [[item] if is_one(item) else list(item) for item in items]
    elif texts == 1:
        rows = [items]
    else:
        rows = [[item] for item in items]
    if texts is not None and len(rows) != texts:
        raise ValueError(f"{what} for {len(rows)} texts, but {texts} texts: give one each, or one list each")
    return [
        [clip for item in row for clip in ([_as_still(item)] if what == "images" else as_clips(item))] for row in rows
    ]


def _join(clips: list[tuple[torch.Tensor, torch.Tensor]], features: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """One clip after the other, each beginning with the last frame before it; no clips give no frames."""
    pixels, times = [features["pixel_values_videos"][0, :0]], [features["frame_times"][0, :0]]
    start = 0
    for clip_pixels, clip_times in clips:
        real = clip_times != NEVER
        pixels.append(clip_pixels[real])
        times.append(clip_times[real] + start)
        start = int(times[-1][-1])
    return torch.cat(pixels), torch.cat(times)


StreamChatProcessor.register_for_auto_class()
