import json
import re

import numpy as np
import pytest

from scripted_endpoint import Reply, ScriptedEndpoint
from streamchat_hf.data.stream_eval import read_stream_eval
from streamchat_hf.data.stream_eval_make import HEADER, OUTCOMES, make_stream_eval
from streamchat_hf.data.stream_eval_prompt import CHECK_SYSTEM, PROMPT_VERSION
from streamchat_hf.data.synthesize_llm import Endpoint, LanguageModel
from streamchat_hf.data.synthesize_review import read_review

GOOD = {"visible": True, "needed": True, "live": True}


def write_captions(path, names):
    """One video of ten seconds and one caption for each name."""
    rows = [
        {"video": f"{i}.mp4", "duration": 10, "captions": [{"start": 0, "end": 10, "text": f"Somebody does {name}."}]}
        for i, name in enumerate(names)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def name_of(messages):
    return re.search(r"Somebody does (.+)\.", messages[-1]["content"])[1]


def is_check(messages):
    return messages[0]["content"] == CHECK_SYSTEM


def pair(name, **changes):
    row = {"instruction": f"Is it {name}?", "answer": "Yes, and there it goes on.", "start": 1, "end": 6, **changes}
    return json.dumps({key: value for key, value in row.items() if value is not ...})


def good_script(messages, before=0):
    return json.dumps(GOOD) if is_check(messages) else pair(name_of(messages))


def model(endpoint, **options):
    return LanguageModel("tiny", Endpoint(endpoint.url, "tiny", timeout=5.0), **{"delay": 0.01, **options})


def local(script):
    return LanguageModel("tiny", script)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def captions(tmp_path):
    return write_captions(tmp_path / "captions.jsonl", [f"thing {i}" for i in range(6)])


WRITTEN = {
    "fine": (pair, "kept"),
    "copy": (lambda name: pair("the same"), "kept"),
    "copy again": (lambda name: pair("the same"), "duplicate"),
    "quote of it": (lambda name: pair(name, instruction=f"Is it true that somebody does {name}?"), "leaks"),
    "clock": (lambda name: pair(name, answer="It ends in 3 seconds, I think."), "leaks"),
    "sorry": (lambda name: "I'm sorry, but I can't help with that.", "refused"),
    "prose": (lambda name: "What a nice video!", "broken_json"),
    "no end": (lambda name: pair(name, end=...), "missing_field"),
    "silent": (lambda name: "", "empty"),
    "late": (lambda name: pair(name, start=8, end=14), "times_outside"),
    "hasty": (lambda name: pair(name, answer="word " * 40), "too_fast"),
    "drowsy": (lambda name: pair(name, answer="Hm", start=0, end=10), "too_slow"),
    "down": (lambda name: Reply("no", status=400), "http_error"),
}
CHECKED = {
    "unseen": (json.dumps(GOOD | {"visible": False}), "not_visible"),
    "known": (json.dumps(GOOD | {"needed": False}), "not_needed"),
    "slow": (json.dumps(GOOD | {"live": False}), "not_live"),
    "vague": (json.dumps({"visible": True}), "missing_field"),
    "chatty": ("Looks good to me.", "broken_json"),
    "checker down": (Reply("no", status=400), "http_error"),
}


def bad_script(messages, before):
    name = name_of(messages)
    if is_check(messages):
        return CHECKED[name][0] if name in CHECKED else json.dumps(GOOD)
    return WRITTEN[name][0](name) if name in WRITTEN else pair(name)


def test_everything_that_can_become_of_a_segment_is_counted_apart(tmp_path):
    expected = dict.fromkeys(OUTCOMES, 0)
    for _, outcome in [*WRITTEN.values(), *CHECKED.values()]:
        expected[outcome] += 1
    captions = write_captions(tmp_path / "captions.jsonl", [*WRITTEN, *CHECKED])
    with ScriptedEndpoint(bad_script) as endpoint:
        result = make_stream_eval(captions, tmp_path / "out.jsonl", model(endpoint))
    assert result.counts == expected
    assert list(result.counts) == list(OUTCOMES)
    assert [row["video"] for row in rows(tmp_path / "out.jsonl")] == ["0.mp4", "1.mp4"]
    checks = [request for request in endpoint.requests if is_check(request.messages)]
    assert sorted(name_of(one.messages) for one in checks) == sorted(["fine", "copy", "copy again", *CHECKED])
    assert result.asked == len(endpoint.requests) - 2


def test_a_row_is_a_question_of_a_set(captions, tmp_path):
    make_stream_eval(captions, tmp_path / "out.jsonl", local(good_script), seed=3)
    first, *_ = questions = read_stream_eval(tmp_path / "out.jsonl")
    assert len(questions) == 6
    assert re.fullmatch(r"0-[0-9a-f]{10}", first.id)
    assert (first.video, first.time, first.end) == ("0.mp4", 1.0, 6.0)
    assert (first.question, first.reference) == ("Is it thing 0?", "Yes, and there it goes on.")
    assert list(rows(tmp_path / "out.jsonl")[0]) == ["id", "video", "time", "question", "reference", "end"]
    log = rows(tmp_path / "out.progress.jsonl")
    assert {json.dumps(record["made_by"]) for record in log} == {
        json.dumps({"model": "tiny", "prompt": PROMPT_VERSION, "seed": 3})
    }


def test_a_run_cut_off_anywhere_goes_on_to_the_same_set(captions, tmp_path):
    out, log, review = tmp_path / "out.jsonl", tmp_path / "out.progress.jsonl", tmp_path / "review.yaml"
    make_stream_eval(captions, out, local(good_script), workers=1)
    whole, answers = out.read_bytes(), log.read_bytes()
    asked = []
    for length in range(0, len(answers), len(answers) // 7):
        log.write_bytes(answers[:length])
        out.unlink()
        asked.clear()
        result = make_stream_eval(captions, out, local(lambda messages: asked.append(0) or good_script(messages)))
        assert out.read_bytes() == whole
        assert result.asked == len(asked) == answers.count(b"\n") - answers[:length].count(b"\n")
    assert not review.exists()


def test_a_higher_limit_only_adds(tmp_path):
    spans = [{"start": 4 * i, "end": 4 * i + 4, "text": f"Somebody does thing {i}."} for i in range(6)]
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"video": "0.mp4", "captions": spans}))

    def script(messages):
        times = [float(time) for time in re.findall(r"^\[(\S+) -", messages[-1]["content"], re.MULTILINE)]
        return good_script(messages) if is_check(messages) else pair(times, start=times[0], end=times[0] + 3)

    make_stream_eval(captions, tmp_path / "out.jsonl", local(script), limit=3)
    few = rows(tmp_path / "out.jsonl")
    assert make_stream_eval(captions, tmp_path / "out.jsonl", local(script), limit=8).asked == 2 * 5
    assert rows(tmp_path / "out.jsonl")[:3] == few and len(rows(tmp_path / "out.jsonl")) == 8


def test_the_check_sees_the_rest_of_the_video(tmp_path):
    spans = [{"start": 4 * i, "end": 4 * i + 4, "text": f"Somebody does thing {i}."} for i in range(6)]
    captions = tmp_path / "captions.jsonl"
    captions.write_text(json.dumps({"video": "0.mp4", "captions": spans}))
    checks = []

    def script(messages):
        if is_check(messages):
            checks.append(messages[-1]["content"])
            return json.dumps(GOOD)
        start = float(re.search(r"^\[(\S+) -", messages[-1]["content"], re.MULTILINE)[1])
        return pair("it", start=start, end=start + 3)

    make_stream_eval(captions, tmp_path / "out.jsonl", local(script), longest=4.0, limit=6)
    assert len(checks) == 6
    assert all(check.count("Somebody does thing") == 6 for check in checks)


def test_only_what_a_person_keeps_goes_out(captions, tmp_path):
    out, review = tmp_path / "out.jsonl", tmp_path / "review.yaml"
    result = make_stream_eval(captions, out, local(good_script), review=review)
    assert (result.counts["unread"], result.counts["kept"], rows(out)) == (6, 0, [])
    text = review.read_text()
    assert text.startswith(HEADER)
    text = text.replace("verdict: new", "verdict: keep", 2).replace("verdict: new", "verdict: drop", 1)
    review.write_text(text.replace("Is it thing 1?", "What does he do?").replace("start: 1.0", "start: 2.5", 1))
    result = make_stream_eval(captions, out, local(lambda messages: pytest.fail("asked")), review=review)
    assert (result.asked, result.counts["unread"], result.counts["dropped"], result.counts["kept"]) == (0, 3, 1, 2)
    kept = read_stream_eval(out)
    assert [(one.time, one.question) for one in kept] == [(2.5, "Is it thing 0?"), (1.0, "What does he do?")]
    assert len(read_review(review)) == 6


def test_what_a_person_keeps_is_no_duplicate_but_makes_others_one(captions, tmp_path):
    review = tmp_path / "review.yaml"
    make_stream_eval(captions, tmp_path / "out.jsonl", local(good_script), review=review)
    review.write_text(review.read_text().replace("verdict: new", "verdict: keep", 2))

    def same(texts):
        return np.ones((len(texts), 1), np.float32)

    result = make_stream_eval(captions, tmp_path / "out.jsonl", local(good_script), review=review, embed=same)
    assert (result.counts["kept"], result.counts["duplicate"], result.counts["unread"]) == (2, 4, 0)


def test_a_mistake_in_the_review_file_is_named_before_anything_is_asked(captions, tmp_path):
    review = tmp_path / "review.yaml"
    make_stream_eval(captions, tmp_path / "out.jsonl", local(good_script), review=review)
    review.write_text(review.read_text().replace("verdict: new", "verdict: maybe", 1))
    (tmp_path / "out.progress.jsonl").unlink()
    with pytest.raises(ValueError, match=r"review.yaml:\d+: unknown verdict 'maybe'"):
        make_stream_eval(captions, tmp_path / "out.jsonl", local(lambda messages: pytest.fail("asked")), review=review)


def test_captions_are_not_overwritten(captions):
    with pytest.raises(ValueError, match="holds the captions"):
        make_stream_eval(captions, captions, local(good_script))


def test_videos_without_a_segment_are_counted(captions, tmp_path):
    with open(captions, "a") as file:
        file.write(json.dumps({"video": "short.mp4", "captions": [{"start": 0, "end": 1, "text": "Hm."}]}) + "\n")
    result = make_stream_eval(captions, tmp_path / "out.jsonl", local(good_script))
    assert (result.silent_videos, result.counts["kept"]) == (1, 6)


def test_a_check_holds_for_the_captions_that_it_has_seen(tmp_path):
    spans = [{"start": 10 * i, "end": 10 * i + 10, "text": f"Somebody does thing {i}."} for i in range(2)]
    captions = tmp_path / "captions.jsonl"
    asked = []

    def script(messages):
        asked.append(is_check(messages))
        if is_check(messages):
            return json.dumps(GOOD)
        start = float(re.search(r"^\[(\S+) -", messages[-1]["content"], re.MULTILINE)[1])
        return pair(f"it at {start}", start=start, end=start + 5)

    for text in ("Somebody does thing 1.", "Nobody does a thing."):
        spans[1]["text"] = text
        captions.write_text(json.dumps({"video": "0.mp4", "captions": spans}))
        make_stream_eval(captions, tmp_path / "out.jsonl", local(script), longest=10.0, limit=2, workers=1)
    assert [asked.count(False), asked.count(True)] == [3, 2 + 2]
