import json
import os
import pickle
import shutil

import pytest
from PIL import Image

from streamchat_hf.data.annotations import (
    Annotation,
    BadRow,
    BadRows,
    MediaFiles,
    annotation_files,
    field,
    json_items,
    seconds,
    video_seconds,
)
from video_files import write_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4")


def about(kind, *media):
    return Annotation("id", "rows.jsonl:1", kind, tuple(map(str, media)), ())


def read(path, text, **kwargs):
    """What a file with this text holds, and what is bad in it."""
    path.write_text(text, encoding="utf-8")
    bad = BadRows()
    return [(item.source, item.key, item.value) for item in json_items(str(path), bad, **kwargs)], bad


# Bad rows


def test_bad_rows_are_counted_with_the_first_examples():
    bad = BadRows()
    for line in range(1, 6):
        bad.add(f"rows.jsonl:{line}", BadRow("empty answer", "to 'What?'"))
    bad.add("rows.jsonl:9", BadRow("missing video", "no file a.mp4"))
    assert bad.counts == {"empty answer": 5, "missing video": 1}
    assert bad.examples["empty answer"] == [f"rows.jsonl:{line}: to 'What?'" for line in (1, 2, 3)]
    assert str(bad).endswith("1 × missing video (rows.jsonl:9: no file a.mp4)")
    again = BadRows.from_json(bad.to_json())
    assert (again.counts, again.examples, str(again)) == (bad.counts, bad.examples, str(bad))


def test_a_bad_row_can_be_refused():
    with pytest.raises(ValueError, match="^rows.jsonl:3: empty answer: to 'What\\?'$"):
        BadRows(refuse=True).add("rows.jsonl:3", BadRow("empty answer", "to 'What?'"))


def test_a_bad_row_comes_back_from_another_process():
    error = BadRow("empty answer", "to 'What?'", "rows.jsonl:3")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "rows.jsonl:3: empty answer: to 'What?'"


# JSON with its lines


def test_lines_are_read_one_by_one_and_a_broken_one_is_reported(tmp_path):
    path = tmp_path / "rows.jsonl"
    items, bad = read(path, '\ufeff{"a": 1}\n\n{oops}\n  [2, "é"]\n')
    assert items == [(f"{path}:1", "1", {"a": 1}), (f"{path}:4", "4", [2, "é"])]
    assert bad.counts == {"not JSON": 1}
    assert bad.examples["not JSON"][0].startswith(f"{path}:3: ")


def test_a_line_that_is_no_text_is_reported(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n')
    bad = BadRows()
    assert [item.value["a"] for item in json_items(str(path), bad)] == [1, 3]
    assert bad.examples["not JSON"][0].startswith(f"{path}:2: ")


def test_lines_are_not_read_before_they_are_needed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{oops\n')
    bad = BadRows(refuse=True)
    items = json_items(str(path), bad)
    assert next(items).value == {"a": 1}
    with pytest.raises(BadRow, match=":2: not JSON"):
        next(items)


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("value", [[], {}, [1, [2, {"a": 3}], "x"], {"a": {"b": []}, "c": "}]", "d": None}])
def test_a_document_is_read_as_json_reads_it(tmp_path, value, indent):
    items, bad = read(tmp_path / "all.json", f" \n{json.dumps(value, indent=indent)}\n")
    expected = value.items() if isinstance(value, dict) else ((str(i), member) for i, member in enumerate(value))
    assert [(key, member) for _, key, member in items] == list(expected)
    assert not bad.counts


def test_a_member_is_known_by_its_line_and_its_key_or_index(tmp_path):
    path = tmp_path / "all.json"
    items, _ = read(path, '{\n"a": [1,\n2], "b":\n3,\n\n"c": 4}')
    assert [source for source, _, _ in items] == [f"{path}:2[a]", f"{path}:3[b]", f"{path}:6[c]"]
    items, _ = read(path, "[1,\n2, 3]")
    assert [source for source, _, _ in items] == [f"{path}:1[0]", f"{path}:2[1]", f"{path}:2[2]"]


def test_members_may_lie_one_level_below(tmp_path):
    path = tmp_path / "all.json"
    below = '{"version": 1,\n"videos": {"a": 1,\n"b": 2}, "more": 3}'
    items, _ = read(path, below, inside="videos")
    assert items == [(f"{path}:2[a]", "a", 1), (f"{path}:3[b]", "b", 2)]
    items, _ = read(path, '{"a": 1}', inside="videos")
    assert items == [(f"{path}:1[a]", "a", 1)]


@pytest.mark.parametrize("inside", [None, "videos"])
@pytest.mark.parametrize(
    ("text", "line", "read_before"),
    [
        ('[1,\n2,\n{"a": }]', 3, 2),
        ("[1,\n2 3]", 2, 2),
        ('{"a": 1,\n"b" 2}', 2, 1),
        ('{"a": 1,\n"b": [2}', 2, 1),
        ("[1,\n2,\n", 3, 2),
        ("", 1, 0),
        ("\n\n7", 3, 0),
    ],
)
def test_what_stands_before_a_defect_is_read_and_the_defect_is_reported(tmp_path, text, line, read_before, inside):
    path = tmp_path / "all.json"
    items, bad = read(path, text, inside=inside)
    assert len(items) == read_before
    assert bad.counts == {"not JSON": 1}
    assert bad.examples["not JSON"][0].startswith(f"{path}:{line}: ")


def test_a_document_that_is_no_text_is_reported(tmp_path):
    path = tmp_path / "all.json"
    path.write_bytes(b'["\xff"]')
    bad = BadRows()
    assert list(json_items(str(path), bad)) == []
    assert bad.counts == {"not JSON": 1}


def test_fields_are_checked():
    row = {"name": "x", "turns": [], "none": None}
    assert field(row, "name", str) == "x" and field(row, "turns", (str, list)) == []
    with pytest.raises(BadRow, match="no field 'answer'"):
        field(row, "answer", str)
    with pytest.raises(BadRow, match="'turns' is \\[\\]"):
        field(row, "turns", str)
    with pytest.raises(BadRow, match="'none' is null"):
        field(row, "none", str)
    with pytest.raises(BadRow, match='an object is expected, not \\["' + "x" * 57 + "…$"):
        field(["x" * 100], "name", str)


def test_times_are_finite_numbers():
    assert (seconds(3), seconds(0.5)) == (3.0, 0.5)
    for value in (None, True, "3", [3], float("nan"), float("inf")):
        with pytest.raises(BadRow, match="a time in seconds is expected"):
            seconds(value)


# Files


def test_annotation_files_from_a_file_a_folder_a_pattern_or_several(tmp_path):
    for name in ("b.json", "a.json", "inner/c.json", "other.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()

    def found(annotations):
        return [os.path.relpath(path, tmp_path) for path in annotation_files(annotations, "*.json")]

    assert found(tmp_path / "other.txt") == ["other.txt"]
    assert found(tmp_path) == ["a.json", "b.json", "inner/c.json"]
    assert found(f"{tmp_path}/*.json") == ["a.json", "b.json"]
    assert found([tmp_path / "inner", str(tmp_path / "a.json")]) == ["inner/c.json", "a.json"]
    with pytest.raises(FileNotFoundError, match="no annotation file at .*nothing.json"):
        found([tmp_path / "a.json", tmp_path / "nothing.json"])


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4")]
)
def test_the_duration_stands_in_the_header(tmp_path, name, codec):
    path = write_video(tmp_path / name, range(0, 1000, 100), codec=codec)
    assert video_seconds(str(path)) == pytest.approx(1.0, abs=0.11)


def test_a_video_is_bad_if_its_header_is(tmp_path, clip):
    (tmp_path / "junk.mp4").write_bytes(b"junk" * 100)
    (tmp_path / "cut.mp4").write_bytes(clip.read_bytes()[:1000])
    write_video(tmp_path / "endless.h264", range(0, 500, 100), format="h264")
    for name, why in [("junk.mp4", "Invalid data"), ("cut.mp4", "Invalid data"), ("endless.h264", "does not tell")]:
        with pytest.raises(BadRow, match=f"unreadable video: .*{why}"):
            video_seconds(str(tmp_path / name))


def test_a_path_is_taken_as_it_is(clip):
    assert MediaFiles().find(about("dense", clip)) == (str(clip), 2.0)
    assert MediaFiles().find(about("text")) == ("", None)


def test_an_id_is_found_in_the_folder_and_below(tmp_path, clip):
    for name in ("inner/v_AbC.mp4", "XyZ.mkv", "XyZ.webm", "a/two.MP4", "b/two.avi", "twice.mp4.webm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(clip, tmp_path / name)
    (tmp_path / "AbC.json").touch()
    media = MediaFiles()

    def find(*names):
        return os.path.relpath(media.find(about("dense", *(tmp_path / name for name in names)))[0], tmp_path)

    assert find("v_AbC", "AbC") == "inner/v_AbC.mp4"
    assert find("AbC", "v_AbC") == "inner/v_AbC.mp4"
    assert find("XyZ") == "XyZ.mkv"  # mp4 before mkv before webm before avi
    assert find("two") == "a/two.MP4"
    assert find("twice") == "twice.mp4.webm"
    with pytest.raises(BadRow, match="missing video: no file .*/nobody"):
        find("nobody")


def test_missing_and_unreadable_media_have_reasons_of_their_own(tmp_path):
    (tmp_path / "junk.png").write_bytes(b"junk")
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    Image.new("RGB", (4, 4)).save(tmp_path / "dog.png")
    media = MediaFiles()
    assert media.find(about("image", tmp_path / "dog.png")) == (str(tmp_path / "dog.png"), None)
    for kind, name, reason in [
        ("image", "cat.png", "missing image"),
        ("image", "junk.png", "unreadable image"),
        ("video", "cat.mp4", "missing video"),
        ("video", "junk.mp4", "unreadable video"),
    ]:
        with pytest.raises(BadRow, match=reason):
            media.find(about(kind, tmp_path / name))


def test_a_header_is_read_once(tmp_path, clip):
    path = tmp_path / "clip.mp4"
    shutil.copy(clip, path)
    media = MediaFiles()
    media.find(about("video", path))
    path.write_bytes(b"junk")
    assert media.find(about("video", path)) == (str(path), 2.0)
    (tmp_path / "bad.mp4").write_bytes(b"junk")
    for _ in range(2):
        with pytest.raises(BadRow, match="unreadable video"):
            media.find(about("video", tmp_path / "bad.mp4"))
        shutil.copy(clip, tmp_path / "bad.mp4")


def test_nothing_needs_to_exist_if_nothing_is_checked(tmp_path):
    media = MediaFiles(check=False)
    assert media.find(about("video", tmp_path / "a.webm")) == (str(tmp_path / "a.webm"), None)
    assert media.find(about("dense", tmp_path / "v_AbC", tmp_path / "AbC")) == (str(tmp_path / "v_AbC.mp4"), None)
    (tmp_path / "AbC.mkv").touch()
    assert MediaFiles(check=False).find(about("dense", tmp_path / "v_AbC", tmp_path / "AbC"))[0].endswith("AbC.mkv")
