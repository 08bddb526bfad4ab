"""The streaming cache: what it holds of each stream, and what it never does."""

import pytest
import torch

from streamchat_helpers import at_rate, frames_at, tiny_model
from streamchat_hf import StreamingCache
from streamchat_hf.modeling.cache_streamchat import ReadyFrame
from streamchat_hf.modeling.rotary_streamchat import rotate, visual_index_3d


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_ring_holds_the_window_at_the_right_angles(model):
    cache, frames = StreamingCache(model.config), frames_at(at_rate(1, 8))  # 9 frames, window 5
    model.refresh_visual(cache, frames)
    keys, values, _ = model.model.frame_rows(torch.stack([p for _, p in frames]))
    assert cache.streams[0].timeline.newest_frame == 8
    for index in range(4, 9):
        angles = model.model.language_model.angles(visual_index_3d(torch.tensor(index), 2, 2), torch.float32)
        torch.testing.assert_close(cache.keys[:, 0, :, index % 5], rotate(keys[index], *angles), atol=1e-5, rtol=0)
        torch.testing.assert_close(cache.values[:, 0, :, index % 5], values[index], atol=1e-5, rtol=0)


def test_frames_while_speaking_share_the_index_being_read(model):
    cache = StreamingCache(model.config)
    model.refresh_visual(cache, frames_at([0.0]))
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]), past_key_values=cache, use_cache=True)
    line = cache.streams[0].timeline
    assert (line.newest_frame, line.last_text) == (0, 2)
    model.refresh_visual(cache, frames_at([0.5, 0.6]))  # two in one step
    assert (line.newest_frame, line.last_text) == (3, 3)
    cache.end_turn(0)
    model.refresh_visual(cache, frames_at([1.0, 1.5]))  # silence
    assert (line.newest_frame, line.last_text) == (5, 3)


def test_streams_with_different_numbers_of_frames(model):
    cache = StreamingCache(model.config, streams=3)
    frames = frames_at(at_rate(1, 8))
    model.refresh_visual(cache, [frames[:2], [], frames])
    context = cache.visual_context(6)  # two rows of text per stream
    assert context.keys.shape[3] == 5 * 4
    assert context.mask[:, 0, 0].sum(-1).tolist() == [2 * 4, 5 * 4, 5 * 4]
    assert context.any_visible[:, 0, 0].tolist() == [True, True, False, False, True, True]
    with pytest.raises(ValueError, match="4 rows of text cannot be shared out over the cache's 3 streams"):
        cache.visual_context(4)
    with pytest.raises(ValueError, match="frames for 2 streams, but the cache holds 3"):
        model.refresh_visual(cache, [frames, frames])


def test_no_mask_once_every_stream_holds_as_many(model):
    cache = StreamingCache(model.config, streams=2)
    assert cache.visual_context(2) is None
    frames = frames_at(at_rate(1, 3))
    model.refresh_visual(cache, [frames[:3], frames[:3]])
    context = cache.visual_context(2)
    assert context.mask is None and context.any_visible is None and context.keys.shape[3] == 3 * 4


def test_a_frame_of_another_size_is_refused(model):
    cache = StreamingCache(model.config)
    model.refresh_visual(cache, frames_at([0.0]))
    keys, values, _ = model.model.frame_rows(frames_at([2.0], size=24)[0][1][None])
    with pytest.raises(
        ValueError, match=r"frame at 2.000 s has \(3, 3\) visual tokens, the frames before it \(2, 2\)"
    ):
        model.refresh_visual(cache, [ReadyFrame(2.0, keys[0], values[0], (3, 3))])


def test_ready_frames_are_taken_as_they_are(model):
    frames = frames_at([0.0, 0.5])
    keys, values, _ = model.model.frame_rows(torch.stack([p for _, p in frames]))
    ready = [ReadyFrame(t, keys[i], values[i], (2, 2)) for i, (t, _) in enumerate(frames)]
    caches = [StreamingCache(model.config) for _ in range(2)]
    model.refresh_visual(caches[0], ready)
    model.refresh_visual(caches[1], frames)
    torch.testing.assert_close(caches[0].keys, caches[1].keys)
    assert caches[0].clock == caches[1].clock == 500


def test_cropping_takes_tokens_back_until_a_frame_is_seen(model):
    cache = StreamingCache(model.config)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7, 8]]), past_key_values=cache, use_cache=True)
        expected = model(torch.tensor([[5, 6, 9]])).logits[:, -1]
        cache.crop(-2)
        again = model(torch.tensor([[9]]), past_key_values=cache, use_cache=True).logits[:, -1]
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    model.refresh_visual(cache, frames_at([0.0]))
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)


def test_a_ring_made_in_inference_mode_can_be_written_outside(model):
    cache, frames = StreamingCache(model.config), frames_at([0.0, 0.5])
    with torch.inference_mode():
        model.refresh_visual(cache, frames[:1])
    model.refresh_visual(cache, frames[1:])
    assert cache.streams[0].frames_taken == 2


def test_rows_of_one_stream_are_padded_alike(model):
    tokens, mask = torch.tensor([[5, 6], [0, 6]]), torch.tensor([[1, 1], [0, 1]])
    with pytest.raises(ValueError, match="different prompts cannot share a stream"):
        model(tokens, attention_mask=mask, past_key_values=StreamingCache(model.config))


def test_no_decoding_loop_may_count_on_cropping(model):
    """On some devices transformers decodes a step too far and crops it away, if the cache says that it can."""
    assert not StreamingCache(model.config).is_croppable


def test_after_a_reset_nothing_is_remembered(model):
    frames = frames_at(at_rate(2, 4))
    options = {"start_time": 1.0, "tokens_per_second": 2, "max_new_tokens": 4, "return_dict_in_generate": True}
    first = model.generate(torch.tensor([[5, 6, 7]]), frames=iter(frames), output_logits=True, **options)
    cache = first.past_key_values
    cache.reset()
    assert cache.visual_context(1) is None and cache.history is None and cache.clock == 0
    again = model.generate(
        torch.tensor([[5, 6, 7]]), frames=iter(frames), past_key_values=cache, output_logits=True, **options
    )
    torch.testing.assert_close(torch.stack(again.logits), torch.stack(first.logits), atol=1e-5, rtol=0)


def two_turns(model, then):
    """Two turns of a conversation, `then(cache)`, and the logits of a third."""
    source, cache = iter(frames_at(at_rate(2, 20))), None
    for start, prompt in ((1.0, [5, 6, 7]), (6.0, [8, 9]), (12.0, [10, 11])):
        if start == 12.0:
            then(cache)
        output = model.generate(
            torch.tensor([prompt]),
            frames=source,
            start_time=start,
            tokens_per_second=2,
            past_key_values=cache,
            max_new_tokens=5,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )
        cache = output.past_key_values
    return torch.stack(output.logits), cache


def test_forgotten_text_is_as_if_it_were_masked(model):
    def mask(cache):
        cache.history_mask[:, 2:8] = 0

    forgotten, cache = two_turns(model, lambda cache: cache.forget_text(2, 8))
    masked, whole = two_turns(model, mask)
    remembered, _ = two_turns(model, lambda cache: None)
    torch.testing.assert_close(forgotten, masked, atol=1e-5, rtol=0)
    assert (forgotten - remembered).abs().max() > 1e-3
    assert cache.get_seq_length() == whole.get_seq_length() - 6
    assert cache.said.tolist()[0] == whole.said.tolist()[0][:2] + whole.said.tolist()[0][8:]


def test_all_that_was_read_can_be_forgotten_and_no_more(model):
    logits, cache = two_turns(model, lambda cache: cache.forget_text(0, cache.get_seq_length()))
    assert logits.isfinite().all() and cache.said.shape[1] == 1 + 2 + 5  # the unread token, prompt, answer
    with pytest.raises(ValueError, match="cannot forget tokens 3 to 99: 7 have been read"):
        cache.forget_text(3, 99)
