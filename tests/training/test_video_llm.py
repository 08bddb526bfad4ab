import json

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel, TrainingArguments
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from trl import ModelConfig

from live_training_runs import TEXT, source
from streamchat_hf import StreamFormerConfig, StreamFormerModel, StreamFormerVideoProcessor
from streamchat_hf.training.video_llm import (
    VideoLLMRecipe,
    as_asked,
    load_parts,
    load_rows,
    load_sources,
    refuse_parts,
)
from videollm_online_helpers import VISION


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="text_config is for a fresh language model"):
        VideoLLMRecipe(text_backbone="a/b", text_config={"model_type": "llama"})
    with pytest.raises(ValueError, match="keep_features is for a frozen vision tower"):
        VideoLLMRecipe(train_vision=True, keep_features=True)
    refuse_parts(VideoLLMRecipe(fps=3.0))
    for named in ({"text_backbone": "a/b"}, {"vision_backbone": "a/b"}, {"model_config": {"threshold": 0.5}}):
        with pytest.raises(ValueError, match="model_name_or_path is a whole model"):
            refuse_parts(VideoLLMRecipe(**named))


def test_fresh_parts_speak_streamworld_and_see_as_the_tiny_checkpoint():
    parts = load_parts(VideoLLMRecipe(text_config=TEXT, fps=4.0))
    assert parts.text.config.vocab_size == len(parts.tokenizer)
    assert parts.text.config.eos_token_id == parts.tokenizer.eos_token_id
    assert parts.video_processor.fps == 4.0 and parts.vision.config.model_type == "streamformer"


KINDS = {
    "clip_vision_model": (CLIPVisionConfig, CLIPVisionModel),
    "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel),
    "streamformer": (StreamFormerConfig, StreamFormerModel),
}


def seen_with(folder, kind):
    """Mean and deviation of the frames of a tower in a folder, which holds what is needed beside it."""
    config, tower = KINDS[kind]
    tower(config(**{name: value for name, value in VISION.items() if name != "model_type"})).save_pretrained(folder)
    parts = load_parts(VideoLLMRecipe(text_config=TEXT, vision_backbone=str(folder)))
    assert parts.vision.config.model_type == kind
    white = parts.video_processor.preprocess_frame(torch.full((3, 32, 32), 255, dtype=torch.uint8))
    mean, std = parts.video_processor.image_mean, parts.video_processor.image_std
    torch.testing.assert_close(white[:, 0, 0], (1 - torch.tensor(mean)) / torch.tensor(std))
    return tuple(mean), tuple(std)


OWN = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
HALF = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("file", "stored"),
    [("preprocessor_config.json", OWN), ("processor_config.json", {"image_processor": OWN}), (None, None)],
    ids=["preprocessor", "nested", "none"],
)
def test_frames_are_normalised_as_the_tower_knows_them(tmp_path, kind, file, stored):
    if file is not None:
        (tmp_path / file).write_text(json.dumps(stored))
        expected = (tuple(OWN["image_mean"]), tuple(OWN["image_std"]))
    elif kind == "clip_vision_model":
        expected = (tuple(OPENAI_CLIP_MEAN), tuple(OPENAI_CLIP_STD))
    else:
        expected = (HALF, HALF)
    assert seen_with(tmp_path, kind) == expected


def test_a_streamformers_own_video_processor_counts(tmp_path):
    StreamFormerVideoProcessor(**OWN).save_pretrained(tmp_path)
    assert seen_with(tmp_path, "streamformer") == (tuple(OWN["image_mean"]), tuple(OWN["image_std"]))


def test_parts_become_what_is_asked_for():
    text = load_parts(VideoLLMRecipe(text_config=TEXT)).text
    same = as_asked(text, ModelConfig(dtype="auto"))
    assert same.dtype == torch.float32
    asked = as_asked(text, ModelConfig(dtype="bfloat16", attn_implementation="eager"))
    assert asked.dtype == torch.bfloat16 and asked.config._attn_implementation == "eager"


def arguments(folder, **changes):
    return TrainingArguments(output_dir=str(folder), use_cpu=True, per_device_train_batch_size=4, **changes)


def test_epochs_become_updates(tmp_path):
    how = arguments(tmp_path, num_train_epochs=2.0, gradient_accumulation_steps=2)
    recipe = VideoLLMRecipe(datasets=[source(20)], eval_datasets=[source(3, seed=1)])
    rows = load_rows(recipe, how, torch.nn.Linear(1, 1))
    assert how.max_steps == 5 and len(rows.order) == 40 and sorted(set(rows.order)) == list(range(20))
    assert len(rows.held_out) == 3 and rows.features is None


def test_rows_are_refused_that_cannot_be_trained_on(tmp_path):
    with pytest.raises(ValueError, match="nothing to train on"):
        load_rows(VideoLLMRecipe(), arguments(tmp_path), None)
    kept = VideoLLMRecipe(datasets=[source(4)], keep_features=True)
    with pytest.raises(ValueError, match="leave out dataloader_num_workers"):
        load_rows(kept, arguments(tmp_path, max_steps=1, dataloader_num_workers=1), None)
    with pytest.raises(ValueError, match="give all sources a positive weight, or none"):
        load_sources([source(4, weight=1.0), source(4)], VideoLLMRecipe())
