"""Event F1 against every possible matching, and thresholds against a model whose scores are known."""

import itertools

import pytest
import torch

from activation_helpers import world_model, world_processor
from streamchat_hf.data.live_conversation import LiveTurn, lay_out
from streamchat_hf.data.proactive_streamworld import ProactiveStreamWorld
from streamchat_hf.evaluation import activation
from streamchat_hf.evaluation.activation import calibrate, event_f1, event_times, matched_events, watch_rows


@pytest.fixture(scope="module")
def processor():
    return world_processor()


def naive_matches(due, alarms, tolerance):
    """The most pairs of any assignment."""
    if not due or not alarms:
        return 0
    short, long = sorted((due, alarms), key=len)
    return max(
        sum(abs(a - b) <= tolerance for a, b in zip(short, chosen, strict=True))
        for chosen in itertools.permutations(long, len(short))
    )


def test_matching_finds_as_many_pairs_as_there_can_be():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        due, alarms = (
            sorted({k / 2 for k in torch.randint(0, 14, (n,), generator=generator).tolist()})
            for n in torch.randint(0, 6, (2,), generator=generator).tolist()
        )
        assert matched_events(due, alarms, 1.0) == naive_matches(due, alarms, 1.0)
    assert matched_events([1.0, 2.0], [0.0, 1.0]) == 2  # an alarm may be early; the nearest first would find one
    assert matched_events([0.1 + 0.2], [1.3]) == 1  # a rounding error is not late


def test_f1_is_over_all_rows():
    score = event_f1([[1.0, 5.0], [2.0], []], [[1.5, 1.5, 8.0], [], [3.0]])
    assert (score["events"], score["alarms"], score["matched"]) == (3, 4, 1)
    assert score["precision"] == 1 / 4 and score["recall"] == 1 / 3 and score["f1"] == pytest.approx(2 / 7)
    assert event_f1([[]], [[]])["f1"] == 1.0
    assert event_f1([[1.0]], [[]])["f1"] == 0.0 == event_f1([[]], [[1.0]])["f1"]


def test_what_is_answered_at_once_is_no_event():
    times = [k / 2 for k in range(12)]
    turns = [LiveTurn("user", "a", 0), LiveTurn("assistant", "b", 0), LiveTurn("assistant", "c", 4)]
    turns += [LiveTurn("user", "d", 6), LiveTurn("assistant", "e", 6), LiveTurn("assistant", "f", 11)]
    row = {"conversation": lay_out(turns, times), "frame_times": times, "media": None}
    assert event_times(row) == [1.5, 5.0]


class Oracle:
    """Scores of a model that knows what is due: 0.6 at the frame, 0.4 some time later, as if it saw double."""

    def __init__(self, model, rows, later=2.0):
        self.later = later
        self.inner, self.config, self.device = model, model.config, model.device
        self.new_cache, self.encode_frames, self.training = model.new_cache, model.encode_frames, False
        self.rows, self.heard = rows, []

    def eval(self):
        return self

    train = lambda self, mode: self  # noqa: E731

    def watch(self, cache, frames):
        before = len(cache.ids)
        self.heard.append(len(cache.pending))
        cache.was_read(cache.next_frames(len(frames))[0], len(frames))
        if before == 0:  # a new row
            self.due = set(event_times(self.rows[0]))
            self.rows = [*self.rows[1:], self.rows[0]]
        time = frames[0].t_sec
        return torch.tensor([0.6 if time in self.due else 0.4 if time - self.later in self.due else 0.05])


def rows_of(count, num_frames=20):
    source = ProactiveStreamWorld(count, num_frames=num_frames, tasks={"dense": 1.0})
    return [source[i] for i in range(count)]


def test_rows_are_watched_live(processor):
    rows = rows_of(4)
    result = watch_rows(Oracle(world_model(processor), rows), processor, rows, 0.5)
    assert result["f1"] == 1.0 and result["threshold"] == 0.5
    assert [row["alarms"] for row in result["rows"]] == [event_times(row) for row in rows]
    lax = watch_rows(Oracle(world_model(processor), rows), processor, rows, 0.3)
    assert lax["recall"] == 1.0 and lax["precision"] < 1.0
    assert watch_rows(Oracle(world_model(processor), rows), processor, rows, 0.7)["alarms"] == 0


def test_an_alarm_in_time_is_followed_by_its_answer_and_another_by_nothing(processor):
    rows = rows_of(1)
    oracle = Oracle(world_model(processor), rows)
    watch_rows(oracle, processor, rows, 0.5)
    told = [number for number, pending in enumerate(oracle.heard) if pending > 1 and number]
    due = [round(2 * time) + 1 for time in event_times(rows[0]) if time < 9.5]
    assert told == due
    # A second alarm within the tolerance of the same event: its answer has been given.
    twice = Oracle(world_model(processor), rows, later=1.0)
    assert watch_rows(twice, processor, rows, 0.3)["alarms"] > len(due)
    assert [number for number, pending in enumerate(twice.heard) if pending > 1 and number] == due


def test_the_threshold_of_the_best_f1_goes_into_the_configuration(processor):
    rows = rows_of(4)
    model = Oracle(world_model(processor), rows)
    tried = calibrate(model, processor, rows)
    thresholds = [entry["threshold"] for entry in tried]
    assert thresholds == sorted(set(thresholds)) and set(activation.THRESHOLDS) <= set(thresholds)
    best = [entry["threshold"] for entry in tried if entry["f1"] == max(entry["f1"] for entry in tried)]
    assert model.config.threshold in best and 0.4 < model.config.threshold <= 0.6
    assert tried[0]["f1"] < 1.0 == max(entry["f1"] for entry in tried)


def test_a_real_model_is_watched_and_left_as_it_was(processor):
    model = world_model(processor).train()
    rows = rows_of(2, num_frames=10)
    result = watch_rows(model, processor, rows)
    assert model.training and 0 <= result["f1"] <= 1 and len(result["rows"]) == 2
    again = watch_rows(model, processor, rows)
    assert again == result
