"""A vision tower learns to name frames in the words of a text model, which stays as it is."""

import json

import pytest
import torch
import yaml
from transformers import AutoModel

from streamchat_hf import StreamChatProcessor
from streamchat_hf.data.streamworld_dataset import TARGET_SLOTS, StreamWorldCollator, StreamWorldDataset
from streamchat_hf.data.streamworld_dialogue import VALUES, build_tokenizer
from streamchat_hf.data.streamworld_english import english_answer
from streamchat_hf.training.alignment import MIX, NamedFrames, english_tokens, frozen_words, train
from training_runs import bpe_tokenizer, small_model

WORDS = " ".join(word for slot in TARGET_SLOTS for word in english_answer(VALUES[slot]))


@pytest.fixture(scope="module")
def tokenizer():
    """A tokenizer to which each of the words is one token."""
    return bpe_tokenizer(prose=f" {WORDS} {WORDS}", size=1000)


def test_a_value_is_the_first_token_of_its_english_word(tokenizer):
    own, tokens = build_tokenizer(), english_tokens(tokenizer)
    for slot, values in VALUES.items():
        if slot in TARGET_SLOTS:
            said = [tokenizer.decode([tokens[slot][own.convert_tokens_to_ids(value)]]) for value in values]
            assert said == [f" {word}" for word in english_answer(values)]
    assert tokens["digit"][own.convert_tokens_to_ids("3")] == tokens["count"][own.convert_tokens_to_ids("three")]


def test_words_that_begin_alike_are_refused():
    with pytest.raises(ValueError, match="two of the words red, .* begin alike"):
        english_tokens(bpe_tokenizer())


def test_frames_are_named_as_the_collator_names_them(tokenizer):
    samples, own, tokens = StreamWorldDataset(6, mix=MIX, num_frames=5), build_tokenizer(), english_tokens(tokenizer)
    batch = NamedFrames(samples, 16, tokens)(range(6))
    plain = StreamWorldCollator(size=16)([samples[i] for i in range(6)])
    assert torch.equal(batch["pixel_values_videos"], plain["pixel_values_videos"])
    shown = 0
    for slot in TARGET_SLOTS:
        pairs = zip(*(part["frame_targets"][slot].flatten().tolist() for part in (batch, plain)), strict=True)
        for english, word in pairs:
            assert (english == -100) == (word == -100)
            if word != -100:
                value = own.convert_ids_to_tokens(word)
                assert tokenizer.decode([english]) == f" {english_answer([value])[0]}"
                shown += 1
    assert shown > 50


def test_words_have_a_length_at_which_they_are_told_apart(tokenizer):
    model, _ = small_model(tokenizer)
    words, frozen = model.get_input_embeddings().weight, frozen_words(model)
    torch.testing.assert_close(frozen.weight / frozen.weight[0, 0], (words / words[0, 0]).detach())
    assert float(frozen.weight.norm(dim=-1).mean()) == pytest.approx(4.0) and not frozen.weight.requires_grad


def test_tower_and_projector_learn_and_the_text_model_stays(tokenizer, tmp_path):
    model, processor = small_model(tokenizer)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    recipe = {"trainer": "alignment", "stage": "alignment", "output_dir": str(tmp_path / "run")}
    recipe |= {"model_name_or_path": str(tmp_path / "model"), "fps": 2.0, "max_frames": 6, "max_steps": 40}
    recipe |= {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 10, "save_strategy": "no"}
    recipe |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(ValueError, match="max_steps"):
        train(tmp_path / "recipe.yaml", ["--max_steps", "-1"])
    final = train(tmp_path / "recipe.yaml")
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (tmp_path / "model", final))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"vision_tower", "projector"}
    log = json.loads((final / "training_log.json").read_text())["log"]
    losses = [row["loss"] for row in log if "loss" in row]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    assert StreamChatProcessor.from_pretrained(final).tokenizer.get_vocab() == tokenizer.get_vocab()
