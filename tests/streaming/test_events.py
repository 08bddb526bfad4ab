import dataclasses
import math
import typing

import pytest

from streamchat_hf.streaming.answer import Answer
from streamchat_hf.streaming.events import Event, FrameSeen, ResponseEnded, ResponseStarted, Silence, Token


def test_ages_are_the_time_between_a_frame_and_what_followed():
    assert FrameSeen(t_sec=1.5, time=2.25).age == 0.75
    assert Token(id=5, text="up", time=3.0, frame_time=1.5).frame_age == 1.5


def test_before_the_first_frame_there_is_no_age():
    assert math.isnan(Token(5, "up", 3.0, math.nan).frame_age)


def test_an_event_is_one_of_five_and_cannot_be_changed():
    answer = Answer("why ?", 1.0, [], [], [], [])
    events = [
        *(FrameSeen(0.0, 0.5), Silence(0.5), ResponseStarted("why ?", 1.0)),
        *(Token(5, "up", 1.0, 0.0), ResponseEnded(answer, "interrupted")),
    ]
    assert {type(event) for event in events} == set(typing.get_args(Event))
    for event in events:
        with pytest.raises(dataclasses.FrozenInstanceError):
            event.time = 7.0
        assert dataclasses.replace(event) == event
