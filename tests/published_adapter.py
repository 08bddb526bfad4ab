"""A tiny VideoLLM-online adapter of exactly the published layout, as the authors' code and PEFT write it."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, SiglipVisionConfig, SiglipVisionModel

from live_tokenizers import merging
from videollm_online_helpers import TEXT, VISION

HIDDEN, WIDTH, RANK = TEXT["hidden_size"], VISION["hidden_size"], 4
REGEX = "model.*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)|lm_head$"
SAID = {"r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.05, "target_modules": REGEX, "task_type": "CAUSAL_LM"}


def language_model(vocabulary: int, tied: bool = False) -> LlamaForCausalLM:
    sizes = {name: value for name, value in TEXT.items() if name != "model_type"}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    return LlamaForCausalLM(
        LlamaConfig(**sizes | ids | {"vocab_size": vocabulary, "tie_word_embeddings": tied})
    ).eval()


def published(folder, tied=False, **said):
    """Writes base, SigLIP and adapter as the authors' code does; gives what PEFT makes of them."""
    tokenizer = merging()
    llama = language_model(len(tokenizer), tied)
    llama.save_pretrained(folder / "base")
    tower = SiglipVisionModel(SiglipVisionConfig(**{k: v for k, v in VISION.items() if k != "model_type"})).eval()
    tower.save_pretrained(folder / "siglip")

    llama.connector = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN))
    llama.name_or_path = str(folder / "base")
    lora = LoraConfig(**SAID | said, modules_to_save=["connector"], init_lora_weights=False)
    adapted = get_peft_model(llama, lora).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder / "adapter")
    tokenizer.add_tokens(["<v>"], special_tokens=True)
    tokenizer.save_pretrained(folder / "adapter")
    return adapted, tower, tokenizer
