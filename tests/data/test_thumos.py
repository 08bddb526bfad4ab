from pathlib import Path

import numpy as np
import pytest

from streamchat_hf import metrics
from streamchat_hf.data.annotations import BadRow, BadRows
from streamchat_hf.data.thumos import (
    AMBIGUOUS,
    IGNORE,
    THUMOS_CLASSES,
    ActionInterval,
    frame_label_lists,
    frame_labels,
    read_thumos,
)

FIXTURES = Path(__file__).parents[1] / "fixtures" / "thumos"
REFUSE = BadRows(refuse=True)


def written(folder, **files):
    for name, text in {"Ambiguous_test": "", **files}.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_videos_have_their_actions_in_the_order_of_time():
    assert read_thumos(FIXTURES, "test", REFUSE) == {
        "video_test_0000004": (
            ("CricketBowling", 0.2, 1.1),
            ("CricketShot", 1.0, 1.5),
            ("CricketBowling", 11.4, 12.2),
        ),
        "video_test_0000026": (
            ("CliffDiving", 3.0, 5.0),
            ("Diving", 3.0, 5.0),
            ("Diving", 7.0, 8.5),
            (AMBIGUOUS, 8.0, 9.0),
        ),
        "video_test_0001292": ((AMBIGUOUS, 0.0, 2.0),),
    }


def test_the_other_subset_is_passed_over():
    assert read_thumos(FIXTURES, "val", REFUSE) == {
        "video_validation_0000051": ((AMBIGUOUS, 60.0, 67.5), ("Billiards", 67.5, 75.9))
    }


def test_a_bad_line_is_named_and_costs_its_video_and_no_other(tmp_path):
    lines = ["a 0.5 1.5", "b 1.0", "", "c 2.0 1.0", "d one 2.0", "e 1.0 2.0 3.0", "f -1 2", "g 1 nan", "h 1 2"]
    written(tmp_path, Diving_test="\n".join([*lines, "b 3 4"]), Ambiguous_test="h 5 5\n")
    bad = BadRows()
    assert read_thumos(tmp_path, "test", bad) == {"a": (("Diving", 0.5, 1.5),)}
    assert bad.counts == {"wrong layout": 4, "interval ends before it starts": 2, "interval outside the video": 1}
    diving = tmp_path / "Diving_test.txt"
    assert bad.examples["wrong layout"][0] == f"{diving}:2: <video> <start> <end> is expected, not 'b 1.0'"
    assert bad.examples["interval ends before it starts"] == [
        f"{tmp_path / 'Ambiguous_test.txt'}:1: 5 to 5 s",
        f"{diving}:4: 2 to 1 s",
    ]
    with pytest.raises(BadRow, match=r"Ambiguous_test.txt:1: interval ends before it starts"):
        read_thumos(tmp_path, "test", REFUSE)


def test_a_folder_without_its_files_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Ambiguous_test.txt and a file <Class>_test.txt"):
        read_thumos(tmp_path, "test", REFUSE)
    written(tmp_path)
    with pytest.raises(FileNotFoundError, match="a file <Class>_test.txt for each class"):
        read_thumos(tmp_path, "test", REFUSE)
    written(tmp_path, Diving_test="a 1 2").joinpath("Ambiguous_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match="Ambiguous_test.txt"):  # or ambiguous frames would count
        read_thumos(tmp_path, "test", REFUSE)
    with pytest.raises(ValueError, match="'val' or 'test', not 'validation'"):
        read_thumos(tmp_path, "validation", REFUSE)


def test_a_frame_belongs_to_the_action_from_its_start_until_before_its_end():
    actions = [ActionInterval("b", 1.0, 2.0)]
    assert frame_labels(actions, [0.99, 1.0, 1.99, 2.0], ("a", "b")).tolist() == [0, 2, 2, 0]


def test_frames_of_the_fixtures():
    videos = read_thumos(FIXTURES, "test", REFUSE)
    cricket = [THUMOS_CLASSES.index(name) + 1 for name in ("CricketBowling", "CricketShot")]
    cliff, diving = (THUMOS_CLASSES.index(name) + 1 for name in ("CliffDiving", "Diving"))
    times = np.array([0.0, 0.5, 1.05, 1.2, 1.5])
    bowling, shot = cricket
    assert frame_label_lists(videos["video_test_0000004"], times) == [[0], [bowling], cricket, [shot], [0]]
    times = np.array([2.0, 3.0, 7.5, 8.2, 8.9, 9.0])
    assert frame_label_lists(videos["video_test_0000026"], times) == [
        [0],
        [cliff, diving],
        [diving],
        [IGNORE],  # though a dive goes on
        [IGNORE],
        [0],
    ]
    labels = frame_labels(videos["video_test_0000026"], times)
    assert labels.dtype == np.int64 and labels.tolist() == [0, cliff, diving, IGNORE, IGNORE, 0]


def test_labels_against_every_interval_looked_at_for_every_frame():
    rng = np.random.default_rng(0)
    classes = ("a", "b", "c")
    for _ in range(50):
        starts, lengths = rng.integers(0, 20, 6) / 2, rng.integers(1, 8, 6) / 2
        names = rng.choice([*classes, AMBIGUOUS], 6)
        actions = [ActionInterval(str(n), s, s + d) for n, s, d in zip(names, starts, lengths, strict=True)]
        times = np.arange(0, 15, 0.25)
        for time, found in zip(times, frame_label_lists(actions, times, classes, ignore=9), strict=True):
            here = {label for label, start, end in actions if start <= time < end}
            expected = [9] if AMBIGUOUS in here else sorted(classes.index(label) + 1 for label in here) or [0]
            assert found == expected


def test_the_order_of_the_intervals_is_irrelevant():
    actions = [ActionInterval("a", 0, 2), ActionInterval("b", 1, 3), ActionInterval(AMBIGUOUS, 2.5, 4)]
    times = np.arange(0, 5, 0.5)
    forth, back = (frame_labels(some, times, ("a", "b")).tolist() for some in (actions, actions[::-1]))
    assert forth == back == [1, 1, 1, 1, 2, IGNORE, IGNORE, IGNORE, 0, 0]


@pytest.mark.parametrize(
    ("actions", "times", "options", "message"),
    [
        ([ActionInterval("Running", 0, 1)], [0.5], {}, "Running is none of the 20 classes"),
        ([], [float("nan")], {}, "times must be a list of seconds"),
        ([], 1.0, {}, "times must be a list of seconds"),
        ([], [0.5], {"ignore": 8}, "ignore is 8, which is the index of Diving"),
        ([], [0.5], {"ignore": 0}, "ignore is 0, which is the index of background"),
    ],
)
def test_what_makes_no_sense_is_refused(actions, times, options, message):
    with pytest.raises(ValueError, match=message):
        frame_labels(actions, times, **options)


def test_the_published_classes():
    assert len(THUMOS_CLASSES) == 20 and list(THUMOS_CLASSES) == sorted(THUMOS_CLASSES)
    assert THUMOS_CLASSES.index("CliffDiving") < THUMOS_CLASSES.index("Diving")


def test_a_detector_that_scores_what_is_done_is_perfect():
    actions = read_thumos(FIXTURES, "test", REFUSE)["video_test_0000026"]
    times = np.arange(0, 12, 0.25)
    references = frame_label_lists(actions, times)
    scores = np.zeros((len(times), 1 + len(THUMOS_CLASSES)))
    for frame, labels in enumerate(references):
        scores[frame, [label for label in labels if label != IGNORE]] = 1
    metric = metrics.load("online_action_detection")
    result = metric.compute(predictions=scores, references=references, ignore=IGNORE)
    assert result["mAP"] == result["mcAP"] == 1.0 and result["ignored"] == 4
