"""Fitting weights in. What the names mean is tested with whole checkpoints, by the features."""

import pytest
import torch

from streamchat_hf.convert.streamformer_names import AUTHORS, SIGLIP, fit
from streamchat_hf.modeling.configuration_streamformer import StreamFormerConfig
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel

SHAPES = {
    "embeddings.position_embeddings": torch.Size([4, 6]),
    "layers.0.temporal_gate": torch.Size([1]),
    "layers.10.spatial_attention.qkv.weight": torch.Size([18, 6]),
    "head.probe": torch.Size([6]),
    "head.q_proj.bias": torch.Size([6]),
    "head.kv_proj.bias": torch.Size([12]),
}


def theirs() -> dict[str, torch.Tensor]:
    return {
        "embeddings.position_embeddings": torch.randn(1, 4, 6),
        "encoder.layer.0.temporal_attention_gating": torch.tensor(0.5),
        "encoder.layer.10.attention.attention.qkv.weight": torch.randn(18, 6),
        "head.probe": torch.randn(1, 1, 6),
        "head.attention.in_proj_bias": torch.arange(18.0),
    }


def test_shapes_become_ours_and_no_value_changes():
    weights = theirs()
    found = fit(SHAPES, weights, AUTHORS, "it")
    assert {name: tensor.shape for name, tensor in found.items()} == SHAPES
    assert found["layers.0.temporal_gate"].tolist() == [0.5]
    assert found["head.q_proj.bias"].tolist() == list(range(6))
    assert found["head.kv_proj.bias"].tolist() == list(range(6, 18))
    assert torch.equal(found["embeddings.position_embeddings"], weights["embeddings.position_embeddings"][0])


def test_query_key_and_value_are_stacked_in_this_order():
    parts = {f"encoder.layers.3.self_attn.{part}_proj.bias": torch.full((2,), i) for i, part in enumerate("qkv")}
    found = fit({"layers.3.spatial_attention.qkv.bias": torch.Size([6])}, parts, SIGLIP, "it")
    assert found["layers.3.spatial_attention.qkv.bias"].tolist() == [0, 0, 1, 1, 2, 2]


def test_all_kinds_of_offence_are_in_one_line_by_their_names():
    weights = theirs() | {f"more.{i}": torch.ones(1) for i in range(5)}
    del weights["head.attention.in_proj_bias"]
    weights["head.probe"] = torch.ones(1, 1, 5)
    with pytest.raises(ValueError, match="it does not fit StreamFormer") as error:
        fit(SHAPES, weights, AUTHORS, "it")
    assert str(error.value) == (
        "it does not fit StreamFormer: 1 missing (head.attention.in_proj_bias); 1 of another shape (head.probe is "
        "(1, 1, 5), expected (6,)); 5 unknown (more.0, more.1, more.2, …). Take config.json and weights of one and "
        "the same model, whole; download both again if they should be"
    )


@pytest.mark.parametrize("shape", [(), (3,), (18, 1), (2, 9)])
def test_a_part_of_the_head_that_is_too_short_is_no_crash(shape):
    weights = theirs() | {"head.attention.in_proj_bias": torch.ones(shape)}
    with pytest.raises(ValueError, match="head.attention.in_proj_bias is .*, expected \\(18,\\)"):
        fit(SHAPES, weights, AUTHORS, "it")


def test_the_published_file_has_as_many_weights():
    """With a causal mask per layer 329, and 130 119 948 parameters: facts of the authors' class at base size."""
    with torch.device("meta"):
        model = StreamFormerModel(StreamFormerConfig(temporal_position="learned"))
    assert model.num_parameters() == 130_119_948
    with pytest.raises(ValueError, match=f"{329 - 12} missing"):
        fit({name: tensor.shape for name, tensor in model.state_dict().items()}, {}, AUTHORS, "it")
