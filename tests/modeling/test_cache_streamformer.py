"""The ring is compared with lists that keep every frame."""

import copy
import random

import pytest
import torch

from streamchat_hf.modeling.cache_streamformer import StreamFormerCache, may_look, per_patch

PATCHES, HEADS, SIZE, LAYERS = 6, 2, 4, 2


def new_states(frames: int, streams: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (streams * PATCHES, HEADS, frames, SIZE)
    return torch.randn(shape), torch.randn(shape)


def feed(cache: StreamFormerCache, keys: torch.Tensor, values: torch.Tensor, rows=None):
    """Stores the same states in every layer, and returns what the last layer attends to."""
    step = cache.step(len(keys) // PATCHES, keys.shape[2], rows)
    for layer in range(LAYERS):
        seen = step.update(keys, values, layer)
    step.finish()
    return step.key_frames, *seen


@pytest.mark.parametrize("window", [None, 1, 3, 5])
@pytest.mark.parametrize("chunks", [[1] * 12, [3, 1, 1, 4, 2, 1, 1], [12], [2, 9, 1], [1, 2, 2, 1, 6]])
def test_holds_every_frame_a_new_one_may_see_at_its_index(window, chunks):
    cache, all_keys, all_values = StreamFormerCache(window), [], []
    for chunk in chunks:
        first = len(all_keys)
        keys, values = new_states(chunk)
        all_keys += keys.unbind(2)
        all_values += values.unbind(2)
        [frames], got_keys, got_values = feed(cache, keys, values)
        assert len(set(frames.tolist())) == len(frames) == got_keys.shape[2] == got_values.shape[2]
        oldest = 0 if window is None else max(0, first - window + 1)
        assert set(range(oldest, first + chunk)) <= set(frames.tolist())
        if chunk == 1:  # the model uses no mask then
            assert set(frames.tolist()) == set(range(oldest, first + 1))
        for slot, frame in enumerate(frames.tolist()):
            assert torch.equal(got_keys[:, :, slot], all_keys[frame])
            assert torch.equal(got_values[:, :, slot], all_values[frame])
    assert cache.frames_seen.tolist() == [sum(chunks)]


def test_with_a_window_memory_is_allocated_once():
    cache = StreamFormerCache(4)
    assert cache.nbytes == 0
    addresses, sizes = set(), set()
    for chunk in [1, 1, 5, 1, 9, 1, 1, 1, 1, 1, 1, 2]:
        feed(cache, *new_states(chunk))
        sizes.add(cache.nbytes)
        addresses.add(tuple(states.data_ptr() for states in cache._keys + cache._values))
    assert sizes == {2 * LAYERS * PATCHES * HEADS * 4 * SIZE * 4}
    assert len(addresses) == 1


def test_without_a_window_memory_grows_by_doubling():
    cache, sizes = StreamFormerCache(None), set()
    for _ in range(100):
        feed(cache, *new_states(1))
        sizes.add(cache.nbytes)
    assert len(sizes) == 8  # 1, 2, 4, ... 128 frames
    assert cache.nbytes < 2 * (2 * LAYERS * PATCHES * HEADS * 100 * SIZE * 4)


def test_a_frame_that_failed_half_way_can_be_given_again():
    cache = StreamFormerCache(3)
    for _ in range(5):
        feed(cache, *new_states(1))
    keys, values = new_states(1)
    other, healthy = copy.deepcopy(cache), copy.deepcopy(cache)
    other.step(1, 1).update(torch.randn_like(keys), values, 0)  # layer 1 and finish never came
    expected, got = feed(healthy, keys, values), feed(other, keys, values)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_copies_are_independent():
    cache = StreamFormerCache(3)
    feed(cache, *new_states(3))
    branch, kept = copy.deepcopy(cache), [states.clone() for states in cache._keys]
    feed(branch, *new_states(2))
    assert (cache.frames_seen.item(), branch.frames_seen.item()) == (3, 5)
    assert all(torch.equal(a, b) for a, b in zip(kept, cache._keys, strict=True))


def test_reset_forgets_the_frames_and_keeps_the_memory():
    cache = StreamFormerCache(3)
    feed(cache, *new_states(7))
    address = cache._keys[0].data_ptr()
    cache.reset()
    keys, values = new_states(1)
    frames, got, _ = feed(cache, keys, values)
    assert frames.tolist() == [[0]]
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
    ids=["patches", "heads", "head size", "dtype"],
)
def test_other_frames_do_not_continue_a_stream(change):
    cache = StreamFormerCache(4)
    feed(cache, *new_states(2))
    keys, values = new_states(1)
    with pytest.raises(ValueError, match="do not continue this stream"):
        cache.step(1, 1).update(change(keys), change(values), 0)
    assert cache.frames_seen.tolist() == [2]


class Lists:
    """Every frame of every stream in a list: what a ring has to agree with."""

    def __init__(self, streams: int):
        self.frames = [[] for _ in range(streams)]

    def feed(self, keys, values, rows):
        for row, new_keys, new_values in zip(rows, keys.split(PATCHES), values.split(PATCHES), strict=True):
            self.frames[row] += zip(new_keys.unbind(2), new_values.unbind(2), strict=True)


def subset(chooser: random.Random, streams: int) -> list[int]:
    return chooser.sample(range(streams), chooser.randint(1, streams))


@pytest.mark.parametrize("window", [None, 1, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_streams_begin_pause_and_end_on_their_own(window, seed):
    chooser, cache, lists = random.Random(seed), StreamFormerCache(window, streams=4), Lists(4)
    for _ in range(40):
        rows, chunk = subset(chooser, 4), chooser.choice([1, 1, 1, 2, 3, 7])
        keys, values = new_states(chunk, len(rows))
        step = cache.step(len(rows), chunk, rows)
        mask = step.mask(PATCHES)
        frames, got_keys, got_values = feed(cache, keys, values, rows)
        lists.feed(keys, values, rows)
        assert cache.frames_seen.tolist() == [len(frames) for frames in lists.frames]
        length = got_keys.shape[2]
        mask = torch.ones(1, 1, chunk, length, dtype=torch.bool) if mask is None else mask
        mask = mask.expand(len(rows) * PATCHES, 1, chunk, length).unflatten(0, (len(rows), PATCHES))
        assert (mask == mask[:, :1]).all()  # the same for every patch
        frames = frames.expand(len(rows), -1)
        for i, row in enumerate(rows):
            mine = slice(i * PATCHES, (i + 1) * PATCHES)
            count = len(lists.frames[row])
            for t, frame in enumerate(range(count - chunk, count)):
                looked_at = mask[i, 0, 0, t].nonzero().flatten().tolist()
                oldest = 0 if window is None else max(0, frame - window + 1)
                assert sorted(frames[i, slot].item() for slot in looked_at) == list(range(oldest, frame + 1))
                for slot in looked_at:
                    key, value = lists.frames[row][frames[i, slot]]
                    assert torch.equal(got_keys[mine, :, slot], key)
                    assert torch.equal(got_values[mine, :, slot], value)
        if chooser.random() < 0.15:
            again = subset(chooser, 4)
            cache.reset(again)
            for row in again:
                lists.frames[row] = []


def test_neighbouring_streams_are_read_without_a_copy():
    cache = StreamFormerCache(3, streams=4)
    for _ in range(4):
        feed(cache, *new_states(1, 4))
    memory = cache._keys[0].untyped_storage().data_ptr()
    for rows, copied in ((None, False), ([1], False), ([1, 2], False), ([0, 2], True), ([2, 1], True)):
        got = feed(cache, *new_states(1, 4 if rows is None else len(rows)), rows)[1]
        assert (got.untyped_storage().data_ptr() != cache._keys[-1].untyped_storage().data_ptr()) == copied
    assert cache._keys[0].untyped_storage().data_ptr() == memory


def test_streams_in_step_need_no_mask_and_streams_out_of_step_none_once_their_rings_are_full():
    cache = StreamFormerCache(3, streams=2)
    feed(cache, *new_states(1), [0])
    for _ in range(2):
        assert cache.step(2, 1).mask(PATCHES) is not None
        feed(cache, *new_states(1, 2))
    feed(cache, *new_states(1), [1])
    assert cache.frames_seen.tolist() == [3, 3]
    assert cache.step(2, 1).frames.shape == (1, 1)
    feed(cache, *new_states(1), [1])
    assert cache.step(2, 1).frames.shape == (2, 1)
    assert cache.step(2, 1).mask(PATCHES) is None


def test_with_a_window_memory_does_not_depend_on_which_streams_run():
    cache, sizes = StreamFormerCache(4, streams=3), set()
    for rows, chunk in (([1], 1), ([0, 2], 3), ([0, 1, 2], 1), ([2], 9), ([1, 0], 5)):
        feed(cache, *new_states(chunk, len(rows)), rows)
        cache.reset([rows[0]])
        sizes.add(cache.nbytes)
    assert sizes == {2 * LAYERS * 3 * PATCHES * HEADS * 4 * SIZE * 4}


def test_what_a_broken_frame_left_is_gone_after_a_reset():
    cache = StreamFormerCache(3, streams=2)
    keys, values = new_states(3, 2)
    feed(cache, keys.fill_(torch.nan), values.fill_(torch.nan))
    cache.reset([1])
    feed(cache, *new_states(1, 2))
    assert all(states.unflatten(0, (2, -1))[1].isfinite().all() for states in cache._keys + cache._values)


def test_what_was_noted_of_frames_seen_stays():
    cache = StreamFormerCache(3)
    assert cache.frames_seen.tolist() == []
    with torch.inference_mode():
        feed(cache, *new_states(2, 2))
    before = cache.frames_seen
    feed(cache, *new_states(1, 2))
    cache.reset([0])
    assert (before.tolist(), cache.frames_seen.tolist()) == ([2, 2], [0, 3])


@pytest.mark.parametrize("rows", [[], [0, 0], [3], [-1]])
def test_rows_that_are_not_there_are_refused(rows):
    cache = StreamFormerCache(3, streams=3)
    with pytest.raises(ValueError, match="must be different rows of the 3"):
        cache.step(max(1, len(rows)), 1, rows)
    with pytest.raises(ValueError, match="must be different rows of the 3"):
        cache.reset(rows)


@pytest.mark.parametrize(("streams", "rows"), [(2, None), (2, [1]), (4, None)])
def test_streams_and_their_rows_are_as_many(streams, rows):
    with pytest.raises(ValueError, match=f"{streams} streams do not continue the . of 3 rows"):
        StreamFormerCache(3, streams=3).step(streams, 1, rows)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_may_look_is_the_definition(window):
    frames, keys = torch.tensor([[4, 5], [0, 1]]), torch.tensor([[3, 4, 5, 6], [-1, 0, 1, 2]])
    for row, seen in enumerate(may_look(frames, keys, window).tolist()):
        for f, line in zip(frames[row].tolist(), seen, strict=True):
            assert line == [0 <= k <= f and (window is None or k > f - window) for k in keys[row].tolist()]


def test_per_patch_repeats_rows_and_leaves_one_for_all():
    states = torch.arange(2)[:, None]
    assert per_patch(states, 3).flatten().tolist() == [0, 0, 0, 1, 1, 1]
    assert per_patch(states[:1], 3).shape == (1, 1)
