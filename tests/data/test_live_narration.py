import json

import pytest

from streamchat_hf.data.annotations import BadRow, BadRows, MediaFiles
from streamchat_hf.data.live_conversation import check_sample
from streamchat_hf.data.live_narration import (
    INSTRUCTIONS,
    REFINED_INSTRUCTIONS,
    narration_sample,
    read_narrations,
    read_refined_narrations,
)
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_render import write_mp4

ANYWHERE = MediaFiles(check=False)


def said(sample):
    return [(m["time"], m["content"]) for m in sample["conversation"] if m["role"] == "assistant"]


def written(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def redacted(narrations, uid="v1"):
    return {"videos": {uid: {"narrations": [{"time": t, "text": x, "_annotation_uid": u} for t, x, u in narrations]}}}


def test_layout():
    narrations = [(3.3, "You look around."), (4.0, "You pick a cup."), (6.1, "You drink.")]
    sample = narration_sample(narrations, "Narrate.", "v.mp4")
    assert sample == {
        "conversation": [
            {"role": "stream", "num_frames": 1, "learn": 0},
            {"role": "user", "content": "Narrate.", "learn": False, "time": 3.5},
            {"role": "assistant", "content": "You look around.", "learn": True, "time": 3.5},
            {"role": "stream", "num_frames": 1, "learn": True},
            {"role": "assistant", "content": "You pick a cup.", "learn": True, "time": 4.0},
            {"role": "stream", "num_frames": 5, "learn": True},
            {"role": "assistant", "content": "You drink.", "learn": True, "time": 6.5},
        ],
        "frame_times": [3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.5],
        "media": "v.mp4",
    }
    check_sample(sample)


def test_each_is_said_once_at_the_first_frame_after_it():
    narrations = [(2.0, "C d"), (0.2, "C a"), (0.4, "C b"), (0.9, "C b"), (1.1, "C c"), (1.4, "C b"), (1.6, "C c")]
    sample = narration_sample(narrations, "Narrate.", "v.mp4")
    # a: the same frame as b; b again at 1.0; c: the same frame as b at 1.5, which is b once more; c: d's frame
    assert said(sample) == [(0.5, "C b"), (2.0, "C d")]
    check_sample(sample)


@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 10.0])
def test_any_frame_rate(fps):
    narrations = [(0.37 * i, f"C does {i}") for i in range(40)]
    sample = narration_sample(narrations, "Narrate.", "v.mp4", fps)
    check_sample(sample)
    for time, text in said(sample):
        happened = 0.37 * int(text.split()[-1])
        assert happened - 1e-3 <= time < happened + 1 / fps + 1e-3
    assert len(said(sample)) == len({-(-0.37 * i * fps // 1) for i in range(40)})


def test_what_comes_after_the_video_is_left_out():
    narrations = [(1.0, "C a"), (9.6, "C b"), (10.0, "C c"), (10.2, "C d")]
    sample = narration_sample(narrations, "Narrate.", "v.mp4", end=10.0)
    assert said(sample) == [(1.0, "C a"), (9.5, "C c")], "there is no frame at 10.0"
    assert sample["frame_times"][-1] == 9.5
    assert narration_sample(narrations, "Narrate.", "v.mp4", end=0.5) is None
    assert narration_sample([], "Narrate.", "v.mp4") is None


# As the authors clean texts; they drop what has less than two words, too.
CLEANED = {
    "#C C opens the door.": "C opens the door.",
    "#O a man X walks #unsure": "A man X walks.",
    "  #c c  picks up   a cup ,": "C picks up a cup.",
    "#C C": None,
}


@pytest.mark.parametrize(("raw", "clean"), CLEANED.items())
def test_texts_are_cleaned_as_by_the_authors(tmp_path, raw, clean):
    path, bad = written(tmp_path / "all_narrations_redacted.json", redacted([(1.0, raw, "u1")])), BadRows()
    found = [said(sample) for sample in read_narrations(path, bad, ANYWHERE, "videos")]
    assert found == ([[(1.0, clean)]] if clean else [])
    assert bad.counts == ({} if clean else {"empty answer": 1})


def test_a_row_for_each_annotator(tmp_path):
    narrations = [(1.0, "#C C runs", "u1"), (1.2, "#C C hurries", "u2"), (3.0, "#C C stops", "u1")]
    path = written(tmp_path / "all_narrations_redacted.json", redacted(narrations))
    samples = list(read_narrations(path, BadRows(refuse=True), ANYWHERE, "videos"))
    assert [said(sample) for sample in samples] == [[(1.0, "C runs."), (3.0, "C stops.")], [(1.5, "C hurries.")]]
    assert {sample["media"] for sample in samples} == {"videos/v1.mp4"}
    for sample in samples:
        check_sample(sample)
        assert sample["conversation"][1]["content"] in INSTRUCTIONS
    assert samples == list(read_narrations(path, BadRows(), ANYWHERE, "videos")), "the same instructions every time"
    asked = {
        sample["conversation"][1]["content"]
        for seed in range(40)
        for sample in read_narrations(path, BadRows(), ANYWHERE, "videos", seed=seed)
    }
    assert asked == set(INSTRUCTIONS)


def test_the_passes_of_narration_json(tmp_path):
    narrations = [{"timestamp_sec": 2.2, "narration_text": "#C C picks a bag"}]
    value = {"v1": {"narration_pass_1": {"narrations": narrations}, "narration_pass_2": {"narrations": narrations}}}
    path = written(tmp_path / "narration.json", value)
    samples = list(read_narrations(path, BadRows(refuse=True), ANYWHERE, "videos"))
    assert [said(sample) for sample in samples] == [[(2.5, "C picks a bag.")]] * 2


def test_refined_narrations(tmp_path):
    narrations = [{"time": 3.3, "text": "You pick  a bag."}, {"time": 9, "text": "You walk."}]
    path = written(tmp_path / "refined_narration_stream_val.json", {"v1": {"u1": narrations, "u2": narrations[:1]}})
    samples = list(read_refined_narrations(path, BadRows(refuse=True), ANYWHERE, "videos"))
    expected = [(3.5, "You pick a bag."), (9.0, "You walk.")]
    assert [said(sample) for sample in samples] == [expected, expected[:1]]
    for sample in samples:
        check_sample(sample)
        assert sample["conversation"][1]["content"] in REFINED_INSTRUCTIONS


@pytest.mark.parametrize(
    ("value", "source", "detail"),
    [
        ({"v1": []}, ":1[v1]", "an object is expected"),
        ({"v1": {"u1": {}}}, ":1[v1] u1", "'u1' is {}"),
        ({"v1": {"u1": [{"text": "You walk."}]}}, ":1[v1] u1 narration 1", "a time in seconds is expected"),
        ({"v1": {"u1": [{"time": "3", "text": "You walk."}]}}, ":1[v1] u1 narration 1", 'not "3"'),
        ({"v1": {"u1": [{"time": 3, "text": None}]}}, ":1[v1] u1 narration 1", "'text' is null"),
        ({"v1": {"u1": [{"time": 3, "text": "You"}]}}, ":1[v1] u1 narration 1", "'You' tells nothing"),
        ({"v1": {"u1": [{"time": -1, "text": "You walk."}]}}, ":1[v1] u1 narration 1", "-1.0 s of None s"),
    ],
)
def test_bad_refined_narrations_name_file_and_entry(tmp_path, value, source, detail):
    good = {"v2": {"u1": [{"time": 1, "text": "You walk."}]}}
    path, bad = written(tmp_path / "refined.json", value | good), BadRows()
    (sample,) = read_refined_narrations(path, bad, ANYWHERE, "videos")
    assert said(sample) == [(1.0, "You walk.")]
    ((example,),) = bad.examples.values()
    assert example.startswith(f"{path}{source}: ") and detail in example
    with pytest.raises(BadRow, match=r"refined\.json:1\[v1\]"):
        list(read_refined_narrations(path, BadRows(refuse=True), ANYWHERE, "videos"))


def test_videos_are_looked_for_and_measured(tmp_path):
    (tmp_path / "videos").mkdir()
    write_mp4(World.sample(0, duration=4.0), tmp_path / "videos" / "v1.mp4", fps=10, size=32)
    narrations = [{"time": t, "text": f"You do {t}."} for t in (1.0, 3.9, 5.0)]
    path, bad = written(tmp_path / "refined.json", {"v1": {"u1": narrations}, "v2": {"u1": narrations}}), BadRows()
    (sample,) = read_refined_narrations(path, bad, MediaFiles(), tmp_path / "videos")
    assert sample["media"] == str(tmp_path / "videos" / "v1.mp4")
    assert said(sample) == [(1.0, "You do 1.0."), (3.5, "You do 3.9.")]
    assert bad.counts == {"outside of the video": 1, "missing video": 1}
    assert bad.examples["outside of the video"][0].startswith(f"{path}:1[v1] u1 narration 3: 5.0 s of 4.0 s")
