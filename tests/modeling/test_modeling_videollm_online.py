"""VideoLLM-online as a transformers model: frames among words, saving, devices, attention, gradients, trainers."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    DynamicCache,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)
from trl.trainer.utils import add_fused_lm_head

from streamchat_hf import VideoLLMOnlineForConditionalGeneration
from streamchat_hf.modeling.modeling_videollm_online import VideoLLMOnlineModel
from videollm_online_helpers import PAD, V, conversation, pixels, stream_labels, tiny_config, tiny_model

VISIONS = ["siglip_vision_model", "clip_vision_model", "streamformer"]
KINDS = [("siglip_vision_model", "llama"), ("clip_vision_model", "llama"), ("streamformer", "qwen2")]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def row(*frames, tokens=5, seed=0):
    """One conversation as a batch of one."""
    ids = conversation(*frames, tokens=tokens, seed=seed)
    return {"input_ids": torch.tensor([ids]), "pixel_values_videos": pixels(sum(frames), seed)[None]}


def batch(left: bool = False, tokens: int = 5):
    """Two conversations of different length and number of frames, padded, with labels."""
    rows = [(conversation(2, 3, tokens=tokens), pixels(5)), (conversation(1, tokens=tokens, seed=1), pixels(1, 1))]
    length = max(len(ids) for ids, _ in rows)
    out = {name: [] for name in ("input_ids", "attention_mask", "labels", "pixel_values_videos", "frame_mask")}
    for ids, frames in rows:
        missing, absent = length - len(ids), 5 - len(frames)

        def pad(values, value, missing=missing):
            return [value] * missing + values if left else values + [value] * missing

        out["input_ids"].append(torch.tensor(pad(ids, PAD)))
        out["attention_mask"].append(torch.tensor(pad([1] * len(ids), 0)))
        out["labels"].append(torch.tensor(pad(stream_labels(ids), -100)))
        out["pixel_values_videos"].append(torch.cat([frames, torch.full((absent, 3, 32, 32), 9.0)]))
        out["frame_mask"].append(torch.tensor([1] * len(frames) + [0] * absent))
    return {name: torch.stack(values) for name, values in out.items()}


@torch.no_grad()
def logits(model, inputs=None, **changes):
    return model(**{**(batch() if inputs is None else inputs), **changes}).logits


@pytest.mark.parametrize("vision", VISIONS)
@torch.no_grad()
def test_a_forward_against_a_naive_twin(vision):
    """transformers' own Llama, fed the words and the frames one after the other."""
    model = tiny_model(vision=vision)
    inputs = row(2, 3)
    llama = LlamaForCausalLM(model.config.text_config).eval()
    weights = model.model.language_model.state_dict()
    llama.load_state_dict({f"model.{k}": v for k, v in weights.items()} | {"lm_head.weight": model.lm_head.weight})
    tower, frames = model.model.vision_tower, inputs["pixel_values_videos"]
    seen = tower(frames) if vision == "streamformer" else tower(frames[0])
    pooled, patches = seen.pooler_output.view(5, 16), seen.last_hidden_state.view(5, -1, 16)[:, -16:]
    visual = []
    for k in range(5):
        visual.append(pooled[k])
        for i in range(0, 4, 2):
            for j in range(0, 4, 2):
                visual.append(sum(patches[k, 4 * (i + a) + j + b] for a in (0, 1) for b in (0, 1)) / 4)
    first, _, second = model.model.connector
    embeds = []
    for token in inputs["input_ids"][0]:
        if token == V:
            x = visual.pop(0) @ first.weight.T + first.bias
            x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
            embeds.append(x @ second.weight.T + second.bias)
        else:
            embeds.append(llama.model.embed_tokens.weight[token])
    twin = llama(inputs_embeds=torch.stack(embeds)[None]).logits
    torch.testing.assert_close(logits(model, inputs), twin, **CLOSE)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("cls, pooled", [(True, None), (False, [2, 2]), (True, [3, 2]), (False, [4, 4])])
@torch.no_grad()
def test_tokens_of_a_frame(vision, cls, pooled):
    model = tiny_model(vision=vision, frame_token_cls=cls, frame_token_pooled=pooled)
    tokens = model.config.frame_num_tokens
    features, cache = model.model.get_video_features(pixels(4).view(2, 2, 3, 32, 32))
    assert features.shape == (2, 2, tokens, 16) and cache is None
    assert logits(model, row(2, 1, tokens=tokens)).shape[-1] == 61


@torch.no_grad()
def test_patches_are_taken_row_by_row():
    """A frame whose top left quarter changes moves the first of four averaged patches most."""
    model = tiny_model(frame_token_cls=False)
    frame = pixels(1)
    changed = frame.clone()
    changed[..., :16, 16:] += 3  # top right
    moved = (model.model.get_video_features(changed[None])[0] - model.model.get_video_features(frame[None])[0])[0, 0]
    assert moved.norm(dim=-1).argmax() == 1


@pytest.mark.parametrize("vision", VISIONS)
def test_frames_matter_from_where_they_are_on(vision):
    model, inputs = tiny_model(vision=vision), row(2, 3)
    seen = logits(model, inputs)
    other = inputs["pixel_values_videos"].clone()
    other[0, 2] = pixels(1, seed=7)[0]
    moved = (logits(model, inputs, pixel_values_videos=other) - seen).abs().amax(-1)[0]
    start = (inputs["input_ids"][0] == V).nonzero()[2 * 5].item()
    assert moved[:start].max() == 0
    assert moved[start:].min() > 1e-3


def test_frames_reach_the_base_model():
    """Trainers call the base model and compute their own loss: it must see the frames."""
    model, inputs = tiny_model(), row(2, 3)
    assert isinstance(model.base_model, VideoLLMOnlineModel)
    with torch.no_grad():
        seen, other = (
            model.base_model(**{**inputs, "pixel_values_videos": inputs["pixel_values_videos"] + shift})
            for shift in (0, 1)
        )
    assert (seen.last_hidden_state - other.last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("left", [False, True])
def test_batch_equals_singles(vision, left):
    model, inputs = tiny_model(vision=vision), batch(left)
    together = logits(model, inputs)
    singles = [row(2, 3), row(1, seed=1)]
    for k, single in enumerate(singles):
        torch.testing.assert_close(together[k][inputs["attention_mask"][k].bool()], logits(model, single)[0], **CLOSE)


@pytest.mark.parametrize("vision, text", KINDS)
@torch.no_grad()
def test_in_pieces_equals_whole(vision, text):
    """Frame by frame with a cache, embeddings from `encode_frames`, against everything at once."""
    model, inputs = tiny_model(vision=vision, text=text), row(2, 3)
    ids, frames = inputs["input_ids"], inputs["pixel_values_videos"][0]
    vision_cache, embeds, pieces = None, [], []
    for frame in frames:
        embed, vision_cache = model.model.encode_frames(frame[None], vision_cache)
        assert embed.shape == (1, 5, 32)
        embeds.append(embed)
    assert (vision_cache is not None) == (vision == "streamformer")
    tokens = torch.cat(embeds).view(25, 1, 32)
    cache = DynamicCache(config=model.config.text_config)
    for piece in ids.split(4, dim=1):
        here, tokens = tokens.split([(count := int((piece == V).sum())), len(tokens) - count])
        output = model(inputs_embeds=model.model.joint_embed(piece, here), past_key_values=cache, use_cache=True)
        pieces.append(output.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), logits(model, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("vision", VISIONS)
def test_a_batch_may_have_no_frame_at_all(vision):
    """A collator then gives one frame of padding."""
    model, ids = tiny_model(vision=vision), torch.tensor([conversation(0)])
    padding = {"pixel_values_videos": pixels(1)[None], "frame_mask": torch.zeros(1, 1)}
    assert torch.equal(logits(model, {"input_ids": ids}), logits(model, {"input_ids": ids}, **padding))


def test_stored_features_are_as_good_as_pixels():
    model, inputs = tiny_model(), batch()
    features, _ = model.model.get_video_features(inputs["pixel_values_videos"])
    stored = features[inputs["frame_mask"].bool()].detach()  # (6, 5, 16)
    without = {k: v for k, v in inputs.items() if k not in ("pixel_values_videos", "frame_mask")}
    assert torch.equal(logits(model, without, frame_features=stored), logits(model, inputs))


def test_chosen_logits():
    model, inputs = tiny_model(), row(2, 3)
    every = logits(model, inputs)
    torch.testing.assert_close(logits(model, inputs, logits_to_keep=3), every[:, -3:])
    places = torch.tensor([9, 15])
    torch.testing.assert_close(logits(model, inputs, logits_to_keep=places), every[:, places])


@pytest.mark.parametrize("vision, text", KINDS)
def test_eager_equals_sdpa(vision, text):
    model = tiny_model(vision=vision, text=text)
    sdpa = logits(model)
    model.set_attn_implementation("eager")
    assert model.model.language_model.config._attn_implementation == "eager"
    torch.testing.assert_close(logits(model), sdpa, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("vision, text", KINDS)
@pytest.mark.parametrize("tied", [False, True])
def test_saved_equals_loaded(tmp_path, vision, text, tied):
    model = tiny_model(vision=vision, text=text, tie_word_embeddings=tied)
    before = logits(model)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is VideoLLMOnlineForConditionalGeneration
    assert not info["missing_keys"] and not info["unexpected_keys"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # Not to the last bit: a pooling head multiplies a matrix by one vector, which is summed as memory is aligned.
    torch.testing.assert_close(logits(loaded), before, **CLOSE)
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    half = VideoLLMOnlineForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    again = VideoLLMOnlineForConditionalGeneration.from_pretrained(tmp_path / "half", dtype="auto")
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    output = again(**batch())
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32


def test_meta_initialised_buffers_are_filled_on_loading(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        hollow = VideoLLMOnlineForConditionalGeneration(copy.deepcopy(model.config))
    assert hollow.device.type == "meta"
    loaded = VideoLLMOnlineForConditionalGeneration.from_pretrained(tmp_path)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(loaded.named_buffers())[name], buffer, msg=name)


REST = dict.fromkeys(("model.connector", "lm_head"), "cpu")
LANGUAGE, TOWER = "model.language_model", "model.vision_tower"


@pytest.mark.parametrize(
    "device_map",
    ["auto", {**REST, TOWER: "disk", LANGUAGE: "cpu"}, {**REST, TOWER: "cpu", LANGUAGE: "disk"}, {"": "disk"}],
    ids=["auto", "tower on disk", "language model on disk", "all on disk"],
)
def test_a_device_map_changes_nothing(device_map, tmp_path):
    model = tiny_model(vision="streamformer")
    model.save_pretrained(tmp_path)
    mapped = AutoModel.from_pretrained(tmp_path, device_map=device_map, offload_folder=str(tmp_path / "offload"))
    torch.testing.assert_close(logits(mapped), logits(model), **CLOSE)


def test_tuple_and_dict_outputs_agree_and_inputs_are_not_touched():
    model, inputs = tiny_model(), batch()
    before = {name: value.clone() for name, value in inputs.items()}
    with torch.no_grad():
        as_dict = model(**inputs, output_hidden_states=True)
        as_tuple = model(**inputs, return_dict=False)
    assert torch.equal(as_dict.loss, as_tuple[0]) and torch.equal(as_dict.logits, as_tuple[1])
    assert len(as_dict.hidden_states) == 4
    assert all(torch.equal(before[name], value) for name, value in inputs.items())


@pytest.mark.parametrize("vision", VISIONS)
def test_every_parameter_gets_a_gradient(vision):
    model = tiny_model(vision=vision).train()
    model(**batch()).loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # Patches of CLIP go around the norm of its class token, SigLIP's softmax forgets what all keys have in common.
    assert [name for name in without if "k_proj.bias" not in name] == []


@pytest.mark.parametrize("vision, text", KINDS)
def test_gradient_checkpointing_gives_the_same_gradients(vision, text):
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model(vision=vision, text=text).train()
        if checkpointing:
            model.activation_checkpointing_enable()
        model(**batch(), use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("weight", [0.5, 1, 3.0])
def test_the_loss_weighs_what_is_learned_at_frames(weight):
    model, inputs = tiny_model(stream_loss_weight=weight), batch()
    with torch.no_grad():
        output = model(**inputs)
    learned = inputs["labels"] != -100
    terms = -output.logits.log_softmax(-1)[learned].gather(1, inputs["labels"][learned][:, None])[:, 0]
    at_frames = inputs["input_ids"][learned] == V
    assert at_frames.sum() == 6 and (~at_frames).sum() > 6
    torch.testing.assert_close(output.loss, (terms * torch.where(at_frames, weight, 1)).sum() / learned.sum())


class Rows(torch.utils.data.Dataset):
    """Eight conversations of one length with different numbers of learned positions, one at position 0."""

    def __len__(self):
        return 8

    def __getitem__(self, k):
        ids = conversation(2, 1, seed=k)
        labels = [-100 if j % (k + 1) else label for j, label in enumerate(stream_labels(ids))]
        labels[0] = ids[1]
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "pixel_values_videos": pixels(3, k),
        }


def one_step(model, folder, batch_size, accumulation):
    """What one step of SGD, learning rate 1, takes off the weights: the gradient."""
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=Rows())
    loss = trainer.train().training_loss
    return loss, {name: before[name] - p.detach() for name, p in model.named_parameters() if name in before}


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "LoRA"])
def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path, adapter):
    def model():
        model = tiny_model().train()
        if adapter:
            lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.0)
            torch.manual_seed(1)
            model = get_peft_model(model, lora)
        return model

    (loss, gradient), (parts_loss, parts_gradient) = (one_step(model(), tmp_path, size, 8 // size) for size in (8, 1))
    assert parts_loss == pytest.approx(loss, rel=1e-5)
    assert max(g.abs().max() for g in gradient.values()) > 1e-2
    for name, expected in gradient.items():
        torch.testing.assert_close(parts_gradient[name], expected, atol=2e-6, rtol=1e-4, msg=name)
    whole = model()
    rows = [Rows()[k] for k in range(8)]
    whole(**{name: torch.stack([r[name] for r in rows]) for name in rows[0]}).loss.backward()
    for name, parameter in whole.named_parameters():
        if name in gradient and parameter.grad is not None:
            torch.testing.assert_close(gradient[name], parameter.grad, atol=2e-6, rtol=1e-4, msg=name)


@torch.no_grad()
def test_trls_fused_head_gives_our_probabilities():
    model, inputs = tiny_model(), batch()
    expected = model(**inputs)
    add_fused_lm_head(model)
    labels = inputs.pop("labels")
    fused = model(**inputs, shift_labels=labels, fused_lm_head=True)
    log_probs = expected.logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    torch.testing.assert_close(fused.log_probs, log_probs.masked_fill(labels == -100, 0), **CLOSE)


def test_an_adapter_on_every_linear_layer_changes_the_model_and_merges():
    model, inputs = tiny_model(vision="streamformer"), batch()
    plain = logits(model, inputs)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(model, lora).eval()
    adapted_logits = logits(adapted, inputs)
    assert (adapted_logits - plain).abs().max() > 0.1
    targets = {name for name, _ in adapted.named_modules() if name.endswith("lora_A")}
    for part in ("language_model.layers.2.mlp.down_proj", "connector.0", "vision_tower.layers.1.mlp.fc2"):
        assert any(part in name for name in targets), part
    torch.testing.assert_close(logits(adapted.merge_and_unload(), inputs), adapted_logits, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_plain_generation_over_a_finished_clip():
    model, inputs = tiny_model(), row(2)
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False, eos_token_id=None, pad_token_id=PAD)
    ids = inputs["input_ids"]
    for _ in range(4):
        ids = torch.cat([ids, logits(model, {**inputs, "input_ids": ids})[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(said, ids)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "num_return_sequences": 2}, {"use_cache": False}])
@torch.no_grad()
def test_plain_generation_over_a_batch_of_pixels_or_stored_features(options):
    model, inputs = tiny_model(), batch(left=True)
    del inputs["labels"]
    options |= {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": PAD}
    said = model.generate(**inputs, **options)
    features, _ = model.model.get_video_features(inputs.pop("pixel_values_videos"))
    stored = features[inputs.pop("frame_mask").bool()]
    assert torch.equal(model.generate(**inputs, frame_features=stored, **options), said)
    with pytest.raises(ValueError, match="frame tokens"):
        model.generate(**inputs, frame_features=stored[:-1], **options)


@pytest.mark.parametrize("frames, places", [(2, 15), (4, 15)])
def test_another_number_of_frames_than_places_is_an_error(frames, places):
    model, inputs = tiny_model(), row(3)
    inputs["pixel_values_videos"] = pixels(frames)[None]
    with pytest.raises(ValueError, match=f"row 0 has {places} frame tokens .*its {frames} frames need {5 * frames}"):
        model(**inputs)
    with pytest.raises(ValueError, match="15 frame tokens .*0 frames of 5 tokens are given"):
        model(input_ids=inputs["input_ids"])


def test_rows_do_not_borrow_frames_from_each_other():
    """As many places as frames in all, but one row has a frame too many and the other one too few."""
    inputs = batch()
    inputs["frame_mask"][0, -1], inputs["frame_mask"][1, 1] = 0, 1
    with pytest.raises(ValueError, match="row 0 has 25 frame tokens"):
        tiny_model()(**inputs)


def test_contradicting_inputs_are_refused():
    model, inputs = tiny_model(), batch()
    embeds = torch.zeros(2, 4, 32)
    features = torch.zeros(6, 5, 16)
    for message, arguments in {
        "exactly one of input_ids and inputs_embeds": {},
        "not both": {**inputs, "frame_features": features},
        "give input_ids with them": {"inputs_embeds": embeds, "frame_features": features},
        "labels need input_ids": {"inputs_embeds": embeds, "labels": inputs["labels"][:, :4]},
        "padding behind them": {**inputs, "frame_mask": inputs["frame_mask"].flip(1)},
        "need labels and is_frame": {**inputs, "logits_to_keep": 1},
    }.items():
        with pytest.raises(ValueError, match=message):
            model(**arguments)


def test_a_tower_without_pooling_head_has_no_pooled_token():
    model = VideoLLMOnlineForConditionalGeneration(tiny_config()).eval()
    config = copy.deepcopy(model.config)
    config.vision_config.vision_use_head = False
    with pytest.raises(ValueError, match="frame_token_cls=True needs a vision tower with a pooling head"):
        VideoLLMOnlineForConditionalGeneration(config)(**row(1))


def test_resize_embeddings_keeps_the_old_rows():
    model = tiny_model(v_placeholder_id=70)
    ids = torch.tensor([conversation()])
    before = logits(model, {"input_ids": ids})
    model.resize_token_embeddings(70)
    assert model.config.text_config.vocab_size == 70
    torch.testing.assert_close(logits(model, {"input_ids": ids})[..., :61], before, atol=1e-6, rtol=0)


AUTO = [AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM]


@pytest.mark.parametrize("auto", AUTO)
def test_every_auto_class_gives_the_class_that_generates(auto):
    assert type(auto.from_config(tiny_config())) is VideoLLMOnlineForConditionalGeneration


def test_a_fresh_process_without_the_package_loads_and_saves_again(tmp_path):
    model = tiny_model(vision="streamformer", text="qwen2")
    model.save_pretrained(tmp_path / "ours")
    script = """
import json, sys, torch, transformers
from remote_code_script import NotInstalled, check_hidden
from safetensors.torch import load_file, save_file
sys.meta_path.insert(0, NotInstalled())
check_hidden()
folder = sys.argv[1]
inputs, found = load_file(f"{folder}/inputs.safetensors"), {}
for auto in ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"):
    model = getattr(transformers, auto).from_pretrained(f"{folder}/ours", trust_remote_code=True).eval()
    with torch.no_grad():
        found[auto] = model(**inputs).logits
model.save_pretrained(f"{folder}/again")
again = transformers.AutoModel.from_pretrained(f"{folder}/again", trust_remote_code=True).eval()
with torch.no_grad():
    found["again"] = again(**inputs).logits
save_file(found, f"{folder}/found.safetensors")
"""
    inputs = batch()
    save_file(inputs, tmp_path / "inputs.safetensors")
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tests), "HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "found.safetensors")
    assert len(found) == 5
    for value in found.values():
        torch.testing.assert_close(value, logits(model, inputs), **CLOSE)
    assert json.loads((tmp_path / "again" / "config.json").read_text())["auto_map"].keys() == {
        "AutoConfig",
        *(auto.__name__ for auto in AUTO),
    }
    assert (tmp_path / "again" / "modeling_videollm_online.py").is_file()
