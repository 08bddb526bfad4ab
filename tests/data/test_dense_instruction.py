import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from streamchat_hf.data.dense_instruction import FEATURES, DenseInstruction, load_dense_instruction
from streamchat_hf.data.streamworld_dataset import StreamWorldDataset, StreamWorldMix
from streamchat_hf.data.streamworld_english import english_answer, english_question
from streamchat_hf.data.word_times import show_word_times, spoken_words
from video_files import write_video

FIXTURES = Path(__file__).parents[1] / "fixtures" / "annotations"
FORMATS = {
    "jsonl": {"annotations": FIXTURES / "rows.jsonl"},
    "llava": {"annotations": FIXTURES / "llava.json"},
    "messages": {"annotations": FIXTURES / "messages.jsonl"},
    "vript": {"annotations": FIXTURES / "vript", "scene_times": FIXTURES / "vript"},
    "activitynet_captions": {"annotations": FIXTURES / "activitynet.json"},
    "ego4d": {"annotations": [FIXTURES / "narration.json", FIXTURES / "all_narrations_redacted.json"]},
    "streamworld": {"clips": 4},
}
VIDEOS = (
    "kitchen.mp4",
    "NextQA/NExTVideo/1006/89.mp4",
    "AbC.mp4",
    "XyZ_0.mp4",
    "v_XyZ.webm",
    "full_scale/0a1b-uid.mp4",
)
PAPER = {
    "video": "clip.mp4",
    "start": 5,
    "end": 10,
    "instruction": "What is the person in the video doing now?",
    "answer": "The person is cooking right now.",
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video of twelve seconds."""
    return write_video(tmp_path_factory.mktemp("clip") / "clip.mp4", range(0, 12_000, 100))


@pytest.fixture(scope="module")
def media(tmp_path_factory, clip):
    """The media that the fixtures speak of."""
    folder = tmp_path_factory.mktemp("media")
    for name in VIDEOS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clip, folder / name)
    for name in ("dog.png", "coco/train2017/0001.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def load(media, cache):
    def load(name, **changes):
        config = FORMATS[name] | ({"media_folder": media} if name != "streamworld" else {})
        return load_dense_instruction(name, **{"on_bad_row": "raise", "cache_dir": cache, **config, **changes})

    return load


@pytest.fixture
def rows_file(tmp_path, clip):
    """Writes rows of plain JSONL beside the clip."""
    shutil.copy(clip, tmp_path / "clip.mp4")

    def write(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
        return path

    return write


def read(path, name="jsonl", **config):
    """The rows of a stream, and the builder."""
    builder = DenseInstruction(config_name=name, annotations=path, cache_dir=path.parent / "cache", **config)
    return list(builder.as_streaming_dataset(split="train")), builder


# One kind of row


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_kind_of_row(load, media, name):
    dataset = load(name)
    assert dataset.features == FEATURES
    assert len(dataset) > 0
    for row in dataset:
        assert row["kind"] in ("dense", "video", "image", "text")
        assert (row["media"] == "") if row["kind"] == "text" else os.path.isfile(row["media"])
        assert row["source"].startswith("streamworld:" if name == "streamworld" else f"{FIXTURES}/")
        spoken = -1.0
        for turn in row["turns"]:
            assert turn["instruction"] == turn["instruction"].strip() != ""
            assert turn["answer"] == turn["answer"].strip() != ""
            if row["kind"] == "dense":
                assert len(turn["word_times"]) == len(spoken_words(turn["answer"]))
                times = [spoken, turn["start"], *turn["word_times"], turn["end"]]
                assert times == sorted(times)
                spoken = turn["end"]
            else:
                assert (turn["start"], turn["end"], turn["word_times"]) == (None, None, [])
    kinds = {"jsonl": "dense video image text", "llava": "video image text", "messages": "video image text"}
    assert {row["kind"] for row in dataset} == set(kinds.get(name, "dense").split())


@pytest.mark.parametrize("name", FORMATS)
def test_streamed_rows_are_the_mapped_ones(load, name):
    stream = load(name, streaming=True)
    assert isinstance(stream, datasets.IterableDataset) and stream.features == FEATURES
    mapped = load(name)
    assert isinstance(mapped, datasets.Dataset) and mapped.cache_files
    assert list(stream) == list(stream) == list(mapped)


def test_every_configuration_has_a_fixture():
    assert {config.name for config in DenseInstruction.BUILDER_CONFIGS} == set(FORMATS)


def test_the_example_of_the_paper(rows_file):
    ((row,), _) = read(rows_file(PAPER))
    (turn,) = row["turns"]
    assert show_word_times(turn["answer"], turn["word_times"]) == "<5>The <6>person <7>is <8>cooking <9>right <10>now."
    assert (turn["instruction"], turn["start"], turn["end"]) == (PAPER["instruction"], 5, 10)


def told(row):
    return [(turn["answer"], turn["start"], turn["end"]) for turn in row["turns"]]


def test_overlapping_segments_go_to_further_rows(load):
    first, second, third = load("activitynet_captions")
    assert (first["id"], told(first)) == ("v_AbC", [("A woman stands.", 0.8, 5.9), ("She bows.", 6.0, 12.0)])
    assert (second["id"], told(second)) == ("v_AbC#2", [("She dances while music plays.", 3.4, 9.8)])
    assert third["id"] == "v_XyZ" and third["media"].endswith("v_XyZ.webm")
    assert first["source"] == second["source"] == f"{FIXTURES}/activitynet.json:1[v_AbC]"


def test_rows_can_be_short(rows_file):
    turns = [{"instruction": "?", "answer": "A.", "start": start, "end": start + 1} for start in (8, 0, 5, 2, 9.5)]
    path = rows_file({"id": "x", "video": "clip.mp4", "turns": turns})
    whole, _ = read(path)
    assert [[start for _, start, _ in told(row)] for row in whole] == [[0, 2, 5, 8, 9.5]]
    short, _ = read(path, max_seconds=4)
    assert [(row["id"], [start for _, start, _ in told(row)]) for row in short] == [
        ("x", [0, 2]),
        ("x#2", [5, 8]),
        ("x#3", [9.5]),
    ]
    single, _ = read(path, max_seconds=0.5)  # a turn is never cut
    assert len(single) == 5


def test_a_narration_takes_as_long_as_it_takes_to_say_it(load):
    first, second, u1, u2 = load("ego4d")
    assert told(first) == [
        ("C picks a bag.", 3.34, 4.34),  # two seconds long, but the next one starts
        ("A man X opens the.", 4.34, 6.84),
        ("C walks slowly into the wide green garden.", 9.0, 12.0),  # four seconds long, but the video ends
    ]
    assert [row["id"].split("/")[1] for row in (first, second, u1, u2)] == [
        "narration_pass_1",
        "narration_pass_2",
        "u1",
        "u2",
    ]
    assert told(u1) == [("C picks a bag.", 3.3, 4.3), ("C opens a door.", 4.3, 6.3)]


def test_narrations_of_the_same_moment_go_to_further_rows(tmp_path, clip):
    shutil.copy(clip, tmp_path / "u.mp4")
    narrations = [{"time": time, "text": f"C does {time}"} for time in (1, 1, 2)]
    path = tmp_path / "narration.json"
    path.write_text(json.dumps({"videos": {"u": {"narrations": narrations}}}))
    rows, _ = read(path, "ego4d")
    assert [[(start, end) for _, start, end in told(row)] for row in rows] == [[(1, 2), (2, 3.5)], [(1, 2)]]


def test_an_end_a_little_after_the_video_is_cut(rows_file):
    ((row,), _) = read(rows_file({**PAPER, "start": 10, "end": 12.6}))
    assert told(row)[0][1:] == (10, 12)
    assert row["turns"][0]["word_times"][-1] == 12


def test_media_lie_beside_the_annotations_or_in_their_folder(rows_file, tmp_path):
    path = rows_file(PAPER)
    ((row,), _) = read(path)
    assert row["media"] == str(tmp_path / "clip.mp4")
    (tmp_path / "media").mkdir()
    (tmp_path / "clip.mp4").rename(tmp_path / "media" / "clip.mp4")
    ((row,), _) = read(path, media_folder=str(tmp_path / "media"))
    assert row["media"] == str(tmp_path / "media" / "clip.mp4")


# Bad rows


BAD = {
    "missing video": ({**PAPER, "video": "nope.mp4"}, "no file {folder}/nope.mp4"),
    "missing image": ({"image": "nope.png", "instruction": "?", "answer": "A."}, "no file {folder}/nope.png"),
    "unreadable video": ({**PAPER, "video": "junk.mp4"}, "Invalid data"),
    "interval outside the video": ({**PAPER, "end": 100}, "5 to 100 s in a video of 12 s"),
    "interval ends before it starts": ({**PAPER, "end": 4}, "5 to 4 s"),
    "empty answer": ({**PAPER, "answer": " \n"}, "to 'What is the person in the video doing now?'"),
    "empty instruction": ({**PAPER, "instruction": ""}, "its answer is 'The person is cooking right now.'"),
    "wrong layout": ({"video": "clip.mp4"}, "no field 'instruction'"),
    "not JSON": ('{"video": "clip.mp4"', "Expecting"),
    "no turns": ({"video": "clip.mp4", "turns": []}, "nothing is said about 2"),
    "broken text": ({**PAPER, "answer": "A \ud83d"}, "surrogates not allowed"),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_counted_with_file_and_line_and_the_others_stay(rows_file, tmp_path, reason, caplog):
    row, detail = BAD[reason]
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    path = rows_file(PAPER, row, PAPER)
    rows, builder = read(path)
    assert [row["source"] for row in rows] == [f"{path}:1", f"{path}:3"]
    assert builder.bad_rows.counts == {reason: 1}
    (example,) = builder.bad_rows.examples[reason]
    assert example.startswith(f"{path}:2: ") and detail.format(folder=tmp_path) in example
    (record,) = [record for record in caplog.records if record.name == "streamchat_hf.data.dense_instruction"]
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"jsonl: left out: 1 × {reason} ({example})"


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("reason", BAD)
def test_a_bad_row_is_refused_if_asked(rows_file, tmp_path, reason, streaming):
    (tmp_path / "junk.mp4").write_bytes(b"junk")
    path = rows_file(PAPER, BAD[reason][0], PAPER)
    with pytest.raises(ValueError, match=f"^{path}:2: {reason}: "):
        config = {"annotations": path, "cache_dir": tmp_path / "cache", "on_bad_row": "raise"}
        list(load_dense_instruction("jsonl", streaming=streaming, **config))


@pytest.mark.parametrize(
    ("start", "end", "fits"),
    [(0, 12, True), (11.9, 12.9, True), (12, 12.5, False), (11, 13.1, False), (-0.1, 3, False), (11.9, None, True)],
)
def test_which_intervals_lie_in_the_video(rows_file, start, end, fits):
    rows, builder = read(rows_file(PAPER, {**PAPER, "start": start, "end": end}))
    assert len(rows) == 1 + fits
    assert builder.bad_rows.counts == ({} if fits else {"interval outside the video": 1})


def test_a_bad_turn_does_not_cost_the_others(rows_file):
    turns = [PAPER, {**PAPER, "answer": ""}, {**PAPER, "start": None, "end": None}, {**PAPER, "start": 11, "end": 12}]
    path = rows_file({"video": "clip.mp4", "turns": turns})
    ((row,), builder) = read(path)
    assert [start for _, start, _ in told(row)] == [5, 11]
    assert builder.bad_rows.examples == {
        "empty answer": [f"{path}:1 turn 2: to '{PAPER['instruction']}'"],
        "no interval": [f"{path}:1 turn 3: it is not known when it is asked"],
    }


@pytest.mark.parametrize("streaming", [True, False])
def test_without_any_row_there_is_nothing_to_go_on_with(rows_file, tmp_path, streaming):
    path = rows_file({**PAPER, "video": "nope.mp4"}, {**PAPER, "answer": ""})
    config = {"annotations": path, "cache_dir": tmp_path / "cache", "streaming": streaming}
    for _ in range(2):  # nothing was left in the cache
        with pytest.raises(ValueError, match=r"jsonl: no row is left: 1 × missing video \(.*:1: .*1 × empty answer"):
            list(load_dense_instruction("jsonl", **config))
    path.write_text("\n")
    with pytest.raises(ValueError, match="jsonl: no row is left: there was none"):
        list(load_dense_instruction("jsonl", **config))


def test_nothing_is_looked_at_if_nothing_is_checked(rows_file, tmp_path):
    rows, builder = read(rows_file({**PAPER, "video": "nope.mp4", "end": 100}), check_media=False)
    assert [row["media"] for row in rows] == [str(tmp_path / "nope.mp4")]
    assert builder.bad_rows.counts == {}


def test_a_broken_document_does_not_hide_the_next(tmp_path, clip):
    shutil.copy(clip, tmp_path / "AbC.mp4")
    good = {"AbC": {"timestamps": [[0, 1]], "sentences": ["A."]}}
    (tmp_path / "1.json").write_text(json.dumps({"AbC": good["AbC"], "XyZ": 3})[:-2])
    (tmp_path / "2.json").write_text(json.dumps(good))
    builder = DenseInstruction(config_name="activitynet_captions", annotations=tmp_path, cache_dir=tmp_path / "cache")
    rows = list(builder.as_streaming_dataset(split="train"))
    assert [Path(row["source"]).name for row in rows] == ["1.json:1[AbC]", "2.json:1[AbC]"]
    assert builder.bad_rows.counts == {"not JSON": 1}


# Configurations


@pytest.mark.parametrize(
    ("name", "config", "error", "message"),
    [
        ("jsonl", {}, ValueError, "configuration 'jsonl' needs annotations="),
        ("jsonl", {"annotations": "nothing.jsonl"}, FileNotFoundError, "no annotation file at nothing.jsonl"),
        ("streamworld", {"on_bad_row": "ignore"}, ValueError, "on_bad_row is 'skip' or 'raise', not 'ignore'"),
        ("streamworld", {"worlds": 3}, ValueError, "doesn't have a 'worlds' key"),
        ("charades", {}, ValueError, "'charades' not found. Available: .*'streamworld'"),
    ],
)
def test_contradictions_are_named(tmp_path, name, config, error, message):
    with pytest.raises(error, match=message):
        load_dense_instruction(name, cache_dir=tmp_path, **config)


def test_the_split_is_named_and_sliced(load):
    assert load("jsonl", split="validation").split == "validation"
    assert len(load("jsonl", split="train[:2]")) == 2
    assert [row["id"] for row in load("jsonl", split="train[1:2]")] == ["two"]


# The cache and parquet


def test_prepared_rows_are_found_again_with_what_was_left_out(rows_file, tmp_path, caplog):
    path = rows_file(PAPER, {**PAPER, "answer": ""})

    def prepare():
        caplog.clear()
        builder = DenseInstruction(config_name="jsonl", annotations=path, cache_dir=tmp_path / "cache")
        builder.download_and_prepare()
        (record,) = [record for record in caplog.records if record.name == "streamchat_hf.data.dense_instruction"]
        return builder.as_dataset(split="train"), builder.bad_rows.counts, record.getMessage()

    first, counts, message = prepare()
    assert (len(first), counts) == (1, {"empty answer": 1}) and not message.endswith("looks again")
    again, counts, message = prepare()
    assert again.cache_files == first.cache_files
    assert counts == {"empty answer": 1} and message.endswith("download_mode='force_redownload' looks again")
    rows_file(PAPER, {**PAPER, "answer": ""}, PAPER)  # another file is another dataset
    changed, counts, message = prepare()
    assert (len(changed), counts) == (2, {"empty answer": 1}) and not message.endswith("looks again")


READ_PARQUET = """
import json, sys, datasets
cache, *paths = sys.argv[1:]
for path in paths:
    rows = datasets.load_dataset("parquet", data_files=path, split="train", cache_dir=cache)
    print(json.dumps([str(rows.features), list(rows)]))
assert "streamchat_hf" not in sys.modules
"""


def test_parquet_needs_nothing_of_ours(load, cache, media, tmp_path):
    rows = load("jsonl")
    rows.to_parquet(tmp_path / "dataset.parquet")
    config = FORMATS["jsonl"] | {"media_folder": media, "cache_dir": cache}
    builder = DenseInstruction(config_name="jsonl", **config)
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    (prepared,) = (tmp_path / "out").glob("*.parquet")
    command = [
        sys.executable,
        "-c",
        READ_PARQUET,
        str(tmp_path / "cache"),
        str(tmp_path / "dataset.parquet"),
        prepared,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [json.loads(line) for line in run.stdout.splitlines()] == [[str(FEATURES), list(rows)]] * 2


# Streaming


def test_a_stream_reads_no_further_than_it_has_to(rows_file):
    path = rows_file(*[PAPER] * 4, "{oops")
    builder = DenseInstruction(
        config_name="jsonl", annotations=path, cache_dir=path.parent / "cache", on_bad_row="raise"
    )
    stream = builder.as_streaming_dataset(split="train")
    assert len(list(stream.take(2))) == 2
    with pytest.raises(ValueError, match=f"^{path}:5: not JSON"):
        list(stream)


def test_a_stream_is_an_iterable_dataset_like_any_other(load):
    stream = load("ego4d", streaming=True)
    ids = [row["id"] for row in stream]
    assert sorted(row["id"] for row in stream.shuffle(seed=0, buffer_size=10)) == sorted(ids)
    counted = stream.map(lambda row: {"count": len(row["turns"])})
    assert [row["count"] for row in counted] == [len(row["turns"]) for row in stream]
    assert [row["id"] for row in stream.filter(lambda row: row["id"] == ids[1])] == ids[1:2]
    batches = list(DataLoader(stream, batch_size=3, collate_fn=list))
    assert [row["id"] for batch in batches for row in batch] == ids


# StreamWorld


def test_streamworld_clips_hold_what_is_said_of_them(load):
    rows = load("streamworld", seed=3)
    samples = StreamWorldDataset(4, seed=3, mix=StreamWorldMix(stalled=0.0))
    for row, sample in zip(rows, map(samples.__getitem__, range(4)), strict=True):
        for turn, expected in zip(row["turns"], sample.turns, strict=True):
            assert turn["instruction"] == expected.question.text
            assert spoken_words(turn["answer"]) == [word.text for word in expected.words]
            assert turn["word_times"] == [word.time for word in expected.words]
            assert turn["start"] == expected.ask_time and turn["end"] == expected.words[-1].time
    assert len({row["media"] for row in rows}) == 4
    assert all(Path(row["media"]).is_absolute() for row in rows)


def test_streamworld_speaks_english_at_the_same_times(load):
    own, english = load("streamworld", seed=3), load("streamworld", seed=3, english=True)
    turns = [
        (a, b)
        for one, other in zip(own, english, strict=True)
        for a, b in zip(one["turns"], other["turns"], strict=True)
    ]
    assert turns and all(a["word_times"] == b["word_times"] for a, b in turns)
    assert all(b["instruction"] == english_question(a["instruction"]) != a["instruction"] for a, b in turns)
    assert all(b["answer"].split() == english_answer(a["answer"].split()) for a, b in turns)
    assert any(a["answer"] != b["answer"] for a, b in turns)


def test_streamworld_offline_asks_when_the_clip_is_over(load):
    rows, dense = load("streamworld", seed=3, clips=12, offline=True), load("streamworld", seed=3, clips=12)
    of = {row["id"]: row for row in dense}
    assert 8 <= len(rows) <= 12 and {row["kind"] for row in rows} == {"video"}
    for row in rows:
        assert row["media"] == of[row["id"]]["media"]
        assert all(turn["start"] is None and not turn["word_times"] for turn in row["turns"])
        asked = {turn["instruction"]: turn["answer"] for turn in of[row["id"]]["turns"]}
        assert all(len(turn["answer"].split()) == len(asked[turn["instruction"]].split()) for turn in row["turns"][:1])
    assert any(row["turns"][0]["answer"] != of[row["id"]]["turns"][0]["answer"] for row in rows)


def test_streamworld_clips_are_rendered_once(tmp_path):
    config = {"clips": 2, "cache_dir": tmp_path, "split": "heldout", "streaming": True}
    media = [Path(row["media"]) for row in load_dense_instruction("streamworld", **config)]
    written = [path.stat().st_mtime_ns for path in media]
    again = [Path(row["media"]) for row in load_dense_instruction("streamworld", **config)]
    assert again == media and [path.stat().st_mtime_ns for path in again] == written
    assert sorted(path.name for path in media[0].parent.iterdir()) == ["000000.mp4", "000001.mp4"]
    with pytest.raises(ValueError, match="unknown split 'test'"):
        list(load_dense_instruction("streamworld", **{**config, "split": "test"}))
