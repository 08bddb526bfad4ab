"""streaming_score against cases computed by hand, against the formula written out, and by what must always hold."""

import doctest
import inspect
import random
import sys
from pathlib import Path
from types import ModuleType

import evaluate
import pytest
from huggingface_hub import RepoCard
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchat_hf import metrics

FOLDER = Path(metrics.__file__).parent / "streaming_score"
METRIC = metrics.load("streaming_score")

CHANGING = [("colour", "red", 0, 2), ("colour", "blue", 2, 4), ("colour", "green", 4, 6)]
HALVES = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
PERFECT = list(zip(["red", "red", "blue", "blue", "green", "green"], HALVES, strict=True))


def words(*pairs):
    return [{"word": word, "time": time} for word, time in pairs]


def facts(*rows):
    return [dict(zip(("slot", "value", "start", "end", "due"), row, strict=False)) for row in rows]


def compute(said, true, **options):
    return METRIC.compute(predictions=[words(*said)], references=[facts(*true)], **options)


SPEAKERS = {
    "perfect": (PERFECT, 1.0, 0.0),
    "late": ([(word, time + 1) for word, time in PERFECT], (3 * 1 + 3 * 0.75) / 6, 0.25),
    "frozen": ([("red", time) for time in HALVES], (1 + 1 + 0.75 + 0.25 + 0 + 0 + 0 + 0) / 8, (0.5 + 1.5) / 4),
    "silent": ([], 0.0, None),
}


@pytest.mark.parametrize("name", SPEAKERS)
def test_speakers_on_a_world_that_changes(name):
    said, score, lateness = SPEAKERS[name]
    result = compute(said, CHANGING)
    assert result["score"] == score and result["mean_lateness"] == lateness and result["due"] == 3
    by_kind = {key: result[key] for key in ("score", "accuracy", "n", "words", "missed")}
    assert result["by_kind"] == {"colour": by_kind}


def test_the_order_of_the_speakers():
    scores = [compute(said, CHANGING)["score"] for said, *_ in SPEAKERS.values()]
    assert scores == sorted(set(scores), reverse=True)


@pytest.mark.parametrize(
    ("said", "true", "score", "missed"),
    [
        ([("red", 0.0)], [("colour", "red", 0, 2)], 1.0, 0),
        ([("red", 2.0)], [("colour", "red", 0, 2)], 1.0, 0),  # δ = 0
        ([("red", 3.5)], [("colour", "red", 0, 2)], 0.25, 0),
        ([("red", 4.0)], [("colour", "red", 0, 2)], 0.0, 1),  # worth nothing any more: false, and the fact is missed
        ([("red", 0.9)], [("colour", "red", 1, 2)], 0.0, 1),  # foretold
        ([("red", 1.5), ("red", 0.9)], [("colour", "red", 1, 2)], 0.5, 0),
        ([("red", 1.0)] * 3, CHANGING, 3 / 5, 2),  # every repetition counts, and so does each fact left out
        ([("red", 1.0)], [("colour", "red", 0, 2), ("colour", "blue", 2, 4, False)], 1.0, 0),
        ([("blue", 3.0)], [("colour", "red", 0, 2), ("colour", "blue", 2, 4, False)], 0.5, 1),
        ([("red", 3.0)], [("colour", "red", 0, 2), ("colour", "red", 4, 6)], 0.25, 1),  # by the fact that has ended
        ([("red", 5.0)], [("colour", "red", 0, 2), ("colour", "red", 4, float("inf"))], 0.5, 1),
        ([("red", 4.5)], [("colour", "red", 0, 3), ("colour", "red", 4, 6)], 1.0, 0),  # by the fact that gives most
        ([("one", 1.0)], [("count", "one", 0, 2), ("digit", "one", 3, 5, False)], 1.0, 0),
        ([("a", 0), ("now", 1), (".", 2), ("Red!", 1)], [("colour", "RED", 0, 2)], 1.0, 0),
    ],
)
def test_hand_computed(said, true, score, missed):
    result = compute(said, true)
    assert (result["score"], result["missed"]) == (score, missed)
    assert result["n"] == result["words"] + missed


def test_a_word_is_strictly_accurate_only_while_it_is_true():
    result = compute([("red", 1.0), ("red", 2.0), ("red", 3.0)], [("colour", "red", 0, 2)])
    assert result["score"] == (1 + 1 + 0.5) / 3 and result["accuracy"] == 1 / 3
    assert result["mean_lateness"] == (0 + 0 + 1) / 3


def test_tau_is_the_time_in_which_a_fact_fades():
    said, true = [("red", 3.0)], [("colour", "red", 0, 2)]
    assert [compute(said, true, tau=tau)["score"] for tau in (1.0, 2.0, 4.0)] == [0.0, 0.5, 0.75]


def test_by_kind_each_word_counts_for_the_slot_of_the_fact_that_it_tells():
    true = [("colour", "orange", 0, 2), ("fruit", "orange", 5, 9), ("fruit", "pear", 0, 5)]
    kinds = compute([("orange", 1), ("orange", 6), ("pear", 9), ("pear", 1)], true)["by_kind"]
    assert kinds["colour"] == {"score": 1.0, "accuracy": 1.0, "n": 1, "words": 1, "missed": 0}
    assert kinds["fruit"] == {"score": 2 / 3, "accuracy": 2 / 3, "n": 3, "words": 3, "missed": 0}


def test_a_value_that_is_never_true_is_a_false_word_only_if_it_is_known():
    said, true = [("red", 1), ("violet", 1)], [("colour", "red", 0, 2)]
    assert compute(said, true)["score"] == 1.0
    assert compute(said, true, slots={"colour": ["red", "violet"]})["score"] == 0.5
    other = facts(("colour", "violet", 0, 2, False))
    result = METRIC.compute(predictions=[words(*said), []], references=[facts(*true), other])
    assert result["score"] == 0.5 and result["by_kind"]["colour"]["n"] == 2


def test_words_of_all_answers_weigh_the_same():
    true = facts(("colour", "red", 0, 2))
    result = METRIC.compute(predictions=[words(*[("red", 1)] * 3), []], references=[true, true])
    assert result["score"] == 3 / 4  # not (1 + 0) / 2


def test_frame_ages_and_dropped_frames():
    said = [{"word": "a", "time": 0, "frame_age": 0.0}, {"word": "red", "time": 1, "frame_age": 2.0}, *words(("a", 3))]
    said.append({"word": "a", "time": 4, "frame_age": float("nan")})  # there was no frame yet
    true = facts(("colour", "red", 0, 2))
    result = METRIC.compute(predictions=[said, []], references=[true, []], dropped_frames=[3, 4])
    assert result["frame_age"] == {"p50": 1.0, "p95": pytest.approx(1.9), "max": 2.0}
    assert result["dropped_frames"] == 7
    plain = compute([("red", 1)], [("colour", "red", 0, 2)])
    assert plain["frame_age"] is None and plain["dropped_frames"] is None


def test_nothing_due_is_no_score():
    for result in (compute([], []), METRIC.compute(predictions=[], references=[])):
        assert result["score"] is None and result["accuracy"] is None and result["n"] == 0 and result["by_kind"] == {}


@pytest.mark.parametrize(
    ("said", "true", "options", "message"),
    [
        ([], [("colour", "red", 2, 1)], {}, "ends before it starts"),
        ([], [("colour", "red", float("nan"), 1)], {}, "ends before it starts"),
        ([], [("colour", "dark red", 0, 1)], {}, "a value is one word, not 'dark red'"),
        ([], [("colour", "...", 0, 1)], {}, "a value is one word"),
        ([], [("colour", None, 0, 1)], {}, "needs its slot, value, start and end"),
        ([], [("colour", "red", 0)], {}, "expected {slot, value, start, end}, optionally due"),
        ([("red", float("nan"))], [], {}, "needs its text and its time"),
        ([("red", None)], [], {}, "needs its text and its time"),
        ([], [], {"tau": 0}, "tau must be a positive number"),
        ([], [], {"slots": {"colour": ["dark red"]}}, "a value is one word"),
        ([], [], {"dropped_frames": [1, 2]}, "2 counts of dropped frames for 1 answers"),
    ],
)
def test_what_makes_no_sense_is_refused(said, true, options, message):
    with pytest.raises(ValueError) as error:
        compute(said, true, **options)
    assert message in str(error.value)
    assert compute([("red", 1)], [("colour", "red", 0, 2)])["score"] == 1.0  # and leaves nothing behind


def test_misspelt_keys_are_refused():
    with pytest.raises(ValueError, match="expected {word, time}, optionally frame_age"):
        METRIC.compute(predictions=[[{"word": "a", "time": 1, "age": 2}]], references=[[]])


# Multiples of a quarter have no rounding error, so that both sides of every comparison agree.
quarters = st.integers(0, 32).map(lambda n: n / 4)
said_words = st.lists(st.tuples(st.sampled_from(["a", "b", "c", "und"]), quarters), max_size=8)
true_facts = st.lists(
    st.tuples(st.sampled_from(["s", "t"]), st.sampled_from("abc"), quarters, quarters, st.booleans()).map(
        lambda fact: (*fact[:2], *sorted(fact[2:4]), fact[4])
    ),
    max_size=6,
)
VALUES = {"s": ["a", "b", "c"]}
examples = settings(max_examples=80, deadline=None, derandomize=True)


def twin(said, true, tau):
    """The definition, word for word."""
    scores = []
    for word, t in said:
        if word in VALUES["s"]:
            same = [(start, end) for _, value, start, end, _ in true if value == word]
            deltas = [t - end for _, end in same if end <= t]  # how long ago it stopped being true
            if any(start <= t < end for start, end in same):
                scores.append(1)
            else:
                scores.append(max(0, 1 - min(deltas) / tau) if deltas else 0)
    for _, value, start, end, due in true:
        if due and not any(word == value and start <= t < end + tau for word, t in said):
            scores.append(0)
    return sum(scores) / len(scores) if scores else None


@examples
@given(said_words, true_facts, st.sampled_from([0.5, 2.0, 3.0]))
def test_the_formula_written_out(said, true, tau):
    assert compute(said, true, slots=VALUES, tau=tau)["score"] == pytest.approx(twin(said, true, tau), abs=1e-12)


@examples
@given(said_words, true_facts, quarters)
def test_shifting_everything_in_time_changes_nothing(said, true, shift):
    later = [(word, time + shift) for word, time in said]
    shifted = [(slot, value, start + shift, end + shift, due) for slot, value, start, end, due in true]
    assert compute(later, shifted, slots=VALUES) == compute(said, true, slots=VALUES)


@examples
@given(said_words, true_facts, st.sampled_from([("a", -1.0), ("b", 99.0), ("never", 2.0)]))
def test_a_false_word_never_raises_the_score(said, true, false):
    slots = {"s": [*VALUES["s"], "never"]}
    before, after = (compute(said + more, true, slots=slots)["score"] for more in ([], [false]))
    assert after == 0.0 if before is None else after <= before


@examples
@given(true_facts, quarters, quarters)
def test_after_the_end_of_every_fact_a_later_word_never_scores_more(true, wait, longer):
    over = max((end for *_, end, _ in true), default=0.0)
    scores = [twin_free([("a", over + wait)], true), twin_free([("a", over + wait + longer)], true)]
    assert scores[0] >= scores[1]


def twin_free(said, true):
    """The score of the words alone, without what was left out."""
    return compute(said, [(*fact[:4], False) for fact in true], slots=VALUES)["score"]


@examples
@given(said_words, true_facts, st.randoms(use_true_random=False))
def test_the_order_of_the_words_in_the_list_is_irrelevant(said, true, rng):
    assert compute(rng.sample(said, len(said)), true, slots=VALUES) == compute(said, true, slots=VALUES)


def test_words_that_are_no_values_change_nothing():
    rng = random.Random(0)
    fillers = [("now", rng.uniform(0, 6)) for _ in range(20)]
    for said, *_ in SPEAKERS.values():
        assert compute(said + fillers, CHANGING) == compute(said, CHANGING)


def test_evaluate_loads_the_folder_and_takes_answers_one_by_one(tmp_path):
    metric = evaluate.load(str(FOLDER), cache_dir=str(tmp_path))
    assert metric.name == "streaming_score" and set(metric.features) == {"predictions", "references"}
    for said, *_ in SPEAKERS.values():
        metric.add(prediction=words(*said), reference=facts(*CHANGING))
    one_by_one = metric.compute()
    metric.add_batch(
        predictions=[words(*said) for said, *_ in SPEAKERS.values()], references=[facts(*CHANGING)] * len(SPEAKERS)
    )
    assert one_by_one == metric.compute() and one_by_one["due"] == 12
    assert one_by_one["score"] == pytest.approx((6 + 5.25 + 3 + 0) / (6 + 6 + 8 + 3))


def test_the_file_needs_nothing_of_the_package():
    source = (FOLDER / "streaming_score.py").read_text()
    lines = [line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert set(lines) - set(sys.stdlib_module_names) == {"datasets", "evaluate", "numpy"}
    assert "_compute" in inspect.getsource(type(METRIC))


def test_the_card_is_valid_and_its_examples_give_what_they_show(monkeypatch):
    card = RepoCard.load(FOLDER / "README.md")
    assert card.data.title == "streaming_score" and {"evaluate", "metric"} <= set(card.data.tags)
    assert card.data.sdk == "static" and card.data.license == "apache-2.0"
    monkeypatch.chdir(FOLDER.parent)
    examples = ModuleType("card")
    examples.__doc__ = card.text.replace("```", "")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for example in finder.find(examples, "card", globs={}):
        runner.run(example)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 5
