"""From dense captions to a checkpoint: instructions written by a language model, then the paper's three stages.

    python examples/captions_to_checkpoint.py runs/captions --model NAME --base-url http://host/v1

The videos are StreamWorld's, so that every word of the result can be scored; with videos of your own `write_videos` is
what you leave out. Only their captions tell what can be seen: the world writes no answer. The model begins with the
eye of the tiny checkpoint, vision tower and projector, and a language model that knows nothing.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import Qwen2Config, Qwen2ForCausalLM

from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor, tiny_checkpoint
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_captions import streamworld_captions
from streamchat_hf.data.streamworld_render import write_mp4
from streamchat_hf.data.synthesize import synthesize
from streamchat_hf.data.synthesize_llm import load_language_model
from streamchat_hf.evaluation.streamworld import evaluate
from streamchat_hf.training.sft import train

RECIPES = Path(__file__).parents[1] / "recipes" / "streamchat"
# The paper's stages; the language model learns to speak in the last one only.
STAGES = {
    "tiny_stage1": {"max_steps": 30},
    "tiny_stage2": {"max_steps": 60},
    "tiny_sft": {"max_steps": 900, "learning_rate": 8.0e-4, "warmup_steps": 40},
}
SECONDS = 12.0


def write_videos(folder: Path, count: int) -> Path:
    """Renders worlds, and what an annotator would have written down about each."""
    captions = folder / "captions.jsonl"
    with captions.open("w") as file:
        for seed in tqdm(range(count), desc="Rendering"):
            world = World.sample(seed, duration=SECONDS)
            write_mp4(world, folder / f"{seed}.mp4")
            line = {"video": f"{seed}.mp4", "duration": SECONDS, "captions": streamworld_captions(world)}
            file.write(json.dumps(line) + "\n")
    return captions


def build_model(folder: Path) -> Path:
    """A StreamChat that has learned nothing but to see."""
    tiny = StreamChatForConditionalGeneration.from_pretrained(tiny_checkpoint())
    torch.manual_seed(0)
    text = Qwen2ForCausalLM(Qwen2Config(**tiny.config.text_config.to_dict()))
    names = ("cross_attention_layers", "visual_window")
    model = StreamChatForConditionalGeneration.from_backbones(
        text, tiny.model.vision_tower, **{name: getattr(tiny.config, name) for name in names}
    )
    model.model.projector.load_state_dict(tiny.model.projector.state_dict())
    model.generation_config = tiny.generation_config
    model.save_pretrained(folder)
    StreamChatProcessor.from_pretrained(tiny_checkpoint()).save_pretrained(folder)
    return folder


def train_stages(model: Path, rows: Path, output_dir: Path, steps: float) -> Path:
    """Runs the three tiny recipes one after the other, each on the dense instructions alone."""
    source = [{"name": "jsonl", "annotations": str(rows), "cache_dir": str(output_dir / "cache")}]
    for name, changes in STAGES.items():
        words: dict[str, Any] = {
            "model_name_or_path": model,
            "datasets": json.dumps(source),
            "output_dir": output_dir / name,
            **changes,
            "max_steps": max(1, round(steps * changes["max_steps"])),
            "eval_strategy": "no",
        }
        model = train(
            RECIPES / f"{name}.yaml", [word for key, value in words.items() for word in (f"--{key}", str(value))]
        )
    return model


def score(checkpoint: Path, clips: int) -> dict[str, Any]:
    """How true its words are when they are spoken, on new worlds: of everything it had to tell, kind by kind."""
    model = StreamChatForConditionalGeneration.from_pretrained(checkpoint).eval()
    result = evaluate(model, StreamChatProcessor.from_pretrained(checkpoint), split="seen", clips=clips)
    return result["streaming_score"]["fresh"]


def main() -> None:
    """Makes everything in one folder, `scores.json` last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--model", required=True, help="the language model that writes the instructions")
    parser.add_argument("--base-url", help="an OpenAI-compatible endpoint that has it")
    parser.add_argument("--videos", type=int, default=1200)
    parser.add_argument("--instructions", type=int, default=3000)
    parser.add_argument("--clips", type=int, default=100, help="how many clips to score with")
    parser.add_argument("--steps", type=float, default=1.0, help="how much longer, or shorter, to train")
    options = parser.parse_args()
    folder = options.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    captions = write_videos(folder, options.videos)
    made = synthesize(
        captions,
        folder / "dense.jsonl",
        load_language_model(options.model, options.base_url),
        limit=options.instructions,
        longest=SECONDS,
        progress=True,
    )
    print(f"instructions: {made.counts}")
    untrained = build_model(folder / "untrained")
    trained = train_stages(untrained, folder / "dense.jsonl", folder, options.steps)
    scores = {"untrained": score(untrained, options.clips), "trained": score(trained, options.clips)}
    settings = {name: getattr(options, name) for name in ("videos", "instructions", "clips", "steps")}
    result = {"settings": settings, "segments": made.counts, "scores": scores}
    (folder / "scores.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{'':10}  untrained  trained")
    for kind in sorted(scores["trained"]["by_kind"]):
        shares = (scores[name]["by_kind"].get(kind, {}).get("score", 0.0) for name in scores)
        print(f"{kind:10}  " + "  ".join(f"{share:9.3f}" for share in shares))


if __name__ == "__main__":
    main()
