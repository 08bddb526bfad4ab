import json
from collections import Counter

import pytest

from scripted_endpoint import Reply, ScriptedEndpoint
from streamchat_hf.data.annotations import BadRow
from streamchat_hf.data.live_conversation import check_sample
from streamchat_hf.data.live_dialogue import OUTCOMES, LiveDialogues, write_live_dialogues
from streamchat_hf.data.live_dialogue_prompt import MOST_MOMENTS, PROMPT_VERSION, LiveTimeline
from streamchat_hf.data.synthesize_llm import Endpoint, LanguageModel
from streamchat_hf.data.synthesize_log import GIVE_UP_AFTER
from streamchat_hf.data.synthesize_segment import Caption


def timeline(name, steps=4, length=20.0, start=5.0):
    captions = tuple(Caption(start + length * i, start + length * (i + 1), f"step {i}") for i in range(steps))
    return LiveTimeline(f"{name}.mp4", captions, "make soup")


TIMELINES = [timeline(f"v{i}") for i in range(3)]


def moments_of(messages):
    return [float(time) for time in messages[-1]["content"].rpartition("speaks at: ")[2].split(",")]


def question_of(messages):
    return messages[-1]["content"].partition("The user asks: ")[2].partition("\n")[0]


def good_script(messages, before):
    answers = [{"time": time, "text": f"At {time}: {question_of(messages)}"} for time in moments_of(messages)]
    return json.dumps({"answers": answers})


def model(endpoint, **options):
    return LanguageModel("tiny", Endpoint(endpoint.url, "tiny", timeout=5.0), **{"delay": 0.01, **options})


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file made by a good model."""
    out = tmp_path_factory.mktemp("live") / "live.jsonl"
    with ScriptedEndpoint(good_script) as endpoint:
        result = write_live_dialogues(TIMELINES, out, model(endpoint), queries=4)
    assert result.counts["kept"] == sum(result.counts.values()) == result.asked == 12
    return out


def test_the_answers_are_written_for_each_video_in_order(made):
    for row, one in zip(rows(made), TIMELINES, strict=True):
        assert (row["video"], row["start"], row["end"], row["goal"]) == (one.video, 5.0, 85.0, "make soup")
        assert row["id"] == one.id and row["made_by"] == {"model": "tiny", "prompt": PROMPT_VERSION, "seed": 0}
        assert len({query["text"] for query in row["queries"]}) == 4
        assert {query["tense"] for query in row["queries"]} == {"past", "now", "next"}
        for query in row["queries"]:
            expected = [{"time": time, "text": f"At {time}: {query['text']}"} for time in one.moments]
            assert query["answers"] == expected


def test_nothing_is_asked_twice(made, tmp_path):
    out = tmp_path / "live.jsonl"
    log = made.with_suffix(".progress.jsonl").read_text()
    out.with_suffix(".progress.jsonl").write_text(log[: len(log) // 2])  # killed in the middle of a line
    whole = log[: len(log) // 2].count("\n")
    with ScriptedEndpoint(good_script) as endpoint:
        result = write_live_dialogues(TIMELINES, out, model(endpoint), queries=4)
        assert result.asked == len(endpoint.requests) == 12 - whole
        assert out.read_text() == made.read_text()
        assert write_live_dialogues(TIMELINES, out, model(endpoint), queries=4).asked == 0
        assert write_live_dialogues(TIMELINES, out, model(endpoint), queries=5).asked == 3
        other = LanguageModel("other", model(endpoint).complete)
        assert write_live_dialogues(TIMELINES, out, other, queries=4).asked == 12


def test_a_log_of_something_else_is_refused(tmp_path):
    (tmp_path / "live.progress.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"live\.progress\.jsonl:1: no record of an answer"):
        write_live_dialogues(TIMELINES, tmp_path / "live.jsonl", LanguageModel("m", lambda messages: ""))


def test_bad_answers_are_counted_by_their_kind_and_leave_no_trace(tmp_path):
    replies = {
        "empty": lambda good: "",
        "broken_json": lambda good: "I'm sorry, but I can't.",
        "missing_field": lambda good: '{"answer": "You cook."}',
        "wrong_times": lambda good: json.dumps({"answers": json.loads(good)["answers"][1:]}),
        "tells_time": lambda good: good.replace('"At', '"For a second, at'),
        "http_error": lambda good: Reply("no", status=400),
        "kept": lambda good: good,
    }
    assert set(replies) == set(OUTCOMES)
    seen = {}

    def script(messages, before):
        kind = seen.setdefault(question_of(messages), list(replies)[len(seen) % len(replies)])
        return replies[kind](good_script(messages, before))

    with ScriptedEndpoint(script) as endpoint:
        out = tmp_path / "live.jsonl"
        result = write_live_dialogues(TIMELINES[:1], out, model(endpoint), queries=14, workers=1)
    assert result.counts == dict.fromkeys(OUTCOMES, 2)
    assert result.asked == 12, "an error is no answer"
    (row,) = rows(out)
    assert {query["text"] for query in row["queries"]} == {text for text, kind in seen.items() if kind == "kept"}


def test_a_busy_server_is_asked_again(tmp_path):
    def script(messages, before):
        return good_script(messages, before) if before else Reply("wait", status=503)

    with ScriptedEndpoint(script) as endpoint:
        result = write_live_dialogues(TIMELINES[:1], tmp_path / "live.jsonl", model(endpoint), queries=3)
        assert result.counts["kept"] == 3 and len(endpoint.requests) == 6


def test_a_dead_server_ends_the_run(tmp_path):
    with (
        ScriptedEndpoint(lambda messages, before: Reply("no", status=401)) as endpoint,
        pytest.raises(ConnectionError, match=f"no answer for {GIVE_UP_AFTER} questions in a row"),
    ):
        write_live_dialogues(TIMELINES, tmp_path / "live.jsonl", model(endpoint), queries=10, workers=1)


def test_videos_that_do_not_fit_are_not_asked_about(tmp_path):
    unfit = [timeline("a", length=14.9), timeline("b", 40, 91.0), timeline("c", MOST_MOMENTS, 1.0)]
    with ScriptedEndpoint(good_script) as endpoint:
        out = tmp_path / "live.jsonl"
        result = write_live_dialogues([*unfit, *TIMELINES[:1]], out, model(endpoint), queries=1)
        assert len(endpoint.requests) == 1
        assert result.unfit == {"too_short": 1, "too_long": 1, "too_many_moments": 1}
        assert [row["video"] for row in rows(out)] == ["v0.mp4"]
        result = write_live_dialogues(unfit[:2], out, model(endpoint), queries=1, shortest=1.0, longest=4000.0)
        assert result.counts["kept"] == 2 and not any(result.unfit.values())


def test_rows_of_the_file(made):
    dataset = LiveDialogues(made, "videos")
    assert len(dataset) == 3
    for index in range(3):
        row = dataset[index]
        check_sample(row)
        assert row["media"] == f"videos/v{index}.mp4"
        assert row["frame_times"] == [5.0 + i / 2 for i in range(161)]
        question = None
        for message in row["conversation"]:
            if message["role"] == "user":
                question = message["content"]
            elif message["role"] == "assistant":
                at = max(time for time in TIMELINES[0].moments if time <= message["time"])
                assert message["content"] == f"At {at}: {question}", "what is true at that frame"
    with pytest.raises(IndexError):
        dataset[3]


def test_each_epoch_asks_at_other_times_and_the_same_ones_every_time(made):
    def drawn(epoch, **kwargs):
        dataset = LiveDialogues(made, **kwargs)
        dataset.set_epoch(epoch)
        return [dataset[i] for i in range(3)]

    assert drawn(0) == drawn(0) and drawn(1) == drawn(1)
    assert len({json.dumps(drawn(epoch, seed=seed)) for epoch in range(3) for seed in range(3)}) == 9
    asked = Counter(
        sum(message["role"] == "user" for message in row["conversation"])
        for epoch in range(10)
        for row in drawn(epoch, max_queries=2)
    )
    assert set(asked) == {1, 2}


def test_of_a_long_video_a_part_is_drawn(made):
    dataset = LiveDialogues(made, max_frames=40)
    starts = set()
    for epoch in range(10):
        dataset.set_epoch(epoch)
        for row in dataset:
            check_sample(row)
            assert len(row["frame_times"]) == 40 and 5.0 <= row["frame_times"][0] <= 65.5
            starts.add(row["frame_times"][0])
            said = [message for message in row["conversation"] if message["role"] == "assistant"]
            assert said, "what began before the part is told in it"
    assert len(starts) > 10


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"video": 3}, "'video' is 3"),
        ({"start": None}, "a time in seconds is expected"),
        ({"start": 90}, "from 90.0 to 85.0 s"),
        ({"queries": []}, "0 queries"),
        ({"queries": [{"text": "Q"}]}, "no field 'answers'"),
        ({"queries": [{"text": "Q", "answers": [{"time": True, "text": "A"}]}]}, "not true"),
        (
            {"queries": [{"text": "Q", "answers": [{"time": 2, "text": "A"}, {"time": 1, "text": "B"}]}]},
            "not in the order",
        ),
    ],
)
def test_a_bad_line_is_named(made, tmp_path, change, detail):
    path = tmp_path / "bad.jsonl"
    lines = rows(made)
    path.write_text("".join(json.dumps(row) + "\n" for row in [lines[0], lines[1] | change]))
    with pytest.raises(BadRow) as error:
        LiveDialogues(path)
    assert str(error.value).startswith(f"{path}:2: wrong layout: ") and detail in str(error.value)
