import pytest
import torch

from streamchat_hf import StreamFormerVideoProcessor
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.processing.processing_frames_streamchat import FrameProcessorMixin


class Processor(FrameProcessorMixin):
    def __init__(self, video_processor=None, tokenizer=None):
        super().__init__(video_processor, tokenizer)


@pytest.fixture
def processor():
    return Processor(StreamFormerVideoProcessor(size={"height": 8, "width": 8}), build_tokenizer())


def test_frames_come_as_its_video_processor_prepares_them(processor):
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    [(t_sec, pixels)] = processor.stream([(0.5, image)])
    assert t_sec == 0.5 and torch.equal(pixels, processor.video_processor.preprocess_frame(image))


@pytest.mark.parametrize(("known", "asked", "times"), [(None, None, 8), (2.0, None, 2), (2.0, 4.0, 4)])
def test_the_rate_is_the_one_asked_for_or_else_the_models(processor, known, asked, times):
    processor.frame_fps = known
    images = [(i / 8, torch.zeros(3, 8, 8, dtype=torch.uint8)) for i in range(8)]
    assert len(list(processor.stream(images, fps=asked))) == times


def test_what_is_no_video_processor_is_refused(processor):
    with pytest.raises(TypeError, match="video_processor must be a video processor, not str"):
        Processor("resize", processor.tokenizer)
