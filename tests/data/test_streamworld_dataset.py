from collections import Counter

import pytest
import torch

from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_dataset import (
    PADDED_FRAME_TIME,
    TARGET_SLOTS,
    StreamWorldCollator,
    StreamWorldDataset,
    StreamWorldMix,
    at_the_end,
)
from streamchat_hf.data.streamworld_dialogue import KIND_OF, questions
from streamchat_hf.data.streamworld_render import render


@pytest.fixture(scope="module")
def samples():
    dataset = StreamWorldDataset(300)
    return [dataset[i] for i in range(300)]


@pytest.fixture(scope="module")
def collator():
    return StreamWorldCollator()


@pytest.fixture(scope="module")
def batch(samples, collator):
    return collator(samples)


def test_an_item_depends_on_the_seed_and_its_index_alone():
    first, second = StreamWorldDataset(10, seed=3), StreamWorldDataset(100, seed=3)
    assert [second[i] for i in reversed(range(10))] == [first[i] for i in reversed(range(10))]
    assert first[0] != first[1]
    assert first[0] != StreamWorldDataset(10, seed=4)[0]
    assert len(first) == 10
    with pytest.raises(IndexError):
        first[10]


def test_the_mix_is_what_is_drawn(samples):
    assert 0.25 < sum(len(sample.turns) == 2 for sample in samples) / 300 < 0.5
    assert 0.1 < sum(len(sample.frame_times) < 20 for sample in samples) / 300 < 0.2
    assert sum("tint0" in s.world.colours or s.world.initial.shape in ("diamond", "ring") for s in samples) / 300 > 0.3
    assert {turn.question.kind for sample in samples for turn in sample.turns} == {"tell", "watch", "ask"}
    assert {turn.end for sample in samples for turn in sample.turns} == {"open", "spoken", "forced"}
    mix = StreamWorldMix(tell=0, ask=0, watch=1, one_attribute=0, two_turns=0, stalled=0)
    only = StreamWorldDataset(30, mix=mix)
    assert {
        (len(s.turns), s.turns[0].question.kind, len(s.frame_times)) for s in map(only.__getitem__, range(30))
    } == {(1, "watch", 20)}


def test_what_has_no_name_is_not_asked_for(samples):
    for sample in samples:
        for turn in sample.turns:
            if "tint0" in sample.world.colours:
                assert turn.question.attr == sample.world.kind
            elif sample.world.initial.shape in ("diamond", "ring"):
                assert turn.question.attr == "colour"


def test_training_frames_hold_no_heldout_combination(samples):
    assert not any(s.world.state(time).is_heldout for s in samples for time in s.frame_times)


def test_the_ids_read_as_the_talk(samples, batch, collator):
    for i, sample in enumerate(samples):
        expected = []
        for turn in sample.turns:
            expected += ["<user>", *turn.question.text.split(), "<assistant>", *(word.text for word in turn.words)]
            expected += ["<eos>"] * (turn.end != "open")
        n = int(batch["attention_mask"][i].sum())
        assert collator.tokenizer.convert_ids_to_tokens(batch["input_ids"][i, :n].tolist()) == expected
        assert (batch["input_ids"][i, n:] == collator.tokenizer.pad_token_id).all()
        assert batch["attention_mask"][i, :n].all()


def test_labels_are_the_spoken_words(samples, batch, collator):
    for i, sample in enumerate(samples):
        labelled = batch["labels"][i] != -100
        assert torch.equal(batch["labels"][i][labelled], batch["input_ids"][i][labelled])
        expected = []
        for turn in sample.turns:
            expected += [word.text for word in turn.words] + ["<eos>"] * (turn.end == "spoken")
        assert collator.tokenizer.convert_ids_to_tokens(batch["labels"][i][labelled].tolist()) == expected


def test_times_never_decrease_and_are_those_of_the_talk(samples, batch):
    assert (batch["token_times"].diff(dim=1) >= 0).all()
    for i, sample in enumerate(samples):
        times = []
        for turn in sample.turns:
            times += [turn.ask_time] * (len(turn.question.text.split()) + 2) + [word.time for word in turn.words]
            times += [turn.words[-1].time] * (turn.end != "open")
            assert turn.words[0].time == turn.ask_time
        n = int(batch["attention_mask"][i].sum())
        assert batch["token_times"][i, :n].tolist() == [round(1000 * time) for time in times]


def test_turns_start_at_their_first_prompt_token(samples, batch, collator):
    user = collator.tokenizer.convert_tokens_to_ids("<user>")
    assert torch.equal(batch["turn_starts"], batch["input_ids"] == user)
    assert batch["turn_starts"].sum(1).tolist() == [len(sample.turns) for sample in samples]


def test_words_tell_the_newest_visible_frame(samples, batch, collator):
    tokens = collator.tokenizer.convert_ids_to_tokens(range(len(collator.tokenizer)))
    checked = 0
    for i, sample in enumerate(samples):
        for j in (batch["labels"][i] != -100).nonzero().flatten().tolist():
            visible = batch["frame_times"][i] <= batch["token_times"][i, j]
            state = sample.world.state(batch["frame_times"][i][visible].max().item() / 1000)
            word = tokens[batch["input_ids"][i, j]]
            kind = KIND_OF.get(word)
            if kind == "presence":
                assert state.present == (word == "back")
            elif kind is not None:
                assert state.present and getattr(state, kind) == word
                checked += 1
    assert checked > 1000


def test_frames_are_rendered_and_padded(samples, batch):
    for i in range(0, 300, 10):
        n = len(samples[i].frame_times)
        assert batch["frame_times"][i, :n].tolist() == [500 * j for j in range(n)]
        assert (batch["frame_times"][i, n:] == PADDED_FRAME_TIME).all()
        expected = render([samples[i].world], [samples[i].frame_times])[0].float() / 255
        assert torch.allclose(batch["pixel_values_videos"][i, :n], (expected - 0.5) / 0.5, atol=1e-6)


def test_frame_targets_are_what_the_frame_shows(samples, batch, collator):
    tokens = collator.tokenizer.convert_ids_to_tokens(range(len(collator.tokenizer)))
    found = dict.fromkeys(TARGET_SLOTS, 0)
    for i, sample in enumerate(samples):
        for j, time in enumerate(sample.frame_times):
            state = sample.world.state(time)
            for slot, target in batch["frame_targets"].items():
                if target[i, j] != -100:
                    assert state.present and tokens[target[i, j]] == getattr(state, slot)
                    found[slot] += 1
                elif slot in sample.world.slots and slot != "motion" and state.present:
                    assert getattr(state, slot) not in tokens
            centre = batch["centres"][i, j]
            if state.present and sample.world.kind != "count":
                assert centre.tolist() == pytest.approx(sample.world.position(time))
            else:
                assert centre.isnan().all()
        padding = slice(len(sample.frame_times), None)
        assert all((target[i, padding] == -100).all() for target in batch["frame_targets"].values())
    assert min(found.values()) > 200


def test_a_motion_has_no_target_before_it_shows(collator):
    mix = StreamWorldMix(one_attribute=0)
    samples = [StreamWorldDataset(40, mix=mix)[i] for i in range(40)]
    motion = collator(samples)["frame_targets"]["motion"]
    assert (motion[:, 0] == -100).all()
    for i, sample in enumerate(samples):
        for event in sample.world.events:
            if event.new == "back" and event.time in sample.frame_times:
                assert motion[i, round(2 * event.time)] == -100


def test_other_frame_rates_and_splits():
    named = StreamWorldMix(one_attribute=0.0)
    dataset = StreamWorldDataset(5, split="heldout", mix=named, num_frames=8, fps=4.0)
    sample = dataset[0]
    assert sample.world.split == "heldout" and sample.world.duration == 2.0
    assert isinstance(sample.world, World) and sample.turns[0].question in questions(
        sample.turns[0].question.kind, sample.turns[0].question.attr
    )


def test_nothing_without_a_name_is_held_out(collator):
    with pytest.raises(ValueError, match="held-out worlds have names for everything: one_attribute=0.4 must be 0"):
        StreamWorldDataset(5, split="heldout")
    samples = StreamWorldDataset(100, split="heldout", mix=StreamWorldMix(one_attribute=0.0))
    assert (collator(list(samples))["labels"] >= 0).any(1).all()


def test_at_the_end_the_same_is_asked_and_nothing_moves(samples):
    kept = 0
    for sample in samples:
        still = at_the_end(sample)
        end = sample.world.state(sample.frame_times[-1])
        assert (still.world, still.frame_times) == (sample.world, sample.frame_times)
        asked = [turn.question for turn in sample.turns]
        assert [turn.question for turn in still.turns] == [q for q in asked if q in {t.question for t in still.turns}]
        for turn in still.turns:
            kept += 1
            assert {turn.ask_time, *(word.time for word in turn.words)} == {sample.frame_times[-1]}
            told = [word for word in turn.words if word.kind not in (None, "change")]
            assert all(word.text == end.tell(word.kind) for word in told if word.kind != "presence")
            assert all(word.text == "nothing" and not end.present for word in told if word.kind == "presence")
    assert kept > 0.6 * sum(len(sample.turns) for sample in samples)


def test_scenes_are_kept_as_often_as_the_mix_says():
    def drawn(**scenes):
        dataset = StreamWorldDataset(200, mix=StreamWorldMix(scenes=scenes))
        return Counter(dataset[i].world.kind for i in range(200))

    plain, counting = drawn(), drawn(shape=0.2, digit=0.2)
    assert plain["count"] < 50 and 70 < counting["count"] < 120
    assert {"shape", "digit"} < set(counting)


@pytest.mark.parametrize("steady", [0.0, 1.0])
def test_several_objects_keep_their_colour_if_the_mix_says_so(steady):
    dataset = StreamWorldDataset(60, mix=StreamWorldMix(steady=steady))
    worlds = [world for world in (dataset[i].world for i in range(60)) if world.kind == "count"]
    assert any(event.kind == "count" for world in worlds for event in world.events)
    assert any(event.kind == "colour" for world in worlds for event in world.events) == (steady == 0)


def test_what_has_no_name_is_watched_and_its_words_are_not_learned(collator):
    mix = StreamWorldMix(one_attribute=1, unnamed_watch=1, two_turns=0)
    samples = [StreamWorldDataset(60, mix=mix)[i] for i in range(60)]
    batch, words = collator(samples), collator.tokenizer.convert_ids_to_tokens
    replaced = 0
    for sample, ids, labels in zip(samples, batch["input_ids"], batch["labels"], strict=True):
        [turn] = sample.turns
        assert turn.question.kind == "watch"
        begin = len(words(ids)[: words(ids).index("<assistant>")]) + 1
        spoken = words(ids[begin : begin + len(turn.words)])
        for meant, said, label in zip(turn.words, spoken, labels[begin:].tolist(), strict=False):
            unnamed = meant.text.startswith("tint") or meant.text in ("diamond", "ring")
            assert label == (-100 if unnamed else collator.tokenizer.convert_tokens_to_ids(meant.text))
            assert KIND_OF[said] in ("colour", "shape") if unnamed else said == meant.text
            replaced += unnamed
        named = {meant.text: said for meant, said in zip(turn.words, spoken, strict=True)}
        assert all(named[meant.text] == said for meant, said in zip(turn.words, spoken, strict=True))
    assert replaced > 60
