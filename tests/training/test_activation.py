"""The trainer of the activation model: its loss, what learns and how fast, and a calibrated result that loads."""

import json
from pathlib import Path

import pytest
import torch

import live_training_runs
from activation_training_runs import source, trainer_of, write_recipe
from live_training_runs import TEXT, log_of, losses
from streamchat_hf import VideoLLMOnlineProcessor
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel
from streamchat_hf.streaming.activation_watcher import ActivationWatcher
from streamchat_hf.training import live
from streamchat_hf.training.activation import load_recipe, train

RECIPES = Path(__file__).parents[2] / "recipes" / "streambridge"


def weights(path):
    return StreamBridgeActivationModel.from_pretrained(path, dtype=torch.float32).state_dict()


def test_the_final_folder_is_a_calibrated_model_and_a_processor(tmp_path):
    final = train(write_recipe(tmp_path, eval_datasets=[source(2, seed=1)], eval_strategy="steps", eval_steps=2))
    model = StreamBridgeActivationModel.from_pretrained(final).eval()
    processor = VideoLLMOnlineProcessor.from_pretrained(final)
    assert final == tmp_path / "recipe" / "final" and processor.system_prompt == "keep watching ."
    assert not processor.frame_token_interval
    assert (model.config.frame_num_tokens, model.config.frame_fps, processor.frame_fps) == (3, 2.0, 2.0)
    log = log_of(final)
    best = max(entry["f1"] for entry in log["calibration"])
    assert model.config.threshold in [entry["threshold"] for entry in log["calibration"] if entry["f1"] == best]
    assert ActivationWatcher(model, processor).threshold == model.config.threshold
    assert [entry["step"] for entry in log["log"] if "eval_f1" in entry] == [2, 4]
    assert log["recipe"]["stage"] == "activation" and str(tmp_path) not in json.dumps(log)
    assert set(log["cpu_seconds"]) == {"training", "calibration"} and min(log["cpu_seconds"].values()) > 0
    assert len(losses(final)) == 4 and not list(final.glob("*.bin"))


def test_the_logged_loss_is_the_mean_over_the_batch(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        logits = trainer.model(
            **{name: batch[name] for name in ("input_ids", "attention_mask", "frame_features")}
        ).logits
    learned = batch["labels"] != -100
    assert 0 < learned.sum() < learned.numel()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[learned], batch["labels"][learned].float())
    assert trainer.train().training_loss == pytest.approx(expected.item(), rel=1e-4)


def test_accumulated_steps_are_one_large_batch(tmp_path):
    def loss_of(name, size, steps):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 1}
        return trainer_of(tmp_path, name, **changes).train().training_loss

    assert loss_of("divided", 1, 4) == pytest.approx(loss_of("whole", 4, 1), rel=1e-5)


def test_an_interrupted_run_goes_on_exactly(tmp_path):
    whole = train(write_recipe(tmp_path, "whole"))
    train(write_recipe(tmp_path, "cut"))
    (tmp_path / "cut" / "checkpoint-4" / "trainer_state.json").write_text("{")  # it broke off while it was written
    resumed = train(write_recipe(tmp_path, "cut"))
    assert losses(resumed) == losses(whole)
    found = weights(resumed)
    for name, value in weights(whole).items():
        assert torch.equal(found[name], value), name
    with pytest.raises(ValueError, match="holds checkpoints of another run"):
        train(write_recipe(tmp_path, "cut"), ["--no_resume"])


def test_only_what_shall_learn_changes(tmp_path):
    """With the adapters of the large recipe: the connector, <ACT> and the score learn whole, the rest by LoRA."""

    def moved(name, **changes):
        trainer = trainer_of(tmp_path, name, **changes)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
        trainer.train()
        return [n for n, p in trainer.model.named_parameters() if not torch.equal(p.detach(), before[n])]

    assert {n.split(".")[0] for n in moved("frozen", max_steps=1)} == {"connector", "language_model", "score"}
    _, _, arguments = load_recipe(RECIPES / "activation.yaml", ["--use_cpu", "true", "--bf16", "false"])
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": arguments.lora_target_modules}
    names = moved("lora", max_steps=2, **lora, lora_modules_to_save=arguments.lora_modules_to_save)
    names = [name.replace("base_model.model.", "") for name in names]
    assert {name.split(".")[0] for name in names} == {"connector", "language_model", "score"}
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    assert any("act_embedding" in name for name in names)
    assert sum("lora_B" in name for name in names) == 7 * TEXT["num_hidden_layers"]


def test_an_adapter_is_merged_into_the_result(tmp_path):
    lora = {"use_peft": True, "lora_r": 2, "lora_target_modules": [".*language_model.*q_proj"]}
    final = train(write_recipe(tmp_path, **lora, lora_modules_to_save=["connector", "score"], max_steps=1))
    assert (tmp_path / "recipe" / "adapter" / "adapter_model.safetensors").exists()
    assert not [name for name in weights(final) if "lora" in name or "modules_to_save" in name]


def test_the_connector_has_a_learning_rate_of_its_own(tmp_path):
    trainer = trainer_of(tmp_path, connector_learning_rate=1e-5)
    rates = {id(p): group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    names = {name: rates[id(p)] for name, p in trainer.model.named_parameters() if p.requires_grad}
    slow = {name for name, rate in names.items() if rate == 1e-5}
    assert slow == {f"connector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert names["connector.act_embedding"] == names["score.weight"] == 3e-3
    assert trainer.train().global_step == 4


def test_it_goes_on_from_a_videollm_online_or_from_itself(tmp_path):
    speaker, speaking = live_training_runs.speaker(tokens=3)
    speaker.save_pretrained(tmp_path / "speaker")
    speaking.save_pretrained(tmp_path / "speaker")
    fresh = {"text_config": None, "model_config": None, "max_steps": 1}
    trainer = trainer_of(tmp_path, "first", **fresh, model_name_or_path=str(tmp_path / "speaker"))
    processor = trainer.processing_class
    assert (processor.frame_num_tokens, processor.frame_token_interval, processor.frame_fps) == (4, None, 2.0)
    expected = speaker.model.language_model.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in trainer.model.language_model.state_dict().items())
    recipe = write_recipe(tmp_path, "first", **fresh, model_name_or_path=str(tmp_path / "speaker"))
    first = train(recipe)
    again = trainer_of(tmp_path, "again", **fresh, model_name_or_path=str(first))
    expected = weights(first)
    assert all(torch.equal(value, expected[name]) for name, value in again.model.state_dict().items())
    assert again.processing_class.frame_num_tokens == 4


def test_recipes_can_be_read():
    tiny, _, _ = load_recipe(RECIPES / "tiny_activation.yaml", ["--bf16", "false"])
    assert tiny.keep_features and tiny.fps == 2.0
    beginning, _, _ = live.load_recipe(RECIPES / "tiny_video_llm.yaml", ["--bf16", "false"])
    assert beginning.model_config["frame_token_pooled"] == [2, 2] and beginning.fps == tiny.fps
    paper, arguments, adapter = load_recipe(RECIPES / "activation.yaml", ["--use_cpu", "true", "--bf16", "false"])
    assert (paper.connector_learning_rate, arguments.learning_rate, arguments.num_train_epochs) == (2e-5, 2e-4, 5)
    assert (adapter.lora_r, adapter.lora_alpha, paper.positive_share) == (128, 256, 0.5)
    assert paper.model_config["frame_token_pooled"] == [4, 4]


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("text_config is for a fresh language model", {"text_backbone": "somewhere"}),
        ("keep_features is for a frozen vision tower", {"train_vision": True}),
        ("positive_share=2.0 is a share", {"positive_share": 2.0}),
        ("model_name_or_path is a whole model", {"model_name_or_path": "somewhere"}),
        ("there is nothing to train on", {"datasets": []}),
        ("all sources a positive weight, or none", {"datasets": [source(), source(weight=1.0)]}),
        ("leave out dataloader_num_workers", {"dataloader_num_workers": 1}),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, message, changes):
    with pytest.raises(ValueError, match=message):
        trainer_of(tmp_path, **changes)
