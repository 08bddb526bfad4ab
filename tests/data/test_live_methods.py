"""Three layouts of one row: what is said and seen stays, and each learns what the paper says it learns."""

import copy
import itertools

import pytest

from live_tokenizers import merging
from streamchat_hf.data.live_conversation import LiveTurn, check_sample, lay_out, learned_frames
from streamchat_hf.data.live_methods import METHODS, check_method, per_frame, without_silence
from streamchat_hf.data.live_streamworld import LiveStreamWorld, build_live_tokenizer
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

ROWS = LiveStreamWorld(20, num_frames=14)


def frames_before_messages(conversation):
    """Everything that is said, with the number of frames before it."""
    seen, said = 0, []
    for message in conversation:
        seen += message.get("num_frames", 0)
        if message["role"] != "stream" and message["content"]:
            said.append((seen, message["role"], message["content"], message.get("learn", False)))
    return seen, said


@pytest.mark.parametrize("index", range(20))
def test_a_frame_a_turn_says_the_same_after_the_same_frames(index):
    row = ROWS[index]
    before = copy.deepcopy(row)
    laid_out = per_frame(row)
    check_sample(laid_out)
    assert row == before
    assert frames_before_messages(laid_out["conversation"]) == frames_before_messages(row["conversation"])
    streams = [message for message in laid_out["conversation"] if message["role"] == "stream"]
    assert {message["num_frames"] for message in streams} == {1} and len(streams) == 14
    silent = [message for message in laid_out["conversation"] if message.get("content") == ""]
    # Silence is learned at the frames at which it was, and at no other.
    learned = sum(learned_frames(message) for message in row["conversation"] if message["role"] == "stream")
    roles = [message["role"] for message in row["conversation"]]
    spoken = list(itertools.pairwise(roles)).count(("stream", "assistant"))
    assert sum(message["learn"] for message in silent) == learned - spoken


def test_a_frame_before_a_question_is_silent_and_not_learned():
    turns = [LiveTurn("user", "when ?", 2), LiveTurn("assistant", "now", 4)]
    row = {"conversation": lay_out(turns, [0.0, 0.5, 1.0, 1.5, 2.0]), "frame_times": [0.0] * 5, "media": None}
    short = [(m["role"], m.get("content"), m.get("learn")) for m in per_frame(row)["conversation"]]
    frame, silence = ("stream", None, False), ("assistant", "", True)
    unlearned = ("assistant", "", False)
    assert short == [
        *(frame, silence, frame, unlearned, ("user", "when ?", False)),
        *(frame, silence, frame, ("assistant", "now", True), frame, unlearned),
    ]


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("tokenizer", [build_live_tokenizer, merging])
@pytest.mark.parametrize("interval", [",", None])
def test_without_silence_the_answers_and_the_frames_that_speak_are_learned(interval, tokenizer, tokens):
    video_processor = StreamFormerVideoProcessor(size={"height": 16, "width": 16})
    processor = VideoLLMOnlineProcessor(video_processor, tokenizer(), None, tokens, interval)
    ids = processor.token_ids()
    silence = ids["eos_token_id"] if interval is None else ids["frame_token_interval_id"]
    v, speak = ids["v_placeholder_id"], ids["response_start_ids"][0]
    conversation = lay_out([LiveTurn("user", "it is", 0), LiveTurn("assistant", "now red,", 3)], [0.0, 0.5, 1.0, 1.5])
    text = processor.training_inputs([{"role": "system", "content": "it is"}, *conversation])
    labels = without_silence(text["input_ids"], text["labels"], v, silence)
    at_frames = [label for token, label in zip(text["input_ids"], labels, strict=True) if token == v and label != -100]
    assert at_frames == [speak]
    words = [
        (label, before)
        for token, label, before in zip(text["input_ids"], labels, text["labels"], strict=True)
        if token != v
    ]
    assert all(label == before for label, before in words) and ids["eos_token_id"] in dict(words)
    assert text["labels"].count(silence) > labels.count(silence)


def test_unknown_methods_are_refused():
    assert [check_method(method) for method in METHODS] == list(METHODS)
    with pytest.raises(ValueError, match="unknown learning method 'ours': expected one of"):
        check_method("ours")
