"""The towers side by side: which feature meets which text, and what of it learns."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from multitask_helpers import NAMES, batch, tiny_module, tiny_texts, tiny_tower
from streamchat_hf import StreamFormerConfig
from streamchat_hf.data.task_records import TASKS
from streamchat_hf.modeling.modeling_streamformer import StreamFormerPoolingHead
from streamchat_hf.training import multitask_losses as losses
from streamchat_hf.training.multitask import (
    ACTION_TEMPLATES,
    DENSE_TASKS,
    DenseProjection,
    MultitaskAlignment,
    freeze,
    project_patches,
    trainable_names,
)

GOLDEN = Path(__file__).parents[1] / "fixtures" / "streamformer_losses"


def test_templates_are_the_authors():
    assert list(ACTION_TEMPLATES) == json.loads((GOLDEN / "meta.json").read_text())["templates_AR_TAL"]


def test_patches_go_through_the_head_as_in_the_authors_code():
    golden = load_file(GOLDEN / "inputs.safetensors")
    config = StreamFormerConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4)
    head = StreamFormerPoolingHead(config)
    with torch.no_grad():
        for kind in ("weight", "bias"):
            query, key, value = golden[f"head.attention.in_proj_{kind}"].chunk(3)
            getattr(head.q_proj, kind).copy_(query)
            getattr(head.kv_proj, kind).copy_(torch.cat([key, value]))
            for ours, theirs in {"out_proj": "attention.out_proj", "norm": "layernorm"}.items():
                getattr(getattr(head, ours), kind).copy_(golden[f"head.{theirs}.{kind}"])
            for name in ("fc1", "fc2"):
                getattr(getattr(head.mlp, name), kind).copy_(golden[f"head.mlp.{name}.{kind}"])
    expected = load_file(GOLDEN / "outputs.safetensors")["VOS.dense_features"]
    for project in (lambda patches: project_patches(head, patches), DenseProjection(head)):
        torch.testing.assert_close(project(golden["last_hidden_state"]), expected, rtol=1e-5, atol=1e-5)


def test_a_patch_alone_is_projected_to_what_is_pooled_of_it():
    tower = tiny_tower()
    patches = torch.randn(2, 3, 1, 16)
    torch.testing.assert_close(project_patches(tower.head, patches)[:, :, 0], tower.head(patches))


@pytest.mark.parametrize("task", TASKS)
def test_the_feature_of_each_task(task):
    module, pixels = tiny_module(), batch(task)["pixel_values_videos"]
    output = module.model(pixels)
    visual = module.visual(task, pixels)
    expected = {
        "action": output.pooler_output[:, -1],
        "temporal": output.pooler_output,
        "video": output.pooler_output[:, -1],
    }
    dense = project_patches(module.model.head, output.last_hidden_state)
    feature = dense if task in DENSE_TASKS else expected[task.split("_")[0]]
    torch.testing.assert_close(visual, feature / feature.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("task", TASKS)
def test_the_loss_of_each_task(task):
    module, inputs = tiny_module(), batch(task)
    visual, texts = module.visual(task, inputs["pixel_values_videos"]), module.text(task, inputs["texts"])
    own = torch.tensor([[a == b for b in inputs["texts"]] for a in inputs["texts"]])
    s, b = torch.tensor([10.0]), torch.tensor([-2.0])
    labels = inputs["labels"]
    expected = {
        "action_recognition": lambda: losses.action_recognition_loss(visual, texts, labels, s, b),
        "video_text_retrieval": lambda: losses.video_text_retrieval_loss(visual, texts, own, s, b),
        "temporal_localization": lambda: losses.temporal_localization_loss(visual, texts, labels, s, b),
        "temporal_grounding": lambda: losses.temporal_grounding_loss(visual, texts, labels, own, s, b),
        "video_object_segmentation": lambda: losses.video_object_segmentation_loss(visual, texts, labels, s, b),
        "referring_segmentation": lambda: losses.referring_segmentation_loss(visual, texts, labels, own, s, b),
    }[task]()
    torch.testing.assert_close(module(**inputs)["loss"], expected)
    torch.testing.assert_close(texts.norm(dim=-1), torch.ones(len(texts)))


def test_logits_of_each_task_are_what_the_losses_see():
    module = tiny_module()
    shapes = {
        "action_recognition": (3, 4),
        "video_text_retrieval": (3, 3),
        "temporal_localization": (3, 4, 4),
        "temporal_grounding": (3, 4, 3),
        "video_object_segmentation": (3, 4, 4, 16, 16),
        "referring_segmentation": (3, 4, 3, 16, 16),
    }
    for task, shape in shapes.items():
        inputs = batch(task)
        assert module.logits(task, inputs["pixel_values_videos"], inputs["texts"]).shape == shape
    inputs = batch("action_recognition")
    logits = module.logits("action_recognition", inputs["pixel_values_videos"], inputs["texts"])
    y = 2 * torch.nn.functional.one_hot(inputs["labels"], 4) - 1
    torch.testing.assert_close(module(**inputs)["loss"], -torch.nn.functional.logsigmoid(y * logits).sum(1).mean())


def test_retrieval_takes_labels_beside_equal_texts():
    module, inputs = tiny_module(), batch("video_text_retrieval")
    plain = module(**inputs)["loss"]
    equal = torch.tensor([[text == other for other in inputs["texts"]] for text in inputs["texts"]])
    assert module(**{**inputs, "labels": equal})["loss"] == plain
    assert module(**{**inputs, "labels": torch.ones(3, 3, dtype=torch.bool)})["loss"] != plain


@pytest.mark.parametrize(
    ("task", "option"),
    [
        ("action_recognition", {"renormalize_classes": False}),
        ("temporal_grounding", {"grounding_in_batch_negatives": False}),
        ("temporal_grounding", {"grounding_mean_over_frames": False}),
        ("video_object_segmentation", {"segmentation": "softmax_over_foreground"}),
        ("referring_segmentation", {"segmentation": "softmax_over_foreground"}),
        ("video_object_segmentation", {"max_segmentation_classes": 1}),
    ],
)
def test_every_option_reaches_its_loss_and_no_other(task, option):
    plain, changed = tiny_module(), tiny_module(**option)
    for module in (plain, changed):  # means of several prompts are shorter than their parts
        module.action_templates = ("{}", "a {} ,", "the {} one")
    reached = {"action_recognition": {"action_recognition", "temporal_localization"}}.get(task, {task})
    if "segmentation" in option:
        reached = set(DENSE_TASKS)
    for other in TASKS:
        inputs = batch(other)
        if "max_segmentation_classes" in option and other == task:
            inputs["labels"] = inputs["labels"].clamp(max=0)  # two classes fall away, those that are not shown
        same = plain(**inputs)["loss"].item() == pytest.approx(changed(**inputs)["loss"].item(), rel=1e-6)
        assert same == (other not in reached), other


def test_own_projections_begin_as_the_head_and_leave_it():
    module = tiny_module(own_dense_projections=True)
    inputs = batch("video_object_segmentation")
    loss = module(**inputs)["loss"]
    torch.testing.assert_close(loss, tiny_module()(**inputs)["loss"])
    loss.backward()
    assert all(parameter.grad is None for parameter in module.model.head.parameters())
    learned = {name for name, p in module.projections.named_parameters() if p.grad is not None}
    assert learned == {
        name for name, _ in module.projections.video_object_segmentation.named_parameters("video_object_segmentation")
    }


def test_texts_are_as_siglip_reads_them():
    """Padded to full length on the right, whatever stands beside them, and never with dropout or a gradient."""
    texts = tiny_texts(attention_dropout=0.5).train()
    assert not texts.training and not texts.text_model.training
    alone, together = texts(["red"]), texts(["red", "a blue circle , left"])
    torch.testing.assert_close(alone[0], together[0])
    ids = texts.tokenizer("red")["input_ids"]
    padded = torch.tensor([ids + [texts.tokenizer.pad_token_id] * (8 - len(ids))])
    torch.testing.assert_close(alone, texts.text_model(input_ids=padded).pooler_output)
    assert not alone.requires_grad
    assert texts(["a red circle , left , " * 5]).shape == (1, 16)  # cut


def test_class_prompts_are_embedded_once():
    texts, calls = tiny_texts(), []
    texts.text_model.register_forward_hook(lambda *_: calls.append(1))
    first = texts.classes(NAMES, ACTION_TEMPLATES, True)
    assert len(calls) == len(NAMES)
    torch.testing.assert_close(texts.classes(NAMES[::-1], ACTION_TEMPLATES, True), first.flip(0))
    assert len(calls) == len(NAMES)
    prompts = torch.stack([texts([template.format(name) for template in ACTION_TEMPLATES]) for name in NAMES])
    torch.testing.assert_close(first, normalize(normalize(prompts, dim=-1).mean(1), dim=-1))
    texts.classes(NAMES, ("{}",), True)  # other prompts are not those
    assert len(calls) == 3 * len(NAMES)


def test_every_task_has_its_own_scale_and_bias():
    module = tiny_module()
    assert [value.item() for value in module.logit_scale.values()] == pytest.approx([math.log(10)] * 6)
    module(**batch("temporal_grounding"))["loss"].backward()
    touched = [task for task in TASKS if module.logit_scale[task].grad is not None]
    assert touched == [task for task in TASKS if module.logit_bias[task].grad is not None] == ["temporal_grounding"]


def test_what_learns():
    module = tiny_module(tiny_tower(temporal_position="learned"))
    every = {name for name, _ in module.named_parameters() if not name.startswith("texts.")}
    beside_lora = {
        f"model.layers.{i}.spatial_attention.{part}.{kind}"
        for i in range(2)
        for part in ("qkv", "out_proj")
        for kind in ("weight", "bias")
    }
    over_time = {name for name in every if re.search(r"^model.*(\d\.temporal_|time_embeddings)", name)}
    added = over_time | {name for name in every if "lora_" in name or name.startswith("logit_")}
    assert len(over_time) == 2 * 9 + 1 and beside_lora < every and len(added) == len(over_time) + 2 * 4 + 12
    assert set(trainable_names(module, "temporal_and_lora")) == added
    assert set(trainable_names(module, "all_but_spatial_attention")) == every - beside_lora
    assert set(trainable_names(module, "everything")) == every
    for trained in ("temporal_and_lora", "all_but_spatial_attention", "everything"):
        names = trainable_names(module, trained, temporal=False)
        assert set(names) == set(trainable_names(module, trained)) - over_time
        freeze(module, trained, temporal=False)
        assert [name for name, parameter in module.named_parameters() if parameter.requires_grad] == names
    with pytest.raises(ValueError, match="'lora' must be temporal_and_lora, all_but"):
        trainable_names(module, "lora")


def test_all_that_learns_gets_a_gradient_from_the_six_tasks_together():
    module = tiny_module()
    freeze(module, "everything")
    for task in TASKS:
        module(**batch(task))["loss"].backward()
    missing = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(parameter.grad is None for parameter in module.texts.parameters())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="use_pooling_head=True"):
        MultitaskAlignment(tiny_tower(use_pooling_head=False), tiny_texts())
    with pytest.raises(ValueError, match="frames have 16 features and texts 12"):
        MultitaskAlignment(tiny_tower(), tiny_texts(12))
    with pytest.raises(ValueError, match="'tracking' must be one of action_recognition"):
        tiny_module()(**{**batch("temporal_grounding"), "task": "tracking"})
    with pytest.raises(ValueError, match="one text per video, not 2 for 3"):
        tiny_module()(**{**batch("temporal_grounding"), "texts": ["red", "blue"]})
