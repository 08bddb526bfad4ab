"""Runs a checkpoint with the code it carries; a process of its own, in which this package cannot be imported.

python -P verify_script.py FOLDER_OR_HUB_ID [REVISION]

The last line of its output is `RESULT` and what came out as JSON. It imports nothing of the package: it has to say the
same where there is none.
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor
from transformers.utils import logging

QUESTION, TOKENS, NUMBERS = "what do you see ?", 8, 16


class NotInstalled:
    """Hides the package even where it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """What the import system asks: refuses the package's name, knows nothing of any other."""
        if name.split(".")[0] == "streamchat_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def clip() -> list[tuple[float, np.ndarray]]:
    """Four seconds of a bright square that moves over a slope of grey: `(seconds, (H, W, 3) uint8)`, two a second."""
    frames = []
    for k in range(8):
        picture = np.repeat(np.linspace(20, 120, 64, dtype=np.uint8)[None, :, None], 48, axis=0).repeat(3, axis=2)
        picture[12:36, 4 + 5 * k : 20 + 5 * k] = (230, 60 + 20 * k, 40)
        frames.append((k / 2, picture))
    return frames


def answer(source: str, revision: str | None = None) -> dict[str, list]:
    """What a checkpoint makes of the clip, greedily.

    Args:
        source: Folder or Hub id.
        revision: Branch, tag or commit on the Hub; `None`: its main branch.

    Returns:
        `numbers`, the last of its features, or of what it chose its last word by; of a model that talks also `tokens`
        and, in seconds, their `frame_age`.
    """
    settings = {"revision": revision or "main", "trust_remote_code": True}
    model = AutoModel.from_pretrained(source, **settings).eval()
    with torch.no_grad():
        kind = AutoConfig.from_pretrained(source, **settings).model_type
        if kind == "streamformer":
            processor = AutoVideoProcessor.from_pretrained(source, **settings)
            pixels = processor([picture for _, picture in clip()], return_tensors="pt")["pixel_values_videos"]
            return {"numbers": model(pixels.to(model.dtype)).last_hidden_state.flatten()[-NUMBERS:].tolist()}
        processor = AutoProcessor.from_pretrained(source, **settings)
        return watch(model, processor) if kind == "videollm_online" else stream(model, processor)


def watch(model: Any, processor: Any) -> dict[str, list]:
    """Lets a VideoLLM-online watch the clip and speak after every frame; see `answer`."""
    prompt = [{"role": "system", "content": processor.system_prompt}, {"role": "user", "content": QUESTION}]
    inputs = processor.apply_chat_template(
        prompt, add_stream_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    output = model.generate(
        **inputs,
        frames=processor.stream(clip()),
        tokens_per_second=TOKENS,
        max_new_tokens=2,
        threshold=2.0,  # no silence is as probable: it speaks, whatever it has learnt
        do_sample=False,
        return_dict_in_generate=True,
    )
    return {
        "tokens": output.sequences[0].tolist(),
        "frame_age": output.frame_age[0].tolist(),
        "numbers": output.past_key_values.silence,
    }


def stream(model: Any, processor: Any) -> dict[str, list]:
    """Asks a StreamChat about the clip while it plays; see `answer`."""
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    output = model.generate(
        **inputs,
        frames=processor.stream(clip()),
        start_time=1.0,
        tokens_per_second=2,
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return {
        "tokens": output.sequences[0, inputs["input_ids"].shape[1] :].tolist(),
        "frame_age": output.frame_age[0].tolist(),
        "numbers": output.logits[-1][0, :NUMBERS].tolist(),
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    logging.disable_progress_bar()
    print("RESULT " + json.dumps(answer(*sys.argv[1:])))  # noqa: T201 -- how it answers
