"""What a frozen StreamFormer makes of whole videos, streamed frame after frame, and kept on disk."""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers import AutoModel

from streamchat_hf import AutoVideoProcessor, StreamFormerCache, StreamFormerModel
from streamchat_hf.convert.streamformer import video_processor_for
from streamchat_hf.processing.frames_streamchat import VideoFrame
from streamchat_hf.training.online_detection_head import OnlineDetectionHead
from streamchat_hf.training.online_detection_videos import LabelledVideo

# Frames that a tower without a window of its own looks back while it streams: its memory has to end somewhere.
DEFAULT_WINDOW = 64
_CHUNK = 32  # frames that are read, and encoded, at once


def load_tower(source: str | os.PathLike) -> tuple[StreamFormerModel, Any]:
    """A StreamFormer, or the one inside a StreamChat, and its video processor.

    Args:
        source: folder or Hub id. One without a video processor gets SigLIP's mean and deviation.

    Raises:
        ValueError: if it is neither.
    """
    model = AutoModel.from_pretrained(source)
    if model.config.model_type == "streamchat":
        model = model.model.vision_tower
    if model.config.model_type != "streamformer":
        raise ValueError(f"{source} is a {model.config.model_type}: StreamFormer or StreamChat is needed")
    try:
        processor = AutoVideoProcessor.from_pretrained(source)
    except OSError:
        processor = video_processor_for(model.config.image_size)
    return model.eval().requires_grad_(False), processor


@torch.no_grad()
def stream_features(
    tower: StreamFormerModel,
    frames: Iterable[VideoFrame],
    window: int | None = None,
    image_only: bool = False,
    chunk: int = _CHUNK,
) -> Iterator[tuple[list[float], torch.Tensor]]:
    """Watches a video and gives the features of its frames, in their order.

    Args:
        tower: in whose mode and on whose device it is done.
        frames: processed, `(3, height, width)` float each.
        window: frames that a frame looks back, itself included; `None`: as the tower has it, or 64.
        image_only: every frame is its own video: the control without time.
        chunk: frames that are waited for and encoded at once; it changes no feature.

    Yields:
        Times of up to `chunk` frames in seconds, and their features `(frames, D)` float32 on the CPU: those of the
        pooling head, or the mean over the patches where the tower has none.
    """
    cache, frames = StreamFormerCache(window or tower.config.sliding_window or DEFAULT_WINDOW), iter(frames)
    while some := list(itertools.islice(frames, chunk)):
        pixels = torch.stack([frame.pixel_values for frame in some]).to(tower.device)  # (t, C, height, width)
        output = tower(pixels[:, None]) if image_only else tower(pixels[None], past_key_values=cache)
        pooled = output.last_hidden_state.mean(2) if output.pooler_output is None else output.pooler_output
        yield [frame.t_sec for frame in some], pooled.flatten(0, 1).float().cpu()


def watch(
    tower: StreamFormerModel, head: OnlineDetectionHead, frames: Iterable[VideoFrame], window: int | None = None
) -> Iterator[tuple[float, torch.Tensor]]:
    """Tells what is done in every frame of a stream before it takes the next one.

    Args:
        tower: the one that the head was trained with.
        head: which leaves dropout out after `eval()`.
        frames: such as `VideoStream(source, fps=head.config.fps, transform=processor.preprocess_frame)`.
        window: as in training.

    Yields:
        The frame's time in seconds, and a probability for each class `(C,)`.
    """
    memory = head.start()
    for (time,), features in stream_features(tower, frames, window, chunk=1):
        logits, memory = head.step(features.to(head.device), memory)
        yield time, logits[0].float().softmax(-1).cpu()


class FeatureStore:
    """Features of videos, one safetensors file each, made once.

    Files lie in a folder named after everything that decides what is in them: weights and configuration of the tower,
    the processor, and the arguments below. So another tower never finds these.

    Args:
        root: where that folder is.
        tower: see [`stream_features`].
        processor: its `preprocess_frame` makes pixels of frames.
        fps: frames per second to look at.
        window: see [`stream_features`].
        image_only: see [`stream_features`].

    Attributes:
        folder: of the files; `features.json` in it says what they were made with.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        tower: StreamFormerModel,
        processor: Any,
        fps: float,
        window: int | None = None,
        image_only: bool = False,
    ):
        self.tower, self.processor, self.fps, self.window, self.image_only = tower, processor, fps, window, image_only
        made_with = {
            "weights": _fingerprint(tower),
            "tower": json.loads(tower.config.to_json_string(use_diff=False)),
            "processor": json.loads(processor.to_json_string()),
            **{"fps": float(fps), "window": window, "image_only": image_only},
        }
        self._made_with = json.dumps(made_with, indent=1, sort_keys=True)
        self.folder = Path(root) / hashlib.sha256(self._made_with.encode()).hexdigest()[:16]

    def make(self, videos: Sequence[LabelledVideo]) -> None:
        """Watches all videos that have no file yet; several processes share the work.

        Raises:
            ValueError: naming a video that has no frames, or two videos of one name.
            VideoStreamError: naming the source, if a video is broken. What was made before stays.
        """
        names = [video.name for video in videos]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"several videos have the name {twice[0]!r}")
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "features.json").write_text(self._made_with)
        state.wait_for_everyone()
        mine = videos[state.process_index :: state.num_processes]
        to_do = [video for video in mine if not self._file(video.name).is_file()]
        for video in tqdm(to_do, desc="Watching", unit="video", disable=not (to_do and state.is_main_process)):
            self._write(video)
        state.wait_for_everyone()

    def load(self, video: LabelledVideo) -> tuple[torch.Tensor, torch.Tensor]:
        """What was made of a video: features `(T, D)` float32 and times `(T,)` float64 in seconds.

        Raises:
            FileNotFoundError: if nothing was made of it.
        """
        if not self._file(video.name).is_file():
            raise FileNotFoundError(f"there are no features of video {video.name} in {self.folder}: call make() first")
        tensors = load_file(self._file(video.name))
        return tensors["features"], tensors["times"]

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, video: LabelledVideo) -> None:
        prepare: Callable = self.processor.preprocess_frame
        frames = (VideoFrame(t_sec, prepare(image)) for t_sec, image in video.frames(self.fps))
        parts = list(stream_features(self.tower, frames, self.window, self.image_only))
        if not parts:
            raise ValueError(f"video {video.name} has no frames")
        times = torch.tensor([time for part, _ in parts for time in part], dtype=torch.float64)
        # Under another name until it is whole: what is cut off is made again.
        half = self.folder / f"{video.name}.part"
        save_file({"features": torch.cat([features for _, features in parts]), "times": times}, half)
        os.replace(half, self._file(video.name))


def _fingerprint(tower: StreamFormerModel) -> str:
    """A number that other weights do not have."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
