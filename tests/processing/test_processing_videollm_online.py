import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor

from live_tokenizers import BOS, EOS, TOKENIZERS, V, llama_3_pieces, merging, splitting, swallowing
from streamchat_hf.processing.labels_videollm_online import message_texts
from streamchat_hf.processing.processing_videollm_online import SYSTEM_PROMPT, VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor
from video_files import picture, write_video

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/videollm_online_text/D_labels.json").read_text())["cases"]
NAMES = [f"{case['config']} {case['conversation_name']}" for case in GOLDEN]
SYSTEM = {"role": "system", "content": "look ."}


def small_video_processor(**kwargs) -> StreamFormerVideoProcessor:
    return StreamFormerVideoProcessor(size={"height": 28, "width": 28}, **kwargs)


def small_processor(tokenizer=None, **kwargs) -> VideoLLMOnlineProcessor:
    return VideoLLMOnlineProcessor(small_video_processor(), merging() if tokenizer is None else tokenizer, **kwargs)


@pytest.fixture(scope="module", params=TOKENIZERS)
def processor(request) -> VideoLLMOnlineProcessor:
    return small_processor(TOKENIZERS[request.param](), frame_num_tokens=2)


def stream(frames: int) -> dict:
    return {"role": "stream", "num_frames": frames}


def user(content) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


def encode(processor, conversation, **kwargs):
    kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **kwargs}
    return processor.apply_chat_template(conversation, **kwargs)


# The text


@pytest.mark.parametrize("case", GOLDEN, ids=NAMES)
def test_the_authors_text(case: dict):
    fields = {name: case["config_fields"][name] for name in ("frame_num_tokens", "frame_token_interval")}
    processor = small_processor(llama_3_pieces(), **fields)
    assert processor.apply_chat_template(case["conversation"]) == case["text"]
    assert case["conversation"][0]["content"] == processor.system_prompt == SYSTEM_PROMPT


@pytest.mark.parametrize(
    ("flag", "end"),
    [
        ("add_generation_prompt", "\nAssistant:"),
        ("add_stream_prompt", "\n["),
        ("add_stream_generation_prompt", "]\nAssistant:"),
    ],
)
def test_how_a_prompt_ends(flag: str, end: str):
    processor, talk = small_processor(), [SYSTEM, user("q"), stream(1)]
    assert processor.apply_chat_template(talk, **{flag: True}) == processor.apply_chat_template(talk) + end
    both = processor.apply_chat_template([user("q")], add_stream_query_prompt=True, **{flag: True})
    assert both == "]\nUser: q" + end


@given(
    st.lists(
        st.one_of(
            st.builds(stream, st.integers(0, 3)),
            st.builds(user, st.text(max_size=5)),
            st.builds(assistant, st.text(max_size=5)),
        ),
        min_size=1,
    ),
    st.booleans(),
    st.sampled_from([",", None, " ' "]),
    st.integers(1, 4),
)
def test_the_template_writes_what_labels_are_made_for(talk, system, interval, tokens):
    processor = small_processor(TOKENIZER, frame_token_interval=interval, frame_num_tokens=tokens)
    talk = [*[SYSTEM][: int(system)], *talk]
    assert processor.apply_chat_template(talk) == "".join(message_texts(talk, processor.marks))


TOKENIZER = merging()


def test_without_a_token_to_begin_with_there_is_none():
    assert small_processor(splitting()).apply_chat_template([SYSTEM]) == "look .\n"
    assert small_processor(merging()).apply_chat_template([SYSTEM]) == f"{BOS}look .\n"


def test_texts_may_be_lists_and_frames_may_not():
    processor = small_processor()
    items = [{"type": "text", "text": "what "}, {"type": "text", "text": "now?"}]
    assert processor.apply_chat_template([user(items)]) == processor.apply_chat_template([user("what now?")])
    assert items[0]["text"] == "what "
    with pytest.raises(ValueError, match="'role': 'stream'"):
        processor.apply_chat_template([user([{"type": "video", "path": "clip.mp4"}])])


@pytest.mark.parametrize("talk", [[user("q"), SYSTEM], [{"role": "tool", "content": "x"}]])
def test_other_roles_are_errors(talk: list[dict]):
    with pytest.raises(
        Exception, match="the role is system .first., user, assistant or stream, not " + talk[-1]["role"]
    ):
        small_processor().apply_chat_template(talk)


def test_the_tokenizers_own_template_is_not_used():
    tokenizer = merging()
    tokenizer.chat_template = "{{ 'other' }}"
    assert small_processor(tokenizer).apply_chat_template([user("q")]) == "\nUser: q"
    other = small_processor(tokenizer, chat_template="{{ 'other' }}")
    assert other.apply_chat_template([user("q")]) == "other"
    with pytest.raises(ValueError, match="the chat template writes another text"):
        other.training_inputs([user("q")])


def test_the_mask_covers_answers():
    processor = small_processor()
    inputs = encode(processor, [SYSTEM, stream(2), assistant("it is red.")], return_assistant_tokens_mask=True)
    spoken = inputs["input_ids"][0][inputs["assistant_masks"][0].bool()]
    assert processor.decode(spoken).strip() == f"it is red.{EOS}"


# The tokens


def test_ids_of_the_published_model():
    processor = small_processor(llama_3_pieces(), frame_num_tokens=10)
    assert processor.token_ids() == {
        "v_placeholder_id": 128256,
        "frame_token_interval_id": 11,
        "eos_token_id": 128009,
        "stream_start_ids": [198, 58],
        "response_start_ids": [933, 72803, 25],
    }
    assert small_processor(llama_3_pieces(), frame_token_interval="").token_ids()["frame_token_interval_id"] is None


def test_tokenizers_differ_in_what_they_merge():
    # Otherwise the tests below prove little.
    merged, split = (small_processor(build()).token_ids()["response_start_ids"] for build in (merging, splitting))
    assert (len(merged), len(split)) == (3, 4)
    assert len(small_processor(merging()).piece_ids("?\n[")) == 2


def test_a_stream_in_pieces_has_the_tokens_of_the_whole(processor):
    """What the streaming loop feeds, piece after piece, is what training shows at once."""
    ids, tokenizer = processor.token_ids(), processor.tokenizer
    frame, interval = [ids["v_placeholder_id"]] * 2, [ids["frame_token_interval_id"]]
    talk = [SYSTEM, user("what is it ?"), stream(3), assistant("it is a blue square."), stream(1)]
    talk += [user("now ?"), assistant("red."), user("and then ?"), assistant("gone ?\n"), stream(2), assistant("")]
    whole = encode(processor, talk)["input_ids"][0].tolist()

    def answer(text: str) -> list[int]:
        """What is generated after a prompt."""
        prompt = processor.piece_ids("]\nAssistant:")
        spoken = processor.piece_ids(f"]\nAssistant: {text}{tokenizer.eos_token}")
        assert spoken[: len(prompt)] == prompt
        return spoken[len(prompt) :]

    def question(text: str, **flags) -> list[int]:
        return processor.piece_ids(processor.apply_chat_template([user(text)], add_generation_prompt=True, **flags))

    pieces = encode(processor, talk[:2], add_stream_prompt=True)["input_ids"][0].tolist()
    pieces += frame + interval + frame + interval + frame
    pieces += ids["response_start_ids"] + answer("it is a blue square.")
    pieces += ids["stream_start_ids"] + frame
    pieces += question("now ?", add_stream_query_prompt=True) + answer("red.")
    pieces += question("and then ?") + answer("gone ?\n")
    pieces += ids["stream_start_ids"] + frame + interval + frame
    pieces += ids["response_start_ids"] + answer("")
    assert pieces == whole


def test_a_piece_is_not_the_beginning_of_a_text():
    # This kind of tokenizer puts a space before a text, and a piece has none.
    processor = small_processor(TOKENIZERS["sentencepiece"]())
    whole = processor.tokenizer(f"{V}]\nAssistant:", add_special_tokens=False)["input_ids"]
    assert whole[1:] == processor.piece_ids("]\nAssistant:")
    assert processor.tokenizer("]\nAssistant:", add_special_tokens=False)["input_ids"] != whole[1:]


def test_nothing_is_put_before_a_prompt():
    processor = small_processor()
    bos = processor.tokenizer.bos_token_id
    assert processor.tokenizer("q")["input_ids"][0] == bos
    assert bos not in encode(processor, [user("q")])["input_ids"][0]
    assert encode(processor, [SYSTEM, user("q")])["input_ids"][0].tolist().count(bos) == 1
    assert bos not in processor(text="q", return_tensors="pt")["input_ids"][0]


def test_a_batch_is_padded_on_the_left():
    processor = small_processor()
    short, long = [user("q")], [user("what is it?")]
    inputs = encode(processor, [short, long])
    alone = encode(processor, short)["input_ids"][0]
    assert inputs["input_ids"][0, -len(alone) :].tolist() == alone.tolist()
    assert inputs["attention_mask"][0].tolist() == [0] * (inputs["input_ids"].shape[1] - len(alone)) + [1] * len(alone)


def test_the_tokenizer_gets_what_it_lacks():
    tokenizer = merging()
    size = len(tokenizer)
    small_processor(tokenizer)
    assert tokenizer.convert_tokens_to_ids(V) == size and len(tokenizer) == size + 1
    assert tokenizer.pad_token == EOS
    small_processor(tokenizer)
    assert len(tokenizer) == size + 1
    assert len(tokenizer(f"a{V}{V}b", add_special_tokens=False)["input_ids"]) == 4


def test_what_cannot_work_is_an_error():
    with pytest.raises(ValueError, match="'; ;' is . tokens, not one"):
        small_processor(splitting(), frame_token_interval="; ;").token_ids()
    with pytest.raises(ValueError, match="the tokenizer does not know all of '%'"):
        small_processor(TOKENIZERS["streamworld"](), frame_token_interval="%").token_ids()
    with pytest.raises(ValueError, match="begin with the same token"):
        small_processor(splitting(), frame_token_interval="]").token_ids()
    with pytest.raises(ValueError, match="merges across line breaks"):
        small_processor(swallowing()).token_ids()
    with pytest.raises(ValueError, match="frame_num_tokens=0"):
        small_processor(frame_num_tokens=0)
    tokenizer = merging()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        small_processor(tokenizer)
    with pytest.raises(TypeError, match="video_processor must be"):
        VideoLLMOnlineProcessor(merging(), merging())


# The frames


def test_a_stream_has_the_models_rate(tmp_path):
    processor = small_processor(frame_fps=4)
    clip = write_video(tmp_path / "clip.mp4", range(0, 2000, 50))
    streamed = list(processor.stream(clip))
    whole = processor(videos=clip, return_tensors="pt")
    assert set(whole) == {"pixel_values_videos", "frame_mask"}
    assert torch.equal(whole["pixel_values_videos"][0], torch.stack([frame.pixel_values for frame in streamed]))
    assert whole["frame_mask"].tolist() == [[1] * len(streamed)]
    assert len(list(processor.stream(clip, fps=2))) < len(streamed)


def test_clips_of_different_lengths_are_told_from_padding(tmp_path):
    processor = small_processor()
    paths = [write_video(tmp_path / f"{n}.mp4", range(0, n * 500, 500)) for n in (2, 4)]
    clips = processor(videos=paths, return_tensors="pt")
    assert clips["frame_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert not clips["pixel_values_videos"][0, 2:].any()
    assert processor(videos=paths[1], num_frames=3)["frame_mask"].sum() == 3


@pytest.mark.parametrize(
    ("height", "width", "inner"),
    [
        (54, 96, (16, 28)),
        (96, 54, (28, 16)),
        (40, 40, (28, 28)),
        (7, 14, (14, 28)),
        (27, 28, (28, 28)),
        (2, 300, (2, 28)),
    ],
)
def test_frames_keep_their_shape_in_a_black_square(height: int, width: int, inner: tuple[int, int]):
    video_processor = small_video_processor(do_pad=True)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels = video_processor.preprocess_frame(image)
    assert pixels.shape == (3, 28, 28)
    top, left = (28 - inner[0]) // 2, (28 - inner[1]) // 2
    shown = pixels[:, top : top + inner[0], left : left + inner[1]]
    small = np.array(Image.fromarray(image).resize(inner[::-1], Image.Resampling.BICUBIC))
    expected = torch.from_numpy(small).permute(2, 0, 1).float() / 127.5 - 1
    assert (shown - expected).abs().max() <= 4 / 255 + 1e-6
    outside = torch.ones(28, 28, dtype=torch.bool)
    outside[top : top + inner[0], left : left + inner[1]] = False
    assert (pixels[:, outside] == -1).all()


def test_a_picture_that_is_square_is_the_same_either_way():
    image = picture(0, 40, 40)
    padded, plain = (small_video_processor(do_pad=pad).preprocess_frame(image) for pad in (True, False))
    assert torch.equal(padded, plain)


# Saving


def test_saved_is_loaded(processor, tmp_path):
    fields = {
        "frame_num_tokens": 5,
        "frame_token_interval": None,
        "v_placeholder": "<frame>",
        "frame_fps": 1.0,
        "system_prompt": "be brief .",
    }
    other = VideoLLMOnlineProcessor(small_video_processor(do_pad=True), copy.deepcopy(processor.tokenizer), **fields)
    for saved in (processor, other):
        saved.save_pretrained(tmp_path)
        loaded = VideoLLMOnlineProcessor.from_pretrained(tmp_path)
        assert {"auto_map": saved.auto_map} | loaded.to_dict() == saved.to_dict()
        assert loaded.chat_template == saved.chat_template
        assert loaded.token_ids() == saved.token_ids()
        talk = [SYSTEM, user("what ?"), stream(2), assistant("red .")]
        assert encode(loaded, talk)["input_ids"].tolist() == encode(saved, talk)["input_ids"].tolist()
        image = picture(0, 20, 40)
        pixels = [p.video_processor.preprocess_frame(image) for p in (loaded, saved)]
        assert torch.equal(*pixels)
    assert {name: getattr(loaded, name) for name in fields} == fields
    assert loaded.apply_chat_template([stream(2)]) == "\n[" + "<frame>" * 10 + "]"


ELSEWHERE = """
import json, sys
from remote_code_script import NotInstalled, check_hidden
sys.meta_path.insert(0, NotInstalled())
check_hidden()
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
processor.save_pretrained(sys.argv[2])
processor = AutoProcessor.from_pretrained(sys.argv[2], trust_remote_code=True)
talk = json.loads(sys.argv[3])
clip = processor(videos=sys.argv[4], return_tensors="pt")
streamed = [frame.pixel_values for frame in processor.stream(sys.argv[4])]
same = all((a == b).all() for a, b in zip(clip["pixel_values_videos"][0], streamed, strict=True))
result = [type(processor).__name__, processor.training_inputs(talk), processor.token_ids(), bool(same)]
print("RESULT " + json.dumps(result))
"""


def test_it_works_where_the_package_is_not_installed(tmp_path):
    processor = small_processor(frame_num_tokens=3)
    processor.save_pretrained(tmp_path / "saved")
    talk = [SYSTEM, user("what is it?"), stream(3) | {"learn": True}, assistant("it is red.") | {"learn": True}]
    clip = write_video(tmp_path / "clip.mp4")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, tmp_path / "saved", tmp_path / "again", json.dumps(talk), clip],
        env=environment
        | {"PYTHONPATH": str(Path(__file__).parents[1]), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    name, inputs, ids, same = json.loads(done.stdout.split("RESULT ")[1])
    assert (name, inputs, ids, same) == (
        "VideoLLMOnlineProcessor",
        processor.training_inputs(talk),
        processor.token_ids(),
        True,
    )


def test_with_the_package_its_own_class_is_used(tmp_path):
    small_processor().save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(loaded).__name__ == "VideoLLMOnlineProcessor"
    assert loaded.token_ids() == small_processor().token_ids()
