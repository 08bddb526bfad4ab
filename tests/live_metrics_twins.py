"""Random streaming dialogues, and the metrics of `live_metrics` written out token by token in plain Python."""

import math
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

V, WORDS, EOS, BOS, SPEAK = 12, (3, 4, 5), 2, 1, 6
FRAME = V  # outside the vocabulary
NOT_LEARNED = -100


@dataclass
class Dialogue:
    """Tokens and labels as the collator makes them, and logits that follow the labels often enough to reach all."""

    k: int
    interval: int | None
    threshold: float = 0.0
    ids: list = field(default_factory=list)
    labels: list = field(default_factory=list)

    @property
    def silence(self):
        return EOS if self.interval is None else self.interval

    def add(self, token, label=NOT_LEARNED):
        self.ids.append(token)
        self.labels.append(label)

    def stream(self, n, learn, then=SPEAK):
        """`learn`: how many frames have a label; the last of all n says `then`."""
        for frame in range(n):
            if frame and self.interval is not None:
                self.add(self.interval)
            for _ in range(self.k - 1):
                self.add(FRAME)
            label = self.silence if frame < n - 1 else then
            self.add(FRAME, label if frame < learn else NOT_LEARNED)

    def answer(self, n, learn=True):
        words = [random_word() for _ in range(n)] + [EOS]
        for word, target in zip([SPEAK, *words], [*words, None], strict=True):
            self.add(word, target if learn and target is not None else NOT_LEARNED)

    def options(self):
        return {
            "frame_num_tokens": self.k,
            "v_placeholder_id": FRAME,
            "eos_token_id": EOS,
            "frame_token_interval_id": self.interval,
            "threshold": self.threshold,
        }


RNG = random.Random(0)


def random_word():
    return RNG.choice(WORDS)


def random_dialogue(seed):
    RNG.seed(seed)
    d = Dialogue(RNG.choice([1, 1, 2, 3]), RNG.choice([None, 7, 7, 0]), RNG.choice([0.0, 0.0, 0.3, 0.5, 0.725]))
    d.add(BOS)
    for _ in range(RNG.choice([0, 1, 2, 3, 4])):
        if RNG.random() < 0.3:  # a question, before which frames may be learned to be silent, or even to speak
            if RNG.random() < 0.6:
                n = RNG.randint(1, 4)
                d.stream(n, RNG.choice([0, n - 1, n]), RNG.choice([SPEAK, d.silence]))
            d.add(random_word())
        n = RNG.choice([0, 1, 1, 2, 3, 5])
        d.stream(n, RNG.choice([n, n, n, n, max(0, n - 1), 0]))
        d.answer(RNG.randint(0, 4), learn=RNG.random() < 0.8)
    if RNG.random() < 0.4:  # after the last end of sequence
        d.stream(3, 3)
    return d, random_logits(d, seed)


def random_logits(d, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(d.ids), V, generator=generator)
    obedience = RNG.choice([0.0, 1.0, 2.5, 6.0])
    silent = RNG.choice([0.0, 0.0, 4.0])
    for position, (token, label) in enumerate(zip(d.ids, d.labels, strict=True)):
        if label != NOT_LEARNED:
            logits[position, label] += obedience
        if token == FRAME:
            logits[position, d.silence] += silent
    return logits


def ahead_logits(d, seed, first_frame, n):
    """Of the last token of each frame; they depend on the frame alone."""
    rows = [
        torch.randn(V, generator=torch.Generator().manual_seed(1000 * seed + first_frame + frame))
        for frame in range(n)
    ]
    for row in rows:
        row[d.silence] += 1.5
    return torch.stack(rows)


def softmax(row):
    top = max(row)
    exps = [math.exp(value - top) for value in row]
    return [value / sum(exps) for value in exps]


def speaks(d, row):
    p = softmax(row)
    return p.index(max(p)) != d.silence or p[d.silence] < d.threshold


def turns_of(d):
    start = 0
    for position, token in enumerate(d.ids):
        if token == EOS:
            yield range(start, position + 1)
            start = position + 1


def twin(d, logits, seed):
    """The paper's definitions, token by token and frame by frame."""
    logits, rows, turns = logits.tolist(), [], list(turns_of(d))
    for number, turn in enumerate(turns):
        learned = [i for i in turn if d.labels[i] != NOT_LEARNED]
        if not learned:
            continue
        frames = [i for i in learned if d.ids[i] == FRAME]
        words = [i for i in learned if d.ids[i] != FRAME]
        row = SimpleNamespace(ppl=None, correct=None, diff=None, fluency=None)

        def right(i):
            if d.ids[i] == FRAME:
                return speaks(d, logits[i]) == (d.labels[i] != d.silence)
            return logits[i].index(max(logits[i])) == d.labels[i]

        def share_until_wrong(positions):
            wrong = [index for index, i in enumerate(positions) if not right(i)]
            return min(wrong, default=len(positions)) / len(positions)

        if words:
            surprise = [-math.log(softmax(logits[i])[d.labels[i]]) for i in words]
            row.ppl, row.correct = math.exp(sum(surprise) / len(words)), share_until_wrong(words)
        if frames and words:
            row.fluency = share_until_wrong(learned)
        if frames:
            row.diff = time_difference(d, logits, seed, frames, turn, turns[number + 1 : number + 2])
        rows.append(row)
    names = ("ppl", "diff", "fluency", "correct")
    known = [[abs(x) for row in rows if (x := getattr(row, name)) is not None] for name in names]
    return [sum(values) / len(values) if values else None for values in known]


def time_difference(d, logits, seed, frames, turn, next_turn):
    """When the response was due minus when it came, on a clock that counts learned frames and those after them."""
    expected = [t for t, i in enumerate(frames) if d.labels[i] != d.silence]
    said = [t for t, i in enumerate(frames) if speaks(d, logits[i])]
    if not expected:
        return len(frames) - said[0] if said else 0
    due = expected[-1]
    for t in said:
        if t >= due or t not in expected:
            return due - t
    in_turn, in_next = [sum(d.ids[i] == FRAME for i in some) // d.k for some in (turn, *next_turn, ())][:2]
    after = sum(token == FRAME for token in d.ids[: frames[-1] + 1]) // d.k
    for n, row in enumerate(ahead_logits(d, seed, after, 9).tolist()[: max(0, min(in_next, in_turn - 1))]):
        if speaks(d, row):
            return due - (len(frames) + n)
    return due - (len(frames) - 1) - in_turn


def twin_compat(d, logits, seed):
    """What the authors' code does, as a list of what it was seen to do."""
    logits, turns, past_frames = logits.tolist(), list(turns_of(d)), 0
    ppls, diffs, fluencies, corrects = [], [], [], []

    def authors_speak(row):
        p = softmax(row)
        if d.threshold and p[d.silence] < d.threshold:
            p = [0.0] * V
        return p.index(max(p)) != d.silence

    for number, turn in enumerate(turns):
        learned = [i for i in turn if d.labels[i] != NOT_LEARNED]
        if not learned:
            continue
        s, m = [i for i in learned if d.ids[i] == FRAME], [i for i in learned if d.ids[i] != FRAME]
        nf = sum(d.ids[i] == FRAME for i in turn) // d.k
        hits = [logits[i].index(max(logits[i])) == d.labels[i] for i in m]
        correct = [*hits, False].index(False)
        if m:
            ppls.append(math.exp(-sum(math.log(softmax(logits[i])[d.labels[i]]) for i in m) / len(m)))
            corrects.append(correct / len(m))
        if s:
            said = [j for j, i in enumerate(s) if authors_speak(logits[i])]
            if said:
                diff = len(s) - 1 - said[0]
            elif number == len(turns) - 1:
                diff = 0
            else:
                n = min(sum(d.ids[i] == FRAME for i in turns[number + 1]) // d.k, nf - 1)
                rows = ahead_logits(d, seed, past_frames + nf, n).tolist() if n else []
                late = [j for j, row in enumerate(rows) if authors_speak(row)]
                diff = -(late[0] + 1) if late else -n
            diffs.append(abs(diff))
            if m:
                good = len(s) + correct if diff == 0 else len(s) - diff if diff > 0 else len(s) - 1
                fluencies.append(good / len(learned))
        past_frames += nf
    lists = ((ppls, 1), (diffs, 0), (fluencies, 1), (corrects, 1))
    return [sum(values) / len(values) if values else nothing for values, nothing in lists]
