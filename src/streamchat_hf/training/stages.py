"""What each of the three stages trains (StreamChat, sections 3.1 and 3.2)."""

from torch import nn

# Parts of a parameter's name. "We only train the MLP adapter for alignment."
PROJECTOR = "projector"
# "In stage 2, we further unfreeze the vision encoder and the V-FFN experts": with their norm and their gate, without
# which they could not come to matter. The gate of the cross-attention is not theirs: it scales a branch whose weights
# are those of the frozen self-attention, and the paper's list of what is unfrozen does not have it. It learns together
# with them, in the last stage.
VISION_TOWER = "vision_tower"
VISUAL_FFN = ("visual_mlp", "visual_layernorm", "visual_gate")
# What lets text look at the video: the gate, and where its parameters are not the self-attention's, those too.
CROSS_ATTENTION = ("cross_attn", "cross_attn_layernorm", "cross_attn_gate")
# Of the vision tower the talker reads patches alone: nothing ever reaches the head that would pool them.
POOLING_HEAD = "head"

STAGES = ("pretrain_stage1", "pretrain_stage2", "sft")


def trainable_names(model: nn.Module, stage: str, train_text: bool = True) -> list[str]:
    """The parameters that a stage trains; all others stay as they are.

    Args:
        model: A `StreamChatForConditionalGeneration`.
        stage: `"pretrain_stage1"`: the projector. `"pretrain_stage2"`: also the vision tower and the V-FFNs with their
            norms and gates. `"sft"`: everything. The tower's pooling head, which the talker does not use, never is
            among them.
        train_text: Whether the text model's own weights are among them in `"sft"`. Without them a talk without video
            stays what it was, to the last bit.

    Returns:
        Names as in `model.named_parameters()`, in that order.

    Raises:
        ValueError: For an unknown stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} must be one of {', '.join(STAGES)}")
    return [name for name, _ in model.named_parameters() if _trains(set(name.split(".")), stage, train_text)]


def _trains(parts: set[str], stage: str, train_text: bool) -> bool:
    if {VISION_TOWER, POOLING_HEAD} <= parts:
        return False
    if stage == "pretrain_stage1":
        return PROJECTOR in parts
    if parts & {PROJECTOR, VISION_TOWER, *VISUAL_FFN}:
        return True
    return stage == "sft" and (train_text or bool(parts & set(CROSS_ATTENTION)))


def freeze_for_stage(model: nn.Module, stage: str, train_text: bool = True) -> None:
    """Lets exactly the parameters of a stage have gradients; takes and raises what [`trainable_names`] does."""
    trained = set(trainable_names(model, stage, train_text))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
