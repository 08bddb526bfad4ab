"""Frames for a bridged model without torchvision."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2VLImageProcessorPil

from bridge_helpers import TEMPLATES, SimpleProcessor, tiny_bridge, tokenizer
from streamchat_hf.bridge.processor import BridgeProcessor


def test_a_stream_is_watched_at_one_frame_a_second():
    processor = tiny_bridge("qwen2_5_vl").processor
    images = [(i / 4, torch.full((3, 32, 48), i, dtype=torch.uint8)) for i in range(13)]
    shown = list(processor.stream(images))
    assert [frame.t_sec for frame in shown] == [0.0, 1.0, 2.0, 3.0]
    assert [frame.t_sec for frame in processor.stream(images, fps=2)] == [i / 2 for i in range(7)]
    assert processor.stream(images, fps=2).fps == 2
    assert shown[1].pixel_values.shape == (3, 16, 24)
    assert float(shown[1].pixel_values[0, 0, 0]) == pytest.approx((4 / 255 - 0.5) / 0.5)


def test_a_clip_is_made_as_a_stream_is():
    processor = tiny_bridge("qwen2_5_vl").processor
    images = [torch.randint(0, 255, (3, 32, 48), dtype=torch.uint8) for _ in range(3)]
    clip = processor.video_processor([list(enumerate(images))], do_sample_frames=False)["pixel_values_videos"][0]
    assert torch.equal(clip, torch.stack([frame.pixel_values for frame in processor.stream(images)]))


def test_settings_are_those_of_a_processor_of_transformers():
    family = tiny_bridge("qwen2_5_vl").family
    size = {"shortest_edge": 64, "longest_edge": 16 * 24}
    image_processor = Qwen2VLImageProcessorPil(size=size, image_mean=[0.1] * 3, image_std=[0.2] * 3, patch_size=4)
    own = SimpleNamespace(tokenizer=tokenizer("qwen2_5_vl"), image_processor=image_processor, chat_template="x")
    processor = BridgeProcessor(own, family)
    assert processor.chat_template == "x"
    pixels = processor.video_processor.preprocess_frame(torch.zeros(3, 16, 24, dtype=torch.uint8))
    torch.testing.assert_close(pixels, torch.full((3, 16, 24), -0.5))


def test_without_a_chat_template_it_is_refused():
    own = SimpleProcessor("llava_onevision")
    own.chat_template = None
    with pytest.raises(ValueError, match="neither the processor nor its tokenizer has a chat template"):
        BridgeProcessor(own, tiny_bridge("llava_onevision").family)


def test_the_template_is_the_processors():
    processor = tiny_bridge("qwen3_vl").processor
    text = processor.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert processor.chat_template == TEMPLATES["qwen3_vl"]
    assert text == "<|im_start|>user\nhi<|im_end|>\n"
