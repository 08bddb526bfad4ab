"""Models that say a script, one token per step, and their processor: for tests of what is around a model."""

import time
from types import SimpleNamespace

import torch

from streamchat_helpers import tiny_model
from streamchat_hf.data.streamworld_dialogue import build_tokenizer


def scripted_talker(tokenizer, script: str, pace: float = 0.0):
    """A real model, but a tiny one that says `script` whatever it is asked, with `pace` seconds for a word."""
    talker = tiny_model(text_config={"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id})
    ids, speak = tokenizer(script, add_special_tokens=False)["input_ids"], talker.generate

    def generate(*args, **kwargs):
        rest = iter(ids)

        def say(input_ids, scores):
            time.sleep(pace)
            return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([next(rest)]), 0.0)

        return speak(*args, logits_processor=[say], **kwargs)

    talker.generate = generate
    return talker


class FakeTalker:
    """Speaks `script` under the simulated clock and sees each frame up to a token's time, as the real one does."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, script: str):
        self.ids = tokenizer(script, add_special_tokens=False)["input_ids"]
        self.calls = []

    def generate(self, input_ids, frames, start_time, tokens_per_second, max_new_tokens, streamer=None, **kwargs):
        self.calls.append(kwargs)
        seen, waiting = [], None
        frames = iter(frames)
        times, newest = [], []
        if streamer is not None:
            streamer.put(input_ids)
        for i, token in enumerate(self.ids[:max_new_tokens]):
            times.append(start_time + i / (tokens_per_second or 4.0))
            while waiting is None or waiting[0] <= times[-1]:
                seen += [waiting[0]] if waiting is not None else []
                waiting = next(frames, (float("inf"), None))
            newest.append(seen[-1] if seen else float("nan"))
            if streamer is not None:
                streamer.put_times([times[-1]], [newest[-1]], [times[-1] - newest[-1]])
                streamer.put(torch.tensor([token]))
        if streamer is not None:
            streamer.end()
        sequences = torch.cat((input_ids, torch.tensor([self.ids[: len(times)]])), dim=1)
        token_times, newest_times = (torch.tensor([row], dtype=torch.float64) for row in (times, newest))
        return SimpleNamespace(sequences=sequences, token_times=token_times, newest_frame_times=newest_times)


class FakeProcessor:
    """Streams grey frames that get lighter, at `fps`, for `duration` seconds."""

    def __init__(self, duration: float = 10.0):
        self.tokenizer = build_tokenizer()
        self.video_processor = SimpleNamespace(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.5] * 3)
        self.duration = duration
        self.closed = 0

    def apply_chat_template(self, conversation, **kwargs):
        return self.tokenizer.apply_chat_template(conversation, **kwargs)

    def stream(self, source, fps=None, live=None, stall_timeout=30.0) -> "FakeStream":
        return FakeStream(self, source, fps or 1.0, bool(live))


class FakeStream:
    """What a processor's `stream` returns; a source whose name begins with "no" does not exist."""

    def __init__(self, processor: FakeProcessor, source: str, fps: float, live: bool):
        self.source, self.live = str(source), live
        self._processor, self._fps = processor, fps
        self._frames = iter(range(round(processor.duration * fps)))
        self._closed = False

    def __iter__(self) -> "FakeStream":
        return self

    def __next__(self) -> tuple[float, torch.Tensor]:
        if self.source.startswith("no"):
            raise FileNotFoundError(f"{self.source}: no such video\n(second line)")
        i = next(self._frames)
        return i / self._fps, torch.full((3, 16, 16), i / 10 - 1.0)

    def close(self) -> None:
        self._processor.closed += not self._closed
        self._closed = True
