"""The processor of a bridged model: sources to frames, as the model's own video processor makes them.

That one needs torchvision, which is not required here: its settings are read and applied in plain torch.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoTokenizer, ProcessorMixin
from transformers.video_processing_utils import BaseVideoProcessor

from streamchat_hf.bridge.family import Family
from streamchat_hf.processing.frames_streamchat import VideoStream
from streamchat_hf.processing.sources_streamchat import STALL_TIMEOUT
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

# Frames per second that StreamBridge watches at.
FRAME_FPS = 1.0
# Settings of a family's own video processor that say how pixels are made.
PIXELS = ("image_mean", "image_std", "resample", "rescale_factor", "do_normalize", "do_rescale", "do_resize")


class BridgeVideoProcessor(StreamFormerVideoProcessor):
    """Resizes and normalises frames as a family's own video processor does.

    Args:
        frame_size: height and width of an image to those it is resized to.
        **settings: as of [`StreamFormerVideoProcessor`].
    """

    def __init__(self, frame_size: Callable[[int, int], tuple[int, int]], **settings: Any):
        super().__init__(**settings)
        self._frame_size = frame_size

    def _prepare(self, image: torch.Tensor, options: dict) -> torch.Tensor:
        height, width = self._frame_size(*image.shape[-2:])
        return super()._prepare(image, {**options, "size": type(options["size"])(height=height, width=width)})


class BridgeProcessor:
    """What a session needs of a processor, for a bridged model.

    Args:
        processor: the model's own processor of transformers; or anything with a `tokenizer`, a `chat_template`, and a
            `video_processor` or `image_processor` whose settings are taken.
        family: the adapter of the model's family.
        fps: frames per second of streams.

    Attributes:
        tokenizer: the model's.
        chat_template: of the processor or, if it has none, of the tokenizer.
        video_processor: makes frames ready; `size` in its `settings` says how large.
        fps: as given.

    Raises:
        ValueError: if there is no chat template.
    """

    def __init__(self, processor: Any, family: Family, fps: float = FRAME_FPS):
        self.tokenizer, self.fps = processor.tokenizer, fps
        self.chat_template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        if self.chat_template is None:
            raise ValueError("neither the processor nor its tokenizer has a chat template")
        own: Any = getattr(processor, "video_processor", None) or processor.image_processor
        self.settings = _with_size(own if isinstance(own, dict) else own.to_dict())
        pixels = {name: self.settings[name] for name in PIXELS if self.settings.get(name) is not None}
        self.video_processor = BridgeVideoProcessor(
            lambda height, width: family.frame_size(height, width, self.settings), **pixels
        )

    def stream(
        self,
        source: Any,
        fps: float | None = None,
        live: bool | None = None,
        stall_timeout: float | None = STALL_TIMEOUT,
    ) -> VideoStream:
        """Opens a source for `generate(frames=...)` or a session.

        Args:
            source: a file, URL, camera, screen or folder of images, a video as bytes, or any iterable of images, with
                or without times: see [`VideoStream`].
            fps: frames per second to keep, and the rate of images without times; `None`: `self.fps`.
            live: whether frames happen now; `None` judges by the source.
            stall_timeout: seconds after which a live source without a frame, or a network without an answer, is an
                error; `None` waits for ever.

        Returns:
            An iterator of `VideoFrame(t_sec, pixel_values)`, pixels as `(3, height, width)` float32.

        Raises:
            ValueError: if `fps` or `stall_timeout` is not a positive number.
            VideoStreamError: while iterating, naming source and time, if the source is missing or broken.
        """
        fps = self.fps if fps is None else fps
        return VideoStream(source, fps, self.video_processor.preprocess_frame, live, stall_timeout)

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """As of the tokenizer, with the processor's template."""
        return self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options)


def _with_size(settings: dict[str, Any]) -> dict[str, Any]:
    """A video processor's settings, with a range of pixels by its older names as `size`."""
    older = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    found = {name: settings[old] for old, name in older.items() if settings.get(old)}
    kept = {name: value for name, value in settings.items() if name not in older}
    return {**kept, "size": {**(kept.get("size") or {}), **found}} if found else kept


class SavedProcessor:
    """The parts of a saved processor that can be loaded without torchvision.

    Args:
        path: folder or Hub id.
        **options: for `from_pretrained`: `trust_remote_code`, `revision`.
    """

    def __init__(self, path: Any, **options: Any):
        self.tokenizer = AutoTokenizer.from_pretrained(path, **options)
        revision = options.get("revision", "main")
        self.chat_template = ProcessorMixin.get_processor_dict(path, revision=revision)[0].get("chat_template")
        self.video_processor = BaseVideoProcessor.get_video_processor_dict(path, revision=revision)[0]
