"""Each metric against a plain count, on a model that says what it is told to."""

import pytest
import torch
from torch import nn

from multitask_helpers import batch, tiny_module
from streamchat_hf.data.task_records import TASKS
from streamchat_hf.training.multitask_evaluation import METRICS, average_precision, evaluate
from streamchat_hf.training.multitask_rounds import TaskData

CLASSES = ["left", "right", "up"]


class Told(nn.Module):
    """Gives scores `(T or none, texts)` that lie in the pixels of a video; the texts stand for themselves."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def logits(self, task, pixels, texts):
        assert not self.training and not torch.is_grad_enabled()
        return pixels

    def visual(self, task, pixels):
        return pixels

    def text(self, task, texts):
        return torch.eye(8)[[int(text) for text in texts]]


def source(task, scores, labels, texts=None):
    """Samples are (score, label, text); a batch puts the scores of text tasks on the place of each video's own."""

    def collate(samples):
        picked = torch.stack([score for score, _, _ in samples])
        labels = None if samples[0][1] is None else torch.stack([label for _, label, _ in samples])
        if task in ("temporal_grounding", "referring_segmentation"):
            full = torch.full((len(samples), picked.shape[1], len(samples), *picked.shape[2:]), 9.0)
            for i, score in enumerate(picked):
                full[i, :, i] = score
            picked = full
        names = CLASSES if texts is None else [text for _, _, text in samples]
        return {"task": task, "pixel_values_videos": picked, "texts": names, "labels": labels}

    rows = list(zip(scores, labels, texts or [None] * len(scores), strict=True))
    return {task: TaskData(rows, collate)}


def measured(data, batch_size=2):
    model = Told().train()
    result = evaluate(model, data, batch_size)
    assert model.training
    [(name, value)] = result.items()
    [task] = data
    assert name == f"{task}_{METRICS[task]}"
    return value


def naive_average_precision(scores, positive):
    """Precision at the rank of each positive, ties counted in, averaged."""
    precisions = []
    for score, good in zip(scores, positive, strict=True):
        if good:
            above = [p for s, p in zip(scores, positive, strict=True) if s >= score]
            precisions.append(sum(above) / len(above))
    return sum(precisions) / len(precisions)


def random_scores(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).mul(4).round()  # with ties


def random_labels(low, high, *shape):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(len(shape)))


def test_average_precision():
    scores, positive = random_scores(40), random_labels(0, 2, 40).bool()
    expected = naive_average_precision(scores.tolist(), positive.tolist())
    assert average_precision(scores, positive) == pytest.approx(expected)
    assert average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([True, True, False])) == 1
    assert average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([False, False, True])) == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_action_recognition(batch_size):
    scores, labels = random_scores(5, 3) + 0.1 * torch.arange(3), random_labels(0, 3, 5)
    right = sum(max(range(3), key=lambda c: scores[i, c]) == labels[i] for i in range(5))
    assert measured(source("action_recognition", scores, labels), batch_size) == pytest.approx(float(right) / 5)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_video_text_retrieval(batch_size):
    """Among four texts: right, wrong, right with another video's equal one (a single candidate), right, wrong."""
    visual = torch.eye(8)[[3, 5, 3, 5, 3]]
    texts = ["3", "1", "3", "5", "2"]
    assert measured(source("video_text_retrieval", visual, [None] * 5, texts), batch_size) == pytest.approx(3 / 5)


def test_retrieval_accepts_what_labels_hold_true():
    labels = [torch.tensor([True, True]), torch.tensor([False, True])]
    visual = torch.eye(8)[[1, 0]]
    assert measured(source("video_text_retrieval", visual, labels, ["0", "1"])) == 0.5


@pytest.mark.parametrize(("task", "pixels"), [("temporal_localization", ()), ("video_object_segmentation", (4, 4))])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_classes(task, pixels, batch_size):
    scores, labels = random_scores(5, 6, 3, *pixels), random_labels(-1, 2, 5, 6, *pixels)  # the last never occurs
    expected = [
        naive_average_precision(scores[:, :, c].flatten().tolist(), (labels == c).flatten().tolist()) for c in range(2)
    ]
    assert measured(source(task, scores, labels), batch_size) == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize(("task", "pixels"), [("temporal_grounding", ()), ("referring_segmentation", (4, 4))])
@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_texts(task, pixels, batch_size):
    scores, labels = random_scores(5, 6, *pixels), random_labels(0, 2, 5, 6, *pixels).bool()
    labels[:, 0], labels[:, 1] = True, False
    labels[0], labels[1] = True, False  # say nothing about where
    expected = [naive_average_precision(scores[i].flatten().tolist(), labels[i].flatten().tolist()) for i in (2, 3, 4)]
    assert measured(source(task, scores, labels, list("abcde")), batch_size) == pytest.approx(sum(expected) / 3)


def test_nothing_to_measure_is_nought():
    nothing = torch.full((2, 3), -1)
    assert measured(source("temporal_localization", torch.zeros(2, 3, 3), nothing)) == 0


def test_a_real_module_on_all_six():
    module = tiny_module()
    data = {task: TaskData([0], lambda rows, task=task: batch(task)) for task in TASKS}
    result = evaluate(module, data, 4)
    assert list(result) == [f"{task}_{METRICS[task]}" for task in TASKS]
    assert all(0 <= value <= 1 for value in result.values())
