"""Properties of StreamFormer. That it gives the authors' features is tested with the converter."""

import copy
import math
import os
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from streamchat_hf.modeling.cache_streamformer import StreamFormerCache
from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel, rotate, temporal_rotation

KINDS = [(position, window) for position in ("learned", "rotary") for window in (None, 1, 4)]


def tiny_model(seed: int = 0, **changes) -> StreamFormerModel:
    """A random model whose every part matters: open gates, LoRA that changes something, biases that are not 0."""
    values = {
        "image_size": 12,
        "patch_size": 4,
        "num_frames": 5,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "lora_rank": 3,
    }
    torch.manual_seed(seed)
    model = StreamFormerModel(StreamFormerConfig(**values | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.3 if parameter.ndim < 2 else 0.25)
            if name.endswith("temporal_gate"):
                parameter.fill_(0.8)
    return model


def video(streams: int = 1, frames: int = 17, height: int = 12, width: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randn(streams, frames, 3, height, width, generator=torch.Generator().manual_seed(seed))


def chunk_sizes(total: int, largest: int, chooser: random.Random) -> list[int]:
    sizes = []
    while sum(sizes) < total:
        sizes.append(min(chooser.randint(1, largest), total - sum(sizes)))
    return sizes


@torch.no_grad()
def streamed(model, pixels, sizes, cache=None):
    """Features of a video given in chunks of these sizes."""
    hidden, pooled = [], []
    for chunk in pixels.split(sizes, dim=1):
        output = model(chunk, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        hidden.append(output.last_hidden_state)
        pooled.append(output.pooler_output)
    return torch.cat(hidden, 1), torch.cat(pooled, 1), cache


@torch.no_grad()
def naive(model, pixels):
    """The equations, one frame and one patch at a time: `(B, T, N, D)` and `(B, T, D)`."""
    config, heads = model.config, model.config.num_attention_heads
    size = config.hidden_size // heads

    def linear(m, x):
        y = m.weight @ x + (0 if m.bias is None else m.bias)
        return y + m.lora_b @ (m.lora_a @ x) if hasattr(m, "lora_a") else y

    def attention(q, keys, values):  # one query (D), S keys and values (S, D)
        parts = []
        for h in range(heads):
            s = slice(h * size, (h + 1) * size)
            weights = torch.softmax(torch.stack([q[s] @ k[s] for k in keys]) / math.sqrt(size), 0)
            parts.append(sum(w * v[s] for w, v in zip(weights, values, strict=True)))
        return torch.cat(parts)

    def turned(x, t):  # complex multiplication by e^(i t theta_j)
        if config.temporal_position == "learned":
            return x
        angles = t * config.temporal_rope_theta ** (-torch.arange(size // 2, dtype=torch.float64) * 2 / size)
        first, second = x.double().view(heads, 2, size // 2).unbind(1)
        z = torch.polar(torch.ones_like(angles), angles) * torch.complex(first, second)
        return torch.stack([z.real, z.imag], 1).flatten().to(x.dtype)

    def mlp(m, x):
        return linear(m.fc2, nn.functional.gelu(linear(m.fc1, x)))

    def clip(frames):
        emb, patches, window = model.embeddings, len(model.embeddings.position_embeddings), config.sliding_window
        conv = emb.patch_embedding(frames).flatten(2).transpose(1, 2)
        x = {(t, n): conv[t, n] + emb.position_embeddings[n] for t in range(len(frames)) for n in range(patches)}
        if config.temporal_position == "learned":
            x = {(t, n): v + emb.time_embeddings[min(t, config.num_frames - 1)] for (t, n), v in x.items()}
        for layer in model.layers:
            a = layer.temporal_attention
            qkv = {key: linear(a.qkv, layer.temporal_norm(v)).chunk(3) for key, v in x.items()}
            after = {}
            for t, n in x:
                past = [s for s in range(t + 1) if window is None or s > t - window]
                seen = attention(
                    turned(qkv[t, n][0], t), [turned(qkv[s, n][1], s) for s in past], [qkv[s, n][2] for s in past]
                )
                after[t, n] = x[t, n] + layer.temporal_gate.tanh() * linear(
                    layer.temporal_projection, linear(a.out_proj, seen)
                )
            x, a = after, layer.spatial_attention
            qkv = {key: linear(a.qkv, layer.spatial_norm(v)).chunk(3) for key, v in x.items()}
            for t, n in x:
                frame = [qkv[t, m] for m in range(patches)]
                after[t, n] = x[t, n] + linear(
                    a.out_proj, attention(qkv[t, n][0], [f[1] for f in frame], [f[2] for f in frame])
                )
            x = {key: v + mlp(layer.mlp, layer.mlp_norm(v)) for key, v in after.items()}
        out, head = {key: model.norm(v) for key, v in x.items()}, model.head
        pooled = []
        for t in range(len(frames)):
            kv = [linear(head.kv_proj, out[t, n]).chunk(2) for n in range(patches)]
            y = linear(
                head.out_proj, attention(linear(head.q_proj, head.probe), [k for k, _ in kv], [v for _, v in kv])
            )
            pooled.append(y + mlp(head.mlp, head.norm(y)))
        return torch.stack([out[key] for key in out]).view(len(frames), patches, -1), torch.stack(pooled)

    hidden, pooled = zip(*[clip(frames) for frames in pixels], strict=True)
    return torch.stack(hidden), torch.stack(pooled)


@pytest.mark.parametrize(("position", "window"), [("learned", None), ("rotary", None), ("rotary", 3)])
def test_forward_is_the_equations(position, window):
    model = tiny_model(temporal_position=position, sliding_window=window, num_frames=3, num_hidden_layers=2)
    pixels = video(2, 5)
    output = model(pixels)
    hidden, pooled = naive(model, pixels)
    assert output.last_hidden_state.shape == (2, 5, 9, 32)
    assert output.pooler_output.shape == (2, 5, 32)
    torch.testing.assert_close(output.last_hidden_state, hidden, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.pooler_output, pooled, atol=1e-5, rtol=0)


def test_a_tiny_model_is_tiny():
    assert tiny_model().num_parameters() < 100_000


@pytest.mark.parametrize(("position", "window"), KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_one_by_one_equals_random_chunks_equals_whole_far_beyond_num_frames(position, window, attention):
    model = tiny_model(temporal_position=position, sliding_window=window)
    model.set_attn_implementation(attention)
    pixels, chooser = video(2, 41), random.Random(0)
    whole = model(pixels)
    for limit in (1, 3, 9, 30):
        hidden, pooled, cache = streamed(model, pixels, chunk_sizes(41, limit, chooser))
        torch.testing.assert_close(hidden, whole.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(pooled, whole.pooler_output, atol=1e-5, rtol=0)
        assert cache.frames_seen.tolist() == [41, 41]


@pytest.mark.parametrize(("position", "window"), KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_future_frame_changes_no_past_output_at_all(position, window, attention):
    model = tiny_model(temporal_position=position, sliding_window=window)
    model.set_attn_implementation(attention)
    pixels = video(1, 12)
    before = model(pixels)
    for frame in (0, 3, 4, 7, 11):
        changed = pixels.clone()
        changed[:, frame] += 1
        after = model(changed)
        moved = (after.last_hidden_state - before.last_hidden_state).abs().amax((0, 2, 3))
        assert moved[:frame].sum() == 0.0
        assert moved[frame] > 0.01
        # Depth widens the reach of a window: 3 layers of it see 3 * (window - 1) frames back.
        reach = 12 if window is None else 3 * (window - 1)
        assert (moved[frame + 1 : frame + reach + 1] > 0).all()
        assert moved[frame + reach + 1 :].sum() == 0.0


def test_without_causality_the_future_matters_and_streaming_is_refused():
    model = tiny_model(enable_causal_temporal=False)
    pixels = video(1, 6)
    changed = pixels.clone()
    changed[:, 5] += 1
    assert (model(pixels).last_hidden_state - model(changed).last_hidden_state)[:, 0].abs().max() > 0.01
    with pytest.raises(ValueError, match="enable_causal_temporal=False"):
        model(pixels, use_cache=True)


def test_stretched_time_embeddings_are_for_whole_clips():
    model = tiny_model(temporal_position="learned", time_embedding_policy="stretch")
    clamped = tiny_model(temporal_position="learned")
    clamped.load_state_dict(model.state_dict())
    assert torch.equal(model(video(1, 5)).pooler_output, clamped(video(1, 5)).pooler_output)
    assert (model(video(1, 9)).pooler_output - clamped(video(1, 9)).pooler_output).abs().max() > 0.01
    with pytest.raises(ValueError, match="stretch"):
        model(video(1, 1), past_key_values=StreamFormerCache())


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_rows_of_a_batch_equal_rows_alone(window):
    model = tiny_model(sliding_window=window)
    pixels = video(3, 9)
    whole, stream = model(pixels), streamed(model, pixels, [4, 1, 1, 3])[0]
    for row in range(3):
        alone = model(pixels[row : row + 1])
        torch.testing.assert_close(whole.last_hidden_state[row], alone.last_hidden_state[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.pooler_output[row], alone.pooler_output[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(stream[row], alone.last_hidden_state[0], atol=1e-5, rtol=0)


@torch.no_grad()
def watched_apart(model, videos, schedule, cache):
    """Features of videos whose frames arrive as (rows, frames of each) says, each stream's put together again."""
    given, hidden, pooled = [0] * len(videos), [[] for _ in videos], [[] for _ in videos]
    for rows, chunk in schedule:
        pixels = torch.stack([videos[row][given[row] : given[row] + chunk] for row in rows])
        output = model(pixels, past_key_values=cache, streams=rows)
        for i, row in enumerate(rows):
            given[row] += chunk
            hidden[row].append(output.last_hidden_state[i])
            pooled[row].append(output.pooler_output[i])
    return [torch.cat(parts) for parts in hidden], [torch.cat(parts) for parts in pooled]


def schedule_of(lengths: list[int], starts: list[int], chooser: random.Random) -> list[tuple[list[int], int]]:
    """Rounds in which some of the streams that have begun bring frames, in any order, until all have brought all."""
    left, rounds, time = list(lengths), [], 0
    while any(left):
        ready = [row for row, start in enumerate(starts) if start <= time and left[row]]
        rows = chooser.sample(ready, chooser.randint(1, len(ready))) if ready else []
        if rows:
            chunk = chooser.randint(1, min(7, *(left[row] for row in rows))) if chooser.random() < 0.3 else 1
            rounds.append((rows, chunk))
            for row in rows:
                left[row] -= chunk
        time += 1
    return rounds


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("position", ["learned", "rotary"])
@torch.no_grad()
def test_streams_with_different_starts_equal_whole_videos_over_200_frames(position, window):
    model, chooser = tiny_model(temporal_position=position, sliding_window=window), random.Random(0)
    pixels = video(3, 200)
    whole = model(pixels)
    for sizes in ([1] * 200, chunk_sizes(200, 30, chooser)):
        hidden, pooled, _ = streamed(model, pixels, sizes)
        torch.testing.assert_close(hidden, whole.last_hidden_state, atol=2e-5, rtol=0)
        torch.testing.assert_close(pooled, whole.pooler_output, atol=2e-5, rtol=0)
    cache = StreamFormerCache(window, streams=3)
    schedule = schedule_of([200, 200, 200], [0, 13, 60], chooser)
    hidden, pooled = watched_apart(model, list(pixels), schedule, cache)
    torch.testing.assert_close(torch.stack(hidden), whole.last_hidden_state, atol=2e-5, rtol=0)
    torch.testing.assert_close(torch.stack(pooled), whole.pooler_output, atol=2e-5, rtol=0)
    assert cache.frames_seen.tolist() == [200, 200, 200]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_a_new_stream_takes_the_row_of_one_that_ended(attention):
    model = tiny_model(sliding_window=4)
    model.set_attn_implementation(attention)
    old, new, other = video(1, 9), video(1, 6, seed=2), video(1, 15, seed=3)
    cache = StreamFormerCache(4, streams=2)
    for t in range(9):
        model(torch.cat([old[:, t : t + 1], other[:, t : t + 1]]), past_key_values=cache)
    cache.reset([0])
    outputs = []
    for t in range(6):
        pixels = torch.cat([new[:, t : t + 1], other[:, 9 + t : 10 + t]])
        outputs.append(model(pixels, past_key_values=cache).last_hidden_state)
    got = torch.cat(outputs, 1)
    torch.testing.assert_close(got[:1], model(new).last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(got[1:], model(other).last_hidden_state[:, 9:], atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_stream_does_not_notice_what_others_see():
    model, schedule = tiny_model(sliding_window=4), schedule_of([12, 12], [0, 3], random.Random(1))
    pixels, changed = video(2, 12), video(2, 12)
    changed[1] = 100.0
    before, after = (watched_apart(model, list(p), schedule, StreamFormerCache(4, 2))[0] for p in (pixels, changed))
    assert torch.equal(before[0], after[0]) and not torch.equal(before[1], after[1])


@pytest.mark.parametrize("window", [None, 4])
@torch.no_grad()
def test_a_future_frame_changes_no_past_output_of_a_stream(window):
    model, pixels = tiny_model(sliding_window=window), video(1, 12)
    changed = pixels.clone()
    changed[:, 8:] += 1
    sizes = [1, 1, 6, 3, 1]  # the change begins with a chunk: inside one the mask does the rest
    before, after = (streamed(model, p, sizes)[0] for p in (pixels, changed))
    assert torch.equal(before[:, :8], after[:, :8]) and (before[:, 8] - after[:, 8]).abs().max() > 0.01
    before, after = (streamed(model, p, [12])[0] for p in (pixels, changed))
    assert torch.equal(before[:, :8], after[:, :8])


def test_rows_without_a_state_are_refused():
    with pytest.raises(ValueError, match="streams are rows of a state"):
        tiny_model()(video(1, 1), streams=[0])
    cache = StreamFormerCache(streams=2)
    with pytest.raises(ValueError, match="1 streams do not continue the 2 of 2 rows"):
        tiny_model()(video(1, 1), past_key_values=cache)


@torch.no_grad()
def test_bfloat16_streams_equal_bfloat16_clips_to_its_rounding():
    model, pixels = tiny_model(sliding_window=6), video(2, 60)
    exact = model(pixels).last_hidden_state
    model.to(torch.bfloat16)
    whole = model(pixels).last_hidden_state.float()
    rounding = (whole - exact).abs()
    for sizes in (1, chunk_sizes(60, 9, random.Random(0))):
        hidden, _, cache = streamed(model, pixels, sizes)
        assert {states.dtype for states in cache._keys + cache._values} == {torch.bfloat16}
        difference = (hidden.float() - whole).abs()
        # Two roundings of the same thing are about as far apart as one is from the truth, at the end as at the start.
        for part in (slice(0, 30), slice(30, 60)):
            assert difference[:, part].mean() < 1.5 * rounding.mean()
            assert difference[:, part].max() < 2 * rounding.max()


@torch.no_grad()
def test_one_query_takes_the_plain_products_and_gives_the_same(monkeypatch):
    model, pixels = tiny_model(sliding_window=4), video(2, 9)
    queries, sdpa = [], nn.functional.scaled_dot_product_attention

    def recorded(query, *args, **kwargs):
        queries.append(query.shape[2])
        return sdpa(query, *args, **kwargs)

    whole = model(pixels)
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", recorded)
    hidden = streamed(model, pixels, 1)[0]
    assert set(queries) == {9}  # patches of a frame: the spatial attention
    torch.testing.assert_close(hidden, whole.last_hidden_state, atol=1e-5, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_compiled_streams_are_the_same_and_compile_no_more_once_the_ring_is_full():
    model, pixels, graphs = tiny_model(sliding_window=4), video(2, 16), []
    whole = model(pixels).last_hidden_state

    def counted(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled, cache, counts = torch.compile(model, backend=counted), StreamFormerCache(4), []
    for t, frame in enumerate(pixels.split(1, dim=1)):
        output = compiled(frame, past_key_values=cache)
        torch.testing.assert_close(output.last_hidden_state[:, 0], whole[:, t], atol=1e-5, rtol=0)
        counts.append(len(graphs))
    torch._dynamo.reset()
    assert counts[0] > 0 and len(set(counts[4:])) == 1


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells")
@torch.no_grad()
def test_memory_is_flat_over_4096_frames():
    model, frame = tiny_model(sliding_window=64, num_hidden_layers=1), video(1, 1)
    cache, sizes, resident = StreamFormerCache(64), set(), {}
    for seen in range(1, 4097):
        model(frame, past_key_values=cache)
        if seen >= 64:
            sizes.add(cache.nbytes)
        if seen in (512, 4096):  # by 512 the allocator has warmed up
            resident[seen] = resident_bytes()
    assert len(sizes) == 1
    assert resident[4096] - resident[512] < 4 * 2**20


def test_memory_is_constant_with_a_window():
    model = tiny_model(sliding_window=4)
    cache, sizes = None, set()
    for pixels in video(1, 20).split(1, dim=1):
        cache = model(pixels, past_key_values=cache, use_cache=True).past_key_values
        sizes.add(cache.nbytes)
    assert sizes == {3 * 2 * 9 * 4 * 32 * 4}  # layers, keys and values, patches, frames, hidden size, bytes


def test_work_per_frame_does_not_grow_once_the_window_is_full():
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny_model(sliding_window=4, attn_implementation="eager")
    cache, work = None, []
    for pixels in video(1, 12).split(1, dim=1):
        with FlopCounterMode(display=False) as counter:
            cache = model(pixels, past_key_values=cache, use_cache=True).past_key_values
        work.append(counter.get_total_flops())
    assert work[0] < work[3]
    assert len(set(work[3:])) == 1


def test_the_window_of_the_cache_counts():
    pixels, model = video(1, 11), tiny_model(sliding_window=3)
    open_ended = tiny_model()
    assert streamed(model, pixels, 1)[2].sliding_window == 3
    for sizes in (1, [4, 1, 6]):
        hidden = streamed(open_ended, pixels, sizes, StreamFormerCache(3))[0]
        torch.testing.assert_close(hidden, model(pixels).last_hidden_state, atol=1e-5, rtol=0)


@torch.no_grad()
def test_order_beyond_num_frames_matters_with_rotary_and_is_lost_with_clamped_embeddings():
    pixels = video(1, 14)
    swapped = pixels[:, [*range(9), 10, 9, *range(11, 14)]]
    moved = {}
    for position in ("rotary", "learned"):
        model = tiny_model(temporal_position=position)
        moved[position] = (model(pixels).pooler_output - model(swapped).pooler_output)[:, -1].abs().max()
    assert moved["rotary"] > 1e-3
    # Not 0 even so: the causal mask lets the later of two frames see the earlier one.
    one_layer = tiny_model(temporal_position="learned", num_hidden_layers=1)
    assert (one_layer(pixels).pooler_output - one_layer(swapped).pooler_output)[:, -1].abs().max() < 1e-5


def test_rotation_depends_on_distance_only_even_after_months():
    query, key = torch.randn(2, 64, 1, 16)
    distances = torch.arange(40)

    def scores(start):
        at = temporal_rotation(start + distances, 16, 10000.0)
        return rotate(query, *temporal_rotation(torch.tensor([start + 39]), 16, 10000.0)) @ rotate(key, *at).mT

    months = 10**8 + 1  # at 5 frames a second, 7 months
    torch.testing.assert_close(scores(months), scores(0), atol=5e-6, rtol=0)
    assert (scores(0)[..., 0] - scores(0)[..., 1]).abs().max() > 0.1


@torch.no_grad()
def test_rotation_is_in_the_temporal_attention_only_and_relative():
    pixels = video(1, 12)
    model = tiny_model(sliding_window=3)
    # 3 layers of window 3 look 6 frames back: from there on it does not matter when the stream began.
    late, early = model(pixels).last_hidden_state, model(pixels[:, 3:]).last_hidden_state
    torch.testing.assert_close(late[:, 9:], early[:, 6:], atol=1e-5, rtol=0)
    assert (late[:, 3] - early[:, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("size", [(12, 12), (20, 20), (12, 20), (20, 8)])
def test_eager_equals_sdpa_at_any_frame_size(size):
    model = tiny_model(sliding_window=4)
    pixels = video(2, 7, *size)
    outputs = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        outputs.append(model(pixels))
    torch.testing.assert_close(outputs[0].last_hidden_state, outputs[1].last_hidden_state, atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs[0].pooler_output, outputs[1].pooler_output, atol=1e-5, rtol=0)
    assert outputs[0].last_hidden_state.shape[2] == size[0] // 4 * (size[1] // 4)


def test_position_grid_of_frames_that_are_not_square_has_rows_first():
    wide = tiny_model()
    with torch.no_grad():  # the stored grid says in which row a patch is
        wide.embeddings.position_embeddings.copy_(torch.tensor([0.0, 1, 2]).repeat_interleave(3)[:, None])
    by_row = wide.embeddings._positions(3, 5).view(3, 5, -1)
    assert (by_row.std(1) < 1e-5).all()
    assert (by_row[2] > by_row[0] + 1).all()
    wide.config.transposed_position_grid = True
    assert (wide.embeddings._positions(3, 5).view(3, 5, -1).std(1) > 0.1).all()
    by_row = by_row.transpose(0, 1)
    assert not torch.allclose(wide.embeddings._positions(3, 5), by_row.reshape(15, -1))


def test_fresh_model_ignores_time_and_fresh_lora_changes_nothing():
    torch.manual_seed(0)
    config = tiny_model().config
    model = StreamFormerModel(config).eval()
    assert all(layer.temporal_gate.item() == 0 for layer in model.layers)
    assert all((layer.spatial_attention.qkv.lora_b == 0).all() for layer in model.layers)
    assert all(layer.spatial_attention.out_proj.lora_a.std() > 0 for layer in model.layers)
    pixels = video(1, 4)
    alone = torch.cat([model(frame).last_hidden_state for frame in pixels.split(1, dim=1)], 1)
    torch.testing.assert_close(model(pixels).last_hidden_state, alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("position", ["learned", "rotary"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_and_load(tmp_path, position, dtype):
    model = tiny_model(temporal_position=position, sliding_window=6).to(dtype)
    model.save_pretrained(tmp_path)
    loaded = StreamFormerModel.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert loaded.config.sliding_window == 6
    for (name, a), (_, b) in zip(model.named_parameters(), loaded.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(model(video()).pooler_output, loaded.eval()(video()).pooler_output)


def test_nothing_is_lost_when_a_model_is_made_without_memory_first(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        empty = StreamFormerModel(model.config)
    empty.load_state_dict(model.state_dict(), assign=True)
    assert torch.equal(empty.eval()(video()).pooler_output, model(video()).pooler_output)
    # A partial checkpoint: what is missing gets its fresh value, not what happened to be in memory.
    weights = {
        name: value for name, value in model.state_dict().items() if "gate" not in name and "lora_b" not in name
    }
    loaded = StreamFormerModel.from_pretrained(None, config=model.config, state_dict=weights)
    assert all(layer.temporal_gate.item() == 0 for layer in loaded.layers)
    assert all((layer.spatial_attention.qkv.lora_b == 0).all() for layer in loaded.layers)
    assert torch.equal(loaded.head.probe, model.head.probe)


@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_every_parameter_gets_a_gradient(position):
    model = tiny_model(temporal_position=position).train()
    output = model(video(2, 6))
    (output.pooler_output.square().mean() + output.last_hidden_state.pow(3).mean()).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_closed_gates_open_by_themselves():
    model = tiny_model().train()
    with torch.no_grad():
        for layer in model.layers:
            layer.temporal_gate.zero_()
    model(video(1, 6)).pooler_output.square().mean().backward()
    assert all(layer.temporal_gate.grad.abs() > 0 for layer in model.layers)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant):
    model = tiny_model(sliding_window=3).train()
    other = copy.deepcopy(model)
    other.activation_checkpointing_enable({"use_reentrant": reentrant})
    pixels = video(1, 6)
    for each in (model, other):
        each(pixels.clone().requires_grad_()).pooler_output.square().mean().backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-5, msg=name)


def test_streaming_survives_training_mode_and_checkpointing_and_has_no_gradient():
    model = tiny_model(sliding_window=3)
    pixels = video(1, 8)
    whole = model(pixels).last_hidden_state
    model.train().activation_checkpointing_enable()
    cache, outputs = StreamFormerCache(3), []
    for chunk in pixels.split([2, 1, 4, 1], dim=1):
        outputs.append(model(chunk, past_key_values=cache).last_hidden_state)
    assert not any(output.requires_grad for output in outputs)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, atol=1e-5, rtol=0)


@torch.no_grad()
def test_merged_and_folded_models_give_the_same_features(tmp_path):
    model, pixels = tiny_model().double(), video().double()
    expected = model(pixels).last_hidden_state
    plain = copy.deepcopy(model)
    for layer in plain.layers:
        layer.spatial_attention.qkv.lora_b.zero_()
        layer.spatial_attention.out_proj.lora_b.zero_()
    assert (plain(pixels).last_hidden_state - expected).abs().max() > 0.1

    for change in (StreamFormerModel.merge_lora, StreamFormerModel.fold_temporal_projection):
        size = model.num_parameters()
        assert change(model) is model
        assert model.num_parameters() < size
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-10, rtol=0)
        change(model)  # once more changes nothing
        torch.testing.assert_close(model(pixels).last_hidden_state, expected, atol=1e-10, rtol=0)
    model.save_pretrained(tmp_path)
    loaded = StreamFormerModel.from_pretrained(tmp_path)
    assert (loaded.config.lora_rank, loaded.config.fold_temporal_projection) == (0, True)
    assert torch.equal(loaded(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_records_hidden_states_and_both_attentions():
    model = tiny_model(attn_implementation="eager")
    output = model(video(2, 6), output_hidden_states=True, output_attentions=True, output_temporal_attentions=True)
    assert [tuple(h.shape) for h in output.hidden_states] == [(2, 6, 9, 32)] * 4
    assert [tuple(a.shape) for a in output.attentions] == [(12, 4, 9, 9)] * 3
    assert [tuple(a.shape) for a in output.temporal_attentions] == [(18, 4, 6, 6)] * 3
    assert torch.equal(output.temporal_attentions[0], output.temporal_attentions[0].tril())
    torch.testing.assert_close(model.norm(output.hidden_states[-1]), output.last_hidden_state)
    as_tuple = model(video(2, 6), return_dict=False)
    assert torch.equal(as_tuple[0], output.last_hidden_state)
    assert torch.equal(as_tuple[1], output.pooler_output)


def test_without_a_pooling_head():
    model = tiny_model(use_pooling_head=False)
    assert model(video()).pooler_output is None
    assert not any(name.startswith("head") for name, _ in model.named_parameters())


def test_without_lora_the_projections_are_plain():
    assert not any("lora" in name for name, _ in tiny_model(lora_rank=0).named_parameters())


@pytest.mark.parametrize("use_cache", [False, True])
def test_inputs_are_not_changed(use_cache):
    model, pixels = tiny_model(sliding_window=3), video()
    before = pixels.clone()
    output = model(pixels, use_cache=use_cache)
    kept = output.last_hidden_state.clone()
    if use_cache:
        model(pixels, past_key_values=output.past_key_values)
    assert torch.equal(pixels, before)
    assert torch.equal(output.last_hidden_state, kept)


def test_no_state_is_kept_unless_asked():
    model = tiny_model()
    assert model(video()).past_key_values is None
    assert model(video(), use_cache=True).past_key_values.frames_seen == 17


@pytest.mark.parametrize("shape", [(5, 3, 12, 12), (1, 0, 3, 12, 12)])
def test_wrong_pixels_are_refused(shape):
    with pytest.raises(ValueError, match="pixel_values_videos must be"):
        tiny_model()(torch.zeros(shape))


def test_a_frame_of_another_size_does_not_continue_a_stream():
    model = tiny_model()
    cache = model(video(1, 2), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="do not continue this stream"):
        model(video(1, 1, 20, 20), past_key_values=cache)
    after = model(video(1, 1), past_key_values=cache)
    assert after.past_key_values.frames_seen == 3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_autocast_trains_and_streams_in_bfloat16(attention):
    model = tiny_model(sliding_window=4, attn_implementation=attention).train()
    pixels = video(1, 9)
    exact = model(pixels).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixels)
        output.pooler_output.float().square().mean().backward()
        stream, _, cache = streamed(model, pixels, [1, 1, 5, 1, 1])
    assert {states.dtype for states in cache._keys + cache._values} == {torch.bfloat16}
    assert all(p.grad.isfinite().all() for p in model.parameters())
    scale = exact.abs().max()
    assert (output.last_hidden_state - exact).abs().max() < 0.05 * scale
    assert (stream - exact).abs().max() < 0.05 * scale
