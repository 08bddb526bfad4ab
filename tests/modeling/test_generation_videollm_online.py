"""The loop of VideoLLM-online: streamed equals whole, silence costs its own tokens, and no turn is left half told."""

import itertools
import threading
import time

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from live_loop_helpers import Spy, talkative_model, whole
from session_helpers import Camera, nothing_left_behind
from streamchat_hf.modeling.reader_streamchat import StreamingError
from videollm_online_helpers import CLOSE, END, INTERVAL, OPEN, START, V, pixels

PROMPT = torch.tensor([[START, 20, 21]])
FRAME = [V] * 5
QUESTION, QUESTION_IN_RUN = [10, 9, 30, *CLOSE[1:]], [6, 9, 30, *CLOSE[1:]]
# Probabilities of silence of the model below lie on both sides of it.
THRESHOLD = 0.02


@pytest.fixture
def model():
    return talkative_model()


def frames(count: int, fps: float = 2.0, seed: int = 0) -> list[tuple[float, torch.Tensor]]:
    return [(i / fps, picture) for i, picture in enumerate(pixels(count, seed))]


def watch(model, source, prompt=PROMPT, **options):
    """A call under a simulated clock, with everything it returns."""
    defaults = {"tokens_per_second": 4.0, "max_new_tokens": 5, "threshold": THRESHOLD, "do_sample": False}
    options = defaults | options
    return model.generate(prompt, frames=iter(source), return_dict_in_generate=True, **options)


@pytest.mark.parametrize("vision", ["siglip_vision_model", "clip_vision_model", "streamformer"])
@pytest.mark.parametrize("text", ["llama", "qwen2"])
def test_streamed_conversation_equals_one_forward(vision, text):
    model = talkative_model(vision=vision, text=text)
    spy = Spy(model)
    output = watch(model, frames(16))
    expected = whole(model, output.sequences, 16)
    said = sum(len(ids) for _, ids in output.responses)
    assert len(spy.logits) == 16 + said  # one row for each frame and each word, and no more
    assert spy.rows == len(spy.logits)
    for place, logits in spy.logits.items():
        torch.testing.assert_close(logits, expected[place], atol=1e-4, rtol=0)
    assert output.sequences.shape[1] - sum(length for _, length in spy.read) == len(output.past_key_values.pending)


def test_the_model_is_sometimes_silent_and_its_answers_vary(model):
    answers = [ids for _, ids in watch(model, frames(16)).responses]
    assert 1 < len(answers) < 12
    assert len({tuple(ids) for ids in answers}) > 1


def test_backlog_in_one_forward_equals_frame_by_frame(model):
    caches, spies = [], []
    for batches in ([frames(9)], [[frame] for frame in frames(9)]):
        twin = talkative_model()
        spies.append(Spy(twin))
        cache = twin.new_cache()
        cache.hear(PROMPT[0].tolist())
        silence = []
        for batch in batches:
            twin.refresh_visual(cache, batch, threshold=1e-9)
            silence += cache.silence
            assert not cache.speaks
        caches.append((cache, silence))
    together, apart = spies
    assert len(together.read) == 1
    assert len(apart.read) == 9
    assert caches[0][0].ids == caches[1][0].ids
    assert caches[0][1] == pytest.approx(caches[1][1], abs=1e-6)
    for place, logits in apart.logits.items():
        torch.testing.assert_close(logits, together.logits[place], atol=1e-4, rtol=0)


def test_a_backlog_speaks_if_any_frame_of_it_does(model):
    def backlog(count: int):
        cache = model.new_cache()
        cache.hear(PROMPT[0].tolist())
        model.refresh_visual(cache, frames(count), threshold=THRESHOLD)
        return cache

    last_silent = max(i for i, silence in enumerate(backlog(16).silence) if silence >= THRESHOLD)
    cache = backlog(last_silent + 1)
    assert min(cache.silence) < THRESHOLD <= cache.silence[-1]
    assert cache.speaks


def test_a_silent_frame_costs_its_own_tokens(model):
    spy = Spy(model)
    output = watch(model, frames(10), threshold=1e-9)
    assert output.responses == []
    first = PROMPT.shape[1] + len(OPEN) + 5
    assert spy.read == [(0, first)] + [(first + 6 * i, 6) for i in range(9)]
    assert output.sequences[0].tolist() == [*PROMPT[0].tolist(), *OPEN, *FRAME, *[INTERVAL, *FRAME] * 9]


def test_threshold_decides(model):
    cache = model.new_cache()
    cache.hear(PROMPT[0].tolist())
    model.refresh_visual(cache, frames(1), threshold=0.5)
    probability = cache.silence[0]
    for threshold, speaks in ((probability, False), (probability * 1.001, True), (None, probability < 0.725)):
        again = model.new_cache()
        again.hear(PROMPT[0].tolist())
        model.refresh_visual(again, frames(1), threshold=threshold)
        assert again.speaks is speaks


@pytest.mark.parametrize("favourite", [INTERVAL, 40])
def test_without_a_threshold_the_most_probable_token_decides(model, favourite):
    with torch.no_grad():  # a head that has one favourite, though not by far
        model.lm_head.weight.zero_()
        model.lm_head.weight[[INTERVAL, 40]] = 1e-3
        model.lm_head.weight[favourite] = 2e-3
    cache = model.new_cache()
    cache.hear(PROMPT[0].tolist())
    model.model.language_model.norm.register_forward_hook(lambda module, args, output: output.abs())
    model.refresh_visual(cache, frames(1), threshold=0)
    assert cache.silence[0] < 0.03
    assert cache.speaks is (favourite != INTERVAL)


def test_times_of_tokens_and_frames(model):
    output = watch(model, frames(16), tokens_per_second=4.0)
    spoken = iter(zip(output.token_times[0].tolist(), output.newest_frame_times[0].tolist(), strict=True))
    for start, ids in output.responses:
        for i, _ in enumerate(ids):
            time, newest = next(spoken)
            assert time == start + i / 4
            assert newest <= start
    assert next(spoken, None) is None
    assert torch.equal(output.frame_age, output.token_times - output.newest_frame_times)
    assert output.token_times.dtype == torch.float64
    [log] = output.frame_log
    assert [t_sec for t_sec, _ in log] == [i / 2 for i in range(16)]
    speaking = [(start, start + (len(ids) - 1) / 4) for start, ids in output.responses]
    for t_sec, read in log:  # at once, or when an answer has ended
        assert read == max([t_sec, *(end for start, end in speaking if start < t_sec < end)])


def test_the_future_never_changes_the_past(model):
    early = watch(model, frames(8))
    other = frames(8) + [(t_sec + 4, picture) for t_sec, picture in frames(8, seed=1)]
    late = watch(model, other)
    # What was said before the ninth frame came, at 4 s; an answer that had begun goes on either way.
    before = [response for response in early.responses if response[0] < 4]
    assert late.responses[: len(before)] == before
    assert len(late.responses) > len(before)
    common = early.sequences.shape[1] - len(early.past_key_values.pending)
    assert torch.equal(late.sequences[:, :common], early.sequences[:, :common])


# What crashed the authors' loop.


@pytest.mark.parametrize("token", [CLOSE[0], 40, END])
def test_whatever_a_frame_predicts_instead_of_silence_the_model_speaks(model, token):
    choose = model.lm_head.forward
    model.lm_head.forward = lambda states: choose(states).index_fill(-1, torch.tensor([token]), 50.0)
    output = watch(model, frames(2), max_new_tokens=1)
    answer = [token] if token == END else [token, END]
    assert output.sequences[0].tolist() == [*PROMPT[0].tolist(), *[*OPEN, *FRAME, *CLOSE, *answer] * 2]


def test_a_question_right_after_a_response(model):
    first = watch(model, frames(1), threshold=1.0, max_new_tokens=2)
    cache = first.past_key_values
    assert not cache.open_run
    spy = Spy(model)
    second = watch(model, [], torch.tensor([QUESTION]), past_key_values=cache, max_new_tokens=2)
    [(_, said)] = first.responses
    [(_, answer)] = second.responses
    turn = [*OPEN, *FRAME, *CLOSE, *said, *([] if said[-1] == END else [END])]
    closed = [*answer, *([] if answer[-1] == END else [END])]
    assert second.sequences[0].tolist() == [*PROMPT[0].tolist(), *turn, *QUESTION, *closed]
    assert second.token_times[0, 0] == first.token_times[0, -1] > 0  # time goes on where it stopped
    assert cache.clock == 1000 * second.token_times[0, -1]
    expected = whole(model, second.sequences, 1)
    for place, logits in spy.logits.items():
        torch.testing.assert_close(logits, expected[place], atol=1e-4, rtol=0)


@pytest.mark.parametrize("longest", [1, 3])
def test_an_answer_that_is_cut_is_closed(model, longest):
    model.lm_head.register_forward_hook(  # never ends by itself
        lambda module, args, output: output.index_fill(-1, torch.tensor([END]), -50.0)
    )
    output = watch(model, frames(3), threshold=1.0, max_new_tokens=longest, tokens_per_second=1000.0)
    assert [len(ids) for _, ids in output.responses] == [longest] * 3
    expected = PROMPT[0].tolist()
    for _, ids in output.responses:
        expected += [*OPEN, *FRAME, *CLOSE, *ids, END]
    assert output.sequences[0].tolist() == expected


def test_a_question_before_any_frame(model):
    spy = Spy(model)
    prompt = torch.tensor([[*PROMPT[0].tolist(), *QUESTION]])
    output = watch(model, frames(2), prompt, threshold=1e-9, max_new_tokens=3)
    [(start, said)] = output.responses
    assert start == 0
    closed = [*said, *([] if said[-1] == END else [END])]
    run = [*OPEN, *FRAME, INTERVAL, *FRAME]
    assert output.sequences[0].tolist() == [*prompt[0].tolist(), *closed, *run]
    assert spy.read[0] == (0, prompt.shape[1])
    expected = whole(model, output.sequences, 2)
    for place, logits in spy.logits.items():
        torch.testing.assert_close(logits, expected[place], atol=1e-4, rtol=0)


def test_a_prompt_may_have_opened_the_run(model):
    for opened in ([], OPEN, OPEN[1:]):
        prompt = [*PROMPT[0].tolist(), *opened]
        output = watch(model, frames(1), torch.tensor([prompt]), threshold=1e-9)
        assert output.sequences[0].tolist() == [*(prompt if opened else [*prompt, *OPEN]), *FRAME]


def test_a_question_closes_the_run_of_frames(model):
    first = watch(model, frames(2), threshold=1e-9)
    assert first.past_key_values.open_run
    later = [(t_sec + 1, picture) for t_sec, picture in zip((0.0, 0.5), pixels(4)[2:], strict=True)]
    second = watch(
        model,
        later,
        torch.tensor([QUESTION_IN_RUN]),
        past_key_values=first.past_key_values,
        threshold=1e-9,
        max_new_tokens=3,
    )
    [(_, said)] = second.responses
    closed = [*said, *([] if said[-1] == END else [END])]
    expected = [*first.sequences[0].tolist(), *QUESTION_IN_RUN, *closed, *OPEN, *FRAME, INTERVAL, *FRAME]
    assert second.sequences[0].tolist() == expected


def test_without_an_interval_silence_is_the_end_token_and_frames_touch():
    model = talkative_model(frame_token_interval_id=None)
    output = watch(model, frames(3), threshold=1e-9)
    assert output.sequences[0].tolist() == [*PROMPT[0].tolist(), *OPEN, *FRAME * 3]
    probabilities = whole(model, output.sequences, 3).softmax(-1)[-1]
    assert output.past_key_values.silence == pytest.approx([float(probabilities[END])], abs=1e-6)


def test_frames_are_never_said():
    model = talkative_model(v_placeholder_id=60, text_config={"vocab_size": 61})
    model.lm_head.register_forward_hook(lambda module, args, output: output.index_fill(-1, torch.tensor([60]), 50.0))
    output = watch(model, frames(2), threshold=1.0)
    assert all(60 not in ids for _, ids in output.responses)


def test_many_frames_are_read_in_parts_that_fit():
    model = talkative_model(max_context=64)
    spy = Spy(model)
    cache = model.new_cache()
    cache.hear(PROMPT[0].tolist())
    model.refresh_visual(cache, frames(30), threshold=1e-9)
    assert len(cache.silence) == 30
    assert max(length for _, length in spy.read) <= 64 // 2 + 5
    assert len(cache.ids) <= 64


@pytest.mark.parametrize("said", [0, 60])
@pytest.mark.parametrize("at_once", [20, 1])
def test_many_frames_fit_beside_what_is_never_forgotten(model, at_once, said):
    prompt = list(itertools.islice(itertools.cycle(range(9, 50)), 121 - said))
    cache, silence = model.new_cache(max_context=200), []
    cache.hear([*prompt, *(CLOSE[1:] if said else [])])
    if said:  # an answer belongs to the turn under way until a frame comes after it
        model._read(cache, cache.pending + [40] * said, [0])
        cache.end_response()
    for begin in range(0, 20, at_once):
        model.refresh_visual(cache, frames(20)[begin : begin + at_once], threshold=1e-9)
        silence += cache.silence
    assert len(silence) == cache.streams[0].frames_taken == 20
    assert cache.ids[: len(prompt)] == prompt
    assert len(cache.ids) <= 200


def test_a_question_that_stands_is_kept_for_ever():
    model = talkative_model(max_context=96, text_config={"num_hidden_layers": 1})
    first = watch(model, frames(8), threshold=1e-9)
    cache, spy = first.past_key_values, Spy(model)
    question = torch.tensor([[6, 9, 30, *OPEN]])
    watch(model, frames(48)[8:], question, past_key_values=cache, threshold=1e-9)
    held = cache.ids.count(V) // 5
    run = [*OPEN, *FRAME, *[INTERVAL, *FRAME] * (held - 1)]
    assert cache.ids == [*PROMPT[0].tolist(), 9, 30, *run]
    assert len(cache.ids) <= 96 < cache.forgotten
    assert cache.visual_bytes == 2 * 2 * 96 * 8 * 4  # keys and values, heads, tokens, dimensions, bytes
    # With one layer it is as if nothing else had ever been there.
    with torch.no_grad():
        shown = pixels(48)[None, -held:]
        afresh = type(model).forward(model, input_ids=torch.tensor([cache.ids]), pixel_values_videos=shown).logits[0]
    torch.testing.assert_close(list(spy.logits.values())[-1], afresh[-1], atol=1e-4, rtol=0)


def test_a_window_goes_on_for_ever_and_speaks_in_it():
    model = talkative_model(max_context=96)
    spy = Spy(model)
    output = watch(model, frames(120))
    cache = output.past_key_values
    assert len(output.responses) > 5
    assert cache.forgotten > 300
    assert len(cache.ids) <= 96
    assert cache.ids[:3] == PROMPT[0].tolist()
    # Until something is forgotten, all is as in one forward.
    expected = whole_until(model, output.sequences, 96)
    for place, logits in itertools.islice(spy.logits.items(), 8):
        torch.testing.assert_close(logits, expected[place], atol=1e-4, rtol=0)


def whole_until(model, sequences, length):
    ids = sequences[:, :length]
    while int((ids == V).sum()) % 5:
        ids = ids[:, :-1]
    return whole(model, ids, int((ids == V).sum()) // 5)


def test_sampling_and_processors(model):
    torch.manual_seed(0)
    greedy, warm = (watch(model, frames(6), threshold=1.0, **how) for how in ({}, {"do_sample": True}))
    assert greedy.responses != warm.responses
    seen = []

    def only_forty(input_ids, scores):
        seen.append(input_ids.tolist())
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([40]), 0.0)

    output = watch(model, frames(1), threshold=1.0, logits_processor=[only_forty], max_new_tokens=3)
    assert output.responses == [(0.0, [40, 40, 40])]
    assert seen == [[[]], [[40]], [[40, 40]]]
    stops = watch(model, frames(1), threshold=1.0, stopping_criteria=[lambda ids, scores: torch.tensor([True])])
    assert [len(ids) for _, ids in stops.responses] == [1]


class Listener(BaseStreamer):
    def __init__(self):
        self.heard = []

    def put(self, value):
        self.heard.append(value.tolist())

    def put_times(self, times, newest, ages):
        assert ages == pytest.approx([times[0] - newest[0]], nan_ok=True)
        self.heard.append("times")

    def put_frames(self, frame_times, time):
        self.heard.append(("frames", *frame_times[0]))

    def end(self):
        self.heard.append("end")


def test_streamer_hears_the_prompt_and_every_token(model):
    listener = Listener()
    output = watch(model, frames(2), threshold=1.0, max_new_tokens=2, streamer=listener, tokens_per_second=100.0)
    (_, first), (_, second) = output.responses
    told = [[item for token in ids for item in ("times", [token])] for ids in (first, second)]
    assert listener.heard == [PROMPT.tolist(), ("frames", 0.0), *told[0], ("frames", 0.5), *told[1], "end"]


def test_wall_clock_watches_a_camera_and_can_be_replayed(model):
    pictures = pixels(6)
    with nothing_left_behind():
        live = watch(model, Camera(pictures, [0.05] * 6), threshold=1.0, tokens_per_second=None, max_new_tokens=3)
    [log] = live.frame_log
    assert len(log) == 6
    assert all(read >= t_sec for t_sec, read in log)
    # The same frames, each when it was read: the same backlogs, hence the same words.
    replay = [(read, picture) for (_, read), picture in zip(log, pictures, strict=True)]
    again = watch(model, replay, threshold=1.0, tokens_per_second=1e6, max_new_tokens=3)
    assert [ids for _, ids in again.responses] == [ids for _, ids in live.responses]
    assert torch.equal(again.sequences, live.sequences)


def test_a_question_under_the_wall_clock_does_not_wait_for_a_frame(model):
    released = threading.Event()

    class WaitingCamera(Camera):
        def __next__(self):
            assert released.wait(30)
            return super().__next__()

    class Release(Listener):
        def put(self, value):
            super().put(value)
            if len(self.heard) > 3:
                released.set()

    prompt = torch.tensor([[*PROMPT[0].tolist(), *QUESTION]])
    camera = WaitingCamera(pixels(1), [0.0])
    output = watch(model, camera, prompt, tokens_per_second=None, streamer=Release(), frame_timeout=20.0)
    assert output.responses[0][1]
    assert len(output.frame_log[0]) == 1


def test_a_broken_source_keeps_what_was_said(model):
    def broken():
        yield from frames(3)
        raise OSError("the cable is out")

    for clock in (8.0, None):
        with nothing_left_behind(), pytest.raises(StreamingError, match="the cable is out") as caught:
            cache, how = model.new_cache(), {"tokens_per_second": clock, "max_new_tokens": 2}
            watch(model, broken(), threshold=1.0, past_key_values=cache, **how)
        partial = caught.value.partial[0].tolist()
        assert partial[:3] == PROMPT[0].tolist()
        assert partial.count(V) == 5 * (3 - len(cache.streams[0].waiting)) > 5
        assert partial[-1] == END


def test_a_reader_of_text_is_not_left_waiting(model):
    streamer = TextIteratorStreamer(tokenizer=None, timeout=10)
    streamer.put = lambda value: None
    streamer.end = lambda: streamer.text_queue.put(streamer.stop_signal)

    def broken():
        raise OSError("gone")
        yield

    with pytest.raises(StreamingError, match="gone"):
        watch(model, broken(), streamer=streamer)
    assert list(streamer) == []


def test_encoding_that_fails_names_the_frame(model):
    with nothing_left_behind(), pytest.raises(StreamingError, match=r"at 0.500 s: the frame's shape changed"):
        watch(model, [(0.0, torch.zeros(3, 32, 32)), (0.5, torch.zeros(3, 16, 16))])


def test_an_answer_whose_listener_fails_is_closed_with_what_was_delivered(model):
    cache = model.new_cache()
    cache.hear([*PROMPT[0].tolist(), *QUESTION])
    clock = model.open_clock(iter(()), cache, None, 4.0)
    said = []

    def spoke(token, now):
        if len(said) == 2:
            raise RuntimeError("nobody listens")
        said.append(token)

    voice = model.voice(
        do_sample=False, logits_processor=[lambda ids, scores: scores.index_fill(1, torch.tensor([END]), -50.0)]
    )
    with pytest.raises(RuntimeError, match="nobody listens"):
        model.speak(cache, clock, voice, spoke)
    assert cache.ids + cache.pending == [*PROMPT[0].tolist(), *QUESTION, *said, END]


def test_without_frames_it_is_transformers_own_generate(model):
    output = model.generate(PROMPT, max_new_tokens=4, do_sample=False)
    ids = PROMPT
    for _ in range(4):
        with torch.no_grad():
            ids = torch.cat((ids, model(input_ids=ids).logits[:, -1:].argmax(-1)), dim=1)
        if ids[0, -1] == END:
            break
    assert torch.equal(output, ids)


def test_a_finished_clip_is_a_prompt_for_transformers_own_generate(model):
    prompt = torch.tensor([[START, 20, *OPEN, *FRAME, INTERVAL, *FRAME, *CLOSE]])
    clip = pixels(2)[None]
    output = model.generate(prompt, pixel_values_videos=clip, max_new_tokens=4, do_sample=False)
    for length in range(prompt.shape[1], output.shape[1]):
        with torch.no_grad():
            logits = model(input_ids=output[:, :length], pixel_values_videos=clip).logits[0, -1]
        assert int(logits.argmax()) == output[0, length]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"prompt": torch.ones(2, 3, dtype=torch.long)}, "must be one row"),
        ({"attention_mask": torch.tensor([[0, 1, 1]])}, "has no padding"),
        ({"past_key_values": DynamicCache()}, "need a LiveCache, not a DynamicCache"),
        ({"num_beams": 2}, "num_beams=2 does not work with frames"),
        ({"use_cache": False}, "use_cache=False does not work with frames"),
        ({"cache_implementation": "static"}, "cache_implementation='static' does not work"),
        ({"output_scores": True}, "output_scores=True does not work with frames"),
        ({"output_logits": True}, "output_logits=True does not work with frames"),
        ({"output_attentions": True}, "output_attentions=True does not work with frames"),
        ({"output_hidden_states": True}, "output_hidden_states=True does not work with frames"),
        ({"max_length": 20}, "no max_length"),
        ({"wisdom": 3}, "does not take wisdom"),
        ({"tokens_per_second": 0}, "must be positive"),
        ({"backpressure": "panic", "tokens_per_second": None}, "backpressure='panic'"),
        ({"prompt": torch.tensor([[START, V]])}, "cannot hold frames itself"),
    ],
)
def test_arguments_that_do_not_fit_are_named(model, changes, problem):
    with nothing_left_behind(), pytest.raises(ValueError, match=problem):
        watch(model, frames(1), **{"prompt": PROMPT} | changes)


def test_two_streams_and_no_prompt_are_refused(model):
    with pytest.raises(ValueError, match="2 streams of frames: this model watches one"):
        model.generate(PROMPT, frames=[iter(frames(1)), iter(frames(1))], tokens_per_second=1.0)
    with pytest.raises(ValueError, match="frames need a prompt"):
        model.generate(frames=iter(frames(1)), tokens_per_second=1.0)
    cache = watch(model, frames(4)).past_key_values
    with pytest.raises(ValueError, match="lies before the stream's clock"):
        watch(model, [], prompt=None, past_key_values=cache, start_time=0.5)


def test_a_slow_step_lets_frames_wait_for_the_next_backlog(model):
    class Slow(Listener):
        def put(self, value):
            time.sleep(0.06)

    with nothing_left_behind():
        live = watch(model, Camera(pixels(8), [0.03] * 8), threshold=1.0, tokens_per_second=None, streamer=Slow())
    [log] = live.frame_log
    assert len(log) == 8
    assert len({read for _, read in log}) < 8
