import random

import pytest
from transformers import AutoTokenizer

from streamchat_hf.data.streamworld import SLOTS, SPLITS, Event, SceneState, World
from streamchat_hf.data.streamworld_dialogue import (
    ASK,
    TELL,
    VALUES,
    WATCH,
    answer,
    build_tokenizer,
    can_answer,
    draw_ask_time,
    grid,
    plan,
    questions,
    vocabulary,
    word_times,
)

ALL_QUESTIONS = [q for kind in (TELL, ASK) for attr in VALUES if attr != "presence" for q in questions(kind, attr)]
ALL_QUESTIONS += questions(WATCH)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def scene(*events, kind="shape", **state):
    """A red circle that stands still, or what `state` says, with events `(kind, time, new)`."""
    values = {"colour": "red", "shape": "circle", "digit": None, "motion": "still", "count": None, **state}
    now = {**values, "presence": "back"}
    full = []
    for slot, time, new in events:
        full.append(Event(slot, time, now[slot], new))
        now[slot] = new
    return World(0, "seen", kind, 10.0, SceneState(**values), tuple(full), 0.17, ((0.5, 0.5),), {}, 0.1)


def say(world, question, ask_time=0.0, until=10.0, speed=2.0, frames=None):
    times = word_times(ask_time, speed, until)
    return " ".join(w.text for w in answer(world, question, ask_time, times, frames or grid(10.0)))


def watch(*events, **kwargs):
    return say(scene(*events), questions(WATCH)[0], 0.5, **kwargs)


def test_every_question_has_three_wordings_of_its_own():
    texts = [question.text for question in ALL_QUESTIONS]
    assert len(set(texts)) == len(texts) == 3 * (5 + 5 + 1)


@pytest.mark.parametrize(("kind", "attr"), [(TELL, None), (ASK, "size"), (WATCH, "colour"), ("why", None)])
def test_other_questions_do_not_exist(kind, attr):
    with pytest.raises(ValueError, match="no question of kind"):
        questions(kind, attr)


def test_tell_repeats_the_value_of_the_newest_frame():
    world = scene(("colour", 1.0, "blue"), ("presence", 2.0, "gone"), ("presence", 3.5, "back"))
    colour = questions(TELL, "colour")[0]
    assert say(world, colour, until=4.5) == "red red blue blue nothing nothing nothing blue blue"
    assert say(world, colour, 0.75, until=2.5) == "red blue blue nothing"
    assert say(world, colour, until=4.5, frames=[0.0, 0.5, 1.0]) == "red red blue blue blue blue blue blue blue"


def test_ask_ends_by_itself():
    world = scene(("colour", 1.0, "blue"))
    assert say(world, questions(ASK, "colour")[0]) == "it is blue"
    assert say(world, questions(ASK, "shape")[1], 2.0) == "it is circle"
    assert say(world, questions(ASK, "motion")[2], 2.0) == "it goes still"
    counted = scene(kind="count", count="three")
    assert say(counted, questions(ASK, "count")[0]) == "there are three"


def test_watch_describes_then_reports_changes():
    assert watch(until=5.0) == "a red circle , still . . . ."
    assert watch(("colour", 4.0, "blue"), until=6.0) == "a red circle , still . . now blue . ."
    assert watch(("shape", 3.0, "square"), ("motion", 4.0, "left"), until=6.0) == (
        "a red circle , still now square now left . ."
    )
    counted = scene(("count", 3.0, "three"), kind="count", count="two")
    assert say(counted, questions(WATCH)[0], until=5.0) == "two red ones . . . now three . ."


def test_watch_reports_the_longest_outstanding_change_first():
    assert watch(("colour", 1.5, "blue"), ("shape", 2.0, "square"), until=6.0) == (
        "a red circle , still now blue now square . ."
    )
    assert watch(("shape", 2.0, "square"), ("colour", 2.5, "blue"), until=6.0) == (
        "a red circle , still now square now blue . ."
    )


def test_a_value_said_late_is_the_newest():
    # Blue when the description ends, green already when the report names it.
    assert watch(("colour", 1.5, "blue"), ("colour", 3.5, "green"), until=5.0) == "a red circle , still now green . ."


def test_after_gone_only_back_is_reported_until_it_is_back():
    line = watch(
        ("colour", 2.0, "blue"),
        ("presence", 3.0, "gone"),
        ("presence", 5.0, "back"),
        ("shape", 6.0, "cross"),
        until=8.0,
    )
    assert line == "a red circle , still now gone . . now back now blue now cross"


def test_a_stalled_picture_changes_no_more():
    assert watch(("colour", 4.0, "blue"), until=6.0, frames=grid(3.5)) == "a red circle , still . . . . . ."


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("speed", [1.5, 2.0, 3.0])
def test_every_value_is_true_of_the_world_when_it_is_spoken(split, speed):
    rng = random.Random(0)
    answered = 0
    for seed in range(150):
        world = World.sample(seed, split)
        question = rng.choice([q for q in ALL_QUESTIONS if q.attr in (None, *SLOTS[world.kind])])
        asked = draw_ask_time(rng, world, question, speed, grid(10.0), (0, 3), on_grid=seed % 2 == 0)
        if asked is None:
            continue
        answered += 1
        words = answer(world, question, asked, word_times(asked, speed, 10.0), grid(10.0))
        for word in words:
            state = world.state(word.time)
            if word.kind == "presence":
                assert state.present == (word.text == "back")
            elif word.kind not in (None, "change"):
                assert state.present and getattr(state, word.kind) == word.text
        if question.kind == TELL:
            assert len(words) == len(word_times(asked, speed, 10.0))
    assert answered > 120


def test_what_cannot_be_seen_cannot_be_asked():
    world = scene(("presence", 1.0, "gone"), ("presence", 3.0, "back"))
    frames = grid(10.0)

    def can(question, time):
        return can_answer(world, question, word_times(time, 2.0, 10.0), frames)

    assert not can(questions(WATCH)[0], 0.0) and can(questions(WATCH)[0], 3.0)
    asks = [can(questions(ASK, "colour")[0], time) for time in (0.0, 2.0, 3.0)]
    assert asks == [False, False, True]
    assert can(questions(TELL, "colour")[0], 1.0)
    assert [can(questions(TELL, "motion")[0], time) for time in (0.0, 0.5, 1.0, 3.0, 3.5)] == [
        False,
        True,
        False,
        False,
        True,
    ]
    assert not can(questions(ASK, "colour")[0], 9.0)  # two words left
    with pytest.raises(ValueError, match="nothing is visible"):
        say(world, questions(WATCH)[0])
    with pytest.raises(ValueError, match="a shape scene has no digit"):
        say(world, questions(TELL, "digit")[0])
    with pytest.raises(ValueError, match="no frame is visible at 0"):
        say(world, questions(TELL, "colour")[0], frames=[1.0])


def test_word_times_are_whole_milliseconds_before_the_end():
    assert word_times(0.5, 1.5, 2.5) == [0.5, 1.167, 1.833]
    assert word_times(1.0, 2.0, 2.0) == [1.0, 1.5]


def test_every_word_is_one_token(tokenizer):
    words = [word for question in ALL_QUESTIONS for word in question.text.split()]
    words += [word for values in VALUES.values() for word in values]
    for world in (World.sample(seed) for seed in range(30)):
        words += [word for question in questions(WATCH) for word in plan(world, question) if "{" not in word]
    for word in {*words, "now", "it", "is", "goes", "there", "are"}:
        assert tokenizer.encode(word) == [vocabulary().index(word)]
    assert tokenizer.get_vocab() == {word: i for i, word in enumerate(vocabulary())}
    assert tokenizer.encode("Zebra") == [tokenizer.unk_token_id]


def test_case_and_missing_spaces_do_not_matter(tokenizer):
    assert tokenizer.encode("What do you see?") == tokenizer.encode("what do you see ?")
    assert tokenizer.decode(tokenizer.encode("A red circle, left")) == "a red circle , left"
    assert tokenizer.decode(tokenizer.encode("now 7 . <eos>"), skip_special_tokens=True) == "now 7 ."


def test_the_chat_template_takes_strings_and_typed_items(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    items = [{"type": "video"}, {"type": "text", "text": "what do you see ?"}]
    for content in ("what do you see ?", items):
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": "a red circle , left"}]
        chat.append({"role": "user", "content": "how many are there ?"})
        for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
            encoded = each.apply_chat_template(
                chat, add_generation_prompt=True, return_dict=True, return_assistant_tokens_mask=True
            )
            tokens = each.convert_ids_to_tokens(encoded["input_ids"])
            first = "<user> what do you see ? <assistant> a red circle , left <eos>"
            assert " ".join(tokens) == f"{first} <user> how many are there ? <assistant>"
            spoken = [token for token, mask in zip(tokens, encoded["assistant_masks"], strict=True) if mask]
            assert " ".join(spoken) == "a red circle , left <eos>"


def test_the_chat_template_knows_two_roles(tokenizer):
    with pytest.raises(Exception, match="user and assistant only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "now"}])
