"""A conversation in pieces is the conversation as the template writes it whole."""

import pytest

from bridge_helpers import FAMILIES, TEMPLATES, VIDEO, says, tokenizer
from live_tokenizers import sentencepiece
from streamchat_hf.bridge.chat import ChatPieces

PLAIN = "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'][0]['text'] + '\\n' }}{% endfor %}"


def video_token(family: str) -> str:
    return VIDEO.get(family, "<|video_pad|>")


def pieces(family: str) -> ChatPieces:
    return ChatPieces(tokenizer(family), video_token(family), TEMPLATES[family])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("system", [None, "You watch a stream."])
def test_the_pieces_make_the_whole(family, system):
    chat = pieces(family)
    video = [tokenizer(family).convert_tokens_to_ids(video_token(family))]
    answers = [tokenizer(family)(text)["input_ids"] for text in ("it is red", "now it is blue")]
    ids = chat.front(system)
    ids += chat.question("say it when it changes", after_frames=False)
    ids += [*chat.opening, *video, *chat.silence, *chat.answer_opening, *answers[0], *chat.answer_closing]
    ids += [*chat.opening, *video, *chat.question("what do you see?", after_frames=True)]
    ids += chat.question("and now?", after_frames=False)
    ids += [*chat.answer_opening, *answers[1], *chat.answer_closing]
    messages = [
        *([] if system is None else [says("system", system)]),
        says("user", "say it when it changes"),
        says("user", "VIDEO"),
        says("assistant", "it is red"),
        says("user", "VIDEO", "what do you see?"),
        says("user", "and now?"),
        says("assistant", "now it is blue"),
    ]
    whole = tokenizer(family).apply_chat_template(messages, chat_template=TEMPLATES[family], tokenize=False)
    if family == "llava_onevision":
        # Its template writes a space after `assistant` in what has been said, but not where an answer is asked for.
        assert "<|im_start|>assistant \n" in whole
        whole = whole.replace("<|im_start|>assistant \n", "<|im_start|>assistant\n")
    assert ids == tokenizer(family)(whole)["input_ids"]


def test_a_template_of_the_tokenizer_is_used_if_there_is_no_other():
    own = tokenizer("qwen2_5_vl")
    own.chat_template = TEMPLATES["qwen2_5_vl"]
    try:
        assert ChatPieces(own, "<|video_pad|>").opening == pieces("qwen2_5_vl").opening
    finally:
        own.chat_template = None


def test_a_piece_has_no_beginning_of_its_own():
    """Tokenizers of SentencePiece's kind put a space before a text."""
    words = sentencepiece()
    words.add_special_tokens({"extra_special_tokens": ["<v>"]})
    template = (
        "{% for m in messages %}{{ '\\nUser: ' if m.role == 'user' else '\\nAssistant: ' }}"
        "{% for part in m.content %}{{ '<v>' if part.type == 'video' else part.text }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\\nAssistant:' }}{% endif %}"
    )
    chat = ChatPieces(words, "<v>", template)
    video = words.convert_tokens_to_ids("<v>")
    assert words.decode([video, *chat.question("it is red", after_frames=True)]) == "<v>it is red"
    assert words.convert_ids_to_tokens(chat.question("it is", after_frames=True))[0][:1] != "▁"


def test_an_answer_ends_as_the_template_closes_it_or_as_the_tokenizer_says():
    own = tokenizer("llava_onevision")
    assert pieces("llava_onevision").end == own.convert_tokens_to_ids("<|im_end|>")
    template = (
        "{% for m in messages %}{{ '[' + m.role + ']' }}{% for part in m.content %}"
        "{{ '<video>' if part.type == 'video' else part.text }}{% endfor %}{{ CLOSING }}{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    for closing in ("'.'", "''"):
        chat = ChatPieces(own, "<video>", template.replace("CLOSING", closing))
        assert chat.end == own.eos_token_id
    assert chat.answer_closing == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PLAIN.replace("{% endfor %}", "{% endfor %}{{ 'end' }}"), "must write messages one behind the other"),
        ("{{ messages[-1]['role'] }}", "must write messages one behind the other"),
        (
            "{% for m in messages %}{{ '[' + m.role + ']' + (m.content | selectattr('type', 'equalto', 'text') | list "
            "| map(attribute='text') | join) + '\\n' }}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
            "does not show a video as <video>",
        ),
    ],
)
def test_a_template_that_a_stream_cannot_go_on_in_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        ChatPieces(tokenizer("llava_onevision"), "<video>", template)


@pytest.mark.parametrize(
    ("first", "order", "message"),
    [
        ("'<' if loop.first else '['", "reverse=True", "writes a first message unlike one behind others"),
        ("'['", "reverse=False", "writes a question before the video"),
    ],
)
def test_a_template_that_begins_or_asks_in_its_own_way_is_refused(first, order, message):
    template = (
        f"{{% for m in messages %}}{{{{ ({first}) + m.role }}}}"
        f"{{% for part in m.content | sort(attribute='type', {order}) %}}"
        "{{ '<video>' if part.type == 'video' else part.text }}"
        "{% endfor %}{{ ']' }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    with pytest.raises(ValueError, match=message):
        ChatPieces(tokenizer("llava_onevision"), "<video>", template)
