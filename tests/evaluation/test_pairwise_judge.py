import json
import threading
import zlib
from collections import Counter
from dataclasses import asdict

import pytest

from scripted_endpoint import Reply, ScriptedEndpoint
from streamchat_hf.data.stream_eval import StreamEvalQuestion
from streamchat_hf.data.synthesize_llm import Endpoint, LanguageModel
from streamchat_hf.evaluation.benchmark_protocol import Conditions
from streamchat_hf.evaluation.benchmark_streamchat_eval import StreamChatEval
from streamchat_hf.evaluation.pairwise_judge import ATTEMPTS, judge_answers, read_answers
from streamchat_hf.evaluation.pairwise_judge_prompt import CRITERIA, OVERALL, PROMPT_VERSION

QUESTIONS = 6


def answer_rows(model, texts):
    return [
        {
            "id": f"q{i}",
            "model": model,
            "video": f"{i}.mp4",
            "time": 1.5 * i,
            "question": f"What about {i}?",
            "answer": text,
            "words": [[text, 1.5 * i, 1.0]],
        }
        for i, text in enumerate(texts)
    ]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def files(tmp_path):
    """A's answers are longer to the even questions, B's to the odd ones."""
    a = [f"A says {'a lot ' * (1 - i % 2)}about {i}" for i in range(QUESTIONS)]
    b = [f"B says {'a lot ' * (i % 2)}about {i}" for i in range(QUESTIONS)]
    return write(tmp_path / "a.jsonl", answer_rows("org/a", a)), write(tmp_path / "b.jsonl", answer_rows("org/b", b))


def shown(messages):
    """What the judge is shown, without the words on a reply before."""
    return json.JSONDecoder().raw_decode(messages[-1]["content"])[0]


def verdict(choice, **criteria):
    choices = {**dict.fromkeys((*CRITERIA, OVERALL), choice), **criteria}
    return json.dumps({**choices, "justification": f"It is {choice}."})


def always_first(messages, before=0):
    return verdict("first")


def prefers_longer(messages, before=0):
    first, second = (len(shown(messages)[key]) for key in ("first_answer", "second_answer"))
    return verdict("first" if first > second else "second" if second > first else "tie", relevance="tie")


def judge(complete, name="tiny"):
    return LanguageModel(name, complete)


def over(endpoint, **options):
    return LanguageModel("tiny", Endpoint(endpoint.url, "tiny", timeout=5.0), **{"delay": 0.01, **options})


def test_a_judge_that_always_prefers_the_first_answer_gives_all_ties(files, tmp_path):
    with ScriptedEndpoint(always_first) as endpoint:
        result = judge_answers(*files, over(endpoint), tmp_path / "log.jsonl")
    assert len(endpoint.requests) == 2 * QUESTIONS
    assert result["counts"] == {"win": 0, "tie": QUESTIONS, "loss": 0, "malformed": 0, "unanswered": 0}
    assert all(score["tie"] == {"n": QUESTIONS, "share": 1, "interval": [1, 1]} for score in result["scores"].values())
    assert result["same_in_both_orders"] == 0
    assert result["preferred"] == {"first": 2 * QUESTIONS, "second": 0, "tie": 0}


def test_the_better_answer_wins_wherever_it_stands(files, tmp_path):
    result = judge_answers(*files, judge(prefers_longer), tmp_path / "log.jsonl", seed=4)
    assert [row["outcome"] for row in result["rows"]] == ["win", "loss"] * (QUESTIONS // 2)
    assert result["scores"]["accuracy"]["win"]["share"] == 0.5 and result["scores"]["relevance"]["tie"]["share"] == 1
    assert (result["models"], result["seed"]) == ({"a": "org/a", "b": "org/b"}, 4)
    assert (result["judge"], result["prompt"], result["references"]) == ("tiny", PROMPT_VERSION, 0)
    assert result["same_in_both_orders"] == 1
    assert list(result["scores"]) == [OVERALL, *CRITERIA]
    first = result["rows"][0]
    assert first["criteria"] == dict.fromkeys(CRITERIA, "win") | {"relevance": "tie"}
    assert [(one["first"], one["overall"], one["justification"]) for one in first["orders"]] == [
        ("a", "first", "It is first."),
        ("b", "second", "It is second."),
    ]


def test_swapping_the_files_swaps_wins_and_losses(files, tmp_path):
    def moody(messages, before=0):
        """Different from question to question, and not always true to itself."""
        return verdict(("first", "second", "tie")[zlib.crc32(messages[-1]["content"].encode()) % 3])

    there = judge_answers(*files, judge(moody), tmp_path / "there.jsonl")
    back = judge_answers(*files[::-1], judge(moody), tmp_path / "back.jsonl")
    assert there["counts"] == {**back["counts"], "win": back["counts"]["loss"], "loss": back["counts"]["win"]}
    assert there["preferred"] == back["preferred"]
    assert all(there["preferred"].values()) and there["counts"]["win"] != there["counts"]["loss"]


def test_malformed_verdicts_are_asked_for_again_and_then_counted_apart(files, tmp_path):
    """Of question 1 every reply is malformed, of 2 one order's, of 3 all but the last, of 4 the first."""
    tries = Counter()
    lock = threading.Lock()

    def careless(messages, before):
        said = shown(messages)
        with lock:
            tries[said["question"], said["first_answer"][0]] += 1
            attempt = tries[said["question"], said["first_answer"][0]]
        number = int(said["question"][-2])
        bad = {1: True, 2: said["first_answer"][0] == "A", 3: attempt < ATTEMPTS, 4: attempt == 1}.get(number, False)
        return "The first one, clearly." if bad else prefers_longer(messages)

    with ScriptedEndpoint(careless) as endpoint:
        result = judge_answers(*files, over(endpoint), tmp_path / "log.jsonl")
        again = judge_answers(*files, over(endpoint), tmp_path / "log.jsonl")
    outcomes = [row["outcome"] for row in result["rows"]]
    assert outcomes == ["win", "malformed", "malformed", "loss", "win", "loss"]
    assert result["counts"] == {"win": 2, "tie": 0, "loss": 2, "malformed": 2, "unanswered": 0}
    assert result["scores"]["overall"]["win"]["share"] == 0.5  # of the four that were judged
    asked = Counter(int(shown(request.messages)["question"][-2]) for request in endpoint.requests)
    assert asked == {0: 2, 1: 2 * ATTEMPTS, 2: ATTEMPTS + 1, 3: 2 * ATTEMPTS, 4: 4, 5: 2}
    assert sum("Your last reply was no verdict" in one.messages[-1]["content"] for one in endpoint.requests) == 12
    assert "The first one, clearly." in result["rows"][1]["orders"][0]["problem"]
    assert result["rows"][2]["criteria"] is None and result["rows"][2]["orders"][1]["overall"] == "second"
    assert again == result


def test_a_malformed_verdict_is_no_tie_and_no_loss_in_any_score(files, tmp_path):
    result = judge_answers(*files, judge(lambda messages: "tie"), tmp_path / "log.jsonl")
    assert result["counts"]["malformed"] == QUESTIONS
    assert result["scores"]["overall"]["tie"] == {"n": 0, "share": None, "interval": None}
    assert result["same_in_both_orders"] is None


def test_what_got_no_reply_is_counted_apart_and_asked_again(files, tmp_path):
    down = threading.Event()
    down.set()

    def moody(messages, before):
        return Reply(status=400) if down.is_set() and "What about 2" in messages[-1]["content"] else always_first("")

    with ScriptedEndpoint(moody) as endpoint:
        first = judge_answers(*files, over(endpoint), tmp_path / "log.jsonl")
        down.clear()
        endpoint.requests.clear()
        second = judge_answers(*files, over(endpoint), tmp_path / "log.jsonl")
    assert first["counts"] == {"win": 0, "tie": QUESTIONS - 1, "loss": 0, "malformed": 0, "unanswered": 1}
    assert first["rows"][2]["orders"][0] == {"first": "a", "problem": "no reply"}
    assert len(endpoint.requests) == 2 and second["counts"]["tie"] == QUESTIONS


def test_a_run_cut_off_anywhere_goes_on_to_the_same_result(files, tmp_path):
    log = tmp_path / "log.jsonl"

    def careless(messages):
        again = "Your last reply was no verdict" in messages[-1]["content"]
        return prefers_longer(messages) if again or len(shown(messages)["question"]) % 2 else "Hm."

    asked = []
    whole = judge_answers(*files, judge(careless), log)
    replies = log.read_bytes()
    for length in range(0, len(replies), len(replies) // 7):
        log.write_bytes(replies[:length])
        asked.clear()
        result = judge_answers(*files, judge(lambda messages: asked.append(0) or careless(messages)), log)
        assert json.dumps(result) == json.dumps(whole)
        assert len(asked) == replies.count(b"\n") - replies[:length].count(b"\n")


def test_another_judge_and_another_answer_are_asked_anew(files, tmp_path):
    log = tmp_path / "log.jsonl"
    judge_answers(*files, judge(always_first), log)
    asked = []

    def count(messages):
        asked.append(shown(messages)["question"])
        return always_first(messages)

    judge_answers(*files, judge(count, "other"), log)
    assert len(asked) == 2 * QUESTIONS
    asked.clear()
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    rows[3]["answer"] = "Something else."
    write(files[0], rows)
    judge_answers(*files, judge(count, "other"), log)
    assert asked == ["What about 3?"] * 2


def test_reference_answers_come_from_the_set(files, tmp_path):
    rows = [
        {"id": f"q{i}", "video": f"{i}.mp4", "time": 1.5 * i, "question": f"What about {i}?", "end": None}
        | {"reference": f"Number {i}." if i else None}
        for i in range(QUESTIONS + 1)
    ]
    seen = []

    def look(messages):
        seen.append((shown(messages)["question"], shown(messages).get("reference_answer")))
        return always_first(messages)

    questions = write(tmp_path / "set.jsonl", rows)
    result = judge_answers(*files, judge(look), tmp_path / "log.jsonl", questions=questions)
    assert sorted(set(seen)) == [(f"What about {i}?", f"Number {i}." if i else None) for i in range(QUESTIONS)]
    assert result["references"] == QUESTIONS - 1
    write(questions, [{**row, "question": "Why?"} for row in rows])
    with pytest.raises(ValueError, match="set.jsonl has no question q0: 'What about 0"):
        judge_answers(*files, judge(look), tmp_path / "log.jsonl", questions=questions)


def test_what_the_runner_writes_about_a_set_is_what_the_judge_reads(tmp_path):
    question = StreamEvalQuestion("q", "0.mp4", 1.5, "What now?", "It turns blue.", 4.0)
    questions = write(tmp_path / "set.jsonl", [asdict(question)])
    files = []
    for name, answer in (("a", "It turns blue."), ("b", None)):
        runner = StreamChatEval(questions, tmp_path, Conditions("official", 5.0), f"org/{name}")
        row = {"id": "q", "video": "0.mp4", "time": 1.5, "question": "What now?", "answer": answer, "words": []}
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text(runner.files([row])["answers.jsonl"])
    result = judge_answers(*files, judge(prefers_longer), tmp_path / "log.jsonl", questions=questions)
    assert (result["counts"]["win"], result["references"]) == (1, 1)
    assert result["models"] == {"a": "org/a", "b": "org/b"}


def test_both_files_answer_the_same_questions(files, tmp_path):
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    asked = []

    def run():
        judge_answers(*files, judge(asked.append), tmp_path / "log.jsonl")

    write(files[1], rows[:4])
    with pytest.raises(ValueError, match=r"b.jsonl has no answer to 2 of the questions of .*a.jsonl, such as q4"):
        run()
    write(files[1], [*rows, {**rows[0], "id": "q9"}])
    with pytest.raises(ValueError, match=r"a.jsonl has no answer to 1 of the questions of .*b.jsonl, such as q9"):
        run()
    write(files[1], [{**rows[0], "time": 3.25}, *rows[1:]])
    with pytest.raises(ValueError, match=r"q0 has the time 0.0 in .*a.jsonl and 3.25 in .*b.jsonl"):
        run()
    assert asked == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"id": 3}, r"a.jsonl:2: .*id"),
        ({"id": "q0"}, r"a.jsonl:2: id twice: q0"),
        ({"answer": None}, r"a.jsonl:2: .*answer"),
        ({"time": "soon"}, r"a.jsonl:2: .*time in seconds"),
        ({"model": "org/other"}, r"a.jsonl:2: another model: 'org/other' after 'org/a'"),
        ({"model": ["org/a"]}, r"a.jsonl:2: .*model"),
    ],
)
def test_a_line_that_is_no_answer_is_named(files, changes, problem):
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    write(files[0], [rows[0], {**rows[1], **changes}, *rows[2:]])
    with pytest.raises(ValueError, match=problem):
        read_answers(files[0])


def test_other_files_are_named_too(tmp_path):
    with pytest.raises(ValueError, match=r"empty.jsonl: there are no answers"):
        read_answers(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(ValueError, match=r"list.jsonl:1: "):
        read_answers(write(tmp_path / "list.jsonl", [[]]))
