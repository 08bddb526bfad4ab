"""What is merged is what was trained, also where head and embedding are one matrix."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from streamchat_hf import StreamChatForConditionalGeneration, tiny_checkpoint
from streamchat_hf.training.adapters import untie_adapted_ends

IDS = torch.arange(5, 17)[None]


def tied_model():
    model = StreamChatForConditionalGeneration.from_pretrained(tiny_checkpoint()).eval()
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return model


@pytest.mark.parametrize(
    ("targets", "stays_tied"), [(["v_proj"], True), (["v_proj", "lm_head"], False), (["embed_tokens"], False)]
)
def test_the_merged_model_is_the_adapted_one(tmp_path, targets, stays_tied):
    model, lora = tied_model(), LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    with torch.no_grad():
        before = model(IDS).logits
    torch.manual_seed(0)
    untie_adapted_ends(model, lora)
    adapted = get_peft_model(model, lora).eval()
    with torch.no_grad():
        expected = adapted(IDS).logits
    assert not torch.allclose(expected, before, atol=1e-2)
    adapted.merge_and_unload().save_pretrained(tmp_path)
    merged = StreamChatForConditionalGeneration.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-3, rtol=1e-4)
    assert merged.config.tie_word_embeddings == stays_tied
