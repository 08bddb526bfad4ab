import json

import pytest

from fake_talker import FakeProcessor, FakeTalker
from streamchat_hf.streaming.answer import ask


@pytest.fixture
def processor():
    return FakeProcessor()


def test_answer_has_the_words_with_their_times(processor):
    talker = FakeTalker(processor.tokenizer, "a red circle <eos>")
    frames = processor.stream("clip", fps=1)
    answer = ask(talker, processor, "what do you see ?", frames, start_time=2.0, tokens_per_second=2)
    assert answer.text == "a red circle"
    assert answer.words == [("a", 2.0, 2.0), ("red", 2.5, 2.0), ("circle", 3.0, 3.0)]
    assert (len(answer.ids), answer.token_times) == (4, [2.0, 2.5, 3.0, 3.5])
    assert talker.calls[0]["do_sample"] is False and talker.calls[0]["return_dict_in_generate"] is True


def test_words_are_shown_while_they_are_spoken(processor):
    talker = FakeTalker(processor.tokenizer, "now blue")
    shown = []
    answer = ask(
        *(talker, processor, "what do you see ?", processor.stream("clip", fps=1)),
        tokens_per_second=2,
        on_words=lambda words: shown.append(list(words)),
    )
    assert shown == [answer.words[:1], answer.words]


def test_to_dict_is_json_without_nan(processor):
    talker = FakeTalker(processor.tokenizer, "now blue")
    late = ((time + 0.25, pixels) for time, pixels in processor.stream("clip", fps=1))
    answer = ask(talker, processor, "what do you see ?", late, tokens_per_second=2, max_new_tokens=2)
    value = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert value["answer"] == "now blue"
    assert value["words"][0] == {"text": "now", "time": 0.0, "newest_frame_time": None, "frame_age": None}
    assert value["tokens"][1] == {"id": answer.ids[1], "time": 0.5, "newest_frame_time": 0.25, "frame_age": 0.25}
