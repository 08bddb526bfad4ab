import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import streamchat_hf
from scripted_endpoint import Reply, ScriptedEndpoint, asked_captions, streamworld_script
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_captions import streamworld_captions
from streamchat_hf.data.synthesize import OUTCOMES, synthesize
from streamchat_hf.data.synthesize_llm import Endpoint, LanguageModel
from streamchat_hf.data.synthesize_log import GIVE_UP_AFTER
from streamchat_hf.data.synthesize_prompt import PROMPT_VERSION
from streamchat_hf.data.synthesize_review import read_review

ANSWER = "It goes on and on, and now it ends."


def write_captions(path, texts):
    """One video of ten seconds and one caption for each text."""
    captions = [[{"start": 0, "end": 10, "text": text}] for text in texts]
    rows = [{"video": f"{i}.mp4", "duration": 10, "captions": caption} for i, caption in enumerate(captions)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answer(text, **changes):
    row = {"instruction": f"What about {text}?", "answer": ANSWER, "start": 1, "end": 6, **changes}
    return json.dumps({key: value for key, value in row.items() if value is not ...})


def text_of(messages):
    return asked_captions(messages)[0][2]


def good_script(messages, before):
    return answer(text_of(messages))


def model(endpoint, **options):
    return LanguageModel("tiny", Endpoint(endpoint.url, "tiny", timeout=5.0), **{"delay": 0.01, **options})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def workers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]


@pytest.fixture
def captions(tmp_path):
    return write_captions(tmp_path / "captions.jsonl", [f"scene {i}" for i in range(12)])


CASES = {
    "good": answer,
    "fenced": lambda text: f"Here:\n```json\n{answer(text)}\n```",
    "copy": lambda text: answer("copy"),
    "sorry": lambda text: "I'm sorry, but I can't help with that.",
    "sorry in json": lambda text: answer(text, answer="I cannot see the video."),
    "sorry elsewhere": lambda text: Reply(message={"role": "assistant", "content": None, "refusal": "I'm sorry."}),
    "cut": lambda text: answer(text)[:-20],
    "prose": lambda text: "What a nice video!",
    "no end": lambda text: answer(text, end=...),
    "soon": lambda text: answer(text, start="soon"),
    "silent": lambda text: "",
    "blank": lambda text: answer(text, answer=" "),
    "late": lambda text: answer(text, start=8, end=14),
    "backwards": lambda text: answer(text, start=6, end=1),
    "hasty": lambda text: answer(text, answer="word " * 40),
    "drowsy": lambda text: answer(text, answer="Hm", start=0, end=10),
    "mistaken": lambda text: Reply("no", status=400),
    "down": lambda text: Reply(status=503),
}
FIRST = {
    "busy": Reply(status=429, headers={"Retry-After": "0"}),
    "broken": Reply(status=500),
    "gone": Reply(drop=True),
    "halfway": Reply("x" * 100, drop="late"),
    "page": Reply(body=b"<html>"),
}
EXPECTED = {
    **{"kept": 2 * 2 + 1 + 2 * len(FIRST), "duplicate": 1, "dropped": 0, "refused": 6, "broken_json": 4},
    **{"missing_field": 4, "empty": 4, "times_outside": 4, "too_fast": 2, "too_slow": 2, "http_error": 4},
}


def bad_script(messages, before):
    case = text_of(messages).rsplit(" ", 1)[0]
    if case in FIRST:
        return answer(text_of(messages)) if before else FIRST[case]
    return CASES[case](text_of(messages))


def test_everything_that_goes_wrong_is_counted_apart(tmp_path):
    texts = [f"{case} {i}" for i in range(2) for case in [*CASES, *FIRST]]
    captions = write_captions(tmp_path / "captions.jsonl", texts)
    with ScriptedEndpoint(bad_script) as endpoint:
        result = synthesize(captions, tmp_path / "out.jsonl", model(endpoint, attempts=3))
    assert result.counts == EXPECTED
    assert list(result.counts) == list(OUTCOMES)
    assert sum(result.counts.values()) == len(texts)
    assert result.asked == len(texts) - EXPECTED["http_error"]
    kept = rows(tmp_path / "out.jsonl")
    assert len(kept) == EXPECTED["kept"]
    asked = Counter(text_of(request.messages) for request in endpoint.requests)
    attempts = {"down": 3, "mistaken": 1, **dict.fromkeys(FIRST, 2)}
    assert asked == {text: attempts.get(text.rsplit(" ", 1)[0], 1) for text in texts}


def test_a_row_is_what_the_loader_reads_and_says_where_it_comes_from(captions, tmp_path):
    with ScriptedEndpoint(good_script) as endpoint:
        synthesize(captions, tmp_path / "out.jsonl", model(endpoint), seed=7)
    first, *others = rows(tmp_path / "out.jsonl")
    assert len(others) == 11
    assert re.fullmatch(r"0-[0-9a-f]{10}", first.pop("id"))
    assert first == {
        **{"video": "0.mp4", "start": 1.0, "end": 6.0, "instruction": "What about scene 0?", "answer": ANSWER},
        "made_by": {"model": "tiny", "prompt": PROMPT_VERSION, "seed": 7},
    }


def test_answers_come_in_any_order_and_rows_in_one(captions, tmp_path):
    """The first segment gets its answer when the fifth has been asked for, which takes several workers."""
    fifth = threading.Event()

    def late(messages, before):
        if text_of(messages) == "scene 4":
            fifth.set()
        return good_script(messages, before) if text_of(messages) != "scene 0" or fifth.wait(10) else Reply(status=400)

    with ScriptedEndpoint(late) as endpoint:
        assert synthesize(captions, tmp_path / "4.jsonl", model(endpoint), workers=4).counts["kept"] == 12
        assert 1 < endpoint.most_at_once <= 4
    with ScriptedEndpoint(good_script) as endpoint:
        synthesize(captions, tmp_path / "1.jsonl", model(endpoint), workers=1)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "4.jsonl").read_bytes()


def test_a_second_run_asks_only_for_what_got_no_answer(captions, tmp_path):
    fine = threading.Event()

    def moody(messages, before):
        number = int(text_of(messages).split()[1])
        return good_script(messages, before) if fine.is_set() or number % 3 else Reply(status=503)

    out = tmp_path / "out.jsonl"
    with ScriptedEndpoint(moody) as endpoint:
        first = synthesize(captions, out, model(endpoint, attempts=1))
        asked = len(endpoint.requests)
        fine.set()
        second = synthesize(captions, out, model(endpoint))
        assert (first.counts["kept"], first.counts["http_error"], asked) == (8, 4, 12)
        assert (second.counts["kept"], second.asked, len(endpoint.requests)) == (12, 4, 16)
        before = out.read_bytes()
        assert synthesize(captions, out, model(endpoint)).asked == 0
        assert out.read_bytes() == before
        assert synthesize(captions, out, LanguageModel("other", Endpoint(endpoint.url, "other"))).asked == 12
        assert {row["made_by"]["model"] for row in rows(out)} == {"other"}


# The package itself imports torch and transformers, which takes longer than everything else here.
RUN = """
import sys, types
sys.modules["streamchat_hf"] = types.ModuleType("streamchat_hf")
sys.modules["streamchat_hf"].__path__ = [sys.argv[4]]
from streamchat_hf.data.synthesize import synthesize
from streamchat_hf.data.synthesize_llm import Endpoint, LanguageModel
from streamchat_hf.data.synthesize_log import GIVE_UP_AFTER
synthesize(sys.argv[1], sys.argv[2], LanguageModel("tiny", Endpoint(sys.argv[3], "tiny")), workers=3)
"""


def test_a_run_that_was_killed_goes_on(tmp_path):
    captions = write_captions(tmp_path / "captions.jsonl", [f"scene {i}" for i in range(40)])
    out, log = tmp_path / "out.jsonl", tmp_path / "out.progress.jsonl"

    def slow(messages, before):
        time.sleep(0.05)
        return good_script(messages, before)

    with ScriptedEndpoint(slow) as endpoint:
        command = [sys.executable, "-c", RUN, captions, out, endpoint.url, Path(streamchat_hf.__file__).parent]
        with subprocess.Popen(command) as process:
            while len(endpoint.requests) < 20:
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        assert not out.exists()
        answered = {record["id"] for record in rows(log)}
        assert 10 <= len(answered) < 40  # all but what was under way
        with open(log, "a") as file:
            file.write('{"id": "12-0123456789", "te')  # the kernel got as far as here
        time.sleep(1)  # the server may still be at what it was asked last
        endpoint.requests.clear()
        result = synthesize(captions, out, model(endpoint), workers=3)
    assert result.counts["kept"] == 40
    assert result.asked == len(endpoint.requests) == 40 - len(answered)
    assert len(rows(log)) == 40
    with ScriptedEndpoint(good_script) as endpoint:
        synthesize(captions, tmp_path / "whole.jsonl", model(endpoint))
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_log_that_is_none_is_named(captions, tmp_path):
    log = tmp_path / "out.progress.jsonl"
    log.write_text('{"id": "a", "text": "b", "made_by": {}}\n{"id": 3}\n')
    with ScriptedEndpoint(good_script) as endpoint, pytest.raises(ValueError, match=f"{log}:2: no record"):
        synthesize(captions, tmp_path / "out.jsonl", model(endpoint))
    assert endpoint.requests == []


def test_captions_are_not_overwritten(captions):
    before = captions.read_bytes()
    with pytest.raises(ValueError, match="holds the captions"):
        synthesize(captions, captions.parent / ".." / captions.parent.name / captions.name, LanguageModel("tiny", str))
    assert captions.read_bytes() == before


def test_a_server_that_answers_nothing_ends_the_run(tmp_path):
    captions = write_captions(tmp_path / "captions.jsonl", [f"scene {i}" for i in range(200)])
    with ScriptedEndpoint(lambda messages, before: Reply("bad key", status=401)) as endpoint:
        with pytest.raises(ConnectionError, match=f"no answer for {GIVE_UP_AFTER} segments in a row; tiny: .*bad key"):
            synthesize(captions, tmp_path / "out.jsonl", model(endpoint), workers=2)
        assert len(endpoint.requests) <= GIVE_UP_AFTER + 1  # what the other worker was asking
    assert workers() == []


def test_failures_between_answers_do_not_end_the_run(tmp_path):
    captions = write_captions(tmp_path / "captions.jsonl", [f"scene {i}" for i in range(3 * GIVE_UP_AFTER)])

    def moody(messages, before):
        return Reply(status=400) if int(text_of(messages).split()[1]) % 2 else good_script(messages, before)

    with ScriptedEndpoint(moody) as endpoint:
        result = synthesize(captions, tmp_path / "out.jsonl", model(endpoint), workers=1)
    assert result.counts["http_error"] == result.counts["kept"] == 1.5 * GIVE_UP_AFTER


def test_no_worker_waits_for_a_run_that_has_failed(captions, tmp_path):
    def wrong(messages):
        if text_of(messages) == "scene 11":
            raise ValueError("no token")
        raise TimeoutError

    started = time.monotonic()
    with pytest.raises(ValueError, match="no token"):
        synthesize(captions, tmp_path / "out.jsonl", LanguageModel("tiny", wrong, delay=3600), workers=12)
    assert time.monotonic() - started < 30
    assert workers() == []


def test_a_higher_limit_goes_on_from_the_log(tmp_path):
    path = tmp_path / "captions.jsonl"
    lines = [{"video": f"{i}.mp4", "captions": streamworld_captions(World.sample(i))} for i in range(6)]
    path.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out.jsonl"
    with ScriptedEndpoint(streamworld_script) as endpoint:
        assert synthesize(path, out, model(endpoint), longest=6.0).asked == 6
        first = rows(out)
        assert synthesize(path, out, model(endpoint), limit=20, longest=6.0).asked == 14
    assert rows(out)[: len(first)] == first
    assert max(row["end"] - row["start"] for row in rows(out)) <= 6.0


def test_videos_without_a_segment_are_counted(tmp_path):
    path = tmp_path / "captions.jsonl"
    spans = [(0, 10), (0, 50), (0, 1)]
    lines = [{"video": f"{e}.mp4", "captions": [{"start": s, "end": e, "text": "scene 1"}]} for s, e in spans]
    path.write_text("\n".join(map(json.dumps, lines)))
    with ScriptedEndpoint(good_script) as endpoint:
        result = synthesize(path, tmp_path / "out.jsonl", model(endpoint), limit=9)
    assert (result.silent_videos, result.counts["kept"]) == (2, 1)


def test_near_duplicates_go_where_an_encoder_finds_them(captions, tmp_path):
    def parity(texts):
        return np.eye(2, dtype=np.float32)[[int(re.findall(r"\d+", text)[0]) % 2 for text in texts]]

    with ScriptedEndpoint(good_script) as endpoint:
        result = synthesize(captions, tmp_path / "out.jsonl", model(endpoint), embed=parity)
        assert (result.counts["kept"], result.counts["duplicate"]) == (2, 10)
        assert [row["video"] for row in rows(tmp_path / "out.jsonl")] == ["0.mp4", "1.mp4"]
        assert synthesize(captions, tmp_path / "out.jsonl", model(endpoint)).counts["kept"] == 12


def examples_of(messages):
    return [message["content"] for message in messages[1:-1] if message["role"] == "assistant"]


def test_the_review_goes_round(captions, tmp_path):
    out, review = tmp_path / "out.jsonl", tmp_path / "review.yaml"
    with ScriptedEndpoint(good_script) as endpoint:
        result = synthesize(captions, out, model(endpoint), limit=5, review=review, unread=3)
        assert (result.unread, len(read_review(review))) == (3, 3)
        assert all("scene" not in "".join(examples_of(request.messages)) for request in endpoint.requests)
        text = review.read_text()
        text = text.replace("verdict: new", "verdict: keep", 1).replace("verdict: new", "verdict: drop", 1)
        review.write_text(text.replace("What about scene 0?", "Tell me: what about the first scene?"))
        endpoint.requests.clear()
        result = synthesize(captions, out, model(endpoint), review=review, unread=3)
        assert result.asked == len(endpoint.requests) == 7
        assert (result.counts["kept"], result.counts["dropped"], result.unread) == (11, 1, 3)
        for request in endpoint.requests:
            shown = examples_of(request.messages)
            assert len(shown) == 3
            assert [example for example in shown if "the first scene" in example] == shown[-1:]
        assert [row["instruction"] for row in rows(out)][:2] == [
            "Tell me: what about the first scene?",
            "What about scene 2?",
        ]
        names = [entry.segment.video for entry in read_review(review).values()]
        assert names == ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "4.mp4"]
        assert review.read_text().startswith(text[:60])


def test_what_a_person_keeps_outlives_another_model_and_is_no_duplicate(captions, tmp_path):
    out, review = tmp_path / "out.jsonl", tmp_path / "review.yaml"
    with ScriptedEndpoint(good_script) as endpoint:
        synthesize(captions, out, model(endpoint), review=review)
        text = review.read_text().replace("verdict: new", "verdict: keep")
        review.write_text(text.replace("What about scene 5?", "What about scene 4?"))
        other = LanguageModel("other", Endpoint(endpoint.url, "other"))
        result = synthesize(captions, out, other, review=review)
    assert (result.asked, result.counts["kept"], result.unread) == (0, 12, 0)
    assert {row["made_by"]["model"] for row in rows(out)} == {"tiny"}


def test_approved_examples_are_all_that_is_shown_once_there_are_enough(tmp_path):
    captions = write_captions(tmp_path / "captions.jsonl", [f"scene {i}" for i in range(30)])
    review = tmp_path / "review.yaml"
    with ScriptedEndpoint(good_script) as endpoint:
        synthesize(captions, tmp_path / "out.jsonl", model(endpoint), limit=6, review=review)
        review.write_text(review.read_text().replace("verdict: new", "verdict: keep"))
        endpoint.requests.clear()
        synthesize(captions, tmp_path / "out.jsonl", model(endpoint), review=review)
    shown = [tuple(examples_of(request.messages)) for request in endpoint.requests]
    assert all(len(set(examples)) == 3 and all("scene" in e for e in examples) for examples in shown)
    assert len(set(shown)) > 5


def test_a_malformed_review_is_reported_before_anything_is_asked(captions, tmp_path):
    review = tmp_path / "review.yaml"
    review.write_text("- id: a\n  verdict: maybe\n")
    with ScriptedEndpoint(good_script) as endpoint, pytest.raises(ValueError, match=f"{review}:2: unknown verdict"):
        synthesize(captions, tmp_path / "out.jsonl", model(endpoint), review=review)
    assert endpoint.requests == []


def test_no_key_is_written(captions, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with ScriptedEndpoint(good_script) as endpoint:
        synthesize(captions, tmp_path / "out.jsonl", model(endpoint), review=tmp_path / "review.yaml")
        assert endpoint.requests[0].headers["authorization"] == "Bearer sk-secret"
    written = [Path(folder) / name for folder, _, names in os.walk(tmp_path) for name in names]
    assert len(written) == 4
    assert all("sk-secret" not in path.read_text() for path in written)


def test_streamworld_by_a_scripted_endpoint(tmp_path):
    """From captions alone, and most of what is said about one world is said about no other."""
    path = tmp_path / "captions.jsonl"
    lines = [{"video": f"{i}.mp4", "captions": streamworld_captions(World.sample(i))} for i in range(60)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with ScriptedEndpoint(streamworld_script) as endpoint:
        result = synthesize(path, tmp_path / "out.jsonl", model(endpoint), limit=180)
    assert result.counts["kept"] + result.counts["duplicate"] == 180
    assert result.counts["kept"] > 120
