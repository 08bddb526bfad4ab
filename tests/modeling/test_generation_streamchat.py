"""Talking while watching: streamed equals whole, a batch of streams equals streams alone, tokens know their frame."""

import threading
import time

import pytest
import torch
from transformers import GenerationConfig, StaticCache, TextIteratorStreamer

from streamchat_helpers import END, at_rate, frames_at, pad_frames, qwen_twin, tiny_config, tiny_model, whole
from streamchat_hf import StreamingCache
from streamchat_hf.modeling.reader_streamchat import StreamingError

PROMPT = [5, 6, 7, 8]
OPTIONS = {"max_new_tokens": 7, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
STATIC = {"cache_implementation": "static", "max_cache_len": 64}
either_cache = pytest.mark.parametrize("cache_options", [{}, STATIC], ids=["dynamic", "static"])


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def ask(model, tokens, **kwargs):
    return model.generate(torch.tensor([tokens]), **{**OPTIONS, "eos_token_id": None, **kwargs})


def answer_of(output, prompt_length):
    return output.sequences[0, prompt_length:].tolist()


def conversation(model, frames, asks, **kwargs):
    """Streams a conversation; gives all tokens, their times, the turn starts, and the logits of each answer."""
    source, cache = iter(frames), None
    tokens, times, turns, logits = [], [], [], []
    for start, prompt in asks:
        out = ask(model, prompt, frames=source, start_time=start, past_key_values=cache, **kwargs)
        cache = out.past_key_values
        turns.append(len(tokens))
        tokens += prompt + answer_of(out, len(prompt))
        times += [start] * len(prompt) + out.token_times[0].tolist()
        logits.append(torch.stack([step[0] for step in out.logits]))
    return tokens, times, turns, logits


def assert_replay(model, frames, streamed, prompts):
    tokens, times, turns, logits = streamed
    reference = whole(model, tokens, times, turns, frames)
    for turn, answer, prompt in zip(turns, logits, prompts, strict=True):
        first = turn + len(prompt) - 1  # the position that speaks the first answer token
        torch.testing.assert_close(answer, reference[first : first + len(answer)], atol=1e-4, rtol=0)


@pytest.mark.parametrize("fps", [0.5, 2, 5, 30])
@pytest.mark.parametrize("share, visual_ffn", [(True, True), (False, True), (True, False)])
def test_streamed_conversation_equals_one_forward(fps, share, visual_ffn):
    model = tiny_model(share_cross_attention=share, visual_ffn=visual_ffn)
    frames = frames_at(at_rate(fps, 14))
    asks = [(1.3, PROMPT), (9.05, [9, 10, 11])]
    streamed = conversation(model, frames, asks, tokens_per_second=2)
    assert_replay(model, frames, streamed, [prompt for _, prompt in asks])


@pytest.mark.parametrize("fps", [0.5, 5, 30])
def test_static_shapes_change_nothing(model, fps):
    """Asked before the first frame; the window fills during the first answer, and the second goes on."""
    frames, asks = frames_at(at_rate(fps, 14, offset=1.9)), [(1.3, PROMPT), (9.05, [9, 10, 11])]
    dynamic = conversation(model, frames, asks, tokens_per_second=2)
    static = conversation(model, frames, asks, tokens_per_second=2, **STATIC)
    assert static[:3] == dynamic[:3]
    torch.testing.assert_close(static[3], dynamic[3], atol=1e-4, rtol=0)
    assert_replay(model, frames, static, [prompt for _, prompt in asks])


@pytest.mark.parametrize("vision", ["streamformer", "siglip_vision_model"])
@pytest.mark.parametrize("gate", ["linear", "tanh"])
def test_other_towers_and_gates_stream_as_they_train(vision, gate):
    model = tiny_model(vision=vision, gate=gate)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if gate == "tanh" and name.endswith(("cross_attn_gate", "visual_gate")):
                parameter.fill_(0.8)
    frames = frames_at(at_rate(3, 10))
    asks = [(0.0, PROMPT), (6.0, [9])]
    assert_replay(model, frames, conversation(model, frames, asks, tokens_per_second=1.5), [p for _, p in asks])


def test_frames_matter_and_frozen_differs_from_fresh(model):
    frames = frames_at(at_rate(4, 6))
    fresh = ask(model, PROMPT, frames=iter(frames), start_time=1.0, tokens_per_second=2)
    frozen = ask(model, PROMPT, frames=iter([f for f in frames if f[0] <= 1.0]), start_time=1.0, tokens_per_second=2)
    torch.testing.assert_close(fresh.logits[0], frozen.logits[0], atol=0, rtol=0)
    assert (fresh.logits[1] - frozen.logits[1]).abs().max() > 1e-3
    grey = [(t, torch.zeros_like(p)) for t, p in frames]
    blind = ask(model, PROMPT, frames=iter(grey), start_time=1.0, tokens_per_second=2)
    assert (fresh.logits[0] - blind.logits[0]).abs().max() > 1e-3


def test_a_future_frame_never_changes_the_past(model):
    frames = frames_at(at_rate(2, 6))
    changed = [(t, p if t < 2.0 else p + 1) for t, p in frames]
    streams = [
        ask(model, PROMPT, frames=iter(source), start_time=0.5, tokens_per_second=2) for source in (frames, changed)
    ]
    before = [i for i, t in enumerate(streams[0].token_times[0].tolist()) if t < 2.0]
    assert before and before[-1] + 1 < len(streams[0].logits)
    for step in before:
        assert (streams[0].logits[step] - streams[1].logits[step]).abs().max() == 0
    assert (streams[0].logits[before[-1] + 1] - streams[1].logits[before[-1] + 1]).abs().max() > 0

    tokens = torch.tensor([[*PROMPT, 9, 10, 11]])
    times = torch.tensor([[500] * 5 + [1000, 2000]])
    logits = [
        model(
            tokens,
            pixel_values_videos=torch.stack([p for _, p in source])[None],
            token_times=times,
            frame_times=torch.tensor([[round(t * 1000) for t, _ in source]]),
        ).logits
        for source in (frames, changed)
    ]
    assert (logits[0][:, :5] - logits[1][:, :5]).abs().max() == 0
    assert (logits[0][:, 5] - logits[1][:, 5]).abs().max() > 0


def test_every_token_knows_its_frame(model):
    frames = frames_at([0.0, 0.4, 1.1, 1.2, 2.9])
    out = ask(model, PROMPT, frames=iter(frames), start_time=0.5, tokens_per_second=2, max_new_tokens=6)
    assert out.token_times[0].tolist() == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert out.newest_frame_times[0].tolist() == [0.4, 0.4, 1.2, 1.2, 1.2, 2.9]
    torch.testing.assert_close(out.frame_age, out.token_times - out.newest_frame_times, atol=0, rtol=0)
    assert out.token_times.dtype == torch.float64
    assert out.frame_log == [[(0.0, 0.5), (0.4, 0.5), (1.1, 1.5), (1.2, 1.5), (2.9, 3.0)]]


def test_question_before_the_first_frame(model):
    frames = frames_at([1.0, 1.5, 2.0])
    streamed = conversation(model, frames, [(0.0, PROMPT)], tokens_per_second=2)
    assert_replay(model, frames, streamed, [PROMPT])


@either_cache
@pytest.mark.parametrize("ends", [[None, None, None], [2, None, 4], [None, 0, 6]])
def test_streams_in_a_batch_equal_streams_alone(model, ends, cache_options):
    """Three streams at different rates, some of which end their answer while the others go on."""
    rates, second = [2, 5, 0.7], [[20, 21], [22, 23], [24, 25]]
    prompts = [[5, 6, 7], [8, 9, 10], [11, 12, 13]]
    sources = [frames_at(at_rate(rate, 12, offset=0.1 * i), seed=i) for i, rate in enumerate(rates)]

    def run(rows):
        streams, cache, sequences, all_logits, times = [iter(sources[r]) for r in rows], None, [], [], []
        for start, prompt in ((1.0, prompts), (7.3, second)):
            out = model.generate(
                torch.tensor([prompt[r] for r in rows]),
                frames=streams,
                start_time=start,
                tokens_per_second=2,
                past_key_values=cache,
                logits_processor=[Ending(rows, ends, len(PROMPT) - 1)] if start == 1.0 else None,
                **{**OPTIONS, "eos_token_id": END, "pad_token_id": 0, **cache_options},
            )
            cache = out.past_key_values
            sequences.append(out.sequences[:, len(prompt[0]) :].tolist())
            all_logits.append(torch.stack(out.logits, dim=1))
            times.append(out.token_times)
        return sequences, all_logits, times

    together = run([0, 1, 2])
    for row in range(3):
        alone = run([row])
        for turn in range(2):
            length = len(alone[0][turn][0])
            assert together[0][turn][row][:length] == alone[0][turn][0]
            torch.testing.assert_close(
                together[1][turn][row, :length], alone[1][turn][0], atol=1e-4, rtol=0, msg=f"row {row} turn {turn}"
            )
            assert together[2][turn][row, length:].isnan().all()


def test_three_streamed_conversations_equal_one_batched_forward(model):
    """Two turns with silence between them, three streams at different rates, replayed together."""
    sources = [frames_at(at_rate(rate, 11, offset=0.1 * i), seed=i) for i, rate in enumerate([0.5, 5, 30])]
    streams, cache, tokens, times, logits, turns = [iter(s) for s in sources], None, [], [], [], []
    for start, prompt in ((1.0, [[5, 6, 7]] * 3), (7.3, [[20, 21], [22, 23], [24, 25]])):
        prompt = torch.tensor(prompt)
        out = model.generate(
            prompt,
            frames=streams,
            start_time=start,
            tokens_per_second=2,
            past_key_values=cache,
            **{**OPTIONS, "eos_token_id": None},
        )
        cache = out.past_key_values
        turns.append(sum(part.shape[1] for part in tokens))
        tokens.append(out.sequences)
        times += [torch.full(prompt.shape, start, dtype=torch.float64), out.token_times]
        logits.append((turns[-1] + prompt.shape[1] - 1, torch.stack(out.logits, dim=1)))
    pixels, frame_times = pad_frames(sources)
    starts = torch.zeros(3, sum(part.shape[1] for part in tokens), dtype=torch.bool)
    starts[:, turns] = True
    with torch.no_grad():
        reference = model(
            input_ids=torch.cat(tokens, dim=1),
            pixel_values_videos=pixels,
            token_times=(torch.cat(times, dim=1) * 1000).round().long(),
            frame_times=frame_times,
            turn_starts=starts,
        ).logits
    for first, answer in logits:
        torch.testing.assert_close(answer, reference[:, first : first + answer.shape[1]], atol=1e-4, rtol=0)


class Ending:
    """Ends each row's answer after a set number of tokens, and nowhere else, for tests of ragged batches."""

    def __init__(self, rows, ends, prompt_length):
        self.ends, self.prompt_length = [ends[r] for r in rows], prompt_length

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, END] = -torch.inf
        for row, end in enumerate(self.ends):
            if end is not None and input_ids.shape[1] - self.prompt_length >= end:
                scores[row] = -torch.inf
                scores[row, END] = 0
        return scores


@either_cache
def test_next_turn_takes_all_tokens_or_only_new_ones(model, cache_options):
    frames = frames_at(at_rate(2, 12))
    results = []
    for whole_conversation in (False, True):
        source = iter(frames)
        first = ask(model, PROMPT, frames=source, start_time=1.0, tokens_per_second=2, **cache_options)
        new = [9, 10]
        tokens = first.sequences[0].tolist() + new if whole_conversation else new
        second = ask(
            model, tokens, frames=source, start_time=6.0, tokens_per_second=2, past_key_values=first.past_key_values
        )
        results.append(answer_of(second, len(tokens)))
        assert second.sequences[0, : len(tokens)].tolist() == tokens
    assert results[0] == results[1]


@either_cache
def test_left_padding_changes_nothing(model, cache_options):
    frames = [frames_at(at_rate(2, 6), seed=s) for s in (0, 1)]
    padded = model.generate(
        torch.tensor([[0, 0, *PROMPT], [3, 4, *PROMPT]]),
        attention_mask=torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6]),
        frames=[iter(f) for f in frames],
        start_time=1.0,
        tokens_per_second=2,
        **{**OPTIONS, "eos_token_id": None, **cache_options},
    )
    alone = ask(model, PROMPT, frames=iter(frames[0]), start_time=1.0, tokens_per_second=2)
    torch.testing.assert_close(torch.stack(padded.logits)[:, 0], torch.stack(alone.logits)[:, 0], atol=1e-4, rtol=0)


@either_cache
def test_prefill_in_chunks_changes_nothing(model, cache_options):
    frames, options = frames_at(at_rate(2, 6)), {"start_time": 1.0, "tokens_per_second": 2}
    plain = ask(model, PROMPT, frames=iter(frames), **options)
    chunked = ask(model, PROMPT, frames=iter(frames), prefill_chunk_size=3, **options, **cache_options)
    torch.testing.assert_close(torch.stack(chunked.logits), torch.stack(plain.logits), atol=1e-4, rtol=0)
    assert chunked.token_times.tolist() == plain.token_times.tolist()


@either_cache
def test_sampling_several_answers_shares_the_frames(model, cache_options):
    frames, options = frames_at(at_rate(2, 6)), {"start_time": 1.0, "tokens_per_second": 2, **cache_options}
    torch.manual_seed(0)
    out = ask(model, PROMPT, frames=iter(frames), do_sample=True, num_return_sequences=3, **options)
    assert len({tuple(row) for row in out.sequences.tolist()}) > 1
    assert out.token_times.shape == (3, 7)
    for row in range(3):
        tokens, times = out.sequences[row].tolist(), [1.0] * len(PROMPT) + out.token_times[row].tolist()
        reference = whole(model, tokens, times, [0], frames)[len(PROMPT) - 1 : -1]
        torch.testing.assert_close(torch.stack(out.logits)[:, row], reference, atol=1e-4, rtol=0)


@either_cache
def test_beams_search_over_the_same_frames(model, cache_options):
    frames, options = frames_at(at_rate(2, 6)), {"start_time": 1.0, "tokens_per_second": 2, **cache_options}
    beams = ask(model, PROMPT, frames=iter(frames), num_beams=3, **options)
    greedy = ask(model, PROMPT, frames=iter(frames), start_time=1.0, tokens_per_second=2)

    def likelihood(sequence):
        times = [1.0] * len(PROMPT) + [1.0 + i / 2 for i in range(len(sequence) - len(PROMPT))]
        logits = whole(model, sequence, times, [0], frames)[len(PROMPT) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(sequence[len(PROMPT) :])[:, None]).sum().item()

    assert likelihood(beams.sequences[0].tolist()) >= likelihood(greedy.sequences[0].tolist()) - 1e-4


def test_a_finished_clip_is_a_stream_whose_frames_are_all_due(model):
    frames = frames_at(at_rate(2, 3))
    pixels = torch.stack([p for _, p in frames])[None]
    times = torch.tensor([[round(t * 1000) for t, _ in frames]])
    clip = ask(model, PROMPT, pixel_values_videos=pixels, frame_times=times, tokens_per_second=2)
    stream = ask(model, PROMPT, frames=iter(frames), start_time=3.0, tokens_per_second=2)
    torch.testing.assert_close(torch.stack(clip.logits), torch.stack(stream.logits), atol=0, rtol=0)
    assert clip.token_times[0, 0] == 3.0


def test_bare_tensors_need_a_rate(model):
    frames = frames_at(at_rate(2, 6))
    bare = ask(model, PROMPT, frames=[p for _, p in frames], fps=2, start_time=1.0, tokens_per_second=2)
    timed = ask(model, PROMPT, frames=frames, start_time=1.0, tokens_per_second=2)
    torch.testing.assert_close(torch.stack(bare.logits), torch.stack(timed.logits), atol=0, rtol=0)
    with pytest.raises(StreamingError, match="fps"):
        ask(model, PROMPT, frames=[p for _, p in frames], start_time=1.0, tokens_per_second=2)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"use_cache": False}, "use_cache"),
        ({"prompt_lookup_num_tokens": 2}, "assisted"),
        ({"cache_implementation": "offloaded_static"}, "offloaded_static"),
        ({"past_key_values": StaticCache(tiny_config().text_config, 32)}, "need a StreamingCache, not a StaticCache"),
        ({"backpressure": "never"}, "backpressure"),
        ({"tokens_per_second": 0}, "positive"),
        ({"pixel_values_videos": torch.zeros(1, 1, 3, 16, 16)}, "either"),
        ({"typo": 1}, "typo"),
    ],
)
def test_arguments_that_do_not_go_together(model, change, message):
    options = {"frames": iter(frames_at([0.0])), "tokens_per_second": 2} | change
    with pytest.raises(ValueError, match=message):
        ask(model, PROMPT, **options)


def test_one_stream_per_row(model):
    with pytest.raises(ValueError, match="1 streams of frames for 2 rows"):
        model.generate(torch.tensor([PROMPT, PROMPT]), frames=iter(frames_at([0.0])), tokens_per_second=2)


@pytest.mark.parametrize(
    "broken, message",
    [
        ([(0.0, torch.zeros(3, 16, 16)), (2.0, torch.zeros(3, 8, 16))], "2.000 s: the frame's shape changed"),
        ([(0.0, torch.zeros(3, 16, 16)), (0.0, torch.zeros(16, 16))], "must be a tensor"),
        ([(1.0, torch.zeros(3, 16, 16)), (0.5, torch.zeros(3, 16, 16))], "time runs backwards"),
    ],
)
def test_bad_frames_end_in_one_clear_error(model, broken, message):
    with pytest.raises(StreamingError, match=message):
        ask(model, PROMPT, frames=iter(broken), start_time=0.0, tokens_per_second=1, max_new_tokens=5)


def failing_source(after):
    yield from frames_at([0.5 * k for k in range(after)])
    raise OSError("camera unplugged")


@pytest.mark.parametrize("tokens_per_second", [2, None])
def test_a_failing_source_keeps_what_was_said(model, tokens_per_second, tokenizer_stub):
    streamer = TextIteratorStreamer(tokenizer_stub, skip_prompt=True, timeout=5)
    cache = StreamingCache(model.config)
    with pytest.raises(StreamingError, match=r"generator failed after 1.500 s: camera unplugged") as caught:
        ask(
            model,
            PROMPT,
            frames=failing_source(4),
            start_time=0.5,
            tokens_per_second=tokens_per_second,
            max_new_tokens=100000,
            streamer=streamer,
            past_key_values=cache,
            return_dict_in_generate=False,
        )
    partial = caught.value.partial[0].tolist()
    assert partial[: len(PROMPT)] == PROMPT and len(partial) > len(PROMPT)
    assert len("".join(streamer).split()) == len(partial) - len(PROMPT)  # delivered, and the reader does not hang
    assert not [t for t in threading.enumerate() if t.name.startswith("streamchat")]
    # The conversation goes on from what was delivered.
    after = ask(model, [9, 10], past_key_values=cache, frames=iter(()), tokens_per_second=2)
    assert after.sequences.shape == (1, 9)
    assert cache.history[0, : len(partial)].tolist() == partial


@pytest.fixture
def tokenizer_stub():
    class Words:
        def decode(self, tokens, **kwargs):
            return "".join(f"{int(token)} " for token in tokens)

    return Words()


class Paced:
    """Slows the model down, so that wall-clock tests see several frames while it speaks."""

    def __init__(self, seconds=0.02):
        self.seconds = seconds

    def __call__(self, input_ids, scores):
        time.sleep(self.seconds)
        return scores


@pytest.mark.parametrize("live", [False, True])
def test_wall_clock_follows_the_stream_and_replays(model, live):
    class Camera:
        source, frames = "camera", frames_at(at_rate(20, 3))

        def __iter__(self):
            for t, pixels in self.frames:
                if live:
                    time.sleep(0.05)
                yield t, pixels

    camera = Camera()
    camera.live = live
    out = ask(model, PROMPT, frames=camera, max_new_tokens=20, logits_processor=[Paced()])
    log = out.frame_log[0]
    assert len(log) >= 5 and out.dropped_frames == [0]
    assert not [t for t in threading.enumerate() if t.name.startswith("streamchat")]
    assert (out.frame_age >= 0).all() and (out.newest_frame_times.diff() >= 0).all()
    assert len(set(out.newest_frame_times[0].tolist())) >= 5  # the answer followed the video

    taken = [taken for _, taken in log]
    times = [out.token_times[0, 0].item()] * len(PROMPT) + out.token_times[0].tolist()
    reference = whole(model, out.sequences[0].tolist(), times, [0], camera.frames[: len(log)], frame_times=taken)[
        len(PROMPT) - 1 : -1
    ]
    torch.testing.assert_close(torch.stack(out.logits)[:, 0], reference, atol=1e-4, rtol=0)


def test_silent_camera_times_out(model):
    class Silent:
        source, live = "camera", True

        def __iter__(self):
            return self

        def __next__(self):
            time.sleep(0.4)
            raise StopIteration

    with pytest.raises(StreamingError, match="camera: no frame arrived within 0.1 s"):
        ask(model, PROMPT, frames=Silent(), frame_timeout=0.1)


def test_refresh_visual_in_silence_equals_generate(model):
    frames = frames_at(at_rate(2, 5))
    plain = ask(model, PROMPT, frames=iter(frames), start_time=3.0, tokens_per_second=2)
    cache = StreamingCache(model.config)
    early = [f for f in frames if f[0] <= 2.0]
    model.refresh_visual(cache, early[:3])
    model.refresh_visual(cache, early[3:])
    late = [f for f in frames if f[0] > 2.0]
    out = ask(model, PROMPT, frames=iter(late), start_time=3.0, tokens_per_second=2, past_key_values=cache)
    torch.testing.assert_close(torch.stack(out.logits), torch.stack(plain.logits), atol=1e-5, rtol=0)


def test_own_decoding_loop_with_the_hook_equals_generate(model):
    """`refresh_visual` and plain forward calls are all that a loop of one's own needs."""
    frames = frames_at(at_rate(2, 5))
    out = ask(model, PROMPT, frames=iter(frames), start_time=1.0, tokens_per_second=2)
    cache, tokens, said, shown = StreamingCache(model.config), torch.tensor([PROMPT]), [], 0
    with torch.no_grad():
        for step in range(7):
            due = [f for f in frames[shown:] if f[0] <= 1.0 + step / 2]
            shown += len(due)
            model.refresh_visual(cache, due)
            logits = model(tokens, past_key_values=cache, use_cache=True).logits[:, -1]
            torch.testing.assert_close(logits, out.logits[step], atol=1e-5, rtol=0)
            tokens = logits.argmax(-1, keepdim=True)
            said.append(tokens.item())
    assert said == answer_of(out, len(PROMPT))


def test_memory_and_state_stay_bounded(model):
    cache = StreamingCache(model.config)
    frames = frames_at(at_rate(5, 12))
    model.refresh_visual(cache, frames[:1])
    after_first = cache.visual_bytes
    model.refresh_visual(cache, frames[1:])
    assert cache.visual_bytes == after_first > 0
    before = {name: id(value) for name, value in vars(model).items()}
    ask(model, PROMPT, frames=iter(frames_at([20.0])), start_time=20.0, tokens_per_second=2, past_key_values=cache)
    assert {name: id(value) for name, value in vars(model).items()} == before  # nothing stays on the module


def test_without_frames_generate_is_qwen2(model):
    """Greedy, sampling, beams, assisted, uncached and static decoding give transformers' own tokens."""
    qwen = qwen_twin(model)
    prompt = torch.tensor([PROMPT, [0, 0, 5, 9]])
    mask = torch.tensor([[1] * 4, [0, 0, 1, 1]])
    ways = ({}, {"num_beams": 3}, {"do_sample": True}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}, STATIC)
    for options in ways:
        rows = 1 if "prompt_lookup_num_tokens" in options else 2
        both = []
        for candidate in (model, qwen):
            torch.manual_seed(3)
            both.append(
                candidate.generate(
                    prompt[:rows],
                    attention_mask=mask[:rows],
                    max_new_tokens=9,
                    eos_token_id=None,
                    pad_token_id=0,
                    **{"do_sample": False, **options},
                )
            )
        assert both[0].tolist() == both[1].tolist(), options


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_cache_implementation_may_stand_in_the_generation_config(implementation):
    """Also for the turns that follow, whose cache is there already."""
    own = tiny_model()
    own.generation_config.cache_implementation = implementation
    frames, asks = frames_at(at_rate(2, 12)), [(1.0, PROMPT), (6.0, [9])]
    streamed = conversation(own, frames, asks, tokens_per_second=2, max_cache_len=32)
    assert_replay(own, frames, streamed, [prompt for _, prompt in asks])


def test_padding_is_guessed_as_transformers_does(model):
    prompt = torch.tensor([PROMPT, [0, 0, 5, 9]])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    both = [m.generate(prompt, **options).tolist() for m in (model, qwen_twin(model))]
    assert both[0] == both[1]


def test_generation_config_object_is_honoured(model):
    config = GenerationConfig(max_new_tokens=4, do_sample=False, return_dict_in_generate=True, eos_token_id=None)
    out = model.generate(
        torch.tensor([PROMPT]), generation_config=config, frames=iter(frames_at([0.0])), tokens_per_second=2
    )
    assert out.sequences.shape == (1, 8)


def test_generation_config_is_honoured_wherever_it_stands(model):
    config = GenerationConfig(max_new_tokens=4, use_cache=False, eos_token_id=None)
    options = {"frames": iter(frames_at([0.0])), "tokens_per_second": 2}
    with pytest.raises(ValueError, match="use_cache=False"):
        model.generate(torch.tensor([PROMPT]), config, **options)
    own = tiny_model()
    own.generation_config.use_cache = False
    with pytest.raises(ValueError, match="use_cache=False"):
        ask(own, PROMPT, **options)


@pytest.mark.parametrize("frames", [None, frames_at([0.0, 0.5])])
def test_beams_return_their_scores(model, frames):
    options = {"num_beams": 3, "output_scores": True, "tokens_per_second": 2}
    out = ask(model, PROMPT, frames=frames and iter(frames), **options)
    assert out.sequences_scores.shape == (1,) and out.beam_indices.shape == (1, 7)


def test_several_answers_to_one_stream_have_no_times_after_their_end(model):
    ending = Ending([0, 1, 2], [None, 2, None], len(PROMPT))
    options = {"num_return_sequences": 3, "do_sample": True, "eos_token_id": END, "pad_token_id": 0}
    frames = iter(frames_at(at_rate(2, 12)))
    out = ask(model, PROMPT, frames=frames, tokens_per_second=2, logits_processor=[ending], **options)
    for times in (out.token_times, out.newest_frame_times, out.frame_age):
        assert times.isnan().tolist() == [[False] * 7, [False] * 3 + [True] * 4, [False] * 7]


def test_several_answers_to_one_stream_can_go_on(model):
    torch.manual_seed(0)
    frames, options = frames_at(at_rate(2, 12)), {"tokens_per_second": 2, "do_sample": True}
    source = iter(frames)
    first = ask(model, PROMPT, frames=source, num_return_sequences=3, **options)
    second = model.generate(
        torch.tensor([[9, 10]] * 3),
        frames=source,
        start_time=6.0,
        past_key_values=first.past_key_values,
        **{**OPTIONS, **options, "eos_token_id": None},
    )
    for row in range(3):
        tokens = first.sequences[row].tolist() + second.sequences[row].tolist()
        times = [0.0] * 4 + first.token_times[row].tolist() + [6.0] * 2 + second.token_times[row].tolist()
        reference = whole(model, tokens, times, [0, 11], frames)[12:-1]
        torch.testing.assert_close(torch.stack(second.logits)[:, row], reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_padding_is_padding_in_every_chunk(model, chunk):
    tokens, mask = torch.tensor([[0, 0, 7, 8], PROMPT]), torch.tensor([[0, 0, 1, 1], [1] * 4])

    def run(**changes):
        streams = [iter(frames_at(at_rate(2, 6), seed=s)) for s in (0, 1)]
        options = {**OPTIONS, "eos_token_id": None, "tokens_per_second": 2, "frames": streams, **changes}
        return torch.stack(model.generate(tokens, attention_mask=mask, **options).logits)

    torch.testing.assert_close(run(prefill_chunk_size=chunk), run(), atol=1e-4, rtol=0)


def test_tokens_must_continue_the_cache(model):
    cache = StreamingCache(model.config)
    with torch.no_grad():
        model(torch.tensor([PROMPT]), past_key_values=cache)
    for mask in (None, torch.ones(1, 6, dtype=torch.long)):
        with pytest.raises(ValueError, match="one whole conversation, longer than the 4 tokens in the cache"):
            ask(model, [9, 10], attention_mask=mask, past_key_values=cache, frames=iter(frames_at([0.0])))
    first = ask(model, PROMPT, tokens_per_second=2)
    with pytest.raises(ValueError, match="2 rows of input_ids, but the conversation has 1"):
        model.generate(torch.tensor([[9], [9]]), past_key_values=first.past_key_values)


@pytest.mark.parametrize("tokens_per_second", [2, None])
def test_a_frame_that_cannot_be_encoded_is_named(model, tokens_per_second):
    frames = iter([(0.2, torch.zeros(1, 16, 16))])
    with pytest.raises(StreamingError, match="list_iterator at 0.200 s: encoding failed: .* 3 channels"):
        ask(model, PROMPT, frames=frames, tokens_per_second=tokens_per_second)


def test_a_generator_that_hangs_times_out(model):
    def camera():
        time.sleep(0.4)
        yield 0.0, torch.zeros(3, 16, 16)

    class Live:
        source, live = "camera", True

        def __iter__(self):
            return camera()

    with pytest.raises(StreamingError, match="camera: no frame arrived within 0.1 s"):
        ask(model, PROMPT, frames=Live(), frame_timeout=0.1)


def test_tiny_config_is_tiny():
    model = tiny_model()
    assert sum(p.numel() for p in model.parameters()) < 100_000
    assert tiny_config().visual_window == 5
