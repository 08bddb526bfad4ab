import math
import random

import pytest

from streamchat_hf.data.live_conversation import (
    LiveQuery,
    LiveTurn,
    check_sample,
    clip_frames,
    frame_grid,
    insert_queries,
    last_frame,
    lay_out,
    learned_frames,
    merge_streams,
    seen_to_tell,
    seen_when_asked,
    snap_to_fps,
)

TIMES = [i / 2 for i in range(20)]


def stream(num_frames, learn):
    return {"role": "stream", "num_frames": num_frames, "learn": learn}


def user(content="Q"):
    return {"role": "user", "content": content}


def assistant(content="A", learn=True):
    return {"role": "assistant", "content": content, "learn": learn}


def sample(conversation, **changes):
    frames = sum(message.get("num_frames", 0) for message in conversation)
    return {"conversation": conversation, "frame_times": TIMES[:frames], "media": "a.mp4", **changes}


# As the authors' code rounds, with the last frame at 10 s: time, ceil, floor, round.
ROUNDED = [
    (0, 0.0, 0.0, 0.0),
    (0.1, 0.5, 0.0, 0.0),
    (0.25, 0.5, 0.0, 0.0),
    (0.5, 0.5, 0.5, 0.5),
    (0.74, 1.0, 0.5, 0.5),
    (0.75, 1.0, 0.5, 1.0),
    (3.3, 3.5, 3.0, 3.5),
    (9.9, 10.0, 9.5, 10.0),
    (12, 10.0, 10.0, 10.0),
]


@pytest.mark.parametrize(("time", "up", "down", "near"), ROUNDED)
def test_times_are_rounded_to_frames_as_the_authors_do(time, up, down, near):
    assert snap_to_fps(time, 2, math.ceil, end=10) == up
    assert snap_to_fps(time, 2, math.floor, end=10) == down
    assert snap_to_fps(time, 2, end=10) == near


def test_a_frames_own_time_stays_whatever_floating_point_makes_of_it():
    assert 4.1 * 30 > 123 - 1e-9 and 0.1 * 3 * 10 > 3
    assert snap_to_fps(0.1 * 3, 10, math.ceil) == 0.3
    for fps in (2, 3, 7, 10, 25, 29.97, 30):
        for i in range(500):
            for rounding in (math.ceil, math.floor, round):
                assert snap_to_fps(i / fps, fps, rounding) == i / fps
    assert frame_grid(1 / 3, 2, 3) == [0.333, 0.667, 1.0, 1.333, 1.667, 2.0]


def test_frames_of_a_part_of_a_video():
    assert frame_grid(1.2, 3.1, 2) == [1.0, 1.5, 2.0, 2.5, 3.0]
    assert frame_grid(1.2, 1.3, 2) == [1.0], "the one that is shown then"
    assert [last_frame(duration, 2) for duration in (0.2, 9.9, 10.0, 10.1)] == [0.0, 9.5, 9.5, 10.0]


def test_a_question_comes_after_what_was_there_an_answer_after_what_it_tells():
    for time in [0.0, 0.3, 0.5, 4.99, 5.0, 9.5]:
        asked, told = seen_when_asked(TIMES, time), seen_to_tell(TIMES, time)
        assert TIMES[asked - 1] == snap_to_fps(time, 2, math.floor)
        assert TIMES[told - 1] == snap_to_fps(time, 2, math.ceil)
    assert seen_to_tell(TIMES, 9.6) == len(TIMES) + 1
    assert seen_when_asked([5.0], 4.0) == 0


def test_layout():
    turns = [LiveTurn("user", "Q", 2), LiveTurn("assistant", "A", 2), LiveTurn("assistant", "B", 5)]
    turns += [LiveTurn("user", "R", 6), LiveTurn("user", "S", 9)]
    assert lay_out(turns, TIMES[:13]) == [
        stream(2, 1),
        {**user(), "learn": False, "time": 0.5},
        {**assistant(), "time": 0.5},
        stream(3, True),
        {**assistant("B"), "time": 2.0},
        stream(1, 0),
        {**user("R"), "learn": False, "time": 2.5},
        stream(3, 2),
        {**user("S"), "learn": False, "time": 4.0},
        stream(4, 3),
    ]
    assert lay_out([LiveTurn("user", "Q", 0)], [3.0]) == [{**user(), "learn": False, "time": 3.0}, stream(1, 0)]


@pytest.mark.parametrize(
    ("turns", "match"),
    [
        ([("assistant", "A", 2), ("assistant", "B", 2)], "right after assistant: there is no frame between"),
        ([("assistant", "A", 0)], "right after the beginning"),
        ([("user", "Q", 4), ("assistant", "A", 3)], "comes after 4 of 20 frames"),
        ([("user", "Q", 21)], "comes after 0 of 20 frames"),
    ],
)
def test_turns_without_frames_are_refused(turns, match):
    with pytest.raises(ValueError, match=match):
        lay_out([LiveTurn(*turn) for turn in turns], TIMES)


def test_laid_out_turns_are_valid_and_teach_to_speak_before_answers_alone():
    for seed in range(300):
        rng = random.Random(seed)
        frames = rng.randint(1, 20)
        turns, seen, role = [], 0, None
        for _ in range(rng.randint(0, 8)):
            step = rng.choice((0, 0, 1, 3))
            before, role = role if step == 0 else "stream", rng.choice(("user", "assistant"))
            seen += step
            if seen > frames or (role == "assistant" and before in (None, "assistant")):
                break
            turns.append(LiveTurn(role, "words", seen))
        conversation = lay_out(turns, TIMES[:frames])
        check_sample(sample(conversation))
        said = [m for m in conversation if m["role"] != "stream"]
        assert [(m["role"], m["time"]) for m in said] == [(t.role, TIMES[max(t.seen - 1, 0)]) for t in turns]
        for message, after in zip(conversation, [*conversation[1:], {"role": None}], strict=True):
            if message["role"] == "stream":
                silent = 0 if after["role"] == "assistant" else 1
                assert learned_frames(message) == message["num_frames"] - silent


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (stream(2, True), stream(3, True), stream(5, True)),
        (stream(2, True), stream(3, 2), stream(5, 4)),
        (stream(2, True), stream(3, False), stream(5, 2)),
        (stream(2, 1), stream(3, True), stream(5, 1)),
        (stream(2, False), stream(3, True), stream(5, False)),
        (stream(1, 1), stream(1, True), stream(2, True)),
    ],
)
def test_two_streams_are_one(first, second, merged):
    conversation = [user(), first, second, assistant()]
    found = merge_streams(conversation)
    assert found == [user(), merged, assistant()] and conversation[1] is first
    assert (found[1]["learn"] is True) == (merged["learn"] is True)
    check_sample(sample(found))


def test_merging_many_and_none():
    many = [stream(1, True)] * 5
    assert merge_streams([*many, assistant(), *many, assistant()]) == [stream(5, True), assistant()] * 2
    conversation = [stream(3, 2), user(), assistant(), stream(2, True), assistant()]
    assert merge_streams(conversation) == conversation


GOOD = [{"role": "system", "content": "S"}, stream(4, 3), user(), assistant(), stream(5, True), assistant("B")]


def test_a_good_row_passes():
    check_sample(sample(GOOD))
    check_sample(sample(GOOD[1:]))
    check_sample(sample([user(), user()], media=None))
    check_sample(sample([user(), stream(3, True), assistant("", learn=False), stream(2, False)]))


@pytest.mark.parametrize(
    ("conversation", "match"),
    [
        ([stream(2, 1), stream(2, True), assistant()], "message 1 of the conversation: .* `merge_streams`"),
        ([user(), assistant(), assistant()], "message 2 of the conversation: .* join the two"),
        ([{"role": "system", "content": "S"}, assistant()], "'assistant' cannot stand right after 'system'"),
        ([assistant()], "'assistant' cannot stand at the beginning"),
        ([user(), {"role": "system", "content": "S"}], "'system' cannot stand right after 'user'"),
        ([{"role": "tool", "content": "S"}], "message 0 .* unknown role 'tool'"),
        ([user(), stream(0, False), assistant()], "'num_frames' of at least 1, not 0"),
        ([user(), stream(True, False), assistant()], "'num_frames' of at least 1, not True"),
        ([user(), stream(3, 4), assistant()], "not 4"),
        ([user(), stream(3, -1), assistant()], "not -1"),
        ([user(), stream(3, "all"), assistant()], "not 'all'"),
        ([{"role": "user"}], "a text as 'content', not None"),
        ([{**user(), "num_frames": 3}], "only a stream has 'num_frames'"),
        ([{**user(), "learn": True}], "only an assistant's words are learned"),
        ([user(), assistant(learn=3)], "only an assistant's words are learned"),
        ([stream(3, True), user()], "message 0 .* a question, which nobody can foresee; give 'learn': 2"),
        ([user(), stream(3, 3)], "message 1 .* the end; give 'learn': 2"),
        ([{**user(), "time": 3}, {**user(), "time": 2}], "message 1 .* at 2 s, after something at 3 s"),
        ([{**user(), "time": "3"}], "'time' is seconds, not '3'"),
    ],
)
def test_a_bad_conversation_is_refused_naming_the_message(conversation, match):
    row = sample([])
    row["conversation"] = conversation
    row["frame_times"] = TIMES[: sum(m["num_frames"] for m in conversation if isinstance(m.get("num_frames"), int))]
    with pytest.raises(ValueError, match=match):
        check_sample(row)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"frame_times": TIMES[:8]}, "has 9 frames, but there are 8 frame times"),
        ({"frame_times": [0.0] * 9}, "each later than the one before"),
        ({"frame_times": [*TIMES[:8], math.nan]}, "each later than the one before"),
        ({"media": None}, "a row with frames has either"),
        ({"world": "a world"}, "a row with frames has either"),
    ],
)
def test_frames_that_do_not_fit_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        check_sample(sample(GOOD, **changes))


def test_clipping_keeps_what_was_before_the_first_stream_that_is_too_much():
    long = [stream(4, 3), user(), assistant(), stream(5, True), assistant("B"), stream(2, True), assistant("C")]
    row = sample(long)
    for most, messages, frames in [(11, 7, 11), (20, 7, 11), (10, 5, 9), (9, 5, 9), (8, 3, 4), (4, 3, 4)]:
        clipped = clip_frames(row, most)
        assert clipped["conversation"] == long[:messages]
        assert clipped["frame_times"] == TIMES[:frames] and clipped["media"] == "a.mp4"
        check_sample(clipped)
    assert row == sample(long), "the row itself stays"


@pytest.mark.parametrize("learn", [True, 5, 3, False])
def test_a_first_stream_that_is_too_long_is_watched_in_silence(learn):
    row = sample([user(), stream(6, learn), assistant()])
    clipped = clip_frames(row, 3)
    assert clipped["conversation"][1:] == [stream(3, 2 if learn else 0)] and clipped["frame_times"] == TIMES[:3]
    check_sample(clipped)
    with pytest.raises(ValueError, match="at least 1 frame, not 0"):
        clip_frames(row, 0)


def timeline(name):
    """State changes at 1.2, 3.0, 3.1 and 7 s, and one after the last frame."""
    return LiveQuery(name, tuple((time, f"{name} {time}") for time in (1.2, 3.0, 3.1, 7.0, 9.8)))


def state(time):
    """What holds at a frame: the newest change that it shows."""
    return next((change for change in (9.8, 7.0, 3.1, 3.0, 1.2) if change <= time), None)


@pytest.mark.parametrize("seed", range(200))
def test_inserted_queries_tell_the_state_from_then_on(seed):
    queries = [timeline(name) for name in "abcd"]
    conversation = insert_queries(random.Random(seed), queries, TIMES)
    check_sample(sample(conversation))
    assert insert_queries(random.Random(seed), queries, TIMES) == conversation
    asked = [(m["content"], m["time"]) for m in conversation if m["role"] == "user"]
    assert 1 <= len(asked) <= 3 and len(set(asked)) == len({name for name, _ in asked}) == len({t for _, t in asked})
    expected = []
    for (name, start), (_, end) in zip(asked, [*asked[1:], ("", 9.5)], strict=True):
        told = None
        for time in TIMES:
            if start <= time <= end and state(time) != told:
                told = state(time)
                expected.append((f"{name} {told}", time))
    said = [(m["content"], m["time"]) for m in conversation if m["role"] == "assistant"]
    assert said == expected, "dropped before the question, one said at it, and every change until the next one"


def test_insertion_covers_all_numbers_of_queries_and_all_times():
    queries = [timeline(name) for name in "abcd"]
    rows = [insert_queries(random.Random(seed), queries, TIMES) for seed in range(400)]
    asked = [[m["time"] for m in row if m["role"] == "user"] for row in rows]
    assert {len(times) for times in asked} == {1, 2, 3}
    assert {time for times in asked for time in times} == set(TIMES)
    single = [insert_queries(random.Random(seed), queries, TIMES, max_queries=1) for seed in range(20)]
    assert {sum(m["role"] == "user" for m in row) for row in single} == {1}
    few = insert_queries(random.Random(0), queries[:1], TIMES[:1])
    assert [m["role"] for m in few] == ["stream", "user"], "nothing has happened yet"


@pytest.mark.parametrize(("queries", "frames", "most"), [(0, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_nothing_to_insert(queries, frames, most):
    with pytest.raises(ValueError, match=f"{queries} queries, {frames} frames, at most {most}"):
        insert_queries(random.Random(0), [timeline("a")] * queries, TIMES[:frames], most)
