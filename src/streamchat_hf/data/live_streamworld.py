"""Exact dialogues about StreamWorld for a model that chooses when to speak (VideoLLM-online, 2406.11816).

Of every frame it is known what it shows, hence at which frame each answer is due: an alert at the first frame that
shows what it waits for, a change at the frame that shows it. All words are words of `streamworld_dialogue.vocabulary`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from streamchat_hf.data.live_conversation import LiveMessage, LiveSample, LiveTurn, lay_out
from streamchat_hf.data.streamworld import (
    COLOURS,
    COUNTS,
    DIGITS,
    HELDOUT_DIGITS,
    HELDOUT_SHAPES,
    MOTIONS,
    SHAPES,
    SLOTS,
    TICK,
    World,
)
from streamchat_hf.data.streamworld_dialogue import (
    ASK,
    BACK,
    EOS,
    GONE,
    NOTHING,
    NOW,
    TELL,
    VALUES,
    WATCH,
    Question,
    plan,
    questions,
    vocabulary,
)

SYSTEM_PROMPT = "keep watching ."
KINDS = {"alert": 0.5, "changes": 0.25, "now": 0.125, "past": 0.125}
SLOWEST_FPS = 1 / TICK  # a slower viewer misses states

ALERTS = ("say it once {} .", "once {} , say it .", "keep watching and say it once {} .")
PAST = ("which {} is gone ?", "what {} is gone ?")
_CLAUSES = {
    "colour": "it is {}",
    "shape": "it is a {}",
    "digit": "it is a {}",
    "motion": "it goes {}",
    "count": "there are {}",
    "presence": "it is {}",
    "colour shape": "it is a {}",
    "colour digit": "it is a {}",
    "count colour": "there are {} ones",
}
_BOS = "<bos>"
_VIDEO = "<v>"

Shown = Mapping[str, str]


@dataclass(frozen=True)
class LiveAlert:
    """Something to wait for.

    Attributes:
        kind: An attribute, `"presence"`, or two attributes at once, such as `"colour shape"`.
        value: The words of it: `"blue"`, `"gone"`, `"blue square"`.
    """

    kind: str
    value: str

    @property
    def clause(self) -> str:
        """What is waited for, and what is said when it is there: `"it is blue"`."""
        if self.value == "still":
            return "it is still"
        return _CLAUSES[self.kind].format(self.value)

    def holds(self, shown: Shown) -> bool:
        """Whether a frame shows it."""
        return " ".join(shown.get(slot, "") for slot in self.kind.split()) == self.value

    def frames(self, shown: Sequence[Shown], seen: int = 0) -> list[int]:
        """Return the frames from `seen` on that show it while the frame before does not."""
        return [i for i in range(seen, len(shown)) if self.holds(shown[i]) and not (i and self.holds(shown[i - 1]))]


def frame_facts(world: World, frame_times: Sequence[float]) -> list[dict[str, str]]:
    """Return what each frame shows: the word of every attribute that has one and can be seen.

    A motion is seen half a second after the object was there. `"presence"` is `"gone"` while nothing is visible, and
    `"back"` at the first frame that shows something again.

    Args:
        world: What the frames show.
        frame_times: Of the frames, in seconds.
    """
    facts: list[dict[str, str]] = []
    for time in frame_times:
        state = world.state(time)
        if not state.present:
            facts.append({"presence": GONE})
            continue
        shown = {slot: state.tell(slot) for slot in world.slots if slot != "motion" or world.motion_visible(time)}
        shown = {slot: word for slot, word in shown.items() if word in VALUES[slot]}
        if facts and facts[-1].get("presence") == GONE:
            shown["presence"] = BACK
        facts.append(shown)
    return facts


def watch_answers(kind: str, shown: Sequence[Shown], seen: int) -> list[tuple[int, str]]:
    """Describe what is there, then tell every change.

    Args:
        kind: Of the world.
        shown: See `frame_facts`.
        seen: How many frames there were when it was asked.

    Returns:
        `(frame, text)`: `"a red circle , left"` or `"nothing"` at the newest frame (before any, at the first), then
        `"now blue"`, `"now gone"`, ... An object that was not there comes with a description: `"now a red circle"`.
    """
    slots = ("count", "colour") if kind == "count" else ("colour", kind, "motion")
    first = max(seen - 1, 0)
    told: dict[str, str] = {}  # what was last said of each slot; empty until there was something to describe
    present = False
    answers = []
    for i in range(first, len(shown)):
        now, was_present = shown[i], present
        present = now.get("presence") != GONE
        if not told:
            changes = [_describe(kind, now)] if present else []
        else:
            changes = [BACK if present else GONE] if present != was_present else []
            changes += [now[slot] for slot in slots if slot in now and now[slot] != told.get(slot)]
        told |= {slot: now[slot] for slot in slots if slot in now}
        if i == first:
            answers.append((i, changes[0] if changes else NOTHING))
        elif changes:
            answers.append((i, " , ".join(f"{NOW} {change}" for change in changes)))
    return answers


def _describe(kind: str, now: Shown) -> str:
    if kind == "count":
        return f"{now['count']} {now['colour']} ones"
    return f"a {now['colour']} {now[kind]}" + (f" , {now['motion']}" if "motion" in now else "")


def tell_answers(attr: str, shown: Sequence[Shown], seen: int) -> list[tuple[int, str]]:
    """Tell one attribute, now and at every change: `(frame, word)`; `"nothing"` while nothing is there."""
    answers: list[tuple[int, str]] = []
    for i in range(max(seen - 1, 0), len(shown)):
        word = NOTHING if shown[i].get("presence") == GONE else shown[i].get(attr)
        if word is not None and (not answers or answers[-1][1] != word):
            answers.append((i, word))
    return answers


def former_value(attr: str, shown: Sequence[Shown]) -> str | None:
    """Return the value of an attribute before its present one, as far as frames have shown; `None` without any."""
    values = [now[attr] for now in shown if attr in now]
    return next((value for value in reversed(values) if value != values[-1]), None)


class LiveStreamWorld(Dataset):
    """Rows of streaming dialogue about StreamWorld, with up to three questions in each.

    A question holds until the next one. There are four kinds of them:

    - `"alert"`, "say it once it is blue .": silence, then "it is blue" at the first frame that shows it, and again if
      it happens again. It is never there yet at the question, and sometimes it never comes.
    - `"changes"`, "what is happening ?" or "keep telling the colour .": an answer at once and at every change.
    - `"now"`, "what colour is it ?": one answer at once.
    - `"past"`, "which colour is gone ?": one answer about what the frames have shown before.

    Item i depends on (seed, split, i) and the arguments below alone; it is light, nothing is rendered.

    Args:
        length: Number of items.
        seed: Any integer.
        split: Of the worlds; see `World.sample`.
        fps: Frames per second, at least 2: a slower viewer misses states.
        num_frames: Frames of a row.
        kinds: Weight of each kind.
        max_queries: At most this many questions in a row, at least one.
        never: Share of alerts whose event does not come before the next question.
        one_attribute: In the training split, share of worlds with colours or shapes that no word names. Only the other
            attributes are asked for. Without them held-out combinations are described as known ones.
        scenes: Of worlds of each kind (`"shape"`, `"digit"`, `"count"`) the share that is kept, in (0, 1]: those that
            `World.sample` seldom draws can be shown as often as the others.

    Raises:
        ValueError: For an unknown kind or scene, a share outside (0, 1], less than two frames per second, or a row
            that is too short.

    Example:
    ```python
    row = LiveStreamWorld(length=1000)[0]
    [message["content"] for message in row["conversation"] if message["role"] == "user"]
    # ["keep watching and say it once there are two yellow ones ."]
    ```
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        split: str = "train",
        fps: float = 2.0,
        num_frames: int = 40,
        kinds: Mapping[str, float] = KINDS,
        max_queries: int = 3,
        never: float = 0.2,
        one_attribute: float = 0.3,
        scenes: Mapping[str, float] | None = None,
    ):
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}: expected some of {tuple(KINDS)}")
        if not any(kinds.values()):
            raise ValueError(f"no kind has a weight: {dict(kinds)}")
        if fps < SLOWEST_FPS:
            raise ValueError(f"{fps} frames per second miss states: give at least {SLOWEST_FPS:g}")
        if max_queries < 1 or num_frames < max(4 * max_queries, fps):
            raise ValueError(f"{num_frames} frames are too few for {max_queries} questions: give at least 4 for each")
        if scenes and (set(scenes) - set(SLOTS) or not all(0 < share <= 1 for share in scenes.values())):
            raise ValueError(f"scenes are shares in (0, 1] of {tuple(SLOTS)}, not {dict(scenes)}")
        self.length, self.seed, self.split, self.fps, self.num_frames = length, seed, split, fps, num_frames
        self.kinds, self.max_queries, self.never, self.one_attribute = kinds, max_queries, never, one_attribute
        self.scenes = scenes or {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> LiveSample:
        if not 0 <= index < self.length:
            raise IndexError(f"item {index} of {self.length}")
        rng = random.Random(f"live streamworld/{self.split}/{self.seed}/{index}")
        frame_times = [round(1000 * i / self.fps) / 1000 for i in range(self.num_frames)]
        while True:
            world = self._world(rng)
            if world.kind in self.scenes and rng.random() >= self.scenes[world.kind]:
                continue
            turns = self._turns(rng, world, frame_facts(world, frame_times))
            if turns is not None:
                break
        system = LiveMessage(role="system", content=SYSTEM_PROMPT)
        conversation = [system, *lay_out(turns, frame_times)]
        return LiveSample(conversation=conversation, frame_times=frame_times, media=None, world=world)

    def _world(self, rng: random.Random) -> World:
        palette = shapes = "named"
        if self.split == "train" and rng.random() < self.one_attribute:
            palette, shapes = rng.choice((("tinted", "named"), ("named", "odd")))
        return World.sample(rng.getrandbits(48), self.split, self.num_frames / self.fps, palette, shapes)

    def _turns(self, rng: random.Random, world: World, shown: list[dict[str, str]]) -> list[LiveTurn] | None:
        """Draw questions, each in the first half of its share of the frames, with their answers."""
        count = rng.randint(1, self.max_queries)
        share = self.num_frames / count
        asked = [int((i + 0.5 * rng.random()) * share) for i in range(count)]
        turns = []
        for seen, until in zip(asked, [*asked[1:], self.num_frames], strict=True):
            kind = rng.choices(list(self.kinds), list(self.kinds.values()))[0]
            drawn = self._query(rng, kind, world, shown[:until], seen)
            if drawn is None:
                return None
            text, answers = drawn
            turns.append(LiveTurn("user", text, seen))
            turns += [LiveTurn("assistant", answer, frame + 1) for frame, answer in answers]
        return turns

    def _query(
        self, rng: random.Random, kind: str, world: World, shown: list[dict[str, str]], seen: int
    ) -> tuple[str, list[tuple[int, str]]] | None:
        """Draw a question after `seen` frames, and `(frame, answer)`s; `None` if there is none of this kind."""
        if kind == "alert":
            alert = self._alert(rng, world, shown, seen)
            if alert is None:
                return None
            return rng.choice(ALERTS).format(alert.clause), [(i, alert.clause) for i in alert.frames(shown, seen)]
        newest = max(seen - 1, 0)
        slots = [slot for slot in world.slots if any(slot in now for now in shown)]
        if kind == "changes":
            named = len(slots) == len(world.slots)
            if named and rng.random() < 0.5:
                return rng.choice(questions(WATCH)).text, watch_answers(world.kind, shown, seen)
            attr = rng.choice(slots)
            return rng.choice(questions(TELL, attr)).text, tell_answers(attr, shown, seen)
        attr = rng.choice(slots)
        if kind == "now" and shown[newest].get("presence") == GONE:
            return rng.choice(questions(ASK, attr)).text, [(newest, NOTHING)]
        if attr not in shown[newest]:
            return None
        if kind == "now":
            question = rng.choice(questions(ASK, attr))
            return question.text, [(newest, _fill(world, question, shown[newest]))]
        former = former_value(attr, shown[: newest + 1])
        return rng.choice(PAST).format(attr), [(newest, f"{former or NOTHING} is gone")]

    def _alert(self, rng: random.Random, world: World, shown: list[dict[str, str]], seen: int) -> LiveAlert | None:
        """Draw what to wait for: something that happens before the next question, or with `never` something else."""
        possible = [alert for alert in _alerts(world, shown) if not (seen and alert.holds(shown[seen - 1]))]
        happens = rng.random() >= self.never
        fitting = [alert for alert in possible if bool(alert.frames(shown, seen)) == happens]
        if not fitting:
            return None
        kind = rng.choice(sorted({alert.kind for alert in fitting}))
        return rng.choice([alert for alert in fitting if alert.kind == kind])


def _fill(world: World, question: Question, now: Shown) -> str:
    return " ".join(now[item[1:-1]] if item.startswith("{") else item for item in plan(world, question))


def _alerts(world: World, shown: Sequence[Shown]) -> list[LiveAlert]:
    """List what could be waited for in such a world.

    Held-out combinations are asked for in their own split only: the words of no other one may tell of them.
    """
    slots = {slot for now in shown for slot in now} & set(world.slots)
    values = {"colour": COLOURS, "shape": SHAPES, "digit": DIGITS, "motion": MOTIONS, "count": COUNTS}
    alerts = [LiveAlert("presence", value) for value in (GONE, BACK) if world.kind != "count"]
    alerts += [LiveAlert(slot, value) for slot in sorted(slots) for value in values[slot]]
    pair = ("count", "colour") if world.kind == "count" else ("colour", world.kind)
    if set(pair) <= slots:
        alerts += [
            LiveAlert(" ".join(pair), f"{first} {second}")
            for first in values[pair[0]]
            for second in values[pair[1]]
            if world.split == "heldout" or (first, second) not in (*HELDOUT_SHAPES, *HELDOUT_DIGITS)
        ]
    return alerts


def build_live_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer for rows of this file in the chat text of VideoLLM-online.

    Its first ids are those of `streamworld_dialogue.build_tokenizer`. Each word, punctuation mark and line break is a
    token, lower case, and nothing ever merges: a text has the same tokens whole and in pieces. `<v>` stands for a
    frame's token.
    """
    words = dict.fromkeys((*vocabulary(), _BOS, _VIDEO, "user", "assistant", ":", "[", "]", "\n"))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+|[^\w\s]"), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token=_BOS,
        eos_token=EOS,
        extra_special_tokens=[_VIDEO],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
