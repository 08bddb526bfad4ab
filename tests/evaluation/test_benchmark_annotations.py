import pytest

from streamchat_hf.evaluation.benchmark_annotations import digest, find_videos, read_annotations


def test_videos_are_found_by_their_whole_name_or_its_last_part(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/x.mp4", "x.mp4", "y.mp4"):
        (tmp_path / name).touch()
    found = find_videos(tmp_path, ["./videos/y.mp4", "a/x.mp4", "./videos/y.mp4"])
    assert list(found) == ["./videos/y.mp4", "a/x.mp4"]
    assert [video.path for video in found.values()] == [tmp_path / "y.mp4", tmp_path / "a" / "x.mp4"]
    assert [video.name for video in found.values()] == list(found)


def test_missing_videos_are_counted(tmp_path):
    (tmp_path / "y.mp4").touch()
    with pytest.raises(FileNotFoundError, match=r"2 of 3 videos are missing, such as x\.mp4"):
        find_videos(tmp_path, ["x.mp4", "y.mp4", "z.mp4", "x.mp4"])


def test_names_that_lead_to_one_file_or_out_of_the_folder_are_refused(tmp_path):
    (tmp_path / "x.mp4").touch()
    with pytest.raises(ValueError, match=r"x\.mp4: both a/x\.mp4 and b/x\.mp4"):
        find_videos(tmp_path, ["a/x.mp4", "b/x.mp4"])
    with pytest.raises(ValueError, match="within the folder"):
        find_videos(tmp_path, [str(tmp_path / "x.mp4")])


def test_annotations_are_json_and_told_apart_by_a_digest(tmp_path):
    (tmp_path / "a.json").write_text('["ä"]', encoding="utf-8")
    (tmp_path / "b.json").write_text("[1")
    assert read_annotations(tmp_path / "a.json") == ["ä"]
    with pytest.raises(ValueError, match="b.json: no JSON"):
        read_annotations(tmp_path / "b.json")
    assert digest(tmp_path / "a.json") != digest(tmp_path / "b.json") and len(digest(tmp_path / "a.json")) == 16
