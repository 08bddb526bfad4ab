"""A session with a bridged video LLM: what it says is what its memory says, whoever asks it and when."""

import pytest
import torch

from activation_watcher_helpers import Bell, images
from bridge_helpers import FAMILIES, SIZES, tiny_bridge
from session_helpers import answers, nothing_left_behind
from streamchat_hf.streaming.events import FrameSeen, ResponseEnded, ResponseStarted
from streamchat_hf.streaming.recording import Recording
from streamchat_hf.streaming.session import StreamingSession

TIMES = [float(k) for k in range(8)]
OPTIONS = {"tokens_per_second": 8.0, "max_new_tokens": 4, "do_sample": False}


@pytest.fixture(params=FAMILIES, scope="module")
def bridge(request):
    return tiny_bridge(request.param)


@pytest.fixture(scope="module")
def llava():
    return tiny_bridge()


def opened(bridge, source=None, **options):
    source = images(TIMES) if source is None else source
    return StreamingSession(bridge, bridge.processor, source, **{**OPTIONS, **options})


def run(bridge, *asks, **options):
    with nothing_left_behind(), opened(bridge, **options) as session:
        for ask in asks:
            session.ask(*ask)
        events = list(session)
    return session, events


def by_hand(bridge, turns):
    """The answers to questions after some frames each, of the memory alone."""
    cache, voice, said, shown = bridge.new_cache(), bridge.voice(max_new_tokens=4, do_sample=False), [], 0
    for question, seen in turns:
        pixels = [(t, bridge.processor.video_processor.preprocess_frame(image)) for t, image in images(TIMES)]
        bridge.refresh_visual(cache, pixels[shown:seen])
        shown = seen
        cache.ask(question)
        ids = []
        bridge.speak(cache, Timeless(), voice, lambda token, now, ids=ids: ids.append(token))
        said.append(ids)
    return said


class Timeless:
    def next_token(self):
        return 0


def test_a_conversation_is_what_the_memory_answers(bridge):
    session, events = run(bridge, ("what is it ?", 1.5), ("and now ?", 5.0))
    assert session.policy == "on-question"
    first, second = answers(events)
    assert [first.ids, second.ids] == by_hand(bridge, [("what is it ?", 2), ("and now ?", 6)])
    assert (first.start_time, second.start_time) == (1.5, 5.0)
    assert set(first.newest_frame_times) == {1.0} and set(second.newest_frame_times) == {5.0}
    assert [event.t_sec for event in events if isinstance(event, FrameSeen)] == TIMES
    assert [message["role"] for message in session.messages] == ["user", "assistant"] * 2
    statistics = session.statistics()
    assert (statistics.frames_encoded, statistics.turns) == (8, 2)
    assert statistics.visual_bytes == session.cache.visual_bytes > 0
    assert statistics.text_tokens == session.cache.get_seq_length()


def test_a_question_before_any_frame_is_answered_without_video(bridge):
    session, events = run(bridge, ("what is it ?",))
    [answer] = answers(events)
    assert answer.ids == by_hand(bridge, [("what is it ?", 0)])[0]
    assert all(time != time for time in answer.newest_frame_times), "there was no frame"
    assert len(session.cache.frames) == 8


def test_a_question_cannot_hold_a_frame_and_the_session_goes_on(bridge):
    word = bridge.processor.tokenizer.convert_ids_to_tokens(bridge.family.video_token_id)
    with nothing_left_behind(), opened(bridge) as session:
        with pytest.raises(ValueError, match="stands for a frame, a question cannot hold it"):
            session.ask(f"what is {word} ?", 1.5)
        session.ask("what is it ?", 1.5)
        assert [answer.question for answer in answers(session)] == ["what is it ?"]


def test_a_round_without_frames(bridge):
    _, events = run(bridge, ("what is it ?", 2.0), ("why ?", 2.9), tokens_per_second=100.0)
    assert [answer.ids for answer in answers(events)] == by_hand(bridge, [("what is it ?", 3), ("why ?", 3)])


def test_of_two_questions_at_once_the_second_interrupts_the_first(llava):
    session, events = run(llava, ("what is it ?", 2.0), ("why ?", 2.0))
    first, second = [event for event in events if isinstance(event, ResponseEnded)]
    assert (first.reason, len(first.answer.ids)) == ("interrupted", 1)
    assert second.answer.question == "why ?" and second.answer.start_time == 2.0
    assert [message["content"] for message in session.messages if message["role"] == "user"] == [
        "what is it ?",
        "why ?",
    ]


def test_a_question_interrupts_the_answer_under_way(llava):
    session, events = run(
        llava, ("what is it ?", 2.0), ("why ?", 2.25), max_new_tokens=9, stopping_criteria=[], eos_token_id=None
    )
    first, second = [event for event in events if isinstance(event, ResponseEnded)]
    assert first.reason == "interrupted" and len(first.answer.ids) == 3
    assert first.answer.token_times == [2.0, 2.125, 2.25]
    remembered = session.messages[1]["content"]
    assert remembered.strip() == llava.processor.tokenizer.decode(first.answer.ids, skip_special_tokens=True).strip()
    assert second.answer.question == "why ?" and second.answer.start_time == 2.25


def test_memory_smaller_than_the_newest_round_keeps_its_newest_frame(llava):
    fits = opened(llava).cache.get_seq_length()  # the front alone
    tokens = llava.encode_frames([(0.0, torch.zeros(3, *SIZES["llava_onevision"]))], None)[0][0].rows.shape[0]
    room = fits + 3 * tokens + 40
    session, events = run(llava, ("what is it ?", 7.0), max_text_tokens=room)
    assert len(answers(events)) == 1 and session.cache.get_seq_length() <= room + OPTIONS["max_new_tokens"] + 8
    frames = session.cache.frames
    assert sum(frame.stands_for for frame in frames) == 8 and len(frames) < 8
    assert frames[-1].t_sec == 7.0 and frames[-1].stands_for == 1


def test_memory_that_holds_nothing_says_so(llava):
    with pytest.raises(ValueError, match="tokens too many for max_length"):
        run(llava, ("what is it ?", 2.0), max_text_tokens=10)


def test_the_policy_of_its_own_watcher_answers_without_a_new_question(llava):
    bell = Bell([2.0, 6.0])
    session, events = run(llava, ("what is it ?",), activation=bell)
    starts = [(event.question, event.time) for event in events if isinstance(event, ResponseStarted)]
    assert starts == [("what is it ?", 2.0), ("what is it ?", 6.0)]
    assert [message["role"] for message in session.messages] == ["user", "assistant", "assistant"]
    first = answers(events)[0]
    cache, voice, ids = llava.new_cache(), llava.voice(max_new_tokens=4, do_sample=False), []
    cache.ask("what is it ?")
    pixels = [(t, llava.processor.video_processor.preprocess_frame(image)) for t, image in images(TIMES)]
    llava.refresh_visual(cache, pixels[:3])
    llava.speak(cache, Timeless(), voice, lambda token, now: ids.append(token))
    assert first.ids == ids


def test_a_recorded_session_is_played_back(llava, tmp_path):
    _, events = run(llava, ("what is it ?", 1.5), ("and now ?", 5.0), record=tmp_path)
    with opened(llava, source=Recording(tmp_path)) as session:
        again = list(session)
    assert [answer.ids for answer in answers(again)] == [answer.ids for answer in answers(events)] != []


def test_streaming_eos_is_nothing_it_has_learnt(llava):
    with pytest.raises(ValueError, match="policy='streaming-eos' must be one of on-question"):
        opened(llava, policy="streaming-eos")
