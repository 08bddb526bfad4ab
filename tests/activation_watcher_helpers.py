"""A watcher that rings at given times, in place of an activation model, and what it has heard."""

from types import SimpleNamespace

import torch

from streamchat_hf import StreamFormerVideoProcessor


class Bell:
    """Rings when a frame of one of some times is shown after a question.

    Args:
        times: Seconds.
        side: Height and width of the frames it sees.
        fps: The rate that it has learnt.

    Attributes:
        heard: All that happened, in order: `("ask", question)`, `("said", answer)`, `("watch", times of frames)`.
        shown: Pixels `(C, H, W)` of every frame that was encoded.
    """

    def __init__(self, times=(), side: int = 8, fps: float | None = None):
        self.times, self.question, self.heard, self.shown = set(times), None, [], []
        video_processor = StreamFormerVideoProcessor(size={"height": side, "width": side})
        self.processor = SimpleNamespace(video_processor=video_processor, frame_fps=fps, v_placeholder="<bell>")

    def ask(self, question):
        self.question = question
        self.heard.append(("ask", question))

    def said(self, answer):
        self.heard.append(("said", answer))

    def encode_frames(self, frames, state):
        self.shown += [pixels.clone() for _, pixels in frames]
        state = (state or 0) + len(frames)
        assert state == len(self.shown), "the state goes on from frame to frame"
        return [SimpleNamespace(t_sec=float(t_sec)) for t_sec, _ in frames], state

    def watch(self, frames):
        times = [frame.t_sec for frame in frames]
        if times:
            self.heard.append(("watch", times))
        return self.question is not None and bool(self.times & set(times))

    @property
    def watched(self):
        """Times of all frames that were shown to it."""
        return [time for kind, what in self.heard if kind == "watch" for time in what]


def images(times, side: int = 24) -> list:
    """Noise with times, as a source that is not live."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, side, side)
    return [(t, torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)) for t in times]
