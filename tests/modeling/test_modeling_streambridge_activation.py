"""The activation model: <ACT> and its score, labels and loss, streamed equals whole, and a life on the Hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, Qwen2Model

import activation_remote_script
import videollm_online_helpers
from activation_helpers import PLACES, conversation, tiny_config, tiny_model, world_model, world_processor
from streamchat_hf.modeling.cache_videollm_online import LiveFrame
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel, activation_loss
from videollm_online_helpers import CLOSE, END, OPEN, PAD, TEXT, V, pixels

VISIONS = ["siglip_vision_model", "clip_vision_model", "streamformer"]
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def row(*frames, seed=0):
    """One conversation as a batch of one."""
    ids = torch.tensor([conversation(*frames, seed=seed)])
    return {"input_ids": ids, "pixel_values_videos": pixels(sum(frames), seed)[None]}


def batch():
    """Two conversations of five frames and one, padded, with labels."""
    rows = [(conversation(2, 3), pixels(5)), (conversation(1, seed=1), pixels(1, 1))]
    length = len(rows[0][0])
    missing = length - len(rows[1][0])
    return {
        "input_ids": torch.tensor([rows[0][0], [PAD] * missing + rows[1][0]]),
        "attention_mask": torch.tensor([[1] * length, [0] * missing + [1] * (length - missing)]),
        "pixel_values_videos": torch.stack([rows[0][1], torch.cat([rows[1][1], torch.full((4, 3, 32, 32), 9.0)])]),
        "frame_mask": torch.tensor([[1] * 5, [1, 0, 0, 0, 0]]),
        "labels": torch.tensor([[0, 1, 0, -100, 1], [0, -100, -100, -100, -100]]),
    }


@torch.no_grad()
def logits(model, inputs, **changes):
    return model(**{**inputs, **changes}).logits


def script(source, folder, run):
    """The checks of `activation_remote_script` in a process without the package."""
    words = [sys.executable, str(Path(activation_remote_script.__file__)), str(source), str(folder)]
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(run / "home"),
        "HF_MODULES_CACHE": str(run / "modules"),
    }
    done = subprocess.run(
        words, env=variables, cwd=run, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("RESULT ")[1])


@pytest.mark.parametrize("vision", VISIONS)
@torch.no_grad()
def test_a_forward_against_a_naive_twin(vision):
    """transformers' own Qwen2, fed words, patches and <ACT> one after the other; the score at every <ACT>."""
    model, inputs = tiny_model(vision=vision), row(2, 3)
    language = Qwen2Model(model.config.text_config).eval()
    language.load_state_dict(model.language_model.state_dict())
    frames = inputs["pixel_values_videos"]
    patches = model.vision_tower(frames if vision == "streamformer" else frames[0]).last_hidden_state
    patches = patches.reshape(5, -1, 16)[:, -16:]
    visual = []
    for k in range(5):
        for i in range(0, 4, 2):
            for j in range(0, 4, 2):
                x = sum(patches[k, 4 * (i + a) + j + b] for a in (0, 1) for b in (0, 1)) / 4
                x = x @ model.connector[0].weight.T + model.connector[0].bias
                x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
                visual.append(x @ model.connector[2].weight.T + model.connector[2].bias)
        visual.append(model.connector.act_embedding)
    ids = inputs["input_ids"][0].tolist()
    words = language.embed_tokens.weight
    embeds = torch.stack([visual.pop(0) if token == V else words[token] for token in ids])
    hidden = language(inputs_embeds=embeds[None]).last_hidden_state[0]
    acts = [j for j in range(len(ids)) if ids[j] == V and ids[: j + 1].count(V) % PLACES == 0]
    twin = hidden[acts] @ model.score.weight[0] + model.score.bias
    torch.testing.assert_close(logits(model, inputs)[0], twin, **NEAR)
    assert logits(model, inputs).std() > 0.05


def test_a_batch_is_its_rows_and_nothing_stands_behind_a_short_one():
    model, inputs = tiny_model(), batch()
    together = logits(model, inputs)
    alone = [logits(model, row(2, 3))[0], logits(model, row(1, seed=1))[0]]
    torch.testing.assert_close(together[0], alone[0], **NEAR)
    torch.testing.assert_close(together[1, :1], alone[1], **NEAR)
    assert together.shape == (2, 5) and torch.isneginf(together[1, 1:]).all()


@pytest.mark.parametrize("vision", VISIONS)
def test_the_future_never_changes_the_past(vision):
    model, inputs = tiny_model(vision=vision), row(2, 3)
    other = inputs["pixel_values_videos"].clone()
    other[0, 3] = pixels(1, seed=7)[0]
    moved = (logits(model, inputs, pixel_values_videos=other) - logits(model, inputs))[0].abs()
    assert moved[:3].max() == 0 and moved[3:].min() > 1e-5


def test_the_question_and_the_answers_matter():
    model, inputs = tiny_model(), row(2, 3)
    ids = inputs["input_ids"].clone()
    ids[0, 1] = 40
    asked = (logits(model, inputs, input_ids=ids) - logits(model, inputs))[0].abs()
    ids = inputs["input_ids"].clone()
    ids[0, (ids[0] == END).nonzero()[0].item() - 1] = 41
    answered = (logits(model, inputs, input_ids=ids) - logits(model, inputs))[0].abs()
    assert asked.min() > 1e-4 and answered[:2].max() == 0 and answered[2:].min() > 1e-5


def test_the_loss_is_the_mean_over_learned_frames():
    model, inputs = tiny_model(), batch()
    output = model(**inputs)
    learned = [
        -torch.log(torch.sigmoid(z) if label else 1 - torch.sigmoid(z)).item()
        for z, label in zip(output.logits.flatten(), inputs["labels"].flatten(), strict=True)
        if label != -100
    ]
    assert len(learned) == 5
    assert output.loss.item() == pytest.approx(sum(learned) / 5, rel=1e-5)
    assert model(**inputs, num_items_in_batch=10).loss.item() == pytest.approx(sum(learned) / 10, rel=1e-5)
    output.loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert all(name.startswith("vision_tower") for name in without)  # its pooled feature is not used
    with pytest.raises(ValueError, match="must have one for each frame"):
        model(**{**inputs, "labels": inputs["labels"][:, :4]})


def test_the_authors_two_logits_are_one():
    two, labels = torch.randn(3, 4, 2), torch.randint(0, 2, (3, 4))
    theirs = torch.nn.functional.cross_entropy(two.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(activation_loss(two[..., 1] - two[..., 0], labels), theirs)
    assert activation_loss(torch.randn(2, 3), torch.full((2, 3), -100)) == 0


def test_frames_that_do_not_fit_are_refused():
    model, inputs = tiny_model(), row(2, 3)
    with pytest.raises(ValueError, match="row 0 has 25 frame tokens"):
        model(input_ids=inputs["input_ids"], pixel_values_videos=pixels(4)[None])


def stream(model, parts, max_context=None, ready=False):
    """Probabilities of all frames: a question, then runs of frames in these parts, an answer after each run."""
    whole = conversation(*map(sum, parts))
    cache, found, seen = model.new_cache(max_context), [], 0
    cache.hear(whole[:3])
    frames = [(k / 2, pixel) for k, pixel in enumerate(pixels(sum(map(sum, parts))))]
    if ready:
        embeds, _ = model.encode_frames(torch.stack([pixel for _, pixel in frames]))
        frames = [LiveFrame(time, rows) for (time, _), rows in zip(frames, embeds, strict=True)]
    answers = iter([whole[j + 1 : j + 3] for j in range(len(whole)) if whole[j - 2 : j + 1] == CLOSE])
    for run in parts:
        for count in run:
            found.append(model.watch(cache, frames[seen : seen + count]))
            seen += count
        cache.begin_response()
        cache.pending += next(answers)
        cache.end_response()
    return torch.cat(found), cache, whole


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("parts", [[[1, 1], [1, 1, 1]], [[2], [3]], [[1, 3, 1], [2]]])
def test_streamed_equals_whole(vision, parts):
    model = tiny_model(vision=vision)
    probabilities, cache, whole = stream(model, parts)
    assert cache.ids + cache.pending == whole
    expected = logits(model, row(*map(sum, parts)))[0].sigmoid()
    torch.testing.assert_close(probabilities, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(stream(model, parts, ready=True)[0], expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_window_is_bounded_and_keeps_the_question():
    model = tiny_model()
    cache = model.new_cache(64)
    cache.hear([2, 40, 41])
    longest = 0
    for k in range(60):
        score = model.watch(cache, [(k / 2, pixels(1, seed=k)[0])])
        assert score.shape == (1,) and 0 < score.item() < 1
        longest = max(longest, len(cache.ids))
    assert longest <= 64 and cache.forgotten > 200 and cache.ids[:5] == [2, 40, 41, *OPEN]
    assert cache.streams[0].frames_taken == 60 and cache.clock == 29500
    held = (len(cache.ids) - 5) // PLACES
    # With as many layers as one, keys know nothing of what was forgotten: the same frames alone give the same score.
    shallow = tiny_model(text_config={"num_hidden_layers": 1})
    cache = shallow.new_cache(64)
    cache.hear([2, 40, 41])
    for k in range(60):
        score = shallow.watch(cache, [(k / 2, pixels(1, seed=k)[0])])
    fresh = shallow.new_cache()
    fresh.hear([2, 40, 41])
    again = shallow.watch(fresh, [(k / 2, pixels(1, seed=k)[0]) for k in range(60 - held, 60)])
    torch.testing.assert_close(again[-1:], score, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_backlog_longer_than_the_window_is_read_in_parts():
    model = tiny_model()
    cache = model.new_cache(40)
    cache.hear([2, 40, 41])
    assert model.watch(cache, [(k / 2, pixel) for k, pixel in enumerate(pixels(20))]).shape == (20,)
    assert len(cache.ids) <= 40
    assert model.watch(cache, []).shape == (0,)


@torch.no_grad()
def test_a_backlog_fits_beside_a_long_question_if_its_frames_do():
    model = tiny_model()
    frames = [(k / 2, pixel) for k, pixel in enumerate(pixels(6))]
    found = []
    for parts in ([frames], [[frame] for frame in frames]):
        cache = model.new_cache(64)
        cache.hear([2] + [40, 41] * 22)
        found.append(torch.cat([model.watch(cache, part) for part in parts]))
        assert len(cache.ids) <= 64
    assert found[0].shape == (6,)
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("vision", VISIONS)
def test_saved_equals_loaded(tmp_path, vision):
    model = tiny_model(vision=vision, threshold=0.61)
    model.save_pretrained(tmp_path)
    loaded = StreamBridgeActivationModel.from_pretrained(tmp_path).eval()
    weights = loaded.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    torch.testing.assert_close(logits(loaded, row(2, 3)), logits(model, row(2, 3)), **NEAR)
    assert loaded.config.threshold == 0.61
    halved = StreamBridgeActivationModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert halved(**batch()).loss.dtype == torch.float32 and halved.score.weight.dtype == torch.bfloat16


def test_a_fresh_model_is_initialised_as_its_language_model_is():
    model = StreamBridgeActivationModel(tiny_config())
    assert 0.01 < model.connector.act_embedding.std() < 0.03 and model.score.bias.item() == 0
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000


def test_caches_of_transformers_and_gradient_checkpointing():
    model, inputs = tiny_model(), row(2, 3)
    cache = DynamicCache(config=model.config.text_config)
    ids, cut = inputs["input_ids"], conversation(2, 3).index(END) + 1
    halves = [
        logits(model, {"input_ids": part, "pixel_values_videos": frames}, past_key_values=cache, use_cache=True)
        for part, frames in (
            (ids[:, :cut], inputs["pixel_values_videos"][:, :2]),
            (ids[:, cut:], inputs["pixel_values_videos"][:, 2:]),
        )
    ]
    torch.testing.assert_close(torch.cat(halves, dim=1), logits(model, inputs), **NEAR)
    plain = model(**batch()).loss
    model.train().activation_checkpointing_enable()
    torch.testing.assert_close(model(**batch()).loss, plain, **NEAR)


@torch.no_grad()
def test_backbones_become_an_activation_model():
    text = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in TEXT.items() if k != "model_type"}))
    tower = tiny_model(vision="streamformer").vision_tower
    ids = {"v_placeholder_id": V, "eos_token_id": END, "stream_start_ids": OPEN, "response_start_ids": CLOSE}
    model = StreamBridgeActivationModel.from_backbones(text, tower, frame_token_pooled=[2, 2], **ids)
    assert model.language_model is text.model and model.vision_tower is tower and not model.training
    assert not any(parameter.is_meta for parameter in model.parameters())
    assert logits(model, row(2, 3)).shape == (1, 5)
    assert "lm_head" not in " ".join(model.state_dict())


@torch.no_grad()
def test_a_videollm_online_becomes_an_activation_model():
    """Its tower, connector and language model read the same; <ACT> and the score are new, the head is gone."""
    speaker = videollm_online_helpers.tiny_model(frame_token_cls=False, frame_token_interval_id=None)
    model = StreamBridgeActivationModel.from_videollm_online(speaker, threshold=0.7)
    ids = {"stream_start_ids": OPEN, "response_start_ids": CLOSE, "eos_token_id": END, "v_placeholder_id": V}
    assert {name: getattr(model.config, name) for name in ids} == ids
    assert (model.config.frame_num_tokens, model.config.threshold, model.config.frame_fps) == (5, 0.7, 2.0)
    frames = pixels(3)
    before, after = speaker.model.encode_frames(frames)[0], model.encode_frames(frames)[0]
    assert torch.equal(after[:, :4], before) and torch.equal(after[0, 4], model.connector.act_embedding)
    assert model.language_model is speaker.model.language_model and not any(p.is_meta for p in model.parameters())
    assert logits(model, row(2, 3)).shape == (1, 5) and "lm_head" not in " ".join(model.state_dict())


def test_a_saved_folder_works_where_the_package_is_not(tmp_path):
    """Loaded by the Auto classes in a fresh process: same scores, one step of training, saved and loaded again."""
    processor = world_processor()
    model = world_model(processor, threshold=0.42)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    expected = activation_remote_script.scores(model, processor)
    run = tmp_path / "run"
    run.mkdir()
    result = script(tmp_path / "model", run / "tuned", run)
    found = load_file(run / "tuned.safetensors")
    torch.testing.assert_close(found["streamed"], expected["streamed"], **NEAR)
    torch.testing.assert_close(found["whole"], expected["whole"], **NEAR)
    before, after = result["losses"]
    assert after < before and result["threshold"] == 0.42 and result["tuned"] == result["again"]
    names = set(result["files"])
    assert {"modeling_streambridge_activation.py", "configuration_streambridge_activation.py"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
