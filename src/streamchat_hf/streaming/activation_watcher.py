"""Watches a stream for a question that stands, and tells when it is time to answer (StreamBridge, section 3.2.3)."""

from typing import Any

import torch

from streamchat_hf.modeling.cache_videollm_online import LiveFrame

# How a whole conversation is tokenised: its template has written the special tokens.
PLAIN = {"add_special_tokens": False}


class ActivationWatcher:
    """An activation model beside a talker: it sees the frames, the question and what was answered, nothing else.

    It sees what came after the question, D = ACT(Q, F_tQ .. F_t); without a question it is never time to answer. One
    event is one alarm: once it was time to answer, or something has been said, the score has to fall below the
    threshold before it can be time again.

    Args:
        model: A [`StreamBridgeActivationModel`].
        processor: Its processor.
        threshold: It is time to answer if a frame's score is at least this; `None`: the model's, `config.threshold`.

    Attributes:
        question: The question that stands; `None` before one.
        score: The score of the newest frame that was watched for this question; `None` before one.

    Raises:
        ValueError: If model and processor do not agree on the tokens of a frame, or the threshold is no probability.

    Example:
    ```python
    watcher = ActivationWatcher(model, processor)
    watcher.ask("say it once it is blue .")
    for frame in processor.stream("clip.mp4"):
        if watcher.watch([frame]):
            watcher.said("it is blue")
    ```
    """

    def __init__(self, model: Any, processor: Any, threshold: float | None = None) -> None:
        if processor.frame_num_tokens != model.config.frame_num_tokens:
            raise ValueError(
                f"a frame is {processor.frame_num_tokens} tokens for the processor, but "
                f"{model.config.frame_num_tokens} for the model"
            )
        self.threshold: float = model.config.threshold if threshold is None else threshold
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={threshold} must lie within 0 and 1")
        self.model, self.processor = model, processor
        self.question: str | None = None
        self.score: float | None = None
        self._cache = model.new_cache()
        self._armed = True
        self._vision_cache: Any = None  # of frames that are watched as pixels

    def ask(self, question: str) -> None:
        """Takes a question in place of the one that stood; what was seen before it does not count for it."""
        self._cache.reset()
        self.question, self.score, self._armed = question, None, True

    def said(self, answer: str) -> None:
        """Takes what was answered, right after the frame that it answers, before those that came meanwhile."""
        if self.question is None:
            return
        start = self.processor.piece_ids("]\nAssistant:")
        words = self.processor.piece_ids(f"]\nAssistant: {answer}")[len(start) :]
        # A talker may write what stands for frames or ends an answer here; to it these are letters.
        special = (self.model.config.v_placeholder_id, self.model.config.eos_token_id)
        words = [word for word in words if word not in special]
        if self._has_begun:
            self._cache.begin_response()
        else:
            self._begin(add_generation_prompt=True)
        self._cache.pending += words
        self._cache.end_response()
        self._armed = False

    def watch(self, frames: list) -> bool:
        """Sees frames; tells whether it is time to answer at one of them.

        Args:
            frames: Of the processor's `stream`, or what `encode_frames` made of them.
        """
        frames = list(frames)
        if frames and not hasattr(frames[0], "embeds"):
            frames, self._vision_cache = self.encode_frames(frames, self._vision_cache)
        if self.question is None or not frames:
            return False
        if not self._has_begun:
            self._begin(add_stream_prompt=True)
        fires = False
        for score in self.model.watch(self._cache, frames).tolist():
            fires |= self._armed and score >= self.threshold
            self._armed = score < self.threshold
            self.score = score
        return fires

    @torch.no_grad()
    def encode_frames(self, frames: list, state: Any) -> tuple[list[LiveFrame], Any]:
        """Embeds frames `(t_sec, pixel_values (C, H, W))` beside watching, for instance in another thread.

        Args:
            frames: In order.
            state: What this returned for the frames before these; `None` for the first.

        Returns:
            The frames, ready to be watched, and the new state.
        """
        pixels = torch.stack([frame[1] for frame in frames]).to(self.model.device)  # (T, C, H, W)
        embeds, state = self.model.encode_frames(pixels, state)  # (T, K + 1, H)
        return [LiveFrame(float(frame[0]), rows) for frame, rows in zip(frames, embeds, strict=True)], state

    @property
    def _has_begun(self) -> bool:
        return bool(self._cache.ids or self._cache.pending)

    def _begin(self, **ending: bool) -> None:
        """Reads the question, which frames or an answer follow."""
        messages = [
            {"role": "system", "content": self.processor.system_prompt},
            {"role": "user", "content": self.question},
        ]
        text = self.processor.apply_chat_template(messages, tokenize=False, **ending)
        self._cache.hear(self.processor.tokenizer(text, **PLAIN)["input_ids"])
