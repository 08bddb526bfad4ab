"""Run by the tests of remote code in a process of its own, in which the package cannot be imported."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoProcessor,
)


class NotInstalled:
    """Hides the package even where it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "streamchat_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


def check_hidden():
    """That the package cannot be used, wherever it is."""
    try:
        import streamchat_hf  # noqa: F401

        raise SystemExit("the package must not be importable here")
    except ModuleNotFoundError:
        pass


AUTO = (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM)


def stream(model, processor):
    """Tokens of a streamed answer, and the age of the frame behind each."""
    generator = np.random.default_rng(0)
    pictures = [(k / 2, generator.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for k in range(12)]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "what do you see ?"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(
        **inputs,
        frames=processor.stream(pictures),
        start_time=1.0,
        tokens_per_second=2,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
        return_dict_in_generate=True,
    )
    return out.sequences[0].tolist(), out.frame_age[0].tolist()


def conversation(model):
    """A made-up conversation."""
    side = model.config.vision_config.image_size
    return {
        "input_ids": torch.tensor([[5, 6, 7, 8]]),
        "labels": torch.tensor([[-100, -100, 7, 8]]),
        "pixel_values_videos": torch.randn(1, 3, 3, side, side, generator=torch.Generator().manual_seed(0)),
        "frame_times": torch.tensor([[0, 500, 1000]]),
        "token_times": torch.tensor([[500, 500, 500, 1000]]),
    }


def logits(model):
    """What a model makes of that conversation."""
    with torch.no_grad():
        return model(**conversation(model)).logits


def fine_tune(model):
    """One step on that conversation; gives the loss before and after."""
    batch = conversation(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    before = model(**batch).loss
    before.backward()
    optimizer.step()
    with torch.no_grad():
        return before.item(), model(**batch).loss.item()


def main(source, folder):
    """Loads, streams, fine-tunes, saves and loads again; prints what came out, logits lie beside the folder."""
    check_hidden()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    result, tensors = {"answers": {}}, {}
    for auto in AUTO:
        model = auto.from_pretrained(source, trust_remote_code=True).eval()
        result["answers"][auto.__name__] = stream(model, processor)
        tensors[auto.__name__] = logits(model)
    save_file(tensors, f"{folder}.safetensors")
    result["losses"] = fine_tune(model)
    tuned = stream(model, processor)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    result["tuned"] = tuned
    result["tuned_again"] = stream(again, AutoProcessor.from_pretrained(folder, trust_remote_code=True))
    result["files"] = sorted(p.name for p in Path(folder).iterdir())
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    main(*sys.argv[1:])
