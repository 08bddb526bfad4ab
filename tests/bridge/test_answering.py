"""One call of `generate`: what a streamer hears, criteria, and sources that fail."""

import threading

import pytest
import torch

from bridge_helpers import Script, answer_ids, frames, tiny_bridge
from streamchat_hf.modeling.reader_streamchat import StreamingError

FAMILY = "llava_onevision"
OPTIONS = {"tokens_per_second": 4.0, "max_new_tokens": 4, "do_sample": False}


class Listener:
    def __init__(self):
        self.heard = []

    def put_frames(self, times, now):
        self.heard.append(("frames", times[0], now))

    def put_times(self, *times):
        self.heard.append(("times", *(time[0] for time in times)))

    def put(self, value):
        self.heard.append(("put", value.numel()))

    def end(self):
        self.heard.append(("end",))


def test_a_streamer_hears_frames_the_prompt_and_every_token_with_its_times():
    listener = Listener()
    script = Script(answer_ids(FAMILY, "it"))
    tiny_bridge().generate(
        "what?",
        frames=iter(frames(FAMILY, 3)),
        start_time=1.5,
        streamer=listener,
        logits_processor=[script],
        **OPTIONS,
    )
    kinds = [event[0] for event in listener.heard]
    assert kinds == ["frames", "put", *["times", "put"] * len(script.scores), "end"]
    assert listener.heard[0] == ("frames", [0.0, 1.0], 1.5)
    assert listener.heard[2] == ("times", 1.5, 1.0, 0.5)


def test_criteria_see_the_answer_alone_and_end_it():
    seen = []

    def enough(ids, scores):
        seen.append(ids.shape[1])
        return torch.tensor([ids.shape[1] == 2])

    output = tiny_bridge().generate(
        "what?", frames=None, stopping_criteria=[enough], return_dict_in_generate=True, **OPTIONS
    )
    assert seen == [1, 2]
    assert output.token_times.shape == (1, 2)
    assert output.newest_frame_times.isnan().all()


def test_a_source_that_fails_is_told_with_what_there_is():
    def breaks():
        yield from frames(FAMILY, 2)
        raise OSError("unplugged")

    bridge, listener, source = tiny_bridge(), Listener(), breaks()
    buffer = bridge.new_cache()
    with pytest.raises(StreamingError, match=r"failed after 1.000 s: unplugged") as error:
        bridge.generate("what?", frames=source, start_time=5.0, past_key_values=buffer, streamer=listener, **OPTIONS)
    assert listener.heard == [("end",)]
    assert error.value.partial.tolist() == buffer.said.tolist()
    assert buffer.messages == []


def test_by_the_wall_clock_the_first_frame_is_waited_for():
    bridge, threads = tiny_bridge(), threading.active_count()
    output = bridge.generate(
        "what?", frames=iter(frames(FAMILY, 1)), max_new_tokens=2, do_sample=False, return_dict_in_generate=True
    )
    assert output.newest_frame_times[0].tolist() == [0.0] * output.newest_frame_times.shape[1]
    assert output.token_times[0].diff().ge(0).all()
    assert threading.active_count() == threads
