"""What a decoding step costs: with a new frame and without, against prefilling everything again, and in the long run.

Ways that are compared take turns, and each repeat begins from a copy of the same state, so that they read the same
length of text; a ratio is that of their medians. On a CPU a time is the thread's own CPU time, with one torch thread;
on CUDA it is wall time between two synchronisations.

Letters: T frames, N visual tokens per frame, W window in frames, K key/value heads, D hidden size, d head dimension.
"""

import copy
import dataclasses
import gc
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm.auto import tqdm
from transformers import Qwen2ForCausalLM

from streamchat_hf.evaluation.timing import (
    DTYPES,
    FEWEST_REPEATS,
    Ratio,
    Way,
    machine_name,
    median_seconds,
    one_thread,
    time_in_turn,
)
from streamchat_hf.modeling.cache_streamchat import ReadyFrame, StreamingCache
from streamchat_hf.modeling.configuration_streamchat import StreamChatConfig
from streamchat_hf.modeling.modeling_streamchat import StreamChatForConditionalGeneration

TOLERANCE = 1e-4  # of float32 logits computed in two ways
CURVE = ("fresh", "frozen", "reprefill")


@dataclasses.dataclass(frozen=True)
class DecodeSize:
    """How large the measured model, its video and its text are.

    Attributes:
        text_config: fields of the Qwen2 configuration.
        side: rows and columns of a frame's visual tokens.
        window: how many frames the model looks at.
        text_tokens: length of the text when a step has read its token.
        answer_tokens: how many tokens `generate` speaks without frames.
        late: how many frames are a long time.
        frames_seen: where the curve of step times has its points.
    """

    text_config: dict[str, Any]
    side: int
    window: int
    text_tokens: int
    answer_tokens: int
    late: int
    frames_seen: tuple[int, ...]


SMOLLM2 = DecodeSize(
    text_config={
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
    },
    side=8,
    window=32,
    text_tokens=64,
    answer_tokens=16,
    late=10_000,
    frames_seen=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
SMALL = DecodeSize(
    text_config={
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    side=2,
    window=4,
    text_tokens=8,
    answer_tokens=4,
    late=100,
    frames_seen=(1, 2, 4, 8),
)


RATIOS = {
    "text_only_over_qwen2": Ratio("tokens per second without video, over Qwen2's", "qwen2", "text_only", True, 0.97),
    "new_frame_over_none": Ratio(
        "a step that takes over a new frame, over one that takes none", "new_frame", "no_frame", False, 1.10
    ),
    "reprefill_over_append": Ratio(
        "prefilling window and text again, over a frame's rows and a step", "reprefill_window", "append", True, 12.0
    ),
    "late_over_full": Ratio(
        "a step after very many frames, over one when the window has just filled", "late", "full", False, 1.05
    ),
}


class Scene(NamedTuple):
    """What is measured: a model, a window of frames, and a text.

    Attributes:
        size: how large everything is.
        model: a StreamChat.
        qwen2: transformers' own Qwen2 with the same weights.
        visual: `(W, N, D)` the frames' projected visual tokens.
        ready: the frames, ready to be taken over.
        text: `(1, text_tokens)` the text; the measured step reads its last token.
    """

    size: DecodeSize
    model: StreamChatForConditionalGeneration
    qwen2: Qwen2ForCausalLM
    visual: torch.Tensor
    ready: list[ReadyFrame]
    text: torch.Tensor


@torch.no_grad()
def measure_decode_cost(
    size: DecodeSize = SMOLLM2,
    device: str = "cpu",
    dtype: str = "float32",
    repeats: int = 15,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures the four ratios of [`RATIOS`] and the curve of step time against frames seen.

    Weights and frames are random: the time of a step does not depend on them. Before anything is timed, the ways that
    are compared are shown to compute the same thing. A ratio that breaks its bound is measured a second time, and the
    second time counts.

    Args:
        size: of model, video and text; default: text of SmolLM2-135M's size and 32 frames of 64 tokens.
        device: `"cpu"` or `"cuda"`.
        dtype: of weights and computation, `"float32"` or `"bfloat16"`.
        repeats: how often each way behind a ratio is timed, at least 7; for the curve half as often, at least 7.
        progress: show a progress bar.

    Returns:
        The ratios by name; `measured_again`, the names of those that broke their bound at first; `memory` in bytes,
        when the window has just filled and after very many frames; `reprefill_logit_difference`, the largest between a
        streamed step and a re-prefill; `settings`; `versions`; and `steps`, the raw rows: `mode`, `frames_seen`,
        `tokens` spoken, `repeat` and `seconds`.

    Raises:
        ValueError: if the device is not there, device or type is not one of the two, or there are too few repeats.
        RuntimeError: if two ways that are compared do not compute the same.
    """
    place = torch.device(device)
    if place.type not in ("cpu", "cuda") or (place.type == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device {device!r} cannot be measured here: choose cpu, or cuda where there is one")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} must be one of {', '.join(DTYPES)}")
    if repeats < FEWEST_REPEATS:
        raise ValueError(f"{repeats} repeats are too few for a median: take at least {FEWEST_REPEATS}")
    with one_thread(), tqdm(total=len(RATIOS) + len(size.frames_seen), disable=not progress) as bar:
        scene = _make_scene(size, place, DTYPES[dtype])
        _check_text_only(scene)
        difference = _check_reprefill(scene)
        watched, memory = _watch_long(scene)
        rows: list[dict[str, Any]] = []
        result: dict[str, float] = {}
        measured_again: list[str] = []
        for name, ways in _compared_ways(scene, watched).items():
            timed = time_in_turn(ways, repeats, place)
            if not RATIOS[name].holds(RATIOS[name].of(timed)):
                measured_again.append(name)
                timed = time_in_turn(ways, repeats, place)
            result[name] = RATIOS[name].of(timed)
            rows += timed
            bar.update()
        for frames in size.frames_seen:
            rows += time_in_turn(_curve_ways(scene, frames), max(FEWEST_REPEATS, repeats // 2), place)
            bar.update()
    return {
        **result,
        "measured_again": measured_again,
        "memory": memory,
        "reprefill_logit_difference": difference,
        "settings": {
            **dataclasses.asdict(size),
            "device": device,
            "machine": machine_name(place),
            "dtype": dtype,
            "repeats": repeats,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("streamchat-hf", "torch", "transformers")},
        },
        "steps": rows,
    }


def median_curve(rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Median seconds of a step by frames seen and way, among raw rows."""
    seen = sorted({row["frames_seen"] for row in rows if row["mode"] == CURVE[0]})
    return {
        frames: {mode: median_seconds([row for row in rows if row["frames_seen"] == frames], mode) for mode in CURVE}
        for frames in seen
    }


def _make_scene(size: DecodeSize, device: torch.device, dtype: torch.dtype) -> Scene:
    """A random model and what it sees. The vision tower only has to give frames of the right grid."""
    patch = 8
    config = StreamChatConfig(
        text_config={**size.text_config, "tie_word_embeddings": True},
        vision_config={
            "image_size": size.side * patch,
            "patch_size": patch,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        visual_window=size.window,
        gate_init=1.0,  # so that a frame changes the logits, and ways that see other frames would be found out
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StreamChatForConditionalGeneration._from_config(config, dtype=dtype).eval().to(device)
        qwen2 = _qwen2_twin(model)
        pixels = torch.randn(1, size.window, 3, size.side * patch, size.side * patch)
        text = torch.randint(size.text_config["vocab_size"], (1, size.text_tokens)).to(device)
    visual = model.model.get_video_features(pixels.to(device))[0][0]
    return Scene(size, model, qwen2, visual, _ready_frames(model, size, visual), text)


def _qwen2_twin(model: StreamChatForConditionalGeneration) -> Qwen2ForCausalLM:
    """The Qwen2 of transformers, on the very weights of the model's text layers."""
    qwen2 = Qwen2ForCausalLM(copy.deepcopy(model.config.text_config)).eval().to(model.device)
    weights = model.model.language_model.state_dict(prefix="model.")
    own = {name: weight for name, weight in weights.items() if "cross_attn" not in name and "visual_" not in name}
    qwen2.load_state_dict({**own, "lm_head.weight": model.lm_head.weight}, assign=True)
    return qwen2


def _ready_frames(model: Any, size: DecodeSize, visual: torch.Tensor) -> list[ReadyFrame]:
    """Computes the rows of frames `(T, N, D)`; frames do not see each other, so they can stand where streams do."""
    keys, values = model.model.language_model.visual_rows(visual)  # (layers, T, K, N, d)
    return [ReadyFrame(0.0, keys[:, t], values[:, t], (size.side, size.side)) for t in range(len(visual))]


def _watch(scene: Scene, cache: StreamingCache, frames: int) -> StreamingCache:
    """Takes over frames in silence, the same window again and again."""
    seen = cache.streams[0].frames_taken
    for i in range(seen, seen + frames):
        scene.model.refresh_visual(cache, [scene.ready[i % len(scene.ready)]])
    return cache


def _listen(scene: Scene, cache: StreamingCache) -> StreamingCache:
    """Reads all of the text but the token that the measured step will read."""
    scene.model(scene.text[:, :-1], past_key_values=cache, logits_to_keep=1)
    return cache


def _watched(scene: Scene, frames: int) -> StreamingCache:
    """A conversation that the measured step goes on with."""
    return _listen(scene, _watch(scene, StreamingCache(scene.model.config), frames))


def _step(scene: Scene, cache: StreamingCache, frames: list[ReadyFrame]) -> torch.Tensor:
    """What `generate` does for a token: takes over what is ready, reads one token."""
    scene.model.refresh_visual(cache, frames)
    return scene.model(scene.text[:, -1:], past_key_values=cache).logits


def _stepping(scene: Scene, mode: str, cache: StreamingCache, new_frame: bool) -> Way:
    """One step from where the cache stands; a new frame's rows are ready."""
    seen = cache.streams[0].frames_taken
    frames = [scene.ready[seen % len(scene.ready)]] if new_frame else []
    return Way(mode, seen + len(frames), lambda: copy.deepcopy(cache), lambda state: _step(scene, state, frames))


def _appending(scene: Scene) -> Way:
    """A frame fills the window: its rows, and the step that takes them over."""
    cache = _watched(scene, scene.size.window - 1)

    def run(state: StreamingCache) -> torch.Tensor:
        return _step(scene, state, _ready_frames(scene.model, scene.size, scene.visual[-1:]))

    return Way("append", scene.size.window, lambda: copy.deepcopy(cache), run)


def _reprefilling(scene: Scene, mode: str, frames: int) -> Way:
    """All frames in the window and all of the text anew, each token seeing the frames it saw when it was read.

    The frames' visual tokens are there already; positions and masks are made outside the clock.
    """
    language_model, text = scene.model.model.language_model, scene.text
    held = min(frames, scene.size.window)
    visual = scene.visual[:held].flatten(0, 1)[None]  # (1, held * N, D)
    # Frames come once per second. The text is asked half a second before the last one, which the token that the step
    # speaks is the first to see; that token only closes the timeline and is not read.
    frame_times = torch.arange(1, held + 1, device=text.device)[None] * 1000
    token_times = torch.full((1, text.shape[1] + 1), held * 1000 - 500, device=text.device)
    token_times[:, -1] = held * 1000
    grid = (scene.size.side, scene.size.side)
    position_ids, context = scene.model.model._whole_context(visual, grid, token_times, frame_times, None, None)
    position_ids = position_ids[:, :-1]
    context = context._replace(mask=context.mask[:, :, :-1], any_visible=context.any_visible[:, :-1])

    def run(_: None) -> torch.Tensor:
        embeds = scene.model.get_input_embeddings()(text)
        hidden = language_model(embeds, None, position_ids, None, None, visual, context)
        return scene.model.lm_head(hidden[:, -1:])

    return Way(mode, frames, lambda: None, run)


def _generating(scene: Scene, mode: str, model: Any) -> Way:
    return Way(mode, 0, lambda: None, lambda _: _generate(scene, model), tokens=scene.size.answer_tokens)


def _generate(scene: Scene, model: Any, **options: Any) -> Any:
    """Greedy decoding without frames."""
    return model.generate(
        scene.text,
        attention_mask=torch.ones_like(scene.text),
        max_new_tokens=scene.size.answer_tokens,
        do_sample=False,
        **options,
    )


def _compared_ways(scene: Scene, watched: StreamingCache) -> dict[str, list[Way]]:
    """The two ways behind each ratio; `watched` has seen very many frames in silence."""
    window = scene.size.window
    full, late = _watched(scene, window), _listen(scene, watched)
    return {
        "text_only_over_qwen2": [
            _generating(scene, "qwen2", scene.qwen2),
            _generating(scene, "text_only", scene.model),
        ],
        "new_frame_over_none": [
            _stepping(scene, "new_frame", full, new_frame=True),
            _stepping(scene, "no_frame", full, new_frame=False),
        ],
        "reprefill_over_append": [_reprefilling(scene, "reprefill_window", window), _appending(scene)],
        "late_over_full": [
            _stepping(scene, "late", late, new_frame=True),
            _stepping(scene, "full", full, new_frame=True),
        ],
    }


def _curve_ways(scene: Scene, frames: int) -> list[Way]:
    """The three ways to speak a token once so many frames have been seen."""
    fresh, frozen, reprefill = CURVE
    return [
        _stepping(scene, fresh, _watched(scene, frames - 1), new_frame=True),
        _stepping(scene, frozen, _watched(scene, frames), new_frame=False),
        _reprefilling(scene, reprefill, frames),
    ]


def _watch_long(scene: Scene) -> tuple[StreamingCache, list[dict[str, int | None]]]:
    """A cache that has seen very many frames in silence, and memory before and after."""
    cache = _watch(scene, StreamingCache(scene.model.config), scene.size.window)
    memory = [_memory(cache, scene.model.device)]
    _watch(scene, cache, scene.size.late - scene.size.window)
    return cache, [*memory, _memory(cache, scene.model.device)]


def _memory(cache: StreamingCache, device: torch.device) -> dict[str, int | None]:
    gc.collect()
    statistics = Path("/proc/self/statm")  # Linux: pages, the second number of them resident
    resident = None
    if statistics.exists():
        resident = int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "frames_seen": cache.streams[0].frames_taken,
        "visual_bytes": cache.visual_bytes,
        "resident_bytes": resident,
        "cuda_bytes": torch.cuda.memory_allocated(device) if device.type == "cuda" else None,
    }


def _check_text_only(scene: Scene) -> None:
    ours, qwen2 = (
        _generate(scene, model, return_dict_in_generate=True, output_logits=True)
        for model in (scene.model, scene.qwen2)
    )
    if not torch.equal(torch.stack(ours.logits), torch.stack(qwen2.logits)):
        raise RuntimeError("without video the logits are not those of Qwen2")


def _check_reprefill(scene: Scene) -> float:
    """The largest difference between logits of a streamed step and of a re-prefill that sees the same frames."""
    pairs = [(_appending(scene), _reprefilling(scene, "", scene.size.window))]
    for frames in scene.size.frames_seen:
        if frames <= scene.size.window:  # beyond it a re-prefill no longer has what the older text saw
            fresh, _, reprefill = _curve_ways(scene, frames)
            pairs.append((fresh, reprefill))
    difference = max((a.run(a.prepare()) - b.run(b.prepare())).float().abs().max().item() for a, b in pairs)
    if scene.model.dtype == torch.float32 and not difference <= TOLERANCE:
        raise RuntimeError(f"a streamed step and a re-prefill differ by {difference:.1e} in their logits")
    return difference
