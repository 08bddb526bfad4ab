import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamchat_hf.metrics.etbench.etbench_captions import score_captions
from streamchat_hf.metrics.etbench.etbench_tasks import THRESHOLDS

examples = settings(max_examples=100, deadline=None)
tenths = st.integers(0, 200).map(lambda tenth: tenth / 10)
spans = st.lists(st.tuples(tenths, tenths).filter(lambda span: span[0] != span[1]).map(sorted), min_size=1, max_size=4)
WORDS = ["he sits", "a dog barks", "the door opens", "rain falls"]


class Embed:
    """Equal texts are equal, others have nothing in common; remembers what it was asked."""

    def __init__(self):
        self.texts = []

    def __call__(self, texts):
        self.texts += texts
        return np.eye(len(texts), dtype=np.float32)


def sample(answer, tgt, g=None, video="a"):
    captions = WORDS[: len(tgt)] if g is None else g
    return {"task": "dvc", "source": "s", "idx": 0, "a": answer, "tgt": tgt, "g": captions, "video": video}


def said(times):
    return "".join(f"{start} - {end} seconds, {WORDS[i]}. " for i, (start, end) in enumerate(times))


def score(*samples, seed=0):
    return score_captions(samples, Embed(), random.Random(seed))


def naive_iou(one, other):
    both = max(0, min(one[1], other[1]) - max(one[0], other[0]))
    hull = max(one[1], other[1]) - min(one[0], other[0])
    return both / (min(hull, one[1] - one[0] + other[1] - other[0]) + 1e-8)


@examples
@given(st.lists(st.tuples(spans, spans | st.just([])), min_size=1, max_size=4))
def test_f1_agrees_with_the_naive_way(cases):
    result = score(*[sample(said(answers), references, video=str(i)) for i, (references, answers) in enumerate(cases)])
    parsed = [(references, answers) for references, answers in cases if answers]
    for threshold in THRESHOLDS:
        precision = recall = 0.0
        for references, answers in parsed:
            meets = [(i, j) for i in answers for j in references if naive_iou(i, j) > threshold]
            precision += sum(any(i is a for a, _ in meets) for i in answers) / len(answers) / len(cases)
            recall += sum(any(j is b for _, b in meets) for j in references) / len(references) / len(cases)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
        assert result[f"F1@{threshold}"] == pytest.approx(f1, abs=1.1e-5)
    assert result["Failed"] == len(cases) - len(parsed)


def test_an_iou_of_exactly_a_threshold_is_too_little():
    assert [score(sample("0 - 5 seconds, he sits", [[0, 10]]))[f"F1@{t}"] for t in THRESHOLDS] == [1, 1, 0, 0]


def test_similarity_is_the_mean_over_all_pairs_that_meet():
    one = sample("0 - 10 seconds, he sits. 0 - 10 seconds, rain falls", [[0, 10], [1, 10]])
    assert score(one)["SentSim"] == 0.25  # one of four pairs is equal, at every threshold
    apart = sample("0 - 10 seconds, he sits. 50 - 60 seconds, he sits", [[0, 10]])
    assert score(apart)["SentSim"] == 0.5  # against random letters
    assert score(sample("nothing", [[0, 10]]), {**apart, "video": "b"})["SentSim"] == 0.5  # failed ones do not count


def test_a_caption_meets_a_reference_from_the_threshold_on():
    assert score(sample("0 - 5.2 seconds, he sits", [[0, 10]]))["SentSim"] == 0.75
    assert score(sample("0 - 4.9 seconds, he sits", [[0, 10]]))["SentSim"] == 0.5


@pytest.mark.parametrize("seed", range(5))
def test_captions_that_meet_nothing_are_compared_with_random_letters(seed):
    embed = Embed()
    score_captions([sample("50 - 60 seconds, He sits.", [[0, 10]])], embed, random.Random(seed))
    rng = random.Random(seed)
    letters = []
    for _ in THRESHOLDS:
        length = rng.randint(10, 20)
        letters.append("".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(length)))
    assert embed.texts == sorted({"he sits", *letters})


def test_the_seed_decides_about_the_letters_and_nothing_else():
    apart = sample("0 - 10 seconds, he sits. 50 - 60 seconds, he sits", [[0, 10]])

    def embed(texts):
        return np.array([[float(sum(map(ord, text)))] for text in texts])

    results = [score_captions([apart], embed, random.Random(seed)) for seed in (0, 0, 1)]
    assert results[0] == results[1]
    assert {k: v for k, v in results[0].items() if v != results[2][k]}.keys() == {"SentSim"}


def test_the_last_of_two_samples_of_one_video_counts():
    wrong, right = sample("50 - 60 seconds, he sits", [[0, 10]]), sample("0 - 10 seconds, he sits", [[0, 10]])
    assert score(wrong, right)["F1"] == 0.5 and score(wrong, right)["SentSim"] == 1.0
    assert score(right, wrong)["F1"] == 0.0


def test_nothing_parsed_is_zero():
    result = score(sample("nothing", [[0, 10]]), sample("", [[0, 10]]))
    assert result == {"Total": 2, "Failed": 2, **{f"F1@{t}": 0.0 for t in THRESHOLDS}, "F1": 0.0, "SentSim": 0.0}


def test_captions_after_the_thousandth_are_not_read():
    many = "".join(f"50 - {60 + i} seconds, he sits\n" for i in range(1000)) + "0 - 10 seconds, he sits"
    assert score(sample(many, [[0, 10]]))["F1"] == 0.0
