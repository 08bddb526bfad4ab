"""The loader: annotations of several formats become rows of one kind, through a `datasets` builder.

A row is one conversation about one video, image or text. In a dense row (sections 2.2 and 2.3 of the StreamChat paper)
every turn has its interval in the video and every word of its answer a time. Media stay paths.
"""

from __future__ import annotations

import bisect
import logging
import math
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import datasets
from datasets.exceptions import DatasetGenerationError

from streamchat_hf.data.annotations import Annotation, BadRow, BadRows, MediaFiles, Turn, annotation_files
from streamchat_hf.data.annotations_captions import SceneTimes, read_activitynet_captions, read_ego4d, read_vript
from streamchat_hf.data.annotations_chat import read_jsonl, read_llava, read_messages
from streamchat_hf.data.streamworld_dataset import StreamWorldDataset, StreamWorldMix, at_the_end
from streamchat_hf.data.streamworld_english import english_answer, english_question
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.data.word_times import spoken_words, word_times

logger = logging.getLogger(__name__)

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "source": datasets.Value("string"),
        "kind": datasets.Value("string"),
        "media": datasets.Value("string"),
        "turns": datasets.List(
            {
                "instruction": datasets.Value("string"),
                "answer": datasets.Value("string"),
                "start": datasets.Value("float64"),
                "end": datasets.Value("float64"),
                "word_times": datasets.List(datasets.Value("float64")),
            }
        ),
    }
)

# Of an answer whose end is not annotated, about the pace of calm speech.
WORDS_PER_SECOND = 2.0
# Published times are rounded, and videos lose or gain some frames when they are encoded again.
TOLERANCE = 1.0
Reader = Callable[[str, BadRows], Iterator[Annotation]]
_REPORT = ".bad_rows.json"  # hidden, so that nobody takes it for data


@dataclass
class DenseInstructionConfig(datasets.BuilderConfig):
    """What all configurations have.

    Attributes:
        split: The name of the split that the rows make.
        on_bad_row: `"skip"` leaves out what is bad and counts it, `"raise"` stops at the first.
        check_media: Whether media have to exist, and intervals to lie within the video as its header has it.
        max_seconds: A dense row lasts no longer, from its first question to its last word; what does not fit goes into
            further rows. `None`: as long as the video.
    """

    split: str = "train"
    on_bad_row: str = "skip"
    check_media: bool = True
    max_seconds: float | None = None

    def read(self, bad: BadRows, cache: str) -> Iterator[Annotation]:
        """Reads all annotations.

        Args:
            bad: Where bad rows are reported.
            cache: A folder in which media may be written.
        """
        raise NotImplementedError


@dataclass
class StreamWorldConfig(DenseInstructionConfig):
    """Clips of StreamWorld, rendered into the cache, with the questions and answers of its dialogue.

    The answers are those of a viewer who sees two frames per second or more. `split` chooses the worlds too.

    Attributes:
        split: `"train"`, `"seen"` or `"heldout"`.
        clips: How many.
        seed: Any integer.
        english: In the words of English, for a language model that was trained on them, instead of StreamWorld's own.
        offline: The same questions, asked when the clip is over, and answers of as many words about its end: rows
            without times. Clips at whose end there is nothing to answer are left out.
    """

    clips: int = 100
    seed: int = 0
    english: bool = False
    offline: bool = False

    def read(self, bad: BadRows, cache: str) -> Iterator[Annotation]:
        """Reads all annotations; see `DenseInstructionConfig.read`."""
        folder = os.path.join(os.path.abspath(cache), "streamworld", f"{self.split}-{self.seed}")
        os.makedirs(folder, exist_ok=True)
        # A file does not stop before the talk does; and what has no name is for training only.
        mix = StreamWorldMix(stalled=0.0)
        mix = mix if self.split == "train" else replace(mix, one_attribute=0.0)
        samples = StreamWorldDataset(self.clips, self.seed, self.split, mix)
        for index in range(self.clips):
            sample, path = samples[index], os.path.join(folder, f"{index:06}.mp4")
            if not os.path.exists(path):
                part = f"{path}.{os.getpid()}.part"
                write_mp4(sample.world, part)
                os.replace(part, path)
            name = f"{self.split}-{self.seed}-{index}"
            turns = (at_the_end(sample) if self.offline else sample).turns
            if turns:
                said = tuple(self._turn(turn, f"streamworld:{name}") for turn in turns)
                kind = "video" if self.offline else "dense"
                yield Annotation(name, f"streamworld:{name}", kind, (path,), said)

    def _turn(self, turn: Any, source: str) -> Turn:
        question, words = turn.question.text, [word.text for word in turn.words]
        if self.english:
            question, words = english_question(question), english_answer(words)
        if self.offline:
            return Turn(source, question, " ".join(words))
        times = tuple(word.time for word in turn.words)
        return Turn(source, question, " ".join(words), turn.ask_time, times[-1], times)


@dataclass
class AnnotationsConfig(DenseInstructionConfig):
    """What all configurations that read the user's files have.

    Attributes:
        annotations: A file, a folder, a glob pattern, or several of these.
        media_folder: Where media lie. Paths in annotations are relative to it; videos that are known by an id are
            found in it and in the folders in it. `None`: the folder of each annotation file.
    """

    annotations: str | os.PathLike | Sequence[str | os.PathLike] | None = None
    media_folder: str | os.PathLike | None = None

    pattern: ClassVar[str] = "*.jsonl"  # of the annotation files in a folder

    def files(self) -> list[str]:
        """Lists the annotation files.

        Raises:
            FileNotFoundError: There is none at one of the places.
            ValueError: No place is given.
        """
        if self.annotations is None:
            raise ValueError(f"configuration {self.name!r} needs annotations=, the files to read")
        return annotation_files(self.annotations, self.pattern)

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Names the prepared rows after the state of the files too: the cache forgets them when a file changes."""
        stamps = [(os.path.abspath(path), os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in self.files()]
        folder = None if self.media_folder is None else os.path.abspath(self.media_folder)
        return super().create_config_id({**config_kwargs, "stamps": [stamps, folder]}, custom_features)

    def read(self, bad: BadRows, cache: str) -> Iterator[Annotation]:
        """Reads all annotations; see `DenseInstructionConfig.read`."""
        read_file = self._reader()
        for path in self.files():
            folder = os.path.dirname(path) if self.media_folder is None else os.fspath(self.media_folder)
            for annotation in read_file(path, bad):
                yield replace(annotation, media=tuple(os.path.join(folder, name) for name in annotation.media))

    def _reader(self) -> Reader:
        raise NotImplementedError


@dataclass
class JsonlConfig(AnnotationsConfig):
    """Our own plain JSONL; see `read_jsonl`."""

    def _reader(self) -> Reader:
        return read_jsonl


@dataclass
class LlavaConfig(AnnotationsConfig):
    """LLaVA's conversations; see `read_llava`."""

    pattern: ClassVar[str] = "*.json"

    def _reader(self) -> Reader:
        return read_llava


@dataclass
class MessagesConfig(AnnotationsConfig):
    """TRL's conversational rows; see `read_messages`."""

    def _reader(self) -> Reader:
        return read_messages


@dataclass
class VriptConfig(AnnotationsConfig):
    """Vript's captions; see `read_vript`.

    Attributes:
        scene_times: In it or in folders in it lie `<video>_cut_meta.json` or `<video>_asr.jsonl`, which come with the
            clips. `None`: the folder of the media.
        seed: Of the questions.
    """

    scene_times: str | os.PathLike | None = None
    seed: int = 0

    pattern: ClassVar[str] = "*_caption*.json*"

    def _reader(self) -> Reader:
        folder = self.scene_times or self.media_folder or os.path.dirname(self.files()[0])
        return partial(read_vript, scene_times=SceneTimes(folder), seed=self.seed)


@dataclass
class ActivityNetCaptionsConfig(AnnotationsConfig):
    """ActivityNet Captions; see `read_activitynet_captions`.

    Attributes:
        seed: Of the questions.
    """

    seed: int = 0

    pattern: ClassVar[str] = "*.json"

    def _reader(self) -> Reader:
        return partial(read_activitynet_captions, seed=self.seed)


@dataclass
class Ego4DConfig(AnnotationsConfig):
    """Ego4D's narrations; see `read_ego4d`.

    Attributes:
        seed: Of the questions.
    """

    seed: int = 0

    pattern: ClassVar[str] = "*narration*.json"

    def _reader(self) -> Reader:
        return partial(read_ego4d, seed=self.seed)


class DenseInstruction(datasets.GeneratorBasedBuilder):
    """Builds rows of dense instructions and other conversations from the user's own files.

    Use it from Python, as `datasets` 4 and later load no scripts: `DenseInstruction(config_name="jsonl",
    annotations="rows.jsonl")`, then `as_streaming_dataset(split="train")`, or `download_and_prepare()` and
    `as_dataset(split="train")` for memory-mapped rows. The fields of the configuration are arguments.

    A turn that cannot be used is left out, and a row with nothing left; or the first of them raises (`on_bad_row`).
    Only when no row at all is left there is nothing to go on with: that raises in any case. One process reads, so that
    nothing bad escapes the count; the dataset itself can be read by as many as you like.

    Attributes:
        bad_rows: What was left out when the rows were last made: counts and examples by reason.

    Raises:
        ValueError: A field of the configuration is not what it may be.
        FileNotFoundError: There is no annotation file.
    """

    VERSION = datasets.Version("1.0.0")  # of the rows; the cache is keyed by it
    BUILDER_CONFIG_CLASS = DenseInstructionConfig
    BUILDER_CONFIGS = [
        StreamWorldConfig(name="streamworld", version=VERSION),
        JsonlConfig(name="jsonl", version=VERSION),
        LlavaConfig(name="llava", version=VERSION),
        MessagesConfig(name="messages", version=VERSION),
        VriptConfig(name="vript", version=VERSION),
        ActivityNetCaptionsConfig(name="activitynet_captions", version=VERSION),
        Ego4DConfig(name="ego4d", version=VERSION),
    ]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.config.on_bad_row not in ("skip", "raise"):
            raise ValueError(f"on_bad_row is 'skip' or 'raise', not {self.config.on_bad_row!r}")
        self.bad_rows = BadRows()

    def download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        """Writes the rows into the cache, unless they are there; takes what `datasets` documents.

        Raises:
            ValueError: No row is left, or there is a bad one and `on_bad_row` is `"raise"`; the file and the line are
                named.
        """
        before = self.bad_rows
        try:
            super().download_and_prepare(*args, **kwargs)
        except DatasetGenerationError as error:
            if isinstance(error.__cause__, ValueError | OSError):  # which say more than "an error occurred"
                raise error.__cause__ from None
            raise
        if self.bad_rows is before:  # the rows were in the cache
            with self._fs.open(posixpath.join(self._output_dir, _REPORT), "r") as file:
                self.bad_rows = BadRows.from_json(file.read())
            self._log("; prepared earlier, download_mode='force_redownload' looks again")

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=FEATURES)

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        return [datasets.SplitGenerator(name=self.config.split)]

    def _download_and_prepare(self, *args: Any, **kwargs: Any) -> None:
        super()._download_and_prepare(*args, **kwargs)
        with self._fs.open(posixpath.join(self._output_dir, _REPORT), "w") as file:
            file.write(self.bad_rows.to_json())

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        self.bad_rows = bad = BadRows(refuse=self.config.on_bad_row == "raise")
        media = MediaFiles(self.config.check_media)
        number = 0
        for annotation in self.config.read(bad, self._cache_dir_root):
            for row in self._rows(annotation, media, bad):
                yield number, row
                number += 1
        if number == 0:
            raise ValueError(f"{self.config.name}: no row is left: {bad if bad.counts else 'there was none'}")
        self._log()

    def _rows(self, annotation: Annotation, media: MediaFiles, bad: BadRows) -> Iterator[dict[str, Any]]:
        """What can be used of an annotation: no row, one, or several if its turns overlap or do not fit into one."""
        try:
            path, duration = media.find(annotation)
            if not annotation.turns:
                raise BadRow("no turns", f"nothing is said about {annotation.id}")
        except BadRow as error:
            bad.add(annotation.source, error)
            return
        dense = annotation.kind == "dense"
        starts = sorted(turn.start for turn in annotation.turns if turn.start is not None)
        turns = []
        for turn in annotation.turns:
            try:
                turns.append(_record(turn, _interval(turn, starts, duration) if dense else None))
            except BadRow as error:
                bad.add(turn.source, error)
        rows = _in_rows(turns, self.config.max_seconds or math.inf) if dense else [turns] if turns else []
        for number, row in enumerate(rows, start=1):
            name = annotation.id if number == 1 else f"{annotation.id}#{number}"
            yield {"id": name, "source": annotation.source, "kind": annotation.kind, "media": path, "turns": row}

    def _log(self, note: str = "") -> None:
        if self.bad_rows.counts:
            logger.warning("%s: left out: %s%s", self.config.name, self.bad_rows, note)


def _interval(turn: Turn, starts: Sequence[float], duration: float | None) -> tuple[float, float]:
    """When a turn of a dense row starts and ends, in seconds.

    Args:
        turn: If its end is not known, it takes as long as it takes to say it, at most until the next turn starts or
            the video ends.
        starts: Of all turns of the row, ascending.
        duration: Of the video; `None` if it is not known.

    Raises:
        BadRow: It has no start, ends before it starts, or lies outside the video.
    """
    start, end, limit = turn.start, turn.end, math.inf if duration is None else duration
    if start is None:
        raise BadRow("no interval", "it is not known when it is asked")
    if end is None:
        following = bisect.bisect_right(starts, start)
        until = min(starts[following] if following < len(starts) else math.inf, max(start, limit))
        end = min(start + len(spoken_words(turn.answer)) / WORDS_PER_SECOND, until)
    if end < start:
        raise BadRow("interval ends before it starts", f"{start:g} to {end:g} s")
    if not 0 <= start < limit or end > limit + TOLERANCE:
        lasts = "" if duration is None else f" in a video of {duration:g} s"
        raise BadRow("interval outside the video", f"{start:g} to {end:g} s{lasts}")
    return start, min(end, limit)


def _record(turn: Turn, interval: tuple[float, float] | None) -> dict[str, Any]:
    """A turn as rows have it."""
    instruction, answer = turn.instruction.strip(), turn.answer.strip()
    if not instruction:
        raise BadRow("empty instruction", f"its answer is {answer!r:.60}")
    if not answer:
        raise BadRow("empty answer", f"to {instruction!r:.60}")
    start, end = interval or (None, None)
    try:
        f"{instruction}{answer}".encode()
    except UnicodeEncodeError as error:  # JSON can hold halves of characters, a row cannot
        raise BadRow("broken text", str(error)) from None
    times = list(turn.word_times) or (word_times(answer, *interval) if interval else [])
    return {"instruction": instruction, "answer": answer, "start": start, "end": end, "word_times": times}


def _in_rows(turns: list[dict[str, Any]], max_seconds: float) -> list[list[dict[str, Any]]]:
    """Distributes turns over rows in which one follows the other, as few as it takes.

    Each turn goes into the first row that has ended when it starts: where intervals overlap, as those of ActivityNet
    do, nothing is lost and nobody is asked while speaking.
    """
    rows: list[list[dict[str, Any]]] = []
    for turn in sorted(turns, key=lambda turn: turn["start"]):
        for row in rows:
            if row[-1]["end"] <= turn["start"] and turn["end"] - row[0]["start"] <= max_seconds:
                row.append(turn)
                break
        else:
            rows.append([turn])
    return rows


def load_dense_instruction(
    name: str, split: str = "train", streaming: bool = False, **config: Any
) -> datasets.Dataset | datasets.IterableDataset:
    """Loads rows in one line.

    Args:
        name: Of the configuration: `"streamworld"`, `"jsonl"`, `"llava"`, `"messages"`, `"vript"`,
            `"activitynet_captions"` or `"ego4d"`.
        split: The name of the split that the rows make; of StreamWorld also which worlds. A slice such as
            `"train[:100]"` takes a part of it.
        streaming: Whether to read the files row by row while you iterate; else the rows are written into the cache
            once and mapped into memory.
        **config: Fields of the configuration, such as `annotations` and `media_folder`; and `cache_dir`.

    Returns:
        Rows as in `FEATURES`.

    Raises:
        ValueError: As `DenseInstruction` and its `download_and_prepare`.
        FileNotFoundError: There is no annotation file.
    """
    builder = DenseInstruction(config_name=name, split=split.partition("[")[0], **config)
    if streaming:
        return builder.as_streaming_dataset(split=split)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)
