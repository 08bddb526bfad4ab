"""Policies side by side: what is due, what was said, and how that is scored."""

from types import SimpleNamespace

import pytest
import torch

import activation_helpers
from live_loop_helpers import talkative_model
from session_helpers import nothing_left_behind
from streamchat_hf import tiny_checkpoint
from streamchat_hf.data.live_streamworld import build_live_tokenizer
from streamchat_hf.data.proactive_streamworld import TASKS
from streamchat_hf.evaluation import proactive
from streamchat_hf.evaluation.proactive import (
    Contestant,
    Said,
    compare_policies,
    contestants,
    due_answers,
    proactive_rows,
    watch_row,
)
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

SIDE = 32


@pytest.fixture(scope="module")
def rows():
    return proactive_rows(worlds=3, num_frames=12)


@pytest.fixture(scope="module")
def live():
    """A VideoLLM-online with random weights that knows StreamWorld's words."""
    video_processor = StreamFormerVideoProcessor(size={"height": SIDE, "width": SIDE})
    processor = VideoLLMOnlineProcessor(video_processor, build_live_tokenizer(), frame_num_tokens=5)
    text = {"vocab_size": len(processor.tokenizer), "pad_token_id": processor.tokenizer.pad_token_id}
    return talkative_model(text_config=text, **processor.token_ids()), processor


@pytest.fixture(scope="module")
def activation():
    processor = activation_helpers.world_processor(SIDE)
    return activation_helpers.world_model(processor, threshold=0.5), processor


def test_every_task_has_as_many_rows():
    rows = proactive_rows(worlds=7)
    assert [task for task, _ in rows] == [task for task in TASKS for _ in range(2)]
    assert all(row["world"].split == "heldout" for _, row in rows)
    with pytest.raises(ValueError, match="worlds=2"):
        proactive_rows(worlds=2)


def test_what_is_due_is_what_the_row_says(rows):
    for _, row in rows:
        times = [m["time"] for m in row["conversation"] if m["role"] == "assistant"]
        assert [said.time for said in due_answers(row)] == times


def test_a_model_is_run_with_every_policy_it_knows(live, activation):
    assert [one.policy for one in contestants("m", *live)] == ["streaming-eos", "on-question"]
    entered = list(contestants("m", *live, activation))
    assert [one.policy for one in entered] == ["streaming-eos", "on-question", "activation"]
    assert entered[2].activation is activation
    bridge = SimpleNamespace(policies=("activation", "on-question"))
    assert [one.policy for one in contestants("b", bridge, None)] == ["on-question"]


def test_policies_of_one_model_go_through_sessions(rows, live, activation):
    with nothing_left_behind():
        result = compare_policies(list(contestants("m", *live, activation)), rows)
    eos, asked, watched = result["runs"]
    assert asked["alarms"] == 3 and all(row["said"][0].time == 0.0 for row in asked["rows"])
    assert eos["alarms"] > 3 and watched["alarms"] > 0
    assert all(run["alarms"] == sum(len(row["said"]) for row in run["rows"]) for run in result["runs"])
    assert {run["events"] for run in result["runs"]} == {sum(len(due_answers(row)) for _, row in rows)}
    assert all(set(run["by_task"]) == set(TASKS) for run in result["runs"])


def test_the_tiny_checkpoint_answers_when_a_watcher_says_so(rows, activation):
    from transformers import AutoModel, AutoProcessor

    model = AutoModel.from_pretrained(tiny_checkpoint()).eval()
    processor = AutoProcessor.from_pretrained(tiny_checkpoint())
    said = watch_row(Contestant("tiny", model, processor, "activation", activation), rows[0][1])
    assert said and all(one.text for one in said)


@pytest.mark.parametrize("policy", ["on-question", "activation"])
def test_everybody_sees_the_same_frames_at_their_own_size(rows, policy, monkeypatch):
    seen = []

    class Session:
        def __init__(self, model, processor, source, **options):
            seen.append((source, options))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def __iter__(self):
            return iter(())

        def ask(self, question, stands):
            seen.append((question, stands))

    monkeypatch.setattr(proactive, "StreamingSession", Session)
    sizes = {"on-question": 24, "activation": 40}
    talker, watcher = (
        SimpleNamespace(video_processor=SimpleNamespace(size={"height": side, "width": side}))
        for side in sizes.values()
    )
    entered = Contestant("m", None, talker, policy, (None, watcher) if policy == "activation" else None)
    row = rows[0][1]
    assert watch_row(entered, row) == []
    (source, options), (question, stands) = seen
    assert [time for time, _ in source] == row["frame_times"] and options["fps"] == 2.0
    assert source[0][1].shape == (3, sizes[policy], sizes[policy]) and source[0][1].dtype == torch.uint8
    assert options["system"] is None and stands == (policy == "activation")
    assert question == row["conversation"][1]["content"]


def scored(due, said, monkeypatch, tolerance=1.0):
    """The result of one contestant who says given things."""
    answers = iter(said)
    monkeypatch.setattr(proactive, "due_answers", lambda row: row)
    monkeypatch.setattr(proactive, "watch_row", lambda contestant, row: next(answers))
    result = compare_policies([Contestant("m", None, None, "p")], [("dense", row) for row in due], tolerance)
    return result["runs"][0]


def test_words_count_only_in_time_and_once(monkeypatch):
    due = [[Said(2.0, "it is red"), Said(5.0, "it is blue")], [Said(3.0, "it is red")]]
    said = [[Said(2.5, "It is  red"), Said(3.0, "it is red"), Said(6.5, "it is blue")], [Said(3.0, "it is green")]]
    run = scored(due, said, monkeypatch)
    assert (run["events"], run["alarms"], run["matched"]) == (3, 4, 2)
    assert run["f1"] == pytest.approx(4 / 7) and run["right_words"] == pytest.approx(1 / 3)
    assert run["by_task"] == {"dense": {name: run[name] for name in run["by_task"]["dense"]}}


def test_a_perfect_viewer_and_one_who_says_nothing(monkeypatch):
    due = [[Said(2.0, "it is red")], []]
    run = scored(due, due, monkeypatch)
    assert run["f1"] == run["right_words"] == 1.0
    assert scored(due, [[], []], monkeypatch)["f1"] == 0.0
    nothing = scored([[]], [[]], monkeypatch)
    assert nothing["f1"] == 1.0 and nothing["right_words"] is None
