import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.image_utils import PILImageResampling, SizeDict

from streamchat_hf.processing.frames_streamchat import VideoStream, VideoStreamError
from streamchat_hf.processing.video_processing_streamformer import NEVER, StreamFormerVideoProcessor
from video_files import REAL_CLIPS, packet_times, picture, real_clip, write_video

SIZE = {"height": 28, "width": 28}
PICTURES = [picture(i) for i in range(6)]


@pytest.fixture
def processor() -> StreamFormerVideoProcessor:
    return StreamFormerVideoProcessor(size=SIZE)


def pil_pixels(image: np.ndarray, size: int) -> torch.Tensor:
    """The published preprocessing: PIL's bicubic squash, then [-1, 1]."""
    small = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return torch.from_numpy(small).permute(2, 0, 1).float() / 127.5 - 1


@pytest.mark.parametrize("name", REAL_CLIPS)
def test_pixels_of_real_frames_are_those_of_pil(name: str):
    processor = StreamFormerVideoProcessor()
    image = next(VideoStream(real_clip(name))).pixel_values.permute(1, 2, 0).numpy()
    pixels = processor.preprocess_frame(image)
    assert pixels.shape == (3, 224, 224)
    # One grey level, 1/255, is twice as much in [-1, 1].
    assert (pixels - pil_pixels(image, 224)).abs().max() <= 2 / 255 + 1e-6


@pytest.mark.parametrize(("height", "width"), [(28, 28), (7, 300), (1, 1), (500, 400), (27, 29), (144, 176)])
def test_pixels_of_noise_at_any_size_are_those_of_pil(processor, height: int, width: int):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert (processor.preprocess_frame(image) - pil_pixels(image, 28)).abs().max() <= 2 * 2 / 255 + 1e-6


def test_an_image_that_fits_is_only_scaled(processor):
    image = picture(0, 28, 28)
    scaled = (torch.from_numpy(image).permute(2, 0, 1) * (1 / 255) - 0.5) / 0.5
    assert torch.equal(processor.preprocess_frame(image), scaled)


@pytest.mark.parametrize("name", REAL_CLIPS[:2])
@pytest.mark.parametrize("fps", [2, 7.5])
def test_a_streams_pixels_are_a_whole_clips_to_the_last_bit(processor, name: str, fps: float):
    whole = processor(real_clip(name), fps=fps)
    streamed = list(VideoStream(real_clip(name), fps, processor.preprocess_frame))
    assert torch.equal(whole["pixel_values_videos"][0], torch.stack([f.pixel_values for f in streamed]))
    assert whole["frame_times"].tolist() == [[round(f.t_sec * 1000) for f in streamed]]


@pytest.mark.parametrize("kind", ["PIL", "array", "tensor", "4-D array", "channels first"])
def test_pixels_do_not_depend_on_how_images_are_held(processor, kind: str):
    stack = np.stack(PICTURES)
    clip = {
        "PIL": [Image.fromarray(p) for p in PICTURES],
        "array": PICTURES,
        "tensor": [torch.from_numpy(p).permute(2, 0, 1) for p in PICTURES],
        "4-D array": stack,
        "channels first": torch.from_numpy(np.ascontiguousarray(stack.transpose(0, 3, 1, 2))),
    }[kind]
    out = processor(clip, fps=4)
    assert torch.equal(out["pixel_values_videos"][0], torch.stack([processor.preprocess_frame(p) for p in PICTURES]))
    assert out["frame_times"].tolist() == [[0, 250, 500, 750, 1000, 1250]]


def test_uneven_times_survive(tmp_path, processor):
    uneven = [0, 10, 20, 50, 500, 1701, 4100]
    out = processor(write_video(tmp_path / "clip.mp4", uneven), do_sample_frames=False)
    assert out["frame_times"].tolist() == [uneven]
    assert out["frame_times"].dtype == torch.int64
    assert out["pixel_values_videos"].dtype == torch.float32


# Batches


def test_shorter_clips_are_padded_at_the_end(processor):
    clips = [PICTURES[:2], PICTURES, PICTURES[:1]]
    out = processor(clips, fps=2)
    assert out["pixel_values_videos"].shape == (3, 6, 3, 28, 28)
    for row, clip in enumerate(clips):
        alone = processor(clip, fps=2)
        n = len(clip)
        assert torch.equal(out["pixel_values_videos"][row, :n], alone["pixel_values_videos"][0])
        assert torch.equal(out["frame_times"][row, :n], alone["frame_times"][0])
        assert (out["frame_times"][row, n:] == torch.iinfo(torch.int64).max).all()
        assert (out["pixel_values_videos"][row, n:] == 0).all()


def test_a_still_image_is_a_clip_of_one_frame_at_zero(processor):
    out = processor(Image.fromarray(PICTURES[0]))
    assert out["pixel_values_videos"].shape == (1, 1, 3, 28, 28)
    assert out["frame_times"].tolist() == [[0]]


def test_what_counts_as_a_clip_and_what_as_a_batch(processor, tmp_path):
    path = str(write_video(tmp_path / "clip.mp4"))
    content = (tmp_path / "clip.mp4").read_bytes()
    stack = np.stack(PICTURES)
    for clip in (
        path,
        tmp_path / "clip.mp4",
        content,
        io.BytesIO(content),
        iter(PICTURES),
        [(0.5, PICTURES[0])],
        stack,
    ):
        assert len(processor(clip)["frame_times"]) == 1
    for batch in ([path, content], [[path], [content]], [stack, PICTURES], np.stack([stack, stack])):
        assert len(processor(batch)["frame_times"]) == 2


def test_the_inputs_are_left_as_they_were(processor):
    stack = np.stack(PICTURES)
    before = stack.copy()
    processor(stack)
    assert np.array_equal(stack, before)


# Sampling


def test_the_default_is_five_frames_per_second(processor):
    assert processor(real_clip("bikes.mp4"))["frame_times"].tolist() == [[200 * i for i in range(50)]]


@given(st.integers(1, 60), st.integers(1, 70))
def test_num_frames_spreads_evenly_over_all_frames(total: int, wanted: int):
    processor = StreamFormerVideoProcessor(size={"height": 1, "width": 1})
    pixel = np.zeros((1, 1, 3), np.uint8)
    out = processor([(index / 1000, pixel) for index in range(total)], num_frames=wanted)
    kept = min(wanted, total)
    assert out["frame_times"][0].tolist() == [i * total // kept for i in range(kept)]


def test_num_frames_of_a_file_takes_the_frames_it_says(processor):
    path = real_clip("carphone_pristine.mp4")
    out = processor(path, num_frames=7)
    every = processor(path, do_sample_frames=False)
    indices = [i * 120 // 7 for i in range(7)]
    assert torch.equal(out["pixel_values_videos"], every["pixel_values_videos"][:, indices])
    assert out["frame_times"].tolist() == [[round(packet_times(path)[i] * 1000) for i in indices]]


@pytest.mark.parametrize("one_shot", [False, True])
def test_a_long_clip_is_thinned_out_to_max_frames(processor, one_shot: bool):
    clip = iter(PICTURES) if one_shot else PICTURES
    out = processor(clip, fps=1, max_frames=4)
    assert out["frame_times"].tolist() == [[0, 1000, 3000, 4000]]
    every = processor(PICTURES, fps=1)
    assert torch.equal(out["pixel_values_videos"], every["pixel_values_videos"][:, [0, 1, 3, 4]])


def test_every_frame_is_kept_on_request(processor):
    processor.max_frames = 3
    assert processor(real_clip("carphone_pristine.mp4"), do_sample_frames=False)["frame_times"].shape == (1, 120)


def test_images_without_times_keep_their_rate_however_many_are_taken(processor):
    assert processor(PICTURES, num_frames=3)["frame_times"].tolist() == [[0, 400, 800]]
    assert processor(PICTURES, do_sample_frames=False)["frame_times"].tolist() == [[0, 200, 400, 600, 800, 1000]]


def test_metadata_gives_times_to_arrays(processor):
    stack = np.stack(PICTURES)
    about = {"total_num_frames": 6, "fps": 2.0}
    assert processor(stack, video_metadata=about)["frame_times"].tolist() == [[0, 500, 1000, 1500, 2000, 2500]]
    assert processor(stack, video_metadata=[about], fps=1)["frame_times"].tolist() == [[0, 1000, 2000]]
    about["frames_indices"] = [0, 2, 4, 6, 8, 10]
    assert processor(stack, video_metadata=about)["frame_times"].tolist() == [[0, 1000, 2000, 3000, 4000, 5000]]


def test_metadata_is_returned_on_request(processor):
    (metadata,) = processor(real_clip("bikes.mp4"), num_frames=5, return_metadata=True)["video_metadata"]
    assert (metadata.total_num_frames, metadata.frames_indices) == (250, [0, 50, 100, 150, 200])
    assert metadata.fps == pytest.approx(25)


def test_a_rate_for_a_call_overrides_a_number_of_frames_in_the_settings():
    processor = StreamFormerVideoProcessor(size=SIZE, num_frames=3)
    assert processor(real_clip("bikes.mp4"))["frame_times"].shape == (1, 3)
    assert processor(real_clip("bikes.mp4"), fps=1)["frame_times"].shape == (1, 10)


# Settings


def test_each_step_can_be_switched_off_for_a_call(processor):
    image = PICTURES[0]
    raw = processor(image, do_resize=False, do_rescale=False, do_normalize=False)["pixel_values_videos"]
    assert torch.equal(raw[0, 0], torch.from_numpy(image).permute(2, 0, 1).float())
    unit = processor(image, do_resize=False, do_normalize=False)["pixel_values_videos"]
    assert torch.equal(unit, raw * (1 / 255))
    small = processor(image, size={"height": 4, "width": 6})["pixel_values_videos"]
    assert small.shape == (1, 1, 3, 4, 6)
    shifted = processor(image, image_mean=[0.0, 0.5, 1.0], image_std=[1.0, 0.5, 0.25], do_resize=False)
    expected = torch.stack([unit[0, 0, 0], (unit[0, 0, 1] - 0.5) / 0.5, (unit[0, 0, 2] - 1) / 0.25])
    assert torch.equal(shifted["pixel_values_videos"][0, 0], expected)


def test_settings_survive_saving(tmp_path):
    processor = StreamFormerVideoProcessor(size=SIZE, fps=3, max_frames=9, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    loaded = StreamFormerVideoProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.fps, loaded.max_frames) == (3, 9)
    first, second = (p(PICTURES)["pixel_values_videos"] for p in (processor, loaded))
    assert torch.equal(first, second)
    assert "torchvision" not in json.dumps(processor.to_dict())


def test_numpy_on_request(processor):
    out = processor([PICTURES, PICTURES[:1]], return_tensors="np")
    assert isinstance(out["pixel_values_videos"], np.ndarray)
    assert out["frame_times"].dtype == np.int64
    assert out["frame_times"][1, 1] == NEVER


def test_casting_the_inputs_leaves_times_exact(processor):
    out = processor([(100_000.123, PICTURES[0])]).to(torch.bfloat16)
    assert out["pixel_values_videos"].dtype == torch.bfloat16
    assert out["frame_times"].tolist() == [[100_000_123]]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fps": 1, "num_frames": 2}, "give one"),
        ({"do_center_crop": True}, "does not implement do_center_crop"),
        ({"size": {"shortest_edge": 8}}, "a height and a width"),
        ({"resample": PILImageResampling.NEAREST}, "bicubic or bilinear"),
        ({"video_metadata": [{"total_num_frames": 6}, {"total_num_frames": 6}]}, "2 entries of video_metadata"),
    ],
)
def test_what_cannot_be_done_is_said(processor, arguments: dict, says: str):
    with pytest.raises(ValueError, match=says):
        processor(PICTURES, **arguments)


def test_a_clip_that_cannot_be_read_is_named(processor, tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoStreamError, match=r"text\.mp4"):
        processor([PICTURES, tmp_path / "text.mp4"])


@pytest.mark.parametrize("nothing", [[], [PICTURES, []], iter(())])
def test_no_frames_is_an_error(processor, nothing):
    with pytest.raises(ValueError, match=r"no frames|no video"):
        processor(nothing)


# Methods of the base class that need torchvision there


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_resize_takes_any_leading_dimensions(processor, dtype: torch.dtype):
    video = torch.randint(0, 256, (2, 3, 3, 20, 30)).to(dtype)
    small = processor.resize(video, SizeDict(height=7, width=5))
    assert (small.shape, small.dtype) == ((2, 3, 3, 7, 5), dtype)
    for row in range(2):
        for t in range(3):
            assert torch.equal(small[row, t], processor.resize(video[row, t], SizeDict(height=7, width=5)))


def test_resize_is_bicubic_unless_told_otherwise(processor):
    image, size = torch.from_numpy(picture(9)).permute(2, 0, 1), SizeDict(height=90, width=90)
    bicubic, bilinear = (
        processor.resize(image, size, resample)
        for resample in (PILImageResampling.BICUBIC, PILImageResampling.BILINEAR)
    )
    assert torch.equal(processor.resize(image, size), bicubic)
    assert not torch.equal(bilinear, bicubic)


def test_resize_of_integers_is_that_of_floats_rounded(processor):
    image, size = torch.from_numpy(picture(9)).permute(2, 0, 1), SizeDict(height=28, width=28)
    exact = processor.resize(image.float(), size).clamp(0, 255)
    assert (processor.resize(image, size).float() - exact).abs().max() <= 1


def test_convert_to_rgb(processor):
    grey = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    assert torch.equal(processor.convert_to_rgb(grey), grey.repeat(1, 3, 1, 1))
    colour = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    assert torch.equal(processor.convert_to_rgb(colour), colour)
    opaque = torch.cat([colour, torch.full_like(grey, 255)], dim=1)
    assert torch.equal(processor.convert_to_rgb(opaque), colour)
    assert (processor.convert_to_rgb(torch.cat([colour, torch.zeros_like(grey)], dim=1)) == 255).all()
    with pytest.raises(ValueError, match="channels"):
        processor.convert_to_rgb(colour[:, :2])


def test_fetch_videos(processor):
    path = real_clip("carphone_pristine.mp4")
    frames, metadata = processor.fetch_videos(path)
    assert frames.shape == (120, 144, 176, 3)
    assert (metadata.total_num_frames, metadata.fps) == (120, pytest.approx(30000 / 1001))
    some, metadata = processor.fetch_videos(path, lambda metadata: [3, metadata.total_num_frames - 1])
    assert np.array_equal(some, frames[[3, 119]])
    assert metadata.frames_indices == [3, 119]
    both, about = processor.fetch_videos([path, path])
    assert [len(both), len(about)] == [2, 2]
