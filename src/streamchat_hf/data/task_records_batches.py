"""Clips of real videos for StreamFormer's six tasks: a record to pixels and labels, and B of them to a micro-batch.

How frames are chosen follows the authors' code: evenly over the clip; for grounding at random times around an interval
in which the query is true. Every frame is squashed to the processor's size, and masks with it; nothing is augmented.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from streamchat_hf.data.annotations import Annotation, BadRow, BadRows, MediaFiles
from streamchat_hf.data.frame_sampling import Ticks, read_ticks
from streamchat_hf.data.task_records import BACKGROUND, CLASS_TASKS, Mask, TaskRecord
from streamchat_hf.processing.frames_streamchat import TICK_TOLERANCE
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

GROUNDING_SECONDS = 16.0  # a shorter interval is shown with what is around it
_CHOICES = 4  # times per frame of grounding, of which one is drawn


@dataclass(frozen=True)
class TaskClip:
    """One clip of T frames.

    Attributes:
        task: A word of `TASKS`.
        pixel_values: float32 (T, 3, height, width), as the video processor gives them.
        texts: The classes of the dataset; or what is true of the clip, of which the first is meant.
        labels: As in a micro-batch, without B; `None` of retrieval.
    """

    task: str
    pixel_values: Tensor
    texts: tuple[str, ...]
    labels: Tensor | None


class TaskClips(Dataset):
    """Clips of records of one task. What is drawn for item i depends on (seed, i) alone.

    Args:
        records: Of one task.
        folder: Below which their media lie.
        processor: Gives frames their size and normalisation.
        bad: Where records are reported whose media are missing or cannot be read; they are left out.
        num_frames: Frames T of a clip; a shorter one repeats some.
        classes: Of tasks with classes: all of them. The default is what occurs in the records, in order.
        seed: Any integer.

    Raises:
        ValueError: If the records are of several tasks or of none of the given classes, or none is left.
    """

    def __init__(
        self,
        records: Sequence[TaskRecord],
        folder: str | os.PathLike,
        processor: StreamFormerVideoProcessor,
        bad: BadRows,
        num_frames: int = 16,
        classes: Sequence[str] | None = None,
        seed: int = 0,
    ):
        tasks = sorted({record.task for record in records})
        if len(tasks) > 1:
            raise ValueError(f"clips are of one task, not of {tasks}")
        self.folder, self.processor, self.num_frames, self.seed = os.fspath(folder), processor, num_frames, seed
        self._files = MediaFiles()
        self._found: list[tuple[TaskRecord, str, float]] = []
        for record in records:
            try:
                self._found.append((record, *self._find(record)))
            except BadRow as error:
                bad.add(record.source, error)
        if not self._found:
            raise ValueError(f"of {len(records)} records none has its media below {self.folder}: {bad}")
        self.task = tasks[0]
        self.classes: tuple[str, ...] = ()
        if self.task in CLASS_TASKS:
            named = {text for record in records for text in record.texts}
            self.classes = tuple(sorted(named) if classes is None else classes)
            if not named <= set(self.classes):
                raise ValueError(f"no class of the given ones: {sorted(named - set(self.classes))[:3]}")

    def _find(self, record: TaskRecord) -> tuple[str, float]:
        """The path of a record's video and where its clip ends, in seconds; of frames `""` and 0."""
        if record.frames:
            for frame in record.frames:
                if not os.path.isfile(os.path.join(self.folder, frame)):
                    raise BadRow("missing image", f"no file {frame}")
            return "", 0.0
        media = tuple(os.path.join(self.folder, name) for name in record.media)
        path, duration = self._files.find(Annotation(record.id, record.source, "video", media, ()))
        end = min(filter(None, (duration, record.end)))
        if any(start >= end for start in (record.start, *(start for start, _ in record.intervals))):
            raise BadRow("interval outside the video", f"it lasts {end:g} s")
        return path, end

    def __len__(self) -> int:
        return len(self._found)

    def __getitem__(self, index: int) -> TaskClip:
        record, path, end = self._found[index]
        rng = random.Random(f"task clips/{self.seed}/{index}")
        if record.frames:
            return self._masks(record)
        if self.task == "temporal_grounding":
            start, stop = around(rng.choice(record.intervals), end)
            step = (stop - start) / self.num_frames
            offsets = [rng.randrange(_CHOICES) / _CHOICES for _ in range(self.num_frames)]
            times, pixels = self._read(path, start, stop, [start + (i + o) * step for i, o in enumerate(offsets)])
            inside = [any(begin <= time < last for begin, last in record.intervals) for time in times]
            return TaskClip(self.task, pixels, record.texts, torch.tensor(inside))
        step = (end - record.start) / self.num_frames
        wanted = [record.start + i * step for i in range(self.num_frames)]
        times, pixels = self._read(path, record.start, end, wanted)
        if self.task == "video_text_retrieval":
            return TaskClip(self.task, pixels, tuple(rng.sample(record.texts, len(record.texts))), None)
        if self.task == "action_recognition":
            return TaskClip(self.task, pixels, self.classes, torch.tensor(self.classes.index(record.texts[0])))
        return TaskClip(self.task, pixels, self.classes, torch.tensor([self._class_at(record, t) for t in times]))

    def _read(self, path: str, start: float, end: float, wanted: list[float]) -> tuple[list[float], Tensor]:
        """The first frames at or after the wanted times: their own times in seconds and their pixels (T, 3, H, W)."""
        choices = _CHOICES if self.task == "temporal_grounding" else 1
        fps = choices * self.num_frames / (end - start)
        first = round(start * fps)
        read = read_ticks(path, Ticks(fps, first, first + choices * self.num_frames - 1))
        frames = [(frame.t_sec, self.processor.preprocess_frame(frame.pixel_values)) for frame in read]
        if not frames:
            raise ValueError(f"{path} shows nothing from {start:g} to {end:g} s")
        chosen = [next((f for f in frames if f[0] >= time - TICK_TOLERANCE), frames[-1]) for time in wanted]
        return [time for time, _ in chosen], torch.stack([pixels for _, pixels in chosen])

    def _class_at(self, record: TaskRecord, time: float) -> int:
        for (start, end), text in zip(record.intervals, record.texts, strict=True):
            if start <= time < end:
                return self.classes.index(text)
        return BACKGROUND

    def _masks(self, record: TaskRecord) -> TaskClip:
        chosen = [i * len(record.frames) // self.num_frames for i in range(self.num_frames)]
        pixels = []
        for i in chosen:
            with Image.open(os.path.join(self.folder, record.frames[i])) as picture:
                pixels.append(self.processor.preprocess_frame(picture.convert("RGB")))
        size = (pixels[0].shape[-2], pixels[0].shape[-1])
        # Objects one by one; of pixels that two of them claim the first one has them.
        labels = torch.full((self.num_frames, *size), BACKGROUND)
        values = [self.classes.index(text) for text in record.texts] if self.classes else [0] * len(record.masks)
        for value, masks in reversed(list(zip(values, record.masks, strict=True))):
            for row, i in enumerate(chosen):
                labels[row][_resized(masks[i], size)] = value
        texts = self.classes or record.texts
        return TaskClip(self.task, torch.stack(pixels), texts, labels if self.classes else labels != BACKGROUND)


def around(interval: tuple[float, float], duration: float) -> tuple[float, float]:
    """Return the part of a video that shows an interval: at least 16 seconds around it, if the video has them."""
    start, end = interval[0], min(interval[1], duration)
    spare = max(GROUNDING_SECONDS - (end - start), 0.0)
    start = max(min(start - spare / 2, duration - (end - start) - spare), 0.0)
    return start, min(max(end, start + GROUNDING_SECONDS), duration)


def _resized(mask: Mask | None, size: tuple[int, int]) -> Tensor:
    """A mask at the size of the pixels, bool; empty if there is none."""
    if mask is None:
        return torch.zeros(size, dtype=torch.bool)
    return torch.nn.functional.interpolate(mask.decode()[None, None].float(), size, mode="nearest-exact")[0, 0] > 0


def collate_clips(clips: Sequence[TaskClip]) -> dict[str, Any]:
    """Make a micro-batch of B clips of one task, as `streamworld_tasks.collate_tasks` does.

    Returns:
        `task`, `pixel_values_videos` float32 (B, T, 3, height, width), `texts` and `labels`. Of retrieval the labels
        are bool (B, B): a caption is true of its own clip and of others that have the same one.
    """
    task = clips[0].task
    texts = list(clips[0].texts) if task in CLASS_TASKS else [clip.texts[0] for clip in clips]
    labels = [clip.labels for clip in clips if clip.labels is not None]
    return {
        "task": task,
        "pixel_values_videos": torch.stack([clip.pixel_values for clip in clips]),
        "texts": texts,
        "labels": torch.stack(labels) if labels else torch.tensor([[t in c.texts for t in texts] for c in clips]),
    }
