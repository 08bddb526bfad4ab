"""The ring is compared with a list that keeps every frame."""

import copy

import pytest
import torch

from streamchat_hf.modeling.cache_streamformer import StreamFormerCache

ROWS, HEADS, SIZE, LAYERS = 6, 2, 4, 2


def new_states(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(ROWS, HEADS, frames, SIZE), torch.randn(ROWS, HEADS, frames, SIZE)


def feed(cache: StreamFormerCache, keys: torch.Tensor, values: torch.Tensor):
    """Stores the same states in every layer, and returns what the last layer attends to."""
    frames = cache.key_frames(keys.shape[2])
    for layer in range(LAYERS):
        seen = cache.update(keys, values, layer)
    cache.advance(keys.shape[2])
    return frames, *seen


@pytest.mark.parametrize("window", [None, 1, 3, 5])
@pytest.mark.parametrize("chunks", [[1] * 12, [3, 1, 1, 4, 2, 1, 1], [12], [2, 9, 1], [1, 2, 2, 1, 6]])
def test_holds_every_frame_a_new_one_may_see_at_its_index(window, chunks):
    cache, all_keys, all_values = StreamFormerCache(window), [], []
    for chunk in chunks:
        first = cache.frames_seen
        keys, values = new_states(chunk)
        all_keys += keys.unbind(2)
        all_values += values.unbind(2)
        frames, got_keys, got_values = feed(cache, keys, values)
        assert len(set(frames.tolist())) == len(frames) == got_keys.shape[2] == got_values.shape[2]
        oldest = 0 if window is None else max(0, first - window + 1)
        assert set(range(oldest, first + chunk)) <= set(frames.tolist())
        if chunk == 1:  # the model uses no mask then
            assert set(frames.tolist()) == set(range(oldest, first + 1))
        for slot, frame in enumerate(frames.tolist()):
            assert torch.equal(got_keys[:, :, slot], all_keys[frame])
            assert torch.equal(got_values[:, :, slot], all_values[frame])
    assert cache.frames_seen == sum(chunks)


def test_with_a_window_memory_is_allocated_once():
    cache = StreamFormerCache(4)
    assert cache.nbytes == 0
    addresses, sizes = set(), set()
    for chunk in [1, 1, 5, 1, 9, 1, 1, 1, 1, 1, 1, 2]:
        feed(cache, *new_states(chunk))
        sizes.add(cache.nbytes)
        addresses.add(tuple(states.data_ptr() for states in cache._keys + cache._values))
    assert sizes == {2 * LAYERS * ROWS * HEADS * 4 * SIZE * 4}
    assert len(addresses) == 1


def test_without_a_window_memory_grows_by_doubling():
    cache, sizes = StreamFormerCache(None), set()
    for _ in range(100):
        feed(cache, *new_states(1))
        sizes.add(cache.nbytes)
    assert len(sizes) == 8  # 1, 2, 4, ... 128 frames
    assert cache.nbytes < 2 * (2 * LAYERS * ROWS * HEADS * 100 * SIZE * 4)


def test_a_frame_that_failed_half_way_can_be_given_again():
    cache = StreamFormerCache(3)
    for _ in range(5):
        feed(cache, *new_states(1))
    keys, values = new_states(1)
    other, healthy = copy.deepcopy(cache), copy.deepcopy(cache)
    other.update(torch.randn_like(keys), values, 0)  # layer 1 and advance never came
    expected, got = feed(healthy, keys, values), feed(other, keys, values)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_copies_are_independent():
    cache = StreamFormerCache(3)
    feed(cache, *new_states(3))
    branch, kept = copy.deepcopy(cache), [states.clone() for states in cache._keys]
    feed(branch, *new_states(2))
    assert (cache.frames_seen, branch.frames_seen) == (3, 5)
    assert all(torch.equal(a, b) for a, b in zip(kept, cache._keys, strict=True))


def test_reset_forgets_the_frames_and_keeps_the_memory():
    cache = StreamFormerCache(3)
    feed(cache, *new_states(7))
    address = cache._keys[0].data_ptr()
    cache.reset()
    keys, values = new_states(1)
    frames, got, _ = feed(cache, keys, values)
    assert frames.tolist() == [0]
    assert torch.equal(got, keys)
    assert cache._keys[0].data_ptr() == address


def test_states_carry_no_gradient():
    cache = StreamFormerCache(None)
    keys, values = new_states(2)
    _, got, _ = feed(cache, keys.requires_grad_(), values)
    assert not got.requires_grad


def test_a_ring_made_in_inference_mode_can_be_written_outside():
    cache = StreamFormerCache(2)
    with torch.inference_mode():
        feed(cache, *new_states(3))
    keys, values = new_states(1)
    assert torch.equal(feed(cache, keys, values)[1][:, :, 3 % 2], keys[:, :, 0])


@pytest.mark.parametrize(
    "change",
    [lambda x: x[:-1], lambda x: x[:, :1], lambda x: x[..., :2], lambda x: x.to(torch.bfloat16)],
    ids=["rows", "heads", "head size", "dtype"],
)
def test_other_frames_do_not_continue_a_stream(change):
    cache = StreamFormerCache(4)
    feed(cache, *new_states(2))
    keys, values = new_states(1)
    with pytest.raises(ValueError, match="do not continue this stream"):
        cache.update(change(keys), change(values), 0)
    assert cache.frames_seen == 2
