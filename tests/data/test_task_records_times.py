import json
from pathlib import Path

import pytest

from streamchat_hf.data.annotations import BadRows
from streamchat_hf.data.task_records import TaskRecord
from streamchat_hf.data.task_records_times import (
    read_action_intervals,
    read_activitynet,
    read_charades_sta,
    read_didemo,
    read_qvhighlights,
    read_streamformer_csv,
    read_tacos,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "task_records"
REFUSE = BadRows(refuse=True)
GROUNDING, LOCALIZATION, RETRIEVAL = "temporal_grounding", "temporal_localization", "video_text_retrieval"


def written(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return str(path)


def test_hacs():
    path = str(FIXTURES / "hacs.json")
    record = TaskRecord(
        "--0ed",
        f"{path}:1[--0ed]",
        LOCALIZATION,
        ("Dodgeball", "Archery"),
        ("v_--0ed", "--0ed"),
        intervals=((5.4, 11.6), (60.0, 92.166667)),
    )
    assert list(read_action_intervals(path, REFUSE)) == [record]
    (validation,) = read_action_intervals(path, REFUSE, "validation")
    assert (validation.id, validation.source) == ("-1zzz", f"{path}:2[-1zzz]")


def test_fineaction():
    path = str(FIXTURES / "fineaction.json")
    assert list(read_action_intervals(path, REFUSE)) == [
        TaskRecord(
            f"v_0000000{i}",
            f"{path}:{i}[v_0000000{i}]",
            LOCALIZATION,
            (label,),
            (f"v_0000000{i}", f"0000000{i}"),
            intervals=(times,),
        )
        for i, label, times in ((1, "wash hands", (0.5, 1.25)), (2, "wave", (1.0, 2.0)))
    ]


def test_a_bad_interval_costs_its_video_and_no_other(tmp_path):
    def video(*segments):
        return {"subset": "training", "annotations": [{"label": "a", "segment": segment} for segment in segments]}

    value = {"a": video([0, 1], [3, 2]), "b": video(), "c": video([0, 1]), "d": {}, "e": {"subset": "testing"}}
    path = written(tmp_path / "f.json", {"database": value})
    bad = BadRows()
    assert [record.id for record in read_action_intervals(path, bad)] == ["c"]
    assert bad.counts == {"interval ends before it starts": 1, "no intervals": 1, "wrong layout": 1}
    assert bad.examples["interval ends before it starts"] == [f"{path}:1[a]: 3 to 2 s"]


def test_charades_sta():
    path = str(FIXTURES / "charades_sta.txt")
    shelf, light = "a person is putting a book on a shelf.", "person turn a light on."
    assert list(read_charades_sta(path, REFUSE)) == [
        TaskRecord("AO8RW#1", f"{path}:1", GROUNDING, (shelf,), ("AO8RW",), intervals=((0.0, 6.9),)),
        TaskRecord("3MSZA#2", f"{path}:2", GROUNDING, (light,), ("3MSZA",), intervals=((24.3, 30.4),)),
    ]


def test_bad_lines_of_charades_sta(tmp_path):
    path = written(tmp_path / "f.txt", "A 0 1 no marks\n\nB 1 x##text\nC 2 1##text\nD 0 1##\nE 0 1##a # b\n")
    bad = BadRows()
    assert [(record.id, record.texts) for record in read_charades_sta(path, bad)] == [("E#6", ("a # b",))]
    found = {example.split(" ")[0] for examples in bad.examples.values() for example in examples}
    assert found == {f"{path}:{line}:" for line in (1, 3, 4, 5)}


def test_qvhighlights():
    path = str(FIXTURES / "qvhighlights.jsonl")
    media = [
        tuple(f"{name}.{ending}" for ending in ("mp4", "mkv", "webm", "avi"))
        for name in ("AbC_660.0_810.0", "XyZ_0.0_126.0")
    ]
    windows = ((0.0, 16.0), (20.0, 22.0))
    assert list(read_qvhighlights(path, REFUSE)) == [
        TaskRecord("8737", f"{path}:1", GROUNDING, ("A family plays.",), media[0], intervals=windows),
        TaskRecord("9", f"{path}:2", GROUNDING, ("A dog in a car.",), media[1], intervals=((100.0, 126.0),)),
    ]


def test_a_query_of_the_test_set_has_no_windows(tmp_path):
    rows = [{"qid": 1, "query": "x", "duration": 9, "vid": "v"}, {"qid": 2, "query": "x", "duration": 9, "vid": "v"}]
    path = written(tmp_path / "f.jsonl", "\n".join(map(json.dumps, [rows[0], {**rows[1], "relevant_windows": []}])))
    bad = BadRows()
    assert list(read_qvhighlights(path, bad)) == []
    assert bad.counts == {"wrong layout": 1, "no intervals": 1}


def test_tacos_counts_frames():
    path = str(FIXTURES / "tacos.json")
    media = ("s13-d21.avi", "s13-d21-cam-002.avi", "s13-d21", "s13-d21-cam-002")
    source = f"{path}:1[s13-d21.avi] sentence"
    assert list(read_tacos(path, REFUSE)) == [
        TaskRecord(
            "s13-d21.avi#1", f"{source} 1", GROUNDING, ("He opens a drawer.",), media, intervals=((8.0, 15.0),)
        ),
        TaskRecord(
            "s13-d21.avi#2", f"{source} 2", GROUNDING, ("He takes a knife.",), media, intervals=((20.0, 23.0),)
        ),
    ]


def test_activitynet_captions():
    path = str(FIXTURES / "activitynet.json")
    abc, xyz = f"{path}:1[v_AbC] sentence", f"{path}:2[v_XyZ] sentence"
    dances, stands, fishes = "She dances while music plays.", "A woman stands.", "A man fishes."
    assert list(read_activitynet(path, REFUSE)) == [
        TaskRecord("v_AbC#1", f"{abc} 1", GROUNDING, (dances,), ("v_AbC", "AbC"), intervals=((3.4, 9.8),)),
        TaskRecord("v_AbC#2", f"{abc} 2", GROUNDING, (stands,), ("v_AbC", "AbC"), intervals=((0.8, 5.9),)),
        TaskRecord("v_XyZ#1", f"{xyz} 1", GROUNDING, (fishes,), ("v_XyZ", "XyZ"), intervals=((0.0, 11.5),)),
    ]
    assert list(read_activitynet(path, REFUSE, RETRIEVAL)) == [
        TaskRecord("v_AbC", f"{abc} 1", RETRIEVAL, (f"{stands} {dances}",), ("v_AbC", "AbC")),
        TaskRecord("v_XyZ", f"{xyz} 1", RETRIEVAL, (fishes,), ("v_XyZ", "XyZ")),
    ]


@pytest.mark.parametrize("task", [GROUNDING, RETRIEVAL])
def test_a_bad_sentence_does_not_cost_the_others(tmp_path, task):
    value = {"duration": 9, "timestamps": [[0, 1], [2, 1], [9, 12], [2, 3]], "sentences": ["A.", "B.", "C.", "D."]}
    path = written(tmp_path / "f.json", {"v_A": value, "v_B": {**value, "sentences": []}, "v_C": {}})
    bad = BadRows()
    texts = [record.texts[0] for record in read_activitynet(path, bad, task)]
    assert texts == (["A.", "D."] if task == GROUNDING else ["A. D."])
    assert bad.counts == {
        "interval ends before it starts": 1,
        "interval outside the video": 1,
        "wrong layout": 2,
    }
    assert bad.examples["interval outside the video"] == [f"{path}:1[v_A] sentence 3: 9 to 12 s of 9"]


def test_didemo():
    path, media = str(FIXTURES / "didemo.json"), ("123@N00_45_ab.mov", "123@N00_45_ab")
    laughs, sits = ((15.0, 25.0),), ((0.0, 5.0),)  # of segments 3 and 4, and of segment 0
    assert list(read_didemo(path, REFUSE)) == [
        TaskRecord("1", f"{path}:1[0]", GROUNDING, ("baby laughs",), media, end=30.0, intervals=laughs),
        TaskRecord("2", f"{path}:2[1]", GROUNDING, ("baby sits",), media, end=30.0, intervals=sits),
    ]
    assert list(read_didemo(path, REFUSE, RETRIEVAL)) == [
        TaskRecord(media[0], f"{path}:1[0]", RETRIEVAL, ("baby sits baby laughs",), media, end=30.0)
    ]


@pytest.mark.parametrize("times", [[], [[1]], [[1.5, 2]], [[2, 1]], [[6, 6]], None])
def test_moments_of_didemo_are_pairs_of_segments(tmp_path, times):
    row = {"annotation_id": 1, "description": "x", "video": "v.mov", "times": times, "num_segments": 6}
    path = written(tmp_path / "f.json", [row, {**row, "times": [[5, 5]]}])
    bad = BadRows()
    assert [record.intervals for record in read_didemo(path, bad)] == [((25.0, 30.0),)]
    assert sum(bad.counts.values()) == 1


def test_streamformers_own_files():
    path = str(FIXTURES / "streamformer.csv")
    shelf = "a person puts a book on a shelf"
    assert list(read_streamformer_csv(path, REFUSE)) == [
        TaskRecord("CharadesSTA#2", f"{path}:2", GROUNDING, (shelf,), ("AO8RW",), intervals=((0.0, 6.9),)),
        TaskRecord(
            "HACS/--0ed",
            f"{path}:3",
            LOCALIZATION,
            ("Dodgeball", "Archery"),
            ("--0ed",),
            intervals=((5.4, 11.6), (60.0, 63.0)),
        ),
        TaskRecord(
            "HACS/-2abc",
            f"{path}:4",
            LOCALIZATION,
            ("Archery", "Archery"),
            ("-2abc",),
            intervals=((0.0, 1.0), (3.0, 4.0)),
        ),
    ]


def test_windows_that_are_no_list_are_bad(tmp_path):
    head = "video_id,start_second,end_second,text,relevant_windows,dataset"
    path = written(
        tmp_path / "f.csv", f'{head}\na,0,1,x,__import__("os"),DiDeMo\nb,0,1,x,3,DiDeMo\nc,0,1,x,[],DiDeMo\n'
    )
    bad = BadRows()
    assert [(r.media, r.intervals) for r in read_streamformer_csv(path, bad)] == [(("c",), ((0.0, 1.0),))]
    assert bad.counts == {"wrong layout": 2}
