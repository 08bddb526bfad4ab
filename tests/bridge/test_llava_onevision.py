"""LLaVA-OneVision's own pooling of a frame, and what ends a video."""

import torch

from bridge_helpers import frames, tiny_bridge


def test_a_video_ends_with_the_models_newline_and_frames_do_not():
    bridge = tiny_bridge("llava_onevision")
    shown = frames("llava_onevision", 3)
    encoded, _ = bridge.encode_frames(shown, None)
    ids, rows = bridge.family.run(encoded)
    with torch.no_grad():
        pixels = torch.stack([image for _, image in shown])[None]
        features = bridge.model.get_video_features(pixels, return_dict=True).pooler_output[0]
    torch.testing.assert_close(rows, features, atol=1e-6, rtol=0)
    assert torch.equal(rows[-1], bridge.model.model.image_newline)
    assert ids == [bridge.family.video_token_id] * (3 * 9 + 1)
    assert encoded[0].grid == (3, 3)
    assert bridge.family.frame_size(480, 640, {}) == (24, 24)
