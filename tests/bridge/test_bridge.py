"""A bridged model says what the plain one says, remembers what it has seen, and reads nothing twice."""

import json

import pytest
import torch
from transformers import GPT2Config

from bridge_helpers import (
    FAMILIES,
    SIZES,
    Script,
    answer,
    answer_ids,
    frames,
    plain_inputs,
    says,
    simulated,
    tiny_bridge,
    tiny_model,
    tokenizer,
)
from streamchat_hf.bridge import StreamBridge


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


def converse(bridge, family: str, *answers: str):
    """Watches, is asked, answers; then is told to speak unasked about what came after. Gives memory and scores."""
    script = Script(*(answer_ids(family, text) for text in answers))
    buffer = bridge.new_cache()
    bridge.refresh_visual(buffer, frames(family, 3))
    buffer.ask("what do you see?")
    said = answer(bridge, buffer, script, max_new_tokens=50)
    bridge.refresh_visual(buffer, frames(family, 2, seed=1, begin=3.0))
    bridge.refresh_visual(buffer, frames(family, 1, seed=2, begin=5.0))
    said += answer(bridge, buffer, script, max_new_tokens=50)
    return buffer, said, torch.stack(script.scores)


def test_it_gives_the_plain_models_logits(family):
    """Row 1: nothing to compress; one forward pass of the plain model over the same interleaved input."""
    bridge = tiny_bridge(family)
    buffer, said, scores = converse(bridge, family, "it is red", "now blue")
    videos = [frames(family, 3), frames(family, 2, seed=1, begin=3.0) + frames(family, 1, seed=2, begin=5.0)]
    messages = [
        says("user", "VIDEO", "what do you see?"),
        says("assistant", "it is red"),
        says("user", "VIDEO"),
        says("assistant", "now blue"),
    ]
    inputs = plain_inputs(family, messages, videos)
    assert buffer.said.tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        logits = tiny_model(family)(**inputs).logits[0]
    ids = inputs["input_ids"][0].tolist()
    header = tokenizer(family)("<|im_start|>assistant\n")["input_ids"]
    starts = [i for i in range(len(ids)) if ids[i - len(header) : i] == header]
    lengths = [len(answer_ids(family, text)) for text in ("it is red", "now blue")]
    spoken = [start + i for start, length in zip(starts, lengths, strict=True) for i in range(length)]
    assert [ids[place] for place in spoken] == said
    expected = logits[[place - 1 for place in spoken]]
    expected[:, bridge.family.video_token_id] = -torch.inf  # frames are seen, not said
    assert float(expected[:, :5].std()) > 0.1
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


def test_the_models_own_video_features_are_those_of_single_frames(family):
    """Frames are encoded one at a time, or all at once: the same."""
    bridge = tiny_bridge(family)
    shown = frames(family, 5)
    at_once, _ = bridge.encode_frames(shown, None)
    for frame, pixels in zip(at_once, shown, strict=True):
        [alone], _ = bridge.encode_frames([pixels], None)
        torch.testing.assert_close(frame.rows, alone.rows, atol=1e-5, rtol=0)
    assert at_once[0].grid == {24: (3, 3), 16: (2, 3)}[SIZES[family][0]]


class Reads:
    """Counts what the language model reads."""

    def __init__(self, bridge):
        self.lengths, forward = [], bridge.family.forward

        def counted(part, past):
            self.lengths.append(len(part))
            return forward(part, past)

        bridge.family.forward = counted


@pytest.mark.parametrize("short", [False, True])
def test_reading_again_only_what_is_new_changes_nothing(family, short):
    """Keys and values are used again, or everything is read for every answer as the authors do."""
    told, max_length = {}, 4000 if not short else 240 if family == "qwen3_vl" else 130
    for reuse in (True, False):
        bridge = tiny_bridge(family, max_length=max_length, reuse=reuse)
        reads, script, buffer = Reads(bridge), Script(), bridge.new_cache()
        said = []
        for turn in range(4):
            bridge.refresh_visual(buffer, frames(family, 4, seed=turn, begin=4.0 * turn))
            if turn != 2:
                buffer.ask(f"what now {turn}?")
            said.append(answer(bridge, buffer, script))
        told[reuse] = (said, torch.stack(script.scores), sum(reads.lengths), buffer)
    assert told[True][0] == told[False][0]
    torch.testing.assert_close(told[True][1], told[False][1], atol=1e-4, rtol=0)
    reused, everything, buffer = told[True][2], told[False][2], told[True][3]
    pooled = max(frame.stands_for for frame in buffer.frames)
    assert pooled > 1 if short else pooled == 1
    assert reused <= everything if short else reused < everything
    if not short:  # every token is read once; what closes the last answer, and its last word if it was cut, not yet
        assert buffer.get_seq_length() - reused - len(bridge.chat.answer_closing) in (0, 1)


def test_what_comes_before_the_oldest_pooled_frame_is_not_read_again(family):
    """Keys and values of what follows it are dropped: rounds of one frame stay, the round after them is pooled."""
    told = {}
    for reuse in (True, False):
        bridge = tiny_bridge(family, reuse=reuse)
        reads, script, buffer = Reads(bridge), Script(), bridge.new_cache()
        for turn, count in enumerate((1, 1, 1, 7)):
            bridge.refresh_visual(buffer, frames(family, count, seed=turn, begin=5.0 * turn))
            buffer.ask("what do you see there on the left and what on the right?")
            answer(bridge, buffer, script)
        buffer.max_length = buffer.get_seq_length()
        bridge.refresh_visual(buffer, frames(family, 1, seed=9, begin=20.0))
        reads.lengths.clear()
        answer(bridge, buffer, script)
        held = [frame.stands_for for frame in buffer.frames]
        assert held[:3] == [1, 1, 1] and held[3] > 1 and held[4:] == [1] * (11 - sum(held[:4]))
        told[reuse] = (torch.stack(script.scores), reads.lengths[0])
    torch.testing.assert_close(told[True][0], told[False][0], atol=1e-4, rtol=0)
    assert 0 < told[True][1] < told[False][1] / 2


def test_the_input_never_grows_beyond_its_length(family):
    bridge = tiny_bridge(family, max_length=150)
    reads, buffer = Reads(bridge), bridge.new_cache()
    bridge.reuse = False
    for turn in range(12):
        bridge.refresh_visual(buffer, frames(family, 3, seed=turn, begin=3.0 * turn))
        buffer.ask("and now?")
        newest = buffer.frames[-3:]
        reads.lengths.clear()
        answer(bridge, buffer)
        assert reads.lengths[0] <= 150
        assert [frame.rows is kept.rows for frame, kept in zip(newest, buffer.frames[-3:], strict=True)] == [True] * 3
    assert buffer.get_seq_length() <= 150 + 5 + 2
    assert len(buffer.messages) < 24  # the oldest rounds have been forgotten


def test_positions_after_pooling_are_those_of_the_compressed_input(family):
    bridge = tiny_bridge(family, max_length=320 if family == "qwen3_vl" else 150)
    buffer = bridge.new_cache()
    for turn in range(3):
        bridge.refresh_visual(buffer, frames(family, 6, seed=turn, begin=6.0 * turn))
        buffer.ask("and now?")
        buffer.begin_answer()
        buffer.end_answer(answer_ids(family, "red")[:-1])
    assert max(frame.stands_for for frame in buffer.frames) > 1
    whole = buffer.flatten()
    if family == "llava_onevision":
        assert whole.positions.tolist() == [list(range(len(whole)))]
        return
    messages, videos = [], []
    for each in buffer.rounds:
        said = [message["content"] for message in each.messages]
        messages += [says("user", "VIDEO", said[0]), says("assistant", said[1])]
        videos.append([(frame.middle, torch.zeros(3, *SIZES[family])) for frame in each.frames])
    inputs = plain_inputs(family, messages, videos)
    assert whole.ids[None].tolist() == inputs["input_ids"].tolist()
    names = ("mm_token_type_ids", "video_grid_thw", "second_per_grid_ts")
    rest = {name: inputs[name] for name in names if name in inputs}
    expected, _ = tiny_model(family).model.get_rope_index(inputs["input_ids"], **rest)
    assert whole.positions.tolist() == expected.tolist()


def test_a_rate_of_frames_moves_them_apart_in_time():
    bridge = tiny_bridge("qwen2_5_vl")
    spans = {}
    for fps in (0.5, 1.0, 2.0):
        buffer = bridge.new_cache()
        bridge.open_clock(iter(()), buffer, fps, 4.0)
        bridge.refresh_visual(buffer, frames("qwen2_5_vl", 3))
        whole = buffer.flatten()
        spans[fps] = int(whole.positions[0, 0, -1] - whole.positions[0, 0, len(buffer.front) + 5])
    # tokens_per_second = 2: frames of one a second lie two positions apart.
    assert {fps: span // 2 for fps, span in spans.items()} == {0.5: 4, 1.0: 2, 2.0: 1}


def test_generate_sees_what_comes_before_the_question_and_nothing_after(family):
    bridge, source = tiny_bridge(family), iter(frames(family, 8))
    options = {"tokens_per_second": 4.0, "max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True}
    first = bridge.generate("what do you see?", frames=source, start_time=2.5, **options)
    buffer = first.past_key_values
    assert [frame.t_sec for frame in buffer.frames] == [0.0, 1.0, 2.0]
    [(begin, ids)] = first.responses
    assert (begin, first.token_times[0].tolist()) == (2.5, [2.5 + i / 4 for i in range(len(ids))])
    assert first.newest_frame_times.unique().tolist() == [2.0]
    assert first.frame_age[0].tolist() == [0.5 + i / 4 for i in range(len(ids))]
    assert first.frame_log == [[(0.0, 2.5), (1.0, 2.5), (2.0, 2.5)]]
    second = bridge.generate("and now?", frames=source, past_key_values=buffer, start_time=6.0, **options)
    assert [frame.t_sec for frame in buffer.frames] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert second.past_key_values is buffer
    assert [message["content"] for message in buffer.messages][::2] == ["what do you see?", "and now?"]
    assert second.sequences.tolist() == buffer.said.tolist()


def test_frames_that_were_waiting_are_seen_by_the_next_call():
    bridge = tiny_bridge()
    buffer, shown = bridge.new_cache(), frames("llava_onevision", 4)
    options = {"tokens_per_second": 4.0, "max_new_tokens": 2, "past_key_values": buffer}
    bridge.generate("what?", frames=iter(shown), start_time=1.0, **options)  # pulls the frame of 2 s to see its time
    bridge.generate("and now?", frames=iter(shown[3:]), start_time=3.0, **options)
    assert [frame.t_sec for frame in buffer.frames] == [0.0, 1.0, 2.0, 3.0]


def test_generate_refuses_what_does_not_go_together():
    bridge = tiny_bridge()
    buffer = bridge.new_cache()
    for message, kwargs in {
        "a stream has no max_length": {"max_length": 3},
        "num_beams=2 does not work with frames": {"num_beams": 2},
        "does not take colour": {"colour": "red"},
        "has its system prompt already": {
            "messages": [{"role": "system", "content": "look"}, {"role": "user", "content": "?"}],
            "past_key_values": buffer,
        },
        "answers are in the memory": {"messages": [{"role": "assistant", "content": "red"}]},
        "2 streams of frames": {"frames": [iter(()), iter(())]},
    }.items():
        with pytest.raises(ValueError, match=message):
            bridge.generate(**{"messages": "what?", "frames": iter(())} | kwargs)
    buffer.clock = 2000
    with pytest.raises(ValueError, match=r"start_time=1.0 lies before the stream's clock, 2.0 s"):
        bridge.generate("what?", frames=iter(()), start_time=1.0, past_key_values=buffer)


def test_a_model_of_another_family_is_refused_by_name():
    model = tiny_model("llava_onevision")
    model.config.model_type = "llava_next"
    with pytest.raises(ValueError, match="'llava_next' cannot be bridged, only llava_onevision, qwen2_5_vl, qwen3_vl"):
        StreamBridge(model, None)


def test_weights_of_another_family_are_not_even_loaded(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'gpt2' cannot be bridged"):
        StreamBridge.from_pretrained(tmp_path)


def test_when_it_may_speak():
    assert tiny_bridge().policies == ("on-question",)
    assert tiny_bridge(activation=object()).policies == ("activation", "on-question")


def test_an_answer_that_fails_leaves_what_was_said(family):
    """Row 6, an interrupt: the memory holds what was delivered and no more, and what is read next is right."""
    bridge = tiny_bridge(family)
    buffer = bridge.new_cache()
    bridge.refresh_visual(buffer, frames(family, 2))
    buffer.ask("what?")
    voice = bridge.voice(max_new_tokens=9, do_sample=False)
    heard: list[int] = []

    def falls_silent(token, now):
        if len(heard) == 2:
            raise KeyError("nobody listens")
        heard.append(token)
        return False

    with pytest.raises(KeyError):
        bridge.speak(buffer, simulated(bridge, buffer), voice, falls_silent)
    assert buffer.said[0].tolist()[-len(bridge.chat.answer_closing) - 2 :] == [*heard, *bridge.chat.answer_closing]
    buffer.ask("and now?")
    script, again = Script(), Script()
    answer(bridge, buffer, script)
    fresh = bridge.new_cache()
    bridge.refresh_visual(fresh, frames(family, 2))
    fresh.ask("what?")
    fresh.begin_answer()
    fresh.end_answer(heard)
    fresh.ask("and now?")
    answer(bridge, fresh, again)
    torch.testing.assert_close(torch.stack(script.scores), torch.stack(again.scores), atol=1e-4, rtol=0)


def test_a_forward_pass_that_fails_is_read_anew():
    bridge = tiny_bridge()
    buffer = bridge.new_cache()
    buffer.ask("what?")
    expected = answer(bridge, buffer)
    forward = bridge.family.forward
    bridge.family.forward = lambda part, past: forward(part, past) if len(part) > 1 else 1 / 0
    buffer = bridge.new_cache()
    buffer.ask("what?")
    with pytest.raises(ZeroDivisionError):
        answer(bridge, buffer)
    bridge.family.forward = forward
    assert buffer.read is None
    fresh = bridge.new_cache()
    fresh.ask("what?")
    assert answer(bridge, fresh) == expected


def test_it_is_loaded_with_its_processor(family, tmp_path):
    saved = tiny_bridge(family, seed=3)
    saved.model.save_pretrained(tmp_path)
    saved.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(saved.processor.chat_template)
    (tmp_path / "processor_config.json").write_text(json.dumps({"video_processor": saved.processor.settings}))
    loaded = StreamBridge.from_pretrained(tmp_path, max_length=99)
    assert loaded.max_length == 99
    picture = torch.randint(0, 255, (3, 40, 60), dtype=torch.uint8)
    pixels = [bridge.processor.video_processor.preprocess_frame(picture) for bridge in (saved, loaded)]
    assert torch.equal(*pixels)
    assert pixels[0].shape == (3, *SIZES[family])
    said = []
    for bridge in (saved, loaded):
        buffer = bridge.new_cache()
        bridge.refresh_visual(buffer, frames(family, 2))
        buffer.ask("what?")
        said.append(answer(bridge, buffer))
    assert said[0] == said[1]
