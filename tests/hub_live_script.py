"""Run by test_hub_native.py in a process of its own, without the package: a VideoLLM-online watches and speaks."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

from remote_code_script import NotInstalled, check_hidden


def watch(model, processor):
    """What a model says about eight frames, and the logits of one pass over all of it."""
    frames = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prompt = processor.apply_chat_template(
        [{"role": "system", "content": processor.system_prompt}, {"role": "user", "content": "say it"}],
        **{"add_stream_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"},
    )
    output = model.generate(
        **prompt,
        frames=[(i / 2, frame) for i, frame in enumerate(frames)],
        tokens_per_second=10,
        max_new_tokens=4,
        threshold=0.0,
        return_dict_in_generate=True,
    )
    with torch.no_grad():
        logits = model(input_ids=output.sequences, pixel_values_videos=frames[None]).logits
    return output.responses, logits


def main(source, folder):
    """Loads, watches, fine-tunes, saves and loads again; the logits lie beside the folder."""
    check_hidden()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    responses, logits = watch(model, processor)
    save_file({"logits": logits}, f"{folder}.safetensors")
    with torch.no_grad():
        model.model.connector[0].weight.mul_(1.5)
    tuned = watch(model, processor)[0]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    again = watch(AutoModel.from_pretrained(folder, trust_remote_code=True).eval(), processor)[0]
    files = sorted(path.name for path in Path(folder).iterdir())
    print("RESULT " + json.dumps({"responses": responses, "tuned": tuned, "again": again, "files": files}))


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    main(*sys.argv[1:])
