"""The augmentation has the authors' outputs, with their frequencies, and leaves a row that can be trained on."""

import copy
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamchat_hf.data.live_augment import CORRECTION, augment
from streamchat_hf.data.live_conversation import LiveTurn, check_sample, lay_out
from streamchat_hf.data.live_streamworld import LiveStreamWorld

GOLDEN = json.loads((Path(__file__).parents[1] / "fixtures/videollm_online_text/D_augment.json").read_text())
DRAWS = 3000


def stream(frames: int, learn: bool | int = True) -> dict:
    return {"role": "stream", "num_frames": frames, "learn": learn}


def user(content: str) -> dict:
    return {"role": "user", "content": content}


def assistant(content: str, learn: bool = True) -> dict:
    return {"role": "assistant", "content": content, "learn": learn}


def outputs(conversation: list[dict], draws: int = DRAWS, compat: bool = False) -> Counter:
    rng = random.Random(0)
    return Counter(json.dumps(augment(conversation, rng, compat), sort_keys=True) for _ in range(draws))


def frames(conversation: list[dict]) -> int:
    return sum(message.get("num_frames", 0) for message in conversation)


@pytest.mark.parametrize("compat", [False, True])
def test_the_golden_outputs_and_no_others(compat: bool):
    found = outputs(GOLDEN["input"], compat=compat)
    golden = {json.dumps(output["conversation"], sort_keys=True): output["count"] for output in GOLDEN["outputs"]}
    assert len(golden) == 13 and set(found) == set(golden)
    # Two samples of the same distribution: chi-squared of 12 degrees of freedom exceeds 32.9 once in a thousand.
    chi_squared = sum((found[output] - count) ** 2 / (found[output] + count) for output, count in golden.items())
    assert chi_squared < 32.9
    # And each by itself: one in sixteen, but for the conversation that stays as it is, which is four.
    for output, count in found.items():
        share = 0.25 if json.loads(output) == GOLDEN["input"] else 0.0625
        assert abs(count - DRAWS * share) < 4.5 * (DRAWS * share * (1 - share)) ** 0.5


def test_equal_states_give_equal_conversations():
    first, second = ([augment(GOLDEN["input"], random.Random(seed)) for seed in range(50)] for _ in range(2))
    assert first == second and len({json.dumps(conversation) for conversation in first}) > 5


def test_the_input_is_left_as_it_is():
    before = copy.deepcopy(GOLDEN["input"])
    outputs(GOLDEN["input"], 200)
    assert GOLDEN["input"] == before


@pytest.mark.parametrize(
    "talk", [[], [user("q"), stream(2)], [stream(3), assistant("a"), stream(2), assistant("b", False)]]
)
def test_one_answer_alone_stays(talk: list[dict]):
    assert outputs(talk, 50) == {json.dumps(talk, sort_keys=True): 50}


def one_of(talk: list[dict], *expected: list[dict], compat: bool = False) -> None:
    """All that can come out, whatever else stays."""
    found = set(outputs(talk, 400, compat))
    assert found == {json.dumps(output, sort_keys=True) for output in expected}


def test_next_to_a_question():
    # The last one is never touched; "b" is what the other answer says.
    talk = [user("q"), assistant("a"), user("r"), assistant("b")]
    one_of(
        talk,
        talk,
        [user("q"), user("r"), assistant("b")],
        [user("q"), assistant("", False), user("r"), assistant("b")],
        [user("q"), assistant("b", False), user("r"), assistant("b")],
    )


def test_right_after_a_question_and_before_a_stream():
    talk = [user("q"), assistant("a"), stream(2, 1), user("r"), assistant("a")]
    put_right = [stream(1), assistant(f"{CORRECTION}a"), stream(1, False), user("r"), assistant("a")]
    one_of(
        talk,
        [user("q"), assistant("", False), *put_right],
        [user("q"), assistant("", False), stream(2, False), *talk[3:]],
        [user("q"), stream(2, False), *talk[3:]],
        talk,
    )


def test_after_a_stream_and_before_a_question():
    talk = [user("q"), stream(3), assistant("a"), user("r"), assistant("a")]
    one_of(
        talk,
        talk,
        [user("q"), stream(3), assistant("", False), *talk[3:]],
        [user("q"), stream(3, 2), *talk[3:]],
    )


def test_what_was_not_learned_stays_so():
    # The authors' code would learn the last frame before the question as one to speak at.
    talk = [stream(2), assistant("a"), stream(4, 3), user("q"), assistant("a")]
    found = [json.loads(output) for output in outputs(talk, 400)]
    assert [stream(3, 2), user("q")] in [output[i : i + 2] for output in found for i in range(len(output))]
    for output in found:
        for message, following in itertools.pairwise(output):
            if message["role"] == "stream" and following["role"] == "user":
                assert message["learn"] is False or message["learn"] < message["num_frames"]


def test_compat_learns_all_frames_of_streams_that_moved_as_the_authors_do():
    """One before a question learned all but its last; one that was not learned at all is, where an answer moves."""
    talk = [stream(2), assistant("a"), stream(4, 3), user("q"), assistant("a")]
    put_right = [stream(1), assistant(f"{CORRECTION}a"), stream(3)]
    one_of(
        talk,
        [stream(2), assistant("", False), *put_right, *talk[3:]],
        [stream(3, 1), assistant("a"), stream(3), *talk[3:]],
        [stream(2), assistant("", False), stream(4, False), *talk[3:]],
        [stream(6, 1), *talk[3:]],
        compat=True,
    )
    talk = [stream(3, False), assistant("a"), stream(3, False), assistant("a")]
    one_of(
        talk,
        [talk[0], assistant("", False), stream(1), assistant(f"{CORRECTION}a"), stream(2), talk[3]],
        [stream(4, 2), assistant("a"), stream(2), talk[3]],
        [talk[0], assistant("", False), stream(3, False), talk[3]],
        [stream(6, 2), talk[3]],
        compat=True,
    )
    talk = [stream(3, False), assistant("a"), user("q"), assistant("a")]
    one_of(talk, talk, [talk[0], assistant("", False), *talk[2:]], [stream(3, 2), *talk[2:]], compat=True)


def test_an_answer_that_moved_has_no_time():
    talk = [dict(message, time=1.0) for message in GOLDEN["input"]]
    for output in map(json.loads, outputs(talk, 100)):
        assert all("time" not in message or message in talk for message in output)


TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "assistant"]), st.integers(1, 3), st.sampled_from("abc")),
    min_size=2,
    max_size=8,
)


@given(TURNS, st.integers(0, 10**6))
def test_rows_stay_rows(drawn, seed):
    """The same frames, and nothing that cannot be written or must not be learned."""
    turns, seen = [], 0
    for role, ahead, content in drawn:
        seen += ahead
        turns.append(LiveTurn(role, content, seen))
    times = [i / 2 for i in range(seen + 2)]
    talk = lay_out(turns, times)
    sample = {"conversation": augment(talk, random.Random(seed)), "frame_times": times, "media": "clip.mp4"}
    check_sample(sample)
    assert frames(sample["conversation"]) == frames(talk) == len(times)


@given(TURNS, st.integers(0, 10**6))
def test_compat_differs_in_what_is_learned_before_a_question_alone(drawn, seed):
    turns, seen = [], 0
    for role, ahead, content in drawn:
        seen += ahead
        turns.append(LiveTurn(role, content, seen))
    talk = lay_out(turns, [i / 2 for i in range(seen)])
    ours, theirs = (augment(talk, random.Random(seed), compat) for compat in (False, True))
    unasked = all(message["role"] == "assistant" for message in talk if message["role"] != "stream")
    assert not unasked or ours == theirs
    assert len(ours) == len(theirs)
    for i, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if own != other:
            assert {**own, "learn": True} == other and own["learn"] in (own["num_frames"] - 1, False)
            assert ours[i + 1 :] == [] or ours[i + 1]["role"] == "user"


def test_streamworld_rows_stay_rows():
    rng, rows = random.Random(0), LiveStreamWorld(length=20)
    changed = 0
    for i in range(len(rows)):
        row = rows[i]
        spoiled = {**row, "conversation": augment(row["conversation"], rng)}
        check_sample(spoiled)
        changed += spoiled["conversation"] != row["conversation"]
    assert changed > 5
