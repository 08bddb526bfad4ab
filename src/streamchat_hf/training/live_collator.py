"""Rows of streaming dialogue as batches for VideoLLM-online.

A row is a `LiveSample`: a conversation with streams of frames among its messages, the times of all frames, and what
they show, a video or a StreamWorld. A batch holds the tokens that the same conversation has when it is streamed.
"""

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch

from streamchat_hf.data.frame_sampling import Ticks, read_ticks
from streamchat_hf.data.live_conversation import Clip, LiveSample, check_sample, clip_frames
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.processing.labels_videollm_online import IGNORED
from streamchat_hf.processing.sources_streamchat import VideoStreamError

# Seconds by which annotations may run past the last frame of their video: times are rounded up to whole ones.
OVERRUN = 1.0


class Sample(NamedTuple):
    """One row, ready to be padded.

    Attributes:
        ids: L tokens.
        labels: L pre-shifted targets; -100 where nothing is learned.
        pixels: `(T, 3, height, width)` float32, T may be 0.
    """

    ids: list[int]
    labels: list[int]
    pixels: torch.Tensor


class LiveCollator:
    """Writes the talk of rows, reads or renders their frames, and pads both: `collator(rows)`.

    A row that cannot be used, because its media is broken or its conversation cannot be written, becomes a sample
    without labels, which adds nothing to the loss; it is named in the batch. So a batch always has the same rows.

    Args:
        processor: A [`VideoLLMOnlineProcessor`]. Its system prompt begins conversations that have none; its
            `frame_fps` is the rate of the frames of videos.
        max_frames: The most frames of a sample; a longer one is cut before the stream that is too much, or within the
            first. `None`: no limit.

    Raises:
        ValueError: If `max_frames` is less than 1.
    """

    def __init__(self, processor: Any, max_frames: int | None = None):
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames={max_frames}: a sample shows at least 1 frame; None is no limit")
        self.processor, self.tokenizer, self.max_frames = processor, processor.tokenizer, max_frames

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collates B rows.

        Returns:
            `input_ids`, `attention_mask` and `labels` (pre-shifted: `labels[:, j]` is the target of `logits[:, j]`):
            all `(B, L)`, padded on the left. `pixel_values_videos` float32 `(B, T, 3, height, width)`, padded with
            zeros behind the frames of a row, and `frame_mask` `(B, T)`, 1 for frames and 0 for padding; T is at least
            1, so that a batch of text runs through the same parameters as any other. Beside these tensors `rows`, the
            B names, and `skipped`, what is wrong with those that could not be used.
        """
        samples, skipped = [], []
        names = [_name(row) for row in rows]
        for name, row in zip(names, rows, strict=True):
            try:
                samples.append(self.sample(row))
            except (VideoStreamError, ValueError) as error:
                skipped.append(f"{name}: {error}")
                samples.append(Sample([self.tokenizer.pad_token_id], [IGNORED], self._no_frames()))
        return {**self._pad(samples), "rows": names, "skipped": skipped}

    def sample(self, row: dict[str, Any]) -> Sample:
        """One row.

        Raises:
            VideoStreamError: If its media cannot be read.
            ValueError: If it is no `LiveSample`, or its media ends before its frames do.
        """
        row = self._clip(_without_none(row))
        conversation = row["conversation"]
        if conversation[0]["role"] != "system":
            conversation = [{"role": "system", "content": self.processor.system_prompt}, *conversation]
        text = self.processor.training_inputs(conversation)
        return Sample(text["input_ids"], text["labels"], self._see(row))

    def _clip(self, row: LiveSample) -> LiveSample:
        check_sample(row)
        if not row["conversation"]:
            raise ValueError("the conversation is empty")
        return row if self.max_frames is None else clip_frames(row, self.max_frames)

    def _see(self, row: LiveSample) -> torch.Tensor:
        """The frames of a row, `(T, 3, height, width)` float32."""
        times = row["frame_times"]
        if not times:
            return self._no_frames()
        media = row["media"]
        if media is None:
            # Rendered at the size they are needed in, and prepared like any other frame.
            images = list(render([row["world"]], [times], self.processor.video_processor.size["height"])[0])
        elif isinstance(media, str):
            images = read_frames(media, times, self.processor.frame_fps)
        else:
            images = read_joined_frames(media, times, self.processor.frame_fps)
        return torch.stack([self.processor.video_processor.preprocess_frame(image) for image in images])

    def _no_frames(self) -> torch.Tensor:
        size = self.processor.video_processor.size
        return torch.zeros(0, 3, size["height"], size["width"])

    def _pad(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        shape = (len(samples), max(len(sample.ids) for sample in samples))
        frames = max(1, *(len(sample.pixels) for sample in samples))
        input_ids, labels = torch.full(shape, self.tokenizer.pad_token_id), torch.full(shape, IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        frame_mask = torch.zeros(len(samples), frames, dtype=torch.int64)
        pixels = torch.zeros(len(samples), frames, *samples[0].pixels.shape[1:])
        for row, sample in enumerate(samples):
            text, shown = slice(shape[1] - len(sample.ids), None), slice(len(sample.pixels))
            input_ids[row, text], labels[row, text] = torch.tensor(sample.ids), torch.tensor(sample.labels)
            attention_mask[row, text] = 1
            pixels[row, shown], frame_mask[row, shown] = sample.pixels, 1
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "pixel_values_videos": pixels,
            "frame_mask": frame_mask,
        }


def read_frames(media: str, times: Sequence[float], fps: float) -> list[torch.Tensor]:
    """Reads one frame for each time, as a stream at this rate shows them.

    Where a video has no frame of its own for a time, because it has fewer per second, the one before is still seen;
    and up to one second past its end the last one is.

    Args:
        media: A file, or anything else that [`VideoStream`] reads to its end.
        times: Seconds, ascending; each a multiple of `1 / fps`, within a millisecond.
        fps: Frames per second.

    Returns:
        As many uint8 images `(3, height, width)`.

    Raises:
        VideoStreamError: Naming media and time, if it is missing or broken, or ends too early.
        ValueError: If a time is no multiple of `1 / fps`.
    """
    wanted = [round(time * fps) for time in times]
    for tick, time in zip(wanted, times, strict=True):
        if abs(tick / fps - time) > 0.001:
            raise ValueError(f"frame time {time} s is no multiple of 1/{fps:g} s, the processor's frame_fps")
    ticks = Ticks(fps, wanted[0], wanted[-1])
    seen = [(ticks.of(frame.t_sec), frame) for frame in read_ticks(media, ticks)]
    if not seen or wanted[-1] - seen[-1][0] > OVERRUN * fps:
        newest = seen[-1][1].t_sec if seen else None
        raise VideoStreamError(media, newest, f"it has no more frames, but some up to {times[-1]:g} s are asked for")
    images, k = [], 0
    for tick in wanted:
        while k + 1 < len(seen) and seen[k + 1][0] <= tick:
            k += 1
        images.append(seen[k][1].pixel_values)
    return images


def read_joined_frames(clips: Sequence[Clip], times: Sequence[float], fps: float) -> list[torch.Tensor]:
    """Reads frames of a joined video, each from its clip; see [`read_frames`].

    Args:
        clips: In the order in which they begin, each at a multiple of `1 / fps`.
        times: Seconds of the joined video.
        fps: Frames per second.
    """
    images = []
    for clip, shown in itertools.groupby(times, lambda time: clips[bisect_right(clips, time, key=_begin) - 1]):
        images += read_frames(clip.path, [max(time - clip.begin, 0.0) for time in shown], fps)
    return images


def _begin(clip: Clip) -> float:
    return clip.begin - 0.001  # times are whole milliseconds


def _without_none(row: dict[str, Any]) -> LiveSample:
    """A row without the fields that a table fills with `None` because other messages have them."""
    messages = [{name: value for name, value in m.items() if value is not None} for m in row["conversation"]]
    kept = {name: value for name, value in row.items() if value is not None or name == "media"}
    return cast(LiveSample, {"media": None, **kept, "conversation": messages})


def _name(row: dict[str, Any]) -> str:
    world, media = row.get("world"), row.get("media")
    if isinstance(media, tuple):
        return " + ".join(clip.path for clip in media)
    return media or (f"StreamWorld {world.split} {world.seed}" if world else "text")
