"""The memory: rounds, questions at awkward moments, and streams that are longer than it."""

import pytest
import torch

from bridge_helpers import FAMILIES, answer, frames, says, tiny_bridge, tokenizer
from streamchat_hf.bridge.rounds import Frame

FAMILY = "qwen2_5_vl"
QUESTION, ANSWER = [40, 41], [50, 51]


@pytest.fixture
def bridge():
    return tiny_bridge(FAMILY)


def seen(count: int, begin: float = 0.0) -> list[Frame]:
    rows = torch.randn(count, 6, 32, generator=torch.Generator().manual_seed(int(begin)))
    return [Frame(begin + i, each, (2, 3)) for i, each in enumerate(rows)]


def shape(buffer) -> list[tuple[int, list[str]]]:
    """Of each round: how many frames, and who speaks."""
    return [(len(each.frames), [message["role"] for message in each.messages]) for each in buffer.rounds]


def say(buffer, ids=ANSWER) -> None:
    buffer.begin_answer()
    buffer.end_answer(list(ids))


def whole(buffer, *messages) -> list[int]:
    """The conversation as the template writes it, with as many visual tokens for a video as there are."""
    processor = tiny_bridge(FAMILY).processor
    text = processor.apply_chat_template(list(messages), tokenize=False)
    first, *rest = text.split("<|video_pad|>")
    counts = [6 * len(each.frames) for each in buffer.rounds if each.frames]
    for count, part in zip(counts, rest, strict=True):
        first += "<|video_pad|>" * count + part
    return tokenizer(FAMILY)(first)["input_ids"]


def test_frames_open_a_round_and_text_closes_it(bridge):
    buffer = bridge.new_cache()
    assert (buffer.rounds, buffer.messages, buffer.clock) == ([], [], 0)
    buffer.see(seen(2))
    buffer.see(seen(1, begin=2.0))
    assert shape(buffer) == [(3, [])]
    buffer.ask("what?")
    say(buffer)
    buffer.see(seen(1, begin=3.0))
    say(buffer)  # unasked
    assert shape(buffer) == [(3, ["user", "assistant"]), (1, ["assistant"])]
    assert buffer.clock == 3000
    state = buffer.streams[0]
    assert (state.frames_taken, state.newest_frame_time) == (4, 3.0)
    assert buffer.get_seq_length() == buffer.said.shape[1] == len(buffer.flatten())


def test_a_system_prompt_stands_in_front(bridge):
    buffer = bridge.new_cache(system="look")
    assert buffer.messages == [{"role": "system", "content": "look"}]
    buffer.see(seen(1))
    assert buffer.said[0].tolist()[: len(buffer.front)] == buffer.front
    assert tokenizer(FAMILY).decode(buffer.front) == "<|im_start|>system\nlook<|im_end|>\n"


def test_a_question_before_any_frame_stays_before_them(bridge):
    """Row 6: it is answered from its words alone."""
    buffer = bridge.new_cache()
    buffer.ask("say when")
    assert answer(bridge, buffer)
    buffer.see(seen(2))
    assert shape(buffer) == [(0, ["user", "assistant"]), (2, [])]
    assert len(buffer.flatten().rows) == 12
    assert answer(bridge, buffer)


def test_two_questions_at_once_are_both_heard_and_the_second_stands(bridge):
    """Row 6: two messages, one answer."""
    buffer = bridge.new_cache()
    buffer.see(seen(1))
    buffer.ask("what?")
    buffer.ask("and where?")
    say(buffer)
    assert shape(buffer) == [(1, ["user", "user", "assistant"])]
    said = [says("user", "VIDEO", "what?"), says("user", "and where?"), says("assistant", "")]
    ids = whole(buffer, *said)
    closing = len(bridge.chat.answer_closing)
    assert buffer.said[0].tolist() == [*ids[:-closing], *ANSWER, *ids[-closing:]]
    assert list(buffer.rounds[0].question) == bridge.chat.question("and where?", after_frames=False)


def test_a_round_without_frames(bridge):
    """Row 6: asked again before anything new was seen."""
    buffer = bridge.new_cache()
    buffer.see(seen(2))
    buffer.ask("what?")
    assert answer(bridge, buffer)
    buffer.ask("are you sure?")
    assert answer(bridge, buffer)
    assert shape(buffer) == [(2, ["user", "assistant"]), (0, ["user", "assistant"])]
    buffer.see(seen(1, begin=2.0))
    assert shape(buffer)[-1] == (1, [])


def test_a_question_may_wait_for_its_answer(bridge):
    """Proactive: asked, watched on, answered when something happens."""
    buffer = bridge.new_cache()
    buffer.see(seen(1))
    buffer.ask("say when it turns red")
    buffer.see(seen(2, begin=1.0))
    say(buffer)
    assert shape(buffer) == [(1, ["user"]), (2, ["assistant"])]
    said = [says("user", "VIDEO", "say when it turns red"), says("user", "VIDEO"), says("assistant", "")]
    ids = whole(buffer, *said)
    closing = len(bridge.chat.answer_closing)
    assert buffer.said[0].tolist() == [*ids[:-closing], *ANSWER, *ids[-closing:]]


def test_of_an_answer_that_nobody_heard_nothing_stays(bridge):
    """Row 6: an interrupt before the first token."""
    buffer = bridge.new_cache()
    buffer.see(seen(1))
    buffer.ask("what?")
    before = buffer.said.tolist()
    buffer.begin_answer()
    buffer.end_answer([])
    assert buffer.said.tolist() == before
    say(buffer)
    assert shape(buffer) == [(1, ["user", "assistant"])]


def test_a_question_cannot_hold_frames(bridge):
    buffer = bridge.new_cache()
    with pytest.raises(ValueError, match="a question cannot hold frames itself"):
        buffer.ask("what is <|video_pad|>?")
    assert buffer.rounds == []


def test_a_newest_round_that_is_too_long_by_itself_blurs_at_its_beginning(bridge):
    """Row 6: a stream that runs for days without a question stays in the same memory."""
    buffer = bridge.new_cache(max_length=120)
    sizes = set()
    for t in range(200):
        buffer.see(seen(1, begin=float(t)))
        assert buffer.get_seq_length() <= 120
        if t > 100:
            sizes.add(buffer.visual_bytes)
    assert len(sizes) == 1
    held = [frame.stands_for for frame in buffer.frames]
    assert sum(held) == 200
    assert held[1:] == [1] * (len(held) - 1)
    assert buffer.frames[-1].t_sec == 199.0
    buffer.ask("what?")
    buffer.begin_answer()
    assert buffer.get_seq_length() <= 120


def test_what_cannot_fit_is_refused_and_changes_nothing(bridge):
    """Row 6: no room for two frames and the question."""
    buffer = bridge.new_cache(max_length=len(bridge.new_cache().front) + 16)
    buffer.see(seen(2))
    before = buffer.said.tolist()
    buffer.see(seen(1, begin=2.0))  # pooled: the newest frame and one for all before
    assert buffer.said.tolist() == before
    buffer.ask("what is it that you see there?")
    asked = buffer.said.tolist()
    with pytest.raises(ValueError, match="tokens too many for max_length"):
        buffer.begin_answer()
    assert buffer.said.tolist() == asked


@pytest.mark.parametrize("family", FAMILIES)
def test_the_newest_question_outlives_its_round(family):
    bridge = tiny_bridge(family, max_length=130 if family == "qwen3_vl" else 110)
    buffer = bridge.new_cache()
    bridge.refresh_visual(buffer, frames(family, 1))
    buffer.ask("say when it turns red")
    answer(bridge, buffer)
    for turn in range(12):
        bridge.refresh_visual(buffer, frames(family, 3, begin=1.0 + 3 * turn))
        answer(bridge, buffer, max_new_tokens=4)
    asked = [message for message in buffer.messages if message["role"] == "user"]
    assert asked == [{"role": "user", "content": "say when it turns red"}]
    assert len(buffer.messages) < 13
    words = tokenizer(family).decode(buffer.said[0])
    assert words.count("say when it turns red") == 1
    assert buffer.said[0].tolist()[: len(buffer.front)] == buffer.front
    answer(bridge, buffer)
