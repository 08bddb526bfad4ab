"""The metrics of a dialogue: who knows it is perfect, by every learning method, and others are what they should be."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from live_training_runs import speaker as build
from streamchat_hf.data.live_methods import METHODS
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.evaluation.videollm_online import dialogue_metrics, write
from streamchat_hf.evaluation.videollm_online_alerts import expected_responses
from streamchat_hf.metrics.videollm_online.live_metrics import live_metrics
from streamchat_hf.training.live_collator import LiveCollator

ALERTS = LiveStreamWorld(12, num_frames=14, kinds={"alert": 1.0}, max_queries=1, never=0.0)
MIXED = LiveStreamWorld(12, num_frames=14)
LATER = LiveStreamWorld(12, num_frames=24, kinds={"changes": 1.0}, max_queries=1)


class Knowing:
    """Knows a written dialogue; the first answer comes some frames early or, found by looking ahead, late."""

    training = False
    device = torch.device("cpu")

    def __init__(self, model, processor, row, method, shift=0):
        self.config, self.processor, self.method = model.config, processor, method
        self.written = write(processor, row, method)
        first, *rest = [response.frame for response in expected_responses(row)] or [-1]
        written = {*rest} if shift > 0 else {first + shift, first, *rest}
        self.speaks = [written, {first + shift}]  # in the dialogue as it is written; ahead of it
        self.asked = []

    def get_video_features(self, pixels):
        return torch.zeros(1, pixels.shape[1], 1, 16), None

    def eval(self):
        return self

    def train(self, mode):
        return self

    def __call__(self, input_ids, frame_features, logits_to_keep, use_cache):
        ids, config = input_ids[0].tolist(), self.config
        logits = torch.zeros(1, len(logits_to_keep), config.text_config.vocab_size)
        self.asked.append(ids)
        assert ids.count(config.v_placeholder_id) == len(frame_features) * config.frame_num_tokens
        speaks = self.speaks[len(self.asked) > 1]
        for n, j in enumerate(logits_to_keep.tolist()):
            frames = ids[: j + 1].count(config.v_placeholder_id) // config.frame_num_tokens
            decides = ids[j] == config.v_placeholder_id
            if self.method == "per-frame":
                tail = [*[config.v_placeholder_id] * config.frame_num_tokens, *config.response_start_ids]
                decides = ids[j + 1 - len(tail) : j + 1] == tail
            token = ids[j + 1] if j + 1 < len(ids) else self.written.silence
            if decides:
                loud = token if token != self.written.silence else config.response_start_ids[0]
                token = loud if frames - 1 in speaks else self.written.silence
            logits[0, n, token] = 50.0
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize("rows", [ALERTS, MIXED], ids=["alerts", "mixed"])
@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("interval", [",", None])
@pytest.mark.parametrize("method", METHODS)
def test_who_knows_everything_is_perfect(method, interval, tokens, rows):
    model, processor = build(tokens, interval)
    for i in range(12):
        result = dialogue_metrics(Knowing(model, processor, rows[i], method), processor, [rows[i]], method)
        assert result["lm_ppl"] == pytest.approx(1.0) and result["lm_correctness"] == 1.0
        assert result["missed"] == 0 and result["n"] == 1 and not result["loud"]
        if result["fluency"] is not None and result["frame_diff"] is not None:
            assert result["fluency"] == 1.0 and result["frame_diff"] == result["time_diff"] == 0.0


@pytest.mark.parametrize("frames", [-2, -1, 1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_early_and_late_by_so_many_frames(method, frames):
    """Late is found by looking ahead, in the layout of the method, without having seen the answer."""
    model, processor = build()
    rows = LiveStreamWorld(60, num_frames=24, kinds={"alert": 1.0}, max_queries=1, never=0.0)
    roomy = [row for row in (rows[i] for i in range(60)) if has_room(row)]
    assert len(roomy) >= 3
    for row in roomy:
        knowing = Knowing(model, processor, row, method, frames)
        result = dialogue_metrics(knowing, processor, [row], method)
        expected = abs(frames) / len(answers(row))  # of the first answer; the others are on time
        assert result["missed"] == 0 and result["frame_diff"] == expected == 2 * result["time_diff"]
        assert result["fluency"] < 1 and len(knowing.asked) == (2 if frames > 0 else 1)
        if frames < 0 or method != "per-frame":  # where silence is the first word, it is a wrong one
            assert result["lm_ppl"] == pytest.approx(1.0)
        assert (result["loud"] > 0) == (frames < 0)
        if frames > 0:
            head = knowing.written.frames[expected_responses(row)[0].frame] + 1
            ahead, rest = knowing.asked[1][:head], knowing.asked[1][head:]
            assert ahead == knowing.written.read[:head] and rest == silent_frame(model, method) * rest.count(
                model.config.v_placeholder_id
            )


def silent_frame(model, method):
    """What is read of a frame at which nothing is said, from the decision before it on."""
    config = model.config
    if method != "per-frame":
        return [config.frame_token_interval_id, config.v_placeholder_id]
    return [config.eos_token_id, *config.stream_start_ids, config.v_placeholder_id, *config.response_start_ids]


def test_who_never_speaks_has_missed_everything():
    model, processor = build()
    for method in METHODS:
        knowing = Knowing(model, processor, ALERTS[0], method, shift=1000)
        knowing.speaks[0].clear()
        result = dialogue_metrics(knowing, processor, [ALERTS[0]], method)
        assert result["missed"] == len(answers(ALERTS[0])) and result["frame_diff"] > 1 and result["loud"] == 0


def has_room(row):
    """Two events or more, with frames between them and before the first one."""
    streams = [message["num_frames"] for message in row["conversation"] if message["role"] == "stream"]
    return len(answers(row)) >= 2 and min(streams[-len(answers(row)) - 1 : -1]) >= 4


@pytest.mark.parametrize("method", METHODS)
def test_a_random_model_is_scored_as_by_a_forward_pass_over_everything(method):
    """Against the pure function on the logits of one plain forward pass, and look-ahead from pixels."""
    model, processor = build(tokens=3, seed=3)
    silence = model.config.eos_token_id if method == "per-frame" else model.config.silence_token_id
    model.lm_head.register_forward_hook(lambda head, states, logits: logits + 20 * one_hot(silence, logits))
    looked_ahead = []
    for row in (MIXED[2], ALERTS[1], ALERTS[3], *(LATER[i] for i in range(4))):
        written = write(processor, row, method)
        pixels = LiveCollator(processor).sample(dict(row)).pixels

        def logits_of(ids, frames, pixels=pixels):
            with torch.no_grad():
                return model(torch.tensor([ids]), pixel_values_videos=pixels[None, :frames]).logits[0]

        def look_ahead(past_len, first_frame, n_frames, written=written, logits_of=logits_of):
            looked_ahead.append(n_frames)
            config, rows = model.config, []
            v, start = [config.v_placeholder_id] * 3, list(config.response_start_ids)
            ids = written.read[: written.frames[first_frame - 1] + 1]
            for _ in range(n_frames):
                if method == "per-frame":
                    ids = [*ids, config.eos_token_id, *config.stream_start_ids, *v, *start]
                else:
                    ids = [*ids, config.frame_token_interval_id, *v]
                rows.append(len(ids) - 1)
            return logits_of(ids, first_frame + n_frames)[rows]

        expected = live_metrics(
            torch.tensor(written.ids),
            torch.tensor(written.labels),
            logits_of(written.read, len(pixels))[written.places],
            frame_num_tokens=3,
            v_placeholder_id=model.config.v_placeholder_id,
            eos_token_id=model.config.eos_token_id,
            frame_token_interval_id=None if method == "per-frame" else model.config.frame_token_interval_id,
            look_ahead=look_ahead,
        )
        result = dialogue_metrics(model, processor, [row], method)
        for name in ("lm_ppl", "frame_diff", "fluency", "lm_correctness", "missed"):
            assert result[name] == pytest.approx(expected[name], rel=1e-4), name
    assert looked_ahead


@pytest.mark.parametrize("method", METHODS)
def test_a_model_with_adapters_is_scored_as_merged(method):
    model, processor = build(seed=3)
    lora = LoraConfig(r=2, target_modules=".*(q_proj|lm_head)", init_lora_weights=False, task_type="CAUSAL_LM")
    rows = [ALERTS[1], LATER[0]]
    plain = dialogue_metrics(model, processor, rows, method)
    adapted = get_peft_model(model, lora)
    found = dialogue_metrics(adapted, processor, rows, method)
    assert found["lm_ppl"] != pytest.approx(plain["lm_ppl"], rel=1e-3)
    expected = dialogue_metrics(adapted.merge_and_unload(), processor, rows, method)
    assert found == pytest.approx(expected, rel=1e-3)


def one_hot(token, logits):
    return torch.nn.functional.one_hot(torch.tensor(token), logits.shape[-1])


def test_words_scored_are_those_of_answers_in_every_layout():
    _, processor = build()
    decode = processor.tokenizer.convert_ids_to_tokens
    for i in range(12):
        streamed, apart = (write(processor, MIXED[i], method) for method in ("streaming", "per-frame"))
        targets = [label for label in streamed.labels if label != -100]
        at_words = [
            (p, q, t)
            for p, q, t in zip(streamed.places, apart.places, targets, strict=True)
            if not at_frame(p, streamed, processor)
        ]
        for place, other, target in at_words:
            assert streamed.read[place] == apart.read[other]
            assert streamed.read[place + 1] == apart.read[other + 1] == target
        assert {decode(apart.read[place]) for place in apart.frames} == {":"}
        assert len(at_words) == sum(len(m["content"].split()) + 3 for m in answers(MIXED[i]))  # assistant, :, <eos>


def at_frame(place, written, processor):
    return written.read[place] == processor.token_ids()["v_placeholder_id"]


def answers(row):
    return [message for message in row["conversation"] if message["role"] == "assistant"]
