import inspect
import json
import re

import pytest
from PIL import Image

from cli_helpers import run
from scripted_endpoint import Reply, ScriptedEndpoint
from streamchat_cli.judge import judge_command
from streamchat_hf.evaluation.pairwise_judge import judge_answers
from streamchat_hf.evaluation.pairwise_judge_prompt import CRITERIA, OVERALL


@pytest.fixture
def answers(tmp_path):
    """Four questions; A's answers to two of them are longer."""
    for model, long in (("a", (0, 1)), ("b", (2,))):
        rows = [
            {"id": f"q{i}", "model": f"org/{model}", "video": f"{i}.mp4", "time": 1.0, "question": f"What about {i}?"}
            | {"answer": f"It is {'very ' * (i in long)}good.", "words": []}
            for i in range(4)
        ]
        (tmp_path / f"{model}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "a.jsonl", tmp_path / "b.jsonl"


def prefers_longer(messages, before):
    said = json.JSONDecoder().raw_decode(messages[-1]["content"])[0]
    first, second = len(said["first_answer"]), len(said["second_answer"])
    choice = "first" if first > second else "second" if first < second else "tie"
    return json.dumps({**dict.fromkeys((*CRITERIA, OVERALL), choice), "justification": "It is longer."})


def judge(answers, *options, code=0):
    result = run("judge", *answers, "--json", answers[0].with_name("run.json"), *options, code=code, COLUMNS="120")
    return " ".join(re.sub("[\u2500-\u257f]", " ", result.output).split())  # without the table's lines


def test_the_defaults_are_those_of_the_library():
    said, library = (inspect.signature(function).parameters for function in (judge_command, judge_answers))
    for name in ("questions", "seed", "workers"):
        assert said[name].default == library[name].default


def test_a_run_writes_its_result_and_prints_and_draws_the_shares(answers, tmp_path):
    with ScriptedEndpoint(prefers_longer) as endpoint:
        options = ("--endpoint", endpoint.url, "--model", "tiny", "--seed", 2, "--workers", 2)
        output = judge(answers, *options, "--plot", tmp_path / "plot.png")
        assert {request.body["model"] for request in endpoint.requests} == {"tiny"}
        asked = len(endpoint.requests)
        before = (tmp_path / "run.json").read_bytes()
        judge(answers, *options)
        assert len(endpoint.requests) == asked == 8
    assert (tmp_path / "run.json").read_bytes() == before
    result = json.loads(before)
    assert result["counts"] == {"win": 2, "tie": 1, "loss": 1, "malformed": 0, "unanswered": 0}
    assert (result["seed"], len(result["rows"])) == (2, 4)
    assert str(tmp_path) not in before.decode()
    low, high = (100 * edge for edge in result["scores"]["overall"]["win"]["interval"])
    for said in (
        "A: org/a, B: org/b; in percent, with intervals of 95 %",
        f"overall 50 [{low:.0f}, {high:.0f}] 25 ",
        "questions: win 2, tie 1, loss 1, malformed 0, unanswered 0",
        "the judge saw no reference answers",
        "the same in both orders: 100 %; preferred: first 3, second 3, tie 2",
    ):
        assert said in output
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"


def test_malformed_verdicts_are_kept_and_cannot_be_drawn(answers, tmp_path):
    with ScriptedEndpoint(lambda messages, before: "The first.") as endpoint:
        output = judge(answers, "--endpoint", endpoint.url, "--model", "tiny", "--plot", tmp_path / "plot.png", code=1)
    assert "malformed 4" in output and output.endswith("so there is nothing to draw")
    assert json.loads((tmp_path / "run.json").read_text())["counts"]["malformed"] == 4


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ([], "who judges? Name a --model"),
        (["--endpoint", "http://localhost/v1"], "with an --endpoint, by the name that the server knows"),
        (["--endpoint", "localhost", "--model", "tiny"], "the address of an endpoint reads http://host/v1"),
        (["--endpoint", "http://localhost/v1", "--plot", "missing/plot.png"], "missing: no such folder"),
        (["--model", "http://localhost/v1", "--questions", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(answers, options, error):
    output = judge(answers, *options, code=1)
    assert output.startswith("error: ") and error in output


def test_a_wrong_key_ends_in_one_line_too(answers):
    rows = [json.loads(line) for line in answers[0].read_text().splitlines()]
    for path, model in zip(answers, ("a", "b"), strict=True):
        more = [{**rows[0], "id": f"q{i}", "model": model} for i in range(9)]
        path.write_text("".join(json.dumps(row) + "\n" for row in more))
    with ScriptedEndpoint(lambda messages, before: Reply("wrong key", status=401)) as endpoint:
        output = judge(answers, "--endpoint", endpoint.url, "--model", "tiny", code=1)
    assert "error: no answer for 16 verdicts in a row; tiny: HTTP Error 401: Unauthorized: wrong key" in output
