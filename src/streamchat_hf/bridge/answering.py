"""One call of a bridged model's `generate`: what the stream shows up to the question, the question, the answer."""

from streamchat_hf.modeling.generation_videollm_online import StreamCall


class BridgeCall(StreamCall):
    """What one call does; arguments are those of `generate`."""

    def run(self, questions: list[str], start: int, close_source: bool) -> None:
        """Sees, asks and answers; whatever happens, the memory holds what was delivered and no more."""
        with self.told(close_source):
            self.clock.ask(start)
            [frames], now = self.clock.next_step()
            self.see(frames, now)
            for question in questions:
                self.cache.ask(question)
            if self.streamer is not None:
                self.streamer.put(self.sequences)
            self.speak(max(start, now))
