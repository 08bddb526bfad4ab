"""Qwen2.5-VL's patches and positions, against transformers and a restatement."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from bridge_helpers import frames, tiny_bridge
from streamchat_hf.bridge.processor import BridgeProcessor
from streamchat_hf.bridge.qwen2_5_vl import patchify


@pytest.mark.parametrize("size", [(16, 24), (40, 60), (9, 50)])
def test_an_image_becomes_the_patches_that_transformers_makes(size):
    bridge = tiny_bridge("qwen2_5_vl")
    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    own = Qwen2VLImageProcessorPil(
        size=bridge.processor.settings["size"], image_mean=[0.5] * 3, image_std=[0.5] * 3, patch_size=4
    )
    expected = own(Image.fromarray(picture), return_tensors="pt")
    pixels = bridge.processor.video_processor.preprocess_frame(picture)
    rows, columns = (side // 4 for side in pixels.shape[1:])
    assert expected["image_grid_thw"].tolist() == [[1, rows, columns]]
    patches = patchify(pixels[None], 4, 2, 2)
    # Resizing rounds to whole grey levels of 2 / 255 in both.
    torch.testing.assert_close(patches, expected["pixel_values"], atol=1e-6 if size == (16, 24) else 0.017, rtol=0)


def test_positions_go_on_after_a_video_where_the_model_says():
    """Text counts one by one; a frame is two positions after the one before it, its rows and columns one apart."""
    bridge = tiny_bridge("qwen2_5_vl")
    buffer = bridge.new_cache()
    bridge.refresh_visual(buffer, frames("qwen2_5_vl", 2))
    buffer.ask("what?")
    time, height, width = buffer.flatten().positions[:, 0].tolist()
    begin = len(buffer.front) + len(bridge.chat.opening)
    assert time[:begin] == height[:begin] == width[:begin] == list(range(begin))
    assert [t - begin for t in time[begin : begin + 12]] == [0] * 6 + [2] * 6
    assert [h - begin for h in height[begin : begin + 12]] == [0, 0, 0, 1, 1, 1] * 2
    assert [w - begin for w in width[begin : begin + 12]] == [0, 1, 2] * 4
    assert time[begin + 12 :] == list(range(begin + 3, begin + 3 + len(time) - begin - 12))


def test_without_frames_positions_count_words():
    bridge = tiny_bridge("qwen2_5_vl")
    buffer = bridge.new_cache()
    buffer.ask("what?")
    whole = buffer.flatten()
    assert whole.positions.tolist() == [[list(range(len(whole)))]] * 3


def test_settings_of_older_checkpoints_are_understood():
    bridge = tiny_bridge("qwen2_5_vl")
    family = bridge.family
    older = SimpleNamespace(
        tokenizer=bridge.processor.tokenizer,
        chat_template=bridge.processor.chat_template,
        video_processor={**bridge.processor.settings, "size": None, "min_pixels": 64, "max_pixels": 384},
    )
    processor = BridgeProcessor(older, family)
    assert family.frame_size(40, 60, processor.settings) == (16, 24)
    processor.settings["size"] = {"shortest_edge": 16, "longest_edge": 96}  # what is said later counts
    assert family.frame_size(40, 60, processor.settings) == (8, 8)
    assert family.frame_size(40, 60, {"size": {"shortest_edge": 64, "longest_edge": 384}}) == (16, 24)
    for settings in ({}, {"size": {"height": 16, "width": 24}}):
        with pytest.raises(ValueError, match="must say shortest_edge and longest_edge in size"):
            family.frame_size(40, 60, settings)
