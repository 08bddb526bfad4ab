"""What a VideoLLM-online is trained on: rows from several sources, laid out by a learning method, as batches."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from streamchat_hf.data.annotations import BadRows, MediaFiles
from streamchat_hf.data.live_annotations import read_coin_benchmark, read_coin_stream, read_livechat
from streamchat_hf.data.live_augment import augment
from streamchat_hf.data.live_conversation import LiveSample
from streamchat_hf.data.live_dialogue import LiveDialogues
from streamchat_hf.data.live_methods import check_method, per_frame, without_silence
from streamchat_hf.data.live_narration import read_narrations, read_refined_narrations
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.data.proactive_streamworld import ProactiveStreamWorld
from streamchat_hf.data.stream_it import load_stream_it
from streamchat_hf.training.live_collator import LiveCollator, Sample

logger = logging.getLogger(__name__)

# Sources of annotations that are read once, each by its reader.
READERS: dict[str, Callable[..., Iterator[LiveSample]]] = {
    "narrations": read_narrations,
    "refined_narrations": read_refined_narrations,
    "livechat": read_livechat,
    "coin_stream": read_coin_stream,
    "coin_benchmark": read_coin_benchmark,
}
SOURCES = ("streamworld", "proactive_streamworld", "dialogues", "stream-it", *READERS)


def load_source(source: dict[str, Any], fps: float, max_frames: int | None) -> Dataset:
    """Loads the rows of one source.

    Args:
        source: `name`, one of `SOURCES`, and the arguments of [`LiveStreamWorld`], of [`ProactiveStreamWorld`], of
            [`LiveDialogues`], of [`load_stream_it`] or of the reader: `path` and `folder`, and what else it takes. Its
            `weight` is not read.
        fps: Frames per second.
        max_frames: The most frames of a row of `dialogues`, of which a part is drawn; others are cut when collated.

    Raises:
        ValueError: For an unknown name, or a source without rows.
    """
    arguments = {key: value for key, value in source.items() if key not in ("name", "weight")}
    name, bad = source.get("name"), BadRows()
    rows: Any
    if name == "streamworld":
        rows = LiveStreamWorld(**{"fps": fps, **arguments})
    elif name == "proactive_streamworld":
        rows = ProactiveStreamWorld(**{"fps": fps, **arguments})
    elif name == "stream-it":
        rows = load_stream_it(**{"fps": fps, **arguments})
    elif name == "dialogues":
        limit = {} if max_frames is None else {"max_frames": max_frames}
        rows = LiveDialogues(**{"fps": fps, **limit, **arguments})
    elif name in READERS:
        rows = list(READERS[name](bad=bad, media=MediaFiles(), fps=fps, **arguments))
    else:
        raise ValueError(f"source {source}: its name must be one of {', '.join(SOURCES)}")
    if not len(rows):
        raise ValueError(f"source {source} has no rows{f': {bad}' if bad.counts else ''}")
    if bad.counts:
        logger.warning("%s: left out: %s", name, bad)
    return rows


class LiveRows(Dataset):
    """The rows of a run in the order in which it reads them.

    Row i depends on the sources, the order and (seed, i) alone, so an interrupted run goes on with the same rows.

    Args:
        sources: Rows, source by source.
        order: Numbers of rows, counted through all sources.
        augmentation: Spoil an answer of each row, see [`augment`].
        seed: Of the augmentation.
    """

    def __init__(self, sources: Sequence[Dataset], order: np.ndarray, augmentation: bool = False, seed: int = 0):
        self.sources: list[Any] = list(sources)
        self.order, self.augmentation, self.seed = order, augmentation, seed
        self._ends = np.cumsum([len(source) for source in self.sources])

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> LiveSample:
        number = int(self.order[index])
        place = int(np.searchsorted(self._ends, number, side="right"))
        source = self.sources[place]
        if hasattr(source, "set_epoch"):  # other questions at other times in every pass
            source.set_epoch(index // int(self._ends[-1]))
        row = source[number - int(self._ends[place]) + len(source)]
        if self.augmentation:
            rng = random.Random(f"live augmentation/{self.seed}/{index}")
            row = {**row, "conversation": augment(row["conversation"], rng)}
        return row


class FrozenFeatures:
    """Features of the frames of rows, made once by a vision tower that does not learn, and kept in memory.

    Args:
        model: A VideoLLM-online, whose vision tower is asked. It stays where it is.
        bytes_kept: What is made when this much is kept is not kept.
    """

    def __init__(self, model: Any, bytes_kept: int = 2**31):
        self._encode = model.get_video_features
        self._kept: dict[Any, torch.Tensor] = {}
        self._room = bytes_kept
        self.shape = (model.config.frame_num_tokens, model.config.vision_config.hidden_size)
        self.device = model.device

    @torch.no_grad()
    def of(self, key: Any, pixels: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Features `(T, K, D_v)` on the CPU of the frames that `key` stands for.

        Args:
            key: Equal for equal frames.
            pixels: Gives them, `(T, C, height, width)`, where they have not been seen.
        """
        features = self._kept.get(key)
        if features is None:
            encoded, _ = self._encode(pixels()[None].to(self.device))
            features = encoded[0].cpu()
            size = features.numel() * features.element_size()
            if size <= self._room:
                self._kept[key], self._room = features, self._room - size
        return features


class MethodCollator(LiveCollator):
    """A [`LiveCollator`] whose rows are laid out by a learning method; frames as features, if the tower is frozen.

    Args:
        processor: A [`VideoLLMOnlineProcessor`].
        max_frames: The most frames of a sample.
        method: One of `METHODS`.
        features: Batches then have `frame_features (N, K, D_v)`, the frames of all rows one after the other, instead
            of `pixel_values_videos` and `frame_mask`.

    Raises:
        ValueError: For an unknown method.
    """

    def __init__(
        self,
        processor: Any,
        max_frames: int | None = None,
        method: str = "streaming",
        features: FrozenFeatures | None = None,
    ):
        super().__init__(processor, max_frames)
        self.method, self.features = check_method(method), features
        ids = processor.token_ids()
        interval = ids["frame_token_interval_id"]
        self._frame, self._silence = ids["v_placeholder_id"], ids["eos_token_id"] if interval is None else interval

    def sample(self, row: dict[str, Any]) -> Sample:
        """One row, laid out; with features its `pixels` are `(T, K, D_v)`."""
        if self.method == "per-frame":
            row = per_frame(self._clip(row))
        sample = super().sample(row)
        if self.method == "interleaved":
            labels = without_silence(sample.ids, sample.labels, self._frame, self._silence)
            sample = sample._replace(labels=labels)
        return sample

    def _see(self, row: LiveSample) -> torch.Tensor:
        if self.features is None or not row["frame_times"]:
            return super()._see(row)
        shown = row["media"] or repr(row["world"])
        return self.features.of((shown, *row["frame_times"]), lambda: super(MethodCollator, self)._see(row))

    def _no_frames(self) -> torch.Tensor:
        return super()._no_frames() if self.features is None else torch.zeros(0, *self.features.shape)

    def _pad(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        batch = super()._pad(samples)
        if self.features is not None:
            del batch["pixel_values_videos"], batch["frame_mask"]
            batch["frame_features"] = torch.cat([sample.pixels for sample in samples])
        return batch
