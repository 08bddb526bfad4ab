"""Long and short memory: a stream is scored as the windows one trains on, and knows nothing of what comes."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from online_detection_helpers import tiny_head
from streamchat_hf.training.online_detection_head import OnlineDetectionConfig, OnlineDetectionHead

FRAMES = 25  # the memories reach back ten


@pytest.fixture
def head():
    return tiny_head()


@pytest.fixture
def features():
    return torch.randn(FRAMES, 6)


def streamed(head, features):
    memory, scores = head.start(), []
    for frame in features:
        logits, memory = head.step(frame[None], memory)
        scores.append(logits[0])
    return torch.stack(scores)


def window_of(config, features, newest):
    """The naive twin of everything about memories: which frames are seen from one, and which are not there."""
    short = [newest - age for age in reversed(range(config.short_memory))]
    stride = config.long_memory_stride
    long = [short[0] - 1 - stride * age for age in reversed(range(config.long_memory))]
    frames = long + short
    rows = [features[frame] if frame >= 0 else torch.full((6,), 7.0) for frame in frames]
    return torch.stack(rows)[None], torch.tensor([[frame >= 0 for frame in frames]])


def test_a_stream_a_whole_video_and_the_windows_of_training_agree(head, features):
    stream, whole = streamed(head, features), head.score(features)
    windows = [head(*window_of(head.config, features, newest)).logits[0, -1] for newest in range(FRAMES)]
    assert whole.shape == (FRAMES, 3)
    torch.testing.assert_close(stream, torch.stack(windows), atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, stream, atol=1e-5, rtol=0)
    torch.testing.assert_close(head.score(features, batch_size=3), whole, atol=1e-5, rtol=0)


def test_the_future_changes_nothing_before_it(head, features):
    whole = head.score(features)
    for now in (0, 5, 14):
        other = torch.cat([features[: now + 1], torch.randn(FRAMES - now - 1, 6)])
        assert torch.equal(head.score(other)[: now + 1], whole[: now + 1])
        assert not torch.equal(head.score(other)[now + 1 :], whole[now + 1 :])


def test_within_a_window_neither(head, features):
    window, seen = window_of(head.config, features, FRAMES - 1)
    before = head(window, seen).logits
    for frame in range(1, 4):
        changed = window.clone()
        changed[:, 3 + frame] += 1
        after = head(changed, seen).logits
        assert torch.equal(after[:, :frame], before[:, :frame])
        assert (after[:, frame] - before[:, frame]).abs().max() > 1e-3


def test_what_is_remembered_matters_and_the_rest_does_not(head, features):
    assert head.config.reach == 10
    before, mattered = head.score(features)[-1], []
    for age in range(FRAMES):
        changed = features.clone()
        changed[FRAMES - 1 - age] += 1
        if not torch.equal(head.score(changed)[-1], before):
            mattered.append(age)
    assert mattered == [0, 1, 2, 3, 4, 6, 8]


def test_when_something_was_matters(head):
    one = torch.randn(FRAMES, 6)
    for first, second in ((-1, -2), (-5, -7)):  # of the short memory, of the long one
        other = one.clone()
        other[[first, second]] = one[[second, first]]
        assert (head.score(other)[-1] - head.score(one)[-1]).abs().max() > 1e-4


def test_memory_does_not_grow(head, features):
    memory = head.start(2)
    for frame in features[:15]:
        kept = memory.clone()
        _, after = head.step(torch.stack([frame, frame]), memory)
        assert torch.equal(memory, kept)
        memory = after
        assert memory.shape == (2, head.config.reach, 16)
        assert memory.untyped_storage().nbytes() == memory.nbytes and not memory.requires_grad


def test_streams_of_a_batch_are_those_alone(head):
    videos = torch.randn(2, 12, 6)
    memory = head.start(2)
    for frame in range(12):
        logits, memory = head.step(videos[:, frame], memory)
    for video, last in zip(videos, logits, strict=True):
        torch.testing.assert_close(last, streamed(head, video)[-1], atol=1e-5, rtol=0)


def test_saved_is_loaded(head, features, tmp_path):
    head.save_pretrained(tmp_path)
    loaded = OnlineDetectionHead.from_pretrained(tmp_path)
    assert torch.equal(loaded.score(features), head.score(features))
    assert loaded.config.id2label == {0: "background", 1: "red", 2: "green"}
    assert (loaded.config.reach, loaded.config.slots) == (10, [1, 3, 5, 6, 7, 8, 9])


def test_the_loss_is_of_labelled_frames_and_everything_learns(head, features):
    window, seen = window_of(head.config, features, 6)  # some of the long memory is not there yet
    labels = torch.tensor([[2, -100, 0, 1]])
    output = head.train()(window, seen, labels)
    rows = torch.nn.functional.log_softmax(output.logits[0], -1)
    torch.testing.assert_close(output.loss, -(rows[0, 2] + rows[2, 0] + rows[3, 1]) / 3)
    output.loss.backward()
    assert [name for name, parameter in head.named_parameters() if not parameter.grad.abs().sum() > 0] == []
    assert head(window, seen, torch.full((1, 4), -100)).loss == 0


def test_what_does_not_fit_is_said(head):
    said = "a frame comes as 5 features, but this head was made for 6: take the tower"
    with pytest.raises(ValueError, match=said):
        head.score(torch.randn(3, 5))
    with pytest.raises(ValueError, match=said):
        head.step(torch.randn(1, 5), head.start())
    with pytest.raises(ValueError, match="windows have 8 frames, but the memories hold 7"):
        head(torch.randn(1, 8, 6), torch.ones(1, 8).bool())


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"long_memory": 0}, "long_memory=0 must be at least 1"),
        ({"compressed": [8]}, "must be two numbers of queries"),
        ({"hidden_size": 15}, "hidden_size=15 must be a multiple of num_attention_heads=4"),
    ],
)
def test_sizes_fit_each_other(field, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        OnlineDetectionConfig(**field)
