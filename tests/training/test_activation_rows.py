"""Labels of frames against the rule written out, rows that are cut at their questions, and batches of both."""

import pytest
import torch

from activation_helpers import world_model, world_processor
from streamchat_hf.data.live_conversation import LiveTurn, lay_out
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.data.proactive_streamworld import ProactiveStreamWorld
from streamchat_hf.training.activation_rows import (
    ActivationCollator,
    ActivationRows,
    activation_labels,
    asked_parts,
)
from streamchat_hf.training.live_collator import LiveCollator
from streamchat_hf.training.live_rows import FrozenFeatures

TIMES = [k / 2 for k in range(20)]


def user(seen, text="what colour is it ?"):
    return LiveTurn("user", text, seen)


def answer(seen, text="red"):
    return LiveTurn("assistant", text, seen)


@pytest.fixture(scope="module")
def processor():
    return world_processor()


def test_the_last_share_of_each_segment_is_positive():
    conversation = lay_out([user(0), answer(8), answer(9), answer(14)], TIMES)
    zero = [0] * 7 + [1] + [1] + [0] * 4 + [1] + [0] * 5 + [-100]
    assert activation_labels(conversation, 0.0) == zero
    half = [0] * 4 + [1] * 4 + [1] + [0] * 3 + [1] * 2 + [0] * 5 + [-100]
    assert activation_labels(conversation, 0.5) == half
    assert activation_labels(conversation, 0.4) == [0] * 5 + [1] * 3 + [1] + [0] * 3 + [1] * 2 + [0] * 5 + [-100]


def test_nothing_is_learned_where_the_dialogue_says_so():
    conversation = lay_out([user(0), answer(0), answer(3)], TIMES[:5])
    assert activation_labels(conversation, 0.0) == [0, 0, 1, 0, -100]
    conversation[2]["learn"] = 1
    assert activation_labels(conversation, 0.0) == [0, -100, -100, 0, -100]


def test_a_dialogue_is_cut_at_its_questions():
    conversation = lay_out([user(3), answer(3), answer(6), user(9, "what shape is it ?"), answer(12)], TIMES)
    first, second = asked_parts([{"role": "system", "content": "look ."}, *conversation])
    assert (first.first, first.end, second.first, second.end) == (3, 9, 9, 20)
    assert [message["role"] for message in first.conversation] == [
        *("user", "assistant", "stream"),
        *("assistant", "stream"),
    ]
    assert first.conversation[0]["content"] == "what colour is it ?"
    assert len(activation_labels(first.conversation, 0.5)) == 6
    assert activation_labels(first.conversation, 0.0) == [0, 0, 1, 0, 0, -100]  # nobody can foresee a question
    assert asked_parts([{"role": "stream", "num_frames": 3}]) == []


def test_a_batch_fits_the_model(processor):
    model = world_model(processor)
    rows = [ProactiveStreamWorld(4, num_frames=10)[0], ProactiveStreamWorld(4, num_frames=8)[1]]
    batch = ActivationCollator(processor)(rows)
    assert batch["labels"].shape == (2, 10) and batch["skipped"] == []
    assert (batch["labels"][1, 8:] == -100).all()
    names = ("input_ids", "attention_mask", "pixel_values_videos", "frame_mask", "labels")
    output = model(**{name: batch[name] for name in names})
    assert output.logits.shape == (2, 10) and output.loss > 0
    for number, row in enumerate(rows):
        single = ActivationCollator(processor)([row])
        alone = model(**{name: single[name] for name in names}).logits[0]
        torch.testing.assert_close(output.logits[number, : len(alone)], alone, atol=1e-5, rtol=1e-5)


def test_features_stand_for_pixels(processor):
    """Also of a row that is asked late, of which the tower has seen the beginning, and of one without frames."""
    model = world_model(processor)
    features = FrozenFeatures(model)
    rows = [LiveStreamWorld(9, num_frames=10, kinds={"alert": 1.0}, max_queries=1)[i] for i in range(3)]
    plain, kept = ActivationCollator(processor), ActivationCollator(processor, features=features)
    of_pixels, of_features = plain(rows), kept(rows)
    assert of_features["frame_features"].shape == (int(of_pixels["frame_mask"].sum()), 4, 16)
    names = ("input_ids", "attention_mask", "labels")
    assert all(torch.equal(of_pixels[name], of_features[name]) for name in names)
    seen = [
        model(**{name: batch[name] for name in (*names, *more)}).loss
        for batch, more in ((of_pixels, ["pixel_values_videos", "frame_mask"]), (of_features, ["frame_features"]))
    ]
    torch.testing.assert_close(*seen)
    broken = kept([{"conversation": [{"role": "user", "content": "no"}, {"role": "user"}], "frame_times": []}])
    assert len(broken["skipped"]) == 1 and broken["frame_features"].shape == (0, 4, 16)
    assert broken["labels"].shape == (1, 0)
    assert model(**{name: broken[name] for name in (*names, "frame_features")}).loss == 0


def test_what_was_shown_before_the_question_is_left_out(processor):
    alerts = LiveStreamWorld(9, num_frames=10, kinds={"alert": 1.0}, max_queries=1)
    for row in (alerts[i] for i in range(9)):
        [part] = asked_parts(row["conversation"])
        sample = ActivationCollator(processor).sample(dict(row))
        assert torch.equal(sample.pixels, LiveCollator(processor).sample(dict(row)).pixels[part.first :])
        assert len(sample.labels) == 10 - part.first == sample.ids.count(processor.token_ids()["v_placeholder_id"]) / 5


def test_a_row_in_which_nothing_is_asked_is_named(processor):
    row = {**ProactiveStreamWorld(1, num_frames=8)[0]}
    row["conversation"] = [{"role": "stream", "num_frames": 8, "learn": 7}]
    assert "nothing is asked in it" in ActivationCollator(processor)([row])["skipped"][0]


def test_what_is_drawn_is_drawn_anew_and_always_the_same(processor):
    source = ProactiveStreamWorld(1, num_frames=24)
    rows = ActivationRows([source], [0] * 12, seed=5)
    labels = [tuple(ActivationCollator(processor).sample(rows[i]).labels) for i in range(12)]
    assert len(set(labels)) > 1
    assert labels == [tuple(ActivationCollator(processor).sample(rows[i]).labels) for i in range(12)]
    exact = {tuple(ActivationCollator(processor, positive_share=0).sample(rows[i]).labels) for i in range(12)}
    assert len(exact) == 1


def test_the_system_prompt_is_the_processors(processor):
    row = dict(ProactiveStreamWorld(1, num_frames=8)[0])
    texts = []
    for prompt in ("keep watching .", "nothing"):
        system = {"role": "system", "content": prompt, "num_frames": None}
        row["conversation"] = [system, *row["conversation"][1:]]
        texts.append(ActivationCollator(processor).sample(row).ids)
    assert texts[0] == texts[1]
