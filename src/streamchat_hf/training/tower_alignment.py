"""Stage 1 of the StreamWorld recipe: the vision tower learns to name what each frame shows, without any text model.

The projected visual tokens of a frame are averaged, normalised, and compared with the talker's own word embeddings, so
no extra head has to be shipped. Regressing the object's centre through a head that is thrown away afterwards breaks the
plateau on which motion otherwise stays.
"""

import torch
from torch import nn
from transformers import Trainer

IGNORED = -100


def alignment_loss(
    frame_features: torch.Tensor,
    word_embeddings: torch.Tensor,
    targets: dict[str, torch.Tensor],
    slots: dict[str, list[int]],
) -> torch.Tensor:
    """Cross-entropy of each attribute's words, given the frames that show them; summed over attributes.

    Args:
        frame_features: `(B, T, D)` average of a frame's projected visual tokens.
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


def centre_loss(predicted: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Smooth L1 (beta 0.1) between `(B, T, 2)` centres in [0, 1]; NaN marks frames without a single object."""
    known = centres.isfinite().all(-1)
    if not known.any():
        return predicted.new_zeros(())
    return nn.functional.smooth_l1_loss(predicted[known], centres[known], beta=0.1)


class TowerAlignment(nn.Module):
    """A StreamChat's vision tower and projector, with the centre head that is thrown away.

    Args:
        model: a `StreamChatForConditionalGeneration`.
        slots: for each attribute the tokens of its values.
        centre_weight: weight of the centre regression.
    """

    def __init__(self, model: nn.Module, slots: dict[str, list[int]], centre_weight: float = 3.0):
        super().__init__()
        self.vision_tower = model.model.vision_tower
        self.projector = model.model.projector
        self.embeddings = model.get_input_embeddings()
        self.centre = nn.Linear(model.config.vision_config.hidden_size, 2)
        self.slots, self.centre_weight = slots, centre_weight

    def forward(self, pixel_values_videos, frame_targets, centres, **unused) -> dict[str, torch.Tensor]:
        """`pixel_values_videos (B, T, C, H, W)` and what its frames show, to the loss."""
        features = self.vision_tower(pixel_values_videos, use_cache=False).last_hidden_state  # (B, T, N, D_v)
        named = alignment_loss(
            self.projector(features).mean(2).float(), self.embeddings.weight, frame_targets, self.slots
        )
        placed = centre_loss(self.centre(features.mean(2)).float(), centres)
        return {"loss": named + self.centre_weight * placed}


class GateTrainer(Trainer):
    """A trainer whose gates, which start at 0, learn ten times faster, and whose scalars and vectors do not decay."""

    def create_optimizer(self, model=None):
        """AdamW over three groups: matrices, gates, everything else."""
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(gate_groups(self.model, self.args), **_adam(self.args))
        return self.optimizer


def gate_groups(model: nn.Module, args) -> list[dict]:
    """Parameter groups of a model: decayed matrices, gates at ten times the learning rate, and the rest."""
    groups: dict[str, list] = {"matrices": [], "gates": [], "rest": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gate = "gat" in name.rsplit(".", 1)[-1]
            groups["gates" if gate else "matrices" if parameter.ndim > 1 else "rest"].append(parameter)
    rates = {"matrices": args.learning_rate, "gates": 10 * args.learning_rate, "rest": args.learning_rate}
    decay = {"matrices": args.weight_decay, "gates": 0.0, "rest": 0.0}
    return [
        {"params": parameters, "lr": rates[kind], "weight_decay": decay[kind]}
        for kind, parameters in groups.items()
        if parameters
    ]


def _adam(args) -> dict:
    return {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
