"""What every adapter keeps to."""

import pytest
import torch

from bridge_helpers import FAMILIES, SIZES, frames, tiny_bridge
from streamchat_hf.bridge.family import Family
from streamchat_hf.bridge.rounds import Frame, pool


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("count", [1, 3])
def test_a_run_of_frames_is_as_long_as_it_says(family, count):
    bridge = tiny_bridge(family)
    shown, _ = bridge.encode_frames(frames(family, count, begin=8.0), None)
    shown.append(pool(shown))
    ids, rows = bridge.family.run(shown)
    assert len(ids) == sum(map(bridge.family.frame_tokens, shown)) + bridge.family.run_tokens
    assert ids.count(bridge.family.video_token_id) == len(rows)
    assert rows.dtype == bridge.model.dtype


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoded_frame_keeps_nothing_else_alive(family):
    shown, _ = tiny_bridge(family).encode_frames(frames(family, 3), None)
    for frame in shown:
        assert frame.rows.untyped_storage().nbytes() == frame.rows.numel() * frame.rows.element_size()


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_pools_exactly_and_reads_in_its_own(family):
    bridge = tiny_bridge(family)
    bridge.model.to(torch.bfloat16)
    shown, _ = bridge.encode_frames(frames(family, 2), None)
    assert shown[0].rows.dtype == torch.bfloat16
    assert pool(shown).rows.dtype == torch.float32
    assert bridge.family.run([pool(shown)])[1].dtype == torch.bfloat16
    buffer = bridge.new_cache()
    buffer.see([pool(shown)])
    assert bridge.family.forward(buffer.flatten(), None).dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
def test_a_frame_is_resized_to_what_the_tower_takes(family):
    bridge = tiny_bridge(family)
    for height, width in ((40, 60), (64, 64), (16, 24)):
        pixels = bridge.processor.video_processor.preprocess_frame(torch.zeros(3, height, width, dtype=torch.uint8))
        [frame], _ = bridge.encode_frames([(0.0, pixels)], None)
        assert len(frame.rows) == frame.grid[0] * frame.grid[1] <= 9
        assert pixels.shape[1] * pixels.shape[2] <= SIZES[family][0] * SIZES[family][1]


def test_an_adapter_says_what_it_has_to():
    base = Family(tiny_bridge().model, None)
    with pytest.raises(NotImplementedError):
        base.frame_size(1, 1, {})
    with pytest.raises(NotImplementedError):
        base.encode(torch.zeros(1, 3, 2, 2))
    frame = Frame(0.0, torch.zeros(4, 32), (2, 2))
    assert base.frame_tokens(frame) == 4
    assert base.positions(torch.zeros(3), []).tolist() == [[0, 1, 2]]
