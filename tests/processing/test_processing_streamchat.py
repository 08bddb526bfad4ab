import base64
import copy
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.pipelines.image_text_to_text import Chat, ImageTextToTextPipeline

from streamchat_hf.processing.processing_streamchat import CHAT_TEMPLATE, StreamChatProcessor
from streamchat_hf.processing.video_processing_streamformer import NEVER, StreamFormerVideoProcessor
from video_files import picture, real_clip, write_video

WORDS = ["What", "is", "happening", "now", "?", "A", "dog", "runs", "Nothing", "Be", "brief", ".", "and", "then"]
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
BIKES = str(real_clip("bikes.mp4"))
PHOTO = Image.fromarray(picture(0))


def tokenizer(**kwargs) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<pad>", IM_START, IM_END, "\n", "system", "user", "assistant", *WORDS]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    split = pre_tokenizers.Split
    backend.pre_tokenizer = pre_tokenizers.Sequence([split("\n", "isolated"), split(" ", "removed")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token=IM_END,
        extra_special_tokens=[IM_START],
        **kwargs,
    )


@pytest.fixture(scope="module")
def processor() -> StreamChatProcessor:
    return StreamChatProcessor(StreamFormerVideoProcessor(size={"height": 28, "width": 28}), tokenizer())


def user(*content) -> dict:
    return {"role": "user", "content": list(content)}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def encode(processor, conversation, **kwargs):
    kwargs = {"tokenize": True, "return_dict": True, "return_tensors": "pt", **kwargs}
    return processor.apply_chat_template(conversation, **kwargs)


def test_a_question_about_a_video(processor):
    inputs = encode(processor, [user({"type": "video", "path": BIKES}, text("What is happening ?"))],
                    add_generation_prompt=True)  # fmt: skip
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values_videos", "frame_times"}
    assert processor.decode(inputs["input_ids"][0]).split() == (
        f"{IM_START} user What is happening ? {IM_END} {IM_START} assistant".split()
    )
    alone = processor.video_processor(BIKES)
    assert torch.equal(inputs["pixel_values_videos"], alone["pixel_values_videos"])
    assert torch.equal(inputs["frame_times"], alone["frame_times"])


def test_a_question_alone_gives_no_pixels(processor):
    inputs = encode(processor, [user(text("What now ?"))], add_generation_prompt=True)
    assert set(inputs) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("arguments", [{"fps": 2}, {"num_frames": 3}, {"do_sample_frames": False}, {"max_frames": 4}])
def test_sampling_arguments_reach_the_video_processor(processor, arguments: dict):
    conversation = [user({"type": "video", "path": BIKES}, text("What ?"))]
    inputs = encode(processor, conversation, processor_kwargs=dict(arguments))
    assert torch.equal(inputs["frame_times"], processor.video_processor(BIKES, **arguments)["frame_times"])
    direct = processor(text="What ?", videos=BIKES, return_tensors="pt", **arguments)
    assert torch.equal(direct["pixel_values_videos"], inputs["pixel_values_videos"])


# The template


def test_a_list_of_texts_reads_like_a_string(processor):
    as_string = [{"role": "system", "content": "Be brief ."}, {"role": "user", "content": "What now ?"}]
    as_list = [
        {"role": "system", "content": [text("Be brief .")]},
        user({"type": "image", "image": PHOTO}, text("What "), {"type": "video", "video": BIKES}, text("now ?")),
    ]
    for tokenize in (True, False):
        first, second = (
            processor.apply_chat_template(c, tokenize=tokenize, add_generation_prompt=True)
            for c in (as_string, as_list)
        )
        assert first == second


def test_the_template_itself_takes_lists(processor):
    # Trainers and servers render it through the tokenizer, which knows nothing of videos.
    plain = tokenizer(chat_template=CHAT_TEMPLATE)
    conversation = [user({"type": "video"}, text("What now ?")), {"role": "assistant", "content": [text("A dog")]}]
    assert plain.apply_chat_template(conversation, tokenize=False) == (
        f"{IM_START}user\nWhat now ?{IM_END}\n{IM_START}assistant\nA dog{IM_END}\n"
    )
    assert processor.apply_chat_template(conversation) == plain.apply_chat_template(conversation, tokenize=False)


@pytest.mark.parametrize("tensors", ["pt", None])
def test_the_mask_covers_answers_and_the_tokens_that_end_them(processor, tensors: str | None):
    conversation = [
        {"role": "system", "content": "Be brief ."},
        user({"type": "video", "path": BIKES}, text("What is happening ?")),
        {"role": "assistant", "content": "A dog runs ."},
        user(text("and then ?")),
        {"role": "assistant", "content": [text("Nothing .")]},
    ]
    inputs = encode(processor, conversation, return_tensors=tensors, return_assistant_tokens_mask=True)
    ids, mask = (torch.as_tensor(inputs[name])[0] for name in ("input_ids", "assistant_masks"))
    assert len(ids) == len(mask)
    spoken = processor.tokenizer.convert_ids_to_tokens(ids[mask.bool()])
    assert spoken == ["A", "dog", "runs", ".", IM_END, "Nothing", ".", IM_END]


def test_the_mask_of_a_padded_batch(processor):
    short = [user(text("What ?")), {"role": "assistant", "content": "A dog"}]
    long = [user(text("What is happening now ?")), {"role": "assistant", "content": "Nothing"}]
    for side in ("left", "right"):
        inputs = encode(
            processor, [short, long], return_assistant_tokens_mask=True, processor_kwargs={"padding_side": side}
        )
        for ids, mask, spoken in zip(
            inputs["input_ids"], inputs["assistant_masks"], (["A", "dog"], ["Nothing"]), strict=True
        ):
            assert processor.tokenizer.convert_ids_to_tokens(ids[mask.bool()]) == [*spoken, IM_END]


def test_a_prompt_begins_the_conversation_that_follows_it(processor):
    question = [user(text("What now ?"))]
    prompt = processor.apply_chat_template(question, add_generation_prompt=True)
    whole = processor.apply_chat_template([*question, {"role": "assistant", "content": "A dog"}])
    assert whole == f"{prompt}A dog{IM_END}\n"


@pytest.mark.parametrize("content", ["A dog", [text("A dog")]])
def test_an_answer_can_be_continued(processor, content):
    conversation = [user(text("What now ?")), {"role": "assistant", "content": content}]
    assert processor.apply_chat_template(conversation, continue_final_message=True).endswith("assistant\nA dog")


def test_which_template_is_used():
    video_processor, own = StreamFormerVideoProcessor(), "{{ messages[0]['content'] }}"
    assert StreamChatProcessor(video_processor, tokenizer()).chat_template == CHAT_TEMPLATE
    assert StreamChatProcessor(video_processor, tokenizer(chat_template=own)).chat_template == own
    other = StreamChatProcessor(video_processor, tokenizer(chat_template=own), chat_template=CHAT_TEMPLATE)
    assert other.chat_template == CHAT_TEMPLATE


def test_templates_that_know_only_strings_work_too():
    own = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] }}{% endfor %}"
    plain = StreamChatProcessor(StreamFormerVideoProcessor(), tokenizer(chat_template=own))
    conversation = [user({"type": "video", "path": BIKES}, text("What now ?"))]
    assert plain.apply_chat_template(conversation) == "user What now ?"
    assert encode(plain, conversation, processor_kwargs={"num_frames": 2})["frame_times"].shape == (1, 2)


def test_the_conversation_is_left_as_it_was(processor):
    conversation = [user({"type": "image", "image": PHOTO}, text("What ?"))]
    before = copy.deepcopy(conversation)
    encode(processor, conversation)
    assert conversation == before


# Images, and several things shown


def test_an_image_is_a_clip_of_one_frame(processor, tmp_path):
    PHOTO.save(tmp_path / "photo.png")
    data = base64.b64encode((tmp_path / "photo.png").read_bytes()).decode()
    expected = processor.video_processor.preprocess_frame(PHOTO)
    for item in (
        {"type": "image", "image": PHOTO},
        {"type": "image", "image": np.array(PHOTO)},
        {"type": "image", "path": str(tmp_path / "photo.png")},
        {"type": "image", "path": tmp_path / "photo.png"},
        {"type": "image", "base64": data},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
    ):
        inputs = encode(processor, [user(item, text("What ?"))])
        assert torch.equal(inputs["pixel_values_videos"], expected[None, None])
        assert inputs["frame_times"].tolist() == [[0]]


def test_what_a_conversation_shows_is_one_timeline_in_its_order(processor, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [0, 400, 800])
    inputs = encode(
        processor,
        [
            user({"type": "image", "image": PHOTO}, {"type": "video", "path": str(clip)}, text("What ?")),
            {"role": "assistant", "content": "A dog"},
            user({"type": "image", "image": PHOTO}, {"type": "video", "video": str(clip)}, text("and then ?")),
        ],
    )
    assert inputs["frame_times"].tolist() == [[0, 0, 400, 800, 800, 800, 1200, 1600]]
    pixels = processor.video_processor(clip)["pixel_values_videos"]
    photo = processor.video_processor.preprocess_frame(PHOTO)[None, None]
    assert torch.equal(inputs["pixel_values_videos"], torch.cat([photo, pixels, photo, pixels], dim=1))


def test_a_batch_has_one_row_per_conversation(processor, tmp_path):
    clip = write_video(tmp_path / "clip.mp4", [0, 400, 800])
    inputs = encode(
        processor,
        [
            [user({"type": "video", "path": str(clip)}, text("What is happening now ?"))],
            [user(text("What ?"))],
            [user({"type": "image", "image": PHOTO}, text("What ?"))],
        ],
    )
    assert len(inputs["input_ids"]) == len(inputs["attention_mask"]) == 3
    assert inputs["frame_times"].tolist() == [[0, 400, 800], [NEVER] * 3, [0, NEVER, NEVER]]
    assert inputs["pixel_values_videos"].shape == (3, 3, 3, 28, 28)
    assert (inputs["pixel_values_videos"][1] == 0).all()


def test_a_video_as_a_list_of_frames(processor):
    frames = [PHOTO] * 3
    for kwargs in ({}, {"fps": 2}):
        inputs = encode(processor, [user({"type": "video", "video": frames}, text("What ?"))], processor_kwargs=kwargs)
        assert torch.equal(inputs["frame_times"], processor.video_processor(frames, **kwargs)["frame_times"])


def test_content_of_another_type_is_an_error(processor):
    with pytest.raises(ValueError, match="'audio'"):
        encode(processor, [user({"type": "audio", "path": "a.wav"}, text("What ?"))])


# Called directly, as pipelines and collators do


@pytest.mark.parametrize(
    ("arguments", "times"),
    [
        ({"text": "What ?", "images": PHOTO}, [[0]]),
        ({"text": "What ?", "images": [PHOTO, PHOTO]}, [[0, 0]]),
        ({"text": ["What ?", "A dog runs"], "images": [PHOTO, PHOTO]}, [[0], [0]]),
        ({"text": ["What ?", "A dog runs"], "images": [[PHOTO, PHOTO], []]}, [[0, 0], [NEVER, NEVER]]),
        ({"text": "What ?", "videos": [PHOTO, PHOTO]}, [[0, 200]]),
        ({"text": ["What ?", "A dog"], "videos": [[PHOTO] * 2, [PHOTO]]}, [[0, 200], [0, NEVER]]),
        ({"text": "What ?", "videos": [PHOTO] * 2, "images": PHOTO}, [[0, 0, 200]]),
        ({"videos": np.stack([picture(0)] * 2)[None]}, [[0, 200]]),
        ({"images": [PHOTO, PHOTO]}, [[0], [0]]),
        ({"text": "What ?", "videos": [(1.5, PHOTO), (2.0, PHOTO)]}, [[1500, 2000]]),
    ],
)
def test_images_and_videos_are_assigned_to_texts(processor, arguments: dict, times: list):
    inputs = processor(**arguments, return_tensors="pt")
    assert inputs["frame_times"].tolist() == times
    assert ("input_ids" in inputs) == ("text" in arguments)
    if "text" in arguments:
        assert len(inputs["input_ids"]) == len(times)


@pytest.mark.parametrize(
    "arguments",
    [
        {"text": ["What ?"] * 3, "images": [PHOTO] * 2},
        {"text": ["What ?"] * 2, "videos": BIKES},
        {"images": [PHOTO] * 2, "videos": [BIKES]},
    ],
)
def test_numbers_that_do_not_match_are_an_error(processor, arguments: dict):
    with pytest.raises(ValueError, match="texts"):
        processor(**arguments)


def test_tensors_come_as_asked(processor):
    assert processor(text="What ?")["input_ids"] == [processor.tokenizer("What ?")["input_ids"]]
    for images in (PHOTO, [PHOTO, PHOTO]):
        inputs = processor(text="What ?", images=images, return_tensors="np")
        assert all(isinstance(value, np.ndarray) for value in inputs.values())


def test_names_of_the_inputs(processor):
    assert set(processor.model_input_names) == {
        "input_ids",
        "attention_mask",
        "pixel_values_videos",
        "frame_times",
    }


def test_token_types_are_left_out():
    names = ["input_ids", "token_type_ids", "attention_mask"]
    talkative = StreamChatProcessor(StreamFormerVideoProcessor(), tokenizer(model_input_names=names))
    assert "token_type_ids" in talkative.tokenizer("What ?")
    assert set(talkative(text="What ?")) == {"input_ids", "attention_mask"}
    assert "token_type_ids" not in talkative.model_input_names


def test_decoding_is_the_tokenizers(processor):
    ids = processor.tokenizer("A dog runs")["input_ids"] + [processor.tokenizer.eos_token_id]
    assert processor.decode(ids, skip_special_tokens=True) == "A dog runs"
    assert processor.batch_decode([ids, ids], skip_special_tokens=True) == ["A dog runs"] * 2
    assert processor.post_process_image_text_to_text([ids]) == ["A dog runs"]


@pytest.mark.parametrize(
    "inputs",
    [
        Chat([user({"type": "video", "path": BIKES}, text("What ?"))]),
        Chat([user({"type": "image", "image": PHOTO}, text("What ?"))]),
        {"images": [PHOTO], "text": "What ?"},
        "What ?",
    ],
    ids=["video chat", "image chat", "image and text", "text"],
)
def test_the_pipelines_preprocessing_accepts_it(processor, inputs):
    pipeline = ImageTextToTextPipeline.__new__(ImageTextToTextPipeline)
    pipeline.processor, pipeline.model = processor, torch.nn.Linear(1, 1, dtype=torch.bfloat16)
    pipeline.model.dtype = torch.bfloat16
    prepared = pipeline.preprocess(inputs)
    assert prepared["input_ids"].shape[0] == 1
    if inputs != "What ?":
        assert prepared["pixel_values_videos"].dtype == torch.bfloat16
        assert prepared["frame_times"].dtype == torch.int64


# Streams


def test_a_stream_gives_the_frames_of_the_whole_clip(processor):
    with processor.stream(BIKES, fps=2) as stream:
        frames = list(stream)
    whole = processor(text="What ?", videos=BIKES, fps=2, return_tensors="pt")
    assert torch.equal(torch.stack([frame.pixel_values for frame in frames]), whole["pixel_values_videos"][0])
    assert [round(frame.t_sec * 1000) for frame in frames] == whole["frame_times"][0].tolist()
    assert (stream.source, stream.live, stream.fps) == (BIKES, False, 2)


def test_a_stream_keeps_every_frame_unless_told_otherwise(processor):
    assert sum(1 for _ in processor.stream(BIKES)) == 250


# Saving and loading


def test_it_survives_saving(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    video_processor = StreamFormerVideoProcessor.from_pretrained(tmp_path)
    loaded = StreamChatProcessor(video_processor, PreTrainedTokenizerFast.from_pretrained(tmp_path))
    assert loaded.video_processor.to_dict() == processor.video_processor.to_dict()
    assert loaded.chat_template == processor.chat_template
    # One file holds all settings, as in transformers 5.
    assert not {"preprocessor_config.json", "video_preprocessor_config.json"} & set(os.listdir(tmp_path))


LOAD = """
import sys, torch
from transformers import AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
folder, clip = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "StreamChatProcessor" and "transformers_modules" in type(processor).__module__
video = AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True)
assert (video.size, video.fps) == (processor.video_processor.size, processor.video_processor.fps)
conversation = [{"role": "user", "content": [{"type": "video", "path": clip}, {"type": "text", "text": "What now ?"}]}]
inputs = processor.apply_chat_template(
    conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
frames = torch.stack([frame.pixel_values for frame in processor.stream(clip, fps=5)])
assert torch.equal(frames, inputs["pixel_values_videos"][0])
processor.save_pretrained(folder + "/again")
AutoProcessor.from_pretrained(folder + "/again", trust_remote_code=True)
assert not {"streamchat_hf", "torchvision", "torchcodec"} & set(sys.modules)
torch.save(dict(inputs), folder + "/inputs.pt")
"""


def test_a_saved_folder_works_without_this_package(processor, tmp_path, monkeypatch):
    for cls, auto in ((StreamChatProcessor, "AutoProcessor"), (StreamFormerVideoProcessor, "AutoVideoProcessor")):
        monkeypatch.setattr(cls, "_auto_class", auto)
    processor.save_pretrained(tmp_path)
    clip = write_video(tmp_path / "clip.mp4")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path), str(clip)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    there = torch.load(tmp_path / "inputs.pt", weights_only=True)
    conversation = [user({"type": "video", "path": str(clip)}, text("What now ?"))]
    here = encode(processor, conversation, add_generation_prompt=True)
    assert set(there) == set(here)
    assert all(torch.equal(there[name], here[name]) for name in here)


@pytest.mark.parametrize("given", [None, tokenizer()], ids=["nothing", "a tokenizer"])
def test_a_wrong_part_is_an_error(given):
    with pytest.raises(TypeError, match="video_processor"):
        StreamChatProcessor(given, tokenizer())
