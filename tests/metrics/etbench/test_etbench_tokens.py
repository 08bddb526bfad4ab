import json
from pathlib import Path

import pytest

from streamchat_hf.metrics.etbench.etbench_tokens import tokenize

FIXTURES = Path(__file__).parents[2] / "fixtures" / "etbench"
SHARED = Path(__file__).parents[4] / "shared" / "golden" / "etbench"


def test_tokens_are_those_of_the_stanford_tokenizer():
    for folder in (FIXTURES, SHARED):
        if folder.is_dir():
            for case in json.loads((folder / "ptb_tokenize.json").read_text()):
                assert tokenize(case["text"]) == case["output"], case["text"]


# What the Stanford tokenizer of CoreNLP 3.4.1 gives for them, run once.
@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("A man's dog can't find its ball.", "a man 's dog ca n't find its ball"),
        ("He adds 1/2 cup, 2.5kg & 3-4 eggs at 10:30am", "he adds 1/2 cup 2.5 kg & 3-4 eggs at 10:30 am"),
        ("Mr. Smith, the U.S. coach, arrives at 3 p.m.", "mr. smith the u.s. coach arrives at 3 p.m."),
        ("rock 'n' roll of the '90s, 90's style", "rock 'n' roll of the '90s 90 's style"),
        ("y'all cannot go", "y' all can not go"),
        ("it costs $5.99 (50% off) at www.example.com", "it costs $ 5.99 -lrb- 50 % off -rrb- at www.example.com"),
        ("-5 degrees, 12.5-30 sec, 0:15-0:45", "-5 degrees 12.5-30 sec 0:15 -0:45"),
        ("[music] {a} \"he's\" ``so'' -- what?!", "-lsb- music -rsb- -lcb- a -rcb- he 's so what ?!"),
        ("s'mores at 6 o'clock", "s'mores at 6 o'clock"),
        ("well-don't do, isn't,it isn't.", "well-don t do is n't it is n't"),
    ],
)
def test_tokens_of_captions(caption, tokens):
    assert tokenize(caption) == tokens


def test_tokens_of_tokens_of_words_are_the_same():
    text = "the chef pours 2 cups of milk -lrb- cold -rrb- into a well-known bowl"
    assert tokenize(text) == tokenize(tokenize(text)) == text
