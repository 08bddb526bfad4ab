"""Qwen3-VL's times travel with frames, and so do the features of deeper layers."""

import torch

from bridge_helpers import frames, tiny_bridge, tokenizer
from streamchat_hf.bridge.rounds import pool


def test_a_time_is_written_before_each_frame_also_after_pooling():
    bridge = tiny_bridge("qwen3_vl")
    shown, _ = bridge.encode_frames(frames("qwen3_vl", 4), None)
    pad = "<|video_pad|>" * 6
    for run, times in ((shown, (0, 1, 2, 3)), ([pool(shown[:2]), *shown[2:]], (0.5, 2, 3)), ([pool(shown)], (1.5,))):
        ids, rows = bridge.family.run(run)
        written = "".join(f"<{time:.1f} seconds><|vision_start|>{pad}<|vision_end|>" for time in times)
        assert tokenizer("qwen3_vl").decode(ids) == written
        assert len(rows) == 6 * len(times)


def test_the_rows_hold_the_features_of_all_layers():
    bridge = tiny_bridge("qwen3_vl")
    [frame], _ = bridge.encode_frames(frames("qwen3_vl", 1), None)
    assert frame.rows.shape == (6, 3 * 32)
    buffer = bridge.new_cache()
    buffer.see([frame])
    buffer.ask("what?")
    whole = buffer.flatten()
    logits = bridge.family.forward(whole, None)
    shallow = buffer.flatten()
    shallow.rows[:, 32:] = 0
    assert not torch.allclose(bridge.family.forward(shallow, None), logits, atol=1e-2)


def test_the_range_of_pixels_is_that_of_two_frames():
    family = tiny_bridge("qwen3_vl").family
    assert family.frame_size(40, 60, {"size": {"shortest_edge": 128, "longest_edge": 768}}) == (16, 24)
