"""StreamWorld through the live path: real mp4 files, `processor.stream`, `generate(frames=...)`, every word scored."""

import itertools
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from streamchat_hf import metrics
from streamchat_hf.data.streamworld_dialogue import VALUES
from streamchat_hf.data.streamworld_english import english_question, speaks_english, streamworld_word
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.evaluation.streamworld_cases import StreamWorldCase, streamworld_cases
from streamchat_hf.evaluation.streamworld_facts import streamworld_facts
from streamchat_hf.evaluation.streamworld_score import score_answer, score_changes, summarise
from streamchat_hf.streaming.words import spoken_words

# How a viewer sees the stream: as it comes, as it was when the question was asked, or not at all.
VIEWERS = ("fresh", "frozen", "grey")
BATCH = 16
# What can be asked for. Presence is no such kind: who sees nothing new cannot even be wrong about it.
ATTRIBUTES = tuple(kind for kind in VALUES if kind != "presence")


def evaluate(
    model: Any,
    processor: Any,
    seed: int = 0,
    split: str = "heldout",
    clips: int = 300,
    fps: float = 2.0,
    tokens_per_second: float = 2.0,
    silent_frames: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Asks about `clips` worlds, free-running and greedy, under the simulated clock.

    Args:
        model: a StreamChat.
        processor: its processor.
        seed: of worlds and questions.
        split: `"heldout"` (combinations never seen in training), `"seen"` or `"train"`.
        clips: how many worlds, one question each.
        fps: frames per second shown to the model.
        tokens_per_second: how fast it speaks.
        silent_frames: how many frames it watches before anything may be asked.
        progress: show a progress bar.

    Returns:
        `state_accuracy` by viewer, with `oracle` (what a perfect frozen viewer would score) and `chance`; `by_kind`
        the same for each kind of word that any viewer spoke; `moved` and `unmoved` words, `in_heldout_combo`,
        `changes`; `n` state words spoken by the fresh viewer; `streaming_score`, the whole result of that metric by
        viewer; `case_scores`, its score of each of the fresh viewer's answers, question by question, the same
        questions for every model; the settings; and `rows`, one per scored word and viewer.

    Raises:
        ImportError: Without `evaluate`, which the metric needs.
    """
    metric = metrics.load("streaming_score")  # before the long part, which would be lost if it is missing
    cases = list(streamworld_cases(clips, split, seed, tokens_per_second, silence=silent_frames / fps))
    rows: dict[str, list[dict]] = {viewer: [] for viewer in VIEWERS}
    changes: dict[str, list[dict]] = {viewer: [] for viewer in VIEWERS}
    words: dict[str, list[list[dict]]] = {viewer: [] for viewer in VIEWERS}
    facts: list[list[dict]] = []
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(cases) * len(VIEWERS), disable=not progress) as bar:
        for batch in _batches(cases):
            paths = [Path(folder) / f"{i}.mp4" for i in range(len(batch))]
            for case, path in zip(batch, paths, strict=True):
                write_mp4(case.world, path)
                facts.append(streamworld_facts(case.world, case.question, case.ask_time, case.word_times))
            for viewer in VIEWERS:
                streams = [_see(processor.stream(path, fps=fps), viewer, batch[0].ask_time) for path in paths]
                answers = _speak(model, processor, batch, streams, tokens_per_second)
                words[viewer] += answers
                for case, said in zip(batch, answers, strict=True):
                    spoken = [(word["word"], word["time"]) for word in said]
                    rows[viewer] += score_answer(case.world, case.question, case.ask_time, spoken)
                    changes[viewer] += score_changes(case.world, case.question, case.ask_time, spoken)
                bar.update(len(batch))
    settings = {"seed": seed, "split": split, "clips": clips, "fps": fps, "tokens_per_second": tokens_per_second}
    # Under the simulated clock a frame waits for its time and none is dropped.
    seen = {"references": facts, "slots": VALUES, "dropped_frames": [0] * len(facts)}
    scores = {viewer: metric.compute(predictions=words[viewer], **seen) for viewer in VIEWERS}
    by_case = [
        metric.compute(predictions=[answer], references=[truth], slots=VALUES)["score"]
        for answer, truth in zip(words["fresh"], facts, strict=True)
    ]
    report = {**_report(rows, changes), "streaming_score": scores, "case_scores": by_case}
    return {**report, **settings, "silent_frames": silent_frames}


def mean_of_attributes(by_kind: Mapping[str, Mapping[str, Any]], viewer: str) -> float:
    """The share of true words, mean over `ATTRIBUTES`: the same five for every model and viewer.

    Args:
        by_kind: as [`evaluate`] gives it.
        viewer: one of `VIEWERS`. Of an attribute that it never named nothing was true.
    """
    return statistics.fmean(by_kind.get(kind, {}).get(viewer) or 0.0 for kind in ATTRIBUTES)


def _batches(cases: list[StreamWorldCase]) -> Iterator[list[StreamWorldCase]]:
    """Cases asked at the same moment, so that they share one clock."""
    for _, group in itertools.groupby(sorted(cases, key=lambda c: c.ask_time), key=lambda c: c.ask_time):
        same_moment = list(group)
        for begin in range(0, len(same_moment), BATCH):
            yield same_moment[begin : begin + BATCH]


def _see(stream: Iterable, viewer: str, ask_time: float) -> Iterator:
    for frame in stream:
        if viewer == "frozen" and frame.t_sec > ask_time:
            return
        yield frame._replace(pixel_values=torch.zeros_like(frame.pixel_values)) if viewer == "grey" else frame


def _speak(model, processor, batch: list[StreamWorldCase], streams: list, tokens_per_second: float) -> list:
    """Returns each answer's words as dicts of `word`, `time` and `frame_age`, both in seconds.

    A model that speaks English is asked in English, and what it says is taken back into StreamWorld's words.
    """
    english = speaks_english(processor.tokenizer.get_vocab())
    asked = [english_question(case.question.text) if english else case.question.text for case in batch]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": text}] for text in asked],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        # As in training and in sessions, the special tokens are those that the template writes.
        processor_kwargs={"padding": True, "padding_side": "left", "add_special_tokens": False},
    ).to(model.device)
    output = model.generate(
        **inputs,
        frames=streams,
        start_time=batch[0].ask_time,
        tokens_per_second=tokens_per_second,
        max_new_tokens=max(len(case.word_times) for case in batch),
        do_sample=False,
        return_dict_in_generate=True,
    )
    new = output.sequences[:, inputs["input_ids"].shape[1] :]
    seen = output.token_times - output.frame_age
    answers = []
    for case, tokens, *times in zip(batch, new.tolist(), output.token_times.tolist(), seen.tolist(), strict=True):
        words = spoken_words(processor.tokenizer, tokens, *times)
        if english:
            words = [word._replace(text=streamworld_word(word.text, case.world.slots)) for word in words]
        answers.append([{"word": word.text, "time": word.time, "frame_age": word.frame_age} for word in words])
    return answers


def _report(rows: dict[str, list[dict]], changes: dict[str, list[dict]]) -> dict[str, Any]:
    pooled = {viewer: summarise(rows[viewer], changes[viewer]) for viewer in VIEWERS}
    kinds = sorted({row["kind"] for viewer in VIEWERS for row in rows[viewer]})

    def chance(kind: str) -> float:
        return 1 / len(VALUES[kind])

    def of_kind(viewer: str, kind: str) -> float | None:
        return pooled[viewer]["by_kind"].get(kind, {}).get("accuracy")

    words = rows["fresh"]
    return {
        "state_accuracy": {
            **{viewer: pooled[viewer]["accuracy"] for viewer in VIEWERS},
            "oracle": pooled["fresh"]["oracle"],
            "chance": sum(chance(row["kind"]) for row in words) / max(len(words), 1),
        },
        "by_kind": {
            kind: {
                **{viewer: of_kind(viewer, kind) for viewer in VIEWERS},
                "chance": chance(kind),
                "n": pooled["fresh"]["by_kind"].get(kind, {}).get("n", 0),
            }
            for kind in kinds
        },
        "moved": {viewer: pooled[viewer]["moved"] for viewer in VIEWERS},
        "unmoved": {viewer: pooled[viewer]["unmoved"] for viewer in VIEWERS},
        "in_heldout_combo": {viewer: pooled[viewer]["in_heldout_combo"] for viewer in VIEWERS},
        "changes": {viewer: pooled[viewer]["changes"] for viewer in VIEWERS},
        "n": pooled["fresh"]["n"],
        "rows": [{"viewer": viewer, **row} for viewer in VIEWERS for row in rows[viewer]],
    }
