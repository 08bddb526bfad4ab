"""Questions about the past: their answers against a second reading of the world, and that nothing gives them away."""

from collections import Counter

import pytest
import torch

from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_questions import (
    OPTIONS,
    QUESTIONS,
    VALUES,
    VIDEO_TOKEN,
    QuestionCollator,
    StreamWorldQuestions,
    chosen_options,
    question_tokenizer,
    true_answer,
)


def samples(kind: str, count: int = 60, **options):
    questions = StreamWorldQuestions(count, kinds=[kind], **options)
    return [questions[i] for i in range(count)]


@pytest.mark.parametrize("kind", [kind for kind in QUESTIONS if kind != "changes"])
def test_what_was_first_is_no_longer_so_and_the_present_is_a_wrong_option(kind):
    slot = kind.removeprefix("first_")
    for sample in samples(kind):
        first, last = (getattr(sample.world.state(sample.frame_times[i]), slot) for i in (0, -1))
        assert sample.options[sample.answer] == first != last
        assert last in sample.options and sample.world.state(sample.frame_times[-1]).present
        if slot == "motion":
            assert all(
                sample.world.motion_visible(time) for time in (*sample.frame_times[1:4], sample.frame_times[-1])
            )
            assert {sample.world.state(time).motion for time in sample.frame_times[:4]} == {first}


def test_changes_are_the_events_of_colour_and_shape_that_the_frames_show():
    for sample in samples("changes"):
        kinds = ("colour", sample.world.kind)
        events = [e for e in sample.world.events if e.kind in kinds and e.time <= sample.frame_times[-1]]
        assert sample.options[sample.answer] == ("one", "two", "three", "four")[len(events) - 1]
        assert sample.world.kind != "count"


@pytest.mark.parametrize("kind", QUESTIONS)
def test_all_answers_and_places_are_equally_frequent(kind):
    many = samples(kind, 400)
    answers = Counter(sample.options[sample.answer] for sample in many)
    assert set(answers) == set(VALUES[kind])
    for counts, choices in ((answers, len(VALUES[kind])), (Counter(sample.answer for sample in many), OPTIONS)):
        expected = len(many) / choices
        assert all(abs(count - expected) < 4 * expected**0.5 for count in counts.values())
    assert all(len(set(sample.options)) == OPTIONS and set(sample.options) <= set(VALUES[kind]) for sample in many)


def test_an_item_depends_on_its_number_alone_and_kinds_take_turns():
    questions, longer = StreamWorldQuestions(8), StreamWorldQuestions(80)
    assert [questions[i] for i in range(8)] == [longer[i] for i in range(8)]
    assert [questions[i].kind for i in range(8)] == [*QUESTIONS, *QUESTIONS]
    assert questions[0] != StreamWorldQuestions(8, seed=1)[0] != StreamWorldQuestions(8, split="seen")[0]
    with pytest.raises(IndexError):
        questions[8]


def test_a_clip_that_does_not_fit_a_question_has_no_answer():
    times = [i / 2 for i in range(16)]
    worlds = [World.sample(seed, duration=8.0) for seed in range(300)]
    for world in worlds:
        answers = {kind: true_answer(kind, world, times) for kind in QUESTIONS}
        if not (world.state(0.0).present and world.state(7.5).present):
            assert set(answers.values()) == {None}
        if world.kind != "shape":
            assert answers["first_shape"] is None
        if world.kind == "count":
            assert answers["changes"] is None and answers["first_motion"] is None
        assert all(answer is None or answer in VALUES[kind] for kind, answer in answers.items())
        # What is true of the first two frames has not changed in them.
        assert true_answer("first_colour", world, times[:1]) is None
    assert any(true_answer("first_colour", world, times) for world in worlds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["last_colour"]}, r"unknown kinds \['last_colour'\]"),
        ({"kinds": []}, "expected some of"),
        ({"fps": 1.0}, "at least 2 per second"),
        ({"num_frames": 9}, "for 5 seconds"),
    ],
)
def test_what_cannot_be_asked_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StreamWorldQuestions(4, **options)


@pytest.mark.parametrize("video_tokens", [0, 6])
def test_a_batch_holds_question_answer_and_end(video_tokens):
    tokenizer = question_tokenizer()
    questions = StreamWorldQuestions(8)
    rows = [questions[i] for i in range(8)]
    batch = QuestionCollator(tokenizer, video_tokens, size=16)(rows)
    assert batch["pixel_values_videos"].shape == (8, 16, 3, 16, 16)
    assert batch["pixel_values_videos"].min() >= -1 and batch["pixel_values_videos"].max() <= 1
    assert tokenizer.unk_token_id not in batch["input_ids"]
    for i, sample in enumerate(rows):
        length = int(batch["attention_mask"][i].sum())
        words = tokenizer.convert_ids_to_tokens(batch["input_ids"][i, :length].tolist())
        seen = [VIDEO_TOKEN] * video_tokens
        said = sample.options[sample.answer]
        assert words == ["<user>", *seen, *sample.text.split(), "<assistant>", said, "<eos>"]
        labels = batch["labels"][i].tolist()
        assert labels[: length - 2] == [-100] * (length - 2) and set(labels[length:]) <= {-100}
        assert tokenizer.convert_ids_to_tokens(labels[length - 2 : length]) == [said, "<eos>"]
        assert tokenizer.convert_ids_to_tokens(QuestionCollator(tokenizer).option_ids(sample)) == list(sample.options)


def test_the_choice_is_the_likeliest_option_where_the_answer_begins():
    tokenizer = question_tokenizer()
    questions, collate = StreamWorldQuestions(8), QuestionCollator(question_tokenizer(), size=16)
    rows = [questions[i] for i in range(8)]
    batch = collate(rows)
    options = torch.tensor([collate.option_ids(row) for row in rows])
    logits = torch.randn(8, batch["input_ids"].shape[1], len(tokenizer))
    chosen = chosen_options(logits, batch["labels"], options)
    for i, row in enumerate(rows):
        scores = logits[i, len(collate.prompt(row.text)) - 1]
        assert int(chosen[i]) == max(range(OPTIONS), key=lambda k: float(scores[options[i, k]]))
    logits.scatter_(2, batch["input_ids"].roll(-1, 1)[..., None], 99.0)  # a model that knows every next word
    assert chosen_options(logits, batch["labels"], options).tolist() == [row.answer for row in rows]
