"""A VideoLLM-online that talks, and what its streamed forward passes are compared with."""

import torch

from live_tokenizers import merging
from streamchat_hf import StreamFormerVideoProcessor, VideoLLMOnlineProcessor
from videollm_online_helpers import pixels, tiny_model


def talkative_model(seed: int = 0, **changes):
    """A random model that is sometimes silent and whose answers vary."""
    model = tiny_model(seed, **changes)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3)
        model.model.connector[2].weight.mul_(6)
    return model


class Spy:
    """Every forward pass: how many tokens it reads after how many, and its logits, by their place in the sequence."""

    def __init__(self, model):
        self.read: list[tuple[int, int]] = []
        self.logits: dict[int, torch.Tensor] = {}
        self.rows = 0
        forward = model.forward

        def spied(*args, inputs_embeds, past_key_values, logits_to_keep, **kwargs):
            begin, length = past_key_values.get_seq_length() + past_key_values.forgotten, inputs_embeds.shape[1]
            self.read.append((begin, length))
            options = {"past_key_values": past_key_values, "logits_to_keep": logits_to_keep}
            output = forward(*args, inputs_embeds=inputs_embeds, **options, **kwargs)
            places = [length - 1] if isinstance(logits_to_keep, int) else logits_to_keep.tolist()
            self.rows += output.logits.shape[1]
            self.logits |= {begin + place: row for place, row in zip(places, output.logits[0], strict=True)}
            return output

        model.forward = spied


def whole(model, sequences: torch.Tensor, count: int) -> torch.Tensor:
    """Logits `(L, vocabulary)` of one forward pass over a conversation."""
    with torch.no_grad():
        return type(model).forward(model, input_ids=sequences, pixel_values_videos=pixels(count)[None]).logits[0]


def live_processor(system_prompt: str = "look .") -> VideoLLMOnlineProcessor:
    """A processor for frames of 32 x 32."""
    video_processor = StreamFormerVideoProcessor(size={"height": 32, "width": 32})
    return VideoLLMOnlineProcessor(video_processor, merging(), frame_num_tokens=5, system_prompt=system_prompt)


def live_model(processor: VideoLLMOnlineProcessor):
    """A model for it whose answers vary."""
    text = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": processor.tokenizer.eos_token_id}
    return talkative_model(text_config=text | {"pad_token_id": None}, **processor.token_ids())
