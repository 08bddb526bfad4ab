"""What an activation model learns from: dialogues that begin with a question, and a label for every frame.

<Q> V_1 A_1 V_2 A_2 ...        the last P % of the frames of each V_i: it is time to answer (StreamBridge, 3.2.3)
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from streamchat_hf.data.live_conversation import LiveMessage, learned_frames
from streamchat_hf.processing.labels_videollm_online import IGNORED
from streamchat_hf.training.live_collator import Sample
from streamchat_hf.training.live_rows import FrozenFeatures, LiveRows, MethodCollator

# The most that P may be: half of a segment.
POSITIVE_SHARE = 0.5


class Asked(NamedTuple):
    """The part of a dialogue that one question is about.

    Attributes:
        conversation: The question, then frames and answers, up to the next question or the end.
        first: How many frames came before the question.
        end: How many frames had come before the next question or the end.
    """

    conversation: list[LiveMessage]
    first: int
    end: int


def asked_parts(conversation: Sequence[LiveMessage]) -> list[Asked]:
    """Cut a dialogue at its questions: what was seen before a question does not count for it.

    Args:
        conversation: Messages of a [`LiveSample`]; what comes before the first question is left out.
    """
    parts: list[Asked] = []
    frames = 0
    for message in conversation:
        if message["role"] == "user":
            parts.append(Asked([message], frames, frames))
        frames += message.get("num_frames", 0)
        if parts and message["role"] in ("assistant", "stream"):
            parts[-1] = Asked([*parts[-1].conversation, message], parts[-1].first, frames)
    return parts


def activation_labels(conversation: Sequence[LiveMessage], share: float) -> list[int]:
    """Label every frame of what follows a question.

    Args:
        conversation: See [`Asked`].
        share: P, the share of the frames before an answer at which it is already time for it; at least the last is.

    Returns:
        For each frame 1, 0, or -100 where the dialogue says that nothing is learned.
    """
    labels: list[int] = []
    for message, follower in zip(conversation, [*conversation[1:], None], strict=True):
        if message["role"] != "stream":
            continue
        frames, learned = message["num_frames"], learned_frames(message)
        answered = follower is not None and follower["role"] == "assistant"
        positive = max(1, int(share * frames)) if answered else 0
        of_run = [0] * (frames - positive) + [1] * positive
        labels += of_run[:learned] + [IGNORED] * (frames - learned)
    return labels


class ActivationRows(LiveRows):
    """The rows of a run in their order, each with what is drawn anew whenever it comes, as `draw`.

    Args:
        sources: See [`LiveRows`].
        order: See [`LiveRows`].
        seed: Of what is drawn.
    """

    def __getitem__(self, index: int) -> Any:
        return {**super().__getitem__(index), "draw": f"activation/{self.seed}/{index}"}


class ActivationCollator(MethodCollator):
    """Batches for a [`StreamBridgeActivationModel`]: one question of each row, and a label for every frame.

    What a batch has is what [`MethodCollator`] says, but `labels` are `(B, T)`, T the most frames of a row. The system
    prompt is the processor's, whatever a row has: it is what stands there when the model watches.

    Args:
        processor: A [`VideoLLMOnlineProcessor`] whose `frame_num_tokens` counts <ACT>.
        max_frames: The most frames of a sample.
        features: See [`MethodCollator`].
        positive_share: P is drawn from 0 to this, anew for each row whenever it comes.
    """

    def __init__(
        self,
        processor: Any,
        max_frames: int | None = None,
        features: FrozenFeatures | None = None,
        positive_share: float = POSITIVE_SHARE,
    ):
        super().__init__(processor, max_frames, features=features)
        self.positive_share = positive_share

    def sample(self, row: dict[str, Any]) -> Sample:
        """One row; its `labels` are those of its T frames.

        Raises:
            VideoStreamError: If its media cannot be read.
            ValueError: If it is no `LiveSample`, nothing is asked in it, or its media ends before its frames do.
        """
        clipped = self._clip(_plain(row))
        parts = asked_parts(clipped["conversation"])
        if not parts:
            raise ValueError("nothing is asked in it, so it is never time to answer")
        rng = random.Random(row.get("draw", ""))
        part = rng.choice(parts)
        system = {"role": "system", "content": self.processor.system_prompt}
        text = self.processor.training_inputs([system, *part.conversation])
        labels = activation_labels(part.conversation, rng.uniform(0, self.positive_share))
        # The vision tower looks back beyond the question, as it does in a stream.
        return Sample(text["input_ids"], labels, self._see(clipped)[part.first : part.end])

    def _no_frames(self) -> torch.Tensor:
        if self.features is None:
            return super()._no_frames()
        tokens, width = self.features.shape
        return torch.zeros(0, tokens - 1, width)  # <ACT> has no feature

    def _pad(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        batch = super()._pad([sample._replace(labels=[IGNORED] * len(sample.ids)) for sample in samples])
        frames = [torch.tensor(sample.labels[: len(sample.pixels)]) for sample in samples]
        batch["labels"] = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True, padding_value=IGNORED)
        return batch


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what is drawn, and without the fields that a table fills with `None`."""
    messages = [{name: value for name, value in m.items() if value is not None} for m in row["conversation"]]
    kept = {name: value for name, value in row.items() if value is not None and name != "draw"}
    return {"media": None, **kept, "conversation": messages}
