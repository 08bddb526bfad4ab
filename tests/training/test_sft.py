"""The trainer: one loss however it is computed or divided, what each stage changes, and what happens on the way."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils.dataclasses import get_module_class_from_name
from transformers import AutoModel, AutoModelForCausalLM, AutoProcessor, Qwen2Config, TrainerCallback

from streamchat_helpers import tiny_model
from streamchat_hf import StreamFormerConfig, StreamFormerModel, tiny_checkpoint
from streamchat_hf.training import sft
from streamchat_hf.training.checkpoints import checkpoints
from streamchat_hf.training.dense_collator import IGNORED
from streamchat_hf.training.sft import NonFiniteError, build_trainer, load_recipe, train
from streamchat_hf.training.stages import trainable_names
from training_runs import bpe_tokenizer, losses, row, small_model, turn, write_recipe, write_rows

RECIPES = Path(__file__).parents[2] / "recipes" / "streamchat"
TENSORS = ("input_ids", "attention_mask", "token_times", "turn_starts", "labels", "pixel_values_videos", "frame_times")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Rows, a small checkpoint, and what `datasets` makes of them."""
    folder = tmp_path_factory.mktemp("runs")
    write_rows(folder)
    for part in small_model():
        part.save_pretrained(folder / "model")
    return folder


def weights(path):
    return AutoModel.from_pretrained(path, dtype=torch.float32).state_dict()


def assert_same_weights(one, other, atol=0.0):
    one, other = weights(one), weights(other)
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, atol=atol, rtol=0, msg=name)


def poison(monkeypatch, name):
    """Makes the pixels of a row not a number."""
    collate = sft.DenseCollator.__call__

    def collate_poisoned(self, rows):
        batch = collate(self, rows)
        for i, one in enumerate(rows):
            if one["id"] == name:
                batch["pixel_values_videos"][i] = torch.nan
        return batch

    monkeypatch.setattr(sft.DenseCollator, "__call__", collate_poisoned)


def reference_loss(logits, labels):
    """Mean over answer tokens of minus the logarithm of their probability, in plain sums."""
    terms = []
    for row_logits, row_labels in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for scores, label in zip(row_logits, row_labels[1:], strict=False):
            if label != IGNORED:
                terms.append(math.log(sum(math.exp(score) for score in scores)) - scores[label])
    return sum(terms) / len(terms)


def test_one_loss_three_ways(folder):
    trainer = build_trainer(*load_recipe(write_recipe(folder, "loss")))
    [batch], items = trainer.get_batch_samples(iter(trainer.get_train_dataloader()), 1, trainer.args.device)
    inputs = {name: batch[name] for name in TENSORS}
    model = trainer.model.train()
    with torch.no_grad():
        output = model(**inputs)
        step = trainer.compute_loss(model, dict(batch), num_items_in_batch=items)
        divided = model(**inputs, num_items_in_batch=items).loss
    assert items == (inputs["labels"][:, 1:] != IGNORED).sum()
    expected = reference_loss(output.logits, inputs["labels"])
    assert float(output.loss) == pytest.approx(expected, abs=1e-5)
    assert float(divided) == pytest.approx(expected, abs=1e-5)
    assert float(step) == pytest.approx(expected, abs=1e-5)


def test_one_batch_of_eight_is_eight_of_one(folder):
    same = {"max_steps": 2, "optim": "sgd", "learning_rate": 0.1, "save_strategy": "no"}
    whole = train(write_recipe(folder, "whole", **same))
    parts = train(write_recipe(folder, "parts", **same, per_device_train_batch_size=1, global_batch_size=8))
    assert_same_weights(whole, parts, atol=1e-6)
    for one, other in zip(losses(whole.parent).values(), losses(parts.parent).values(), strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    with pytest.raises(ValueError, match="global_batch_size=9 is no multiple of per_device_train_batch_size=2"):
        train(write_recipe(folder, "odd", per_device_train_batch_size=2, global_batch_size=9))


@pytest.mark.parametrize("stage", ["pretrain_stage1", "pretrain_stage2", "sft"])
def test_a_stage_changes_exactly_its_parameters(folder, stage):
    final = train(write_recipe(folder, stage, stage=stage, max_steps=2, save_strategy="no", weight_decay=0.0))
    before, after = weights(folder / "model"), weights(final)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    model, _ = small_model()
    trained = set(trainable_names(model, stage))
    tied = {"lm_head.weight"} & set(before) if "model.language_model.embed_tokens.weight" in changed else set()
    assert changed - tied == trained - tied


def test_text_alone_reaches_every_parameter(folder):
    """What one process sees must not decide which parameters have gradients."""
    trainer = build_trainer(*load_recipe(write_recipe(folder, "text")))
    batch = trainer.data_collator([row("text", "", turn("what ?", "red"))])
    trainer.model(**{name: batch[name] for name in TENSORS}).loss.backward()
    missing = [name for name, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == [] and all(p.grad is None or p.grad.isfinite().all() for p in trainer.model.parameters())


class Interrupted(Exception):
    pass


class Steps(TrainerCallback):
    """Notes the steps that are begun, and breaks off before one of them."""

    def __init__(self, stop=None):
        self.begun, self.stop = [], stop

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun.append(state.global_step)
        if state.global_step == self.stop:
            raise Interrupted


@pytest.fixture
def watch(monkeypatch):
    """Puts a callback into the next trainer."""
    real = sft.StreamChatTrainer

    def watch(steps):
        monkeypatch.setattr(sft, "StreamChatTrainer", lambda *a, **k: real(*a, callbacks=[steps], **k))
        return steps

    return watch


@pytest.mark.parametrize(
    "changes", [{}, {"use_peft": True, "lora_target_modules": "all-linear"}], ids=["full", "lora"]
)
def test_resumed_is_uninterrupted(folder, watch, changes):
    changes = {**changes, "max_steps": 4, "warmup_steps": 2, "per_device_train_batch_size": 4}
    name = f"run{len(changes)}"
    straight = train(write_recipe(folder, f"{name}-straight", **changes))
    recipe = write_recipe(folder, f"{name}-resumed", **changes)
    watch(Steps(stop=3))
    with pytest.raises(Interrupted):
        train(recipe)
    again = watch(Steps())
    resumed = train(recipe)
    assert again.begun == [2, 3]  # not 0 and 1, which are in the checkpoint
    assert_same_weights(straight, resumed)
    assert losses(straight.parent) == losses(resumed.parent)
    assert list(losses(resumed.parent)) == [1, 2, 3, 4]
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        train(recipe, ["--no_resume"])


def test_lora_trains_adapters_and_leaves_a_whole_model(folder):
    options = {"lora_target_modules": [r".*language_model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.up_proj)"]}
    recipe = write_recipe(
        folder, "lora", use_peft=True, lora_modules_to_save=["projector"], max_steps=2, save_strategy="no", **options
    )
    final = train(recipe)
    before, after = weights(folder / "model"), weights(final)
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in changed if "projector" not in name} == {
        f"model.language_model.layers.{i}.{part}.weight"
        for i in range(4)
        for part in ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj")
    }
    assert {name for name in before if "projector" in name} <= changed
    assert (final.parent / "adapter" / "adapter_model.safetensors").exists()
    assert AutoProcessor.from_pretrained(final).tokenizer.eos_token == "<eos>"
    with pytest.raises(ValueError, match="use_peft goes with the stage sft"):
        train(recipe, ["--stage", "pretrain_stage1"])


def test_an_adapted_embedding_is_untied_before_it_learns(folder):
    recipe = write_recipe(folder, "head", use_peft=True, model_name_or_path=str(tiny_checkpoint()), max_frames=4)
    for targets, tied in ((r".*\.v_proj", True), (r".*embed_tokens", False)):  # the head TRL refuses
        trainer = build_trainer(*load_recipe(recipe, ["--lora_target_modules", targets]))
        assert trainer.model.config.tie_word_embeddings == tied


def test_checkpointed_activations_change_nothing(folder):
    same = {"max_steps": 1, "save_strategy": "no", "optim": "sgd", "learning_rate": 0.1}
    runs = [train(write_recipe(folder, f"gc{on}", activation_checkpointing=on, **same)) for on in (True, False)]
    assert_same_weights(*runs, atol=1e-6)


def test_bf16_learns_and_answers(folder):
    rows = {"path": "json", "data_files": str(folder / "rows.jsonl"), "cache_dir": str(folder / "cache")}
    changes = {"max_steps": 1, "save_strategy": "no"}
    watching = {"eval_strategy": "steps", "eval_steps": 1, "eval_clips": 1}
    half = train(write_recipe(folder, "half", bf16=True, **changes, **watching, eval_datasets=[rows]))
    full = train(write_recipe(folder, "full", **changes, **watching))
    assert losses(half.parent) != losses(full.parent)
    assert losses(half.parent) == pytest.approx(losses(full.parent), rel=0.02)
    assert all(value.dtype == torch.float32 for value in AutoModel.from_pretrained(half).state_dict().values())
    for final in (half, full):
        log = json.loads((final / "training_log.json").read_text())["log"]
        [scores] = [entry for entry in log if "eval_streamworld_fresh" in entry]  # once, although the step is the last
        assert all(0 <= scores[f"eval_streamworld_{viewer}"] <= 1 for viewer in ("fresh", "frozen"))
        assert [entry["step"] for entry in log if "eval_loss" in entry] == [1] * (final == half)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_before_it_does_harm(folder, monkeypatch, what):
    if what == "loss":
        poison(monkeypatch, "row3")
    else:
        norm = sft.SFTTrainer._get_grad_norm
        monkeypatch.setattr(
            sft.SFTTrainer,
            "_get_grad_norm",
            lambda self, *args: torch.tensor(torch.inf) if self.state.global_step == 2 else norm(self, *args),
        )
    recipe = write_recipe(folder, f"nan-{what}", max_steps=6, save_steps=1, per_device_train_batch_size=4)
    with pytest.raises(NonFiniteError) as error:
        train(recipe)
    message = str(error.value)
    assert f"the {what} of step" in message and "(rows.jsonl:1)" in message
    assert what == "gradient" or "row3 (" in message
    step = int(message.partition("of step ")[2].split()[0])
    saved = checkpoints(folder / f"nan-{what}")
    assert [path.name for path in saved] == [f"checkpoint-{k}" for k in range(1, step)]
    assert all(value.isfinite().all() for path in saved for value in weights(path).values())


def test_rows_that_cannot_be_used_are_counted_and_named(folder, caplog):
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines = [line.replace("clip.mp4", "gone.mp4") if i % 4 == 0 else line for i, line in enumerate(lines)]
    gone = [json.loads(line)["id"] for line in lines if "gone.mp4" in line]
    (folder / "gaps.jsonl").write_text("\n".join(lines))
    source = {"path": "json", "data_files": str(folder / "gaps.jsonl"), "cache_dir": str(folder / "cache")}
    watching = {"eval_strategy": "steps", "eval_steps": 100, "eval_on_start": True, "eval_datasets": [source]}
    final = train(write_recipe(folder, "gaps", datasets=[source], num_train_epochs=1.0, max_steps=-1, **watching))
    log = json.loads((final / "training_log.json").read_text())["log"]
    counted = [entry for entry in log if "loss" in entry][-1]["skipped_rows"]
    # in training, and in the evaluations at the start and at the end, which do not count them
    assert caplog.text.count("skipped: ") == counted + 2 * len(gone) and counted >= len(gone) > 0
    for name in gone:
        assert f"skipped: {name} (rows.jsonl:1)" in caplog.text
    assert "gone.mp4: no such file" in caplog.text


def test_a_run_without_any_usable_row_stops(folder):
    text = (folder / "rows.jsonl").read_text()
    lines = [line for line in text.replace("clip.mp4", "gone.mp4").splitlines() if '"dense"' in line]
    (folder / "none.jsonl").write_text("\n".join(lines))
    source = {"path": "json", "data_files": str(folder / "none.jsonl"), "cache_dir": str(folder / "cache")}
    with pytest.raises(RuntimeError, match=r"no row of 3 updates up to step 3 could be used: row.*gone.mp4"):
        train(write_recipe(folder, "none", datasets=[source]))


def test_a_model_is_built_from_backbones(folder):
    tokenizer = bpe_tokenizer()
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    special = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    text = AutoModelForCausalLM.from_config(Qwen2Config(**size, **special, num_key_value_heads=2))
    text.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    vision = {**size, "num_hidden_layers": 1, "image_size": 16, "patch_size": 8}
    StreamFormerModel(StreamFormerConfig(**vision)).save_pretrained(folder / "vision")
    backbones = {"text_backbone": str(folder / "text"), "vision_backbone": str(folder / "vision")}
    changes = {**backbones, "model_name_or_path": None, "stage": "pretrain_stage1", "max_steps": 1}
    recipe = write_recipe(folder, "backbones", **changes)
    final = train(recipe, ["--model_config", '{"visual_window": 8}'])
    model, processor = AutoModel.from_pretrained(final), AutoProcessor.from_pretrained(final)
    assert model.config.visual_window == 8 and processor.video_processor.size["height"] == 16
    inner = model.model.language_model.layers[1].self_attn.q_proj.weight
    assert torch.equal(inner, text.model.layers[1].self_attn.q_proj.weight)
    again = train(recipe, ["--model_config", '{"visual_window": 8}', "--output_dir", str(folder / "again")])
    assert_same_weights(final, again)  # a new projector is drawn by the seed
    assert processor.tokenizer.padding_side == "left"  # as `generate` needs it


def test_a_text_model_that_stays_says_the_same_without_video(folder):
    recipe = write_recipe(folder, "kept", train_text=False, max_steps=2)
    before, after = weights(folder / "model"), weights(train(recipe))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert any("projector" in name for name in changed) and any("cross_attn_gate" in name for name in changed)
    models = [
        AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        for path in (folder / "model", folder / "kept" / "final")
    ]
    with torch.no_grad():
        one, other = (model(torch.arange(20)[None]).logits for model in models)
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match="use_peft trains the text model"):
        build_trainer(*load_recipe(recipe, ["--use_peft", "true"]))


def test_a_video_of_which_nothing_sees_the_beginning_is_refused(folder):
    with pytest.raises(ValueError, match="max_frames=9 frames, of which a token sees the last 8"):
        train(write_recipe(folder, "long", max_frames=9))


def test_a_template_whose_answers_would_never_end_is_refused(folder):
    model, processor = small_model(bpe_tokenizer())
    processor.tokenizer.eos_token = "</s>"
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    for part in (model, processor):
        part.save_pretrained(folder / "endless")
    recipe = write_recipe(folder, "endless-run", model_name_or_path=str(folder / "endless"))
    with pytest.raises(ValueError, match=r"ends an answer with '<\|im_end\|>'.*set eos_token"):
        build_trainer(*load_recipe(recipe))
    trainer = build_trainer(*load_recipe(recipe, ["--eos_token", "<|im_end|>"]))
    assert trainer.data_collator.end_of_turn in trainer.model.generation_config.eos_token_id


def test_the_command_line_wins_and_unknown_keys_are_refused(folder):
    path = write_recipe(folder, "keys")
    words = ["--learning_rate", "1e-3", "--datasets", "[{name: streamworld, clips: 3}]", "--no_resume", "--fps", "4"]
    recipe, arguments, _ = load_recipe(path, words)
    assert arguments.learning_rate == 1e-3 and arguments.max_steps == 8
    assert recipe.datasets == [{"name": "streamworld", "clips": 3}] and not recipe.resume and recipe.fps == 4.0
    for wrong in (["--learning_rat", "1"], ["--no_such_key", "1"]):
        with pytest.raises((ValueError, SystemExit)):
            load_recipe(path, wrong)
    path.write_text(path.read_text() + "no_such_key: 1\n")
    with pytest.raises(ValueError, match="no_such_key"):
        load_recipe(path)


@pytest.mark.parametrize(
    "name", ["pretrain_stage1", "pretrain_stage2", "sft", "tiny_stage1", "tiny_stage2", "tiny_sft"]
)
def test_shipped_recipes_load(name):
    recipe, arguments, _ = load_recipe(RECIPES / f"{name}.yaml", ["--use_cpu", "true"])
    assert recipe.stage == {"tiny_stage1": "pretrain_stage1", "tiny_stage2": "pretrain_stage2"}.get(
        name, name.removeprefix("tiny_")
    )
    weights = [source.get("weight") for source in recipe.datasets]
    assert (all(weights) or not any(weights)) and arguments.output_dir == f"runs/{name}"


@pytest.mark.parametrize("name", ["ddp_cpu", "fsdp2", "deepspeed_zero3"])
def test_accelerate_reads_its_configurations(name):
    path = RECIPES.parent / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == {"ddp_cpu": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert name == "ddp_cpu" or "UNTESTED" in path.read_text()
    if name == "fsdp2":
        model = tiny_model(vision="siglip_vision_model")
        for layer in config.fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(","):
            assert get_module_class_from_name(model, layer) is not None


def test_shipped_recipes_have_the_papers_numbers():
    """Sections 3.1 and 3.2."""
    paper = {
        "pretrain_stage1": {"learning_rate": 5e-4, "global_batch_size": 512, "max_steps": 5000, "max_frames": 40},
        "pretrain_stage2": {"learning_rate": 2e-5, "global_batch_size": 512, "max_steps": 5000, "max_frames": 40},
        "sft": {"learning_rate": 2e-5, "global_batch_size": 768, "num_train_epochs": 1, "max_frames": 32},
    }
    for name, numbers in paper.items():
        recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        assert {key: recipe[key] for key in numbers} == numbers
        assert recipe["fps"] == 1.0 and recipe["stage"] == name


def test_the_vision_tower_can_have_a_learning_rate_of_its_own(folder):
    words = ["--max_steps", "2", "--vision_learning_rate"]
    whole, none = (
        train(write_recipe(folder, name=f"tower_{name}"), [*words, rate])
        for name, rate in (("whole", "1e-2"), ("none", "0.0"))
    )
    before, after = weights(folder / "model"), {path: weights(path) for path in (whole, none)}
    tower = [name for name in before if "vision_tower" in name and "head" not in name]
    assert all(torch.equal(after[none][name], before[name]) for name in tower)
    assert sum(not torch.equal(after[whole][name], before[name]) for name in tower) > len(tower) / 2
    for rates in after.values():
        assert any(not torch.equal(rates[name], before[name]) for name in before if name not in tower)
