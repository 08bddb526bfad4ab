from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from streamchat_hf.data.annotations import BadRow, BadRows
from streamchat_hf.data.streamworld_tasks import StreamWorldTasks, collate_tasks
from streamchat_hf.data.task_records import PngMask, Rle, TaskRecord
from streamchat_hf.data.task_records_batches import TaskClips, around, collate_clips
from streamchat_hf.data.task_records_masks import read_mevis, read_refer_youtube_vos, read_youtube_vis
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor
from video_files import write_video

FIXTURES = Path(__file__).parents[1] / "fixtures" / "task_records"
REFUSE = BadRows(refuse=True)
PROCESSOR = StreamFormerVideoProcessor(size={"height": 6, "width": 8})


def record(task, texts=("a",), media=("v",), **kwargs):
    return TaskRecord("id", "f:1", task, texts, media, **kwargs)


@pytest.fixture
def folder(tmp_path):
    """A folder with `v.mp4`, 2 seconds at ten frames per second."""
    write_video(tmp_path / "v.mp4")
    return tmp_path


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A folder with `v.mp4`, 40 seconds at five frames per second, no two frames alike."""
    folder = tmp_path_factory.mktemp("long")
    noise = np.random.default_rng(0).integers(0, 256, (200, 6, 8, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    write_video(folder / "v.mp4", range(0, 40000, 200), images=list(noise))
    return folder


def clip(folder, found, num_frames=4, **kwargs):
    return TaskClips([found], folder, PROCESSOR, REFUSE, num_frames, **kwargs)[0]


def every_frame(path):
    return PROCESSOR(str(path), do_sample_frames=False, max_frames=None)["pixel_values_videos"][0]


def indices(path, pixels):
    """Which frames of a video these are."""
    every = every_frame(path)
    distances = (pixels[:, None] - every[None]).abs().flatten(2).amax(2)
    assert (distances.amin(1) < 1e-6).all()
    return distances.argmin(1).tolist()


@pytest.mark.parametrize("task", ["action_recognition", "video_text_retrieval", "temporal_localization"])
def test_frames_are_spread_evenly_over_the_clip(folder, task):
    found = record(task, intervals=((0.5, 1.0),) if task == "temporal_localization" else ())
    assert indices(folder / "v.mp4", clip(folder, found).pixel_values) == [0, 5, 10, 15]
    assert indices(folder / "v.mp4", clip(folder, replace(found, end=1.2)).pixel_values) == [0, 3, 6, 9]
    assert indices(folder / "v.mp4", clip(folder, replace(found, end=60.0)).pixel_values) == [0, 5, 10, 15]


def test_a_clip_with_few_frames_repeats_them(folder):
    shown = indices(folder / "v.mp4", clip(folder, record("action_recognition", end=0.3), 6).pixel_values)
    assert len(shown) == 6 and set(shown) == {0, 1, 2} and shown == sorted(shown)


def test_the_class_of_a_clip(folder):
    records = [record("action_recognition", (text,)) for text in ("run", "jump", "run")]
    batch = collate_clips([TaskClips(records, folder, PROCESSOR, REFUSE, 2)[i] for i in range(3)])
    assert batch["texts"] == ["jump", "run"] and batch["labels"].tolist() == [1, 0, 1]
    batch = collate_clips([TaskClips(records, folder, PROCESSOR, REFUSE, 2, classes=("run", "x", "jump"))[1]])
    assert batch["texts"] == ["run", "x", "jump"] and batch["labels"].tolist() == [2]
    with pytest.raises(ValueError, match=r"no class of the given ones: \['jump'\]"):
        TaskClips(records, folder, PROCESSOR, REFUSE, classes=("run",))


def test_captions_are_drawn_and_true_of_every_clip_that_has_them(folder):
    records = [record("video_text_retrieval", texts) for texts in (("a", "b", "c"), ("a", "b", "c"), ("d",))]
    drawn = set()
    for seed in range(40):
        dataset = TaskClips(records, folder, PROCESSOR, REFUSE, 2, seed=seed)
        batch = collate_clips([dataset[i] for i in range(3)])
        drawn.add(tuple(batch["texts"]))
        assert batch["labels"].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    assert drawn == {(first, second, "d") for first in "abc" for second in "abc"}


def test_a_frame_is_of_the_class_whose_interval_it_lies_in(folder):
    found = record("temporal_localization", ("run", "jump", "run"), intervals=((0.2, 0.6), (0.6, 1.0), (1.5, 1.6)))
    made = clip(folder, found, 20)
    assert made.texts == ("jump", "run")
    assert made.labels.tolist() == [-1] * 2 + [1] * 4 + [0] * 4 + [-1] * 5 + [1] + [-1] * 4


def test_grounding_shows_what_is_around_the_interval(long):
    found = record("temporal_grounding", intervals=((20.0, 24.0), (30.0, 31.0)))
    starts = set()
    for seed in range(20):
        made = clip(long, found, 16, seed=seed)
        times = [index / 5 for index in indices(long / "v.mp4", made.pixel_values)]
        assert times == sorted(times)
        # One frame of each second, 14 to 30 around the first interval and 22.5 to 38.5 around the other.
        start = 14.0 if times[0] < 20 else 22.5
        assert all(start + i <= time < start + i + 1 for i, time in enumerate(times))
        assert made.labels.tolist() == [20 <= time < 24 or 30 <= time < 31 for time in times]
        starts.add((start, tuple(times)))
    assert {start for start, _ in starts} == {14.0, 22.5} and len(starts) > 10
    assert made.texts == ("a",)


@given(st.floats(0, 99), st.floats(0.1, 100), st.floats(0.5, 100))
def test_an_interval_has_16_seconds_around_it_if_there_are_so_many(start, length, duration):
    start = min(start, duration - 0.4)
    shown = around((start, start + length), duration)
    end = min(start + length, duration)
    assert 0 <= shown[0] <= start and end <= shown[1] <= duration + 1e-9
    assert shown[1] - shown[0] == pytest.approx(min(max(16.0, end - start), duration))


def scaled(mask, size=(6, 8)):
    return torch.from_numpy(np.kron(mask, np.ones((size[0] // len(mask), size[1] // len(mask[0])), bool)))


def write_frames(folder, names, size=(4, 3)):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (40, 80, 120)).save(folder / name)


def test_youtube_vis_becomes_classes_of_pixels(tmp_path):
    (found,) = read_youtube_vis(str(FIXTURES / "youtube_vis.json"), REFUSE)
    write_frames(tmp_path, found.frames)
    made = clip(tmp_path, found)
    panda = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]], bool)
    person = np.array([[0, 0, 0, 1]] * 3, bool)
    assert made.texts == ("giant_panda", "person") and made.labels.dtype == torch.int64
    expected = [torch.where(scaled(mask), value, -1) for mask, value in ((panda, 0), (person, 1))]
    assert torch.equal(made.labels, torch.stack([expected[0]] * 2 + [expected[1]] * 2))  # two frames, each twice
    assert made.pixel_values.shape == (4, 3, 6, 8)
    torch.testing.assert_close(
        made.pixel_values[0, :, 0, 0], torch.tensor([40, 80, 120]) / 127.5 - 1, atol=0.02, rtol=0
    )


def test_of_overlapping_objects_the_first_has_the_pixels(tmp_path):
    write_frames(tmp_path, ["a.jpg"])
    masks = ((Rle(3, 4, (0, 6, 6)),), (Rle(3, 4, (3, 9)),))
    found = record("video_object_segmentation", ("x", "y"), (), frames=("a.jpg",), masks=masks)
    assert clip(tmp_path, found, 1).labels[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_an_expression_becomes_the_masks_of_all_its_objects(tmp_path):
    folder = FIXTURES / "mevis"
    records = list(read_mevis(str(folder / "meta_expressions.json"), REFUSE, str(folder / "mask_dict.json")))
    write_frames(tmp_path, records[0].frames)
    birds, fish = (TaskClips(records, tmp_path, PROCESSOR, REFUSE, 2)[i] for i in range(2))
    both = np.array([[0, 0, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]], bool)
    assert torch.equal(birds.labels, torch.stack([scaled(both), torch.zeros(6, 8, dtype=torch.bool)]))
    assert not fish.labels.any() and fish.labels.dtype == torch.bool
    assert collate_clips([birds, fish])["texts"] == ["the birds flying away", "the fish"]


def test_refer_youtube_vos_reads_its_pictures(tmp_path):
    folder = FIXTURES / "refer_youtube_vos"
    records = list(read_refer_youtube_vos(str(folder / "meta_expressions.json"), REFUSE, str(folder / "Annotations")))
    write_frames(tmp_path, records[0].frames)
    _, other = (TaskClips(records, tmp_path, PROCESSOR, REFUSE, 2)[i] for i in range(2))
    first = np.array([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 1]], bool)
    second = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]], bool)
    assert torch.equal(other.labels, torch.stack([scaled(first), scaled(second)]))


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        ("action_recognition", {}),
        ("video_text_retrieval", {}),
        ("temporal_localization", {"intervals": ((0.0, 1.0),)}),
        ("temporal_grounding", {"intervals": ((0.0, 1.0),)}),
        ("video_object_segmentation", {"media": (), "frames": ("a.jpg",), "masks": ((Rle(3, 4, (0, 6, 6)),),)}),
        ("referring_segmentation", {"media": (), "frames": ("a.jpg",), "masks": ((Rle(3, 4, (0, 6, 6)),),)}),
    ],
)
def test_a_micro_batch_is_like_those_of_streamworld(folder, task, kwargs):
    write_frames(folder, ["a.jpg"])
    processor = StreamFormerVideoProcessor(size={"height": 32, "width": 32})
    dataset = TaskClips([record(task, **kwargs)] * 2, folder, processor, REFUSE, 12)
    (real,) = DataLoader(dataset, batch_size=2, collate_fn=collate_clips)
    (made,) = DataLoader(StreamWorldTasks(task, 2, size=32), batch_size=2, collate_fn=collate_tasks)
    assert list(real) == list(made) and real["task"] == made["task"]
    assert all(isinstance(text, str) for text in real["texts"])
    for name in ("pixel_values_videos", "labels"):
        assert (real[name].shape, real[name].dtype) == (made[name].shape, made[name].dtype)


def test_an_item_depends_on_seed_and_index_alone(long):
    found = record("temporal_grounding", intervals=((20.0, 24.0),))
    first, again = (TaskClips([found] * 3, long, PROCESSOR, REFUSE, 4) for _ in range(2))
    assert torch.equal(first[2].pixel_values, [again[i] for i in (1, 0, 2)][2].pixel_values)
    assert not torch.equal(first[2].pixel_values, first[1].pixel_values)


def test_records_without_their_media_are_reported_and_left_out(folder):
    (folder / "text.mp4").write_text("no video")
    good = record("temporal_grounding", intervals=((0.0, 1.0),))
    records = [
        replace(good, source="f:1", media=("gone", "w")),
        replace(good, source="f:2", media=("text",)),
        replace(good, source="f:3", intervals=((0.0, 1.0), (3.0, 4.0))),
        replace(good, source="f:4", frames=("gone.jpg",)),
        replace(good, source="f:5", media=("gone", "v")),
    ]
    bad = BadRows()
    assert len(TaskClips(records, folder, PROCESSOR, bad)) == 1
    assert {reason: [e.split(": ")[0] for e in examples] for reason, examples in bad.examples.items()} == {
        "missing video": ["f:1"],
        "unreadable video": ["f:2"],
        "interval outside the video": ["f:3"],
        "missing image": ["f:4"],
    }
    with pytest.raises(BadRow, match="f:1: missing video"):
        TaskClips(records, folder, PROCESSOR, REFUSE)
    with pytest.raises(ValueError, match="of 1 records none has its media"):
        TaskClips(records[:1], folder, PROCESSOR, BadRows())


def test_clips_are_of_one_task(folder):
    with pytest.raises(ValueError, match="clips are of one task"):
        TaskClips([record("action_recognition"), record("video_text_retrieval")], folder, PROCESSOR, REFUSE)


def test_a_broken_mask_is_no_silent_background(tmp_path):
    write_frames(tmp_path, ["a.jpg"])
    found = record("referring_segmentation", media=(), frames=("a.jpg",), masks=((PngMask("gone.png", 1),),))
    with pytest.raises(BadRow, match="gone.png"):
        clip(tmp_path, found, 1)
