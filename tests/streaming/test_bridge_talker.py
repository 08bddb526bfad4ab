"""A bridged model keeps to what a session expects of a talker."""

import pytest
import torch

from bridge_helpers import FAMILIES, Script, answer_ids, frames, tiny_bridge
from streamchat_hf.streaming.bridge_talker import BridgeTalker
from streamchat_hf.streaming.talker import NobodyListens

ASKED = [{"role": "system", "content": "look ."}, {"role": "user", "content": "what is it?"}]


class Ear:
    """Hears an answer, and stops listening after so many tokens."""

    def __init__(self, enough: int = 100):
        self.ids, self.times, self._enough = [], [], enough

    def put_times(self, token_times, frame_times, ages):
        self._next = (token_times[0], frame_times[0])

    def spoke(self, input_ids, scores, **kwargs):
        if len(self.ids) == self._enough:
            raise NobodyListens
        self.ids.append(int(input_ids[0, -1]))
        self.times.append(self._next)
        return torch.tensor([False])


def talk(family: str = "llava_onevision", **options):
    bridge = tiny_bridge(family)
    talker = BridgeTalker(
        bridge, bridge.processor, "look .", None, {"max_new_tokens": 4, "do_sample": False, **options}
    )
    return bridge, talker


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("enough", [0, 2, 100])
def test_a_turn_holds_what_was_heard(family, enough):
    bridge, talker = talk(family)
    assert talker.said is None
    assert talker.watch(frames(family, 1)) is False
    talker.ask("what is it?")
    ear = Ear(enough)
    talker.speak(1000, bridge.open_clock(None, talker.cache, None, 2.0), ear)
    assert len(ear.ids) == min(enough, 4) or ear.ids[-1] in talker.ends
    said = [token for token in ear.ids if token not in talker.ends]
    answered = [{"role": "assistant", "content": bridge.chat.text(said)}] if said else []
    assert talker.messages == ASKED + answered
    closing = [*said, *bridge.chat.answer_closing]
    assert not said or talker.said[0].tolist()[-len(closing) :] == closing
    assert ear.times == [(1.0 + i / 2, 0.0) for i in range(len(ear.ids))]


def test_it_goes_on_without_a_new_question():
    bridge, talker = talk(
        logits_processor=[Script(answer_ids("llava_onevision", "it"), answer_ids("llava_onevision", "so"))]
    )
    clock = bridge.open_clock(None, talker.cache, None, 2.0)
    talker.ask("what is it?")
    talker.speak(0, clock, Ear())
    talker.watch(frames("llava_onevision", 2))
    talker.speak(1000, clock, Ear())
    assert talker.messages == [*ASKED, *({"role": "assistant", "content": text} for text in ("it", "so"))]


def test_its_memory_is_as_long_as_the_session_says():
    bridge = tiny_bridge()
    talker = BridgeTalker(bridge, bridge.processor, None, 77, {"max_new_tokens": 4})
    assert talker.cache.max_length == 77
    assert talk()[1].cache.max_length == bridge.max_length
    with pytest.raises(ValueError, match="does not take colour"):
        BridgeTalker(bridge, bridge.processor, None, None, {"colour": "red"})


def test_criteria_of_the_callers_own_end_an_answer():
    bridge, talker = talk(stopping_criteria=[lambda ids, scores: ids.shape[1] == 2])
    talker.ask("what is it?")
    ear = Ear()
    talker.speak(0, bridge.open_clock(None, talker.cache, None, 2.0), ear)
    assert len(ear.ids) <= 2


def test_a_question_that_stands_is_in_the_memory_and_stands_until_the_next():
    _, talker = talk()
    assert talker.standing == ""
    talker.stand("say when")
    assert talker.standing == "say when"
    assert talker.messages[-1] == {"role": "user", "content": "say when"}
    talker.ask("what is it?")
    assert talker.standing == ""
