"""A stream without end: what a model says after 2000 silent frames is as true as what it says after 20."""

import itertools

import pytest

from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor, StreamingSession, tiny_checkpoint
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.evaluation.streamworld_cases import streamworld_cases
from streamchat_hf.evaluation.streamworld_score import score_answer
from streamchat_hf.streaming.events import ResponseEnded

FPS, CLIPS = 2, 16


def pictures(world, count):
    """The first frames of a world as `(height, width, 3)` arrays, rendered a few at a time."""
    for begin in range(0, count, 200):
        times = [i / FPS for i in range(begin, min(begin + 200, count))]
        yield from render([world], [times], size=96)[0].permute(0, 2, 3, 1).contiguous().numpy()


def answer_after(model, processor, case, silent_frames):
    """The case's question, after another world has been watched in silence; the words with times of the case."""
    before = World.sample(7, "train", duration=silent_frames / FPS)
    clip = pictures(case.world, round(case.world.duration * FPS))
    images = itertools.chain(pictures(before, silent_frames), clip)
    frames = processor.stream(((i / FPS, image) for i, image in enumerate(images)))
    offset = silent_frames / FPS
    with StreamingSession(
        model, processor, frames, tokens_per_second=2, max_new_tokens=len(case.word_times), do_sample=False
    ) as session:
        session.ask(case.question.text, at=offset + case.ask_time)
        answer = next(event.answer for event in session if isinstance(event, ResponseEnded))
        assert session.statistics().frames_seen > silent_frames
    return [(word.text, word.time - offset) for word in answer.words]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_accuracy_after_2000_silent_frames():
    model = StreamChatForConditionalGeneration.from_pretrained(tiny_checkpoint()).eval()
    processor = StreamChatProcessor.from_pretrained(tiny_checkpoint())
    cases = list(streamworld_cases(CLIPS, "heldout", seed=11))
    accuracy = {}
    for silent_frames in (20, 2000):
        rows = []
        for case in cases:
            spoken = answer_after(model, processor, case, silent_frames)
            rows += score_answer(case.world, case.question, case.ask_time, spoken)
        assert len(rows) > 150
        accuracy[silent_frames] = sum(row["correct"] for row in rows) / len(rows)
    print(f"state words true when spoken, after so many silent frames: {accuracy}; {len(rows)} words")
    assert accuracy[20] >= 0.85 and abs(accuracy[20] - accuracy[2000]) <= 0.03, accuracy
