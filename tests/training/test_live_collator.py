"""A batch holds what is streamed: the same tokens and frames."""

import pytest
import torch

from live_tokenizers import TOKENIZERS, merging
from streamchat_hf import StreamFormerVideoProcessor
from streamchat_hf.data.live_conversation import Clip, LiveTurn, frame_grid, lay_out
from streamchat_hf.data.live_streamworld import LiveStreamWorld, build_live_tokenizer
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.sources_streamchat import VideoStreamError
from streamchat_hf.training.live_collator import IGNORED, LiveCollator, read_frames, read_joined_frames
from video_files import write_video
from videollm_online_helpers import tiny_model

SIDE = 32
MODEL_INPUTS = {"input_ids", "attention_mask", "labels", "pixel_values_videos", "frame_mask"}


def small_processor(tokenizer=None, **kwargs) -> VideoLLMOnlineProcessor:
    video_processor = StreamFormerVideoProcessor(size={"height": SIDE, "width": SIDE}, do_pad=True)
    tokenizer = build_live_tokenizer() if tokenizer is None else tokenizer
    return VideoLLMOnlineProcessor(video_processor, tokenizer, **{"frame_num_tokens": 5, **kwargs})


def small_model(processor: VideoLLMOnlineProcessor, **changes):
    text_config = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    return tiny_model(text_config=text_config, **processor.token_ids(), **changes)


@pytest.fixture(scope="module")
def processor() -> VideoLLMOnlineProcessor:
    return small_processor()


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    """Eight seconds at ten frames a second, no two alike."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return str(write_video(path, range(0, 8000, 100), codec_options={"g": "20"}))


def world_row(index: int = 0, num_frames: int = 12) -> dict:
    return dict(LiveStreamWorld(length=10, num_frames=num_frames)[index])


def clip_row(clip: str, start: float = 0.0, end: float = 4.0) -> dict:
    times = frame_grid(start, end, 2.0)
    turns = [LiveTurn("user", "what is it ?", 1), LiveTurn("assistant", "a red circle", 4)]
    turns += [LiveTurn("assistant", "now blue", 6)]
    return {"conversation": lay_out(turns, times), "frame_times": times, "media": clip}


def text_row() -> dict:
    talk = [{"role": "user", "content": "what now ?"}, {"role": "assistant", "content": "nothing", "learn": True}]
    return {"conversation": talk, "frame_times": [], "media": None}


def model_inputs(batch: dict) -> dict:
    assert set(batch) == MODEL_INPUTS | {"rows", "skipped"}
    return {name: batch[name] for name in MODEL_INPUTS}


# Samples


def test_a_sample_is_the_processors_text_and_the_worlds_pictures(processor):
    row = world_row()
    sample = LiveCollator(processor).sample(row)
    inputs = processor.training_inputs(row["conversation"])
    assert (sample.ids, sample.labels) == (inputs["input_ids"], inputs["labels"])
    pictures = render([row["world"]], [row["frame_times"]], SIDE)[0]
    prepared = [processor.video_processor.preprocess_frame(picture) for picture in pictures]
    assert torch.equal(sample.pixels, torch.stack(prepared))
    assert sample.ids.count(processor.token_ids()["v_placeholder_id"]) == 5 * len(sample.pixels)


@pytest.mark.parametrize("start", [0.0, 2.5])
def test_frames_of_a_video_are_those_of_a_stream(processor, clip: str, start: float):
    sample = LiveCollator(processor).sample(clip_row(clip, start, start + 4))
    streamed = [frame.pixel_values for frame in processor.stream(clip) if start <= frame.t_sec <= start + 4]
    assert torch.equal(sample.pixels, torch.stack(streamed))


def test_a_conversation_without_a_system_prompt_gets_the_processors(processor):
    row = world_row()
    assert row["conversation"][0]["role"] == "system"
    bare = row | {"conversation": row["conversation"][1:]}
    own = row | {"conversation": [{"role": "system", "content": processor.system_prompt}, *bare["conversation"]]}
    collator = LiveCollator(processor)
    assert collator.sample(bare).ids == collator.sample(own).ids != collator.sample(row).ids


def test_a_table_fills_missing_fields_with_none(processor, clip: str):
    row = clip_row(clip)
    names = ("role", "content", "num_frames", "learn", "time")
    filled = row | {
        "conversation": [{name: m.get(name) for name in names} for m in row["conversation"]],
        "world": None,
    }
    collator = LiveCollator(processor)
    assert collator.sample(filled)[:2] == collator.sample(row)[:2]


# Batches


def test_a_batch_is_its_rows_padded(processor, clip: str):
    rows = [world_row(0), clip_row(clip), text_row(), world_row(1, 20)]
    collator = LiveCollator(processor)
    batch = collator(rows)
    assert batch["skipped"] == [] and len(batch["rows"]) == 4
    length, frames = batch["input_ids"].shape[1], batch["pixel_values_videos"].shape[1]
    assert frames == 20
    for i, row in enumerate(rows):
        sample = collator.sample(row)
        padding, shown = length - len(sample.ids), len(sample.pixels)
        assert batch["input_ids"][i].tolist() == [processor.tokenizer.pad_token_id] * padding + sample.ids
        assert batch["labels"][i].tolist() == [IGNORED] * padding + sample.labels
        assert batch["attention_mask"][i].tolist() == [0] * padding + [1] * len(sample.ids)
        assert batch["frame_mask"][i].tolist() == [1] * shown + [0] * (frames - shown)
        assert torch.equal(batch["pixel_values_videos"][i, :shown], sample.pixels)
        assert not batch["pixel_values_videos"][i, shown:].any()


@pytest.mark.parametrize("vision", ["siglip_vision_model", "streamformer"])
@torch.no_grad()
def test_the_model_sees_a_row_alone_and_in_a_batch_alike(processor, clip: str, vision: str):
    model, collator = small_model(processor, vision=vision), LiveCollator(processor)
    rows = [world_row(0), text_row(), clip_row(clip)]
    together = model(**model_inputs(collator(rows)))
    losses, counts = [], []
    for i, row in enumerate(rows):
        inputs = model_inputs(collator([row]))
        alone = model(**inputs)
        length = inputs["input_ids"].shape[1]
        torch.testing.assert_close(together.logits[i, -length:], alone.logits[0], atol=1e-5, rtol=1e-4)
        counts.append(int((inputs["labels"] != IGNORED).sum()))
        losses.append(float(alone.loss) * counts[-1])
    assert float(together.loss) == pytest.approx(sum(losses) / sum(counts), rel=1e-4)


def test_a_batch_of_text_reaches_all_parameters(processor):
    model = small_model(processor).train()
    batch = LiveCollator(processor)([text_row()])
    assert batch["frame_mask"].tolist() == [[0]]
    model(**model_inputs(batch)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.model.connector.parameters())


@pytest.mark.parametrize("name", TOKENIZERS)
@torch.no_grad()
def test_what_generate_streams_is_what_a_row_teaches(clip: str, name: str):
    """A model that speaks at every frame and says what it is told, against the row of that conversation."""
    processor = small_processor(TOKENIZERS[name]())
    model, times = small_model(processor), frame_grid(0, 1, 2.0)
    turns = [LiveTurn("user", "what is it ?", 0)] + [LiveTurn("assistant", "a blue square", i) for i in (1, 2, 3)]
    row = {"conversation": lay_out(turns, times), "frame_times": times, "media": clip}
    taught = LiveCollator(processor).sample(row)
    system = {"role": "system", "content": processor.system_prompt}
    prompt = processor.apply_chat_template(
        [system, row["conversation"][0]], add_stream_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    glue = processor.token_ids()["response_start_ids"]
    answer = processor.piece_ids(f"]\nAssistant: a blue square{processor.tokenizer.eos_token}")[len(glue) :]

    def say(said: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, answer[said.shape[1]]] = 0
        return forced

    frames = [(time, frame.pixel_values) for time, frame in zip(times, processor.stream(clip), strict=False)]
    streamed = model.generate(
        **prompt, frames=frames, tokens_per_second=1000, threshold=1.0, logits_processor=[say], do_sample=False
    )
    assert streamed[0].tolist() == taught.ids
    decisions = [label for token, label in zip(taught.ids, taught.labels, strict=True) if label == glue[0] != token]
    assert len(decisions) == 3


# What is too long, and what is broken


def test_too_many_frames_are_cut_before_the_stream_that_is_too_much(processor, clip: str):
    row = clip_row(clip)
    streams = [message["num_frames"] for message in row["conversation"] if message["role"] == "stream"]
    assert streams == [1, 3, 2, 3]
    for most, kept in ((9, 9), (8, 6), (6, 6), (5, 4), (3, 1), (1, 1)):
        sample = LiveCollator(processor, max_frames=most).sample(row)
        assert len(sample.pixels) == kept
        assert sample.ids.count(processor.token_ids()["v_placeholder_id"]) == 5 * kept
        whole = LiveCollator(processor).sample(row)
        assert sample.ids == whole.ids[: len(sample.ids)]
        assert torch.equal(sample.pixels, whole.pixels[:kept])
    with pytest.raises(ValueError, match="max_frames=0"):
        LiveCollator(processor, max_frames=0)


def test_rows_that_cannot_be_used_are_named_and_teach_nothing(processor, clip: str, tmp_path):
    taught_to_guess = clip_row(clip)
    taught_to_guess["conversation"][0]["learn"] = True  # before a question
    broken = {
        "no such file": clip_row(str(tmp_path / "missing.mp4")),
        "it has no more frames": clip_row(clip, 6.0, 10.0),
        "8 frame times": clip_row(clip) | {"frame_times": clip_row(clip)["frame_times"][:-1]},
        "which nobody can foresee": taught_to_guess,
        "no multiple of 1/2 s": clip_row(clip) | {"frame_times": [0.3 + i / 2 for i in range(9)]},
        "the conversation is empty": {"conversation": [], "frame_times": [], "media": None},
    }
    good = world_row()
    collator = LiveCollator(processor)
    batch = collator([*broken.values(), good])
    assert len(batch["rows"]) == 7 and len(batch["skipped"]) == 6
    for reason, skipped, name in zip(broken, batch["skipped"], batch["rows"], strict=False):
        assert reason in skipped and skipped.startswith(f"{name}: ")
    assert (batch["labels"][:-1] == IGNORED).all() and not batch["frame_mask"][:-1].any()
    model = small_model(processor)
    alone, together = (model(**model_inputs(b)).loss.item() for b in (collator([good]), batch))
    assert together == pytest.approx(alone, rel=1e-5)
    assert model(**model_inputs(collator(list(broken.values())))).loss.item() == 0


# Frames of videos that do not fit


def test_a_slow_video_shows_the_frame_before(tmp_path):
    slow = str(write_video(tmp_path / "slow.mp4", [0, 1000, 2000]))
    frames = read_frames(slow, frame_grid(0, 2.5, 2.0), 2.0)
    assert len(frames) == 6
    for i, same in ((1, 0), (3, 2), (5, 4)):
        assert torch.equal(frames[i], frames[same])
    assert not torch.equal(frames[0], frames[2]) and not torch.equal(frames[2], frames[4])


def test_times_with_gaps_show_their_own_frames(clip: str):
    whole = read_frames(clip, frame_grid(0, 5, 2.0), 2.0)
    some = read_frames(clip, [1.0, 1.5, 4.0], 2.0)
    assert [torch.equal(a, whole[i]) for a, i in zip(some, (2, 3, 8), strict=True)] == [True] * 3


def test_a_video_may_end_a_second_early_but_no_more(clip: str):
    assert len(read_frames(clip, frame_grid(6, 8.5, 2.0), 2.0)) == 6
    with pytest.raises(VideoStreamError, match=r"7\.500 s: it has no more frames, but some up to 9 s"):
        read_frames(clip, frame_grid(6, 9, 2.0), 2.0)


def test_times_of_other_rates_are_thirds_in_milliseconds(clip: str):
    assert len(read_frames(clip, frame_grid(0, 2, 3.0), 3.0)) == 7


def test_a_tokenizer_with_its_own_beginning(clip: str):
    processor = small_processor(merging())
    ids = LiveCollator(processor).sample(clip_row(clip)).ids
    assert ids[0] == processor.tokenizer.bos_token_id and ids.count(ids[0]) == 1


def test_a_joined_video_shows_the_frames_of_its_clips(processor, clip, tmp_path):
    other = str(write_video(tmp_path / "other.mp4", range(0, 2000, 100), codec_options={"g": "5"}))
    clips = (Clip(other, 0.0), Clip(clip, 2.0), Clip(other, 10.0))
    times = frame_grid(0.5, 11.0, 2.0)
    alone = [*read_frames(other, [0.5, 1.0, 1.5], 2.0), *read_frames(clip, frame_grid(0.0, 7.5, 2.0), 2.0)]
    alone += read_frames(other, [0.0, 0.5, 1.0], 2.0)
    joined = read_joined_frames(clips, times, 2.0)
    assert len(joined) == len(alone) == len(times)
    assert all(torch.equal(a, b) for a, b in zip(joined, alone, strict=True))
    row = {**clip_row(clip), "media": clips}
    batch = LiveCollator(processor)([row, {**row, "media": (Clip("lost.mp4", 0.0),)}])
    assert batch["rows"] == [f"{other} + {clip} + {other}", "lost.mp4"]
    assert len(batch["skipped"]) == 1 and "lost.mp4" in batch["skipped"][0]
    frames = [
        processor.video_processor.preprocess_frame(image)
        for image in read_joined_frames(clips, row["frame_times"], 2.0)
    ]
    assert torch.equal(batch["pixel_values_videos"][0], torch.stack(frames))
