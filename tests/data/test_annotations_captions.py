import json
import shutil
from pathlib import Path

import pytest

from streamchat_hf.data.annotations import BadRow, BadRows
from streamchat_hf.data.annotations_captions import (
    CAPTION_QUESTIONS,
    NARRATION_QUESTIONS,
    SceneTimes,
    read_activitynet_captions,
    read_ego4d,
    read_vript,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "annotations"
VRIPT = FIXTURES / "vript"


def good(annotations):
    """Annotations: source without the folder, id, media, and each turn's answer and interval."""
    rows = []
    for annotation in annotations:
        assert annotation.kind == "dense"
        turns = [(turn.answer, turn.start, turn.end) for turn in annotation.turns]
        rows.append((annotation.source.removeprefix(f"{FIXTURES}/"), annotation.id, annotation.media, turns))
    return rows


def written(path, value):
    path.write_text(json.dumps(value))
    return str(path)


def test_activitynet_captions():
    path = str(FIXTURES / "activitynet.json")
    found = list(read_activitynet_captions(path, BadRows(refuse=True)))
    assert good(found) == [
        (
            "activitynet.json:1[v_AbC]",
            "v_AbC",
            ("v_AbC", "AbC"),
            [("A woman stands.", 0.8, 5.9), (" She dances while music plays.", 3.4, 9.8), (" She bows.", 6.0, 12.3)],
        ),
        ("activitynet.json:2[v_XyZ]", "v_XyZ", ("v_XyZ", "XyZ"), [(" A man fishes.", 0.0, 11.5)]),
    ]
    assert found[0].turns[1].source == f"{path}:1[v_AbC] sentence 2"
    assert {turn.instruction for annotation in found for turn in annotation.turns} <= set(CAPTION_QUESTIONS)


def test_activitynet_keys_without_the_prefix(tmp_path):
    path = written(tmp_path / "train.json", {"AbC": {"timestamps": [[0, 1]], "sentences": ["A."]}})
    (annotation,) = read_activitynet_captions(path, BadRows(refuse=True))
    assert (annotation.id, annotation.media) == ("AbC", ("v_AbC", "AbC"))


def test_a_bad_sentence_does_not_cost_the_others(tmp_path):
    value = {"timestamps": [[0, 1], [1], [2, 3], [3, 4]], "sentences": ["A.", "B.", None, "D."]}
    path = written(tmp_path / "train.json", {"v_AbC": value, "v_XyZ": {**value, "sentences": []}, "v_0": []})
    bad = BadRows()
    (annotation,) = read_activitynet_captions(path, bad)
    assert [turn.answer for turn in annotation.turns] == ["A.", "D."]
    assert bad.counts == {"wrong layout": 4}
    assert bad.examples["wrong layout"][0].startswith(f"{path}:1[v_AbC] sentence 2: [start, end] is expected")
    assert bad.examples["wrong layout"][2] == f"{path}:1[v_XyZ]: 4 timestamps for 0 sentences"


def test_questions_depend_on_the_seed_and_the_place_alone(tmp_path):
    value = {"timestamps": [[i, i + 1] for i in range(40)], "sentences": ["A."] * 40}

    def questions(name, seed):
        path = written(tmp_path / "train.json", {"v_before": value, name: value})
        *_, annotation = read_activitynet_captions(path, BadRows(refuse=True), seed)
        return [turn.instruction for turn in annotation.turns]

    assert questions("v_AbC", 0) == questions("v_AbC", 0)
    assert set(questions("v_AbC", 0)) == set(CAPTION_QUESTIONS)
    assert questions("v_AbC", 0) != questions("v_AbC", 1) != questions("v_XyZ", 1)


def test_ego4d_narrations_by_pass():
    path = str(FIXTURES / "narration.json")
    found = list(read_ego4d(path, BadRows(refuse=True)))
    assert good(found) == [
        (
            "narration.json:1[0a1b-uid]",
            "0a1b-uid/narration_pass_1",
            ("0a1b-uid",),
            [
                ("C picks a bag.", 3.34, None),
                ("A man X opens the.", 4.34, None),
                ("C walks slowly into the wide green garden.", 9.0, None),
            ],
        ),
        (
            "narration.json:1[0a1b-uid]",
            "0a1b-uid/narration_pass_2",
            ("0a1b-uid",),
            [("C takes a bag.", 3.5, None)],
        ),
    ]
    assert {turn.instruction for annotation in found for turn in annotation.turns} <= set(NARRATION_QUESTIONS)
    assert all("C" in question for question in NARRATION_QUESTIONS)


def test_ego4d_redacted_narrations_by_annotator():
    path = str(FIXTURES / "all_narrations_redacted.json")
    assert good(read_ego4d(path, BadRows(refuse=True))) == [
        (
            "all_narrations_redacted.json:2[0a1b-uid]",
            "0a1b-uid/u1",
            ("0a1b-uid",),
            [("C opens a door.", 4.3, None), ("C picks a bag.", 3.3, None)],
        ),
        (
            "all_narrations_redacted.json:2[0a1b-uid]",
            "0a1b-uid/u2",
            ("0a1b-uid",),
            [("C picks a red bag.", 3.4, None)],
        ),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("#C C picks a bag", "C picks a bag."),
        ("#CC picks a bag.\n", "C picks a bag."),
        ("#c c picks #Unsure, ", "C picks."),
        ("#O The man #X waves .", "The man X waves."),
        ("@c C laughs", "C laughs."),
        ("#Camera wearer sits", "Camera wearer sits."),
    ],
)
def test_narrations_become_sentences(tmp_path, text, sentence):
    path = written(tmp_path / "narration.json", {"u": {"narrations": [{"time": 0, "text": text}]}})
    (annotation,) = read_ego4d(path, BadRows(refuse=True))
    assert [turn.answer for turn in annotation.turns] == [sentence]


def test_bad_narrations_are_named(tmp_path):
    narrations = [
        {"timestamp_sec": 1, "narration_text": "#C C sits"},
        {"timestamp_sec": 2, "narration_text": "#unsure C"},
        {"timestamp_sec": None, "narration_text": "#C C sits"},
        {"timestamp_sec": 4},
        "#C C sits",
        {"timestamp_sec": 6, "narration_text": "#C C stands"},
    ]
    videos = {
        "u": {"narration_pass_2": {"narrations": narrations}},
        "v": {"status": "redacted"},
        "w": [],
        "x": {"narrations": [3]},
    }
    path = written(tmp_path / "narration.json", videos)
    bad = BadRows()
    (annotation,) = read_ego4d(path, bad)
    assert [turn.answer for turn in annotation.turns] == ["C sits.", "C stands."]
    assert bad.counts == {"empty answer": 1, "wrong layout": 5, "no turns": 1}
    assert bad.examples["empty answer"] == [
        f"{path}:1[u] narration_pass_2 narration 2: '#unsure C' tells nothing",
    ]
    assert bad.examples["no turns"] == [f"{path}:1[v]: a video without narrations"]


def test_vript_scenes_have_the_times_of_their_cuts():
    path = VRIPT / "AbC_caption.json"
    found = list(read_vript(str(path), BadRows(refuse=True), SceneTimes(VRIPT)))
    scenes = [("A pot stands on a stove.", 0, 4.5), ("Steam rises.", 4.5, 6), ("Soup is served.", 8, 11.5)]
    assert good(found) == [("vript/AbC_caption.json:4[AbC-Scene-001]", "AbC", ("AbC",), scenes)]
    assert found[0].turns[2].source == f"{path}:6[AbC-Scene-004]"


def test_vript_scenes_without_cuts_have_summed_durations():
    path = VRIPT / "vript_short_captions.jsonl"
    scenes = [("Waves roll in.", 0, 5.5), ("A gull lands.", 5.5, 8.75)]
    assert good(read_vript(str(path), BadRows(refuse=True), SceneTimes(VRIPT))) == [
        ("vript/vript_short_captions.jsonl:1", "XyZ_0", ("XyZ_0",), scenes)
    ]


def vript_times(tmp_path, ending, text):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / f"AbC{ending}").write_text(text)
    return SceneTimes(tmp_path).of("AbC")


@pytest.mark.parametrize(
    "cut",
    [
        {"start": 4.5, "end": 6.0},
        {"start_frame": 135, "start_time": "4.5", "end_frame": 180, "end_time": "6.0"},
        {"start time": "00:00:04.500", "duration": 1.5},
        {"Start Time": "0:04.5", "End Time": "0:06"},
    ],
)
@pytest.mark.parametrize("clip_id", ["AbC-Scene-002", "AbC-Scene-002.mp4"])
def test_cuts_in_several_spellings(tmp_path, cut, clip_id):
    text = json.dumps({"video": "AbC", "clips": [{"clip_id": clip_id, **cut}]})
    assert vript_times(tmp_path, "_cut_meta.json", text) == {2: (4.5, 6.0)}


def test_a_cut_ends_where_the_next_one_starts(tmp_path):
    starts = ["00:00:00.100", "00:01:01.029", "00:01:01.129"]
    cuts = [
        {"clip_id": f"AbC-Scene-{n}", "start": start, "duration": duration}
        for n, (start, duration) in enumerate(zip(starts, (60.929, 0.1, 1), strict=True), start=1)
    ]
    text = json.dumps({"clips": cuts})
    assert vript_times(tmp_path, "_cut_meta.json", text) == {
        1: (0.1, 61.029),
        2: (61.029, 61.129),
        3: (61.129, 62.129),
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"clips": [{"clip_id": "AbC-Scene-001", "start": 3}]}',
        '{"clips": [{"clip_id": "AbC-Scene-001", "start": "early", "end": 3}]}',
        '{"clips": [{"clip_id": "AbC", "start": 0, "end": 3}]}',
        '{"clips": [',
    ],
)
def test_cuts_that_cannot_be_read(tmp_path, text):
    with pytest.raises(
        BadRow, match=f"^no scene times: {tmp_path}/clips/AbC_cut_meta.json: (wrong layout|not JSON): "
    ):
        vript_times(tmp_path, "_cut_meta.json", text)


def test_durations_add_up_to_the_first_missing_scene(tmp_path):
    lines = [{"clip_id": f"AbC-Scene-{n:03}", "duration": float(n)} for n in (5, 2, 1, 3)]
    text = "\n".join(map(json.dumps, lines))
    assert vript_times(tmp_path, "_asr.jsonl", text) == {1: (0, 1), 2: (1, 3), 3: (3, 6)}


def test_a_duration_that_cannot_be_read(tmp_path):
    with pytest.raises(BadRow, match="no scene times: .*AbC_asr.jsonl: wrong layout: a time in seconds is expected"):
        vript_times(tmp_path, "_asr.jsonl", '{"clip_id": "AbC-Scene-001", "duration": "long"}')


def test_a_scene_at_an_unknown_time_and_a_video_without_times(tmp_path):
    shutil.copy(VRIPT / "XyZ_0_asr.jsonl", tmp_path)
    caption = {"content": "A."}
    clips = ["XyZ_0-Scene-002", "XyZ_0-Scene-009", "other-Scene-001", "XyZ_0-scene", "XyZ_0-Scene-001"]
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps({"clip_id": clip, "caption": caption}) for clip in clips))
    bad = BadRows()
    found = list(read_vript(str(path), bad, SceneTimes(tmp_path)))
    assert [[(turn.start, turn.end) for turn in annotation.turns] for annotation in found] == [
        [(5.5, 8.75), (None, None)],
        [(0.0, 5.5)],
    ]
    assert bad.examples == {
        "no scene times": [f"{path}:3: neither other_cut_meta.json nor other_asr.jsonl in {tmp_path}"],
        "wrong layout": [f"{path}:4: <video>-Scene-<number> is expected, not 'XyZ_0-scene'"],
    }
