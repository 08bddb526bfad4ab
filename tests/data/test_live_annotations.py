import json
from dataclasses import replace

import pytest

from streamchat_hf.data.annotations import BadRow, BadRows, MediaFiles
from streamchat_hf.data.live_annotations import (
    COIN_BENCHMARKS,
    MOST_WAITING_FRAMES,
    coin_benchmark,
    coin_stream,
    coin_task,
    coin_timeline,
    read_coin,
    read_coin_benchmark,
    read_coin_stream,
    read_goalstep,
    read_livechat,
)
from streamchat_hf.data.live_conversation import check_sample
from streamchat_hf.data.synthesize_segment import Caption
from video_files import write_video

ANYWHERE = MediaFiles(check=False)


def written(path, value):
    path.write_text(json.dumps(value, indent=1))
    return str(path)


def said(sample, role="assistant"):
    return [(m["time"], m["content"]) for m in sample["conversation"] if m["role"] == role]


def coin(**changes):
    video = {
        "duration": 30.2,
        "class": "ReplaceTheBulbOfTVRemote",
        "video_url": "https://www.youtube.com/embed/AbC",
        "start": 1.0,
        "end": 29.0,
        "subset": "training",
        "recipe_type": 131,
        "annotation": [
            {"id": "2", "segment": [9.3, 20.0], "label": "take out the bulb"},
            {"id": "1", "segment": [2.2, 9.0], "label": "open the remote"},
            {"id": "3", "segment": [20.0, 31.0], "label": "close the remote"},
        ],
    }
    return {key: value for key, value in (video | changes).items() if value is not ...}


@pytest.fixture
def video(tmp_path):
    path = written(tmp_path / "COIN.json", {"database": {"AbC": coin()}})
    (found,) = read_coin(path, BadRows(refuse=True))
    return found


TASKS = {
    "PutOnHairExtensions": "put on hair extensions",
    "ReplaceTheBulbOfTVRemote": "replace the bulb of TV remote",
    "MakeRJ45Cable": "make RJ45 cable",
    "InstallSIMCard": "install SIM card",
    "MakeCDCase": "make CD case",
    "CleanSSD": "clean SSD",
    "MakeATable": "make a table",
}


@pytest.mark.parametrize(("name", "words"), TASKS.items())
def test_tasks_in_words_are_the_authors(name, words):
    assert coin_task(name) == words


def test_coin(video):
    assert (video.id, video.duration, video.task) == ("AbC", 30.2, "replace the bulb of TV remote")
    assert video.source.endswith("COIN.json:3[AbC]")
    open_it, take, close = video.steps
    assert (open_it, take) == (Caption(2.2, 9.0, "open the remote"), Caption(9.3, 20.0, "take out the bulb"))
    assert close == Caption(20.0, 30.2, "close the remote"), "it ends with the video"
    assert coin_timeline(video, "AbC.mp4").moments == [2.2, 9.0, 9.3, 20.0, 30.2]


def test_coin_subsets(tmp_path):
    videos = {name: coin(subset=name) for name in ("training", "testing", "validation", "Train")}
    path = written(tmp_path / "COIN.json", {"database": videos})
    for subset, expected in [("train", ["training", "Train"]), ("test", ["testing", "validation"]), (None, [*videos])]:
        assert [video.id for video in read_coin(path, BadRows(refuse=True), subset)] == expected
    with pytest.raises(ValueError, match="unknown subset 'val' of COIN"):
        next(read_coin(path, BadRows(), "val"))


@pytest.mark.parametrize(
    ("changes", "place", "detail"),
    [
        ({"duration": ...}, "", "no field 'duration'"),
        ({"duration": "30"}, "", "'duration' is \"30\""),
        ({"class": None}, "", "'class' is null"),
        ({"subset": ...}, "", "no field 'subset'"),
        ({"annotation": {}}, "", "'annotation' is {}"),
        ({"annotation": []}, "", "a video without steps"),
        ({"annotation": [*coin()["annotation"], {"segment": [1], "label": "a"}]}, " step 4", "not [1]"),
        ({"annotation": [*coin()["annotation"], {"segment": [2, 1], "label": "a"}]}, " step 4", "2.0 to 1.0 s"),
        ({"annotation": [*coin()["annotation"], {"segment": [40, 41], "label": "a"}]}, " step 4", "40.0 to 41.0 s"),
        ({"annotation": [*coin()["annotation"], {"segment": [1, None], "label": "a"}]}, " step 4", "not null"),
        ({"annotation": [*coin()["annotation"], {"segment": [1, 2], "label": " "}]}, " step 4", "without words"),
        ({"annotation": [*coin()["annotation"], {"segment": [1, 2]}]}, " step 4", "no field 'label'"),
    ],
)
def test_bad_coin_entries_are_named_and_do_not_cost_the_others(tmp_path, changes, place, detail):
    path, bad = written(tmp_path / "COIN.json", {"database": {"bad": coin(**changes), "good": coin()}}), BadRows()
    found = list(read_coin(path, bad))
    assert [(video.id, len(video.steps)) for video in found] == [("bad", 3)] * bool(place) + [("good", 3)]
    ((example,),) = bad.examples.values()
    assert example.startswith(f"{path}:3[bad]{place}: ") and detail in example
    with pytest.raises(BadRow, match=r"COIN\.json:3\[bad\]"):
        list(read_coin(path, BadRows(refuse=True)))


def test_coin_stream_reminds_at_starts_and_ends(video):
    sample = coin_stream(video, "AbC.mp4")
    check_sample(sample)
    assert sample["frame_times"] == [i / 2 for i in range(61)] and sample["media"] == "AbC.mp4"
    assert said(sample, "user") == [
        (
            0.0,
            "The video is about to replace the bulb of TV remote. Please remind me when the related action starts, "
            "summarizes when it ends, as well as forecasts the next action.",
        )
    ]
    assert said(sample) == [
        (2.5, "The action starts: open the remote."),
        (9.0, "The action ends: open the remote. The next one is: take out the bulb."),
        (9.5, "The action starts: take out the bulb."),
        (
            20.0,
            "The action ends: take out the bulb. The next one is: close the remote. "
            "The action starts: close the remote.",
        ),
        (30.0, "The action ends: close the remote. It was the last one."),
    ]


def test_a_stream_whose_first_step_starts_with_the_video(tmp_path):
    steps = [{"segment": [0, 4.0], "label": "a"}, {"segment": [2.0, 6.0], "label": "b"}]
    path = written(tmp_path / "COIN.json", {"database": {"AbC": coin(annotation=steps)}})
    (video,) = read_coin(path, BadRows(refuse=True))
    sample = coin_stream(video, "AbC.mp4")
    check_sample(sample)
    assert [time for time, _ in said(sample)] == [0.0, 2.0, 4.0, 6.0]
    assert sample["conversation"][-1] == {"role": "stream", "num_frames": 48, "learn": 47}


def questions(video, benchmark, **kwargs):
    found = []
    for sample in coin_benchmark(video, "AbC.mp4", benchmark, **kwargs):
        check_sample(sample)
        assert [message["role"] for message in sample["conversation"]] == ["user", "stream", "assistant"]
        assert sample["conversation"][1]["learn"] is True
        ((_, prompt),), ((_, answer),) = said(sample, "user"), said(sample)
        found.append((sample["frame_times"][0], sample["frame_times"][-1], prompt, answer))
    return found


def test_coin_benchmarks_about_one_thing(video):
    assert set(COIN_BENCHMARKS) == {"step", "next", "task", "procedure", "taskprocedure"}
    step = "What is the action in the video? Format your answer concisely. No extra text output."
    assert questions(video, "step") == [
        (2.0, 9.0, step, "Open the remote."),
        (9.0, 20.0, step, "Take out the bulb."),
        (20.0, 30.0, step, "Close the remote."),
    ]
    following = COIN_BENCHMARKS["next"]
    assert questions(video, "next") == [
        (2.0, 9.0, following, "Take out the bulb."),
        (9.0, 20.0, following, "Close the remote."),
    ]
    assert questions(video, "task", fps=4.0) == [
        (2.0, 30.0, COIN_BENCHMARKS["task"], "Replace the bulb of tv remote.")
    ]
    whole = replace(video, duration=30.0, steps=(Caption(20.0, 30.0, "close the remote"),))
    assert [row[:2] for row in questions(whole, "step")] == [(20.0, 29.5)], "a video of 30 s has no frame at 30.0"
    with pytest.raises(ValueError, match="unknown COIN benchmark 'steps'"):
        coin_benchmark(video, "AbC.mp4", "steps")


def test_coin_benchmarks_about_what_follows(tmp_path, video):
    (first, second) = questions(video, "procedure")
    assert "next 2 actions" in first[2] and first[3] == "1. Take out the bulb.\n2. Close the remote."
    assert (second[2], second[3]) == (COIN_BENCHMARKS["next"], "Close the remote.")
    (first, second) = questions(video, "taskprocedure")
    goal = "To replace the bulb of TV remote, what "
    assert first[2].startswith(f"{goal}are the next 2 actions") and first[3].count("\n") == 1
    assert second[2].startswith(f"{goal}is the next action") and second[3] == "Close the remote."
    many = [{"segment": [2 * i, 2 * i + 1], "label": f"step {i}"} for i in range(9)]
    path = written(tmp_path / "many.json", {"database": {"AbC": coin(annotation=many)}})
    (video,) = read_coin(path, BadRows(refuse=True))
    found = questions(video, "procedure")
    assert [answer.count("\n") + 1 for *_, answer in found] == [5, 5, 5, 5, 4, 3, 2, 1]
    assert found[0][3] == "1. Step 1.\n2. Step 2.\n3. Step 3.\n4. Step 4.\n5. Step 5."


def test_coin_rows_are_those_of_the_videos_that_are_there(tmp_path):
    videos = {"AbC": coin(), "lost": coin(), "held": coin(subset="testing")}
    path = written(tmp_path / "COIN.json", {"database": videos})
    (tmp_path / "videos" / "part").mkdir(parents=True)
    write_video(tmp_path / "videos" / "part" / "AbC.mp4", range(0, 2000, 500))
    found = {video.id: video for video in read_coin(path, BadRows(refuse=True))}
    media, bad = str(tmp_path / "videos" / "part" / "AbC.mp4"), BadRows()
    rows = list(read_coin_stream(path, bad, MediaFiles(), tmp_path / "videos", fps=4.0))
    assert rows == [coin_stream(found["AbC"], media, 4.0)]
    assert bad.counts == {"missing video": 1} and "COIN.json:" in str(bad) and "[lost]" in str(bad)
    for benchmark in COIN_BENCHMARKS:
        rows = list(read_coin_benchmark(path, BadRows(), MediaFiles(), tmp_path / "videos", benchmark, fps=4.0))
        assert rows == coin_benchmark(found["AbC"], media, benchmark, 4.0)


def test_coin_rows_of_each_subset(tmp_path):
    path = written(tmp_path / "COIN.json", {"database": {"a": coin(), "b": coin(subset="testing")}})
    for options, expected in (({}, ["a"]), ({"subset": "test"}, ["b"]), ({"subset": None}, ["a", "b"])):
        for read, more in ((read_coin_stream, {}), (read_coin_benchmark, {"benchmark": "task"})):
            rows = read(path, BadRows(refuse=True), ANYWHERE, "videos", **more, **options)
            assert [row["media"] for row in rows] == [f"videos/{name}.mp4" for name in expected]


def goalstep(**changes):
    step = {
        "start_time": 0,
        "end_time": 56.9,
        "step_category": "Toast: Toast bread",
        "step_description": "Toast bread",
        "segments": [
            {"start_time": 30.0, "end_time": 50.0, "step_description": "Wait"},
            {"start_time": 1.5, "end_time": 20.0, "step_description": "Put the bread in"},
        ],
    }
    video = {
        "video_uid": "v1",
        "start_time": 0.02,
        "end_time": 510.1,
        "goal_category": "COOKING:MAKE_OMELET",
        "goal_description": "Make omelette ",
        "segments": [step, {"start_time": 60.0, "end_time": 99.0, "step_description": "Eat", "segments": []}],
    }
    return {key: value for key, value in (video | changes).items() if value is not ...}


def test_goalstep(tmp_path):
    path = written(tmp_path / "goalstep_val.json", {"version": "1.0", "split": "val", "videos": [goalstep()]})
    whole, toast = read_goalstep(path, BadRows(refuse=True), "videos")
    assert (whole.video, whole.goal, toast.video, toast.goal) == (
        "videos/v1.mp4",
        "Make omelette",
        "videos/v1.mp4",
        "Toast bread",
    )
    assert whole.captions == (Caption(0.0, 56.9, "Toast bread"), Caption(60.0, 99.0, "Eat"))
    assert toast.captions == (Caption(1.5, 20.0, "Put the bread in"), Caption(30.0, 50.0, "Wait"))


@pytest.mark.parametrize(
    ("changes", "place", "detail"),
    [
        ({"video_uid": ...}, "", "no field 'video_uid'"),
        ({"goal_description": 3}, "", "'goal_description' is 3"),
        ({"segments": ...}, "", "no field 'segments'"),
        ({"segments": []}, " v1", "no steps"),
        (
            {"segments": [*goalstep()["segments"], {"start_time": 1, "end_time": 2}]},
            " v1 step 3",
            "'step_description'",
        ),
        ({"segments": [*goalstep()["segments"], "eat"]}, " v1 step 3", "an object is expected"),
        (
            {"segments": [*goalstep()["segments"], {"start_time": 3, "end_time": 2, "step_description": "a"}]},
            " v1 step 3",
            "3.0 to 2.0 s",
        ),
        (
            {"segments": [*goalstep()["segments"], {"start_time": "3", "end_time": 2, "step_description": "a"}]},
            " v1 step 3",
            "'start_time'",
        ),
    ],
)
def test_bad_goalstep_entries_are_named(tmp_path, changes, place, detail):
    videos = [goalstep(**changes), goalstep(video_uid="v2")]
    path, bad = written(tmp_path / "goalstep_val.json", {"videos": videos}), BadRows()
    found = list(read_goalstep(path, bad, "videos"))
    assert [timeline.video for timeline in found][-2:] == ["videos/v2.mp4"] * 2
    assert len(found) == (4 if "step" in place else 2)
    ((example,),) = bad.examples.values()
    assert example.startswith(f"{path}:3[0]{place}: ") and detail in example


def chat(*messages, **changes):
    conversation = [{"role": role, "content": content, "time": time} for role, content, time in messages]
    return {"video_uid": "v1", "duration": 100.0, "conversation": conversation} | changes


def read_chats(tmp_path, chats, **kwargs):
    path, bad = written(tmp_path / "livechat.json", chats), BadRows()
    return list(read_livechat(path, bad, ANYWHERE, "videos", **kwargs)), bad, path


CHAT = (
    ("user", "Q", 12.7),
    ("assistant", "at once", 12.7),
    ("assistant", "A", 15.1),
    ("assistant", "same frame", 15.4),
    ("user", "R", 15.45),  # the frame at 15.0 has passed: the answer at 15.1 came with the one at 15.5
    ("assistant", "B", 20.0),
)


def test_livechat(tmp_path):
    (sample,), bad, _ = read_chats(tmp_path, [chat(*CHAT)])
    check_sample(sample)
    assert not bad.counts and sample["media"] == "videos/v1.mp4"
    assert said(sample, "user") == [(12.5, "Q"), (15.5, "R")]
    assert said(sample) == [(12.5, "at once"), (15.5, "A"), (20.0, "B")]
    assert sample["frame_times"][-1] == 20.0


def test_questions_come_after_up_to_twenty_silent_frames(tmp_path):
    waits = []
    for seed in range(60):
        (sample,), *_ = read_chats(tmp_path, [chat(*CHAT)], seed=seed)
        first = sample["conversation"][0]
        assert first["role"] == "stream" and first["learn"] == first["num_frames"] - 1
        waits.append(first["num_frames"] - 1)
    assert min(waits) == 0 and max(waits) == MOST_WAITING_FRAMES and len(set(waits)) > 15
    assert read_chats(tmp_path, [chat(*CHAT)], seed=3)[0] == read_chats(tmp_path, [chat(*CHAT)], seed=3)[0]
    (early,), *_ = read_chats(tmp_path, [chat(("user", "Q", 0.3), ("assistant", "A", 2.0))])
    assert early["frame_times"] == [0.0, 0.5, 1.0, 1.5, 2.0], "there is nothing before the video"


@pytest.mark.parametrize(
    ("late", "detail"),
    [
        (("assistant", "C", 19.0), "said at 19.0 s"),
        (("assistant", "C", 101.0), "said at 101.0 s"),
        (("system", "C", 21.0), "unknown role 'system'"),
        (("assistant", None, 21.0), "'content' is null"),
        (("assistant", "C", None), "'time' is null"),
    ],
)
def test_a_livechat_ends_where_it_makes_no_sense(tmp_path, late, detail):
    (sample,), bad, path = read_chats(tmp_path, [chat(*CHAT, late, ("assistant", "D", 30.0))])
    assert said(sample)[-1] == (20.0, "B")
    ((example,),) = bad.examples.values()
    assert example.startswith(f"{path}:2[0] v1 message 7: ") and detail in example


def test_the_last_answers_of_a_video_come_with_its_last_frame(tmp_path):
    (sample,), bad, _ = read_chats(tmp_path, [chat(*CHAT, ("assistant", "C", 100.0))])
    assert said(sample)[-1] == (99.5, "C") and not bad.counts


@pytest.mark.parametrize(
    ("value", "detail"),
    [
        (chat(("assistant", "A", 1.0), ("user", "Q", 2.0)), "a dialogue begins with the user"),
        (chat(), "a dialogue begins with the user"),
        (chat(("user", "Q", 2.0)), "a dialogue without an answer"),
        (chat(*CHAT, video_uid=None), "'video_uid' is null"),
        (chat(*CHAT, duration="long"), 'not "long"'),
        ({"video_uid": "v1"}, "no field 'conversation'"),
        ([], "an object is expected"),
    ],
)
def test_livechats_that_are_none_are_named_and_do_not_cost_the_others(tmp_path, value, detail):
    found, bad, path = read_chats(tmp_path, [value, chat(*CHAT)])
    assert len(found) == 1
    ((example,),) = bad.examples.values()
    assert example.startswith(f"{path}:2[0]: ") and detail in example


def test_missing_videos_of_livechats(tmp_path):
    path, bad = written(tmp_path / "livechat.json", [chat(*CHAT)]), BadRows()
    assert not list(read_livechat(path, bad, MediaFiles(), tmp_path))
    assert bad.counts == {"missing video": 1}


def test_a_dialogue_may_be_watched_from_the_start(tmp_path):
    (sample,), *_ = read_chats(tmp_path, [chat(*CHAT)], from_start=True)
    check_sample(sample)
    assert sample["frame_times"][0] == 0.0 and said(sample, "user") == [(12.5, "Q"), (15.5, "R")]
    assert sample["conversation"][0]["num_frames"] == 26
