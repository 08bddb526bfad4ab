import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live_tokenizers import TOKENIZERS, V, llama_3_pieces, swallowing
from streamchat_hf.processing.labels_videollm_online import (
    IGNORED,
    Marks,
    labels_from_ranges,
    learn_ranges,
    learned_frames,
    message_texts,
)
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/videollm_online_text/D_labels.json").read_text())["cases"]
NAMES = [f"{case['config']} {case['conversation_name']}" for case in GOLDEN]
BROKEN = [case for case in GOLDEN if "collator_error" in case]
MARKS = Marks("<v>", 2, ",", "<s>", "</s>")
VIDEO_PROCESSOR = StreamFormerVideoProcessor(size={"height": 28, "width": 28})


def golden_processor(case: dict) -> VideoLLMOnlineProcessor:
    fields = {name: case["config_fields"][name] for name in ("frame_num_tokens", "frame_token_interval")}
    return VideoLLMOnlineProcessor(VIDEO_PROCESSOR, llama_3_pieces(), **fields)


def stream(frames: int, learn: bool | int = True) -> dict:
    return {"role": "stream", "num_frames": frames, "learn": learn}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, learn: bool = True) -> dict:
    return {"role": "assistant", "content": content, "learn": learn}


def learned(conversation: list[dict], marks: Marks = MARKS, compat: bool = False) -> list[str]:
    """The characters of each range."""
    text = "".join(message_texts(conversation, marks))
    return [text[start:stop] for start, stop in learn_ranges(conversation, marks, compat)]


# The authors' values


@pytest.mark.parametrize("case", GOLDEN, ids=NAMES)
def test_the_golden_text_is_written(case: dict):
    assert "".join(message_texts(case["conversation"], golden_processor(case).marks)) == case["text"]


@pytest.mark.parametrize("case", GOLDEN, ids=NAMES)
def test_the_golden_ranges(case: dict):
    marks = golden_processor(case).marks
    golden = [tuple(pair) for pair in case["learn_ranges"]]
    assert learn_ranges(case["conversation"], marks, compat=True) == golden
    assert (learn_ranges(case["conversation"], marks) == golden) == (case not in BROKEN)


@pytest.mark.parametrize("case", [case for case in GOLDEN if case not in BROKEN], ids=lambda c: c["conversation_name"])
@pytest.mark.parametrize("compat", [False, True])
def test_the_golden_labels(case: dict, compat: bool):
    inputs = golden_processor(case).training_inputs(case["conversation"], compat)
    assert inputs == {"input_ids": case["llama3_input_ids"], "labels": case["llama3_labels"]}


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case["conversation_name"])
def test_without_an_interval_the_authors_collator_fails_and_ours_teaches_to_speak(case: dict):
    processor = golden_processor(case)
    with pytest.raises(RuntimeError) as error:
        processor.training_inputs(case["conversation"], compat=True)
    assert f"{error.typename}: {error.value}" == case["collator_error"]
    inputs = processor.training_inputs(case["conversation"])
    ids, labels = inputs["input_ids"], inputs["labels"]
    at_frames = [label for token, label in zip(ids, labels, strict=True) if token == 128256]
    # Silence is the end-of-answer token, 128009; a run's last frame says "]\n", 933; the first stream is not learned.
    first = case["conversation"][1]["role"] == "stream"
    assert at_frames == ([IGNORED, 128009, 128009, 128009, 933, 933] if first else [128009, 128009, 933])
    silent = [128009] * 3 if first else [128009] * 2
    expected = [token for _, token, label in zip(ids, ids[1:], labels, strict=False) if label not in (IGNORED, 128009)]
    given = [label for label in labels if label not in (IGNORED, 128009)]
    assert given == expected and labels.count(128009) == len(silent) + len(given) // 7


# What is learned


def test_what_each_flag_means():
    talk = [
        user("q"),
        stream(3),
        assistant("yes"),
        stream(3, 2),
        assistant("no", False),
        stream(2, False),
        assistant(""),
    ]
    assert learned(talk) == [",", ",", "]\n", "Assistant: yes</s>", ",", ",", "Assistant: </s>"]
    assert learned([{"role": role, **rest} for role, rest in (("user", {"content": "q"}),)]) == []


@pytest.mark.parametrize(("learn", "frames"), [(True, 4), (False, 0), (None, 0), (0, 0), (1, 1), (3, 3), (9, 4)])
def test_learned_frames(learn: bool | int | None, frames: int):
    message = {"role": "stream", "num_frames": 4, "learn": learn}
    assert learned_frames({k: v for k, v in message.items() if v is not None}) == frames


@pytest.mark.parametrize("after", [[user("q"), assistant("a")], []], ids=["a question", "the end"])
def test_nobody_is_taught_to_speak_where_no_answer_follows(after: list[dict]):
    watched = [stream(3), *after]
    assert learned(watched)[:2] == [",", ","]
    assert not [text for text in learned(watched) if text.startswith("]")]
    assert [text[0] for text in learned(watched, compat=True)][:3] == [",", ",", "]"]
    assert learned([stream(1), *after])[:1] != ["]\n"]


def test_a_stream_of_no_frames_is_not_there():
    talk = [user("q"), stream(2), stream(0), assistant("a")]
    assert message_texts(talk, MARKS)[2] == ""
    assert learned(talk) == [",", "]\n", "Assistant: a</s>"]


def test_a_long_interval_does_not_reach_into_the_answer():
    talk, marks = [stream(2), assistant("a")], MARKS._replace(interval=" ; ")
    assert learned(talk, marks) == [" ; ", "]\n", "Assistant: a</s>"]
    assert learned(talk, marks, compat=True) == [" ; ", "]\nAs", "Assistant: a</s>"]


@pytest.mark.parametrize(
    "talk", [[user("q"), {"role": "system", "content": "late"}], [{"role": "tool", "content": "x"}]]
)
def test_what_cannot_be_written_is_named(talk: list[dict]):
    with pytest.raises(ValueError, match=f"message {len(talk) - 1} has the role '{talk[-1]['role']}'"):
        message_texts(talk, MARKS)


# From ranges to labels, for any tokenizer


def naive_labels(ids, offsets, ranges, placeholder, eos):
    labels = []
    for j in range(len(ids)):
        start = offsets[j + 1][0] if j + 1 < len(ids) else None
        inside = start is not None and any(first <= start < stop for first, stop in ranges)
        labels.append((eos if ids[j + 1] == placeholder else ids[j + 1]) if inside else IGNORED)
    return labels


@given(st.data())
def test_labels_are_those_of_the_definition(data):
    lengths = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=30))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    ids = data.draw(st.lists(st.integers(0, 9), min_size=len(lengths), max_size=len(lengths)))
    cuts = sorted(data.draw(st.sets(st.integers(0, sum(lengths) + 2))))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    offsets = [(start, 0) for start in starts]  # ends are wrong and not used
    assert labels_from_ranges(ids, offsets, ranges, 3, 7) == naive_labels(ids, offsets, ranges, 3, 7)


WORDS = ["it is red.", "what is it?", "", "a blue square", "naïve 🟦 …", "🟥🟥 gone?\n", "[1, 2]"]
MESSAGES = st.one_of(
    st.builds(stream, st.integers(0, 4), st.one_of(st.booleans(), st.integers(0, 5))),
    st.builds(user, st.sampled_from(WORDS)),
    st.builds(assistant, st.sampled_from(WORDS), st.booleans()),
)


@pytest.mark.parametrize("interval", [",", None], ids=["comma", "no interval"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_label_is_the_next_token_or_silence(name: str, interval: str | None):
    processor = VideoLLMOnlineProcessor(
        VIDEO_PROCESSOR, TOKENIZERS[name](), frame_num_tokens=3, frame_token_interval=interval
    )
    ids_of = processor.token_ids()
    silence = ids_of["frame_token_interval_id"] if interval else ids_of["eos_token_id"]
    speak, placeholder = ids_of["response_start_ids"][0], ids_of["v_placeholder_id"]

    @given(st.lists(MESSAGES, min_size=1, max_size=8))
    def check(talk):
        inputs = processor.training_inputs([{"role": "system", "content": "look."}, *talk])
        ids, labels = inputs["input_ids"], inputs["labels"]
        after = [ids_of["eos_token_id"] if token == placeholder else token for token in ids[1:]]
        assert all(label in (IGNORED, token) for label, token in zip(labels, [*after, IGNORED], strict=True))
        decisions = [label for token, label in zip(ids, labels, strict=True) if token == placeholder]
        assert set(decisions) <= {IGNORED, silence, speak}
        # One decision for each learned frame, and a run's last frame speaks if and only if an answer follows.
        shown = [message for message in talk if message.get("num_frames") != 0]
        expected = []
        for message, following in zip(shown, [*shown[1:], {"role": None}], strict=False):
            if message["role"] == "stream":
                frames, count = message["num_frames"], learned_frames(message)
                row = [silence] * (frames - 1) + [speak if following["role"] == "assistant" else IGNORED]
                row = [label if i < count else IGNORED for i, label in enumerate(row)]
                expected += [label for decision in row for label in (IGNORED, IGNORED, decision)]
        assert decisions == expected

    check()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_answer_is_learned_from_its_first_glue_token_to_its_end(name: str):
    processor = VideoLLMOnlineProcessor(VIDEO_PROCESSOR, TOKENIZERS[name]())
    talk = [user("what is it?"), stream(2), assistant("it is a blue square.")]
    labels = processor.training_inputs(talk)["labels"]
    spoken = labels[labels.index(processor.token_ids()["response_start_ids"][0]) :]
    assert spoken[:-1] == processor.piece_ids(f"]\nAssistant: it is a blue square.{processor.tokenizer.eos_token}")
    assert spoken[-1] == IGNORED


def test_a_tokenizer_that_merges_across_the_colon_is_refused_but_can_be_labelled():
    processor = VideoLLMOnlineProcessor(VIDEO_PROCESSOR, swallowing())
    talk = [user("q"), stream(2), assistant("it is a blue square.")]
    with pytest.raises(ValueError, match="merges 'Assistant:' with the answer 'it is a blue square.'"):
        processor.training_inputs(talk)
    text = "".join(message_texts(talk, processor.marks))
    encoded = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets, ranges = encoded["input_ids"], encoded["offset_mapping"], learn_ranges(talk, processor.marks)
    placeholder, eos = processor.tokenizer.convert_tokens_to_ids(V), processor.tokenizer.eos_token_id
    labels = labels_from_ranges(ids, offsets, ranges, placeholder, eos)
    assert labels == naive_labels(ids, offsets, ranges, placeholder, eos)
    # The token that closes the frames and begins the answer is what the last frame must say.
    assert processor.tokenizer.decode([labels[ids.index(placeholder) + 2]]).startswith("]\nAssistant")
    with pytest.raises(RuntimeError, match="0 elements"):
        labels_from_ranges(ids, offsets, ranges, placeholder, eos, compat=True)


def test_several_tokens_of_one_character_are_learned_together():
    # A range that starts at a character of two tokens; the authors' look-up finds two starts.
    ids, offsets, ranges = [5, 6, 7, 8], [(0, 1), (1, 2), (1, 2), (2, 3)], [(1, 2)]
    assert labels_from_ranges(ids, offsets, ranges, 0, 9) == [6, 7, IGNORED, IGNORED]
    with pytest.raises(RuntimeError, match="2 elements"):
        labels_from_ranges(ids, offsets, ranges, 0, 9, compat=True)


def test_the_authors_teach_the_end_of_a_recording_as_speaking():
    case = next(case for case in GOLDEN if case["conversation_name"] == "narration")
    processor = golden_processor(case)
    watched = [*case["conversation"][:-1]]  # its last stream, of one frame, is not answered any more
    assert [label for label in processor.training_inputs(watched, compat=True)["labels"] if label == 60] == [60]
    assert 60 not in processor.training_inputs(watched)["labels"]


def test_offsets_must_fit():
    with pytest.raises(ValueError, match="2 tokens, but 1 offsets"):
        labels_from_ranges([1, 2], [(0, 1)], [], 0, 0)
