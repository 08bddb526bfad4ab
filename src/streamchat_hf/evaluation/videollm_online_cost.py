"""What watching costs a VideoLLM-online: a silent frame, and five minutes of a stream by each learning method.

Table 1d of the paper (2406.11816, section 4.3). What is said is written beforehand, the same for all methods, so that
nothing depends on what a model has learned; every forward pass is made. `streaming` speaks where there is an answer,
`per-frame` gives an empty one everywhere else, and `interleaved`, which has not learned silence, says the newest one
after every frame. Times are the thread's own CPU time with one torch thread.
"""

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from time import thread_time
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from streamchat_hf.data.live_methods import METHODS, check_method
from streamchat_hf.evaluation.timing import FEWEST_REPEATS, Way, machine_name, median_seconds, one_thread, time_in_turn
from streamchat_hf.modeling.cache_videollm_online import LiveCache, LiveFrame
from streamchat_hf.modeling.modeling_videollm_online import VideoLLMOnlineForConditionalGeneration

# So low that every frame passes in silence.
NEVER = 1e-12
INTERVAL = 11


@dataclasses.dataclass(frozen=True)
class LiveSize:
    """How large the measured model is, and what it watches.

    Attributes:
        text_config: fields of the language model's configuration.
        grid: rows and columns of tokens of a frame, beside the pooled one.
        frames_seen: how many frames it has seen before the silent one that is timed.
        frames: of the stream that is watched by every method.
        every: frames from one answer to the next.
        words: tokens of an answer, without its end.
    """

    text_config: dict[str, Any]
    grid: tuple[int, int] = (3, 3)
    frames_seen: tuple[int, ...] = (10, 600)
    frames: int = 600
    every: int = 8
    words: int = 8


BASE = LiveSize(
    {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 128256,
    }
)
SMALL = LiveSize(
    {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 64,
    },
    *((2, 2), (2, 6), 12, 4, 3),
)


class Script:
    """A voice that says what is written, and the clock that it goes by."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens, self.ends, self.max_new_tokens = list(tokens), {tokens[-1]}, len(tokens)

    def choose(self, said: list[int], logits: torch.Tensor) -> int:
        """The next token."""
        return self.tokens[len(said)]

    def next_token(self) -> int:
        """When it is said: at once."""
        return 0


def watch_by_script(
    model: Any, prompt: Sequence[int], frames: Sequence[Any], answers: Mapping[int, Sequence[int]], method: str
) -> LiveCache:
    """Watches frames one by one in the way of a learning method, and says what is written.

    Args:
        model: a VideoLLM-online.
        prompt: tokens before the first frame.
        frames: as for `refresh_visual`: pixels with their times, which the vision tower encodes, or embeddings.
        answers: tokens of answers, without their end, by the number of the frame that they come after.
        method: one of `METHODS`.

    Returns:
        The cache, from which the length of the conversation can be read.
    """
    check_method(method)
    cache, newest = model.new_cache(), None
    cache.hear(list(prompt))
    for number, frame in enumerate(frames):
        model.refresh_visual(cache, [frame], NEVER)
        newest = answers.get(number, newest)
        said = newest if method == "interleaved" else answers.get(number, () if method == "per-frame" else None)
        if said is not None:
            script = Script([*said, model.config.eos_token_id])
            model.speak(cache, script, script, lambda token, time: False)
    return cache


def method_row(
    model: Any, prompt: Sequence[int], frames: Sequence[Any], answers: Mapping[int, Sequence[int]], method: str
) -> dict[str, Any]:
    """What one method costs; arguments as for [`watch_by_script`].

    Returns:
        `method`, `frames`, `tokens` and `cache_bytes` held at the end, `cpu_seconds` and `frames_per_second`.
    """
    with one_thread():
        begin = thread_time()
        cache = watch_by_script(model, prompt, frames, answers, method)
        seconds = thread_time() - begin
    tokens = cache.get_seq_length()
    held = (states[:, :, :tokens] for layer in cache.layers for states in (layer.keys, layer.values))
    return {
        "method": method,
        "frames": len(frames),
        "tokens": tokens,
        "cache_bytes": sum(states.numel() * states.element_size() for states in held),
        "cpu_seconds": seconds,
        "frames_per_second": len(frames) / seconds,
    }


def measure_live_cost(size: LiveSize = BASE, repeats: int = 9, progress: bool = True) -> dict[str, Any]:
    """Measures a silent frame, and every method on one stream; weights and frames are random.

    The vision tower is on neither side.

    Args:
        size: of model and stream; default: the tiny Llama that the authors' code was measured with, 11 tokens a frame,
            and five minutes at 2 frames per second.
        repeats: how often a silent frame is timed, at least 7. A stream is watched once, because it takes so long.
        progress: show a progress bar.

    Returns:
        `silent_frame`, for each number of frames seen before `cpu_seconds` (the median) and `tokens` held; `methods`,
        a row for each as [`method_row`] gives it; `steps`, the raw rows; `settings` and `versions`.

    Raises:
        ValueError: if there are too few repeats.
    """
    if repeats < FEWEST_REPEATS:
        raise ValueError(f"{repeats} repeats are too few for a median: take at least {FEWEST_REPEATS}")
    model = random_model(size)
    generator = torch.Generator().manual_seed(1)
    shape = (max(size.frames, *(seen + 1 for seen in size.frames_seen)), model.config.frame_num_tokens)
    embeds = 0.02 * torch.randn(*shape, size.text_config["hidden_size"], generator=generator)
    frames = [LiveFrame(i / model.config.frame_fps, rows) for i, rows in enumerate(embeds)]
    prompt = list(range(INTERVAL + 1, INTERVAL + 31))
    words = list(range(INTERVAL + 1, INTERVAL + 1 + size.words))
    answers = dict.fromkeys(range(0, size.frames, size.every), words)
    silent, steps, methods = [], [], []
    with one_thread(), tqdm(total=len(size.frames_seen) + len(METHODS), disable=not progress) as bar:
        for seen in size.frames_seen:
            way, tokens = _silent_frame(model, prompt, frames[: seen + 1])
            steps += time_in_turn([way], repeats, torch.device("cpu"))
            silent.append({"frames_seen": seen, "tokens": tokens, "cpu_seconds": median_seconds(steps, way.mode)})
            bar.update()
        for method in METHODS:
            methods.append(method_row(model, prompt, frames[: size.frames], answers, method))
            bar.update()
    settings = {**dataclasses.asdict(size), "repeats": repeats, "machine": machine_name(torch.device("cpu"))}
    versions = {name: version(name) for name in ("streamchat-hf", "torch", "transformers")}
    return {
        "silent_frame": silent,
        "methods": methods,
        "steps": steps,
        "settings": settings,
        "versions": {"python": platform.python_version(), **versions},
    }


def random_model(size: LiveSize) -> VideoLLMOnlineForConditionalGeneration:
    """A model of random weights, room for all that any method says included."""
    tokens = 1 + size.grid[0] * size.grid[1]
    longest = 64 + size.frames * (tokens + size.words + 8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        llm = LlamaForCausalLM(LlamaConfig(**size.text_config, max_position_embeddings=longest)).eval()
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        tower = SiglipVisionModel(SiglipVisionConfig(**vision, image_size=48, patch_size=16))
        return VideoLLMOnlineForConditionalGeneration.from_backbones(
            llm,
            tower,
            frame_token_pooled=list(size.grid),
            frame_token_interval_id=INTERVAL,
            v_placeholder_id=size.text_config["vocab_size"],
            eos_token_id=1,
            stream_start_ids=[2, 3],
            response_start_ids=[4, 5, 6],
        )


def _silent_frame(model: Any, prompt: list[int], frames: list[LiveFrame]) -> tuple[Way, int]:
    """The last frame after all others, from the same state every time; and the tokens held then."""
    cache = watch_by_script(model, prompt, frames[:-1], {}, "streaming")
    length = cache.get_seq_length()

    def rewound() -> LiveCache:
        for layer in cache.layers:
            layer.length = length
        del cache.ids[length:]
        return cache

    mode = f"silent_{len(frames) - 1}"
    run = Way(mode, len(frames) - 1, rewound, lambda state: model.refresh_visual(state, frames[-1:], NEVER))
    return run, length
