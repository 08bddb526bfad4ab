"""The policy "activation" (StreamBridge, 2505.05467, algorithm 1): a model beside the talker says when to answer.

One source feeds both. Each frame is decoded once, prepared by both video processors, and encoded by both models in
the thread that reads, so neither waits for the other's pixels:

    source ─► image ─┬─► talker's pixels  ─► encoded ─► talker.watch
                     └─► watcher's pixels ─► encoded ─► watcher.watch ─► time to answer?
"""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from streamchat_hf.streaming.activation_watcher import ActivationWatcher
from streamchat_hf.streaming.talker import Talker


def open_watcher(model: Any, activation: Any) -> Any:
    """What says when it is time to answer.

    Args:
        model: Of the session; a bridge may have one of its own.
        activation: An [`ActivationWatcher`], or an activation model with its processor; `None`: the model's own.

    Raises:
        ValueError: If there is none, or it belongs to a session already.
    """
    if activation is None:
        own = getattr(model, "activation", None)
        if own is None:
            raise ValueError("policy='activation' needs an activation model: give activation=(model, processor)")
        return ActivationWatcher(own.model, own.processor, own.threshold)  # every session has a watcher to itself
    watcher = ActivationWatcher(*activation) if isinstance(activation, tuple) else activation
    if watcher.question is not None:
        raise ValueError("this ActivationWatcher has been asked something in another session: give each its own")
    return watcher


class SharedFrames:
    """Lets a watcher see the frames that a reader encodes for a talker.

    A stream of images is prepared for both. Frames from anywhere else are pixels already: both models get the same
    ones, which therefore have to be of the watcher's size.

    Args:
        watcher: An [`ActivationWatcher`].

    Attributes:
        fps: Frames per second that it has learnt.
    """

    def __init__(self, watcher: Any) -> None:
        self._watcher, self.fps = watcher, watcher.processor.frame_fps
        self._prepare = watcher.processor.video_processor.preprocess_frame
        self._state: Any = None  # of the watcher's vision tower
        self._ready: deque = deque()

    def attach(self, stream: Any, readers: list) -> None:
        """Shows the watcher what these readers encode of a stream."""
        self.look_at(stream)
        for reader in readers:
            reader.encode = self.encode_with(reader.encode)

    def look_at(self, stream: Any) -> None:
        """Has a [`VideoStream`] prepare each image for the watcher, too; leaves any other source as it is."""
        own = getattr(stream, "transform", None)
        if own is None:
            return

        def both(image: torch.Tensor) -> torch.Tensor:
            pixels = own(image)
            # It travels with the talker's pixels through the reader: a frame that is dropped takes it along.
            pixels.beside = self._prepare(image)
            return pixels

        stream.transform = both

    def encode_with(self, encode: Callable) -> Callable:
        """Wraps `encode(frames, vision_cache)` so that the watcher encodes the same frames."""

        def both(frames: list, vision_cache: Any) -> Any:
            shown = [(frame[0], self._pixels(frame[1])) for frame in frames]
            ready, self._state = self._watcher.encode_frames(shown, self._state)
            encoded = encode(frames, vision_cache)
            self._ready.extend(ready)
            return encoded

        return both

    def take_until(self, t_sec: float) -> list:
        """The watcher's frames up to a time in seconds that have not been taken."""
        taken = []
        while self._ready and self._ready[0].t_sec <= t_sec:
            taken.append(self._ready.popleft())
        return taken

    def _pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """What the watcher sees of a talker's frame `(C, height, width)`."""
        if hasattr(pixels, "beside"):
            return pixels.beside
        size = self._watcher.processor.video_processor.size
        if tuple(pixels.shape[-2:]) != (size["height"], size["width"]):
            raise ValueError(
                f"the activation model sees frames of {size['height']} x {size['width']}, not of "
                f"{pixels.shape[-2]} x {pixels.shape[-1]}: give the session a source of images, which it prepares for "
                "both models, and not an iterator of pixels"
            )
        return pixels


class ActivationTalker:
    """A talker that speaks when a watcher says that it is time.

    A question is not answered at once. It stands until the next one, and each time that it is time to answer, the
    talker speaks: as its conversation goes on, or asked the standing question again if it cannot speak unasked.

    Args:
        talker: What speaks.
        watcher: An [`ActivationWatcher`], which hears questions and answers.
        frames: What the watcher sees.

    Attributes:
        cache, ends, messages, said: The talker's.
        frame_words: What stands for a frame in the text of either; a question cannot hold it.
    """

    def __init__(self, talker: Talker, watcher: Any, frames: SharedFrames) -> None:
        self.cache, self.ends = talker.cache, talker.ends
        self.frame_words = (*talker.frame_words, watcher.processor.v_placeholder)
        self._talker, self._watcher, self._frames = talker, watcher, frames

    @property
    def standing(self) -> str:
        """The question that stands; empty before one."""
        return self._watcher.question or ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation as far as it is remembered."""
        return self._talker.messages

    @property
    def said(self) -> torch.Tensor | None:
        """Its tokens `(1, L)`."""
        return self._talker.said

    def watch(self, frames: list) -> bool:
        """Shows frames to both; tells whether it is time to answer the standing question."""
        self._talker.watch(frames)
        # With them come those that the talker took over while it spoke.
        return self._watcher.watch(self._taken())

    def ask(self, question: str) -> None:
        """As [`stand`]: when to answer is not the user's decision."""
        self.stand(question)

    def stand(self, question: str) -> None:
        """Takes a question that stands from here on; what was seen before does not count for it."""
        self._taken()  # what came while it spoke lies before the question
        self._watcher.ask(question)
        self._talker.stand(question)

    def speak(self, start: int, clock: Any, listener: Any) -> None:
        """Answers the standing question from `start` on, in milliseconds."""
        try:
            self._talker.speak(start, clock, listener)
        finally:
            if listener.ids:
                self._watcher.said(listener.text.strip())

    def _taken(self) -> list:
        return self._frames.take_until(self.cache.streams[0].newest_frame_time)
