import math
from functools import partial
from itertools import pairwise

import pytest

from activation_watcher_helpers import Bell
from benchmark_helpers import LIVE, OFFICIAL, answering, live_viewer, write_video
from bridge_helpers import FAMILIES, tiny_bridge
from session_helpers import chat_model, chat_processor, nothing_left_behind
from streamchat_hf.evaluation.benchmark_protocol import Clip, Conditions, Video, Viewer, Watching, answer_row, ask_once
from streamchat_hf.streaming.answer import ask


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos"))


def test_a_clip_has_the_frames_from_its_start_and_before_its_end(video):
    processor = chat_processor()

    def times(start, end, fps=1.0):
        return [t_sec for t_sec, _ in Clip(processor, video, fps, start, end)]

    assert times(0.0, 3.0) == [0.0, 1.0, 2.0]
    assert times(0.0, math.nextafter(3.0, math.inf)) == [0.0, 1.0, 2.0, 3.0]
    assert times(2.0, 4.5, fps=2.0) == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert times(5.0, 99.0) == [0.0, 1.0, 2.0]
    assert times(0.0, 0.0) == []
    assert times(1.0 + 1e-9, 3.0) == pytest.approx([0.0, 1.0])  # a start that sums have missed by a hair


def test_official_shows_the_clip_and_hears_everything(video):
    viewer = answering(lambda question, at: "no, never")
    with nothing_left_behind():
        reply = ask_once(viewer, video, "is it ?", OFFICIAL, (2.0, 5.0))
    assert viewer.model.asked == [("is it ?", 3.0)]
    assert (reply.text, reply.late) == ("no, never", False)
    assert {frame for _, _, frame in reply.words} == {4.0}  # the world stands still
    assert [spoken for _, spoken, _ in reply.words] == [5.0, 9.0]  # and time is no matter


def test_official_is_an_answer_to_a_finished_clip(video):
    viewer = Viewer(chat_model(), chat_processor())
    model, processor, _ = viewer
    frames = list(Clip(processor, video, 1.0, 0.0, 5.0))
    told = ask(model, processor, "what is it ?", iter(frames), start_time=5.0, tokens_per_second=1, max_new_tokens=20)
    how = Conditions("official", 1.0, max_new_tokens=20)
    reply = ask_once(viewer, video, "what is it ?", how, (0.0, 5.0))
    decoded = processor.tokenizer.decode(told.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert reply.text == decoded.strip() != ""


@pytest.mark.parametrize("speed", [1.0, 2.0, 50.0])
def test_official_is_the_same_at_every_speed(video, speed):
    viewer = answering(lambda question, at: "yes")
    how = Conditions("official", 1.0, tokens_per_second=speed)
    assert ask_once(viewer, video, "?", how, (0.0, 4.0)) == ask_once(viewer, video, "?", OFFICIAL, (0.0, 4.0))


def test_streaming_sees_on_and_hears_what_is_said_by_the_deadline(video):
    viewer = answering(lambda question, at: "ab cd ef")
    with nothing_left_behind():
        reply = ask_once(viewer, video, "?", LIVE, (0.0, 3.0))  # two tokens a second, two seconds
    assert viewer.model.asked == [("?", 3.0)]
    assert (reply.text, reply.late) == ("ab cd", True)
    assert reply.words == [["ab", 3.0, 3.0], ["cd", 4.5, 4.0]]
    whole = ask_once(viewer, video, "?", LIVE, (0.0, 3.0), until=7.0)
    assert (whole.text, whole.late) == ("ab cd ef", False)
    assert whole.words == [["ab", 3.0, 3.0], ["cd", 4.5, 4.0], ["ef", 6.0, 6.0]]


def test_streaming_hears_a_token_of_the_deadline_itself_and_no_later_one(video):
    viewer = answering(lambda question, at: "abcdef")
    assert ask_once(viewer, video, "?", LIVE, (0.0, 3.3)).text == "abcde"  # 3.3 ... 5.3
    slow = Conditions("streaming", 1.0, tokens_per_second=1.0)
    assert ask_once(viewer, video, "?", slow, (0.1, 0.3)).text == "abc"  # 0.3 + 2.0 - 0.1 is less than 2.2
    assert ask_once(viewer, video, "?", slow, (0.0, 3.3), until=3.2).text == ""


def test_a_model_that_has_said_all_is_not_late_for_its_end(video):
    viewer = answering(lambda question, at: "abcde")  # the end is spoken after the deadline
    reply = ask_once(viewer, video, "?", LIVE, (0.0, 3.0))
    assert (reply.text, reply.late) == ("abcde", False)


def test_streaming_begins_at_the_start_of_the_clip_and_may_ask_behind_the_end_of_the_video(video):
    viewer = answering(lambda question, at: "ab")
    assert ask_once(viewer, video, "?", LIVE, (4.0, 6.0)).words == [["ab", 6.0, 6.0]]
    assert ask_once(viewer, video, "?", LIVE, (4.0, 60.0)).words == [["ab", 60.0, 7.0]]
    assert [at for _, at in viewer.model.asked] == [2.0, 56.0]


def test_several_questions_in_one_session_each_asked_when_the_one_before_is_answered(video):
    viewer = answering(lambda question, at: "ab" if question == "one" else "cd")
    with nothing_left_behind(), Watching(viewer, video, LIVE, start=1.0) as watching:
        watching.ask("one", at=2.0)
        heard = []
        for said in watching.listen(until=6.0):
            heard.append((said.start, said.end, said.reply.text))
            watching.ask("two", at=said.start + 2.0)
    assert heard == [(2.0, 2.5, "ab"), (4.0, 4.5, "cd"), (6.0, 6.0, "c")]
    assert [question for question, _ in viewer.model.asked] == ["one", "two", "two"]
    assert not watching.speaks_by_itself


def test_a_model_that_can_speak_by_itself_waits_for_its_question_unless_it_may(video):
    viewer = live_viewer()
    official = ask_once(viewer, video, "what ?", Conditions("official", 1.0, max_new_tokens=6), (0.0, 4.0))
    assert {(spoken >= 4.0, frame) for _, spoken, frame in official.words} == {(True, 3.0)}
    live = Conditions("streaming", 1.0, tokens_per_second=2.0, max_new_tokens=6)
    streamed = ask_once(viewer, video, "what ?", live, (0.0, 3.5))
    assert {spoken >= 3.5 for _, spoken, _ in streamed.words} == {True}
    with nothing_left_behind(), Watching(viewer, video, live, by_itself=True) as watching:
        assert watching.speaks_by_itself
        watching.ask("what ?", at=0.0)
        heard = list(watching.listen(until=6.0))
    assert len(heard) > 1 and all(before.end <= after.start <= 6.0 for before, after in pairwise(heard))


def test_an_activation_model_sees_the_frames_of_the_clip_and_says_when(video):
    bell = Bell({1.0, 3.0})  # of the clip
    viewer = answering(lambda question, at: "ab")._replace(activation=bell)
    with nothing_left_behind(), Watching(viewer, video, LIVE, start=2.0, by_itself=True) as watching:
        watching.ask("say it", at=2.5)
        heard = list(watching.listen())
    assert [(said.start, said.end, said.reply.text) for said in heard] == [(3.0, 3.5, "ab"), (5.0, 5.5, "ab")]
    assert [question for question, _ in viewer.model.asked] == ["say it", "say it"]
    assert {tuple(pixels.shape) for pixels in bell.shown} == {(3, 8, 8)}  # in its own size
    assert ask_once(viewer, video, "?", LIVE, (2.0, 4.0)).words[0][1] == 4.0  # a question is a question


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bridged_model_answers_both_ways(video, family):
    bridge = tiny_bridge(family)
    viewer = Viewer(bridge, bridge.processor)
    official = ask_once(viewer, video, "what ?", Conditions("official", 1.0, max_new_tokens=4), (0.0, 3.0))
    live = Conditions("streaming", 1.0, tokens_per_second=2.0, max_new_tokens=4)
    streamed = ask_once(viewer, video, "what ?", live, (0.0, 3.0))
    assert {frame for _, _, frame in official.words} <= {2.0} and not official.late
    assert {spoken >= 3.0 for _, spoken, _ in streamed.words} <= {True} and official.text and streamed.text


def test_the_wall_clock_counts_real_seconds(video):
    viewer = answering(lambda question, at: "ab")
    wall = Conditions("streaming", 1.0, clock="wall", deadline=60.0)
    reply = ask_once(viewer, video, "?", wall, (0.0, 0.3))
    assert reply.text == "ab" and 0.3 <= reply.words[0][1] < 60


def test_a_video_that_cannot_be_watched_is_a_row_with_an_error_and_no_path(video, tmp_path):
    viewer = answering(lambda question, at: "ab")
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.path.read_bytes()[:700])
    broken = Video("some/cut.mp4", path)
    for how in (OFFICIAL, LIVE):
        row = answer_row(broken, partial(ask_once, viewer, broken, "?", how, (0.0, 4.0)))
        assert row["answer"] is None and "cut.mp4" in row["error"] and str(tmp_path) not in row["error"]
    with pytest.raises(RuntimeError, match="of ours"):
        answer_row(broken, _defect)


def _defect():
    raise RuntimeError("a defect of ours")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"protocol": "offline"}, "protocol='offline' must be one of official, streaming"),
        ({"clock": "sun"}, "clock='sun' must be one of simulated, wall"),
        ({"tokens_per_second": None}, "the simulated clock needs tokens_per_second"),
        ({"clock": "wall"}, "the wall clock has no tokens_per_second"),
        ({"fps": 0.0}, "fps must be a positive number"),
        ({"deadline": math.inf}, "deadline must be a positive number"),
        ({"tokens_per_second": -1.0}, "tokens_per_second must be a positive number"),
    ],
)
def test_conditions_that_do_not_go_together_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Conditions(**{"protocol": "streaming", "fps": 1.0, "tokens_per_second": 1.0, **options})
