"""Run by a test in a process of its own, in which the package cannot be imported: an activation model watches."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoProcessor

from remote_code_script import NotInstalled, check_hidden


def written(processor):
    """A conversation about seven frames, an answer after the third."""
    ids = processor.training_inputs(
        [
            {"role": "system", "content": processor.system_prompt},
            {"role": "user", "content": "say it once it is blue ."},
            {"role": "stream", "num_frames": 3},
            {"role": "assistant", "content": "it is blue"},
            {"role": "stream", "num_frames": 4},
        ]
    )["input_ids"]
    frames = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return torch.tensor([ids]), frames


@torch.no_grad()
def scores(model, processor):
    """Of each frame, in one forward pass and streamed."""
    model.eval()
    ids, frames = written(processor)
    whole = model(input_ids=ids, pixel_values_videos=frames[None]).logits.sigmoid()[0]
    cache, tokens = model.new_cache(), ids[0].tolist()
    first, last = (tokens.index(model.config.v_placeholder_id), len(tokens) - 5 * 4 - 2)
    cache.hear(tokens[:first])
    streamed = [model.watch(cache, [(k / 2, frame)]) for k, frame in enumerate(frames[:3])]
    cache.begin_response()
    cache.pending += tokens[first + 5 * 3 + len(cache.pending) : last]
    cache.end_response()
    streamed += [model.watch(cache, [(k / 2 + 1.5, frame)]) for k, frame in enumerate(frames[3:])]
    return {"whole": whole, "streamed": torch.cat(streamed)}


def main(source, folder):
    """Loads, watches, trains a step, saves and loads again; the scores lie beside the folder."""
    check_hidden()
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True)
    model = AutoModel.from_pretrained(source, trust_remote_code=True)
    save_file(scores(model, processor), f"{folder}.safetensors")
    ids, frames = written(processor)
    batch = {"input_ids": ids, "pixel_values_videos": frames[None], "labels": torch.tensor([[0, 0, 1, 0, 0, 0, 1]])}
    before = model(**batch).loss
    before.backward()
    torch.optim.SGD(model.score.parameters(), lr=1e-3).step()
    after = model(**batch).loss.item()
    tuned = scores(model, processor)["streamed"].tolist()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again = AutoModel.from_pretrained(folder, trust_remote_code=True)
    again_processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    result = {
        "losses": [before.item(), after],
        "threshold": model.config.threshold,
        "tuned": tuned,
        "again": scores(again, again_processor)["streamed"].tolist(),
        "files": sorted(path.name for path in Path(folder).iterdir()),
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    sys.meta_path.insert(0, NotInstalled())
    main(*sys.argv[1:])
