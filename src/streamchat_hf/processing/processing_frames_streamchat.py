"""What all processors of frames share: they open sources, and need no torchvision."""

from typing import Any

from transformers.processing_utils import ProcessorMixin
from transformers.video_processing_utils import VideoProcessorMixin

from .frames_streamchat import VideoStream
from .sources_streamchat import STALL_TIMEOUT


class FrameProcessorMixin(ProcessorMixin):
    """A processor whose video processor prepares frames one by one.

    Attributes:
        frame_fps: frames per second that the model knows; `None`: any.
    """

    frame_fps: float | None = None

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """As in the base class, which cannot look a video processor's class up where torchvision is missing."""
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"video_processor must be a video processor, not {type(argument).__name__}")
        return VideoProcessorMixin

    def stream(
        self,
        source: Any,
        fps: float | None = None,
        live: bool | None = None,
        stall_timeout: float | None = STALL_TIMEOUT,
    ) -> VideoStream:
        """Opens a source for `generate(frames=...)`.

        Args:
            source: a file, URL, camera, screen or folder of images, a video as bytes, or any iterable of images, with
                or without times: see [`VideoStream`].
            fps: frames per second to keep, and the rate of images without times; `None`: `frame_fps`, or
                every frame where that is `None`.
            live: whether frames happen now; `None` judges by the source. A live folder is watched for new images.
            stall_timeout: seconds after which a live source without a frame, or a network without an answer, is an
                error; `None` waits for ever.

        Returns:
            An iterator of `VideoFrame(t_sec, pixel_values)`, pixels as `(3, height, width)` float32.

        Raises:
            ValueError: if `fps` or `stall_timeout` is not a positive number.
            VideoStreamError: while iterating, naming source and time, if the source is missing or broken.
        """
        fps = self.frame_fps if fps is None else fps
        return VideoStream(source, fps, self.video_processor.preprocess_frame, live, stall_timeout)
