"""Rows of dense instructions, videos, images and text as batches for the model.

A row is `{"id", "source": "file:line", "kind": "dense" | "video" | "image" | "text", "media", "turns"}`, a turn
`{"instruction", "answer", "start", "end", "word_times"}` with seconds of the media; a turn without a start is asked
after the last frame. A batch holds exactly the tokens, times and frames that the same talk has when it is streamed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from streamchat_hf.data.frame_sampling import Ticks, read_spread, read_still, read_ticks
from streamchat_hf.data.word_times import token_times
from streamchat_hf.modeling.timeline_streamchat import NEVER, to_milliseconds
from streamchat_hf.processing.sources_streamchat import VideoStreamError
from streamchat_hf.processing.video_processing_streamformer import pad_clips
from streamchat_hf.streaming.conversation import Conversation

IGNORED = -100
KINDS = ("dense", "video", "image", "text")
NO_TOKEN = -1


class Sample(NamedTuple):
    """One row, ready to be padded.

    Attributes:
        ids: L tokens.
        labels: L tokens to predict, not shifted; -100 outside of the answers.
        times: L int milliseconds.
        turn_starts: Where in the tokens each prompt begins.
        pixels: `(T, 3, height, width)` float32, T at least 1.
        frame_times: `(T,)` int64 milliseconds, the largest int64 for a frame that is not there.
    """

    ids: list[int]
    labels: list[int]
    times: list[int]
    turn_starts: list[int]
    pixels: torch.Tensor
    frame_times: torch.Tensor


class DenseCollator:
    """Reads the frames of rows, writes their talk by the chat template, and pads both: `collator(rows)`.

    A row that cannot be used, because its media is broken or its times do not fit its words, becomes a sample without
    labels, which adds nothing to the loss; it is named in the batch. So a batch always has the same rows, wherever and
    however often it is made.

    Args:
        processor: A processor with a chat template, a fast tokenizer and a video processor.
        fps: Frames per second of dense rows; fewer where a turn would take more than `max_frames`.
        max_frames: The most frames of a sample; a video without times shows as many, evenly spread.
        max_length: The most tokens of a sample, the rest is cut off; `None`: no limit.

    Attributes:
        end_of_turn: The token that ends every answer: the first special one that the template puts behind it.

    Raises:
        ValueError: If the chat template does not show an answer as it is, or puts no special token behind it.
    """

    def __init__(self, processor: Any, fps: float = 1.0, max_frames: int = 32, max_length: int | None = None):
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.fps, self.max_frames, self.max_length = fps, max_frames, max_length
        self.end_of_turn = _end_of_turn(processor)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Collates B rows.

        Returns:
            `input_ids`, `attention_mask`, `token_times` (int64 milliseconds), `turn_starts` (bool) and `labels` (not
            shifted): all `(B, L)`, padded on the right. `pixel_values_videos` float32 `(B, T, 3, height, width)` and
            `frame_times` int64 `(B, T)`, padded with the largest int64; T is at least 1, so that a batch of text runs
            through the same parameters as any other. Beside these tensors `rows`, the B names, and `skipped`, what is
            wrong with those that could not be used.
        """
        samples, skipped = [], []
        names = [f"{row['id']} ({row['source']})" for row in rows]
        for name, row in zip(names, rows, strict=True):
            try:
                samples.append(self.sample(row))
            except (VideoStreamError, ValueError) as error:
                skipped.append(f"{name}: {error}")
                samples.append(Sample([self._padding], [IGNORED], [0], [0], *self._see([])))
        return {**self._pad(samples), "rows": names, "skipped": skipped}

    def sample(self, row: dict[str, Any]) -> Sample:
        """One row.

        Raises:
            VideoStreamError: If its media cannot be read.
            ValueError: If it has no turn, is of an unknown kind, or its times do not fit its words.
        """
        if not row["turns"] or row["kind"] not in KINDS:
            raise ValueError(f"a row needs turns and one of the kinds {', '.join(KINDS)}, not {row['kind']!r}")
        if row["kind"] == "dense" and any(turn["start"] is None for turn in row["turns"]):
            raise ValueError("every turn of a dense row needs a start")
        pixels, frame_times = self._see(self._frames(row))
        ids: list[int] = []
        labels: list[int] = []
        times: list[int] = []
        turn_starts: list[int] = []
        after = 0 if frame_times[-1] == NEVER else int(frame_times[-1])
        conversation = Conversation(self.processor)
        for turn in row["turns"]:
            asked = after if turn["start"] is None else to_milliseconds(turn["start"])
            prompt = conversation.ask(turn["instruction"])
            spoken, spoken_times = self._answer(turn, asked)
            conversation.answered(turn["answer"], spoken)
            turn_starts.append(len(ids))
            ids += prompt + spoken
            labels += [IGNORED] * len(prompt) + spoken
            times += [asked] * len(prompt) + spoken_times
        kept = slice(self.max_length)
        return Sample(ids[kept], labels[kept], times[kept], turn_starts, pixels, frame_times)

    @property
    def _padding(self) -> int:
        return self.tokenizer.pad_token_id or 0

    def _answer(self, turn: dict[str, Any], asked: int) -> tuple[list[int], list[int]]:
        """The tokens of an answer, with the one that ends it, and their times in milliseconds."""
        encoded = self.tokenizer(turn["answer"], add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        ids, offsets = [*ids, self.end_of_turn], [*offsets, (0, 0)]
        if turn["start"] is None:
            return ids, [asked] * len(ids)
        times = [to_milliseconds(time) for time in token_times(turn["answer"], offsets, turn["word_times"])]
        if times[0] < asked:
            raise ValueError(f"the answer begins at {times[0] / 1000} s, before its question at {asked / 1000} s")
        return ids, times

    def _frames(self, row: dict[str, Any]) -> Any:
        if row["kind"] == "text":
            return []
        if row["kind"] == "image":
            return read_still(row["media"])
        if row["kind"] == "video":
            return read_spread(row["media"], self.max_frames)
        ticks = Ticks.ending(row["turns"][0]["start"], _end(row["turns"][-1]), self.fps, self.max_frames)
        return read_ticks(row["media"], ticks)

    def _see(self, frames: Any) -> tuple[torch.Tensor, torch.Tensor]:
        prepare = self.processor.video_processor.preprocess_frame
        seen = [(to_milliseconds(frame.t_sec), prepare(frame.pixel_values)) for frame in frames]
        if not seen:
            size = self.processor.video_processor.size
            seen = [(NEVER, torch.zeros(3, size["height"], size["width"]))]
        return torch.stack([pixels for _, pixels in seen]), torch.tensor([time for time, _ in seen])

    def _pad(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        shape = (len(samples), max(len(sample.ids) for sample in samples))
        input_ids, labels = torch.full(shape, self._padding), torch.full(shape, IGNORED)
        attention_mask, token_times = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        turn_starts = torch.zeros(shape, dtype=torch.bool)
        for row, sample in enumerate(samples):
            length = len(sample.ids)
            input_ids[row, :length], labels[row, :length] = torch.tensor(sample.ids), torch.tensor(sample.labels)
            token_times[row, :length], token_times[row, length:] = torch.tensor(sample.times), sample.times[-1]
            attention_mask[row, :length] = 1
            turn_starts[row, [start for start in sample.turn_starts if start < length]] = True
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_times": token_times,
            "turn_starts": turn_starts,
            "labels": labels,
            **pad_clips([(sample.pixels, sample.frame_times) for sample in samples]),
        }


def _end_of_turn(processor: Any) -> int:
    """The first special token behind an answer; some templates put white space before it."""
    conversation = Conversation(processor)
    conversation.ask("?")
    conversation.answered("?", [NO_TOKEN])
    tokenizer = processor.tokenizer
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    found = next((token for token in conversation.ask("?") if token in special), None)
    if found is None:
        raise ValueError("the chat template puts no special token behind an answer: nothing could end it")
    return found


def split_turns(row: dict[str, Any], fps: float, max_frames: int) -> list[dict[str, Any]]:
    """Cuts a dense row into rows that can be shown, each a talk of its own.

    A new row begins where the turns so far and the next one would take more than `max_frames`, and where a question
    comes before the answer to the one before has ended. A turn that is too long by itself stays whole.

    Args:
        row: Any row; those that are not dense, or lack a start, stay as they are.
        fps: Frames per second.
        max_frames: The most frames of a sample.

    Returns:
        Rows like it, in order of time; if there are several, `#0`, `#1` … is added to their ids.
    """
    if row["kind"] != "dense" or any(turn["start"] is None for turn in row["turns"]):
        return [row]
    groups: list[list[dict[str, Any]]] = []
    for turn in sorted(row["turns"], key=lambda turn: turn["start"]):
        fits = (
            groups
            and _end(groups[-1][-1]) <= turn["start"]
            and Ticks.spanning(groups[-1][0]["start"], _end(turn), fps).number <= max_frames
        )
        if fits:
            groups[-1].append(turn)
        else:
            groups.append([turn])
    if len(groups) == 1:
        return [{**row, "turns": groups[0]}]
    return [{**row, "id": f"{row['id']}#{i}", "turns": turns} for i, turns in enumerate(groups)]


def _end(turn: dict[str, Any]) -> float:
    """When the last word is spoken, in seconds."""
    return turn["word_times"][-1] if turn["word_times"] else turn["start"]
