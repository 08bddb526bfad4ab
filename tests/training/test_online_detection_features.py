"""Features of a stream are those of the whole video, made once, and filed under what they were made with."""

import copy
from dataclasses import replace

import pytest
import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

from multitask_helpers import tiny_tower
from online_detection_helpers import colour_video, tiny_head, tower_folder
from siglip_folders import SHAPE, TOWER
from streamchat_hf import StreamFormerVideoProcessor, VideoFrame, tiny_checkpoint
from streamchat_hf.training.online_detection_features import FeatureStore, load_tower, stream_features, watch


@pytest.fixture
def tower():
    return tiny_tower(sliding_window=4)


@pytest.fixture
def processor():
    return StreamFormerVideoProcessor(size={"height": 16, "width": 16})


@pytest.fixture
def pixels():
    return torch.randn(21, 3, 16, 16)


def frames_of(pixels):
    return [VideoFrame(i / 2, image) for i, image in enumerate(pixels)]


def together(parts):
    times, features = zip(*parts, strict=True)
    return [time for part in times for time in part], torch.cat(features)


@pytest.mark.parametrize("pooling", [True, False])
@pytest.mark.parametrize("chunk", [1, 4, 32])
def test_streamed_features_are_those_of_the_whole_video(pixels, pooling, chunk):
    tower = tiny_tower(sliding_window=4, use_pooling_head=pooling)
    times, features = together(stream_features(tower, frames_of(pixels), chunk=chunk))
    whole = tower(pixels[None])
    expected = whole.pooler_output[0] if pooling else whole.last_hidden_state[0].mean(1)
    torch.testing.assert_close(features, expected, atol=2e-5, rtol=0)
    assert times == [i / 2 for i in range(21)] and not features.requires_grad


def test_a_window_of_ones_own_and_one_for_towers_without(pixels, monkeypatch):
    endless, narrow = tiny_tower(), tiny_tower(sliding_window=3)
    _, features = together(stream_features(tiny_tower(sliding_window=8), frames_of(pixels), window=3))
    torch.testing.assert_close(features, narrow(pixels[None]).pooler_output[0], atol=2e-5, rtol=0)
    monkeypatch.setattr("streamchat_hf.training.online_detection_features.DEFAULT_WINDOW", 3)
    _, features = together(stream_features(endless, frames_of(pixels)))
    torch.testing.assert_close(features, narrow(pixels[None]).pooler_output[0], atol=2e-5, rtol=0)


def test_image_only_frames_have_no_past(tower, pixels):
    _, features = together(stream_features(tower, frames_of(pixels), image_only=True, chunk=8))
    alone = torch.cat([tower(image[None, None]).pooler_output[0] for image in pixels])
    torch.testing.assert_close(features, alone, atol=2e-5, rtol=0)
    _, with_past = together(stream_features(tower, frames_of(pixels)))
    assert (with_past[5:] - features[5:]).abs().max() > 1e-2


def test_watching_gives_every_frame_its_scores_before_the_next_one(tower, pixels):
    head, taken = tiny_head(feature_size=16), []

    def live():
        for frame in frames_of(pixels):
            taken.append(frame.t_sec)
            yield frame

    seen = []
    for time, probabilities in watch(tower, head, live()):
        assert taken[-1] == time
        seen.append(probabilities)
    expected = head.score(together(stream_features(tower, frames_of(pixels)))[1]).softmax(-1)
    torch.testing.assert_close(torch.stack(seen), expected, atol=1e-5, rtol=0)


def test_a_tower_comes_alone_or_inside_a_talker(tmp_path, processor):
    tower, of_talker = load_tower(tiny_checkpoint())
    assert (tower.config.model_type, tower.training) == ("streamformer", False)
    assert of_talker.size["height"] == 48 and not any(p.requires_grad for p in tower.parameters())
    folder = tower_folder(tmp_path / "tower")
    assert load_tower(folder)[1].size["height"] == 16  # none is there: made for its frames
    StreamFormerVideoProcessor(size={"height": 16, "width": 16}, image_mean=0.25).save_pretrained(folder)
    assert load_tower(folder)[1].image_mean == 0.25
    SiglipVisionModel(SiglipVisionConfig(**SHAPE, **TOWER)).save_pretrained(tmp_path / "siglip")
    with pytest.raises(ValueError, match="is a siglip_vision_model: StreamFormer or StreamChat is needed"):
        load_tower(tmp_path / "siglip")


def test_files_hold_what_was_seen(tmp_path, tower, processor):
    video = colour_video(0)
    store = FeatureStore(tmp_path, tower, processor, fps=2.0)
    store.make([video])
    features, times = store.load(video)
    frames = [VideoFrame(time, processor.preprocess_frame(image)) for time, image in video.frames(2.0)]
    expected_times, expected = together(stream_features(tower, frames))
    assert torch.equal(features, expected) and times.tolist() == expected_times
    assert (features.dtype, times.dtype) == (torch.float32, torch.float64)


def test_what_broke_off_goes_on(tmp_path, tower, processor):
    watched = []

    def counted(video, broken=False):
        def frames(fps):
            watched.append(video.name)
            yield from list(video.frames(fps))[: 3 if broken else None]
            if broken:
                raise OSError("unplugged")

        return replace(video, frames=frames)

    videos = [colour_video(seed) for seed in range(3)]
    store = FeatureStore(tmp_path, tower, processor, fps=2.0)
    with pytest.raises(OSError, match="unplugged"):
        store.make([counted(videos[0]), counted(videos[1], broken=True), counted(videos[2])])
    (store.folder / "colours_1.part").write_bytes(b"half")
    again = FeatureStore(tmp_path, tower, processor, fps=2.0)
    again.make([counted(video) for video in videos])
    assert watched == ["colours_0", "colours_1", "colours_1", "colours_2"]
    assert sorted(path.name for path in store.folder.iterdir()) == [
        *(f"colours_{seed}.safetensors" for seed in range(3)),
        "features.json",
    ]
    again.make([counted(video) for video in videos])
    assert len(watched) == 4


def test_other_circumstances_have_another_folder(tmp_path, tower, processor):
    other = copy.deepcopy(tower)
    with torch.no_grad():
        other.layers[1].temporal_gate.add_(0.1)
    stores = [
        FeatureStore(tmp_path, tower, processor, 2.0),
        FeatureStore(tmp_path, other, processor, 2.0),
        FeatureStore(tmp_path, tiny_tower(sliding_window=5), processor, 2.0),
        FeatureStore(tmp_path, tower, StreamFormerVideoProcessor(size={"height": 32, "width": 32}), 2.0),
        FeatureStore(tmp_path, tower, processor, 4.0),
        FeatureStore(tmp_path, tower, processor, 2.0, window=3),
        FeatureStore(tmp_path, tower, processor, 2.0, image_only=True),
    ]
    assert len({store.folder for store in stores}) == len(stores)
    assert FeatureStore(tmp_path, tiny_tower(sliding_window=4), processor, 2).folder == stores[0].folder
    stores[0].make([])
    assert str(tmp_path) not in (stores[0].folder / "features.json").read_text()


def test_what_is_wrong_is_said(tmp_path, tower, processor):
    store = FeatureStore(tmp_path, tower, processor, fps=2.0)
    with pytest.raises(FileNotFoundError, match="no features of video colours_0"):
        store.load(colour_video(0))
    with pytest.raises(ValueError, match="video dark has no frames"):
        store.make([replace(colour_video(0), name="dark", frames=lambda fps: [])])
    with pytest.raises(ValueError, match="several videos have the name 'colours_0'"):
        store.make([colour_video(0), colour_video(0)])
