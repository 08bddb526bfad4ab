"""Stage 1 of the StreamWorld recipe: the vision tower learns to name what each frame shows, without any text model.

The projected visual token of the patch in which the object lies is normalised and compared with the talker's own word
embeddings, so no extra head has to be shipped; frames with several objects are read as the average of their tokens.
Regressing where in that patch the object's centre lies, through a head that is thrown away afterwards, breaks the
plateau on which motion otherwise stays.

Letters: B clips, T frames, N visual tokens of a frame (a square grid, row-major), D hidden size.
"""

import torch
from torch import nn
from transformers import Trainer

IGNORED = -100


def object_patch(centres: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The patch in which a single object lies, and where in it.

    Args:
        centres: `(B, T, 2)` x and y in [0, 1]; NaN where there is no single object.
        tokens: N, patches of a frame.

    Returns:
        Patch numbers `(B, T)`, 0 where there is no single object, and offsets `(B, T, 2)` in [0, 1) within the patch.
    """
    side = int(tokens**0.5)
    place = (centres.nan_to_num(0.0) * side).clamp(0, side - 1e-3)
    cell = place.floor()
    return (cell[..., 1] * side + cell[..., 0]).long(), place - cell


def at_patch(features: torch.Tensor, patch: torch.Tensor) -> torch.Tensor:
    """`(B, T, N, D)` features at patches `(B, T)`: `(B, T, D)`."""
    index = patch[..., None, None].expand(-1, -1, 1, features.shape[-1])
    return features.gather(2, index)[:, :, 0]


def alignment_loss(
    frame_features: torch.Tensor,
    word_embeddings: torch.Tensor,
    targets: dict[str, torch.Tensor],
    slots: dict[str, list[int]],
) -> torch.Tensor:
    """Cross-entropy of each attribute's words, given the frames that show them; summed over attributes.

    Args:
        frame_features: `(B, T, D)` one feature per frame.
        word_embeddings: `(vocabulary, D)`.
        targets: for each attribute `(B, T)` the token of its value, -100 where there is none.
        slots: for each attribute the tokens of its values.

    Returns:
        A scalar; attributes that no frame of the batch shows add nothing.
    """
    features = nn.functional.rms_norm(frame_features, frame_features.shape[-1:])
    total = features.new_zeros(())
    for slot, tokens in slots.items():
        shown = targets[slot] != IGNORED
        if shown.any():
            words = word_embeddings[tokens]  # (values, D)
            choice = (targets[slot][shown][:, None] == torch.tensor(tokens, device=words.device)).int().argmax(-1)
            total = total + nn.functional.cross_entropy(features[shown] @ words.T, choice)
    return total


class TowerAlignment(nn.Module):
    """A StreamChat's vision tower and projector, with the centre head that is thrown away.

    Args:
        model: a `StreamChatForConditionalGeneration`.
        slots: for each attribute the tokens of its values.
        centre_weight: weight of the centre regression.
        embeddings: of the words; `None`: the model's own, which learn too.
    """

    def __init__(
        self,
        model: nn.Module,
        slots: dict[str, list[int]],
        centre_weight: float = 3.0,
        embeddings: nn.Module | None = None,
    ):
        super().__init__()
        self.vision_tower = model.model.vision_tower
        self.projector = model.model.projector
        self.embeddings = model.get_input_embeddings() if embeddings is None else embeddings
        self.centre = nn.Linear(model.config.vision_config.hidden_size, 2, dtype=model.dtype)
        self.slots, self.centre_weight = slots, centre_weight

    def forward(self, pixel_values_videos, frame_targets, centres, **unused) -> dict[str, torch.Tensor]:
        """`pixel_values_videos (B, T, C, H, W)` and what its frames show, to the loss."""
        features = self.vision_tower(pixel_values_videos, use_cache=False).last_hidden_state  # (B, T, N, D_v)
        projected = self.projector(features)  # (B, T, N, D)
        patch, offset = object_patch(centres, features.shape[2])
        single = centres.isfinite().all(-1)  # (B, T)
        frames = torch.where(single[..., None], at_patch(projected, patch), projected.mean(2))
        loss = alignment_loss(frames, self.embeddings.weight, frame_targets, self.slots)
        if single.any():
            placed = self.centre(at_patch(features, patch))[single]
            loss = loss + self.centre_weight * nn.functional.smooth_l1_loss(placed, offset[single], beta=0.1)
        return {"loss": loss}


class GateTrainer(Trainer):
    """A trainer whose gates, which start at 0, learn ten times faster, and whose scalars and vectors do not decay."""

    def create_optimizer(self, model=None):
        """AdamW over three groups: matrices, gates, everything else."""
        if self.optimizer is None:
            adam = {"betas": (self.args.adam_beta1, self.args.adam_beta2), "eps": self.args.adam_epsilon}
            groups = gate_groups(self.model, self.args.learning_rate, self.args.weight_decay)
            self.optimizer = torch.optim.AdamW(groups, **adam)
        return self.optimizer


def gate_groups(model: nn.Module, learning_rate: float, weight_decay: float) -> list[dict]:
    """Parameter groups of a model: decayed matrices, gates at ten times the learning rate, and the rest."""
    groups: dict[str, list] = {"matrices": [], "gates": [], "rest": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "gates" if name.endswith("_gate") else "matrices" if parameter.ndim > 1 else "rest"
            groups[kind].append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * (10 if kind == "gates" else 1),
            "weight_decay": weight_decay if kind == "matrices" else 0.0,
        }
        for kind, parameters in groups.items()
        if parameters
    ]
