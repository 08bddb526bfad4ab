import itertools
import json

import pytest

from streamchat_hf.data.synthesize_segment import (
    LONGEST,
    SHORTEST,
    Caption,
    CaptionedVideo,
    Segment,
    choose_segments,
    list_segments,
    read_captions,
)


def video(name="clip.mp4", *times):
    """A video with captions at the given starts, each until the next one."""
    times = times or (0.0, 4.0, 9.0, 20.0)
    captions = [Caption(start, end, f"{name} {start}") for start, end in itertools.pairwise(times)]
    return CaptionedVideo(name, times[-1], tuple(captions))


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def line(**changes):
    captions = [{"start": 1, "end": 2.5, "text": "a door opens"}]
    return {"video": "clip.mp4", "duration": 10, "captions": captions, **changes}


def test_captions_are_sorted_and_their_times_are_whole_milliseconds(tmp_path):
    captions = [{"start": 3, "end": 5.00049, "text": " b\n c "}, {"start": 0.5, "end": 4, "text": "a"}]
    (read,) = read_captions(write(tmp_path / "c.jsonl", line(captions=captions), "", "  "))
    assert read == CaptionedVideo("clip.mp4", 10.0, (Caption(0.5, 4.0, "a"), Caption(3.0, 5.0, "b c")))


def test_without_a_duration_the_video_ends_with_its_last_caption(tmp_path):
    row = line()
    del row["duration"]
    assert read_captions(write(tmp_path / "c.jsonl", row))[0].duration == 2.5


def test_rows_of_the_loader_are_captions_too(tmp_path):
    turns = [{"instruction": "?", "answer": "a door opens", "start": 1.0, "end": 2.5, "word_times": [1.0, 1.75, 2.5]}]
    row = {"id": "x", "source": "vript", "kind": "dense", "media": "clip.mp4", "turns": turns}
    assert read_captions(write(tmp_path / "c.jsonl", row))[0].captions == (Caption(1.0, 2.5, "a door opens"),)


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ('{"video": ', "Expecting value"),
        ("[]", "list"),
        ({"video": "a.mp4"}, "'captions' is missing"),
        (line(captions=[]), "and captions"),
        (line(video=["1.jpg", "2.jpg"]), "the path of one video"),
        (line(captions=[{"start": 1, "text": "a"}]), "'end' is missing"),
        (line(captions=[{"start": 5, "end": 5, "text": "a"}]), "not inside a video of 10.0 s"),
        (line(captions=[{"start": 5, "end": 11, "text": "a"}]), "not inside a video of 10.0 s"),
        (line(captions=[{"start": -1, "end": 3, "text": "a"}]), "not inside"),
        (line(captions=[{"start": 1, "end": 3, "text": "  "}]), "empty"),
        (line(captions=[{"start": 1, "end": 3, "text": None}]), "NoneType"),
        (line(captions=[{"start": 1, "end": float("nan"), "text": "a"}]), "not inside"),
        (line(duration=float("inf")), "not inside"),
    ],
)
def test_a_bad_line_is_named(tmp_path, bad, problem):
    path = write(tmp_path / "c.jsonl", line(), bad)
    with pytest.raises(ValueError, match=problem) as caught:
        read_captions(path)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_segments_are_runs_of_captions_of_the_right_length():
    found = list_segments(video("a", 0.0, 1.0, 4.0, 40.0, 60.0, 61.0), longest=25.0)
    assert [(s.start, s.end) for s in found] == [(0.0, 4.0), (1.0, 4.0), (40.0, 60.0), (40.0, 61.0)]
    assert all(SHORTEST <= s.end - s.start <= LONGEST for s in list_segments(video()))


def test_a_segment_ends_with_the_caption_that_ends_last():
    overlapping = CaptionedVideo("a", 10.0, (Caption(0.0, 9.0, "a"), Caption(2.0, 5.0, "b")))
    assert [(s.start, s.end, len(s.captions)) for s in list_segments(overlapping)] == [
        (0.0, 9.0, 1),
        (0.0, 9.0, 2),
        (2.0, 5.0, 1),
    ]


def test_an_id_is_of_the_video_and_the_captions():
    caption = Caption(0.0, 3.0, "a")
    ids = {Segment(v, (Caption(*c),)).id for v in ("a/x.mp4", "b/x.mp4") for c in ((0.0, 3.0, "a"), (0.0, 3.0, "b"))}
    assert len(ids) == 4
    assert Segment("a/x.mp4", (caption,)).id == Segment("a/x.mp4", (caption,)).id
    assert all(name.startswith("x-") for name in ids)


def choose(names, **options):
    return choose_segments([list_segments(video(name)) for name in names], **options)


def test_every_video_has_its_turn_before_one_has_its_second():
    chosen = choose("abc", limit=8)
    assert "".join(segment.video for segment in chosen) == "abcabcab"
    assert len(set(chosen)) == 8
    assert choose("abc") == chosen[:3]


def test_a_higher_limit_and_more_videos_only_add():
    assert choose("abc", limit=12)[:7] == choose("abc", limit=7)
    assert [s for s in choose("abcd", limit=12) if s.video != "d"] == choose("abc", limit=9)


def test_the_seed_chooses():
    assert choose("abcdefgh", seed=1) == choose("abcdefgh", seed=1) != choose("abcdefgh", seed=2)


def test_videos_that_are_cut_alike_do_not_begin_alike():
    assert len({(segment.start, segment.end) for segment in choose("abcdefgh")}) > 2


def test_everything_is_chosen_at_last_and_nothing_twice():
    everything = [segment for name in "aba" for segment in list_segments(video(name))]
    assert set(choose("aba", limit=1000)) == set(everything)
    assert len(choose("aba", limit=1000)) == len(set(everything))


def test_a_video_without_a_segment_is_passed_over():
    assert choose_segments([[], list_segments(video("a")), []]) == choose("a")
    assert choose_segments([[], []]) == []
