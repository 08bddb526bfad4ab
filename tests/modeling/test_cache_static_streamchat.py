"""Static shapes: the same answers, at the same addresses, from a decoding step that is compiled once."""

import itertools

import pytest
import torch
from transformers import CompileConfig, GenerationConfig

from streamchat_helpers import END, PAD, at_rate, frames_at, tiny_model

PROMPT = [5, 6, 7, 8]
OPTIONS = {"do_sample": False, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
STATIC = {"cache_implementation": "static", "max_cache_len": 256}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture
def compiler():
    """A backend that runs a graph as it is, and counts; what it compiled is forgotten before and after."""

    def backend(graph, inputs):
        backend.graphs += 1

        def run(*arguments):
            backend.steps += 1
            return graph(*arguments)

        return run

    backend.graphs = backend.steps = 0
    torch.compiler.reset()
    yield backend
    torch.compiler.reset()


def compiling(backend, mode=None):
    config = CompileConfig(backend=backend, mode=mode, fullgraph=True)
    config._compile_all_devices = True  # on the CPU, too
    return {"compile_config": config}


def ask(model, tokens, **kwargs):
    return model.generate(torch.tensor([tokens]), **{**OPTIONS, "tokens_per_second": 2, "max_new_tokens": 6, **kwargs})


def logits_of(output):
    return torch.stack(output.logits)


def unsteady(count):
    """Presentation times of `count` frames, of which 0, 1, 0, 3 are taken at successive steps of half a second."""
    times, taken = [], itertools.cycle([0, 1, 0, 3])
    for step in itertools.count(3):  # the first step, at 1 s, sees none
        times += [step / 2] * next(taken)
        if len(times) >= count:
            return times[:count]


def addresses(cache):
    text = [t for layer in cache.layers for t in (layer.keys, layer.values, layer.cumulative_length)]
    return [t.data_ptr() for t in (cache.keys, cache.values, cache._visible, cache._any_visible, *text)]


def test_the_whole_ring_is_shown_and_a_mask_says_what_is_there(model):
    cache = model.new_cache(streams=3, max_cache_len=16)
    assert cache.visual_context(3) is None
    frames = frames_at(at_rate(1, 8))
    model.refresh_visual(cache, [frames[:2], [], frames])  # 2, 0 and 9 frames, window 5
    context = cache.visual_context(6)  # two rows of text per stream
    assert context.keys.shape[3] == context.values.shape[3] == context.mask.shape[3] == 5 * 4
    assert context.mask[0, 0, 0].nonzero().flatten().tolist() == list(range(2 * 4))
    assert context.mask[1:].all()  # a stream without frames looks everywhere, and what it sees is dropped
    assert context.any_visible[:, 0, 0].tolist() == [True, True, False, False, True, True]
    with pytest.raises(ValueError, match="4 rows of text cannot be shared out over the cache's 3 streams"):
        cache.visual_context(4)


def test_addresses_and_memory_never_change(model):
    source, seen = iter(frames_at(unsteady(110))), []
    cache = model.new_cache(max_cache_len=256)

    def watch(input_ids, scores):
        if cache.keys is not None:
            seen.append((addresses(cache), cache.visual_bytes))
        return scores

    options = {"past_key_values": cache, "logits_processor": [watch]}
    ask(model, PROMPT, frames=source, start_time=1.0, max_new_tokens=110, **options)
    ask(model, [9], frames=source, **options)
    assert cache.streams[0].frames_taken == 110 and len(seen) > 100
    cache.reset()
    ask(model, [9], frames=iter(frames_at(unsteady(5))), **options)
    assert all(step == seen[0] for step in seen)


def test_the_step_is_compiled_once(model, compiler):
    """Frames fill the window and go on, 0 to 3 a step; then another turn, and a shorter conversation after it."""
    source = iter(frames_at(unsteady(130)))
    first = ask(model, PROMPT, frames=source, start_time=1.0, **STATIC, **compiling(compiler))
    cache = first.past_key_values
    assert compiler.graphs == 2 and compiler.steps == 5  # before the first frame, and from then on
    assert 0 < cache.streams[0].frames_taken < cache.window

    for count, tokens in ((110, [9, 10, 11]), (20, [12])):
        ask(model, tokens, frames=source, past_key_values=cache, max_new_tokens=count, **compiling(compiler))
    assert cache.streams[0].frames_taken == 130
    again = iter(frames_at(unsteady(20), seed=1))
    ask(model, [5, 6], frames=again, start_time=1.0, cache_implementation="static", **compiling(compiler))
    assert compiler.graphs == 2 and compiler.steps == 5 + 109 + 19 + 5


def test_streams_side_by_side_are_compiled_once(model, compiler):
    """One stream ends its answer, another has no frame: that is in masks and positions, not in the graph."""
    sources = [iter(frames_at(times, seed=i)) for i, times in enumerate((at_rate(5, 30), [], unsteady(60)))]

    def ending(input_ids, scores):  # the first row says nothing else
        scores = scores.index_fill(1, torch.tensor(END), -torch.inf)
        scores[0, END] = torch.inf
        return scores

    options = {"tokens_per_second": 2, "eos_token_id": END, "pad_token_id": PAD, "logits_processor": [ending]}
    options = {**OPTIONS, **options, **compiling(compiler), "frames": sources}
    prompt = torch.tensor([[5, 6, 7], [0, 0, 7], [0, 5, 6]])
    first = model.generate(prompt, start_time=1.0, max_new_tokens=4, **STATIC, **options)
    prompt = torch.tensor([[8], [9], [10]])
    second = model.generate(prompt, past_key_values=first.past_key_values, max_new_tokens=30, **options)
    assert second.sequences[0].tolist() == [8, END, *[PAD] * 29]
    assert compiler.graphs == 1 and compiler.steps == 3 + 29


def test_a_loop_of_ones_own_can_be_compiled(model, compiler):
    frames = frames_at(at_rate(3, 6, offset=1.2))
    expected = ask(model, PROMPT, frames=iter(frames), start_time=1.0)
    cache, tokens, shown = model.new_cache(max_cache_len=16), torch.tensor([PROMPT]), 0
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    with torch.no_grad():
        for step in range(6):
            due = [f for f in frames[shown:] if f[0] <= 1.0 + step / 2]
            shown += len(due)
            model.refresh_visual(cache, due)
            positions = cache.read_tokens(tokens, None)
            output = (compiled if step else model)(tokens, position_ids=positions, past_key_values=cache)
            logits = output.logits[:, -1]
            torch.testing.assert_close(logits, expected.logits[step], atol=1e-5, rtol=0)
            tokens = logits.argmax(-1, keepdim=True)
    assert compiler.graphs == 1 and compiler.steps == 5


@pytest.mark.slow
def test_what_inductor_compiles_says_the_same(model, compiler):
    answers = []
    for options in ({}, STATIC, {**STATIC, **compiling("inductor", "default")}):
        source = iter(frames_at(unsteady(60)))
        first = ask(model, PROMPT, frames=source, start_time=1.0, max_new_tokens=30, **options)
        options = {k: v for k, v in options.items() if k not in STATIC}
        second = ask(model, [9, 10], frames=source, past_key_values=first.past_key_values, **options)
        answers.append((torch.cat((logits_of(first), logits_of(second))), [*first.sequences[0], *second.sequences[0]]))
    (expected, tokens), *others = answers
    for logits, said in others:
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert said == tokens


def test_text_that_may_not_fit_is_refused_before_anything_is_read(model):
    cache, source = model.new_cache(max_cache_len=12), iter(frames_at(at_rate(2, 20)))
    for limit in (
        {"max_new_tokens": 10},
        {"max_length": 14, "max_new_tokens": None},
        {"generation_config": GenerationConfig(max_new_tokens=10), "max_new_tokens": None},
    ):
        with pytest.raises(ValueError, match="may grow to 13 tokens, but the cache has room for 12: begin"):
            ask(model, PROMPT, frames=source, past_key_values=cache, **limit)
    with pytest.raises(ValueError, match="may grow to 23 tokens"):  # transformers' own default: 20 new ones
        ask(model, PROMPT, frames=source, past_key_values=cache, max_new_tokens=None)
    assert cache.get_seq_length() == 0 and cache.streams[0].frames_taken == 0

    ask(model, PROMPT, frames=source, past_key_values=cache, max_new_tokens=4)
    with pytest.raises(ValueError, match="may grow to 13 tokens"):
        ask(model, [9], frames=source, past_key_values=cache, max_new_tokens=5)
    ask(model, [9], frames=source, past_key_values=cache, max_new_tokens=4)  # the last token said is not read
    assert cache.get_seq_length() == 12


def test_text_within_a_sliding_window_has_no_end():
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    model = tiny_model(text_config=sliding)
    frames = frames_at(at_rate(2, 30))
    dynamic = ask(model, PROMPT, frames=iter(frames), start_time=1.0, max_new_tokens=20)
    cache = model.new_cache(max_cache_len=8)
    static = ask(model, PROMPT, frames=iter(frames), start_time=1.0, max_new_tokens=20, past_key_values=cache)
    torch.testing.assert_close(logits_of(static), logits_of(dynamic), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="room for 7"):  # the layers would look back on 7 tokens instead of 8
        ask(model, PROMPT, past_key_values=model.new_cache(max_cache_len=7))
    with pytest.raises(ValueError, match="sliding window"):
        cache.forget_text(0, 1)


def test_after_a_reset_nothing_is_remembered(model):
    frames = frames_at(at_rate(2, 6, offset=1.5))
    cache = model.new_cache(max_cache_len=16)
    first, again = [], []
    for answers, size in ((first, 16), (again, 16), ([], 24)):  # at last a conversation about larger frames
        source = frames_at([t for t, _ in frames], size=size)
        answers.append(ask(model, PROMPT, frames=iter(source), start_time=1.0, past_key_values=cache))
        cache.reset()
        assert cache.history is None and cache.clock == 0 and cache.get_seq_length() == 0
        assert not cache.visual_context(1).any_visible.any()
    torch.testing.assert_close(logits_of(again[0]), logits_of(first[0]), atol=1e-5, rtol=0)
    assert cache.keys.shape[3:5] == (5, 9)


@pytest.mark.parametrize("begin, end", [(2, 8), (0, 3), (4, 9)])
def test_text_is_forgotten_in_place(model, begin, end):
    answers = []
    for length in (None, 64):
        source, cache = iter(frames_at(at_rate(2, 20))), model.new_cache(max_cache_len=length)
        ask(model, PROMPT, frames=source, start_time=1.0, past_key_values=cache)
        before = addresses(cache) if length else None
        cache.forget_text(begin, end)
        answers.append(logits_of(ask(model, [9, 10], frames=source, start_time=6.0, past_key_values=cache)))
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)
    assert addresses(cache) == before


def test_cropping_takes_tokens_back_until_a_frame_is_seen(model):
    cache = model.new_cache(max_cache_len=8)
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7, 8]]), past_key_values=cache, use_cache=True)
        cache.crop(-2)
        again = model(torch.tensor([[9]]), past_key_values=cache, use_cache=True).logits[:, -1]
        expected = model(torch.tensor([[5, 6, 9]])).logits[:, -1]
    torch.testing.assert_close(again, expected, atol=1e-5, rtol=0)
    model.refresh_visual(cache, frames_at([0.0]))
    with pytest.raises(ValueError, match="cannot be cropped"):
        cache.crop(-1)


def test_a_ring_made_in_inference_mode_can_be_written_outside(model):
    cache, frames = model.new_cache(max_cache_len=8), frames_at([0.0, 0.5])
    with torch.inference_mode():
        model.refresh_visual(cache, frames[:1])
    model.refresh_visual(cache, frames[1:])
    assert cache.visual_context(1).mask.sum() == 2 * 4
