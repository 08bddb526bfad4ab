"""Video question answering as downstream task of a StreamFormer: does it help that the tower sees time?

    python benchmarks/video_qa.py --tower runs/tiny_multitask/final --json qa.json

The tower stays frozen, as in the paper; a projector and a small language model learn from nothing to answer questions
about what a StreamWorld clip has shown, in a StreamChat, which looks at the video beside its text, and in
transformers' own LLaVA-NeXT-Video, which has it in its prompt. Each once with the tower as it is, and once with the
same weights seeing every frame alone. Without `--tower` it is that of the shipped tiny StreamChat.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch
import transformers
from torch.utils.data import DataLoader
from transformers import (
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

import streamchat_hf
from streamchat_hf import StreamChatForConditionalGeneration, StreamFormerModel, tiny_checkpoint
from streamchat_hf.data.streamworld_questions import (
    OPTIONS,
    QUESTIONS,
    VIDEO_TOKEN,
    QuestionCollator,
    StreamWorldQuestions,
    chosen_options,
    question_tokenizer,
)
from streamchat_hf.vision_tower_streamformer import StreamFormerVisionModel

ARCHITECTURES = ("streamchat", "llava")
# A frame that sees itself alone has the features of a picture, rotary embeddings given.
TOWERS = {"with time": {}, "frames alone": {"sliding_window": 1}}
CHANCE = 1 / OPTIONS
BATCH = 32


def text_model() -> Qwen2ForCausalLM:
    """A language model that knows nothing, for the words of the questions."""
    tokenizer = question_tokenizer()
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            initializer_range=0.06,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_streamchat(tower: Path, frames: int, side: int, **changes) -> StreamChatForConditionalGeneration:
    """A StreamChat whose text sees all frames of a clip, each as the means of squares of patches."""
    vision = StreamFormerModel.from_pretrained(tower, **changes)
    return StreamChatForConditionalGeneration.from_backbones(
        text_model(), vision, cross_attention_layers=[0, 1], visual_window=frames, visual_pooling=side
    )


def build_llava(tower: Path, frames: int, side: int, **changes) -> LlavaNextVideoForConditionalGeneration:
    """The LLaVA-NeXT-Video of transformers with the same parts."""
    vision = StreamFormerVisionModel.from_pretrained(tower, frames_per_video=frames, use_pooling_head=False, **changes)
    text = text_model()
    config = LlavaNextVideoConfig(
        vision_config=vision.config,
        text_config=text.config,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        spatial_pool_stride=side,
        video_token_index=question_tokenizer().convert_tokens_to_ids(VIDEO_TOKEN),
        image_token_index=-1,  # no picture is shown
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    return model


def build(architecture: str, tower: Path, frames: int, side: int, **changes) -> PreTrainedModel:
    """A model of one architecture, its tower frozen."""
    model = {"streamchat": build_streamchat, "llava": build_llava}[architecture](tower, frames, side, **changes)
    model.model.vision_tower.requires_grad_(False)
    return model


def visual_tokens(model: PreTrainedModel, side: int) -> int:
    """Visual tokens of a frame."""
    vision = model.config.vision_config
    return (vision.image_size // vision.patch_size // side) ** 2


def prompt_tokens(architecture: str, frames: int, visual_tokens: int) -> int:
    """How many placeholders of visual tokens stand in a prompt."""
    return frames * visual_tokens if architecture == "llava" else 0


@torch.no_grad()
def accuracy(model: PreTrainedModel, questions: StreamWorldQuestions, collate: QuestionCollator) -> dict[str, float]:
    """The share of questions whose right option is the most likely one, by kind and in the mean over kinds."""
    right: dict[str, list[bool]] = {kind: [] for kind in questions.kinds}
    for samples in DataLoader(questions, batch_size=50, collate_fn=list):
        inputs = collate(samples)
        options = torch.tensor([collate.option_ids(sample) for sample in samples])
        logits = model.eval()(**inputs).logits
        for sample, choice in zip(samples, chosen_options(logits, inputs["labels"], options).tolist(), strict=True):
            right[sample.kind].append(choice == sample.answer)
    shares = {kind: statistics.mean(answers) for kind, answers in right.items()}
    return {**shares, "mean": statistics.mean(shares.values())}


def run(architecture: str, variant: str, seed: int, tower: Path, options: argparse.Namespace) -> dict:
    """Trains one model and asks it about new worlds; gives its row."""
    set_seed(seed)
    model = build(architecture, tower, options.frames, options.side, **TOWERS[variant])
    side = model.config.vision_config.image_size
    tokens = prompt_tokens(architecture, options.frames, visual_tokens(model, options.side))
    collate = QuestionCollator(question_tokenizer(), tokens, side)
    asked = {"kinds": options.kinds, "num_frames": options.frames}
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=options.steps,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            lr_scheduler_type="cosine",
            warmup_steps=30,
            weight_decay=0.01,
            adam_beta2=0.98,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            use_cpu=True,
            seed=seed,
            disable_tqdm=True,
        )
        rows = StreamWorldQuestions(options.steps * BATCH, seed=seed, **asked)
        begin = time.process_time()
        Trainer(model, arguments, train_dataset=rows, data_collator=collate).train()
        seconds = time.process_time() - begin
    scores = accuracy(model, StreamWorldQuestions(options.questions, split="seen", **asked), collate)
    row = {"architecture": architecture, "tower": variant, "seed": seed}
    seen = {"visual_tokens": visual_tokens(model, options.side), "training_seconds": round(seconds, 1)}
    return {**row, "accuracy": scores, **seen}


def shipped_tower(folder: Path) -> Path:
    """The tower of the tiny checkpoint, as a folder of its own."""
    StreamChatForConditionalGeneration.from_pretrained(tiny_checkpoint()).model.vision_tower.save_pretrained(folder)
    return folder


def main() -> None:
    """Runs all models and prints their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, help="folder of a StreamFormer; default: that of the tiny StreamChat")
    parser.add_argument("--architectures", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--towers", nargs="+", choices=TOWERS, default=list(TOWERS))
    parser.add_argument("--kinds", nargs="+", choices=QUESTIONS, default=["first_colour", "first_motion"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=300, help="updates of 32 questions")
    parser.add_argument("--questions", type=int, default=400, help="how many are asked in the end")
    parser.add_argument("--frames", type=int, default=10, help="of a clip, two per second")
    parser.add_argument("--side", type=int, default=3, help="of the square of patches whose mean is a visual token")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tower = options.tower or shipped_tower(Path(folder))
        rows = []
        for seed in options.seeds:
            for architecture in options.architectures:
                for variant in options.towers:
                    rows.append(run(architecture, variant, seed, tower, options))
                    print(json.dumps(rows[-1]), flush=True)
    names = ("kinds", "steps", "questions", "frames", "side")
    settings = {name: getattr(options, name) for name in names}
    settings |= {
        "visual_tokens": rows[0]["visual_tokens"],
        "tower": "given" if options.tower else "shipped",
        "machine": platform.machine(),
    }
    versions = {"streamchat-hf": streamchat_hf.__version__, "torch": torch.__version__}
    result = {
        "rows": rows,
        "chance": CHANCE,
        "settings": settings,
        "versions": {**versions, "transformers": transformers.__version__},
    }
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
