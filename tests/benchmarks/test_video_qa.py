import json
import sys

import pytest
import torch

import video_qa
from streamchat_hf import StreamFormerModel
from streamchat_hf.data.streamworld_questions import QuestionCollator, StreamWorldQuestions, question_tokenizer


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    return video_qa.shipped_tower(tmp_path_factory.mktemp("tower"))


def test_the_shipped_tower_is_a_folder_of_its_own(tower):
    assert StreamFormerModel.from_pretrained(tower).config.hidden_size == 128


@pytest.mark.parametrize("architecture", video_qa.ARCHITECTURES)
def test_both_towers_have_the_same_frozen_weights_and_only_one_sees_time(architecture, tower):
    collate = QuestionCollator(question_tokenizer(), video_qa.prompt_tokens(architecture, 10, 1))
    questions = StreamWorldQuestions(2, num_frames=10)
    batch = collate([questions[0], questions[1]])
    earlier = {**batch, "pixel_values_videos": batch["pixel_values_videos"].clone()}
    earlier["pixel_values_videos"][:, 0] = 0
    seen, weights = {}, {}
    for name, changes in video_qa.TOWERS.items():
        model = video_qa.build(architecture, tower, 10, 3, **changes).eval()
        vision = model.model.vision_tower
        weights[name] = vision.state_dict()
        assert not any(parameter.requires_grad for parameter in vision.parameters())
        read: list[torch.Tensor] = []
        projector = model.model.get_submodule(
            {"streamchat": "projector", "llava": "multi_modal_projector"}[architecture]
        )
        projector.register_forward_hook(lambda module, args, output, read=read: read.append(args[0]))
        with torch.no_grad():
            assert model(**batch).logits.shape[:2] == batch["input_ids"].shape
            model(**earlier)
        before, after = (features.reshape(2, 10, -1) for features in read)
        seen[name] = [not torch.equal(before[:, i], after[:, i]) for i in range(10)]
    assert all(seen["with time"]) and seen["frames alone"] == [True] + [False] * 9
    assert all(torch.equal(weights["with time"][key], tensor) for key, tensor in weights["frames alone"].items())


def test_accuracy_is_the_share_of_right_choices_of_each_kind():
    class Knows(torch.nn.Module):
        """Answers what is written behind the question, but for shapes, of which it holds `circle` for likeliest."""

        def forward(self, input_ids, **inputs):
            logits = torch.nn.functional.one_hot(input_ids.roll(-1, 1), len(tokenizer)).float()
            logits[..., tokenizer.convert_tokens_to_ids("circle")] += 2
            return type("Output", (), {"logits": logits})

    tokenizer = question_tokenizer()
    questions = StreamWorldQuestions(80, kinds=["first_colour", "first_shape"])
    scores = video_qa.accuracy(Knows(), questions, QuestionCollator(tokenizer, size=16))
    shapes = [questions[i].options[questions[i].answer] == "circle" for i in range(1, 80, 2)]
    assert scores == {"first_colour": 1.0, "first_shape": sum(shapes) / 40, "mean": (1 + sum(shapes) / 40) / 2}


def test_from_the_command_to_the_rows(tower, tmp_path, monkeypatch, capsys):
    words = ["--tower", tower, "--steps", 1, "--questions", 4, "--frames", 10, "--kinds", "first_colour"]
    words += ["--towers", "with time", "--json", tmp_path / "qa.json"]
    monkeypatch.setattr(sys, "argv", ["video_qa.py", *map(str, words)])
    monkeypatch.setattr(video_qa, "BATCH", 2)
    video_qa.main()
    result = json.loads((tmp_path / "qa.json").read_text())
    assert [(row["architecture"], row["tower"]) for row in result["rows"]] == [
        ("streamchat", "with time"),
        ("llava", "with time"),
    ]
    assert result["settings"]["steps"] == 1 and result["settings"]["tower"] == "given"
    assert set(result["rows"][0]["accuracy"]) == {"first_colour", "mean"}
    assert capsys.readouterr().out.count('"architecture"') == 2
