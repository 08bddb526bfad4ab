"""A StreamFormer inside transformers' own LLaVA-style models, none of them changed."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Trainer,
    TrainingArguments,
)

from multitask_helpers import tiny_tower
from streamchat_hf import StreamFormerModel
from streamchat_hf.vision_tower_streamformer import StreamFormerVisionConfig, StreamFormerVisionModel

TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
IMAGE, VIDEO = 59, 60
FRAMES, PATCHES = 4, 16
# (class, configuration, what holds the video, its placeholder, visual tokens of a video). The video classes halve the
# grid of 4 x 4 patches, LLaVA-OneVision ends a video with a token of its own.
MODELS = {
    "llava": (LlavaForConditionalGeneration, LlavaConfig, "pixel_values", IMAGE, FRAMES * PATCHES),
    "next video": (
        *(LlavaNextVideoForConditionalGeneration, LlavaNextVideoConfig),
        *("pixel_values_videos", VIDEO, FRAMES * PATCHES // 4),
    ),
    "onevision": (
        *(LlavaOnevisionForConditionalGeneration, LlavaOnevisionConfig),
        *("pixel_values_videos", VIDEO, FRAMES * PATCHES // 4 + 1),
    ),
}


def plain_tower(**changes) -> StreamFormerModel:
    return tiny_tower(patch_size=4, sliding_window=3, **changes)


def saved(folder, model, **options) -> StreamFormerVisionModel:
    model.save_pretrained(folder)
    return StreamFormerVisionModel.from_pretrained(folder, **options).eval()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tower(tmp_path) -> StreamFormerVisionModel:
    return saved(tmp_path, plain_tower(), frames_per_video=FRAMES, use_pooling_head=False)


def llava(name: str, tower: StreamFormerVisionModel):
    """A model of one of the classes around this tower, and a batch of two videos with text behind them."""
    cls, config_class, key, placeholder, tokens = MODELS[name]
    more = {} if name == "llava" else {"video_token_index": VIDEO, "image_grid_pinpoints": [[16, 16], [16, 32]]}
    torch.manual_seed(0)
    config = config_class(
        vision_config=tower.config,
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        **more,
    )
    model = cls(config).eval()
    model.model.vision_tower.load_state_dict(tower.state_dict())
    text = torch.randint(2, 50, (2, 5), generator=torch.Generator().manual_seed(1))
    input_ids = torch.cat([torch.full((2, tokens), placeholder), text], dim=1)
    videos = pictures(2 * FRAMES).unflatten(0, (2, FRAMES))
    return model, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), key: videos}


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal to rounding: the same weights at two places in memory may be added in another order."""
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_pictures_in_a_row_are_the_frames_of_their_videos(tmp_path):
    plain = plain_tower()
    tower = saved(tmp_path, plain, frames_per_video=FRAMES)
    row = pictures(3 * FRAMES)
    with torch.no_grad():
        expected = plain(row.unflatten(0, (3, FRAMES)), output_hidden_states=True)
        output, videos = tower(row, output_hidden_states=True), tower(row.unflatten(0, (3, FRAMES)))
        shorter, pairs = tower(row, frames_per_video=2), plain(row.unflatten(0, (6, 2)))
    same(output.last_hidden_state, expected.last_hidden_state.flatten(0, 1))
    same(output.pooler_output, expected.pooler_output.flatten(0, 1))
    same(videos.last_hidden_state, expected.last_hidden_state.flatten(1, 2))
    same(videos.pooler_output, expected.pooler_output[:, -1])
    same(shorter.last_hidden_state, pairs.last_hidden_state.flatten(0, 1))
    assert len(output.hidden_states) == 3 == len(expected.hidden_states)
    for ours, theirs in zip(output.hidden_states[:-1], expected.hidden_states[:-1], strict=True):
        same(ours, theirs.flatten(0, 1))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    before_the_norm = expected.hidden_states[-1].flatten(0, 1)
    assert not torch.allclose(output.hidden_states[-1], before_the_norm)
    untied = saved(tmp_path, plain, frames_per_video=FRAMES, tie_last_hidden_states=False)
    same(untied(row, output_hidden_states=True).hidden_states[-1], before_the_norm)


def test_of_hidden_states_only_those_asked_for_are_kept(tower):
    row = pictures(FRAMES)
    every = tower(row, output_hidden_states=True).hidden_states
    for layers in (-1, -2, [0, -1]):
        kept = tower(row, output_hidden_states=layers).hidden_states
        wanted = {i % 3 for i in ([layers] if isinstance(layers, int) else layers)}
        assert [i for i, states in enumerate(kept) if states is not None] == sorted(wanted)
        assert all(torch.equal(kept[i], every[i]) for i in wanted)
    features, *_ = tower(row, return_dict=False)
    assert torch.equal(features, every[-1])


def test_a_picture_is_a_video_of_one_frame_and_sees_no_other(tmp_path):
    plain = plain_tower()
    tower = saved(tmp_path, plain)
    row = pictures(5)
    with torch.no_grad():
        together = tower(row).last_hidden_state
        alone = torch.cat([plain(picture[None, None]).last_hidden_state[0] for picture in row])
        changed = tower(torch.cat([pictures(1, seed=9), row[1:]])).last_hidden_state
    same(together, alone)
    assert torch.equal(changed[1:], together[1:]) and not torch.equal(changed[0], together[0])


def test_a_window_of_one_frame_is_a_tower_of_pictures(tmp_path):
    """What the benchmark compares with: the same weights, every frame alone."""
    plain = plain_tower()
    row = pictures(FRAMES)
    with torch.no_grad():
        narrow = saved(tmp_path, plain, frames_per_video=FRAMES, sliding_window=1)(row).last_hidden_state
        same(narrow, saved(tmp_path, plain)(row).last_hidden_state)


@pytest.mark.parametrize("count", [3, 7])
def test_pictures_that_make_no_whole_videos_are_refused(tower, count):
    with pytest.raises(ValueError, match=f"{count} pictures are no whole videos of {FRAMES} frames"):
        tower(pictures(count))
    with pytest.raises(ValueError, match="0 frames"):
        tower(pictures(FRAMES), frames_per_video=0)
    with pytest.raises(StrictDataclassClassValidationError, match="frames_per_video=0 must be at least 1"):
        StreamFormerVisionConfig(frames_per_video=0)


def test_a_plain_folder_loads_without_its_pooling_head_and_without_a_warning(tmp_path, caplog):
    plain = plain_tower()
    plain.save_pretrained(tmp_path)
    tower, info = StreamFormerVisionModel.from_pretrained(tmp_path, use_pooling_head=False, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    theirs = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("head.")}
    assert tower.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tower.state_dict()[name], tensor) for name, tensor in theirs.items())
    assert tower(pictures(2)).pooler_output is None
    assert caplog.text == ""
    assert StreamFormerVisionModel.from_pretrained(tmp_path)(pictures(2)).pooler_output.shape == (2, 16)


def test_the_auto_classes_know_it_and_it_carries_no_code(tower, tmp_path):
    folder = tmp_path / "tower"
    tower.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert type(AutoConfig.from_pretrained(folder)) is StreamFormerVisionConfig
    again = AutoModel.from_pretrained(folder).eval()
    assert type(again) is StreamFormerVisionModel and again.config.frames_per_video == FRAMES
    row = pictures(FRAMES)
    assert torch.equal(again(row).last_hidden_state, tower(row).last_hidden_state)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_what_streamformer_says_of_its_videos(name, tower):
    model, batch = llava(name, tower)
    assert type(model.model.vision_tower) is StreamFormerVisionModel
    key = MODELS[name][2]
    seen = []
    handle = model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    with torch.no_grad():
        model(**batch)
        features = StreamFormerModel.forward(tower, batch[key]).last_hidden_state  # (B, T, N, D)
    handle.remove()
    if name == "next video":  # pools before it projects
        grid = features.flatten(0, 1).transpose(1, 2).unflatten(2, (4, 4))
        features = torch.nn.functional.avg_pool2d(grid, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen[0].flatten(), features.flatten())


@pytest.mark.parametrize("name", MODELS)
def test_a_later_frame_changes_nothing_before_it_and_an_earlier_one_does(name, tower):
    model, batch = llava(name, tower)
    key, tokens = MODELS[name][2], MODELS[name][4] // FRAMES

    def features(videos):
        get = model.get_image_features if name == "llava" else model.get_video_features
        with torch.no_grad():
            return torch.stack(list(get(videos).pooler_output))[:, : FRAMES * tokens].unflatten(1, (FRAMES, tokens))

    before = features(batch[key])
    for changed in range(FRAMES):
        videos = batch[key].clone()
        videos[0, changed] = pictures(1, seed=7)[0]
        differs = (features(videos) != before).flatten(2).any(-1)  # (B, T)
        # The layers of this tower see two frames back each.
        assert differs[0].tolist() == [changed <= frame for frame in range(FRAMES)]
        assert not differs[1].any()  # nor another video


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_says_what_its_videos_say_alone_and_generates(name, tower):
    model, batch = llava(name, tower)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    with torch.no_grad():
        logits = model(**batch).logits
        for i in range(2):
            one = {key: value[i : i + 1] for key, value in batch.items()}
            torch.testing.assert_close(model(**one).logits[0], logits[i], atol=1e-5, rtol=0)
    said = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    assert said.shape == (2, 6) and torch.equal(said[:, 0], logits[:, -1].argmax(-1))


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_the_same(name, tower, tmp_path):
    model, batch = llava(name, tower)
    folder = tmp_path / "llava"
    model.save_pretrained(folder)
    again, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(again) is type(model) and again.config.vision_config.frames_per_video == FRAMES
    with torch.no_grad():
        assert torch.equal(again.eval()(**batch).logits, model(**batch).logits)
    assert list(folder.glob("*.py")) == []


@pytest.mark.parametrize("name", MODELS)
def test_a_fresh_tower_is_initialised_and_every_weight_learns(name, tower):
    model, batch = llava(name, tower)
    fresh = type(model)(model.config).model.vision_tower
    assert all(layer.temporal_gate.item() == 0 for layer in fresh.layers)
    assert all(parameter.isfinite().all() and parameter.abs().max() < 2 for parameter in fresh.parameters())
    model.train()(**batch, labels=batch["input_ids"]).loss.backward()
    learns = {name for name, parameter in model.model.vision_tower.named_parameters() if parameter.grad.any()}
    assert learns == {name for name, _ in model.model.vision_tower.named_parameters()}
    plain = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    for parameter_name, gradient in plain.items():
        torch.testing.assert_close(model.get_parameter(parameter_name).grad, gradient)


@pytest.mark.parametrize("use_cache", [True, False])
def test_whether_the_text_is_cached_does_not_concern_the_tower(use_cache, tower):
    """A trainer sets it in the model's configuration, from where it reaches the tower as an argument."""
    model, batch = llava("next video", tower)
    model.config.use_cache = use_cache
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert model.model.vision_tower.layers[0].temporal_gate.grad.any()


def test_the_stock_trainer_trains_it(tower, tmp_path):
    model, batch = llava("next video", tower)
    rows = [{key: value[i] for key, value in batch.items()} | {"labels": batch["input_ids"][i]} for i in (0, 1)]
    before = model.model.vision_tower.layers[0].temporal_gate.detach().clone()
    arguments = TrainingArguments(tmp_path, max_steps=2, learning_rate=1e-2, report_to=[], save_strategy="no",
                                  use_cpu=True, disable_tqdm=True)  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    assert not torch.equal(model.model.vision_tower.layers[0].temporal_gate, before)


def test_pictures_and_videos_of_one_model_are_told_apart_by_argument(tower):
    """A video class hands both over in one shape: who gives pictures too encodes first, and says which is which."""
    model, batch = llava("next video", tower)
    sizes = torch.tensor([[16, 16]] * 2)
    images = pictures(4, seed=5).unflatten(0, (2, 2))  # each as a whole and as the one tile it is made of
    with torch.no_grad():
        encoded = {
            "image": model.get_image_features(images, sizes, frames_per_video=1),
            "video": model.get_video_features(batch["pixel_values_videos"]),
        }
        tokens = len(encoded["image"].pooler_output[0])
        input_ids = torch.cat([torch.full((2, tokens), IMAGE), batch["input_ids"]], dim=1)
        logits = model(input_ids=input_ids, mm_encoder_outputs=dict(encoded)).logits
        alone = tower(images[0], frames_per_video=1, output_hidden_states=-1).hidden_states[-1]
        projected = model.model.multi_modal_projector(alone)
        said = model.generate(input_ids=input_ids, mm_encoder_outputs=dict(encoded), max_new_tokens=2, do_sample=False)
    torch.testing.assert_close(encoded["image"].pooler_output[0][:PATCHES], projected[0])
    assert torch.equal(said[:, input_ids.shape[1]], logits[:, -1].argmax(-1))
