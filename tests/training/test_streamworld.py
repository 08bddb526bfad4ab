"""The StreamWorld recipe: what ships is what it says, each stage trains its part, runs resume where they stopped."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel, AutoProcessor, TrainerCallback

from streamchat_hf.training import streamworld
from streamchat_hf.training.streamworld import Recipe, build_model, train

SHIPPED = Path(__file__).parents[2] / "recipes" / "streamchat" / "streamworld.yaml"


@pytest.fixture
def small(tmp_path) -> Path:
    """The shipped recipe at a size that trains in seconds."""
    recipe = yaml.safe_load(SHIPPED.read_text())
    recipe["threads"] = 0
    vision, text = recipe["model"]["vision_config"], recipe["model"]["text_config"]
    vision |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"hidden_size": 24, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    for stage in ("align", "refine", "talk", "practise", "untie", "settle"):
        recipe[stage]["frames"] = 8
        recipe[stage]["trainer"] |= {"max_steps": 4, "per_device_train_batch_size": 2, "save_steps": 2}
        recipe[stage]["trainer"]["warmup_steps"] = 1
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def weights(folder):
    return AutoModel.from_pretrained(folder).state_dict()


def test_shipped_recipe_builds_the_shipped_architecture():
    model, processor = build_model(Recipe.load(SHIPPED))
    size = sum(p.numel() * 2 for p in model.parameters())
    assert size < 8e6  # stored as bfloat16
    assert len(processor.tokenizer) == model.config.text_config.vocab_size
    assert model.config.vision_config.image_size == processor.video_processor.size["height"]
    assert model.config.visual_window == model.config.vision_config.sliding_window


def test_unknown_fields_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("seed: 1\nmodel: {}\nalign: {}\nrefine: {}\ntalk: {}\npractise: {}\nspeed: 3\n")
    with pytest.raises(TypeError, match="speed"):
        Recipe.load(path)


def test_each_stage_trains_its_own_part(small, tmp_path):
    start = {name: p.clone() for name, p in build_model(Recipe.load(small))[0].state_dict().items()}
    final = train(small, tmp_path / "run")
    aligned, talked = weights(tmp_path / "run" / "refine" / "done"), weights(final)

    def changed(before, after):
        return {name for name in before if not torch.equal(before[name], after[name])}

    first, second = changed(start, aligned), changed(aligned, talked)
    tower = {name for name in start if name.startswith(("model.vision_tower", "model.projector"))}
    words = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert tower <= first <= tower | words
    assert not second & tower and {"model.language_model.layers.0.cross_attn_gate", *words} <= second
    log = json.loads((final / "training_log.json").read_text())
    assert log["recipe"]["seed"] == yaml.safe_load(small.read_text())["seed"] and log["log"]["talk"]
    assert AutoProcessor.from_pretrained(final).video_processor.fps == 2.0


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(small, tmp_path, monkeypatch):
    whole = train(small, tmp_path / "whole")

    class Interrupted(Exception):
        pass

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 2:
                raise Interrupted

    for trainer in ("GateTrainer", "SFTTrainer"):
        real = getattr(streamworld, trainer)
        monkeypatch.setattr(streamworld, trainer, lambda *a, real=real, **k: real(*a, callbacks=[Stop()], **k))
        with pytest.raises(Interrupted):
            train(small, tmp_path / "resumed")
        monkeypatch.setattr(streamworld, trainer, real)
    resumed = train(small, tmp_path / "resumed")
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, atol=1e-6, rtol=1e-5, msg=name)
