"""Each stage trains what the paper says, whatever the model is made of."""

import pytest

from streamchat_helpers import tiny_model
from streamchat_hf.training.stages import STAGES, freeze_for_stage, trainable_names

MODELS = {
    "default": {},
    "siglip": {"vision": "siglip_vision_model"},
    "own cross-attention": {"share_cross_attention": False, "tie_word_embeddings": False},
    "no V-FFN": {"visual_ffn": False},
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return tiny_model(**MODELS[request.param])


def names(model, *parts):
    """Names that begin with one of the parts or have one between dots."""
    return {name for name, _ in model.named_parameters() if any(f".{part}" in f".{name}" for part in parts)}


def test_stages_are_the_papers(model):
    pooling = names(model, "vision_tower.head", "vision_tower.vision_model.head")
    projector, tower = names(model, "model.projector."), names(model, "model.vision_tower.") - pooling
    experts = names(model, "visual_mlp.", "visual_layernorm.", "visual_gate")
    assert set(trainable_names(model, "pretrain_stage1")) == projector
    assert set(trainable_names(model, "pretrain_stage2")) == projector | tower | experts
    assert set(trainable_names(model, "sft")) == {name for name, _ in model.named_parameters()} - pooling
    assert projector and tower and bool(experts) == model.config.visual_ffn
    assert not names(model, "cross_attn_gate", "cross_attn.", "self_attn.") & (projector | tower | experts) - tower


def test_every_stage_holds_the_one_before(model):
    stages = [set(trainable_names(model, stage)) for stage in STAGES]
    assert stages[0] < stages[1] < stages[2]


def test_the_text_model_can_stay_as_it_is(model):
    whole, kept = set(trainable_names(model, "sft")), set(trainable_names(model, "sft", train_text=False))
    text = names(
        model, "self_attn.", "mlp.", "input_layernorm.", "post_attention_layernorm.", "embed_tokens.", "lm_head."
    )
    text = {name for name in text | names(model, "language_model.norm.") if "vision_tower" not in name}
    assert whole - kept == text and names(model, "cross_attn_gate") <= kept
    assert set(trainable_names(model, "pretrain_stage2")) < kept
    for stage in STAGES[:2]:
        assert trainable_names(model, stage, train_text=False) == trainable_names(model, stage)


def test_freezing_can_go_back_and_forth(model):
    for stage in (*STAGES, *reversed(STAGES)):
        freeze_for_stage(model, stage)
        assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable_names(model, stage)


def test_unknown_stage(model):
    with pytest.raises(ValueError, match="'stage3' must be one of pretrain_stage1, pretrain_stage2, sft"):
        trainable_names(model, "stage3")
