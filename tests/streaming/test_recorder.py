import numpy as np
import pytest
import torch

from streamchat_hf.streaming.recorder import FrameRecorder


class Stream:
    source, live = "kitchen.mp4", True

    def __init__(self, frames):
        self.frames = frames
        self.closed = False

    def __iter__(self):
        return iter(self.frames)

    def close(self):
        self.closed = True


def test_frames_pass_unchanged_and_each_leaves_a_picture():
    pixels = torch.arange(3 * 4 * 6).view(3, 4, 6).float() / 255
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    normalised = (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    frames = [(0.0, normalised), (0.5, normalised.flip(-1))]
    recorder = FrameRecorder(frames, mean, std)
    assert [frame is given for frame, given in zip(recorder, frames, strict=True)] == [True, True]
    assert [time for time, _ in recorder.images] == [0.0, 0.5]
    expected = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    assert np.array_equal(np.asarray(recorder.images[0][1]), expected)
    assert np.array_equal(np.asarray(recorder.images[1][1]), expected[:, ::-1])


def test_it_keeps_only_frames_that_were_taken():
    recorder = FrameRecorder((i, torch.zeros(3, 2, 2)) for i in range(10))
    next(recorder), next(recorder)
    assert [time for time, _ in recorder.images] == [0.0, 1.0]


def test_pictures_are_small_and_values_out_of_range_are_cut():
    recorder = FrameRecorder([(0.0, torch.full((3, 600, 300), 7.0)), (1.0, torch.full((3, 8, 8), -7.0))], side=64)
    list(recorder)
    assert recorder.images[0][1].size == (32, 64)
    assert np.asarray(recorder.images[0][1]).min() == 255
    assert np.asarray(recorder.images[1][1]).max() == 0


def test_other_attributes_are_the_streams():
    stream = Stream([])
    recorder = FrameRecorder(stream)
    recorder.close()
    assert (recorder.source, recorder.live, stream.closed) == ("kitchen.mp4", True, True)
    with pytest.raises(AttributeError):
        recorder.nothing_of_the_kind  # noqa: B018
