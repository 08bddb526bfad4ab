"""What a new frame costs StreamFormer: with a ring of past keys and values, and with the clip computed again.

The rows are the paper's figure 3 (2504.20041): time and memory of one new frame against how many a stream has had,
with the cache, recomputing the causal clip, and recomputing a bidirectional one, which knows no other way. Times are
the thread's own CPU time with one torch thread, taken as those of a decoding step.

Letters: T frames, N patches of a frame, H heads, D hidden size, d head size.
"""

import dataclasses
import gc
import platform
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

from streamchat_hf.evaluation.timing import (
    DTYPES,
    FEWEST_REPEATS,
    Ratio,
    Way,
    machine_name,
    one_thread,
    run_seconds,
    time_in_turn,
)
from streamchat_hf.modeling.cache_streamformer import StreamFormerCache
from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel, attend, temporal_rotation

MODES = ("cache", "recompute", "bidirectional")
TOLERANCE = 1e-4  # of float32 features computed in two ways
MEMORY_FROM = 512  # frames: by then the allocator has what it needs


@dataclasses.dataclass(frozen=True)
class StreamFormerSize:
    """How large the measured models are, and where the curve has its points.

    Attributes:
        config: fields of the configuration that differ from its defaults, of the model that everything but the long
            run is measured on.
        long_config: the same of the small model that really watches a long stream.
        window: how many frames a frame attends to over time.
        late: how many frames are a long time.
        cached: frames seen, the new one included, where the cache is measured.
        recomputed: the same for computing the clip again.
    """

    config: dict[str, Any]
    long_config: dict[str, Any]
    window: int
    late: int
    cached: tuple[int, ...]
    recomputed: tuple[int, ...]


LONG = {
    "image_size": 64,
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "intermediate_size": 768,
}
BASE = StreamFormerSize({}, LONG, 64, 4096, (1, 4, 16, 64, 256, 1024, 4096), (1, 4, 16, 64))
FULL = dataclasses.replace(BASE, cached=tuple(2**i for i in range(13)), recomputed=tuple(2**i for i in range(7)))
TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "lora_rank": 2,
}
SMALL = StreamFormerSize(TINY, TINY, 4, 32, (1, 2, 4, 8), (1, 2, 4))

RATIOS = {
    "full_over_first": Ratio("a frame when the window is full, over the first one", "full", "first", False, 1.20),
    "full_over_concatenated": Ratio(
        "a frame with the ring, over one with concatenated keys and values, at a full window",
        *("full", "concatenated", False, 0.65),
    ),
    "folded_over_plain": Ratio(
        "the first frame, LoRA merged and projections folded, over the same before", "folded", "plain", False, 0.97
    ),
    "late_over_full": Ratio(
        "a frame after very many, over one when the window has just filled (small model)",
        *("late", "early", False, 1.15),
    ),
}


@torch.no_grad()
def measure_streamformer_cost(
    size: StreamFormerSize = BASE, repeats: int = 9, progress: bool = True
) -> dict[str, Any]:
    """Measures the ratios of [`RATIOS`] in float32, and the curves of [`MODES`] in float32 and bfloat16.

    Weights and frames are random: times do not depend on them. Before anything is timed, the ways that are compared
    are shown to compute the same thing. A ratio that breaks its bound is measured a second time, and the second time
    counts.

    Args:
        size: of models and curves; default: base size (12 layers of width 768, 196 patches) and a window of 64 frames.
        repeats: how often each way behind a ratio is timed, at least 7. A point of the curves has 7; a clip computed
            again has 3 where it is longer than a frame, and 1 where it is longer than 8, because it takes so long.
        progress: show a progress bar.

    Returns:
        The ratios by name; `bounds`, for each of them `bound` and `holds`; `measured_again`, the names of those that
        broke their bound at first; `memory` in the long run, in bytes; `rows`, the curves: `mode`, `dtype`, `history`
        (frames seen, the new one included), `cpu_seconds_per_frame` (the median), `cache_bytes` and `seconds`, all
        repeats; `steps`, the raw rows behind the ratios: `mode`, `history`, `repeat` and `seconds`; `settings` and
        `versions`.

    Raises:
        ValueError: if there are too few repeats.
        RuntimeError: if two ways that are compared do not compute the same.
    """
    if repeats < FEWEST_REPEATS:
        raise ValueError(f"{repeats} repeats are too few for a median: take at least {FEWEST_REPEATS}")
    result: dict[str, Any] = {"bounds": {}, "measured_again": [], "rows": [], "steps": []}
    points = len(DTYPES) * (len(size.cached) + len(size.recomputed))
    with one_thread(), tqdm(total=1 + points, disable=not progress) as bar:
        model = make_model(size.config, size.window)
        check_ways(model, size.window)
        long_ways, result["memory"] = _watch_long(size)
        _judge(["late_over_full"], long_ways, repeats, result)
        # Made one after the other: at base size a ring takes a gigabyte.
        _judge(["full_over_first", "full_over_concatenated"], _window_ways(model, size.window), repeats, result)
        _judge(["folded_over_plain"], _folding_ways(model, size.window), repeats, result)
        bar.update()
        for name, dtype in DTYPES.items():
            model.to(dtype)
            for history in sorted({*size.cached, *size.recomputed}):
                for row in _curve_rows(model, size, history):
                    result["rows"].append({**row, "dtype": name})
                    bar.update(0.5 if row["mode"] in MODES[1:] else 1)
    settings = {**dataclasses.asdict(size), "device": "cpu", "machine": machine_name(torch.device("cpu"))}
    versions = {name: version(name) for name in ("streamchat-hf", "torch", "transformers")}
    return {
        **{name: result["bounds"][name].pop("ratio") for name in RATIOS},
        **result,
        "settings": {**settings, "repeats": repeats},
        "versions": {"python": platform.python_version(), **versions},
    }


def curves(rows: list[dict[str, Any]], dtype: str) -> dict[int, dict[str, dict[str, Any]]]:
    """The rows of one type by history and mode."""
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row["dtype"] == dtype:
            found.setdefault(row["history"], {})[row["mode"]] = row
    return dict(sorted(found.items()))


def make_model(config: dict[str, Any], window: int) -> StreamFormerModel:
    """A random model with open gates and LoRA that changes something, so that ways that differ are found out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = StreamFormerModel(StreamFormerConfig(**config, sliding_window=window)).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("temporal_gate"):
                parameter.fill_(1.0)
            elif name.endswith("lora_b"):
                parameter.normal_(std=0.02)
    return model


def concatenated_frame(
    model: StreamFormerModel, pixel_values: torch.Tensor, past: list[tuple[torch.Tensor, torch.Tensor]], frame: int
) -> tuple[torch.Tensor, torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """One frame of one stream with keys and values concatenated to those of the past, as caches usually do.

    It reads as the block's equation, and is what the ring is compared with: same weights, same attention.

    Args:
        model: an unfolded model with rotary positions.
        pixel_values: `(1, 1, C, height, width)`.
        past: per layer keys and values `(N, H, S, d)` of the frames before, at most a window less one; `[]` at first.
        frame: its absolute index.

    Returns:
        Features `(1, 1, N, D)` and `(1, 1, D)`, and the new past.
    """
    heads, index = model.config.num_attention_heads, torch.tensor([[frame]])
    present: list[tuple[torch.Tensor, torch.Tensor]] = []
    layers: Any = model.layers  # a submodule's attribute is Tensor | Module to the checker
    head_dim, theta = model.config.hidden_size // heads, model.config.temporal_rope_theta
    cos, sin = (angles.to(pixel_values.dtype) for angles in temporal_rotation(index, head_dim, theta))

    def turned(states: torch.Tensor) -> torch.Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat([-second, first], dim=-1) * sin

    x = model.embeddings(pixel_values, index)
    for i, layer in enumerate(layers):
        attention = layer.temporal_attention
        qkv = attention.qkv(layer.temporal_norm(x))[0, 0].unflatten(-1, (3, heads, 1, -1))  # (N, 3, H, 1, d)
        query, key, value = turned(qkv[:, 0]), turned(qkv[:, 1]), qkv[:, 2]
        if past:
            key, value = torch.cat([past[i][0], key], dim=2), torch.cat([past[i][1], value], dim=2)
        present.append((key, value))
        seen = attention.out_proj(attend(attention, query, key, value)[0]).view_as(x)
        x = x + layer.temporal_gate.tanh() * layer.temporal_projection(seen)
        x = x + layer.spatial_attention(layer.spatial_norm(x))[0]
        x = x + layer.mlp(layer.mlp_norm(x))
    x = model.norm(x)
    return x, model.head(x), present


def check_ways(model: StreamFormerModel, window: int) -> None:
    """Shows that cache, concatenation, recomputation, and folding give the same features.

    Raises:
        RuntimeError: if they do not.
    """
    pixels, cache = _pixels(model, 2), StreamFormerCache(window)
    past: list[tuple[torch.Tensor, torch.Tensor]] = []
    whole, folded = model(pixels), _folded(model)(pixels)
    differences = [folded.last_hidden_state - whole.last_hidden_state, folded.pooler_output - whole.pooler_output]
    for t, frame in enumerate(pixels.split(1, dim=1)):
        streamed = model(frame, past_key_values=cache)
        hidden, pooled, past = concatenated_frame(model, frame, past, t)
        differences += [streamed.last_hidden_state[:, 0] - whole.last_hidden_state[:, t]]
        differences += [hidden[:, 0] - whole.last_hidden_state[:, t], pooled[:, 0] - whole.pooler_output[:, t]]
    difference = max(part.abs().max().item() for part in differences)
    if not difference <= TOLERANCE:
        raise RuntimeError(f"ways that are compared differ by {difference:.1e} in their features")


def _pixels(model: StreamFormerModel, frames: int) -> torch.Tensor:
    side, generator = model.config.image_size, torch.Generator().manual_seed(1)
    return torch.randn(1, frames, model.config.num_channels, side, side, generator=generator).to(model.dtype)


def _folded(model: StreamFormerModel) -> StreamFormerModel:
    twin = StreamFormerModel(StreamFormerConfig.from_dict(model.config.to_dict())).eval()
    twin.load_state_dict(model.state_dict())
    return twin.merge_lora().fold_temporal_projection()


def _past(model: StreamFormerModel, frames: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Random keys and values of frames seen, as every layer has them: what is in them does not change a time."""
    config = model.config
    shape = (len(model.embeddings.position_embeddings), config.num_attention_heads, frames)
    head_dim = config.hidden_size // config.num_attention_heads
    return [
        (torch.randn(*shape, head_dim).to(model.dtype), torch.randn(*shape, head_dim).to(model.dtype))
        for _ in model.layers
    ]


def _cached_way(mode: str, model: StreamFormerModel, window: int, history: int) -> tuple[Way, StreamFormerCache]:
    """The newest of `history` frames, with the ring; each time it runs the cache stands at the frame before it."""
    cache, pixels = StreamFormerCache(window), _pixels(model, 1)
    if history > 1:
        step = cache.step(1, min(history - 1, window))
        for layer, (keys, values) in enumerate(_past(model, min(history - 1, window))):
            step.update(keys, values, layer)
        step.finish()

    def rewind() -> None:
        cache.frames_seen = torch.tensor([history - 1])

    return Way(mode, history, rewind, lambda _: model(pixels, past_key_values=cache)), cache


def _recomputing_way(mode: str, model: StreamFormerModel, history: int) -> Way:
    """The newest of `history` frames, with all of them computed again."""
    pixels = _pixels(model, history)

    def run(_: Any) -> Any:
        model.config.enable_causal_temporal = mode != "bidirectional"
        try:
            return model(pixels)
        finally:
            model.config.enable_causal_temporal = True

    return Way(mode, history, lambda: None, run)


def _window_ways(model: StreamFormerModel, window: int) -> list[Way]:
    """A frame at a full window with the ring and with concatenation, and the first frame."""
    pixels, past = _pixels(model, 1), _past(model, window - 1)

    def concatenate(_: Any) -> Any:
        return concatenated_frame(model, pixels, past, window - 1)

    first, full = (_cached_way(mode, model, window, n)[0] for mode, n in (("first", 1), ("full", window)))
    return [first, full, Way("concatenated", window, lambda: None, concatenate)]


def _folding_ways(model: StreamFormerModel, window: int) -> list[Way]:
    """The first frame, with the model as it is trained and with what inference can do without."""
    return [_cached_way(mode, m, window, 1)[0] for mode, m in (("plain", model), ("folded", _folded(model)))]


def _watch_long(size: StreamFormerSize) -> tuple[list[Way], list[dict[str, int | None]]]:
    """A small model really watches a long stream: a frame late in it and one early, and memory on the way."""
    model = make_model(size.long_config, size.window)
    pixels, cache, memory = _pixels(model, 1), StreamFormerCache(size.window), []
    for seen in range(1, size.late):
        model(pixels, past_key_values=cache)
        if seen in (min(MEMORY_FROM, size.late // 2), size.late - 1):
            gc.collect()
            resident = _status("VmRSS")
            memory.append({"frames_seen": seen, "cache_bytes": cache.nbytes, "resident_bytes": resident})

    def rewind() -> None:
        cache.frames_seen = torch.tensor([size.late - 1])

    late = Way("late", size.late, rewind, lambda _: model(pixels, past_key_values=cache))
    early, _ = _cached_way("early", model, size.window, size.window)
    return [late, early], memory


def _judge(names: list[str], ways: list[Way], repeats: int, result: dict[str, Any]) -> None:
    """Times the ways behind some ratios and adds what came out; a second time if a bound breaks."""
    timed = time_in_turn(ways, repeats, torch.device("cpu"))
    broken = [name for name in names if not RATIOS[name].holds(RATIOS[name].of(timed))]
    if broken:
        result["measured_again"] += broken
        timed = time_in_turn(ways, repeats, torch.device("cpu"))
    for name in names:
        value = RATIOS[name].of(timed)
        result["bounds"][name] = {"ratio": value, "bound": RATIOS[name].bound, "holds": RATIOS[name].holds(value)}
    for row in timed:
        result["steps"].append(
            {"mode": row["mode"], "history": row["frames_seen"], "repeat": row["repeat"], "seconds": row["seconds"]}
        )


def _curve_rows(model: StreamFormerModel, size: StreamFormerSize, history: int) -> list[dict[str, Any]]:
    """One row per mode that has a point there."""
    rows = []
    if history in size.cached:
        way, cache = _cached_way("cache", model, size.window, history)
        rows.append(_row(way, FEWEST_REPEATS, cache))
    if history in size.recomputed:
        repeats = FEWEST_REPEATS if history == 1 else 3 if history <= 8 else 1
        rows += [_row(_recomputing_way(mode, model, history), repeats, None) for mode in MODES[1:]]
    return rows


def _row(way: Way, repeats: int, cache: StreamFormerCache | None) -> dict[str, Any]:
    """One point of the curves; one that is timed once has been warmed up by the points before it."""
    if repeats > 1:
        way.run(way.prepare())
    gc.collect()
    seconds = [run_seconds(way, torch.device("cpu")) for _ in range(repeats)]
    return {
        "mode": way.mode,
        "history": way.frames_seen,
        "cpu_seconds_per_frame": median(seconds),
        "cache_bytes": 0 if cache is None else cache.nbytes,
        "seconds": seconds,
    }


def _status(field: str) -> int | None:
    """A line of Linux' account of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
