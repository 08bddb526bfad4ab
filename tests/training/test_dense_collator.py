"""A batch holds what is streamed: the same tokens, frames and times, and so the same logits."""

import itertools

import pytest
import torch
from PIL import Image

from streamchat_hf.modeling.clock_streamchat import SimulatedClock
from streamchat_hf.modeling.timeline_streamchat import NEVER, timeline
from streamchat_hf.processing.frames_streamchat import VideoStream
from streamchat_hf.streaming.conversation import Conversation
from streamchat_hf.training.dense_collator import IGNORED, DenseCollator, split_turns
from training_runs import CHATML, LLAMA, bpe_tokenizer, row, small_model, turn
from video_files import corner_picture, write_video

TOKENIZERS = {"streamworld": lambda: None, "chatml": bpe_tokenizer, "llama": lambda: bpe_tokenizer(LLAMA)}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clips") / "clip.mp4", range(0, 20000, 200), codec_options={"g": "20"})


@pytest.fixture(scope="module", params=TOKENIZERS)
def talker(request):
    return small_model(TOKENIZERS[request.param]())


@pytest.fixture(scope="module")
def streamworld():
    return small_model()


def model_inputs(batch):
    return {name: value for name, value in batch.items() if name not in ("rows", "skipped")}


class Paced(SimulatedClock):
    """Speaks at the times given, in milliseconds."""

    def __init__(self, readers, times):
        super().__init__(readers, 1.0)
        self.times = list(times)

    def next_step(self):
        self._start, self._step = self.times.pop(0), 0
        return super().next_step()


class Saying:
    """Makes `generate` say what it is told."""

    def __init__(self, tokens, prompt_length):
        self.tokens, self.prompt_length = tokens, prompt_length

    def __call__(self, input_ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[input_ids.shape[1] - self.prompt_length]] = 0
        return forced


def stream(model, processor, sample, turns, frames):
    """Streams the talk of a sample: all of its tokens, and the logits with which each answer token is spoken."""
    conversation, cache, frames = Conversation(processor), model.new_cache(), iter(frames)
    tokens, logits = [], []
    bounds = itertools.pairwise([*sample.turn_starts, len(sample.ids)])
    for one, (begin, end) in zip(turns, bounds, strict=True):
        prompt = conversation.ask(one["instruction"])
        answer, times = sample.ids[begin + len(prompt) : end], sample.times[begin + len(prompt) : end]
        asked = sample.times[begin] if one["start"] is None else round(1000 * one["start"])
        clock = model.open_clock(frames, cache, tokens_per_second=1.0)
        out = model.generate(
            torch.tensor([prompt]),
            frames=Paced(clock.readers, times),
            start_time=asked / 1000,
            past_key_values=cache,
            max_new_tokens=len(answer),
            eos_token_id=answer[-1],
            logits_processor=[Saying(answer, len(tokens) + len(prompt))],
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
        assert out.sequences[0, len(prompt) :].tolist() == answer
        conversation.answered(one["answer"], answer)
        tokens += prompt + answer
        logits += [step[0] for step in out.logits]
    return tokens, torch.stack(logits)


def test_logits_of_a_batch_equal_those_of_the_stream(talker, clip, tmp_path):
    Image.fromarray(corner_picture()).save(tmp_path / "picture.png")
    model, processor = talker
    long = turn("what do you see ?", "a red circle , left . now up", [1.3, 1.9, 2.0, 2.05, 3.4, 3.4, 4.0, 4.2])
    later = turn("what colour is it ?", "it is blue now", [6.0, 6.1, 7.25, 8.0])
    rows = [
        row("dense", clip, long, later),
        row("dense", clip, turn("say the colour once .", "red", [15.5])),
        row("dense", clip, turn("keep telling the shape .", "one two three", [0.0, 0.2, 19.0])),
        row("video", clip, turn("what is happening ?", "a red circle"), turn("where does it go ?", "left")),
        row("image", tmp_path / "picture.png", turn("what do you see ?", "blue")),
        row("text", "", turn("what is it ?", "nothing"), turn("how many are there ?", "two")),
    ]
    collator = DenseCollator(processor, fps=2.0, max_frames=16)
    batch = collator(rows)
    assert batch["skipped"] == []
    with torch.no_grad():
        whole = model(**model_inputs(batch)).logits
    for i, one in enumerate(rows):
        sample = collator.sample(one)
        times = [time for time in sample.frame_times.tolist() if time != NEVER]
        frames = [(time / 1000, pixels) for time, pixels in zip(times, sample.pixels, strict=False)]
        if one["kind"] == "dense" and len(one["turns"][0]["word_times"]) != 3:  # that one has a lower rate
            live = processor.stream(str(clip), fps=2.0)
            frames = itertools.dropwhile(lambda frame: frame.t_sec < times[0] / 1000, live)  # noqa: B023 - used at once
        tokens, logits = stream(model, processor, sample, one["turns"], frames)
        assert tokens == sample.ids == batch["input_ids"][i, : len(tokens)].tolist()
        spoken = [k - 1 for k, label in enumerate(sample.labels) if label != IGNORED]
        torch.testing.assert_close(logits, whole[i, spoken], atol=1e-4, rtol=0)


def test_tokens_labels_and_times_of_two_turns(streamworld, clip):
    _, processor = streamworld
    first = turn("what do you see ?", "a red circle", [1.0, 1.5, 2.0])
    sample = DenseCollator(processor, fps=1.0)(
        [row("dense", clip, first, turn("what colour is it ?", "red", [4.0])), row("text", "", turn("what ?", "red"))]
    )
    words = processor.tokenizer.convert_ids_to_tokens(sample["input_ids"][0].tolist())
    said = "<user> what do you see ? <assistant> a red circle <eos> <user> what colour is it ? <assistant> red <eos>"
    assert " ".join(words) == said
    assert sample["token_times"][0].tolist() == [1000] * 8 + [1500, 2000, 2000] + [4000] * 9
    spoken = [7, 8, 9, 10, 18, 19]
    assert [i for i, label in enumerate(sample["labels"][0].tolist()) if label != IGNORED] == spoken
    assert sample["labels"][0, spoken].tolist() == sample["input_ids"][0, spoken].tolist()
    assert sample["turn_starts"][0].nonzero().flatten().tolist() == [0, 11]
    assert sample["frame_times"][0].tolist() == [0, 1000, 2000, 3000, 4000]
    # the other row: shorter, without video
    assert sample["attention_mask"][1].tolist() == [1] * 6 + [0] * 14
    assert set(sample["token_times"][1].tolist()) == {0} and set(sample["labels"][1, 6:].tolist()) == {IGNORED}
    assert set(sample["frame_times"][1].tolist()) == {NEVER}
    assert sample["token_times"].dtype == sample["frame_times"].dtype == torch.int64
    timeline(*(sample[name] for name in ("token_times", "frame_times", "turn_starts", "attention_mask")))


@pytest.mark.parametrize("template", [CHATML, LLAMA])
def test_pieces_have_the_time_of_their_word(template, clip):
    _, processor = small_model(bpe_tokenizer(template))
    words, times = ["The", "person's", "cooking,", "naïvely:", "🍳now"], [3.0, 3.5, 4.0, 4.5, 6.0]
    sample = DenseCollator(processor).sample(row("dense", clip, turn("What?", " ".join(words), times)))
    columns = zip(sample.ids, sample.times, sample.labels, strict=True)
    said = [(token, time) for token, time, label in columns if label != IGNORED]
    *pieces, end = said
    for word, time in zip(words, times, strict=True):
        own = [token for token, at in pieces if at == round(1000 * time)]
        assert processor.tokenizer.decode(own).strip() == word
    assert end == (processor.tokenizer.eos_token_id, 6000)


def test_offline_rows_are_asked_after_their_last_frame(streamworld, clip):
    _, processor = streamworld
    batch = DenseCollator(processor, max_frames=5)(
        [row("video", clip, turn("what ?", "red circle"), turn("is ?", "it"))]
    )
    assert batch["frame_times"][0].tolist() == [0, 4000, 8000, 12000, 16000]
    assert set(batch["token_times"][0].tolist()) == {16000}
    _, _, seen = timeline(batch["token_times"], batch["frame_times"], batch["turn_starts"])
    assert set(seen[0].tolist()) == {5}


def test_frames_before_the_question_fill_what_room_there_is(streamworld, clip):
    _, processor = streamworld
    collator = DenseCollator(processor, fps=1.0, max_frames=6)

    def shown(*times):
        return collator([row("dense", clip, turn("what ?", "red " * len(times), list(times)))])["frame_times"].tolist()

    assert shown(9.5, 11.0) == [[6000, 7000, 8000, 9000, 10000, 11000]]
    assert shown(1.0, 2.2) == [[0, 1000, 2000]]
    [slower] = shown(2.0, 18.0)  # 17 ticks of a second: too many
    assert len(slower) <= 6 and slower[0] <= 2000 and slower[-1] >= 14000


def test_a_row_that_cannot_be_used_is_named_and_teaches_nothing(streamworld, clip, tmp_path):
    model, processor = streamworld
    good = row("dense", clip, turn("what do you see ?", "a red circle", [1.0, 1.5, 2.0]), name="good")
    (tmp_path / "broken.mp4").write_bytes(clip.read_bytes()[:3000])
    bad = {
        "missing": (row("dense", tmp_path / "gone.mp4", *good["turns"]), "no such file"),
        "broken": (row("video", tmp_path / "broken.mp4", turn("what ?", "red")), "broken.mp4"),
        "picture": (row("image", clip, turn("what ?", "red")), "clip.mp4"),
        "words": (row("dense", clip, {**turn("what ?", "a red one", [1.0]), "word_times": [1.0, 2.0]}), "2 times"),
        "early": (row("dense", clip, {**turn("what ?", "a red", [1.0, 2.0]), "start": 1.5}), "before its question"),
        "start": (row("dense", clip, turn("what ?", "red")), "needs a start"),
        "kind": (row("sound", clip, turn("what ?", "red")), "'sound'"),
        "silent": (row("text", ""), "needs turns"),
    }
    collator = DenseCollator(processor, fps=2.0)
    batch = collator([good, *({**line, "id": name} for name, (line, _) in bad.items())])
    assert batch["rows"] == [f"{name} (rows.jsonl:1)" for name in ("good", *bad)]
    for found, (name, (_, reason)) in zip(batch["skipped"], bad.items(), strict=True):
        assert found.startswith(f"{name} (rows.jsonl:1): ") and reason in found
    assert not (batch["labels"][1:] != IGNORED).any()
    with torch.no_grad():
        alone, together = (model(**model_inputs(b)).loss for b in (collator([good]), batch))
    torch.testing.assert_close(alone, together, atol=1e-6, rtol=0)


def test_text_is_cut_at_max_length(streamworld, clip):
    _, processor = streamworld
    rows = [row("dense", clip, turn("what ?", "red circle", [1.0, 2.0]), turn("is it ?", "up", [4.0]))]
    whole, cut = DenseCollator(processor)(rows), DenseCollator(processor, max_length=6)(rows)
    for name in ("input_ids", "labels", "token_times", "attention_mask", "turn_starts"):
        assert torch.equal(cut[name], whole[name][:, :6])


def test_a_template_that_hides_answers_is_refused(clip):
    _, processor = small_model(bpe_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}<|im_end|>"))
    with pytest.raises(ValueError, match="chat template"):
        DenseCollator(processor).sample(row("text", "", turn("a", "b")))


def spans(rows):
    return [[(one["start"], one["word_times"][-1]) for one in part["turns"]] for part in rows]


def test_turns_are_split_where_the_frames_run_out():
    turns = [turn("?", "a b", [float(t), t + 2.0]) for t in (30, 0, 5, 20, 8)]
    parts = split_turns(row("dense", "clip.mp4", *turns), fps=1.0, max_frames=12)
    assert spans(parts) == [[(0.0, 2.0), (5.0, 7.0), (8.0, 10.0)], [(20.0, 22.0)], [(30.0, 32.0)]]
    assert [part["id"] for part in parts] == ["row#0", "row#1", "row#2"]
    assert spans(split_turns(row("dense", "c", *turns), fps=0.1, max_frames=12)) == [
        [(0.0, 2.0), (5.0, 7.0), (8.0, 10.0), (20.0, 22.0), (30.0, 32.0)]
    ]
    assert len(split_turns(row("dense", "c", *turns), fps=5.0, max_frames=4)) == 5


def test_overlapping_turns_are_separate_talks_and_other_rows_stay():
    overlapping = row("dense", "c", turn("?", "a b", [0.0, 5.0]), turn("?", "a b", [3.0, 6.0]), turn("?", "a", [6.0]))
    assert spans(split_turns(overlapping, 1.0, 32)) == [[(0.0, 5.0)], [(3.0, 6.0), (6.0, 6.0)]]
    for same in (row("video", "c", turn("?", "a"), turn("?", "b")), row("dense", "c", turn("?", "a"))):
        assert split_turns(same, 1.0, 3) == [same]


def test_split_rows_show_every_turn_from_its_question_on(streamworld, tmp_path):
    """Whatever is split off sees a frame when it is asked, at the full rate if it can."""
    path = write_video(tmp_path / "long.mp4", range(0, 60000, 500))
    _, processor = streamworld
    turns = [turn("what ?", "red circle", [start + 0.3, start + 4.0]) for start in range(3, 50, 7)]
    collator = DenseCollator(processor, fps=1.0, max_frames=10)
    for part in split_turns(row("dense", path, *turns), 1.0, 10):
        batch = collator([part])
        inputs = [batch[name] for name in ("token_times", "frame_times", "turn_starts", "attention_mask")]
        assert timeline(*inputs)[2].min() >= 1
        assert batch["frame_times"].shape[1] <= 10
        assert set(batch["frame_times"][0].diff().tolist()) == {1000}
        with VideoStream(str(path), fps=1.0) as live:
            times = {round(1000 * frame.t_sec) for frame in live}
        assert set(batch["frame_times"][0].tolist()) <= times
