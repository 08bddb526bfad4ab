"""Captions as ET-Bench compares them: in lower case, as the tokens of the Penn Treebank without punctuation.

The official script runs the tokenizer of Stanford CoreNLP 3.4.1, which needs Java. These rules give the same for what
captions are made of: words with hyphens, slashes and apostrophes, contractions, numbers and times, abbreviations,
brackets and marks. They do not know all of its lists of abbreviations and nothing of smileys and telephone numbers.
"""

import re

_ABBREVIATIONS = (
    "mr mrs ms dr st sr jr prof gen rep sen gov capt lt col sgt maj rev hon vs al etc inc co corp ltd bros dept mt "
    "ave blvd rd ft jan feb mar apr jun jul aug sep sept oct nov dec mon tue wed thu fri"
)
_TOKEN = re.compile(
    rf"""
      (?P<bracket> [()\[\]{{}}] | -[lr][rsc]b- )
    | (?P<address> (?:https?://|www\.)[^\s()<>"]*[^\s()<>".,;:!?'] | [a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+ )
    | (?P<tag> (?<![a-z0-9])[\#@][a-z_]\w* | </?[a-z]+> )
    | (?P<range> \d*\.\d+-\d+(?:\.\d+)? )
    | (?P<number> (?:(?:(?<![a-z0-9])|(?<=:\d\d))[+-])?\d*(?:[.,:]\d+)+ | (?<![a-z0-9])[+-]\d+ )
    | (?P<abbreviation> (?:{"|".join(_ABBREVIATIONS.split())})\. | ph\.d\. | no\.(?=\s\d) | (?:[a-z]\.)+(?:-[a-z]+)? )
    | (?P<elision> (?<![a-z0-9])'(?:(?:em|n'|til|cause)(?![a-z])|\d\ds) | (?<=[a-z])'n'(?=\s|[a-z]) )
    | (?P<ending> '(?:s|m|d|re|ve|ll|em)(?![a-z0-9]) | '?n't(?![a-z]) )
    | (?P<beginning> 't(?=(?:is|was)\b) | y'(?=all\b) | can(?=not\b) | (?:gon|wan)(?=na\b) | got(?=ta\b) )
    | (?P<negated> [a-z]+?(?=n't(?![a-z])) )
    | (?P<word> [a-z]'[a-z]+(?<!'[sdm]) | ma'am | \w+(?:[-/]\w+|\.[a-z]\w+)* )
    | (?P<marks> [!?]{{2,}} | \*+ | \#{{2,}} | [%$&+=<>~^\\|/_@\#] )
    | (?P<punctuation> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))


def tokenize(caption: str) -> str:
    """Return the tokens of a caption, joined by blanks; what is not ASCII is a blank."""
    text = "".join(character if character.isascii() else " " for character in caption).lower()
    found = (token for token in _TOKEN.finditer(text) if token.lastgroup != "punctuation")
    return " ".join(_BRACKETS.get(token.group(), token.group()) for token in found)
