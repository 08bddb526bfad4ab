"""Rows of several sources, laid out by a learning method; and features that are made once."""

import json

import pytest
import torch

from live_loop_helpers import live_processor
from live_training_runs import source, trainer_of
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.data.proactive_streamworld import ProactiveStreamWorld
from streamchat_hf.training.live_rows import FrozenFeatures, LiveRows, MethodCollator, load_source
from video_files import write_video
from videollm_online_helpers import tiny_model


def test_frozen_features_are_encoded_once_until_the_room_is_full():
    model = tiny_model().model
    store = FrozenFeatures(model, bytes_kept=3 * 5 * 16 * 4)
    calls = []

    def pixels(count):
        return lambda: calls.append(count) or torch.randn(count, 3, 32, 32)

    first = store.of("a", pixels(3))
    assert first.shape == (3, 5, 16) and torch.equal(store.of("a", pixels(3)), first) and calls == [3]
    store.of("b", pixels(1)), store.of("b", pixels(1))
    assert calls == [3, 1, 1]


@pytest.mark.parametrize("method", ["streaming", "interleaved", "per-frame"])
def test_each_method_learns_its_own_labels(tmp_path, method):
    trainer = trainer_of(tmp_path, method=method)
    config, row = trainer.model.config, trainer.train_dataset[0]
    sample = trainer.data_collator.sample(row)
    at_frames = [
        label
        for token, label in zip(sample.ids, sample.labels, strict=True)
        if token == config.v_placeholder_id and label != -100
    ]
    answers = sum(m["role"] == "assistant" for m in row["conversation"])
    silent = sum(int(m["learn"] * (m["num_frames"] - 1) if m["learn"] is True else m["learn"]) for m in streams(row))
    expected = {"streaming": silent + answers, "interleaved": answers, "per-frame": 0}
    assert len(at_frames) == expected[method]
    assert sample.ids.count(config.eos_token_id) == (answers if method != "per-frame" else 8)


def streams(row):
    return [message for message in row["conversation"] if message["role"] == "stream"]


def test_a_spoiled_answer_is_another_one_each_time_and_the_same_again(tmp_path):
    assert [trainer_of(tmp_path, augmentation=on).train_dataset.augmentation for on in (True, False)] == [True, False]
    source = LiveStreamWorld(6, num_frames=16, kinds={"changes": 1.0})
    order = torch.arange(6).repeat(3).numpy()
    first, again = (LiveRows([source], order, augmentation=True, seed=4) for _ in range(2))
    rows = [first[i]["conversation"] for i in range(18)]
    assert rows == [again[i]["conversation"] for i in range(18)]
    assert any(rows[i] != rows[i + 6] for i in range(6))
    assert rows != [LiveRows([source], order, augmentation=True, seed=5)[i]["conversation"] for i in range(18)]


def test_rows_come_from_all_sources_in_order_and_queries_move_with_the_pass(tmp_path):
    annotations = tmp_path / "dialogues.jsonl"
    answers = [{"time": time, "text": f"at {time}"} for time in (2.0, 6.0, 9.0)]
    queries = [{"tense": "now", "text": f"question {k} ?", "answers": answers} for k in range(4)]
    line = {"video": "a.mp4", "start": 0.0, "end": 12.0, "queries": queries}
    annotations.write_text("".join(json.dumps({**line, "id": str(k)}) + "\n" for k in range(2)))
    written = load_source({"name": "dialogues", "path": str(annotations), "folder": "v", "weight": 2}, 2.0, 24)
    worlds = load_source(source(3), 2.0, None)
    rows = LiveRows([worlds, written], torch.tensor([0, 1, 2, 3, 4, 3, 3, 4]).numpy())
    assert [row["media"] for row in (rows[i] for i in range(8))] == [None] * 3 + ["v/a.mp4"] * 5
    assert rows[0] == worlds[0] and rows[2] == worlds[2]
    third = rows[3]["conversation"]
    assert third == rows[3]["conversation"]
    assert any(rows[i]["conversation"] != third for i in (5, 6))  # 5 and 6 are in the second pass
    with pytest.raises(ValueError, match="one of streamworld, proactive_streamworld, dialogues, stream-it"):
        load_source({"name": "ego4d"}, 2.0, None)


def test_proactive_worlds_and_stream_it_are_sources(tmp_path, monkeypatch):
    worlds = load_source({"name": "proactive_streamworld", "length": 3, "tasks": {"steps": 1.0}}, 2.0, None)
    assert worlds[1] == ProactiveStreamWorld(3, tasks={"steps": 1.0})[1]
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_video(tmp_path / "a.mp4", range(0, 4000, 200), codec_options={"g": "5"})
    turns = [{"start": k, "end": k + 0.5, "instruction": "now ?", "answer": f"at {k}"} for k in range(3)]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"video": "a.mp4", "turns": turns}) + "\n")
    source = {"name": "stream-it", "dataset": "jsonl", "annotations": str(tmp_path / "rows.jsonl"), "drop": 0.5}
    rows = LiveRows([load_source(source, 2.0, None)], torch.zeros(8, dtype=torch.int64).numpy())
    assert len({str(rows[i]["conversation"]) for i in range(8)}) > 3, "drawn anew in every pass"


def test_coin_is_a_source_as_it_is_told_and_as_it_is_asked_for(tmp_path):
    steps = [{"segment": [0.5 + k, 1.0 + k], "label": f"step {k}"} for k in range(3)]
    video = {"duration": 4.0, "class": "MakeTea", "annotation": steps}
    database = {"a": {**video, "subset": "training"}, "b": {**video, "subset": "testing"}}
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    for name in database:
        write_video(tmp_path / f"{name}.mp4", range(0, 4000, 200), codec_options={"g": "5"})
    place = {"path": str(tmp_path / "COIN.json"), "folder": str(tmp_path), "weight": 2}
    told = load_source({"name": "coin_stream", **place}, 2.0, None)
    asked = load_source({"name": "coin_benchmark", "benchmark": "step", "subset": "test", **place}, 2.0, None)
    assert [row["media"] for row in told] == [str(tmp_path / "a.mp4")]
    assert [row["media"] for row in asked] == [str(tmp_path / "b.mp4")] * 3
    assert [row["conversation"][-1]["content"] for row in asked] == ["Step 0.", "Step 1.", "Step 2."]
    collator = MethodCollator(live_processor())
    batch = collator([*told, *asked])
    assert batch["skipped"] == [] and batch["frame_mask"].sum(1).tolist() == [8, 2, 2, 2]
    assert all((row != -100).any() for row in batch["labels"])


def test_what_a_source_leaves_out_is_told(tmp_path, caplog):
    steps = [{"segment": [0.5, 1.0], "label": "stir"}]
    database = {
        name: {"duration": 4.0, "class": "MakeTea", "annotation": steps, "subset": "training"} for name in "ab"
    }
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    source = {"name": "coin_stream", "path": str(tmp_path / "COIN.json"), "folder": str(tmp_path)}
    with pytest.raises(ValueError, match=r"has no rows: 2 × .*COIN\.json:1"):
        load_source(source, 2.0, None)
    write_video(tmp_path / "a.mp4", range(0, 4000, 200), codec_options={"g": "5"})
    assert len(load_source(source, 2.0, None)) == 1
    [record] = caplog.records
    assert "coin_stream: left out: 1 × " in record.getMessage() and "COIN.json" in record.getMessage()
