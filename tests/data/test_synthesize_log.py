import json

import pytest

from streamchat_hf.data.synthesize_llm import LanguageModel
from streamchat_hf.data.synthesize_log import ask_and_log, ask_once, read_log, replace_lines

MADE_BY = {"model": "m", "prompt": 1, "seed": 0}


def echo(messages):
    return messages[-1]["content"].upper()


def requests(*names):
    return {name: lambda name=name: [{"role": "user", "content": name}] for name in names}


def ask(path, *names, made_by=MADE_BY):
    return ask_and_log(path, LanguageModel("m", echo), requests(*names), made_by, 2, False, "word")


def test_what_is_asked_is_in_the_log(tmp_path):
    log = tmp_path / "log.jsonl"
    assert read_log(log, MADE_BY) == {}
    first, second = ask(log, "a", "b"), ask(log, "c")
    assert {name: record["text"] for name, record in (first | second).items()} == {"a": "A", "b": "B", "c": "C"}
    assert read_log(log, MADE_BY) == first | second


def test_answers_of_another_model_or_prompt_do_not_count(tmp_path):
    log = tmp_path / "log.jsonl"
    ask(log, "a")
    ask(log, "b", made_by=MADE_BY | {"prompt": 2})
    assert list(read_log(log, MADE_BY)) == ["a"]
    assert list(read_log(log, MADE_BY | {"prompt": 2, "seed": 5})) == ["b"]  # the seed chose what is asked
    assert read_log(log, MADE_BY | {"model": "other"}) == {}


def test_half_a_line_is_cut_off_and_anything_else_is_named(tmp_path):
    log = tmp_path / "log.jsonl"
    whole = ask(log, "a")
    with open(log, "a") as file:
        file.write('{"id": "b", "te')
    assert read_log(log, MADE_BY) == whole
    assert log.read_text().endswith("}\n")
    log.write_text(log.read_text() + "[]\n")
    with pytest.raises(ValueError, match=r"log.jsonl:2: no record of an answer; remove the line"):
        read_log(log, MADE_BY)


def test_lines_are_replaced_as_a_whole(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("old")

    def rows():
        yield {"n": 1}
        assert path.read_text() == "old"
        yield {"n": 2}

    replace_lines(path, rows())
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"n": 1}, {"n": 2}]
    assert [child.name for child in tmp_path.iterdir()] == ["rows.jsonl"]


def test_what_is_in_the_log_is_not_asked_again(tmp_path):
    log, model = tmp_path / "log.jsonl", LanguageModel("m", echo)
    answers, new = ask_once(log, model, requests("a", "b"), MADE_BY, 2, False, "word")
    assert ({name: record["text"] for name, record in answers.items()}, new) == ({"a": "A", "b": "B"}, 2)
    silent = LanguageModel("m", lambda messages: pytest.fail("asked"))
    assert ask_once(log, silent, requests("b"), MADE_BY, 2, False, "word") == ({"b": answers["b"]}, 0)


def test_what_gets_no_answer_is_not_among_the_answers(tmp_path):
    def moody(messages):
        if messages[-1]["content"] == "b":
            raise TimeoutError
        return echo(messages)

    model = LanguageModel("m", moody, attempts=1)
    answers, new = ask_once(tmp_path / "log.jsonl", model, requests("a", "b"), MADE_BY, 2, False, "word")
    assert (list(answers), new) == (["a"], 1)
