"""A head that tells in every frame what is being done, from a long and a short memory of features.

After LSTR (Xu et al., 2107.03377), which MAT, the paper's head (2504.20041, section 4.3.1), is built on:

    m_L = Decoder(q_0, x_L)             # a few learned queries ask the long memory: n_0 vectors (1 layer)
    m   = Decoder(q_1, m_L)             # and others ask the answers: n_1 vectors (2 layers)
    p_t = classifier(Decoder(x_S, m))   # each recent frame asks these, after those before it (2 layers)

Normalised before every block and not after it. A moment before the video began holds a learned vector that says so,
in either memory, so the first frame is computed as every other one. Letters: B streams or windows, T frames, F numbers
that a frame comes as, D hidden size, L and S frames of the long and the short memory, R frames they reach back, C
classes.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from streamchat_hf.data.thumos import IGNORE


@strict
class OnlineDetectionConfig(PreTrainedConfig):
    """Configuration of [`OnlineDetectionHead`]; the sizes of MAT in the authors' code by default.

    `id2label` has the classes, `background` first.

    Args:
        feature_size: F, how many numbers a frame comes as.
        fps: frames per second that the memories count in.
        long_memory: L, frames of the long memory.
        long_memory_stride: the long memory holds every so many-th frame.
        short_memory: S, the newest frames, all of them.
        hidden_size: D.
        intermediate_size: width of the MLPs.
        num_attention_heads: heads of every attention.
        compressed: n_0 and n_1, learned queries of the two stages.
        dropout: after every attention and MLP.
        initializer_range: standard deviation of fresh weights.

    Raises:
        ValueError: if a size is below 1, or the heads do not divide `hidden_size`.
    """

    model_type = "online_detection_head"

    feature_size: int = 768
    fps: float | int = 4.0
    long_memory: int = 256
    long_memory_stride: int = 4
    short_memory: int = 32
    hidden_size: int = 1024
    intermediate_size: int = 1024
    num_attention_heads: int = 4
    compressed: tuple[int, int] | list[int] = (16, 32)
    dropout: float | int = 0.2
    initializer_range: float = 0.02

    def validate_architecture(self):
        """Checks that the numbers fit each other."""
        super().validate_architecture()
        names = ("feature_size", "long_memory", "long_memory_stride", "short_memory", "hidden_size")
        for name in names:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if len(self.compressed) != 2 or min(self.compressed) < 1:
            raise ValueError(f"compressed={self.compressed} must be two numbers of queries, each at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )

    @property
    def reach(self) -> int:
        """R: a frame is judged by itself and the R - 1 frames before it."""
        return self.long_memory * self.long_memory_stride + self.short_memory

    @property
    def slots(self) -> list[int]:
        """Which of R frames in a row, the newest last, the memories hold: L of the long one, then S."""
        stride, old = self.long_memory_stride, self.long_memory * self.long_memory_stride
        return [*range(stride - 1, old, stride), *range(old, self.reach)]


@dataclass
class OnlineDetectionOutput(ModelOutput):
    """What [`OnlineDetectionHead`] returns.

    Attributes:
        loss: mean cross-entropy over the frames that have a label, if labels were given.
        logits: `(B, S, C)` of the frames of the short memory; those of the last one are what a stream gets.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class OnlineDetectionHead(PreTrainedModel):
    """Features of frames in, scores of what is done in them out; whole videos, windows of them, or streams.

    Example:
    ```python
    memory = head.start()
    for features in stream:  # (1, F) each
        logits, memory = head.step(features, memory)  # (1, C)
    ```
    """

    config: OnlineDetectionConfig
    base_model_prefix = "head"
    main_input_name = "features"

    def __init__(self, config: OnlineDetectionConfig):
        super().__init__(config)
        size, (first, second) = config.hidden_size, config.compressed
        self.embed = nn.Sequential(nn.Linear(config.feature_size, size), nn.LayerNorm(size), nn.ReLU())
        self.nothing = nn.Parameter(torch.empty(size))
        self.ages = nn.Parameter(torch.empty(len(config.slots), size))
        self.first_queries = nn.Parameter(torch.empty(first, size))
        self.second_queries = nn.Parameter(torch.empty(second, size))
        self.compress = _decoder(config, layers=1)
        self.refine = _decoder(config, layers=2)
        self.recent = _decoder(config, layers=2)
        self.classifier = nn.Linear(size, config.num_labels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            for parameter in (self.nothing, self.ages, self.first_queries, self.second_queries):
                init.normal_(parameter, std=self.config.initializer_range)

    def forward(
        self, features: torch.FloatTensor, seen: torch.BoolTensor, labels: torch.LongTensor | None = None
    ) -> OnlineDetectionOutput:
        """Judges the frames of the short memory of windows, for training.

        The long memory ends where the short one begins, whichever frame of the short one is judged. So only the last
        frame's scores are those of a stream; the others have less to go by.

        Args:
            features: `(B, L + S, F)` of the frames at `config.slots`.
            seen: `(B, L + S)`, `False` where the video had not begun; features there are not looked at.
            labels: `(B, S)` classes of the short memory's frames, -100 where they are not to be learned.

        Raises:
            ValueError: if the features are of another size, or of another number of frames.
        """
        if features.shape[1] != len(self.ages):
            raise ValueError(f"windows have {features.shape[1]} frames, but the memories hold {len(self.ages)}")
        window = torch.where(seen[..., None], self._embed(features), self.nothing)
        logits = self._detect(window)
        loss = None
        if labels is not None:
            total = nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum"
            )
            loss = total / (labels != IGNORE).sum().clamp(min=1)
        return OnlineDetectionOutput(loss, logits)

    def start(self, streams: int = 1) -> torch.Tensor:
        """The memory `(B, R, D)` of streams that have seen nothing yet; it never grows."""
        return self.nothing.detach().expand(streams, self.config.reach, -1)

    @torch.no_grad()
    def step(self, features: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Judges the next frame of each stream.

        Args:
            features: `(B, F)`.
            memory: of [`start`], or of the step before; it stays as it is.

        Returns:
            Logits `(B, C)` and the new memory.

        Raises:
            ValueError: if the features are of another size.
        """
        memory = torch.cat([memory[:, 1:], self._embed(features)[:, None]], dim=1)
        return self._detect(memory[:, self.config.slots])[:, -1], memory

    @torch.no_grad()
    def score(self, features: torch.Tensor, batch_size: int = 64) -> torch.Tensor:
        """Judges every frame of a video as a stream of it would be judged, many at a time.

        Args:
            features: `(T, F)`.
            batch_size: frames at a time; it changes no score.

        Returns:
            Logits `(T, C)`.

        Raises:
            ValueError: if the features are of another size.
        """
        past = self.nothing.expand(self.config.reach - 1, -1)
        windows = torch.cat([past, self._embed(features)]).unfold(0, self.config.reach, 1)  # (T, D, R), no copy
        return torch.cat([self._detect(part[..., self.config.slots].mT)[:, -1] for part in windows.split(batch_size)])

    def _embed(self, features: torch.Tensor) -> torch.Tensor:
        """`(..., F)` to `(..., D)`."""
        if features.shape[-1] != self.config.feature_size:
            raise ValueError(
                f"a frame comes as {features.shape[-1]} features, but this head was made for "
                f"{self.config.feature_size}: take the tower that it was trained with"
            )
        return self.embed(features)

    def _detect(self, window: torch.Tensor) -> torch.Tensor:
        """`(B, L + S, D)` to the logits `(B, S, C)` of the short memory."""
        long, short = (window + self.ages).split([self.config.long_memory, self.config.short_memory], dim=1)
        first, second = (queries.expand(len(window), -1, -1) for queries in (self.first_queries, self.second_queries))
        compressed = self.refine(second, self.compress(first, long))  # (B, n_1, D)
        later = torch.ones(short.shape[1], short.shape[1], dtype=torch.bool, device=short.device).triu(1)
        return self.classifier(self.recent(short, compressed, tgt_mask=later))


def _decoder(config: OnlineDetectionConfig, layers: int) -> nn.TransformerDecoder:
    """LSTR's unit, so many times: attention among the queries, of the queries to the memory, MLP."""
    layer = nn.TransformerDecoderLayer(
        config.hidden_size,
        config.num_attention_heads,
        config.intermediate_size,
        config.dropout,
        batch_first=True,
        norm_first=True,
    )
    return nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(config.hidden_size))
