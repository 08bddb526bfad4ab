"""One call of a bridged model's `generate`: what the stream shows up to the question, the question, the answer."""

from typing import Any

import torch
from transformers import StoppingCriteriaList

from streamchat_hf.bridge.memory_buffer import MemoryBuffer
from streamchat_hf.modeling.generation_videollm_online import LiveGenerateOutput, LiveVoice
from streamchat_hf.modeling.reader_streamchat import StreamingError


class BridgeCall:
    """What one call does, and what it gathers on its way; arguments are those of `generate`."""

    def __init__(
        self, bridge: Any, cache: MemoryBuffer, clock: Any, voice: LiveVoice, streamer: Any, stopping_criteria: Any
    ):
        self.bridge, self.cache, self.clock, self.voice = bridge, cache, clock, voice
        self.streamer, self.criteria = streamer, StoppingCriteriaList(stopping_criteria or [])
        self.responses: list[tuple[float, list[int]]] = []
        self.times: list[float] = []
        self.frame_log: list[tuple[float, float]] = []

    @property
    def sequences(self) -> Any:
        """`(1, length)` the conversation as far as it is remembered."""
        return self.cache.said

    def run(self, questions: list[str], start: int, close_source: bool) -> None:
        """Sees, asks and answers; whatever happens, the memory holds what was delivered and no more."""
        try:
            self.clock.ask(start)
            [frames], now = self.clock.next_step()
            self._see(frames, now)
            for question in questions:
                self.cache.ask(question)
            if self.streamer is not None:
                self.streamer.put(self.sequences)
            self._speak(max(start, now))
        except StreamingError as error:
            error.partial = self.sequences
            if close_source:
                for reader in self.clock.readers:
                    reader.close()
                    reader.close_source()
            raise
        finally:
            if self.streamer is not None:
                self.streamer.end()

    def _see(self, frames: list, now: int) -> None:
        self.bridge.refresh_visual(self.cache, frames)
        self.cache.clock = max(self.cache.clock, now)
        self.frame_log += [(frame.t_sec, now / 1000) for frame in frames]
        if hasattr(self.streamer, "put_frames"):
            self.streamer.put_frames([[frame.t_sec for frame in frames]], now / 1000)

    def _speak(self, start: int) -> None:
        said: list[int] = []
        self.responses.append((start / 1000, said))
        self.clock.ask(start)
        newest = self.cache.streams[0].newest_frame_time

        def spoke(token: int, now: int) -> bool:
            time = now / 1000
            said.append(token)
            self.times.append(time)
            if hasattr(self.streamer, "put_times"):
                self.streamer.put_times([time], [newest], [time - newest])
            if self.streamer is not None:
                self.streamer.put(torch.tensor([token]))
            return bool(self.criteria) and bool(self.criteria(torch.tensor([said]), None).all())

        self.bridge.speak(self.cache, self.clock, self.voice, spoke)

    def output(self, dropped: int) -> LiveGenerateOutput:
        """All of it as `generate` returns it."""
        times = torch.tensor([self.times], dtype=torch.float64)
        newest = torch.full_like(times, self.cache.streams[0].newest_frame_time)
        return LiveGenerateOutput(
            sequences=self.sequences,
            past_key_values=self.cache,
            token_times=times,
            newest_frame_times=newest,
            frame_age=times - newest,
            responses=self.responses,
            frame_log=[self.frame_log],
            dropped_frames=[dropped],
        )
