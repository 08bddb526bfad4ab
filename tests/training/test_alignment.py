"""A vision tower learns to name frames in the words of a text model, which stays as it is."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModel, PreTrainedTokenizerFast

from streamchat_hf import StreamChatProcessor
from streamchat_hf.data.streamworld_dataset import TARGET_SLOTS, StreamWorldCollator, StreamWorldDataset
from streamchat_hf.data.streamworld_dialogue import VALUES, build_tokenizer
from streamchat_hf.data.streamworld_english import english_answer
from streamchat_hf.training.alignment import MIX, NamedFrames, english_tokens, frozen_words, load_recipe, train
from training_runs import bpe_tokenizer, small_model

ROOT = Path(__file__).parents[2]
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
    with pytest.raises(ValueError, match="to this tokenizer the words 'circle' and 'cross' begin alike, with ' c'"):
        english_tokens(bpe_tokenizer())


def test_a_space_may_be_a_token_of_its_own(tokenizer):
    words = {word: i for i, word in enumerate(["a", "\u2581", *WORDS.split()])}
    plain = Tokenizer(models.WordLevel(words))
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(split=False), pre_tokenizers.Split("\u2581", "isolated")]
    )
    tokens = english_tokens(PreTrainedTokenizerFast(tokenizer_object=plain))
    own = build_tokenizer()
    for slot in TARGET_SLOTS:
        said = [tokens[slot][own.convert_tokens_to_ids(value)] for value in VALUES[slot]]
        assert said == [words[word] for word in english_answer(VALUES[slot])]


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


def write_recipe(folder, tokenizer, **changes):
    """A recipe, and a small model that it begins with."""
    for part in small_model(tokenizer, **changes):
        part.save_pretrained(folder / "model")
    recipe = {"trainer": "alignment", "output_dir": str(folder / "run")}
    recipe |= {"model_name_or_path": str(folder / "model"), "fps": 2.0, "max_frames": 6, "max_steps": 40}
    recipe |= {"per_device_train_batch_size": 8, "learning_rate": 1e-2, "logging_steps": 10}
    recipe |= {"use_cpu": True, "report_to": "none", "disable_tqdm": True}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def test_tower_and_projector_learn_and_the_text_model_stays(tokenizer, tmp_path):
    final = train(write_recipe(tmp_path, tokenizer))
    before, after = (AutoModel.from_pretrained(path).state_dict() for path in (tmp_path / "model", final))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[1] for name in changed} == {"vision_tower", "projector"}
    log = json.loads((final / "training_log.json").read_text())
    assert log["recipe"]["stage"] == "alignment"
    losses = [row["loss"] for row in log["log"] if "loss" in row]
    assert len(losses) == 4 and losses[-1] < 0.9 * losses[0]
    assert StreamChatProcessor.from_pretrained(final).tokenizer.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "-1"], "max_steps has to say how many steps"),
        (["--save_strategy", "steps"], "it keeps no checkpoints and pushes nothing"),
        (["--push_to_hub", "true"], "it keeps no checkpoints and pushes nothing"),
        (["--use_peft", "true"], "leave out use_peft"),
        (["--datasets", "[{name: streamworld}]"], "datasets"),
        (["--no_resume"], "no_resume"),
    ],
)
def test_what_it_does_not_do_is_refused(tokenizer, tmp_path, words, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(write_recipe(tmp_path, tokenizer), words)


def test_visual_tokens_that_are_averages_of_patches_are_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="for a StreamFormer with visual_pooling=1, not 'streamformer' with 2"):
        train(write_recipe(tmp_path, tokenizer, visual_pooling=2))


def test_weights_may_be_bfloat16(tokenizer, tmp_path):
    final = train(write_recipe(tmp_path, tokenizer), ["--dtype", "bfloat16", "--max_steps", "2"])
    assert AutoModel.from_pretrained(final).dtype == torch.bfloat16


@pytest.mark.slow
def test_two_processes_draw_twice_as_many_samples_and_write_once(tokenizer, tmp_path):
    recipe = write_recipe(tmp_path, tokenizer)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "29613", "--config_file"]
    launch += [str(ROOT / "recipes" / "accelerate" / "ddp_cpu.yaml"), "-m", "streamchat_hf.training", str(recipe)]
    words = ["--max_steps", "4", "--logging_steps", "1"]
    done = subprocess.run(
        [*launch, *words], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "run" / "final" / "training_log.json").read_text())["log"]
    one = train(recipe, [*words, "--per_device_train_batch_size", "16", "--output_dir", str(tmp_path / "one")])
    one = json.loads((one / "training_log.json").read_text())["log"]
    assert [row["epoch"] for row in two] == [row["epoch"] for row in one]  # nothing is seen twice
    assert len(two) == 5 and two[-1]["step"] == 4
