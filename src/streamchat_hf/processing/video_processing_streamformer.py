"""Video processor of StreamFormer: sources of frames to normalised pixels and frame times, without torchvision."""

from collections.abc import Iterable
from typing import Any, Unpack

import numpy as np
import torch
from huggingface_hub.dataclasses import validate_typed_dict
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .frames_streamchat import read_images, to_image_tensor

# The frame time of padding: later than any token, so that nothing attends to it.
NEVER = torch.iinfo(torch.int64).max
MODES = {PILImageResampling.BILINEAR: "bilinear", PILImageResampling.BICUBIC: "bicubic"}
NOT_DONE = ("do_center_crop", "crop_size", "data_format", "input_data_format")


class StreamFormerVideoProcessorKwargs(VideosKwargs, total=False):  # type: ignore[call-arg]
    """What [`StreamFormerVideoProcessor`] takes beside the arguments of every video processor.

    Attributes:
        max_frames: the most frames a clip gives; a longer one is thinned out evenly.
    """

    max_frames: int | None


class StreamFormerVideoProcessor(BaseVideoProcessor):
    """Turns videos and images into StreamFormer's input: squashed to `size` (bicubic, antialiased), scaled to [-1, 1].

    A clip is whatever [`VideoStream`] reads. Its frames are sampled at `fps`, or `num_frames` of all its frames are
    taken evenly; images without times are taken to be `fps` per second. Frames are processed one at a time as they
    are decoded, so memory holds only small ones, and a stream's pixels equal a whole clip's to the last bit.

    With `do_pad=True` frames keep their shape: resized until they fit into `size`, the shorter side to an even number
    of pixels, and centred on black, as VideoLLM-online's were by FFmpeg.

    Example:
    ```python
    clip = StreamFormerVideoProcessor()("kitchen.mp4", fps=2)
    clip["pixel_values_videos"]  # (1, frames, 3, 224, 224) float32
    clip["frame_times"]  # (1, frames) int64 milliseconds
    ```
    """

    resample = PILImageResampling.BICUBIC
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_resize = True
    do_pad = False
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    do_convert_rgb = True
    do_sample_frames = True
    fps = 5.0
    num_frames = None
    max_frames = 512
    valid_kwargs = StreamFormerVideoProcessorKwargs
    model_input_names = ["pixel_values_videos", "frame_times"]

    def preprocess(self, videos: Any, **kwargs: Unpack[StreamFormerVideoProcessorKwargs]) -> BatchFeature:
        """Prepares a clip or a batch of clips of any lengths.

        Args:
            videos: a clip, or a list of clips; an array with five dimensions is a batch, a list of images is one
                clip, a single image is a clip of one frame at time 0.
            **kwargs: the class's attributes, for this call: `fps` or `num_frames` or `do_sample_frames=False` (every
                frame), `max_frames`, `size`, `do_resize`, `do_pad`, `do_rescale`, `rescale_factor`, `do_normalize`,
                `image_mean`, `image_std`, `resample`, `device`; `video_metadata`, one per clip, whose `fps` and
                `frames_indices` give times to arrays; `return_metadata`; `return_tensors` (`"pt"` or `"np"`; tensors
                in any case).

        Returns:
            `pixel_values_videos` `(clips, frames, 3, height, width)` float32 and `frame_times` `(clips, frames)` int64
            milliseconds. Shorter clips are padded at the end with zeros whose time is the largest int64. With
            `return_metadata`, `video_metadata` lists what was sampled, per clip.

        Raises:
            ValueError: for arguments that contradict each other or that this processor does not implement.
            VideoStreamError: naming source and time, if a clip cannot be read.
        """
        validate_typed_dict(self.valid_kwargs, kwargs)
        for name in NOT_DONE:
            if kwargs.pop(name, None):
                raise ValueError(f"{type(self).__name__} does not implement {name}")
        if kwargs.get("fps") is not None and kwargs.get("num_frames") is not None:
            raise ValueError("fps and num_frames are two ways of sampling: give one")
        by_rate = kwargs.get("fps") is not None
        for name in self.valid_kwargs.__annotations__:
            if kwargs.get(name) is None:
                kwargs[name] = getattr(self, name, None)
        if by_rate:
            kwargs["num_frames"] = None
        clips = as_clips(videos)
        metadata = _per_clip(kwargs["video_metadata"], len(clips))
        options = self._standardize_kwargs(**kwargs)
        results = [self._read_clip(clip, options, about) for clip, about in zip(clips, metadata, strict=True)]
        data = pad_clips([result[:2] for result in results])
        if options["return_metadata"]:
            data["video_metadata"] = [result[2] for result in results]
        tensor_type = options["return_tensors"]
        return BatchFeature(data, tensor_type=tensor_type, skip_tensor_conversion=["video_metadata"])

    def preprocess_frame(self, image: Any) -> torch.Tensor:
        """Prepares one image with the processor's own settings, as a stream does with each frame.

        Args:
            image: a PIL image, or a uint8 array or tensor with three channels.

        Returns:
            `(3, height, width)` float32.
        """
        options = {name: getattr(self, name, None) for name in self.valid_kwargs.__annotations__}
        return self._prepare(to_image_tensor(image), options)

    def _prepare(self, image: torch.Tensor, options: dict) -> torch.Tensor:
        if options["do_resize"] and options["do_pad"]:
            image = self.fit(image, options["size"], options["resample"])
        elif options["do_resize"]:
            image = self.resize(image, options["size"], options["resample"])
        if options["device"] is not None:
            image = image.to(options["device"])
        # Frames are stacked and moved about: the usual layout, and not a view into the decoder's buffer.
        image = image.float().contiguous()
        if options["do_rescale"]:
            image = self.rescale(image, options["rescale_factor"])
        if options["do_normalize"]:
            image = self.normalize(image, options["image_mean"], options["image_std"])
        return image

    def _read_clip(self, clip: Any, options: dict, about: VideoMetadata | None) -> tuple:
        """The pixels `(frames, 3, height, width)`, times `(frames,)` in int64 milliseconds and metadata of a clip."""
        if hasattr(clip, "__next__") and not hasattr(clip, "read"):
            clip = list(clip)  # it may have to be read twice
        if about is not None and about.fps is not None:
            indices = range(len(clip)) if about.frames_indices is None else about.frames_indices
            clip = [(int(index) / about.fps, image) for index, image in zip(indices, clip, strict=True)]
        count, limit, fps = options["num_frames"], options["max_frames"], options["fps"]
        if not options["do_sample_frames"]:
            count = limit = fps = None
        elif count is not None:
            limit, fps = count, None
        times, pixels = [], []
        for t_sec, load in read_images(clip, fps, options["fps"]):
            times.append(t_sec)
            if count is None and (limit is None or len(times) <= limit):
                pixels.append(self._prepare(load(), options))
        if not times:
            raise ValueError("a clip has no frames")
        chosen = _spread(len(times), limit)
        if len(pixels) < len(times):
            # Only now is it known which frames to take; a second pass costs time where keeping all would cost memory.
            wanted = set(chosen)
            again = enumerate(read_images(clip, fps, options["fps"]))
            pixels = [self._prepare(load(), options) for index, (_, load) in again if index in wanted]
        milliseconds = torch.tensor([round(times[index] * 1000) for index in chosen])
        return torch.stack(pixels), milliseconds, _describe(times, chosen)

    def resize(
        self, image: torch.Tensor, size: SizeDict, resample: PILImageResampling | int | None = None, **kwargs
    ) -> torch.Tensor:
        """Resizes `(..., channels, height, width)` to `size`, antialiased, within rounding of what PIL gives.

        Raises:
            ValueError: unless `size` is a height and a width, and `resample` bicubic (the default) or bilinear.
        """
        target = _target(size)
        resample = PILImageResampling.BICUBIC if resample is None else resample
        if resample not in MODES:
            raise ValueError(f"resample must be bicubic or bilinear, not {resample}")
        flat = image[None] if image.ndim == 3 else image.flatten(0, -4)
        if image.dtype == torch.uint8:
            # Torch resizes integers on the CPU only, and there in this layout ten times as fast as float32. Like PIL
            # it rounds between its two passes, as float32 would not: wherever an image is, it is resized here.
            flat = flat.cpu().contiguous(memory_format=torch.channels_last)
        flat = torch.nn.functional.interpolate(flat, target, mode=MODES[resample], antialias=True).to(image.device)
        return flat.reshape(*image.shape[:-2], *target)

    def fit(
        self, image: torch.Tensor, size: SizeDict, resample: PILImageResampling | int | None = None
    ) -> torch.Tensor:
        """Resizes `(..., channels, height, width)` without distorting it, and centres it on black of `size`.

        Raises:
            ValueError: as `resize`.
        """
        height, width = image.shape[-2:]
        target_height, target_width = _target(size)
        scale = min(target_height / height, target_width / width)
        inner_height = _fitting(height * scale, target_height)
        inner_width = _fitting(width * scale, target_width)
        image = self.resize(image, SizeDict(height=inner_height, width=inner_width), resample)
        left, top = (target_width - inner_width) // 2, (target_height - inner_height) // 2
        borders = (left, target_width - inner_width - left, top, target_height - inner_height - top)
        return torch.nn.functional.pad(image, borders)

    def normalize(
        self, image: torch.Tensor, mean: float | Iterable[float], std: float | Iterable[float], **kwargs
    ) -> torch.Tensor:
        """Normalises `(..., channels, height, width)`, one mean and deviation for all channels or one each."""
        mean, std = (torch.as_tensor(value, dtype=image.dtype, device=image.device) for value in (mean, std))
        return (image - mean.reshape(-1, 1, 1)) / std.reshape(-1, 1, 1)

    def convert_to_rgb(self, video: torch.Tensor) -> torch.Tensor:
        """Gives `(..., channels, height, width)` three channels: grey is repeated, transparent becomes white.

        Raises:
            ValueError: unless there are one, three or four channels.
        """
        channels = video.shape[-3]
        if channels == 4:
            colour, alpha = video[..., :3, :, :].float(), video[..., 3:, :, :].float() / 255
            return (colour * alpha + 255 * (1 - alpha)).round().to(video.dtype)
        if channels not in (1, 3):
            raise ValueError(f"a video has 1, 3 or 4 channels, not {channels}")
        return video.expand(*video.shape[:-3], 3, *video.shape[-2:])

    def fetch_videos(self, video_url_or_urls: Any, sample_indices_fn: Any = None) -> tuple:
        """Decodes a video, or each of a list of them.

        Args:
            video_url_or_urls: what [`VideoStream`] reads from a file or URL, or a list of such.
            sample_indices_fn: called with `metadata=`, gives the indices of the frames to keep; `None`: all.

        Returns:
            The uint8 frames `(frames, height, width, 3)` as an array and their `VideoMetadata`; for a list, a list of
            each.
        """
        if isinstance(video_url_or_urls, list):
            return tuple(
                map(list, zip(*[self.fetch_videos(x, sample_indices_fn) for x in video_url_or_urls], strict=True))
            )
        times = [t_sec for t_sec, _ in read_images(video_url_or_urls)]
        metadata = _describe(times, list(range(len(times))))
        if sample_indices_fn is not None:
            metadata.frames_indices = [int(index) for index in sample_indices_fn(metadata=metadata)]
        wanted = set(metadata.frames_indices)
        frames = {i: load() for i, (_, load) in enumerate(read_images(video_url_or_urls)) if i in wanted}
        return torch.stack([frames[i] for i in metadata.frames_indices]).permute(0, 2, 3, 1).numpy(), metadata


def _target(size: SizeDict) -> tuple[int, int]:
    if not (size.height and size.width):
        raise ValueError(f"size must give a height and a width, not {size}")
    return size.height, size.width


def _fitting(side: float, limit: int) -> int:
    """A side in pixels: the limit if it reaches that far, else even, as FFmpeg's `scale=-2` rounds."""
    return limit if round(side) == limit else max(2, 2 * round(side / 2))


def as_clips(videos: Any) -> list:
    """Brings a clip, a batch or a nested list of clips into a flat list of clips.

    Raises:
        ValueError: for an empty list.
    """
    if is_clip(videos):
        return [videos]
    if isinstance(videos, Image.Image) or getattr(videos, "ndim", None) == 3:
        return [[(0.0, videos)]]
    if len(videos) == 0:
        raise ValueError("an empty list is no video")
    return [clip for item in videos for clip in as_clips(item)]


def is_clip(videos: Any) -> bool:
    """Whether this is one clip: anything [`VideoStream`] reads, but no single image and no list of clips."""
    if isinstance(videos, np.ndarray | torch.Tensor):
        return videos.ndim == 4
    if isinstance(videos, list | tuple):
        first = videos[0] if videos else None
        timed = isinstance(first, tuple) and len(first) == 2 and isinstance(first[0], int | float)
        return timed or isinstance(first, Image.Image) or getattr(first, "ndim", None) == 3
    return not isinstance(videos, Image.Image)


def pad_clips(clips: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stacks clips of different lengths, with zeros at the end of the shorter ones and times that never come.

    Args:
        clips: the pixels `(frames, 3, height, width)` and times `(frames,)` of each.

    Returns:
        `pixel_values_videos` `(clips, frames, 3, height, width)` and `frame_times` `(clips, frames)`.
    """
    longest = max(len(times) for _, times in clips)
    pixel_values = clips[0][0].new_zeros(len(clips), longest, *clips[0][0].shape[1:])
    frame_times = clips[0][1].new_full((len(clips), longest), NEVER)
    for row, (pixels, times) in enumerate(clips):
        pixel_values[row, : len(times)], frame_times[row, : len(times)] = pixels, times
    return {"pixel_values_videos": pixel_values, "frame_times": frame_times}


def _spread(total: int, limit: int | None) -> list[int]:
    """Indices of at most `limit` of `total` frames, evenly spread, as transformers spreads them."""
    count = total if limit is None else min(limit, total)
    return [index * total // count for index in range(count)]


def _describe(times: list[float], chosen: list[int]) -> VideoMetadata:
    span = times[-1] - times[0]
    return VideoMetadata(
        total_num_frames=len(times),
        fps=(len(times) - 1) / span if span > 0 else None,
        duration=times[-1],
        video_backend="pyav",
        frames_indices=chosen,
    )


def _per_clip(metadata: Any, clips: int) -> list[VideoMetadata | None]:
    if metadata is None:
        return [None] * clips
    if isinstance(metadata, list) and metadata and isinstance(metadata[0], list):
        metadata = [about for row in metadata for about in row]
    metadata = metadata if isinstance(metadata, list) else [metadata]
    if len(metadata) != clips:
        raise ValueError(f"{len(metadata)} entries of video_metadata for {clips} clips")
    return [VideoMetadata(**about) if isinstance(about, dict) else about for about in metadata]


StreamFormerVideoProcessor.register_for_auto_class("AutoVideoProcessor")
