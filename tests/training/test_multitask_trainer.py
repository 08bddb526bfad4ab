"""A recipe's way to a checkpoint: what an update is, what is written, and that it goes on where it stopped."""

import json
import math
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import SiglipConfig, SiglipModel

from multitask_helpers import batch
from streamchat_hf import StreamFormerModel
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.data.streamworld_tasks import CLASSES, StreamWorldTasks
from streamchat_hf.data.task_records import TASKS
from streamchat_hf.hub.card import render_card
from streamchat_hf.hub.training_facts import training_facts
from streamchat_hf.training.multitask import ACTION_TEMPLATES, LossOptions, MultitaskAlignment
from streamchat_hf.training.multitask_rounds import TaskData
from streamchat_hf.training.multitask_trainer import MultitaskTrainer, build_module, build_trainer, load_recipe, train
from streamchat_hf.training.sft import NonFiniteError

RECIPES = Path(__file__).parents[2] / "recipes" / "streamformer"
TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_recipe(folder: Path, name: str = "run", **changes) -> Path:
    """A recipe of seconds on random micro-batches of every task."""
    values = {
        "trainer": "multitask",
        "output_dir": str(folder / name),
        "model_config": {**TOWER, "image_size": 16, "patch_size": 8, "lora_rank": 2},
        "text_config": {**TOWER, "projection_size": 16, "max_position_embeddings": 8},
        "action_templates": ["{}"],
        "logit_bias": -2.0,
        "trained": "everything",
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1.0e-3,
        "bf16": False,
        "use_cpu": True,
        "save_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**values, **changes}))
    return path


def random_data(tasks=TASKS, size=5) -> dict[str, TaskData]:
    """Sample i of a task is the number i; collated, it decides the pixels and labels."""

    def collate(task):
        def together(numbers):
            rows = [batch(task, videos=1, seed=number) for number in numbers]
            own = task in ("video_text_retrieval", "temporal_grounding", "referring_segmentation")
            texts = [f"{row['texts'][0]} {number % 3}" for row, number in zip(rows, numbers, strict=True)]
            labels = [row["labels"] for row in rows]
            return {
                "task": task,
                "pixel_values_videos": torch.cat([row["pixel_values_videos"] for row in rows]),
                "texts": texts if own else rows[0]["texts"],
                "labels": None if labels[0] is None else torch.cat(labels),
            }

        return together

    return {task: TaskData(range(size), collate(task)) for task in tasks}


def trainer_of(path, data=None, **given):
    return build_trainer(*load_recipe(path), random_data() if data is None else data, given.get("eval_data", {}))


def test_an_update_is_the_mean_of_one_micro_batch_of_every_task(tmp_path):
    """Against plain SGD on the six losses together."""
    changes = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
    trainer = trainer_of(write_recipe(tmp_path, max_grad_norm=0.0, **changes))
    reference = trainer_of(write_recipe(tmp_path, "same", **changes)).model
    rounds = trainer.train_dataset
    micro_batches = [rounds.collate([rounds[i], rounds[i + 1]]) for i in range(0, 12, 2)]
    assert [inputs["task"] for inputs in micro_batches] == list(TASKS)
    loss = sum(reference(**inputs)["loss"] for inputs in micro_batches) / 6
    loss.backward()
    trainer.train()
    moved = 0
    for (name, new), old in zip(trainer.model.named_parameters(), reference.parameters(), strict=True):
        change = 0 if old.grad is None else 0.1 * old.grad
        torch.testing.assert_close(new, old - change, msg=name)
        moved += not torch.equal(new, old)
    assert moved > 50
    [logged] = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logged["loss"] == pytest.approx(loss.item(), abs=1e-4)
    assert sum(logged[f"loss_{task}"] for task in TASKS) / 6 == pytest.approx(loss.item(), abs=1e-3)


def test_every_task_is_logged_over_all_steps_since_the_last_time(tmp_path):
    one, two = (trainer_of(write_recipe(tmp_path, f"every{n}", logging_steps=n, save_strategy="no")) for n in (1, 2))
    for trainer in (one, two):
        trainer.train()
    ones, twos = ([e for e in trainer.state.log_history if "loss" in e] for trainer in (one, two))
    assert len(ones) == 4 and len(twos) == 2
    for task in TASKS:
        name = f"loss_{task}"
        means = [(ones[i][name] + ones[i + 1][name]) / 2 for i in (0, 2)]
        assert [entry[name] for entry in twos] == pytest.approx(means, abs=2e-4)


def test_what_is_no_matrix_does_not_decay(tmp_path):
    trainer = trainer_of(write_recipe(tmp_path, weight_decay=0.05))
    matrices, rest = trainer.create_optimizer().param_groups
    assert matrices["weight_decay"] == 0.05 and rest["weight_decay"] == 0
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    undecayed = {names[id(p)] for p in rest["params"]}
    assert {"model.layers.0.temporal_gate", "logit_scale.action_recognition", "model.norm.weight"} <= undecayed
    assert "model.layers.0.temporal_attention.qkv.weight" not in undecayed
    assert len(matrices["params"]) + len(rest["params"]) == sum(p.requires_grad for p in trainer.model.parameters())


def test_a_run_leaves_a_plain_streamformer(tmp_path):
    data = random_data(["temporal_grounding", "action_recognition"])
    recipe = write_recipe(tmp_path, eval_strategy="steps", eval_steps=2, fps=3.0)
    final = train(recipe, ["--max_steps", "3"], data, data)
    assert final == tmp_path / "run" / "final"
    model = StreamFormerModel.from_pretrained(final)
    saved = load_file(tmp_path / "run" / "checkpoint-3" / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(saved[f"model.{name}"], value)
    assert json.loads((final / "video_preprocessor_config.json").read_text())["fps"] == 3.0
    text = (final / "training_log.json").read_text()
    log = json.loads(text)
    assert list(log) == ["recipe", "model", "arguments", "commit", "log"]
    assert str(tmp_path) not in text and log["recipe"]["trained"] == "everything"
    facts = training_facts(log)
    assert [(stage.name, stage.steps) for stage in facts.stages] == [("multitask", 3)] and facts.seed == 42
    assert "| multitask | 3 |" in render_card(final, "me/eye").content
    assert [entry["step"] for entry in log["log"] if "eval_temporal_grounding_frame_ap" in entry] == [2, 3]
    assert all("eval_action_recognition_accuracy" in e for e in log["log"] if "eval_temporal_grounding_frame_ap" in e)
    assert not list((tmp_path / "run").rglob("training_args.bin"))


def test_resuming_is_as_never_stopping(tmp_path, monkeypatch):
    """Also where segmentation draws its classes, and with measuring in between."""
    micro_batches = []
    compute_loss = MultitaskTrainer.compute_loss

    def counted(self, model, inputs, *args, **kwargs):
        micro_batches.append(inputs["task"])
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(MultitaskTrainer, "compute_loss", counted)
    same = {"losses": {"max_segmentation_classes": 2}, "dataloader_num_workers": 1}
    same |= {"eval_strategy": "steps", "eval_steps": 1, "lr_scheduler_type": "cosine"}
    straight, broken = (write_recipe(tmp_path, name, **same) for name in ("straight", "broken"))
    held_out = random_data(["temporal_localization"])
    train(straight, (), random_data(), held_out)
    train(broken, (), random_data(), held_out)
    shutil.rmtree(tmp_path / "broken" / "final")
    (tmp_path / "broken" / "checkpoint-4" / "trainer_state.json").unlink()
    micro_batches.clear()
    train(broken, (), random_data(), held_out)
    assert micro_batches == [*TASKS] * 2  # two updates of the four
    one, other = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("straight", "broken"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    logs = []
    for name in ("straight", "broken"):
        log = json.loads((tmp_path / name / "final" / "training_log.json").read_text())["log"]
        logs.append(
            [{k: v for k, v in entry.items() if "runtime" not in k and "per_second" not in k} for entry in log]
        )
    assert logs[0][:-1] == logs[1][:-1]  # the last sums up the time


def test_a_folder_that_holds_a_run_is_not_begun_again(tmp_path):
    recipe = write_recipe(tmp_path)
    train(recipe, ["--max_steps", "2"], random_data(TASKS[:1]))
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        train(recipe, ["--no_resume"], random_data(TASKS[:1]))


def test_steps_follow_from_epochs_and_the_global_batch(tmp_path):
    data = random_data(TASKS[:2], size=9) | random_data(TASKS[2:3], size=4)
    changes = {"max_steps": -1, "num_train_epochs": 3, "global_batch_size": 4}
    trainer = trainer_of(write_recipe(tmp_path, **changes), data)
    arguments = trainer.args
    assert arguments.per_device_train_batch_size == 4 and arguments.gradient_accumulation_steps == 3
    assert arguments.max_steps == 3 * 3 and len(trainer.train_dataset) == 9 * 3 * 4
    trainer = trainer_of(write_recipe(tmp_path, rounds="proportional", **changes), data)
    assert Counter(trainer.train_dataset.tasks) == {TASKS[0]: 1, TASKS[1]: 1, TASKS[2]: 1}  # 8 rows of 4 beside 9
    assert trainer.train_dataset.tasks == list(TASKS[:3])
    with pytest.raises(ValueError, match="global_batch_size=0 is no multiple"):
        trainer_of(write_recipe(tmp_path, global_batch_size=0), data)


def test_two_data_sets_of_one_task(tmp_path):
    """As Kinetics and Something-Something, with classes of their own."""
    [source] = random_data(TASKS[:1]).values()
    other = TaskData(
        source.dataset, lambda numbers: source.collate(numbers) | {"texts": ["left", "up", "down", "now"]}
    )
    trainer = trainer_of(write_recipe(tmp_path, save_strategy="no"), {"kinetics": source, "something": other})
    trainer.train()
    assert trainer.args.gradient_accumulation_steps == 2
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx([e[f"loss_{TASKS[0]}"] for e in logged], rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_before_the_update(tmp_path):
    data = random_data(TASKS[:2])
    good = data[TASKS[1]].collate

    def bad(numbers):
        inputs = good(numbers)
        return (
            inputs if 3 not in numbers else inputs | {"pixel_values_videos": inputs["pixel_values_videos"] * math.nan}
        )

    data[TASKS[1]] = TaskData(range(5), bad)
    trainer = trainer_of(write_recipe(tmp_path), data)
    with pytest.raises(NonFiniteError, match=r"step \d is not finite .*video_text_retrieval nan"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def tower_of(path, *words) -> MultitaskAlignment:
    torch.manual_seed(0)
    return build_module(load_recipe(path, words)[0])


def test_time_off_both_ways_and_forward(tmp_path):
    path = write_recipe(tmp_path)
    pixels = torch.randn(1, 4, 3, 16, 16)
    changed = pixels.clone()
    changed[:, 2] += 1
    moved = {}
    for temporal in ("none", "causal", "bidirectional"):
        module = tower_of(path, "--temporal", temporal)
        difference = (module.model(changed).pooler_output - module.model(pixels).pooler_output)[0].abs().amax(-1)
        moved[temporal] = (difference > 1e-6).tolist()
        learns = any("temporal_" in name for name, p in module.model.named_parameters() if p.requires_grad)
        assert learns == (temporal != "none")
    assert moved == {"none": [0, 0, 1, 0], "causal": [0, 0, 1, 1], "bidirectional": [1, 1, 1, 1]}


def test_a_text_tower_of_random_weights_tells_texts_apart():
    texts = tower_of(RECIPES / "tiny_multitask.yaml").texts
    samples = [StreamWorldTasks("video_text_retrieval", 64)[i].text for i in range(64)]
    words = [word for word in texts.tokenizer.get_vocab() if word.isalpha()]
    rng = random.Random(0)
    embeddings = texts([" ".join(rng.choices(words, k=rng.randint(1, 24))) for _ in range(100)])
    assert embeddings.mean(0).norm() < 0.5 * embeddings.norm(dim=-1).mean()
    for names in CLASSES.values():
        classes = torch.nn.functional.normalize(texts(names), dim=-1)
        assert (classes @ classes.T).triu(1).max() < 0.6  # 0.99 as the weights are drawn
    assert max(len(texts.tokenizer(sample)["input_ids"]) for sample in samples) <= 24  # nothing is cut off


def test_a_siglip_gives_both_towers_scale_and_bias(tmp_path):
    tokenizer = build_tokenizer()
    text = {**TOWER, "vocab_size": len(tokenizer), "projection_size": 16, "max_position_embeddings": 8}
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = SiglipConfig(text_config=text | special, vision_config={**TOWER, "image_size": 16, "patch_size": 8})
    siglip = SiglipModel(config)
    with torch.no_grad():
        siglip.logit_scale.fill_(4.5), siglip.logit_bias.fill_(-12.5)
    siglip.save_pretrained(tmp_path / "siglip")
    tokenizer.save_pretrained(tmp_path / "siglip")
    changes = {"siglip": str(tmp_path / "siglip"), "text_config": None, "model_config": {"lora_rank": 2}}
    path = write_recipe(tmp_path, **changes, logit_bias=None, action_templates=None, trained="temporal_and_lora")
    module = tower_of(path)
    assert {value.item() for value in module.logit_scale.values()} == {4.5}
    assert {value.item() for value in module.logit_bias.values()} == {-12.5}
    assert module.action_templates == ACTION_TEMPLATES and module.options == LossOptions()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():  # before it learns, every frame has SigLIP's own features
        expected = siglip.get_image_features(pixels).pooler_output
        torch.testing.assert_close(module.model(pixels[None]).pooler_output[0], expected, rtol=1e-4, atol=1e-5)
        ids = tokenizer(["red"], padding="max_length", max_length=8, return_tensors="pt")["input_ids"]
        expected = siglip.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(module.texts(["red"]), expected)
    # A StreamFormer made of it goes on with the same texts.
    module.model.save_pretrained(tmp_path / "tower")
    words = {"siglip": changes["siglip"], "model_name_or_path": str(tmp_path / "tower")}
    again = tower_of(write_recipe(tmp_path, "again", **words, model_config=None, text_config=None))
    for name, value in module.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)


def test_what_does_not_fit_is_said(tmp_path):
    path = write_recipe(tmp_path)
    with pytest.raises(ValueError, match="nothing to train on"):
        build_trainer(*load_recipe(path))
    for sources, message in (
        ("{tracking: {name: streamworld}}", "'tracking' must be one of"),
        ("{action_recognition: {name: kinetics}}", "name='kinetics', only streamworld is built in"),
    ):
        with pytest.raises(ValueError, match=message):
            build_trainer(*load_recipe(path, ["--datasets", sources]))
    with pytest.raises(ValueError, match="model_config is for a new tower"):
        load_recipe(path, ["--model_name_or_path", "x"])
    with pytest.raises(ValueError, match="text_config is for a text tower"):
        load_recipe(path, ["--siglip", "x"])
    with pytest.raises(ValueError, match="temporal='bidirectional' is not how"):
        tower_of(path).model.save_pretrained(tmp_path / "tower")
        words = {"model_name_or_path": str(tmp_path / "tower"), "model_config": None}
        tower_of(write_recipe(tmp_path, "again", **words), "--temporal", "bidirectional")


def test_the_recipe_has_the_papers_numbers(tmp_path):
    recipe, arguments = load_recipe(RECIPES / "multitask.yaml", ["--use_cpu", "--bf16", "false"])
    assert recipe.siglip == "google/siglip-base-patch16-224" and recipe.num_frames == 16
    assert recipe.model_config["lora_rank"] == 32 and recipe.model_config["temporal_position"] == "learned"
    assert recipe.global_batch_size == 128 and arguments.num_train_epochs == 20 and arguments.learning_rate == 1e-6
    assert recipe.trained == "temporal_and_lora" and recipe.rounds == "one_each" and recipe.temporal == "causal"
    assert LossOptions(**recipe.losses or {}) == LossOptions()
    with pytest.raises(ValueError, match="nothing to train on"):  # data is given in Python
        build_trainer(*load_recipe(write_recipe(tmp_path)))


def test_the_authors_way_is_a_handful_of_options():
    lines = (RECIPES / "multitask.yaml").read_text().partition("# The authors' code:")[2].splitlines()
    changes = yaml.safe_load("\n".join(line.removeprefix("#")[1:] for line in lines if line.startswith("#   ")))
    assert LossOptions(**changes["losses"]) == LossOptions(
        renormalize_classes=False,
        grounding_in_batch_negatives=False,
        grounding_mean_over_frames=False,
        segmentation="softmax_over_foreground",
        max_segmentation_classes=100,
        own_dense_projections=True,
    )
    assert changes["trained"] == "all_but_spatial_attention" and changes["rounds"] == "proportional"
    assert changes["learning_rate"] == pytest.approx(2e-5 * 16 * 7 * 8 / 256)


@pytest.mark.slow
def test_the_tiny_recipe_trains_on_streamworld(tmp_path):
    words = ["--output_dir", tmp_path / "run", "--max_steps", 2, "--per_device_train_batch_size", 2, "--eval_steps", 2]
    words += ["--eval_datasets", "{temporal_localization: {name: streamworld, length: 4, split: heldout}}"]
    final = train(RECIPES / "tiny_multitask.yaml", [str(word) for word in words])
    log = json.loads((final / "training_log.json").read_text())["log"]
    assert any("eval_temporal_localization_frame_map" in entry for entry in log)
    assert "Data: `streamworld`" in render_card(final, "me/eye").content
    assert StreamFormerModel.from_pretrained(final).head is not None
