"""Run by test_hub_native.py in a process of its own, in which the package cannot be imported: a StreamFormer alone."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import AutoModel

# Where torchvision is missing, transformers' own name is a placeholder that raises.
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from remote_code_script import NotInstalled, check_hidden


def features(model, video_processor):
    """What a tower makes of a clip, whole and frame by frame."""
    clip = np.random.default_rng(0).integers(0, 255, (5, 20, 24, 3), dtype=np.uint8)
    pixels = video_processor(clip, do_sample_frames=False)["pixel_values_videos"]
    with torch.no_grad():
        whole, state, streamed = model(pixels), None, []
        for k in range(pixels.shape[1]):
            output = model(pixels[:, k : k + 1], past_key_values=state, use_cache=True)
            state = output.past_key_values
            streamed.append(output.last_hidden_state)
    return {"whole": whole.last_hidden_state, "streamed": torch.cat(streamed, dim=1)}


def fine_tune(model, video_processor):
    """One step; gives the loss before and after."""
    pixels = video_processor(np.zeros((2, 16, 16, 3), dtype=np.uint8), do_sample_frames=False)["pixel_values_videos"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = model(pixels).last_hidden_state.square().mean()
    before.backward()
    optimizer.step()
    with torch.no_grad():
        return before.item(), model(pixels).last_hidden_state.square().mean().item()


def main(source, folder):
    """Loads, encodes, fine-tunes, saves and loads again; what came out lies beside the folder."""
    check_hidden()
    video_processor = AutoVideoProcessor.from_pretrained(source, trust_remote_code=True)
    model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    save_file(features(model, video_processor), f"{folder}.safetensors")
    losses = fine_tune(model, video_processor)
    tuned = features(model, video_processor)
    model.save_pretrained(folder)
    video_processor.save_pretrained(folder)
    again = features(
        AutoModel.from_pretrained(folder, trust_remote_code=True).eval(),
        AutoVideoProcessor.from_pretrained(folder, trust_remote_code=True),
    )
    same = all(torch.equal(again[name], tuned[name]) for name in tuned)
    files = sorted(p.name for p in Path(folder).iterdir())
    print("RESULT " + json.dumps({"losses": losses, "same": same, "files": files}))


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    main(*sys.argv[1:])
