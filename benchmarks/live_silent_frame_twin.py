"""What a silent frame costs: VideoLLM-online's streaming loop against a naive twin of forty lines.

    python benchmarks/live_silent_frame_twin.py --json benchmarks/live_silent_frame.json
    python benchmarks/live_silent_frame_twin.py --render benchmarks/live_silent_frame.json

Both read the same frames with the same weights, a tiny Llama with Llama 3's vocabulary: h 256, 4 layers, 11 tokens a
frame. The vision tower is on neither side. Times are thread CPU time on one thread, both ways in turn.
With `--render` the table goes into docs/videollm_online.md.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from markers import between
from streamchat_hf import VideoLLMOnlineForConditionalGeneration
from streamchat_hf.evaluation.timing import Ratio, Way, machine_name, median_seconds, one_thread, time_in_turn
from streamchat_hf.modeling.cache_videollm_online import LiveCache, LiveFrame

PAGE = Path(__file__).parents[1] / "docs" / "videollm_online.md"
BEGIN = "<!-- silent frame: written by benchmarks/live_silent_frame_twin.py -->\n"
END = "<!-- end of silent frame -->\n"
TOKENS = 10  # of a frame: one pooled, 3 x 3 averaged
INTERVAL, V = 11, 128256
THRESHOLD = 1e-12  # so low that every frame passes in silence
RATIOS = {
    "at_10_frames": Ratio("a silent frame after 10, against the twin", "ours_10", "twin_10", False, 0.65),
    "at_600_frames": Ratio("a silent frame after 600, against the twin", "ours_600", "twin_600", False, 0.75),
}


class NaiveTwin:
    """The loop as one writes it first: every logit, a cache that is concatenated, one frame per forward pass."""

    def __init__(self, llm: LlamaForCausalLM, prompt: list[int], opening: list[int]):
        self.llm, self.cache = llm, DynamicCache(config=llm.config)
        self.before = prompt + opening  # what is read before the next frame

    @torch.no_grad()
    def is_silent(self, frame: torch.Tensor) -> tuple[bool, float]:
        """Reads a frame `(K, H)`; whether it passes in silence, and how probable that is."""
        before = self.llm.get_input_embeddings()(torch.tensor(self.before))
        embeds = torch.cat((before, frame))[None]
        output = self.llm(inputs_embeds=embeds, past_key_values=self.cache, use_cache=True)
        self.cache = output.past_key_values
        probability = output.logits[0, -1].float().softmax(-1)[INTERVAL]
        self.before = [INTERVAL]
        return bool(probability >= THRESHOLD), float(probability)


def build_models(seed: int = 0) -> tuple[VideoLLMOnlineForConditionalGeneration, LlamaForCausalLM]:
    """Our model and the language model inside it."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "vocab_size": 128256}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 8192}
    llm = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = SiglipVisionModel(SiglipVisionConfig(**vision, image_size=48, patch_size=16))
    options = {"frame_token_pooled": [3, 3], "frame_token_interval_id": INTERVAL, "v_placeholder_id": V}
    return VideoLLMOnlineForConditionalGeneration.from_backbones(llm, tower, **options), llm


def ways_at(frames_seen: int, model: VideoLLMOnlineForConditionalGeneration, llm: LlamaForCausalLM) -> list[Way]:
    """Both ways to read one frame more after so many; each starts over from the same state every time.

    Raises:
        RuntimeError: if they do not see the same.
    """
    frames = torch.randn(frames_seen + 1, TOKENS, 256, generator=torch.Generator().manual_seed(1)) * 0.02
    ready = [LiveFrame(i / 2, embeds) for i, embeds in enumerate(frames)]
    prompt = list(range(100, 130))
    cache, twin = model.new_cache(), NaiveTwin(llm, prompt, list(model.config.stream_start_ids))
    cache.hear(prompt)
    for frame in ready[:-1]:
        model.refresh_visual(cache, [frame], THRESHOLD)
        _, probability = twin.is_silent(frame.embeds)
        if abs(probability - cache.silence[0]) > 1e-4 * probability:
            raise RuntimeError(f"after {cache.silence} and {probability} for silence the two differ")
    length = cache.get_seq_length()

    def rewound() -> LiveCache:
        for layer in cache.layers:
            layer.length = length
        del cache.ids[length:]
        return cache

    def rewound_twin() -> NaiveTwin:
        twin.cache.crop(length - twin.cache.get_seq_length())
        return twin

    return [
        Way(f"ours_{frames_seen}", frames_seen, rewound, lambda c: model.refresh_visual(c, ready[-1:], THRESHOLD)),
        Way(f"twin_{frames_seen}", frames_seen, rewound_twin, lambda t: t.is_silent(frames[-1])),
    ]


def measure(repeats: int, frames_seen: tuple[int, ...] = (10, 600)) -> dict:
    """Raw rows, and the ratio of medians for each number of frames."""
    model, llm = build_models()
    with one_thread():
        rows = []
        for frames in frames_seen:
            rows += time_in_turn(ways_at(frames, model, llm), repeats, torch.device("cpu"))
    ratios = {name: ratio.of(rows) for name, ratio in RATIOS.items() if ratio.above in {row["mode"] for row in rows}}
    settings = {"repeats": repeats, "machine": machine_name(torch.device("cpu")), "torch": torch.__version__}
    return {**ratios, "settings": settings, "rows": rows}


def table(result: dict) -> str:
    """Each number of frames as a line of a Markdown table: medians of both ways, and their ratio beside its bound."""
    lines = [["frames before", "ours, ms", "twin, ms", "ratio", "bound"], ["---:"] * 5]
    for name, ratio in RATIOS.items():
        ours, twin = (1000 * median_seconds(result["rows"], mode) for mode in (ratio.above, ratio.below))
        frames = ratio.above.removeprefix("ours_")
        lines.append([frames, f"{ours:.1f}", f"{twin:.1f}", f"{result[name]:.3f}", f"≤ {ratio.bound}"])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    settings = result["settings"]
    where = f"{settings['machine']}; torch {settings['torch']}"
    return f"{body}\n\nMedians of {settings['repeats']} on one thread ({where}).\n"


def main() -> None:
    """Measures, prints the ratios beside their bounds and writes the JSON; or renders one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="of each way")
    parser.add_argument("--json", type=Path, help="also write the raw rows here")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(json.loads(options.render.read_text()))))
        return
    result = measure(options.repeats)
    for name, ratio in RATIOS.items():
        ours, twin = (1000 * median_seconds(result["rows"], mode) for mode in (ratio.above, ratio.below))
        verdict = "holds" if ratio.holds(result[name]) else "BROKEN"
        print(f"{ratio.what}: {ours:.1f} / {twin:.1f} ms = {result[name]:.3f} (≤ {ratio.bound}: {verdict})")
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
