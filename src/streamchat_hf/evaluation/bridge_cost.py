"""What the first token of an answer costs a bridged model, in time and memory, against the frames it has seen.

One conversation for each way: a frame a second, a question every so many frames. The slides' plot: without compression
the latency grows with the stream, with it the latency is flat once the memory is full.
"""

import platform
from collections.abc import Iterator, Sequence
from statistics import median
from time import thread_time
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerFast

from streamchat_hf.bridge import StreamBridge
from streamchat_hf.bridge.language_input import LanguageInput
from streamchat_hf.bridge.rounds import Frame
from streamchat_hf.evaluation.timing import machine_name, one_thread

QUESTION = "what now ?"
WORDS = ["<|im_start|>", "<|im_end|>", "<video>", "<image>", "<unk>", "user", "assistant", *QUESTION.split()]
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}{% for part in message['content'] %}"
    "{{ '<video>' if part['type'] == 'video' else part['text'] }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}{% endif %}"
)
# A frame is this many visual tokens, in rows and columns.
GRID = (2, 2)
# The language model of the benchmark: small enough for thousands of frames on a CPU.
TEXT = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
}
VISION = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 16,
    "patch_size": 4,
    "vision_use_head": False,
}
# Everything fits: nothing is compressed.
UNLIMITED = 1 << 30
WAYS = ("reuse", "re-prefill")


class WordProcessor:
    """A tokenizer that knows a few words, and how frames are made ready."""

    def __init__(self) -> None:
        backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|im_end|>")
        self.tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<video>", "<image>"]})
        self.chat_template, self.video_processor = TEMPLATE, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def random_bridge(max_length: int, reuse: bool = True) -> StreamBridge:
    """A bridged LLaVA-OneVision of some 320,000 random weights, with four visual tokens a frame."""
    torch.manual_seed(0)
    processor = WordProcessor()
    config = LlavaOnevisionConfig(
        vision_config=VISION,
        text_config={**TEXT, "vocab_size": len(WORDS), "tie_word_embeddings": False},
        video_token_id=WORDS.index("<video>"),
        image_token_id=WORDS.index("<image>"),
        image_grid_pinpoints=[[16, 16]],
        tie_word_embeddings=False,
    )
    return StreamBridge(LlavaOnevisionForConditionalGeneration(config).eval(), processor, None, max_length, reuse)


def measure_bridge_cost(
    frames: int = 2000,
    every: int = 50,
    max_lengths: Sequence[int] = (512, 1024, 2048),
    answer_tokens: int = 4,
    repeats: int = 3,
) -> dict[str, Any]:
    """Lets bridged models watch, asks them again and again, and times the first token of every answer.

    Args:
        frames: how many frames each watches.
        every: a question after the first frame and after every so many.
        max_lengths: of the input; each is measured, and no limit at all beside them.
        answer_tokens: how long answers are.
        repeats: how often each conversation is held.

    Returns:
        `rows`, one for each way, `max_length` (`None`: uncompressed) and number of `frames_seen`: the median
        `first_token_seconds` of CPU time from the question to the first token, all of the `seconds`, the
        `input_tokens`, how many of them were read anew (`read_tokens`), and the `bytes` of visual tokens, keys and
        values; `settings` and `versions`.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    with one_thread():
        list(_conversation(random_bridge(UNLIMITED), 20, 10, answer_tokens))  # a warm-up
        for _ in range(repeats):
            for way in WAYS:
                for longest in [*max_lengths, None]:
                    bridge = random_bridge(UNLIMITED if longest is None else longest, way == "reuse")
                    for seconds, row in _conversation(bridge, frames, every, answer_tokens):
                        known = rows.setdefault((way, longest, row["frames_seen"]), {**row, "seconds": []})
                        known["seconds"].append(seconds)
    table = [
        {"mode": way, "max_length": longest, "first_token_seconds": median(row["seconds"]), **row}
        for (way, longest, _), row in rows.items()
    ]
    settings: dict[str, Any] = {"frames": frames, "every": every, "answer_tokens": answer_tokens, "repeats": repeats}
    settings |= {"tokens_per_frame": GRID[0] * GRID[1], "machine": machine_name(torch.device("cpu"))}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"settings": settings, "versions": versions, "rows": table}


def _conversation(
    bridge: StreamBridge, frames: int, every: int, answer_tokens: int
) -> Iterator[tuple[float, dict[str, Any]]]:
    """After each question the seconds to the first token, and what the memory was like."""
    buffer, random = bridge.new_cache(), torch.Generator().manual_seed(1)
    reads: list[int] = []
    forward = bridge.family.forward

    def counted(part: LanguageInput, past: Any) -> torch.Tensor:
        reads.append(len(part))
        return forward(part, past)

    bridge.family.forward = counted  # type: ignore[method-assign]
    ends = {"min_new_tokens": answer_tokens, "eos_token_id": bridge.chat.end}  # all answers are as long
    voice = bridge.voice(max_new_tokens=answer_tokens, do_sample=False, **ends)
    size = GRID[0] * GRID[1], bridge.config.text_config.hidden_size
    for number in range(1, frames + 1):
        buffer.see([Frame(float(number), torch.randn(size, generator=random), GRID)])
        if number != 1 and number % every:
            continue
        clock = bridge.open_clock(None, buffer, None, 10.0)
        clock.ask(1000 * number)
        row: dict[str, Any] = {}
        begin = thread_time()

        def spoke(token: int, now: int, row: dict[str, Any] = row, begin: float = begin) -> bool:
            if not row:
                row |= {"seconds": thread_time() - begin, "input_tokens": len(buffer.read or ())}
                row |= {"read_tokens": reads[-1], "bytes": buffer.visual_bytes}
            return False

        buffer.ask(QUESTION)
        bridge.speak(buffer, clock, voice, spoke)
        yield row.pop("seconds"), {"frames_seen": number, **row}
