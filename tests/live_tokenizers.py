"""Tokenizers that differ in what they merge, for conversations of VideoLLM-online."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from streamchat_hf.data.live_streamworld import build_live_tokenizer

BOS, EOS, V = "<|begin_of_text|>", "<|eot_id|>", "<v>"
# Llama 3's: line breaks belong to the punctuation before them.
LLAMA_3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PROSE = [
    "it is red now.\n\n[",
    "]\nUser: what is it?\n[",
    ",",
    "]\nAssistant: it is a blue square.",
    "\n[",
    "]\nAssistant: it is",
]

# The pieces that Llama 3 cuts the golden conversations into, and their ids in its vocabulary.
LLAMA_3_IDS = {
    **{
        BOS: 128000,
        EOS: 128009,
        V: 128256,
        ".\n\n": 382,
        "]\n": 933,
        "\n": 198,
        "[": 58,
        "]": 60,
        ",": 11,
        ":": 25,
        ".": 13,
    },
    **{".\n": 627, "?": 30, "!": 0, " ...\n": 12515, "A": 32, " mult": 80149, "imodal": 58697, " AI": 15592},
    **{" assistant": 18328, " is": 374, " helping": 10695, " users": 3932, " with": 449, " some": 1063},
    **{" activities": 7640, " Below": 21883, " their": 872, " conversation": 10652, " inter": 96068, "leaved": 4234},
    **{" the": 279, " list": 1160, " of": 315, " video": 2835, " frames": 14418, " received": 4036, " by": 555},
    **{"User": 1502, "Assistant": 72803, " Please": 5321, " conc": 3613, "is": 285, "ely": 989, " narr": 13713},
    **{"ate": 349, " in": 304, " real": 1972, " time": 892, " You": 1472, " look": 1427, " around": 2212},
    **{" pick": 3820, " a": 264, " cup": 10747, " What": 3639, " action": 1957, " Format": 15392, " your": 701},
    **{" answer": 4320, " No": 2360, " extra": 5066, " text": 1495, " output": 2612, " Cut": 20223, " nood": 46895},
    **{"le": 273, " Hi": 21694, " How": 2650, " can": 649, " I": 358, " help": 1520, " you": 499},
}


def llama_3_pieces() -> PreTrainedTokenizerFast:
    """Cuts the golden conversations as Llama 3 does, with its ids; nothing else."""
    backend = Tokenizer(models.WordLevel(LLAMA_3_IDS))
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (BOS, EOS)])
    longest_first = sorted(LLAMA_3_IDS, key=len, reverse=True)
    pattern = "|".join("".join(rf"\x{{{ord(character):x}}}" for character in text) for text in longest_first)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)


def byte_level(pattern: str | None, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Byte pairs, merged within what the pattern matches, or anywhere; a text of its own begins with `BOS`."""
    backend = Tokenizer(models.BPE())
    split = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*split, last])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[BOS, EOS], initial_alphabet=alphabet)
    backend.train_from_iterator(PROSE * 3, trainer)
    first = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, backend.token_to_id(BOS))])
    backend.post_processor = processors.Sequence([first, processors.ByteLevel(trim_offsets=False)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)


def merging() -> PreTrainedTokenizerFast:
    """`]` with a line break is one token, as are `.` and `?` with theirs: Llama 3's kind."""
    return byte_level(LLAMA_3)


def splitting() -> PreTrainedTokenizerFast:
    """`]` and the line break are two tokens: GPT-2's kind. There is no token to begin with."""
    tokenizer = byte_level(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    tokenizer.bos_token = None
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Whole words with the space before them, and one is added at the very beginning: Llama 2's kind."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
    line_break, space = pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.pre_tokenizer = pre_tokenizers.Sequence([line_break, space])
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", BOS, EOS])
    backend.train_from_iterator(PROSE, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token=BOS, eos_token=EOS)


def swallowing() -> PreTrainedTokenizerFast:
    """Merges anything: `]`, line break and the first letters of `Assistant` are one token."""
    return byte_level(None, vocab_size=330)


TOKENIZERS = {
    "merging": merging,
    "splitting": splitting,
    "sentencepiece": sentencepiece,
    "streamworld": build_live_tokenizer,
}
