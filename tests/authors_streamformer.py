"""What the authors' StreamFormer (Go2Heart/StreamFormer at ae3523b) computes, in plain torch, for sizes of any kind.

Names, layouts and defects are theirs: tokens are (B, N, T, D), the position grid of frames that are not square is
transposed, and time embeddings are stretched over clips longer than they are.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import ACT2FN

SIZES = {
    "image_size": 48,
    "patch_size": 16,
    "num_frames": 5,
    "hidden_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "intermediate_size": 224,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-5,
}


class Authors:
    """Weights and configuration as their files have them."""

    def __init__(self, weights: dict[str, torch.Tensor], config: dict):
        self.w, self.c = weights, config

    @torch.no_grad()
    def __call__(self, pixels, times="stretch", transposed=True, causal=True, gated=True, past=None):
        """`hidden_states` (B, N*T, D), `last_hidden_state` (B, T, N, D), `pooler_output` (B, T, D), `past`."""
        (batch, frames), layers = pixels.shape[:2], self.c["num_hidden_layers"]
        first = 0 if past is None else past[0][0].shape[2]
        x = self._patches(pixels, transposed) + self._times(first, frames, times)
        hidden, past = [x.flatten(1, 2)], past or [None] * layers
        for i in range(layers):
            x, past[i] = self._block(x, f"encoder.layer.{i}.", past[i], causal, gated)
            hidden.append(x.flatten(1, 2))
        x = self._norm(x, "post_layernorm").transpose(1, 2)
        pooled = self._pool(x.flatten(0, 1)).unflatten(0, (batch, frames))
        return {"hidden_states": hidden, "last_hidden_state": x, "pooler_output": pooled, "past": past}

    def _patches(self, pixels, transposed):
        size, grid = self.c["patch_size"], self.c["image_size"] // self.c["patch_size"]
        name = "embeddings.patch_embeddings.projection"
        x = nn.functional.conv2d(pixels.flatten(0, 1), self.w[f"{name}.weight"], self.w[f"{name}.bias"], stride=size)
        rows, columns = x.shape[2:]
        positions = self.w["embeddings.position_embeddings"]
        if (rows, columns) != (grid, grid):
            stored = positions.transpose(1, 2).unflatten(2, (grid, grid))
            wanted = (columns, rows) if transposed else (rows, columns)
            resized = nn.functional.interpolate(stored, wanted, mode="bicubic", antialias=True)
            positions = resized.flatten(2).transpose(1, 2)
        return (x.flatten(2).transpose(1, 2) + positions).unflatten(0, pixels.shape[:2]).transpose(1, 2)

    def _times(self, first, frames, policy):
        stored = self.w["embeddings.time_embeddings"]
        if policy == "stretch" and frames > stored.shape[1]:
            return nn.functional.interpolate(stored.transpose(1, 2), size=frames, mode="nearest").transpose(1, 2)
        return stored[:, torch.arange(first, first + frames).clamp(max=stored.shape[1] - 1)]

    def _block(self, x, prefix, past, causal, gated):
        batch, patches, frames, _ = x.shape
        h = self._norm(x, prefix + "temporal_layernorm").flatten(0, 1)
        q, k, v = self._heads(self._linear(h, prefix + "temporal_attention.attention.qkv"))
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        if causal:
            future = torch.ones(frames, k.shape[2]).triu(k.shape[2] - frames + 1).bool()
            scores = scores.masked_fill(future, float("-inf"))
        h = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = self._linear(self._linear(h, prefix + "temporal_attention.output.dense"), prefix + "temporal_dense")
        gate = self.w[prefix + "temporal_attention_gating"].tanh() if gated else 0
        x = (x.flatten(0, 1) + gate * h).unflatten(0, (batch, patches)).transpose(1, 2)

        h = self._norm(x, prefix + "layernorm_before").flatten(0, 1)
        q, s, u = self._heads(self._linear(h, prefix + "attention.attention.qkv"))
        h = ((q @ s.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ u).transpose(1, 2).flatten(2)
        x = x + self._linear(h, prefix + "attention.output.dense").unflatten(0, (batch, frames))
        h = self._linear(self._norm(x, prefix + "layernorm_after"), prefix + "intermediate.dense")
        x = x + self._linear(ACT2FN[self.c["hidden_act"]](h), prefix + "output.dense")
        return x.transpose(1, 2), (k, v)

    def _pool(self, x):
        w, b = self.w["head.attention.in_proj_weight"], self.w["head.attention.in_proj_bias"]
        probe = self.w["head.probe"].expand(len(x), -1, -1)
        parts = zip((probe, x, x), w.chunk(3), b.chunk(3), strict=True)
        q, k, v = (self._split(nn.functional.linear(*part)) for part in parts)
        h = ((q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(1, 2).flatten(2)
        h = self._linear(h, "head.attention.out_proj")
        act = ACT2FN[self.c["hidden_act"]]
        h = h + self._linear(act(self._linear(self._norm(h, "head.layernorm"), "head.mlp.fc1")), "head.mlp.fc2")
        return h[:, 0]

    def _linear(self, x, name):
        y = nn.functional.linear(x, self.w[f"{name}.weight"], self.w[f"{name}.bias"])
        if f"{name}_lora_a.weight" in self.w:
            y = y + x @ self.w[f"{name}_lora_a.weight"].T @ self.w[f"{name}_lora_b.weight"].T
        return y

    def _norm(self, x, name):
        size, eps = (self.c["hidden_size"],), self.c["layer_norm_eps"]
        return nn.functional.layer_norm(x, size, self.w[f"{name}.weight"], self.w[f"{name}.bias"], eps)

    def _heads(self, qkv):
        return (self._split(part) for part in qkv.chunk(3, -1))

    def _split(self, x):
        return x.unflatten(-1, (self.c["num_attention_heads"], -1)).transpose(1, 2)


def authors_outputs(authors: Authors, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All that the golden file holds, under its names."""
    main = authors(inputs["pixel_values"])
    found = {"main.embeddings": main["hidden_states"][0]}
    found |= {f"main.hidden_states.{i}": hidden for i, hidden in enumerate(main["hidden_states"])}
    runs = {"main": main}
    for tag in ("short", "long", "hires", "nonsquare", "single"):
        runs[tag] = authors(inputs[f"pixel_values_{tag}"])
    found |= {f"{tag}.global": run["pooler_output"][:, -1] for tag, run in runs.items()}
    runs["gates_zero"] = authors(inputs["pixel_values"], gated=False)
    runs["bidirectional"] = authors(inputs["pixel_values"], causal=False)
    runs["CLAMPED_long"] = authors(inputs["pixel_values_long"], times="clamp")
    runs["stream_1x"] = _streamed(authors, inputs["pixel_values"], 1)
    runs["PATCHED_stream_long_1x"] = _streamed(authors, inputs["pixel_values_long"], 1)
    for i, (key, value) in enumerate(runs["stream_1x"]["past"]):
        found |= {f"stream_1x.final_key.{i}": key, f"stream_1x.final_value.{i}": value}
    for tag, run in runs.items():
        found |= {f"{tag}.{name}": run[name] for name in ("last_hidden_state", "pooler_output")}
    return found | {
        "stream_chunked.last_hidden_state": _streamed(authors, inputs["pixel_values"], 2)["last_hidden_state"]
    }


def _streamed(authors, pixels, size):
    outputs, past = [], None
    for chunk in pixels.split(size, 1):
        outputs.append(authors(chunk, times="clamp", past=past))
        past = outputs[-1]["past"]
    names = ("last_hidden_state", "pooler_output")
    return {name: torch.cat([output[name] for output in outputs], 1) for name in names} | {"past": past}


def write_restated_case(like: Path, folder: Path) -> None:
    """A case as the golden ones are: a checkpoint of `SIZES` with the names of another's, inputs and outputs."""
    config = json.loads((like / "config.json").read_text()) | SIZES
    make = torch.Generator().manual_seed(7)
    theirs = {name: tensor for name, tensor in load_file(like / "model.safetensors").items() if ".mask" not in name}
    beside = {name: tensor for name, tensor in theirs.items() if not name.startswith("encoder.")}
    block = {name.split(".", 3)[3]: tensor for name, tensor in theirs.items() if name.startswith("encoder.layer.0.")}
    for i in range(SIZES["num_hidden_layers"]):
        beside |= {f"encoder.layer.{i}.{name}": tensor for name, tensor in block.items()}
    sizes = {64: 96, 192: 3 * 96, 160: 224, 8: 16}  # there → here: D, 3D, MLP, patch
    weights = {}
    for name, tensor in beside.items():
        shape = [sizes.get(size, size) for size in tensor.shape]
        if name.endswith("position_embeddings"):
            shape[1] = (48 // 16) ** 2
        elif name.endswith("time_embeddings"):
            shape[1] = SIZES["num_frames"]
        value = torch.randn(shape, generator=make)
        fan = value[0].numel() if value.ndim in (2, 4) else 16
        scale = value * (0.1 if "lora" in name else 0.7 * fan**-0.5)
        weights[name] = 1 + scale if "norm" in name and name.endswith("weight") else scale
        if name.endswith("gating"):
            weights[name] = 0.35 + 0.4 * value
    side, wide, frames = 48, 48 + 16, SIZES["num_frames"]
    clips = {
        "": (frames, side, side),
        "_short": (frames - 2, side, side),
        "_long": (frames + 3, side, side),
        "_hires": (3, side + 32, side + 32),
        "_nonsquare": (2, side, wide),
        "_single": (1, side, side),
    }
    inputs = {
        f"pixel_values{tag}": torch.randn(2, count, 3, height, width, generator=make)
        for tag, (count, height, width) in clips.items()
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    save_file(inputs, folder / "inputs.safetensors")
    outputs = authors_outputs(Authors(weights, config), inputs)
    save_file({name: tensor.contiguous().clone() for name, tensor in outputs.items()}, folder / "outputs.safetensors")
