"""Tiny video LLMs of the families that are bridged, built from configurations, and tokenizers that chat as theirs."""

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from streamchat_hf.bridge import StreamBridge

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
VIDEO, IMAGE = {"llava_onevision": "<video>"}, {"llava_onevision": "<image>"}
# LLaVA-OneVision's own, of llava-hf/llava-onevision-qwen2-7b-ov-hf.
LLAVA_TEMPLATE = """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}\
{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ '\\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
# Qwen2.5-VL's, without counting pictures; Qwen3-VL's has no system prompt of its own.
QWEN_TEMPLATE = """\
{% for message in messages %}DEFAULT{{'<|im_start|>' + message['role'] + '\\n'}}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for content in message['content'] %}\
{% if content['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\\n'}}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
DEFAULT = """\
{% if loop.first and message['role'] != 'system' %}\
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"""
TEMPLATES = {
    "llava_onevision": LLAVA_TEMPLATE,
    "qwen2_5_vl": QWEN_TEMPLATE.replace("DEFAULT", DEFAULT),
    "qwen3_vl": QWEN_TEMPLATE.replace("DEFAULT", ""),
}
FAMILIES = tuple(TEMPLATES)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
M_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "out_hidden_size": 32,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
# Height and width of frames.
SIZES = {"llava_onevision": (24, 24), "qwen2_5_vl": (16, 24), "qwen3_vl": (16, 24)}


class SimpleProcessor:
    """A processor of transformers as far as it can be had without torchvision."""

    def __init__(self, family: str):
        self.tokenizer, self.chat_template = tokenizer(family), TEMPLATES[family]
        self.video_processor = settings(family)


@cache
def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the family's special tokens, some 300 tokens."""
    video, image = VIDEO.get(family, "<|video_pad|>"), IMAGE.get(family, "<|image_pad|>")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[*SPECIAL, video, image],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["system user assistant what do you see and now where is it why"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def settings(family: str) -> dict:
    """Of its video processor, for frames of SIZES."""
    height, width = SIZES[family]
    square = {"height": height, "width": width}
    pixels = {"shortest_edge": 64, "longest_edge": 16 * 24 * (2 if family == "qwen3_vl" else 1)}
    return {"size": square if family == "llava_onevision" else pixels, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def tiny_model(family: str, seed: int = 0):
    """A model of a family with random weights, whose answers vary."""
    torch.manual_seed(seed)
    tokens = tokenizer(family)
    ids = {
        "video_token_id": tokens.convert_tokens_to_ids(VIDEO.get(family, "<|video_pad|>")),
        "image_token_id": tokens.convert_tokens_to_ids(IMAGE.get(family, "<|image_pad|>")),
    }
    text = TEXT | {"vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id, "bos_token_id": None}
    if family == "llava_onevision":
        vision = {"model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "image_size": 24}
        vision |= {"num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 4, "vision_use_head": False}
        config = LlavaOnevisionConfig(
            vision_config=vision,
            text_config=text | {"model_type": "qwen2"},
            image_grid_pinpoints=[[24, 24]],
            **ids,
            tie_word_embeddings=False,
        )
        model = LlavaOnevisionForConditionalGeneration(config)
    else:
        marks = {
            "vision_start_token_id": tokens.convert_tokens_to_ids("<|vision_start|>"),
            "vision_end_token_id": tokens.convert_tokens_to_ids("<|vision_end|>"),
        }
        text |= {"rope_parameters": M_ROPE}
        if family == "qwen2_5_vl":
            vision = QWEN_VISION | {"window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2}
            config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids, **marks)
            model = Qwen2_5_VLForConditionalGeneration(config)
        else:
            vision = QWEN_VISION | {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
            config = Qwen3VLConfig(vision_config=vision, text_config=text | {"head_dim": 8}, **ids, **marks)
            model = Qwen3VLForConditionalGeneration(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)  # otherwise all tokens are alike
        for name, weight in model.named_parameters():
            if "norm" not in name and weight.ndim > 1 and "embed_tokens" not in name:
                weight.mul_(4)
    return model.eval()


def tiny_bridge(family: str = "llava_onevision", seed: int = 0, **options) -> StreamBridge:
    """A tiny model, bridged."""
    return StreamBridge(tiny_model(family, seed), SimpleProcessor(family), **options)


def frames(family: str, count: int, seed: int = 0, begin: float = 0.0) -> list[tuple[float, torch.Tensor]]:
    """Random frames of one a second, ready for the model."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, *SIZES[family], generator=generator)
    return [(begin + index, image) for index, image in enumerate(pixels)]


class Script:
    """A logits processor that listens, and lets answers be what they are to be.

    Args:
        answers: the tokens of each answer, the one that ends it included; later ones are the model's own.

    Attributes:
        scores: `(vocabulary,)` before each token.
    """

    def __init__(self, *answers: list[int]):
        self._answers, self._turn = answers, -1
        self.scores: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.scores.append(scores[0].clone())
        said = input_ids.shape[1]
        self._turn += said == 0
        if self._turn >= len(self._answers):
            return scores
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([self._answers[self._turn][said]]), 0.0)


def answer_ids(family: str, text: str) -> list[int]:
    """An answer that ends by itself."""
    return tokenizer(family)(text + "<|im_end|>")["input_ids"]


def simulated(bridge, buffer, at: float = 0.0):
    """A clock of four tokens a second, without frames."""
    clock = bridge.open_clock(None, buffer, None, 4.0)
    clock.ask(round(at * 1000))
    return clock


def answer(bridge, buffer, *processors, max_new_tokens: int = 5) -> list[int]:
    """What the bridge answers."""
    said: list[int] = []
    voice = bridge.voice(logits_processor=list(processors), max_new_tokens=max_new_tokens, do_sample=False)
    bridge.speak(buffer, simulated(bridge, buffer), voice, lambda token, now: said.append(token) or False)
    return said


# What the plain model is given, by the family: written anew, from what its processor and its video processor do.


def video_text(family: str, times: list[float]) -> str:
    """What stands for a video in the text, frame by frame."""
    height, width = SIZES[family]
    if family == "llava_onevision":
        patches = height // 4
        return "<video>" * (len(times) * ((patches + 1) // 2) ** 2 + 1)
    tokens = "<|video_pad|>" * (height // 8 * (width // 8))
    if family == "qwen2_5_vl":
        return tokens * len(times)
    return "".join(f"<{time:.1f} seconds><|vision_start|>{tokens}<|vision_end|>" for time in times)


def plain_inputs(family: str, messages: list[dict], videos: list[list[tuple[float, torch.Tensor]]]) -> dict:
    """The plain model's inputs for a whole conversation with videos, every frame twice for a temporal patch."""
    tokens, placeholder = tokenizer(family), VIDEO.get(family, "<|video_pad|>")
    text = tokens.apply_chat_template(messages, chat_template=TEMPLATES[family], tokenize=False)
    if family == "llava_onevision":  # its template writes a space here, but not where an answer is asked for
        text = text.replace("<|im_start|>assistant \n", "<|im_start|>assistant\n")
    first, *rest = text.split(placeholder)
    for video, part in zip(videos, rest, strict=True):
        first += video_text(family, [time for time, _ in video]) + part
    ids = tokens(first, return_tensors="pt")["input_ids"]
    if family == "llava_onevision":
        pixels = torch.stack([torch.stack([image for _, image in video]) for video in videos])
        return {"input_ids": ids, "pixel_values_videos": pixels}
    height, width = SIZES[family]
    patches = [
        torch.cat([part[:, None], part[:, None]], dim=1).flatten()  # (C, 2, 4, 4): both of a temporal patch are alike
        for video in videos
        for _, image in video
        for block in in_blocks(image, 8)
        for part in in_blocks(block, 4)
    ]
    inputs = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == tokens.convert_tokens_to_ids(placeholder)).int() * 2,
        "pixel_values_videos": torch.stack(patches),
        "video_grid_thw": torch.tensor([[len(video), height // 4, width // 4] for video in videos]),
    }
    return inputs | ({"second_per_grid_ts": torch.ones(len(videos))} if family == "qwen2_5_vl" else {})


def in_blocks(image: torch.Tensor, side: int) -> list[torch.Tensor]:
    """Square parts of an image `(C, H, W)`, row by row."""
    rows, columns = (length // side for length in image.shape[1:])
    return [
        image[:, side * r : side * (r + 1), side * c : side * (c + 1)] for r in range(rows) for c in range(columns)
    ]


def says(role: str, *content: str) -> dict:
    """A message; `VIDEO` in it is a video."""
    parts = [{"type": "video"} if text == "VIDEO" else {"type": "text", "text": text} for text in content]
    return {"role": role, "content": parts}
