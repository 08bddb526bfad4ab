import json
import random

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from streamchat_hf.data.live_conversation import check_sample, frame_grid
from streamchat_hf.data.stream_it import CAPTIONING, STEPS, StreamIt, load_stream_it, multi_turns, proactive_turns
from video_files import write_video

FPS = 2.0


def dense_row(count=6, seconds=3.0, begin=0.0, **changes):
    starts = [begin + seconds * k for k in range(count)]
    turns = [
        {"instruction": f"Q{k}", "answer": f"A{k}", "start": start, "end": start + seconds - 0.5, "word_times": []}
        for k, start in enumerate(starts)
    ]
    return {"id": "v", "source": "f:1", "kind": "dense", "media": "v.mp4", "turns": turns, **changes}


def shown(row):
    """The conversation as letters: Q3, A3, and V with the number of frames."""
    return [
        f"V{message['num_frames']}" if message["role"] == "stream" else message["content"]
        for message in row["conversation"]
    ]


def test_the_proactive_format_asks_once_and_answers_at_the_end_of_every_segment():
    row = StreamIt([dense_row(3)], FPS, proactive=1.0, questions=["Q"])[0]
    check_sample(row)
    assert shown(row) == ["Q", "V6", "A0", "V6", "A1", "V6", "A2"]
    assert [m["time"] for m in row["conversation"] if m["role"] == "assistant"] == [2.5, 5.5, 8.5]
    assert row["media"] == "v.mp4" and row["frame_times"][0] == 0.0


def test_the_multi_turn_format_asks_behind_every_segment_and_is_answered_at_once():
    row = StreamIt([dense_row(3, begin=60.0)], FPS, proactive=0.0, drop=0.0, shift=0.0)[0]
    check_sample(row)
    assert shown(row) == ["V6", "Q0", "A0", "V6", "Q1", "A1", "V6", "Q2", "A2"]
    assert row["frame_times"][0] == 60.0, "frames begin with the first segment"


def test_a_shifted_question_comes_before_its_segment():
    row = StreamIt([dense_row(3)], FPS, proactive=0.0, drop=0.0, shift=1.0)[0]
    check_sample(row)
    assert shown(row) == ["Q0", "V6", "A0", "Q1", "V6", "A1", "Q2", "V6", "A2"]


def test_a_shifted_question_comes_after_the_answer_before_where_segments_meet():
    row = dense_row(3)
    for turn, following in zip(row["turns"], row["turns"][1:], strict=False):
        turn["end"] = following["start"]
    row = StreamIt([row], FPS, proactive=0.0, drop=0.0, shift=1.0)[0]
    check_sample(row)
    assert shown(row) == ["Q0", "V7", "A0", "Q1", "V6", "A1", "Q2", "V5", "A2"]


def test_a_shifted_question_waits_for_its_own_segment_where_the_one_before_was_dropped():
    times = frame_grid(0.0, 17.5, FPS)
    for seed in range(40):
        turns = dense_row()["turns"]
        said = multi_turns(turns, times, random.Random(seed), drop=0.5, shift=1.0)
        asked = {turn.content: turn.seen for turn in said if turn.role == "user"}
        assert all(asked[question] == 6 * int(question[1:]) for question in asked)


def test_questions_are_dropped_and_shifted_as_often_as_asked_for():
    times = frame_grid(0.0, 17.5, FPS)
    rng = random.Random(0)
    kept = shifted = 0
    for _ in range(1000):
        said = multi_turns(dense_row()["turns"], times, rng)
        questions = [turn for turn in said if turn.role == "user"]
        answers = [turn for turn in said if turn.role == "assistant"]
        assert [q.content[1:] for q in questions] == [a.content[1:] for a in answers] != []
        assert all(a.seen == 6 * (int(a.content[1:]) + 1) for a in answers)
        kept += len(questions)
        shifted += sum(q.seen != a.seen for q, a in zip(questions, answers, strict=True))
    assert kept / 6000 == pytest.approx(0.45, abs=0.03)
    assert shifted / kept == pytest.approx(0.1, abs=0.02)


def test_one_question_is_kept_at_least():
    row = StreamIt([dense_row(4)], FPS, proactive=0.0, drop=1.0)[0]
    check_sample(row)
    assert sum(message["role"] == "assistant" for message in row["conversation"]) == 1
    assert sum(message.get("num_frames", 0) for message in row["conversation"]) == len(row["frame_times"]) == 24


def test_answers_of_one_frame_are_said_together_and_what_takes_no_frame_has_one():
    times = frame_grid(0.0, 4.0, 1.0)
    turns = [{"answer": "A", "end": 0.0}, {"answer": "B", "end": 0.0}, {"answer": "C", "end": 3.4}]
    said = proactive_turns(turns, "Q", times)
    assert [(turn.content, turn.seen) for turn in said] == [("Q", 0), ("A B", 1), ("C", 4)]


def test_a_row_depends_on_seed_epoch_and_number_alone():
    rows = [dense_row(5, begin=float(k)) for k in range(20)]
    dataset, again = StreamIt(rows, FPS, proactive=0.5), StreamIt(rows, FPS, proactive=0.5)
    first = [dataset[i] for i in range(20)]
    assert first == [again[i] for i in reversed(range(20))][::-1]
    dataset.set_epoch(1)
    assert sum(dataset[i] != first[i] for i in range(20)) > 10
    dataset.set_epoch(0)
    assert dataset[3] == first[3]
    other = StreamIt(rows, FPS, proactive=0.5, seed=1)
    assert any(other[i] != first[i] for i in range(20))
    formats = ["Q" not in shown(row)[0] and shown(row)[0][0] != "V" for row in first]
    assert 3 < sum(formats) < 17
    with pytest.raises(IndexError):
        dataset[20]


@pytest.mark.parametrize("questions", [CAPTIONING, STEPS])
def test_proactive_questions_are_drawn(questions):
    assert len(set(questions)) == 5
    dataset = StreamIt([dense_row(2)] * 60, FPS, proactive=1.0, questions=questions)
    assert {shown(dataset[i])[0] for i in range(60)} == set(questions)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"drop": 1.5}, "drop=1.5 is a probability"),
        ({"shift": -0.1}, "shift=-0.1"),
        ({"proactive": float("nan")}, "proactive=nan"),
        ({"questions": ()}, "no question"),
    ],
)
def test_impossible_arguments_are_refused(changes, error):
    with pytest.raises(ValueError, match=error):
        StreamIt([dense_row()], **changes)


def test_rows_without_times_are_refused_by_name():
    with pytest.raises(ValueError, match="row v: Stream-IT is made of dense rows"):
        StreamIt([dense_row(kind="video")])[0]


@pytest.fixture
def captions(tmp_path):
    """Three clips of four seconds with two captions each, in the layout of ActivityNet Captions."""
    for k in range(3):
        write_video(tmp_path / f"v_{k}.mp4", range(0, 4000, 200), codec_options={"g": "5"})
    times = {"duration": 4.0, "timestamps": [[0, 2], [2, 4]], "sentences": ["One.", "Two."]}
    (tmp_path / "train.json").write_text(json.dumps({f"v_{k}": times for k in range(3)}))
    return tmp_path


def test_annotations_are_loaded_with_their_clips_joined(captions, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", captions / "cache")
    where = {"annotations": str(captions / "train.json"), "media_folder": str(captions)}
    alone = load_stream_it("activitynet_captions", **where, proactive=1.0)
    assert len(alone) == 3 and alone[0]["media"].endswith("v_0.mp4")
    vectors = {"v_0": [1.0, 0.0], "v_1": [0.0, 1.0], "v_2": [1.0, 0.1]}
    save_file({name: np.array(vector) for name, vector in vectors.items()}, captions / "embeddings.safetensors")
    joined = load_stream_it(
        "activitynet_captions", **where, embeddings=captions / "embeddings.safetensors", clips=2, proactive=1.0
    )
    assert [len(row["media"]) for row in joined] == [2, 1]
    row = joined[0]
    check_sample(row)
    assert shown(row)[1:] == ["V5", "One.", "V3", "Two.", "V5", "One.", "V3", "Two."]
    assert torch.tensor(row["frame_times"]).diff().eq(0.5).all()
