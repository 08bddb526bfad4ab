"""What a watcher reads is the conversation that its model was trained on, and one event is one alarm."""

import pytest
import torch

from activation_helpers import world_model, world_processor
from streamchat_hf.streaming.activation_watcher import ActivationWatcher

QUESTION, ANSWER = "say it once it is blue .", "it is blue"


@pytest.fixture(scope="module")
def parts():
    processor = world_processor()
    return world_model(processor, vision="streamformer"), processor


def frames(count, first=0):
    generator = torch.Generator().manual_seed(3)
    return [(k / 2, torch.randn(3, 32, 32, generator=generator)) for k in range(count)][first:]


@torch.no_grad()
def whole(model, processor, seen, *messages):
    """Probabilities of one forward pass over what was asked, shown and said."""
    system = {"role": "system", "content": processor.system_prompt}
    ids = processor.training_inputs([system, {"role": "user", "content": QUESTION}, *messages])["input_ids"]
    pixels = torch.stack([pixel for _, pixel in seen])
    return model(input_ids=torch.tensor([ids]), pixel_values_videos=pixels[None]).logits[0].sigmoid().tolist()


def run(count):
    return {"role": "stream", "num_frames": count}


def said(text=ANSWER):
    return {"role": "assistant", "content": text}


class Scripted:
    """A model whose scores are given."""

    def __init__(self, model, scores):
        self.config, self.device, self.new_cache = model.config, model.device, model.new_cache
        self.encode_frames, self.scores = model.encode_frames, list(scores)

    def watch(self, cache, frames):
        ids, _ = cache.next_frames(len(frames))
        cache.was_read(ids, len(frames))
        return torch.tensor([self.scores.pop(0) for _ in frames])


def alarms(parts, scores, says=(), threshold=0.5):
    """At which frames a watcher of these scores fires; `says`: after which of them something is said."""
    watcher = ActivationWatcher(Scripted(parts[0], scores), parts[1], threshold)
    watcher.ask(QUESTION)
    found = []
    for k, frame in enumerate(frames(len(scores))):
        if watcher.watch([frame]):
            found.append(k)
        if k in says:
            watcher.said(ANSWER)
    return found


def test_what_it_reads_is_what_is_trained_on(parts):
    watcher = ActivationWatcher(*parts)
    watcher.ask(QUESTION)
    seen, found = frames(7), []
    for k, frame in enumerate(seen):
        watcher.watch([frame])
        found.append(watcher.score)
        if k == 2:
            watcher.said(ANSWER)
    assert found == pytest.approx(whole(*parts, seen, run(3), said(), run(4)), abs=1e-4)


def test_an_answer_that_comes_at_once(parts):
    watcher = ActivationWatcher(*parts)
    watcher.ask(QUESTION)
    watcher.said("nothing")
    watcher.watch(frames(3))
    assert watcher.score == pytest.approx(whole(*parts, frames(3), said("nothing"), run(3))[-1], abs=1e-4)


def test_frames_encoded_before_are_the_same_frames(parts):
    plain, ready = ActivationWatcher(*parts), ActivationWatcher(*parts)
    state = None
    for watcher in (plain, ready):
        watcher.ask(QUESTION)
    for chunk in (frames(3), frames(7, 3)):
        plain.watch(chunk)
        encoded, state = ready.encode_frames(chunk, state)
        ready.watch(encoded)
        assert ready.score == pytest.approx(plain.score, abs=1e-5)


def test_without_a_question_it_is_never_time(parts):
    watcher = ActivationWatcher(*parts, threshold=0.0)
    assert not watcher.watch(frames(3)) and watcher.score is None and watcher.question is None
    watcher.said("something")
    watcher.ask(QUESTION)
    assert watcher.watch(frames(4, 3)) and watcher.score is not None


def test_a_new_question_takes_the_place_of_the_old(parts):
    """What came before it does not count, except that the vision tower looks back."""
    watcher = ActivationWatcher(*parts)
    watcher.ask("say it once it is red .")
    state = None
    for chunk in (frames(2), frames(3, 2)):
        encoded, state = watcher.encode_frames(chunk, state)
        watcher.watch(encoded)
    watcher.said("it is red")
    watcher.ask(QUESTION)
    assert watcher.question == QUESTION and watcher.score is None
    later, _ = watcher.encode_frames(frames(6, 3), state)
    watcher.watch(later)
    fresh = ActivationWatcher(*parts)
    fresh.ask(QUESTION)
    fresh.watch(later)
    assert watcher.score == pytest.approx(fresh.score, abs=1e-5)


def test_one_event_is_one_alarm(parts):
    assert alarms(parts, [0.1, 0.6, 0.9, 0.8, 0.2, 0.7]) == [1, 5]
    assert alarms(parts, [0.5, 0.4, 0.5]) == [0, 2]  # at the threshold is enough
    assert alarms(parts, [0.1, 0.2, 0.6, 0.1, 0.6], says=[0]) == [2, 4]
    assert alarms(parts, [0.1, 0.2, 0.6, 0.7], says=[1]) == []  # it has to fall below first
    assert alarms(parts, [0.6, 0.7], threshold=0.65) == [1]


def test_a_backlog_fires_once(parts):
    watcher = ActivationWatcher(Scripted(parts[0], [0.1, 0.9, 0.1, 0.2, 0.3]), parts[1], 0.5)
    watcher.ask(QUESTION)
    assert watcher.watch(frames(3)) and watcher.score == pytest.approx(0.1)
    assert not watcher.watch(frames(5, 3)) and not watcher.watch([])


def test_the_threshold_is_the_models_unless_given(parts):
    assert ActivationWatcher(*parts).threshold == 0.35
    assert ActivationWatcher(*parts, threshold=0.0).threshold == 0.0
    with pytest.raises(ValueError, match="threshold=1.5 must lie within 0 and 1"):
        ActivationWatcher(*parts, threshold=1.5)
    with pytest.raises(ValueError, match="a frame is 3 tokens for the processor, but 5 for the model"):
        ActivationWatcher(parts[0], world_processor(places=3))
