"""StreamFormer learns six tasks in one language: its features against a frozen SigLIP text tower's (2504.20041).

| task | feature | texts |
|---|---|---|
| action recognition, video-text retrieval | last frame's | class names, descriptions |
| temporal localisation, temporal grounding | every frame's | class names, queries |
| video object and referring segmentation | every patch's | class names, expressions |

Letters: B videos, T frames, N patches of a frame, D embedding size, C classes, Q texts, H x W pixels of a frame.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate.utils import gather, gather_object
from torch import Tensor, nn
from torch.nn.functional import linear, normalize
from transformers import PreTrainedTokenizerBase

from streamchat_hf.data.task_records import CLASS_TASKS, TASKS
from streamchat_hf.training import multitask_losses as losses

DENSE_TASKS = ("video_object_segmentation", "referring_segmentation")

_MEDIA = ("photo", "video", "example", "demonstration")
_ACTIVITIES = ("", "a person ", *(f"a person {verb}ing " for verb in ("us", "do", "dur", "perform", "practic")))
# What the name of an action is put into, 28 of them. The paper's supplement does not list them; these are the
# authors', "a example" included.
ACTION_TEMPLATES = tuple(f"a {medium} of {activity}{{}}." for medium in _MEDIA for activity in _ACTIVITIES)
OBJECT_TEMPLATES = ("{}",)

Trained = Literal["temporal_and_lora", "all_but_spatial_attention", "everything"]


@dataclass(frozen=True)
class LossOptions:
    """Where the authors' code leaves the paper; the defaults are the paper's.

    Attributes:
        renormalize_classes: of [`multitask_losses.class_embeddings`].
        grounding_in_batch_negatives: of [`multitask_losses.temporal_grounding_loss`].
        grounding_mean_over_frames: of the same.
        segmentation: the objective of both segmentation losses.
        max_segmentation_classes: of how many classes a video object segmentation batch consists, see
            [`multitask_losses.limit_classes`]; `None`: all.
        gather_texts: the mini-batch, from whose texts negatives come, is that of all processes. `False`: of one
            process, as for the authors' grounding.
        own_dense_projections: a copy of the pooling head's value path for each segmentation task, which then goes its
            own way and is not part of the result. `False`: the head itself, which is.
    """

    renormalize_classes: bool = True
    grounding_in_batch_negatives: bool = True
    grounding_mean_over_frames: bool = True
    segmentation: losses.SegmentationObjective = "sigmoid"
    max_segmentation_classes: int | None = None
    gather_texts: bool = True
    own_dense_projections: bool = False


class DenseProjection(nn.Module):
    """A pooling head's value path by itself, a copy that learns on its own; see [`project_patches`].

    Args:
        head: a `StreamFormerPoolingHead`.
    """

    def __init__(self, head: Any):
        super().__init__()
        size = head.config.hidden_size
        self.v_proj = nn.Linear(size, size)
        self.v_proj.load_state_dict({name: part[size:] for name, part in head.kv_proj.state_dict().items()})
        self.out_proj, self.norm, self.mlp = copy.deepcopy((head.out_proj, head.norm, head.mlp))

    def forward(self, patches: Tensor) -> Tensor:
        """`(..., D)` to the same shape."""
        projected = self.out_proj(self.v_proj(patches))
        return projected + self.mlp(self.norm(projected))


def project_patches(head: Any, patches: Tensor) -> Tensor:
    """Patches as the pooling head would see each if it saw nothing else: x + MLP(LN(x)) with x = W_o W_v patch.

    So patches come into the space of texts by the weights that SigLIP has for it (the paper's visual projector).

    Args:
        head: a `StreamFormerPoolingHead`.
        patches: `(..., D)` features of patches.

    Returns:
        The same shape.
    """
    size = patches.shape[-1]
    value = linear(patches, head.kv_proj.weight[size:], head.kv_proj.bias[size:])
    projected = head.out_proj(value)
    return projected + head.mlp(head.norm(projected))


class FrozenTexts(nn.Module):
    """A SigLIP text tower that never learns, with its tokenizer.

    Args:
        text_model: a `SiglipTextModel`.
        tokenizer: its tokenizer.
    """

    def __init__(self, text_model: nn.Module, tokenizer: PreTrainedTokenizerBase):
        super().__init__()
        self.text_model, self.tokenizer = text_model.eval().requires_grad_(False), tokenizer
        self._classes: dict[tuple, Tensor] = {}

    def train(self, mode: bool = True) -> "FrozenTexts":
        """Stays in evaluation mode: dropout would blur what class prompts are cached as."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """Embeddings `(Q, D)` float32 of texts, not normalised."""
        length = self.text_model.config.max_position_embeddings
        # SigLIP reads the last position, padding included, and has learned on full length only.
        tokens = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        device = self.text_model.get_input_embeddings().weight.device
        return self.text_model(input_ids=tokens["input_ids"].to(device)).pooler_output.float()

    def classes(self, names: Sequence[str], templates: Sequence[str], renormalize: bool) -> Tensor:
        """Embeddings `(C, D)` of classes, each computed once; see [`multitask_losses.class_embeddings`]."""
        keys = [(name, tuple(templates), renormalize) for name in names]
        for name, key in zip(names, keys, strict=True):
            if key not in self._classes:
                prompts = self([template.format(name) for template in templates])
                self._classes[key] = losses.class_embeddings(prompts[None], renormalize)[0]
        return torch.stack([self._classes[key] for key in keys])


class MultitaskAlignment(nn.Module):
    """A StreamFormer beside a frozen text tower, with a scale and a bias of the logits for every task.

    Args:
        model: a `StreamFormerModel` with pooling head.
        texts: the text tower.
        logit_scale: SigLIP's, as a logarithm; all six begin with it.
        logit_bias: SigLIP's.
        options: of the losses.
        action_templates: what names of actions are put into.

    Raises:
        ValueError: if the model has no pooling head, or its features are not as long as the texts'.
    """

    def __init__(
        self,
        model: nn.Module,
        texts: FrozenTexts,
        logit_scale: float = math.log(10.0),
        logit_bias: float = -10.0,
        options: LossOptions = LossOptions(),
        action_templates: Sequence[str] = ACTION_TEMPLATES,
    ):
        super().__init__()
        size, text_size = model.config.hidden_size, texts.text_model.config.projection_size
        if model.head is None:
            raise ValueError("the tower needs a pooling head: set use_pooling_head=True")
        if size != text_size:
            raise ValueError(f"frames have {size} features and texts {text_size}: they cannot be compared")
        self.model, self.texts, self.options, self.action_templates = model, texts, options, tuple(action_templates)
        # One element and no scalars, as the gates: FSDP2 cannot shard zero dimensions.
        self.logit_scale = nn.ParameterDict({task: nn.Parameter(torch.tensor([logit_scale])) for task in TASKS})
        self.logit_bias = nn.ParameterDict({task: nn.Parameter(torch.tensor([logit_bias])) for task in TASKS})
        self.projections = nn.ModuleDict()
        if options.own_dense_projections:
            self.projections.update({task: DenseProjection(model.head) for task in DENSE_TASKS})

    def forward(
        self, task: str, pixel_values_videos: Tensor, texts: Sequence[str], labels: Tensor | None = None
    ) -> dict[str, Tensor]:
        """A micro-batch of one task to its loss.

        Args:
            task: one of `TASKS`.
            pixel_values_videos: `(B, T, C, H, W)`.
            texts: names of classes, or one text per video.
            labels: `action_recognition`: `(B,)` indices of texts. `video_text_retrieval`: `None`, or `(B, B)` bool,
                which texts are true of which video besides its own and equal ones. `temporal_localization`: `(B, T)`
                indices, -1 background. `temporal_grounding`: `(B, T)` bool. `video_object_segmentation`:
                `(B, T, H, W)` indices, -1 background. `referring_segmentation`: `(B, T, H, W)` bool.

        Returns:
            `{"loss": scalar}`.

        Raises:
            ValueError: for an unknown task, or texts that are not one per video.
        """
        visual = self.visual(task, pixel_values_videos)
        if task in CLASS_TASKS:
            return {"loss": self._class_loss(task, visual, texts, labels)}
        return {"loss": self._text_loss(task, visual, texts, labels)}

    def visual(self, task: str, pixel_values_videos: Tensor) -> Tensor:
        """Unit features in float32: `(B, D)`, `(B, T, D)` or `(B, T, N, D)`, as the task has it."""
        if task not in TASKS:
            raise ValueError(f"task {task!r} must be one of {', '.join(TASKS)}")
        output = self.model(pixel_values_videos, use_cache=False)
        if task in self.projections:
            features = self.projections[task](output.last_hidden_state)
        elif task in DENSE_TASKS:
            features = project_patches(self.model.head, output.last_hidden_state)
        elif task in ("action_recognition", "video_text_retrieval"):
            features = output.pooler_output[:, -1]
        else:
            features = output.pooler_output
        return normalize(features.float(), dim=-1)

    def text(self, task: str, texts: Sequence[str]) -> Tensor:
        """Embeddings `(Q, D)` of a task's texts; unit vectors, unless `renormalize_classes` is off."""
        if task not in CLASS_TASKS:
            return normalize(self.texts(texts), dim=-1)
        templates = OBJECT_TEMPLATES if task in DENSE_TASKS else self.action_templates
        return self.texts.classes(texts, templates, self.options.renormalize_classes)

    def scale_and_bias(self, task: str) -> tuple[Tensor, Tensor]:
        """Scale s and bias b of a task, of one element each."""
        return self.logit_scale[task].exp(), self.logit_bias[task]

    def logits(self, task: str, pixel_values_videos: Tensor, texts: Sequence[str]) -> Tensor:
        """Every video, frame or pixel against every text: `(B, Q)`, `(B, T, Q)` or `(B, T, Q, H, W)`."""
        visual, texts = self.visual(task, pixel_values_videos), self.text(task, texts)
        if task in DENSE_TASKS:
            return losses.pixel_logits(visual, texts, pixel_values_videos.shape[-2:], *self.scale_and_bias(task))
        return losses.alignment_logits(visual, texts, *self.scale_and_bias(task))

    def _class_loss(self, task: str, visual: Tensor, names: Sequence[str], labels: Tensor) -> Tensor:
        scale_and_bias, options = self.scale_and_bias(task), self.options
        if task == "action_recognition":
            return losses.action_recognition_loss(visual, self.text(task, names), labels, *scale_and_bias)
        if task == "temporal_localization":
            return losses.temporal_localization_loss(visual, self.text(task, names), labels, *scale_and_bias)
        if options.max_segmentation_classes is not None and len(names) > options.max_segmentation_classes:
            kept, labels = losses.limit_classes(labels, len(names), options.max_segmentation_classes)
            names = [names[i] for i in kept.tolist()]
        classes = self.text(task, names)
        return losses.video_object_segmentation_loss(visual, classes, labels, *scale_and_bias, options.segmentation)

    def _text_loss(self, task: str, visual: Tensor, texts: Sequence[str], labels: Tensor | None) -> Tensor:
        if len(texts) != len(visual):
            raise ValueError(f"{task} needs one text per video, not {len(texts)} for {len(visual)}")
        embeddings, own = self._mini_batch(task, texts, None if task != "video_text_retrieval" else labels)
        scale_and_bias, options = self.scale_and_bias(task), self.options
        if task == "video_text_retrieval":
            return losses.video_text_retrieval_loss(visual, embeddings, own, *scale_and_bias)
        if task == "temporal_grounding":
            return losses.temporal_grounding_loss(
                visual,
                embeddings,
                labels,
                own,
                *scale_and_bias,
                options.grounding_in_batch_negatives,
                options.grounding_mean_over_frames,
            )
        return losses.referring_segmentation_loss(
            visual, embeddings, labels, own, *scale_and_bias, options.segmentation
        )

    def _mini_batch(self, task: str, texts: Sequence[str], positives: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embeddings `(Q, D)` of the texts of all processes, and which of them are a video's own: `(B, Q)` bool."""
        embeddings, everyone, first = self.text(task, texts), list(texts), 0
        if self.training and self.options.gather_texts and _processes() > 1:
            first = torch.distributed.get_rank() * len(texts)
            embeddings, everyone = gather(embeddings), gather_object(everyone)
        own = torch.tensor([[text == other for other in everyone] for text in texts], device=embeddings.device)
        if positives is not None:
            own[:, first : first + len(texts)] |= positives
        return embeddings, own


def trainable_names(module: nn.Module, trained: Trained, temporal: bool = True) -> list[str]:
    """The parameters that learn; all others stay as they are.

    Args:
        module: a [`MultitaskAlignment`].
        trained: `"temporal_and_lora"`: what the paper adds to SigLIP, that is temporal attention with its norm,
            projection, gate and embeddings, the LoRA beside the spatial attention, and scales and biases of the logits
            (section 3.2 freezes the spatial attention and says nothing of the rest of SigLIP, which we then leave
            alone). `"all_but_spatial_attention"`: as the authors' code, everything but the weights that LoRA stands
            beside. `"everything"`: for a tower that begins with no pretrained weights.
        temporal: `False`: nor do the temporal parts learn, for a tower of images.

    Returns:
        Names as in `module.named_parameters()`, in that order. The text tower is never among them.

    Raises:
        ValueError: for an unknown choice.
    """
    if trained not in ("temporal_and_lora", "all_but_spatial_attention", "everything"):
        raise ValueError(f"trained={trained!r} must be temporal_and_lora, all_but_spatial_attention or everything")
    return [name for name, _ in module.named_parameters() if _learns(name.split("."), trained, temporal)]


def _learns(parts: list[str], trained: str, temporal: bool) -> bool:
    if parts[0] != "model":  # names of tasks are below
        return parts[0] != "texts"
    if any(part.startswith("temporal_") or part == "time_embeddings" for part in parts):
        return temporal
    if trained == "everything" or parts[-1].startswith("lora_"):
        return True
    return trained == "all_but_spatial_attention" and "spatial_attention" not in parts


def freeze(module: nn.Module, trained: Trained, temporal: bool = True) -> None:
    """Lets exactly these parameters have gradients; arguments and errors of [`trainable_names`]."""
    names = set(trainable_names(module, trained, temporal))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in names)


def _processes() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
