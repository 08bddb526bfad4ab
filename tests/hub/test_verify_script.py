"""In this process, with the package; test_verification.py runs it where there is none."""

import itertools
import math

import numpy as np
import pytest

from streamchat_hf import StreamFormerVideoProcessor
from streamchat_hf.hub.verify_script import NUMBERS, TOKENS, NotInstalled, answer, clip


def test_in_the_clip_something_moves():
    times, pictures = zip(*clip(), strict=True)
    assert times == tuple(k / 2 for k in range(8))
    assert all(picture.shape == (48, 64, 3) and picture.dtype == np.uint8 for picture in pictures)
    assert all((one != other).any() for one, other in itertools.pairwise(pictures))


def test_a_streamchat_answers_while_the_clip_plays(streamchat):
    said = answer(str(streamchat))
    assert len(said["tokens"]) == len(said["frame_age"]) == TOKENS and len(said["numbers"]) == NUMBERS
    assert all(map(math.isfinite, [*said["numbers"], *said["frame_age"]]))
    # From 1.0 s on two words a second, each with the frame of its moment; the last frame is that of 3.5 s.
    assert said["frame_age"] == [0.0] * 6 + [0.5, 1.0]
    assert said == answer(str(streamchat))


def test_a_streamformer_encodes_the_clip(streamformer):
    StreamFormerVideoProcessor(size={"height": 16, "width": 16}).save_pretrained(streamformer)
    said = answer(str(streamformer))
    assert set(said) == {"numbers"} and len(set(said["numbers"])) == NUMBERS


def test_the_package_is_hidden_and_nothing_else():
    for name in ("streamchat_hf", "streamchat_hf.hub"):
        with pytest.raises(ModuleNotFoundError, match=name):
            NotInstalled().find_spec(name)
    assert NotInstalled().find_spec("numpy") is None
