import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest

from streamchat_hf.data.live_conversation import check_sample
from streamchat_hf.data.live_streamworld import (
    KINDS,
    SYSTEM_PROMPT,
    LiveStreamWorld,
    build_live_tokenizer,
    former_value,
    frame_facts,
    tell_answers,
    watch_answers,
)
from streamchat_hf.data.streamworld import HELDOUT_DIGITS, HELDOUT_SHAPES, SPLITS, Event, SceneState, World
from streamchat_hf.data.streamworld_dialogue import KIND_OF, build_tokenizer, questions, vocabulary
from streamchat_hf.processing.processing_videollm_online import VideoLLMOnlineProcessor
from streamchat_hf.processing.video_processing_streamformer import StreamFormerVideoProcessor

N = 60
ATTRS = ("colour", "shape", "digit", "motion", "count")
TELL_TEXTS = {question.text: attr for attr in ATTRS for question in questions("tell", attr)}
ASK_TEXTS = {question.text: attr for attr in ATTRS for question in questions("ask", attr)}


def rows(n=N, **kwargs):
    dataset = LiveStreamWorld(n, **kwargs)
    return [dataset[i] for i in range(n)]


def only(kind, **kwargs):
    return rows(kinds={kind: 1.0}, **kwargs)


def spans(row):
    """Each question with how many frames there were, until how many it holds, and its answers by frame."""
    found, seen = [], 0
    for message in row["conversation"]:
        if message["role"] == "stream":
            seen += message["num_frames"]
        elif message["role"] == "user":
            if found:
                found[-1][2] = seen
            found.append([message["content"], seen, len(row["frame_times"]), []])
        elif message["role"] == "assistant":
            found[-1][3].append((seen - 1, message["content"]))
    return found


def is_true(row, i, clause):
    """Whether a clause holds at a frame, read word by word from the world alone."""
    if i < 0:
        return False
    world, times = row["world"], row["frame_times"]
    state = world.state(times[i])
    words = clause.split()
    if words == ["it", "is", "gone"]:
        return not state.present
    if not state.present:
        return False
    if words == ["it", "is", "back"]:
        return i > 0 and not world.state(times[i - 1]).present
    if words[1] == "goes" or words[-1] == "still":
        return world.motion_visible(times[i]) and state.motion == words[-1]
    if words[0] == "there":
        told = [word for word in words[2:] if word != "ones"]
        return told == [state.count, state.colour][: len(told)]
    told = [word for word in words[2:] if word != "a"]
    return told in ([state.colour], [state.name], [state.colour, state.name])


def clause_of(question):
    return question.partition("once ")[2].replace(", say it .", "").removesuffix(".").strip()


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("fps", "num_frames"), [(2.0, 40), (5.0, 60)])
def test_an_alert_is_given_at_the_first_frame_that_shows_it_and_at_no_other(split, fps, num_frames):
    happened = []
    for row in only("alert", split=split, fps=fps, num_frames=num_frames):
        for question, seen, until, answers in spans(row):
            clause = clause_of(question)
            assert not is_true(row, seen - 1, clause), "it is not there yet when it is asked for"
            due = [i for i in range(seen, until) if is_true(row, i, clause) and not is_true(row, i - 1, clause)]
            assert answers == [(i, clause) for i in due]
            if due:
                assert not any(is_true(row, i, clause) for i in range(max(seen - 1, 0), due[0]))
            happened.append(len(due))
    assert 0.1 < happened.count(0) / len(happened) < 0.3, "some never come"
    assert max(happened) > 1, "and some come again"


def test_alerts_are_of_all_kinds():
    clauses = [clause_of(question) for row in only("alert", n=400) for question, *_ in spans(row)]
    kinds = Counter(tuple(KIND_OF.get(word) for word in clause.split() if word in KIND_OF) for clause in clauses)
    singles = {("colour",), ("shape",), ("digit",), ("motion",), ("count",), ("presence",)}
    assert set(kinds) == singles | {("colour", "shape"), ("colour", "digit"), ("count", "colour")}


def test_without_never_every_alert_comes():
    for row in only("alert", n=60, never=0.0, max_queries=1):
        assert all(answers for *_, answers in spans(row))


def known(told, state, slots):
    """Whether what was said is what a frame shows; of the given attributes."""
    if not state.present:
        return told.get("presence") == "gone"
    return told.get("presence") == "back" and all(told.get(slot) == getattr(state, slot) for slot in slots)


def hear(told, text):
    """Take in the words of an answer: of those about one attribute the last."""
    words = [word for word in text.split() if word in KIND_OF]
    told = told | {KIND_OF[word]: word for word in words}
    if "nothing" in words:
        return {"presence": "gone"}
    return told if "gone" in words else told | {"presence": "back"}


@pytest.mark.parametrize("split", SPLITS)
def test_who_hears_the_changes_knows_every_frame_and_hears_nothing_else(split):
    watched = 0
    for row in only("changes", split=split):
        world = row["world"]
        for question, seen, until, answers in spans(row):
            if question in TELL_TEXTS:
                continue
            told, said = {}, dict(answers)
            assert answers[0][0] == max(seen - 1, 0), "what is there is said at once"
            for i in range(max(seen - 1, 0), until):
                time = row["frame_times"][i]
                state = world.state(time)
                slots = [slot for slot in world.slots if slot != "motion" or world.motion_visible(time)]
                if i in said:
                    assert not told or not known(told, state, slots), "nobody says what was said"
                    told = hear(told, said[i])
                assert known(told, state, slots), (said, i)
                watched += 1
    assert watched > 250


@pytest.mark.parametrize("split", SPLITS)
def test_one_attribute_is_told_now_and_whenever_it_differs(split):
    told_texts = 0
    for row in only("changes", split=split):
        for question, seen, until, answers in spans(row):
            if question not in TELL_TEXTS:
                continue
            attr, last, expected = TELL_TEXTS[question], None, []
            for i in range(max(seen - 1, 0), until):
                time = row["frame_times"][i]
                word = row["world"].state(time).tell(attr)
                unseen = attr == "motion" and word != "nothing" and not row["world"].motion_visible(time)
                if word != last and not unseen:
                    expected.append((i, word))
                    last = word
            assert answers == expected
            told_texts += len(answers)
    assert told_texts > 80


@pytest.mark.parametrize("split", SPLITS)
def test_a_question_about_now_is_answered_once_from_the_newest_frame(split):
    absent = 0
    for row in only("now", split=split):
        for question, seen, _, answers in spans(row):
            state = row["world"].state(row["frame_times"][max(seen - 1, 0)])
            ((frame, text),) = answers
            assert frame == max(seen - 1, 0)
            assert text.split()[-1] == state.tell(ASK_TEXTS[question])
            absent += not state.present
    assert absent > 0


@pytest.mark.parametrize("split", SPLITS)
def test_a_question_about_the_past_is_answered_from_all_frames_so_far(split):
    found = Counter()
    for row in only("past", split=split):
        for question, seen, _, answers in spans(row):
            attr, values = question.split()[1], []
            for time in row["frame_times"][: max(seen, 1)]:
                state = row["world"].state(time)
                if state.present and (attr != "motion" or row["world"].motion_visible(time)):
                    values.append(getattr(state, attr))
            runs = [value for value, _ in itertools.groupby(values)]
            former = runs[-2] if len(runs) > 1 else "nothing"
            assert answers == [(max(seen - 1, 0), f"{former} is gone")]
            found[former == "nothing"] += 1
    assert min(found.values()) > 5


@pytest.mark.parametrize("split", SPLITS)
def test_rows_are_valid_and_speak_the_shipped_language(split):
    words = set()
    for row in rows(split=split):
        check_sample(row)
        assert row["conversation"][0] == {"role": "system", "content": SYSTEM_PROMPT}
        assert row["media"] is None and len(row["frame_times"]) == 40
        assert 1 <= len(spans(row)) <= 3
        words |= {word for message in row["conversation"] for word in message.get("content", "").split()}
    assert words <= set(vocabulary()) - {"<pad>", "<unk>", "<user>", "<assistant>", "<eos>"}


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_heldout_split_shows_or_names_held_out_combinations(split):
    held = {" ".join(pair) for pair in (*HELDOUT_SHAPES, *HELDOUT_DIGITS)}
    shown = named = 0
    for row in rows(300, split=split):
        shown += any(row["world"].state(time).is_heldout for time in row["frame_times"])
        named += any(pair in message.get("content", "") for message in row["conversation"] for pair in held)
        assert row["world"].split == split
    if split == "heldout":
        assert shown > 200 and named > 20
    else:
        assert shown == named == 0


def test_unnamed_colours_and_shapes_are_for_training_and_never_asked_for():
    def is_unnamed(row):
        words = {row["world"].initial.colour, row["world"].initial.name}
        return not words <= set(KIND_OF)

    unnamed = [row for row in rows(300) if is_unnamed(row)]
    assert 60 < len(unnamed) < 120
    assert {"tint" in row["world"].initial.colour for row in unnamed} == {True, False}
    assert not any(is_unnamed(row) for split in ("seen", "heldout") for row in rows(split=split))
    assert not any(is_unnamed(row) for row in rows(one_attribute=0.0))


def test_rare_scenes_can_be_shown_as_often_as_others():
    kinds = Counter(row["world"].kind for row in rows(200, scenes={"shape": 0.25, "digit": 0.6}))
    assert min(kinds.values()) > 45
    assert rows(20, scenes={}) == rows(20)
    assert Counter(row["world"].kind for row in rows(200))["shape"] > 90


@pytest.mark.parametrize("split", SPLITS)
def test_an_item_depends_on_seed_split_and_index_alone(split):
    items = rows(8, split=split)
    longer = LiveStreamWorld(1000, split=split)
    random.seed(1)
    assert [longer[i] for i in reversed(range(8))] == items[::-1]
    assert all(a != b for a, b in zip(items, rows(8, seed=1, split=split), strict=True))
    others = {tuple(row["world"].events) for other in SPLITS if other != split for row in rows(8, split=other)}
    assert not others & {tuple(row["world"].events) for row in items}
    with pytest.raises(IndexError):
        longer[1000]


def test_all_kinds_and_numbers_of_questions_come():
    asked = [question for row in rows(300) for question, *_ in spans(row)]
    past = sum("gone ?" in question for question in asked)
    now = sum(question in ASK_TEXTS for question in asked)
    alerts = sum("say it" in question for question in asked)
    assert min(past, now) > 0.08 * len(asked) and alerts > 0.35 * len(asked)
    assert past + now + alerts < 0.9 * len(asked)
    assert Counter(len(spans(row)) for row in rows(300)).keys() == {1, 2, 3}
    assert {len(spans(row)) for row in rows(20, max_queries=1)} == {1}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"kinds": {"alert": 1.0, "future": 1.0}}, "unknown kinds ['future']: expected some of"),
        ({"kinds": {"alert": 0.0}}, "no kind has a weight"),
        ({"kinds": {}}, "no kind has a weight"),
        ({"scenes": {"letter": 1.0}}, "scenes are shares in (0, 1] of ('shape', 'digit', 'count')"),
        ({"scenes": {"shape": 0.0}}, "scenes are shares in (0, 1]"),
        ({"fps": 1.0}, "miss states: give at least 2"),
        ({"num_frames": 11}, "11 frames are too few for 3 questions"),
        ({"max_queries": 0}, "too few for 0 questions"),
    ],
)
def test_wrong_arguments(kwargs, match):
    with pytest.raises(ValueError) as error:
        LiveStreamWorld(1, **kwargs)
    assert match in str(error.value)


def test_a_told_story():
    """Half a second per frame: gone from 1.0, back at 2.0, blue from 3.0 on, left from 3.5 on."""
    initial = SceneState("red", "square", None, "still", None)
    events = (
        Event("presence", 1.0, "back", "gone"),
        Event("presence", 2.0, "gone", "back"),
        Event("colour", 3.0, "red", "blue"),
        Event("motion", 3.5, "still", "left"),
    )
    world = replace(World.sample(0), kind="shape", initial=initial, events=events)
    shown = frame_facts(world, [i / 2 for i in range(8)])
    assert shown[0] == {"colour": "red", "shape": "square"}
    assert shown[1] == {"colour": "red", "shape": "square", "motion": "still"}
    assert shown[2] == shown[3] == {"presence": "gone"}
    assert shown[4] == {"colour": "red", "shape": "square", "presence": "back"}
    changes = [(2, "now gone"), (4, "now back"), (6, "now blue"), (7, "now left")]
    assert watch_answers("shape", shown, 0) == [(0, "a red square"), (1, "now still"), *changes]
    assert watch_answers("shape", shown, 2) == [(1, "a red square , still"), *changes]
    appeared = [(2, "nothing"), (4, "now a red square"), (5, "now still"), *changes[2:]]
    assert watch_answers("shape", shown, 3) == appeared
    assert tell_answers("colour", shown, 2) == [(1, "red"), (2, "nothing"), (4, "red"), (6, "blue")]
    assert tell_answers("motion", shown, 1) == [(1, "still"), (2, "nothing"), (5, "still"), (7, "left")]
    assert (former_value("colour", shown), former_value("colour", shown[:6])) == ("red", None)


@pytest.fixture(scope="module")
def tokenizer():
    return build_live_tokenizer()


def pieces(row, tokens_per_frame=1, interval=","):
    """The chat text of VideoLLM-online, in the pieces in which a stream brings it."""
    found = [f"<bos>{row['conversation'][0]['content']}\n"]
    for message in row["conversation"][1:]:
        if message["role"] == "stream":
            frames = ["<v>" * tokens_per_frame] * message["num_frames"]
            found += ["\n[", *(part for frame in frames for part in (frame, interval))]
            found[-1] = "]"  # in place of an interval after the last frame
        elif message["role"] == "user":
            found.append(f"\nUser: {message['content']}")
        else:
            found += ["\nAssistant:", f" {message['content']}", "<eos>"]
    return found


@pytest.mark.parametrize(("tokens_per_frame", "interval"), [(1, ","), (1, ""), (5, ",")])
def test_a_text_has_the_same_tokens_whole_and_in_pieces(tokenizer, tokens_per_frame, interval):
    for row in rows(20):
        parts = pieces(row, tokens_per_frame, interval)
        whole = tokenizer("".join(parts), add_special_tokens=False, return_offsets_mapping=True)
        ids = [token for part in parts for token in tokenizer(part, add_special_tokens=False)["input_ids"]]
        assert whole["input_ids"] == ids
        assert tokenizer.unk_token_id not in ids
        text = "".join(parts).lower()
        for (start, end), token in zip(whole["offset_mapping"], tokenizer.convert_ids_to_tokens(ids), strict=True):
            assert text[start:end] == token
        assert ids.count(tokenizer.convert_tokens_to_ids("<v>")) == 40 * tokens_per_frame


def test_no_punctuation_ever_merges(tokenizer):
    marks = ["?", "]", "\n", "[", ",", ".", ":", "it", " is", "?", ",", "]", "\n", "\n", "Assistant", ":"]
    ids = [tokenizer(mark, add_special_tokens=False)["input_ids"] for mark in marks]
    assert tokenizer("".join(marks), add_special_tokens=False)["input_ids"] == [token for (token,) in ids]


def test_words_come_back_from_their_tokens(tokenizer):
    for row in rows(50):
        for message in row["conversation"]:
            if "content" in message:
                ids = tokenizer(message["content"], add_special_tokens=False)["input_ids"]
                assert tokenizer.decode(ids) == message["content"]


def test_the_tokenizer_is_fast_and_saved_whole_and_begins_with_streamworlds_ids(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "".join(pieces(rows(1)[0]))
    assert loaded.is_fast and loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<bos>", "<eos>", "<pad>")
    shared = build_tokenizer().get_vocab()
    assert {word: i for word, i in tokenizer.get_vocab().items() if i < len(shared)} == shared
    assert set(KINDS) == {"alert", "changes", "now", "past"}


@pytest.mark.parametrize(("interval", "frame_num_tokens"), [(",", 1), (None, 1), (",", 3)])
def test_the_processor_labels_every_frame_with_silence_but_those_before_answers(tokenizer, interval, frame_num_tokens):
    processor = VideoLLMOnlineProcessor(
        StreamFormerVideoProcessor(), build_live_tokenizer(), None, frame_num_tokens, frame_token_interval=interval
    )
    ids = processor.token_ids()
    silence = ids["frame_token_interval_id"] or ids["eos_token_id"]
    for row in rows(20):
        found = processor.training_inputs(row["conversation"])
        frames = [i for i, token in enumerate(found["input_ids"]) if token == ids["v_placeholder_id"]]
        decisions = [found["labels"][i] for i in frames[frame_num_tokens - 1 :: frame_num_tokens]]
        answered = {frame for *_, answers in spans(row) for frame, _ in answers}
        unforeseen = {seen - 1 for _, seen, _, _ in spans(row)} | {len(row["frame_times"]) - 1}
        for frame, decision in enumerate(decisions):
            if frame in unforeseen and decision == -100:
                continue  # a question or the end comes right after it
            assert decision == (ids["response_start_ids"][0] if frame in answered else silence)
        assert decisions.count(-100) <= len(unforeseen)
        words = [
            token
            for message in row["conversation"]
            if message["role"] == "assistant"
            for token in tokenizer("Assistant: " + message["content"] + "<eos>")["input_ids"]
        ]
        learned = [label for i, label in enumerate(found["labels"]) if label != -100 and i not in set(frames)]
        newline = tokenizer.convert_tokens_to_ids("\n")
        assert [label for label in learned if label != newline] == words
