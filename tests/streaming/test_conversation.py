"""What is read before each answer: the chat template's own rendering, and nothing twice."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session_helpers import SYSTEM, chat_processor, chat_tokenizer
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.streaming.conversation import Conversation

PROCESSOR = chat_processor()
TOKENIZER = chat_tokenizer()
END = TOKENIZER.eos_token_id
TURNS = [("what do you see ?", "a red circle"), ("and now ?", "it is\n\n blue ."), ("日本語 ?", "🙂 where"), ("x", "")]
NAMES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz 0123456789.,?!\n<|>_é日🙂"


def tokens(text):
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def whole(messages, prompt=False):
    return tokens(PROCESSOR.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False))


def hold(conversation, turns):
    """All tokens of a conversation whose answers end by themselves."""
    said = []
    for question, answer in turns:
        said += conversation.ask(question)
        ids = [*tokens(answer), END]
        conversation.answered(answer, ids)
        said += ids
    return said


@pytest.mark.parametrize("system", [None, SYSTEM, ""])
def test_a_conversation_is_the_templates_own_rendering(system):
    conversation = Conversation(PROCESSOR, system)
    said = hold(conversation, TURNS)
    messages = [{"role": "system", "content": system}] if system is not None else []
    for question, answer in TURNS:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert conversation.messages == messages
    # What the template puts after the last answer's end is read with the next question.
    assert [*said, *tokens("\n")] == whole(messages)
    assert [*said, *conversation.ask("why ?")] == whole([*messages, {"role": "user", "content": "why ?"}], prompt=True)


@given(st.lists(st.tuples(st.text(NAMES, max_size=20), st.text(NAMES, max_size=20)), min_size=1, max_size=4))
def test_whatever_is_said(turns):
    # What looks like a special token is one, in a prompt as in an answer: only that it ends a turn is kept out here.
    turns = [(q, a.replace("<|im_end|>", "").replace("<|endoftext|>", "")) for q, a in turns]
    messages = []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    assert [*hold(Conversation(PROCESSOR), turns), *tokens("\n")] == whole(messages)


@pytest.mark.parametrize("turns", [1, 3])
def test_an_answer_that_was_cut_off_is_closed_once(turns):
    conversation = Conversation(PROCESSOR, SYSTEM)
    said = hold(conversation, TURNS[: turns - 1])
    said += conversation.ask("what do you see ?")
    cut = tokens("a red cir")
    conversation.answered("a red cir", cut)
    prompt = conversation.ask("and now ?")
    assert prompt[0] == END and prompt.count(END) == 2  # of the answer that was cut off, and of the question
    assert [*said, *cut, *prompt] == whole(conversation.messages, prompt=True)


def test_an_answer_that_ended_otherwise_is_closed_as_the_template_does():
    conversation = Conversation(PROCESSOR)
    conversation.ask("why ?")
    conversation.answered("because", [*tokens("because"), TOKENIZER.pad_token_id])
    assert conversation.ask("and now ?")[0] == END


@pytest.mark.parametrize("word", ["streamchatanswer", "streamchatanswerstreamchatanswer", "astreamchatanswe r"])
def test_no_word_is_taken_for_an_answer(word):
    conversation = Conversation(PROCESSOR)
    said = hold(conversation, [(word, f"{word} {word}"), (f"is {word} a word ?", word)])
    assert [*said, *conversation.ask(f"why {word} ?")] == whole(conversation.messages, prompt=True)


def test_the_system_prompt_is_counted_as_it_is_read():
    conversation = Conversation(PROCESSOR, SYSTEM)
    first = conversation.ask("why ?")
    alone = whole([{"role": "system", "content": SYSTEM}])
    assert conversation.system_tokens == len(alone) and first[: len(alone)] == alone
    assert Conversation(PROCESSOR).system_tokens == 0


@pytest.mark.parametrize("system", [None, SYSTEM])
def test_forgetting_the_oldest_turn_keeps_the_rest(system):
    conversation = Conversation(PROCESSOR, system)
    hold(conversation, TURNS)
    before = conversation.messages.copy()
    prompt = conversation.ask("why ?")
    conversation.forget_oldest()
    first = int(system is not None)
    assert conversation.messages == [*before[:first], *before[first + 2 :], {"role": "user", "content": "why ?"}]
    # What is read before the next answer does not depend on what came before it.
    again = Conversation(PROCESSOR, system)
    hold(again, TURNS[-1:])
    assert again.ask("why ?") == prompt


def test_streamworlds_own_template_goes_on_too():
    tokenizer = build_tokenizer()
    processor = SimpleNamespace(tokenizer=tokenizer, apply_chat_template=tokenizer.apply_chat_template)
    conversation = Conversation(processor)
    said = []
    for question, answer in (("what do you see ?", "a red circle"), ("what is it doing ?", "now up")):
        said += conversation.ask(question)
        ids = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        conversation.answered(answer, ids)
        said += ids
    rendered = tokenizer.apply_chat_template(conversation.messages, tokenize=False)
    assert said == tokenizer(rendered, add_special_tokens=False)["input_ids"][: len(said)]


@pytest.mark.parametrize(
    "template", ["{{ messages[-1].content }}", "{% for m in messages %}{{ m.content * 2 }}{% endfor %}"]
)
def test_a_template_that_does_not_show_answers_is_refused(template):
    processor = SimpleNamespace(
        tokenizer=TOKENIZER,
        apply_chat_template=lambda messages, **_: TOKENIZER.apply_chat_template(
            messages, chat_template=template, tokenize=False
        ),
    )
    conversation = Conversation(processor)
    conversation.ask("why ?")
    conversation.answered("so", tokens("so"))
    with pytest.raises(ValueError, match="must show an answer once, as it is"):
        conversation.ask("and now ?")
