"""What users of transformers, peft and accelerate do with any model."""

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from streamchat_hf import tiny_checkpoint
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import render, write_mp4

QUESTION = "what do you see ?"
WORLD = World.sample(57, "heldout", duration=8.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_mp4(WORLD, path)
    return str(path)


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(tiny_checkpoint())


def load(**options):
    return AutoModel.from_pretrained(tiny_checkpoint(), **options).eval()


def watch(model, processor, clip):
    """Logits `(1, 10, vocabulary)` of a streamed answer."""
    conversation = [{"role": "user", "content": QUESTION}]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    frames = processor.stream(clip, fps=2)
    options = {"start_time": 1.0, "tokens_per_second": 2, "max_new_tokens": 10, "do_sample": False}
    output = model.generate(**inputs, frames=frames, **options, return_dict_in_generate=True, output_logits=True)
    return torch.stack(output.logits, dim=1)


def message(*content):
    return [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}]


def answers(pipe, chats):
    said = pipe(text=chats, max_new_tokens=6, return_full_text=False, batch_size=len(chats))
    return [row["generated_text"].split() for rows in said for row in (rows if isinstance(rows, list) else [rows])]


def test_a_pipeline_answers_about_clips_pictures_and_nothing(clip):
    pipe = pipeline("image-text-to-text", model=str(tiny_checkpoint()), trust_remote_code=True)
    video = message({"type": "video", "path": clip})
    state = WORLD.state(7.5)
    [alone] = answers(pipe, [video])
    assert {"a", state.colour, state.shape} <= set(alone)  # the end of the clip
    assert answers(pipe, [video, video]) == [alone, alone]
    picture = Image.fromarray(render([WORLD], [[0.5]], size=96)[0, 0].permute(1, 2, 0).numpy())
    [about_picture] = answers(pipe, [message({"type": "image", "image": picture})])
    assert WORLD.state(0.5).colour in about_picture
    assert len(answers(pipe, [message()])[0]) == 6


def test_a_pipeline_needs_no_package(clip, tmp_path):
    code = f"""
import json, sys
from remote_code_script import NotInstalled
sys.meta_path.insert(0, NotInstalled())
from transformers import pipeline
pipe = pipeline("image-text-to-text", model={str(tiny_checkpoint())!r}, trust_remote_code=True)
chat = json.loads(sys.argv[1])
print("SAID", pipe(text=chat, max_new_tokens=6, return_full_text=False)[0]["generated_text"])
"""
    video = message({"type": "video", "path": clip})
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(video)],
        env={**os.environ, "PYTHONPATH": os.path.dirname(__file__), "HF_MODULES_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    here = pipeline("image-text-to-text", model=str(tiny_checkpoint()), trust_remote_code=True)
    assert done.stdout.split("SAID")[1].split() == answers(here, [video])[0]


def test_an_adapter_streams_is_saved_and_merges(clip, processor, tmp_path):
    plain = watch(load(), processor, clip)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    adapted = get_peft_model(load(), lora)
    told = watch(adapted, processor, clip)
    assert (told - plain).abs().max() > 0.1
    with adapted.disable_adapter():
        assert torch.equal(watch(adapted, processor, clip), plain)
    adapted.save_pretrained(tmp_path)
    assert torch.equal(watch(PeftModel.from_pretrained(load(), tmp_path).eval(), processor, clip), told)
    native = load()
    native.load_adapter(str(tmp_path))  # transformers' own way
    torch.testing.assert_close(watch(native.eval(), processor, clip), told, atol=1e-5, rtol=0)
    torch.testing.assert_close(watch(adapted.merge_and_unload(), processor, clip), told, atol=1e-3, rtol=1e-3)


REST = dict.fromkeys(("model.projector", "lm_head", "model.language_model.embed_tokens"), "cpu")
REST |= dict.fromkeys(("model.language_model.norm", "model.language_model.rotary_emb"), "cpu")
LAYERS, TOWER = "model.language_model.layers", "model.vision_tower"


@pytest.mark.parametrize(
    "device_map",
    [
        "auto",
        "cpu",
        {"": "cpu"},
        {**REST, TOWER: "disk", LAYERS: "cpu"},
        {**REST, TOWER: "cpu", f"{LAYERS}.0": "cpu", f"{LAYERS}.1": "disk", f"{LAYERS}.2": "cpu"},
        {"": "disk"},
    ],
    ids=["auto", "name", "whole", "tower on disk", "layer on disk", "all on disk"],
)
def test_a_device_map_changes_nothing(device_map, clip, processor, tmp_path):
    model = load(device_map=device_map, offload_folder=str(tmp_path))
    assert torch.equal(watch(model, processor, clip), watch(load(), processor, clip))


def test_the_dtype_is_that_of_the_checkpoint_unless_another_is_asked_for(clip, processor, tmp_path):
    load().to(torch.bfloat16).save_pretrained(tmp_path)
    saved = AutoModel.from_pretrained(tmp_path, dtype="auto").eval()
    assert {parameter.dtype for parameter in saved.parameters()} == {torch.bfloat16}
    assert watch(saved, processor, clip).dtype == torch.float32  # logits, as in every transformers model
    for dtype in (torch.bfloat16, torch.float32):
        assert load(dtype=dtype).dtype == dtype
    assert load(dtype="auto").dtype == torch.float32
    words = [watch(model, processor, clip).argmax(-1) for model in (load(), saved)]
    assert (words[0] == words[1]).float().mean() >= 0.9
