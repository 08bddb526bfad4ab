import json
from pathlib import Path

from streamchat_hf.data.annotations import BadRows
from streamchat_hf.data.task_records import TaskRecord
from streamchat_hf.data.task_records_clips import read_kinetics, read_msrvtt, read_something_something

FIXTURES = Path(__file__).parents[1] / "fixtures" / "task_records"
REFUSE = BadRows(refuse=True)


def test_kinetics():
    path = str(FIXTURES / "kinetics.csv")
    first, second = "AbC_000059_000069", "-x_Z_000000_000010"
    assert list(read_kinetics(path, REFUSE)) == [
        TaskRecord(first, f"{path}:2", "action_recognition", ("abseiling",), (f"abseiling/{first}", first)),
        TaskRecord(
            second, f"{path}:3", "action_recognition", ("playing, loudly",), (f"playing, loudly/{second}", second)
        ),
    ]


def test_bad_rows_of_kinetics_are_known_by_their_lines(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text("label,youtube_id,time_start,time_end,split\na,A,x,2,train\nb,,0,10,train\nc,C,0,10,train\n")
    bad = BadRows()
    assert [record.id for record in read_kinetics(str(path), bad)] == ["C_000000_000010"]
    assert bad.examples["wrong layout"] == [
        f"{path}:2: a number is expected, not 'x'",
        f"{path}:3: no youtube_id",
    ]


def test_something_something():
    path = str(FIXTURES / "something-something-v2.json")
    assert list(read_something_something(path, REFUSE)) == [
        TaskRecord("417", f"{path}:1[0]", "action_recognition", ("Moving part of something",), ("417",)),
        TaskRecord("9", f"{path}:2[1]", "action_recognition", ("Putting something onto something",), ("9",)),
    ]


def test_a_row_without_a_template_is_bad(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"id": "1"}, {"id": "2", "template": "Opening [something]"}]))
    bad = BadRows()
    assert [record.texts for record in read_something_something(str(path), bad)] == [("Opening something",)]
    assert bad.examples == {"wrong layout": [f"{path}:1[0]: no field 'template'"]}


def test_msrvtt_gathers_the_captions_of_a_video():
    path = str(FIXTURES / "msrvtt.json")
    task = "video_text_retrieval"
    assert list(read_msrvtt(path, REFUSE)) == [
        TaskRecord("video0", f"{path}:3[0]", task, ("a car is shown", "a man drives"), ("video0",)),
        TaskRecord("video1", f"{path}:4[1]", task, ("a man cooks",), ("video1",)),
    ]


def test_a_bad_caption_does_not_cost_the_others(tmp_path):
    path = tmp_path / "msrvtt.json"
    rows = [{"video_id": "v", "caption": " "}, {"caption": "x"}, {"video_id": "v", "caption": "a dog"}]
    path.write_text(json.dumps({"sentences": rows}))
    bad = BadRows()
    assert [record.texts for record in read_msrvtt(str(path), bad)] == [("a dog",)]
    assert bad.counts == {"empty text": 1, "wrong layout": 1}
