"""What multitask training leaves behind is the vision tower of a StreamChat and of a LLaVA, as it stands."""

import numpy as np
import pytest
import torch
import yaml
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, Qwen2ForCausalLM

from multitask_helpers import batch
from streamchat_hf import StreamChatForConditionalGeneration, StreamChatProcessor, StreamFormerVideoProcessor
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.training.multitask_rounds import TaskData
from streamchat_hf.training.multitask_trainer import train
from streamchat_hf.vision_tower_streamformer import StreamFormerVisionModel

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def final(tmp_path_factory):
    """The `final` folder of a short run on random clips."""
    folder = tmp_path_factory.mktemp("multitask")
    recipe = {
        "trainer": "multitask",
        "output_dir": str(folder / "run"),
        "model_config": {**SIZES, "image_size": 16, "patch_size": 8, "lora_rank": 2, "sliding_window": 6},
        "text_config": {**SIZES, "projection_size": 16, "max_position_embeddings": 8},
        "action_templates": ["{}"],
        "trained": "everything",
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "learning_rate": 1.0e-2,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    data = {
        task: TaskData(range(4), lambda numbers, task=task: batch(task, videos=len(numbers), seed=numbers[0]))
        for task in ("temporal_localization", "temporal_grounding")
    }
    return train(folder / "recipe.yaml", data=data)


def text_model(tokenizer) -> Qwen2ForCausalLM:
    special = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **SIZES, **special, initializer_range=0.2)
    )


def test_a_streamchat_takes_it_and_answers_while_it_watches(final):
    tokenizer = build_tokenizer()
    model = StreamChatForConditionalGeneration.from_backbones(
        text_model(tokenizer), final, cross_attention_layers=[0, 1], gate_init=0.7
    ).eval()
    tower = model.model.vision_tower
    trained = type(tower).from_pretrained(final)
    assert all(layer.temporal_gate.item() != 0 for layer in trained.layers)  # it has learned
    assert tower.state_dict().keys() == trained.state_dict().keys()
    assert all(torch.equal(tower.state_dict()[name], weight) for name, weight in trained.state_dict().items())

    video_processor = StreamFormerVideoProcessor.from_pretrained(final)
    processor = StreamChatProcessor(video_processor, tokenizer, chat_template=tokenizer.chat_template)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "what do you see ?"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )

    def answer(seed: int):
        random = np.random.default_rng(seed)
        clip = [(k / 2, random.integers(0, 255, (20, 24, 3), dtype=np.uint8)) for k in range(12)]
        return model.generate(
            **inputs,
            frames=processor.stream(clip),
            start_time=1.0,
            tokens_per_second=2,
            max_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            return_dict_in_generate=True,
            output_logits=True,
        )

    said, other = answer(0), answer(1)
    assert said.newest_frame_times[0].tolist() == [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    assert said.sequences.shape[1] == inputs["input_ids"].shape[1] + 6
    assert (torch.stack(said.logits) - torch.stack(other.logits)).abs().max() > 1e-3  # it looks


def test_a_llava_takes_it_and_answers(final):
    tokenizer = build_tokenizer()
    text = text_model(tokenizer)
    trained = StreamFormerVisionModel.from_pretrained(final, use_pooling_head=False)
    config = LlavaConfig(
        vision_config=trained.config,
        text_config=text.config,
        image_token_index=tokenizer.unk_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(trained.state_dict())
    question = tokenizer("what do you see ?", return_tensors="pt")["input_ids"]
    input_ids = torch.cat([torch.full((1, 3 * 4), tokenizer.unk_token_id), question], dim=1)  # 3 frames of 4 patches
    clip = torch.randn(1, 3, 3, 16, 16)
    said = model.generate(input_ids=input_ids, pixel_values=clip, max_new_tokens=4, do_sample=False, eos_token_id=None)
    assert said.shape == (1, input_ids.shape[1] + 4)
