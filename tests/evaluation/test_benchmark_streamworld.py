import itertools

import pytest
from transformers import AutoModel, AutoProcessor

from benchmark_helpers import answering
from streamchat_hf import tiny_checkpoint
from streamchat_hf.data.streamworld import SPLITS
from streamchat_hf.data.streamworld_dialogue import ASK, answer, grid, word_times
from streamchat_hf.data.streamworld_english import NUMBERS
from streamchat_hf.evaluation.benchmark_protocol import Conditions, Viewer
from streamchat_hf.evaluation.benchmark_streamworld import FPS, MAX_NEW_TOKENS, StreamWorldBenchmark, draw_fact, judge


def conditions(protocol: str, speed: float = 2.0) -> Conditions:
    return Conditions(protocol, FPS, tokens_per_second=speed, max_new_tokens=MAX_NEW_TOKENS)


@pytest.mark.parametrize("split", SPLITS)
def test_a_fact_holds_from_its_question_until_its_deadline_and_no_longer(split):
    for number in range(60):
        fact = draw_fact(3, split, number)
        assert fact.question.kind == ASK and fact.question.attr == fact.slot
        ticks = [t for t in grid(fact.world.duration) if fact.asked <= t < fact.deadline]
        assert {fact.world.state(t).tell(fact.slot) for t in ticks} == {fact.value}
        if fact.deadline < fact.world.duration:
            assert fact.world.state(fact.deadline).tell(fact.slot) != fact.value
    assert draw_fact(3, split, 0) == draw_fact(3, split, 0) != draw_fact(4, split, 0)


def test_deadlines_are_of_all_lengths():
    lengths = [fact.deadline - fact.asked for fact in (draw_fact(0, "heldout", number) for number in range(200))]
    assert min(lengths) == 0.5 and sum(length <= 1.0 for length in lengths) > 20
    assert sum(length > 2.0 for length in lengths) > 20


def perfect(fact, speed):
    """What a perfect viewer says while the world goes on, if it can be answered."""
    times = word_times(fact.asked, speed, fact.world.duration)
    try:
        words = answer(fact.world, fact.question, fact.asked, times, grid(fact.world.duration))
    except ValueError:  # nothing is there any more
        return []
    return [[word.text, word.time, None] for word in words]


def test_a_perfect_viewer_scores_what_is_possible():
    for speed, number in itertools.product((1.0, 2.0, 4.0), range(60)):
        fact = draw_fact(1, "heldout", number)
        found = judge(fact, perfect(fact, speed), conditions("streaming", speed))
        assert found["in_time"] == found["possible"]


def test_words_are_judged_by_the_world():
    fact = next(f for f in (draw_fact(0, "heldout", n) for n in range(99)) if f.slot == "colour" and f.deadline < 8)
    live, after = conditions("streaming"), fact.world.state(fact.deadline).tell("colour")

    def found(word, time, how=live):
        judged = judge(fact, [["It", fact.asked, 0.0], [word, time, 0.0], ["purple", 9.0, 0.0]], how)
        return judged["in_time"], judged["late"], judged["true_when_spoken"]

    assert found(f"{fact.value.title()}.", fact.deadline - 0.001) == (True, False, True)
    assert found(fact.value, fact.deadline) == (False, True, False)
    assert found(after, fact.deadline) == (False, True, True)
    assert found(after, fact.asked) == (False, False, False)
    assert found(fact.value, 9.0, conditions("official")) == (True, False, True)
    nothing = judge(fact, [["hello", fact.asked, 0.0]], live)
    assert (nothing["word"], nothing["in_time"], nothing["true_when_spoken"]) == (None, False, False)
    assert judge(fact, [], Conditions("streaming", FPS, clock="wall"))["possible"] is None


def test_a_model_that_speaks_english_is_asked_and_understood_in_english():
    number = next(n for n in range(99) if draw_fact(0, "heldout", n).slot == "digit")
    fact = draw_fact(0, "heldout", number)
    viewer = answering(lambda question, at: f"{NUMBERS[int(fact.value)].title()}.")
    fast = Conditions("official", FPS, max_new_tokens=MAX_NEW_TOKENS)
    [row] = StreamWorldBenchmark(fast, "m").answer(str(number), viewer)
    assert row["question"][0].isupper() and " ?" not in row["question"]
    assert (row["word"], row["in_time"]) == (fact.value, True) and not row["answer"].isdigit()


@pytest.fixture(scope="module")
def tiny():
    path = tiny_checkpoint()
    return Viewer(AutoModel.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path))


def test_half_the_speed_loses_live_and_not_on_clips(tiny):
    """The same model, the same questions: what a clock changes."""
    scores, rows = {}, {}
    for protocol, speed in itertools.product(("official", "streaming"), (2.0, 1.0)):
        benchmark = StreamWorldBenchmark(conditions(protocol, speed), "tiny", clips=6)
        rows[protocol, speed] = [row for piece in benchmark.work() for row in benchmark.answer(piece, tiny)]
        scores[protocol, speed] = benchmark.scores(rows[protocol, speed])
        assert benchmark.headline(scores[protocol, speed])[-2].value == scores[protocol, speed]["in_time"]
    assert rows["official", 2.0] == rows["official", 1.0]
    live_full, live_half = scores["streaming", 2.0], scores["streaming", 1.0]
    assert live_half["in_time"] < live_full["in_time"] < scores["official", 2.0]["in_time"]
    assert live_half["in_time"] <= live_half["possible"] < live_full["possible"] < 1.0
    assert min(score["true_when_spoken"] for score in scores.values()) > 0.7  # it sees as well: it is only late
