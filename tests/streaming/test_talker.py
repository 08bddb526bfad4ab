"""Which talker a model gets, and that both keep to what a session expects of them."""

from types import SimpleNamespace

import pytest
import torch

from live_loop_helpers import live_model, live_processor
from session_helpers import chat_model, chat_processor
from streamchat_hf.streaming.talker import AskedTalker, NobodyListens, StreamingTalker, choose_policy, open_talker


def talkers() -> dict:
    """Both kinds, each with its model, and frames `(t_sec, pixels)` for it."""
    live, asked = live_processor(), chat_processor()
    options = {"do_sample": False}
    models = {"asked": (chat_model(), asked, 16), "streaming": (live_model(live), live, 32)}
    return {
        name: (
            open_talker(model, processor, choose_policy(model, None), "look .", 4, None, dict(options)),
            model,
            [(0.0, torch.zeros(3, side, side))],
        )
        for name, (model, processor, side) in models.items()
    }


class Ear:
    """Hears an answer, and stops listening after so many tokens."""

    def __init__(self, enough: int = 100):
        self.ids, self.text, self.times, self._enough = [], "", [], enough

    def put(self, value):
        pass

    end = put_frames = lambda self, *args: None

    def put_times(self, token_times, frame_times, ages):
        self._next = token_times[0]

    def spoke(self, input_ids, scores, **kwargs):
        if len(self.ids) == self._enough:
            raise NobodyListens
        self.ids.append(int(input_ids[0, -1]))
        self.times.append(self._next)
        self.text += " word"
        return torch.tensor([False])


def clock_for(model, talker):
    return model.open_clock(iter(()), talker.cache, None, 2.0)


def test_a_model_says_which_policies_it_knows():
    streaming = SimpleNamespace(policies=("streaming-eos", "on-question"))
    assert choose_policy(streaming, None) == "streaming-eos"
    assert choose_policy(streaming, "on-question") == "on-question"
    assert choose_policy(SimpleNamespace(), None) == "on-question"
    with pytest.raises(ValueError, match="policy='streaming-eos' must be one of on-question"):
        choose_policy(SimpleNamespace(), "streaming-eos")


def test_any_model_can_be_told_when_to_speak():
    bridge = SimpleNamespace(policies=("activation", "on-question"))
    assert choose_policy(bridge, None) == choose_policy(SimpleNamespace(), None, activation=object()) == "activation"
    assert choose_policy(SimpleNamespace(), "on-question", activation=object()) == "on-question"
    with pytest.raises(ValueError, match="needs an activation model: give activation="):
        choose_policy(SimpleNamespace(policies=("streaming-eos", "on-question")), "activation")


def test_each_model_gets_its_own():
    kinds = {name: type(talker) for name, (talker, _, _) in talkers().items()}
    assert kinds == {"asked": AskedTalker, "streaming": StreamingTalker}


@pytest.mark.parametrize("kind", ["asked", "streaming"])
@pytest.mark.parametrize("enough", [0, 2, 100])
def test_a_turn_holds_what_was_heard(kind, enough):
    talker, model, frames = talkers()[kind]
    assert talker.said is None
    talker.watch(frames)
    talker.ask("what is it?")
    ear = Ear(enough)
    talker.speak(1000, clock_for(model, talker), ear)
    assert len(ear.ids) == min(enough, 4) or ear.ids[-1] in talker.ends
    asked = [{"role": "system", "content": "look ."}, {"role": "user", "content": "what is it?"}]
    answered = [{"role": "assistant", "content": talker.messages[-1]["content"]}] if ear.ids else []
    assert talker.messages == asked + answered
    said = talker.said[0].tolist()
    end = len(said) - (said[-1] in talker.ends and said[-1:] != ear.ids[-1:])
    assert said[end - len(ear.ids) : end] == ear.ids
    assert ear.times == [1.0 + i / 2 for i in range(len(ear.ids))]


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("kind", ["asked", "streaming"])
def test_a_standing_question_is_answered_whenever_it_is_time(kind, watched):
    talker, model, frames = talkers()[kind]
    if watched:
        talker.watch(frames)
    talker.stand("tell me")
    asked = [message for message in talker.messages if message["role"] == "user"]
    assert len(asked) == (kind == "streaming"), "StreamChat is asked when it is to answer"
    answered = []
    for at in (1.0, 9.0):
        talker.watch([(at, frames[0][1])])
        ear = Ear()
        talker.speak(round(1000 * at), clock_for(model, talker), ear)
        answered.append(ear.ids)
    assert all(answered)
    roles = [message["role"] for message in talker.messages[1:]]
    assert roles == (["user", "assistant"] * 2 if kind == "asked" else ["user", "assistant", "assistant"])


def test_a_standing_question_is_read_as_in_training():
    talker, _, frames = talkers()["streaming"]
    tokenizer = live_processor().tokenizer
    talker.watch(frames)
    talker.stand("tell me")
    talker.watch([(0.5, frames[0][1])])
    text = tokenizer.decode(talker.said[0])
    assert text == "<|begin_of_text|>look .\n\n[<v><v><v><v><v>]\nUser: tell me\n[<v><v><v><v><v>"


@pytest.mark.parametrize("kind", ["asked", "streaming"])
def test_a_talker_that_may_not_speak_first_never_wants_to(kind):
    _, model, frames = talkers()[kind]
    processor = {"asked": chat_processor, "streaming": live_processor}[kind]()
    options = {} if kind == "asked" else {"threshold": 1.0}
    talker = open_talker(model, processor, "on-question", None, 4, None, options)
    assert talker.watch(frames) is False
