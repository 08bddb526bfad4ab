"""The trainer: the paper's loss however a batch is divided, what learns, and a result that loads by itself."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor

import video_files
from live_training_runs import TEXT, log_of, losses, source, trainer_of, write_recipe
from streamchat_hf import VideoLLMOnlineForConditionalGeneration
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.evaluation.videollm_online import dialogue_metrics
from streamchat_hf.evaluation.videollm_online_alerts import alert_metrics
from streamchat_hf.training import live
from streamchat_hf.training.checkpoints import train_from_last
from streamchat_hf.training.live import build_trainer, load_recipe, train
from streamchat_hf.training.live_rows import MethodCollator
from streamchat_hf.training.sft import NonFiniteError

RECIPES = Path(__file__).parents[2] / "recipes" / "videollm_online"


def weights(path):
    return AutoModel.from_pretrained(path, dtype=torch.float32).state_dict()


def test_the_final_folder_is_a_model_and_a_processor_that_watch(tmp_path):
    final = train(
        write_recipe(tmp_path, eval_datasets=[source(3, split="heldout")], eval_strategy="steps", eval_steps=2)
    )
    model, processor = AutoModel.from_pretrained(final).eval(), AutoProcessor.from_pretrained(final)
    assert type(model) is VideoLLMOnlineForConditionalGeneration and final == tmp_path / "recipe" / "final"
    result = alert_metrics(model, processor, [LiveStreamWorld(1, num_frames=8, max_queries=1)[0]], max_new_tokens=3)
    assert len(result["rows"]) == 1
    log = log_of(final)
    assert log["recipe"]["stage"] == "live" and log["recipe"]["method"] == "streaming"
    assert str(tmp_path) not in json.dumps(log)
    measured = [entry for entry in log["log"] if "eval_lm_ppl" in entry]
    assert [entry["step"] for entry in measured] == [2, 4]
    assert {"eval_fluency", "eval_time_diff", "eval_lm_correctness", "eval_missed", "eval_n"} <= set(measured[0])
    assert len(losses(final)) == 4 and not list(final.glob("*.bin"))


def test_the_logged_loss_is_equation_5_of_the_rows(tmp_path):
    """With w other than 1, on pixels and a trainable tower, against the sum written out."""
    recipe = {"stream_loss_weight": 3.0, "keep_features": False, "train_vision": True, "max_steps": 1}
    trainer = trainer_of(tmp_path, **recipe)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    model = trainer.model
    total = count = 0.0
    with torch.no_grad():
        logits = model(**{k: v for k, v in batch.items() if k not in ("rows", "skipped", "labels")}).logits
        for ids, targets, scores in zip(batch["input_ids"], batch["labels"], logits.log_softmax(-1), strict=True):
            for token, target, row in zip(ids, targets, scores, strict=True):
                if target != -100:
                    weight = 3.0 if token == model.config.v_placeholder_id else 1.0
                    total, count = total - weight * row[target].item(), count + 1
    assert trainer.train().training_loss == pytest.approx(total / count, rel=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "LoRA"])
def test_accumulated_steps_are_one_large_batch(tmp_path, lora):
    """Four rows at once, and one by one: same loss, same weights after plain gradient descent."""

    def after(name, size, steps):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        changes |= {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
        changes |= {"use_peft": lora, "lora_target_modules": ["all-linear"], "lora_dropout": 0.0}
        trainer = trainer_of(tmp_path, name, **changes)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        loss = trainer.train().training_loss
        return loss, {n: before[n] - p.detach() for n, p in trainer.model.named_parameters() if n in before}

    (loss, whole), (divided_loss, divided) = after("whole", 4, 1), after("divided", 1, 4)
    assert divided_loss == pytest.approx(loss, rel=1e-5)
    assert max(change.abs().max() for change in whole.values()) > 1e-4
    for name, change in whole.items():
        torch.testing.assert_close(divided[name], change, atol=1e-7, rtol=1e-3, msg=name)


def test_features_are_made_once_and_train_the_same(tmp_path):
    kept, fresh = (train(write_recipe(tmp_path, str(keep), keep_features=keep)) for keep in (True, False))
    assert losses(kept) == pytest.approx(losses(fresh), rel=1e-4)
    expected = weights(fresh)
    for name, value in weights(kept).items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=0, msg=name)


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    whole = train(write_recipe(tmp_path, "whole", augmentation=True))
    train(write_recipe(tmp_path, "cut", augmentation=True))
    (tmp_path / "cut" / "checkpoint-4" / "trainer_state.json").write_text("{")  # it broke off while it was written
    resumed = train(write_recipe(tmp_path, "cut", augmentation=True))
    assert losses(resumed) == losses(whole)
    found = weights(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(found[name], value), name
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        train(write_recipe(tmp_path, "cut"), ["--no_resume"])


def test_only_what_shall_learn_changes(tmp_path):
    def changed(name, **changes):
        trainer = trainer_of(tmp_path, name, **changes)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        moved = [n for n, p in trainer.model.named_parameters() if not torch.equal(p.detach(), before[n])]
        return {n.replace("base_model.model.", "").removeprefix("model.").split(".")[0] for n in moved}, moved

    for keep in (True, False):
        assert changed(f"frozen {keep}", keep_features=keep)[0] == {"connector", "language_model", "lm_head"}
    tower, _ = changed("tower", keep_features=False, train_vision=True)
    assert tower == {"vision_tower", "connector", "language_model", "lm_head"}
    recipe, _, arguments = load_recipe(RECIPES / "sft.yaml", ["--use_cpu", "true", "--bf16", "false"])
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": [arguments.lora_target_modules]}
    parts, moved = changed("lora", **lora, lora_modules_to_save=arguments.lora_modules_to_save)
    assert parts == {"connector", "language_model", "lm_head"}
    assert all("lora_" in name or "connector.modules_to_save" in name for name in moved)
    assert sum("lora_B" in name for name in moved) == 7 * TEXT["num_hidden_layers"] + 1
    assert arguments.lora_r == 128 and arguments.lora_alpha == 256 and recipe.stream_loss_weight == 1.0


def test_an_adapter_is_merged_and_kept(tmp_path):
    changes = {"use_peft": True, "lora_r": 4, "lora_modules_to_save": ["connector"]}
    final = train(write_recipe(tmp_path, **changes, lora_target_modules=[".*language_model.*(q|k|v)_proj"]))
    plain = trainer_of(tmp_path, "plain").model.state_dict()
    found = weights(final)
    assert found.keys() == plain.keys()
    assert not torch.equal(found["model.connector.0.weight"], plain["model.connector.0.weight"])
    assert not torch.equal(*(w["model.language_model.layers.0.self_attn.q_proj.weight"] for w in (found, plain)))
    assert (tmp_path / "recipe" / "adapter" / "adapter_model.safetensors").is_file()


ENDS = {"head": ".*v_proj|lm_head$", "embedding": ".*(v_proj|embed_tokens)", "neither": ".*v_proj"}


@pytest.mark.parametrize(
    ("end", "tied"), [("head", True), ("embedding", True), ("neither", True), ("head", False)], ids=str
)
def test_the_final_model_is_the_one_that_was_trained(tmp_path, monkeypatch, end, tied):
    """An adapter of one end of the language model changes that end only, also where both ends are one matrix."""
    before, compared = [], []

    def train_and_keep(trainer):
        state = trainer.model.state_dict()
        before.extend(
            next(v for k, v in state.items() if f"{name}." in k and "lora" not in k).clone()
            for name in ("lm_head", "embed_tokens")
        )
        train_from_last(trainer)
        inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
        inputs = {name: value for name, value in inputs.items() if name not in ("rows", "skipped", "labels")}
        with torch.no_grad():
            compared.extend([inputs, trainer.model.eval()(**inputs).logits])

    monkeypatch.setattr(live, "train_from_last", train_and_keep)
    changes = {"use_peft": True, "lora_target_modules": [ENDS[end]], "learning_rate": 0.05, "max_steps": 2}
    changes |= {"per_device_train_batch_size": 1, "save_strategy": "no"}
    final = train(write_recipe(tmp_path, **changes, text_config=TEXT | {"tie_word_embeddings": tied}))
    model = AutoModel.from_pretrained(final).eval()
    inputs, trained = compared
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, trained, atol=1e-4, rtol=1e-4)
    after = model.lm_head.weight, model.get_input_embeddings().weight
    assert (after[0] is after[1]) == model.config.tie_word_embeddings == (tied and end == "neither")
    kept = [torch.equal(*weights) for weights in zip(after, before, strict=True)]
    assert kept == [end != "head", end != "embedding"]


def test_a_run_with_adapters_measures_what_the_merged_model_does(tmp_path):
    changes = {"use_peft": True, "lora_target_modules": ["all-linear"], "max_steps": 2}
    held_out = {"eval_datasets": [source(2, split="heldout")], "eval_strategy": "steps", "eval_steps": 2}
    trainer = trainer_of(tmp_path, **changes, **held_out)
    trainer.train()
    measured = trainer.evaluate()
    assert trainer.model.training  # as it was
    merged = trainer.model.merge_and_unload()
    expected = dialogue_metrics(merged, trainer.processing_class, trainer.eval_rows)
    assert measured["eval_lm_ppl"] == pytest.approx(expected["lm_ppl"], rel=1e-4) and measured["eval_n"] == 2
    assert [entry["step"] for entry in trainer.state.log_history if "eval_lm_ppl" in entry] == [2, 2]


def test_a_video_is_trained_on(tmp_path):
    """Pixels of a file, a tower that learns, a row that cannot be read."""
    clip = video_files.write_video(tmp_path / "clip.mp4", range(0, 4000, 250))
    narrations = {"clip": {"a": [{"time": t, "text": f"it goes left {t}"} for t in (0.5, 2.0, 3.0)]}}
    (tmp_path / "narrations.json").write_text(json.dumps(narrations))
    rows = {"name": "refined_narrations", "path": str(tmp_path / "narrations.json"), "folder": str(clip.parent)}
    final = train(write_recipe(tmp_path, datasets=[rows], keep_features=False, train_vision=True, max_steps=2))
    assert len(losses(final)) == 2 and all(math.isfinite(loss) for loss in losses(final))


def test_rows_that_cannot_be_used_are_named_and_a_run_without_any_stops(tmp_path, caplog, monkeypatch):
    sample = MethodCollator.sample
    broken = []

    def sometimes(self, row):
        if row["world"].seed % 2 == 0 or broken:
            raise ValueError("no such video")
        return sample(self, row)

    monkeypatch.setattr(MethodCollator, "sample", sometimes)
    final = train(write_recipe(tmp_path))
    skipped = log_of(final)["log"][-2]["skipped_rows"]
    assert skipped == caplog.text.count("skipped: StreamWorld train") > 0
    broken.append(True)
    with pytest.raises(
        RuntimeError, match=r"no row of 3 updates up to step 3 could be used: StreamWorld.*no such video"
    ):
        train(write_recipe(tmp_path, "none"))


def test_a_batch_without_a_usable_row_is_a_loss_of_zero(tmp_path, monkeypatch):
    sample, asked = MethodCollator.sample, []

    def second_batch_fails(self, row):
        asked.append(row)
        if 4 < len(asked) <= 8:
            raise ValueError("no such video")
        return sample(self, row)

    monkeypatch.setattr(MethodCollator, "sample", second_batch_fails)
    final = train(write_recipe(tmp_path))
    first, second, *rest = losses(final)
    assert second == 0 and all(math.isfinite(loss) and loss > 0 for loss in (first, *rest))
    assert math.isfinite(log_of(final)["log"][-1]["train_loss"])


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tmp_path, monkeypatch):
    trainer = trainer_of(tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    forward = type(trainer.model).forward

    def poisoned(self, *args, **kwargs):
        output = forward(self, *args, **kwargs)
        output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(type(trainer.model), "forward", poisoned)
    with pytest.raises(NonFiniteError, match="step 1 is not finite; the rows of this process are StreamWorld train"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())


def test_parts_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="text_config is for a fresh language model"):
        trainer_of(tmp_path, text_backbone="somewhere")
    with pytest.raises(ValueError, match="keep_features is for a frozen vision tower"):
        trainer_of(tmp_path, train_vision=True)
    with pytest.raises(ValueError, match="model_name_or_path is a whole model"):
        trainer_of(tmp_path, model_name_or_path="somewhere")
    with pytest.raises(ValueError, match="leave out dataloader_num_workers"):
        trainer_of(tmp_path, dataloader_num_workers=1)
    with pytest.raises(ValueError, match="all sources a positive weight, or none"):
        trainer_of(tmp_path, datasets=[source(weight=1.0), source()])
    with pytest.raises(ValueError, match="give at least one source"):
        trainer_of(tmp_path, datasets=[])


def test_a_model_goes_on_from_a_folder_or_from_backbones(tmp_path):
    first = train(write_recipe(tmp_path, "first", max_steps=1))
    recipe = write_recipe(tmp_path, "second", max_steps=1, text_config=None, model_config=None, stream_loss_weight=2.0)
    trainer = build_trainer(*load_recipe(recipe, ["--model_name_or_path", str(first)]))
    assert trainer.model.config.stream_loss_weight == 2.0
    for name, value in weights(first).items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    text, vision = tmp_path / "text", tmp_path / "vision"
    trainer.processing_class.tokenizer.save_pretrained(text)
    llama = AutoModelForCausalLM.from_config(trainer.model.config.text_config)
    llama.save_pretrained(text)
    trainer.model.model.vision_tower.save_pretrained(vision)
    words = ["--text_backbone", str(text), "--vision_backbone", str(vision)]
    built = build_trainer(*load_recipe(write_recipe(tmp_path, "third", text_config=None), words))
    loaded = built.model.model.language_model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in llama.model.state_dict().items())
    assert built.processing_class.video_processor.size["height"] == 48
    built.train()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_load(path):
    recipe, arguments, _ = load_recipe(path, ["--use_cpu", "true", "--bf16", "false"])
    assert recipe.trainer == "live" and arguments.output_dir.startswith("runs/")
    assert recipe.datasets


@pytest.mark.slow
def test_fifty_steps_of_the_tiny_recipe_learn_something(tmp_path):
    words = [
        "--max_steps",
        "50",
        "--logging_steps",
        "10",
        "--output_dir",
        str(tmp_path / "run"),
        "--eval_strategy",
        "no",
    ]
    final = train(RECIPES / "tiny_alerts.yaml", words)
    found = losses(final)
    assert found[-1] < 0.5 * found[0]
