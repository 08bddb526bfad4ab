"""Real mp4 files end to end: decode, process, stream and talk, under both clocks."""

import threading

import pytest
import torch

from streamchat_helpers import tiny_model, whole
from streamchat_hf import StreamChatProcessor, StreamFormerVideoProcessor
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from video_files import REAL_CLIPS, packet_times, real_clip

CHAT = [{"role": "user", "content": "what do you see ?"}]


@pytest.fixture(scope="module")
def talker():
    tokenizer = build_tokenizer()
    video_processor = StreamFormerVideoProcessor(size={"height": 16, "width": 16})
    return tiny_model(text_config={"vocab_size": len(tokenizer)}), StreamChatProcessor(video_processor, tokenizer)


def ask(talker, frames, **options):
    model, processor = talker
    inputs = processor.apply_chat_template(
        CHAT, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = model.generate(
        **inputs, frames=frames, do_sample=False, eos_token_id=None, return_dict_in_generate=True, output_logits=True,
        **options,
    )  # fmt: skip
    return out, inputs["input_ids"].shape[1]


def kept(times, fps):
    """The first frame at or after each tick, written naively."""
    chosen, tick = [], 0
    for t in times:
        if t * fps > tick - 0.55e-3 * fps:
            chosen.append(t)
            tick = int(t * fps + 0.55e-3 * fps) + 1
    return chosen


@pytest.mark.parametrize("name", REAL_CLIPS)
def test_simulated_clock(talker, name):
    path = real_clip(name)
    with talker[1].stream(path, fps=5) as frames:
        out, prompt = ask(talker, frames, start_time=1.0, tokens_per_second=4, max_new_tokens=13)
    truth = kept(packet_times(path), 5)
    assert out.token_times[0].tolist() == [1.0 + i / 4 for i in range(13)]
    for now, newest in zip(out.token_times[0].tolist(), out.newest_frame_times[0].tolist(), strict=True):
        assert newest == pytest.approx(max(t for t in truth if round(t * 1000) <= round(now * 1000)), abs=2e-3)
    assert [t for t, _ in out.frame_log[0]] == pytest.approx([t for t in truth if t <= 4.0 + 1e-3], abs=2e-3)

    # The same clip decoded as a whole, and the same talk in one forward pass.
    video = talker[1].video_processor([str(path)], fps=5, return_tensors="pt")
    seen = len(out.frame_log[0])
    clip = list(zip([t for t, _ in out.frame_log[0]], video["pixel_values_videos"][0][:seen], strict=True))
    times = [1.0] * prompt + out.token_times[0].tolist()
    reference = whole(talker[0], out.sequences[0].tolist(), times, [0], clip)[prompt - 1 : -1]
    torch.testing.assert_close(torch.stack(out.logits)[:, 0], reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", REAL_CLIPS)
def test_wall_clock(talker, name):
    path = real_clip(name)
    with talker[1].stream(path, fps=10) as frames:
        out, _ = ask(talker, frames, start_time=2.0, max_new_tokens=1000, stopping_criteria=[Until(2.0)])
    truth = packet_times(path)
    assert out.token_times[0, 0] == pytest.approx(2.0, abs=0.5) and out.token_times[0, -1] > 2.5
    shown = [t for t, _ in out.frame_log[0]]
    assert all(min(abs(t - other) for other in truth) < 2e-3 for t in shown)
    assert (out.frame_age >= 0).all() and out.newest_frame_times[0, -1] > 2.3  # the answer followed the video
    assert out.dropped_frames == [0]
    assert not [t for t in threading.enumerate() if t.name.startswith("streamchat")]


class Until:
    """Stops an answer after some seconds of wall-clock time, a word about every 50 ms."""

    def __init__(self, seconds):
        import time

        self.time, self.end = time, time.monotonic() + seconds

    def __call__(self, input_ids, scores, **kwargs):
        self.time.sleep(0.05)
        return torch.full((len(input_ids),), self.time.monotonic() > self.end)


def test_a_chat_about_a_whole_clip_and_a_still_image(talker):
    from PIL import Image

    model, processor = talker
    path = str(real_clip("carphone_pristine.mp4"))
    for item in ({"type": "video", "path": path}, {"type": "image", "image": Image.new("RGB", (40, 30), "red")}):
        conversation = [{"role": "user", "content": [item, {"type": "text", "text": "what do you see ?"}]}]
        inputs = processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        out = model.generate(**inputs, tokens_per_second=2, max_new_tokens=3, return_dict_in_generate=True)
        last = inputs["frame_times"].max().item() / 1000
        assert out.newest_frame_times[0].tolist() == [last] * out.newest_frame_times.shape[1]
