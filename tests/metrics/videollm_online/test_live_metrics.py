"""live_metrics on random dialogues: against the definitions written out token by token, and what must always hold."""

import pytest
import torch

from live_metrics_twins import (
    BOS,
    EOS,
    FRAME,
    NOT_LEARNED,
    SPEAK,
    WORDS,
    Dialogue,
    V,
    ahead_logits,
    random_dialogue,
    twin,
    twin_compat,
)
from streamchat_hf.metrics.videollm_online.live_metrics import live_metrics


def compute(d, logits, seed=0, compat=False, whole=False):
    asked = []

    def look_ahead(past_len, first_frame, n_frames):
        asked.append((past_len, first_frame, n_frames))
        rows = ahead_logits(d, seed, first_frame, n_frames)
        if not whole:
            return rows
        stride = d.k + (d.interval is not None)
        every = torch.full((n_frames * stride, V), 9.0)
        every[stride - 1 :: stride] = rows
        return every

    ids, labels = torch.tensor(d.ids), torch.tensor(d.labels)
    result = live_metrics(ids, labels, logits, look_ahead=look_ahead, compat=compat, **d.options())
    return result, asked


def means(result):
    return [result[name] for name in ("lm_ppl", "frame_diff", "fluency", "lm_correctness")]


def numbers(values):
    return [value for value in values if value is not None]


SEEDS = range(200)


@pytest.mark.parametrize("compat", [False, True])
def test_random_dialogues_are_their_twin(compat):
    seen = []
    for seed in SEEDS:
        d, logits = random_dialogue(seed)
        result, asked = compute(d, logits, seed, compat)
        expected = (twin_compat if compat else twin)(d, logits, seed)
        assert [value is None for value in means(result)] == [value is None for value in expected], seed
        assert numbers(means(result)) == pytest.approx(numbers(expected), rel=1e-5), seed
        seen += [row["frame_diff"] for row in result["turns"]]
        assert all(n > 0 for *_, n in asked)
    timed = [diff for diff in seen if diff is not None]
    assert min(timed) < -1 and max(timed) > 1 and 0 in timed and None in seen, "the cases must reach everything"


def test_only_the_labelled_rows_of_the_logits_count():
    for seed in SEEDS[:60]:
        d, logits = random_dialogue(seed)
        kept = torch.tensor(d.labels) != NOT_LEARNED
        assert compute(d, logits[kept], seed) == compute(d, logits, seed)
        noise = torch.where(kept[:, None], logits, torch.randn_like(logits) * 9)
        assert compute(d, noise, seed) == compute(d, logits, seed)


def test_look_ahead_may_give_every_token_or_the_last_one_of_each_frame():
    for seed in SEEDS[:60]:
        d, logits = random_dialogue(seed)
        assert compute(d, logits, seed, whole=True) == compute(d, logits, seed)


def test_turns_do_not_know_of_each_other():
    """A dialogue's turns are those of any dialogue that begins with it, but for the look-ahead of its last turn."""
    for seed in SEEDS[:60]:
        d, logits = random_dialogue(seed)
        whole, _ = compute(d, logits, seed)
        for stop in (row["stop"] for row in whole["turns"]):
            short = Dialogue(d.k, d.interval, d.threshold, d.ids[:stop], d.labels[:stop])
            part, _ = compute(short, logits[:stop], seed)
            earlier = [row for row in whole["turns"] if row["stop"] <= stop]
            assert part["turns"][:-1] == earlier[:-1]
            last, of_whole = part["turns"][-1], earlier[-1]
            assert {**last, "frame_diff": 0, "missed": 0} == {**of_whole, "frame_diff": 0, "missed": 0}


def test_a_later_response_is_never_nearer_and_a_missed_one_is_farthest():
    """5 frames due on the last, then 5 more: who responds at frame t is |4 - t| off, who never does 5."""
    d = Dialogue(1, 7)
    for _ in range(2):
        d.stream(5, 5)
        d.answer(2)
    diffs, fluencies = [], []
    for t in range(11):
        logits = perfect(d)
        if t < 5:
            logits[spot(d, t), [7, SPEAK]] = torch.tensor([0.0, 9.0])
        if t != 4:
            logits[spot(d, 4), [7, SPEAK]] = torch.tensor([9.0, 0.0])
        ahead = one_hot([7] * 4)
        if 5 <= t < 9:
            ahead[t - 5] = one_hot([SPEAK])[0]
        ids, labels = torch.tensor(d.ids), torch.tensor(d.labels)
        first = live_metrics(ids, labels, logits, look_ahead=lambda *_, rows=ahead: rows, **d.options())["turns"][0]
        diffs.append(first["frame_diff"])
        fluencies.append(first["fluency"])
        assert first["missed"] == (t >= 9)
    assert diffs == [4, 3, 2, 1, 0, -1, -2, -3, -4, -5, -5]
    assert fluencies == [t / 8 for t in range(4)] + [1.0] + [4 / 8] * 6  # 5 frames and 3 words


def one_hot(tokens):
    return torch.nn.functional.one_hot(torch.tensor(tokens), V).float() * 9


def perfect(d):
    return one_hot([label if label != NOT_LEARNED else 0 for label in d.labels])


def spot(d, frame):
    """The position of the last token of a frame."""
    return [i for i, token in enumerate(d.ids) if token == FRAME][(frame + 1) * d.k - 1]


def lone_turn(n, learn=None, interval=7, then=SPEAK):
    d = Dialogue(1, interval)
    d.stream(n, n if learn is None else learn, then)
    d.answer(2)
    return d, perfect(d)


@pytest.mark.parametrize("interval", [None, 7, 0])
def test_who_never_speaks_is_not_punctual(interval):
    d, logits = lone_turn(6, interval=interval)
    assert means(compute(d, logits)[0]) == pytest.approx([1.0, 0.0, 1.0, 1.0], abs=0.01)
    logits[spot(d, 5)] = one_hot([d.silence])[0]
    result, asked = compute(d, logits)
    assert result["turns"][0]["frame_diff"] == -6 and result["missed"] == 1 and asked == []
    assert result["fluency"] == 5 / 9
    authors, _ = compute(d, logits, compat=True)
    assert (authors["frame_diff"], authors["fluency"]) == (0, 1.0)


def test_silence_is_right_where_every_learned_frame_is_silent():
    d, logits = lone_turn(4, learn=3)  # as before a question that nobody can foresee
    assert means(compute(d, logits)[0])[1:] == [0, 1.0, 1.0]
    logits[spot(d, 1)] = one_hot([SPEAK])[0]
    result, _ = compute(d, logits)
    assert result["turns"][0]["frame_diff"] == 2 and result["fluency"] == 1 / 6 and result["missed"] == 0


def test_the_frame_of_an_early_response_is_wrong():
    d, logits = lone_turn(5)
    logits[spot(d, 2)] = one_hot([SPEAK])[0]
    assert compute(d, logits)[0]["fluency"] == 2 / 8 and compute(d, logits, compat=True)[0]["fluency"] == 3 / 8


def test_speech_before_a_question_is_no_mistake_in_time():
    d = Dialogue(1, 7)
    d.stream(2, 2)  # labelled to speak, as the authors' data has it
    d.add(WORDS[0])
    d.stream(3, 3)
    d.answer(1)
    logits = perfect(d)
    assert means(compute(d, logits)[0])[1:] == [0, 1.0, 1.0]
    assert compute(d, logits, compat=True)[0]["frame_diff"] == 3
    logits[spot(d, 1)] = one_hot([7])[0]
    result, _ = compute(d, logits)
    assert result["frame_diff"] == 0 and result["fluency"] == 1 / 7


def test_frames_of_turns_without_labels_are_counted():
    d = Dialogue(2, 7)
    d.stream(3, 0)
    d.answer(1, learn=False)
    d.stream(4, 4)
    d.answer(1)
    d.stream(4, 4)
    d.answer(1)
    logits = perfect(d)
    logits[spot(d, 6)] = one_hot([7])[0]
    past = spot(d, 6) + 1
    assert compute(d, logits)[1] == [(past, 7, 3)]
    assert compute(d, logits, compat=True)[1] == [(past, 4, 3)]


def test_frames_without_labels_at_the_end_of_a_turn_are_looked_at_first():
    d = Dialogue(1, 7)
    d.stream(3, 3)
    d.add(WORDS[0])
    d.stream(2, 0)
    d.answer(1)
    d.stream(4, 4)
    d.answer(1)
    logits = perfect(d)
    logits[spot(d, 2)] = one_hot([7])[0]
    past = spot(d, 2) + 1
    assert compute(d, logits)[1] == [(past, 3, 4)] and compute(d, logits, compat=True)[1] == [(past, 5, 4)]


def test_a_threshold_never_makes_more_silent_even_if_token_0_is_silence():
    d, _ = lone_turn(4, interval=0)
    d.threshold = 0.9
    logits = perfect(d) * 0.3
    assert compute(d, logits)[0]["turns"][0]["frame_diff"] == 3  # p(silence) < 0.9 on every frame
    assert compute(d, logits, compat=True)[0]["frame_diff"] == 0  # zeroed, so that its argmax is silence


def test_the_threshold_is_strict_and_none_is_the_argmax():
    d, logits = lone_turn(2)
    logits[spot(d, 0)] = torch.full((V,), -torch.inf)
    logits[spot(d, 0), [7, 8]] = 0.0  # of equal ones the smaller token
    for threshold, early in ((0.5, 0), (0.51, 1), (None, 0), (0.0, 0)):
        d.threshold = threshold
        assert compute(d, logits)[0]["frame_diff"] == early


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_scored_in_float32(dtype):
    d, logits = random_dialogue(3)
    assert compute(d, logits.to(dtype), 3)[0] == compute(d, logits.to(dtype).float(), 3)[0]


@pytest.mark.parametrize("tokens", [[], [BOS, WORDS[0]], [BOS, EOS], [EOS, EOS]])
def test_nothing_to_measure_is_no_score(tokens):
    d = Dialogue(1, 7, ids=tokens, labels=[NOT_LEARNED] * len(tokens))
    result, _ = compute(d, torch.zeros(len(tokens), V))
    assert means(result) == [None] * 4 and result["turns"] == []
    assert means(compute(d, torch.zeros(len(tokens), V), compat=True)[0]) == [1, 0, 1, 1]


def test_answers_without_frames_and_frames_without_answers():
    d = Dialogue(1, 7)
    d.answer(3)
    result, _ = compute(d, perfect(d))
    assert result["frame_diff"] is None and result["fluency"] is None and result["lm_correctness"] == 1.0
    d = Dialogue(1, 7)
    d.stream(3, 3)
    d.answer(3, learn=False)
    result, _ = compute(d, perfect(d))
    assert result["frame_diff"] == 0 and result["fluency"] is None and result["lm_ppl"] is None


def late_dialogue():
    d = Dialogue(2, 7)
    for _ in range(2):
        d.stream(3, 3)
        d.answer(1)
    logits = perfect(d)
    logits[spot(d, 2)] = one_hot([7])[0]
    return d, logits


def test_what_does_not_fit_is_refused():
    d, logits = late_dialogue()
    ids, labels, options = torch.tensor(d.ids), torch.tensor(d.labels), d.options()
    with pytest.raises(ValueError, match="there is no look-ahead: give logits of 2 frames from frame 3 on, after"):
        live_metrics(ids, labels, logits, **options)
    with pytest.raises(ValueError, match=r"must be \(2, V\) or \(6, V\), not \(4, 12\)"):
        live_metrics(ids, labels, logits, look_ahead=lambda *_: logits[:4], **options)
    with pytest.raises(ValueError, match="5 rows of logits for 22 tokens, 10 of them labelled"):
        live_metrics(ids, labels, logits[:5], **options)
    with pytest.raises(ValueError, match=r"one dialogue is input_ids \(T,\), labels \(T,\), logits \(T, V\), not"):
        live_metrics(ids[None], labels[None], logits[None], **options)
