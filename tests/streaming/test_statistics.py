import json
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamchat_hf.streaming.statistics import KEPT, SessionStatistics, Spread, Tally, spread

SECONDS = st.floats(0, 1e5, allow_subnormal=False)


@given(st.lists(SECONDS, min_size=1, max_size=60))
def test_percentiles_are_numpys(values):
    p50, p95, maximum = np.percentile(values, [50, 95, 100])
    assert spread(deque(values)) == Spread(pytest.approx(p50), pytest.approx(p95), maximum)


def test_no_values_have_no_percentiles():
    assert spread(deque()) is None


def test_a_tally_of_days_keeps_the_newest_values_alone():
    tally = Tally()
    for i in range(KEPT + 500):
        for values in (tally.step_seconds, tally.frame_ages, tally.token_frame_ages, tally.latencies):
            values.append(float(i))
    assert {len(v) for v in (tally.step_seconds, tally.frame_ages, tally.token_frame_ages, tally.latencies)} == {KEPT}
    assert spread(tally.frame_ages).maximum == KEPT + 499 and spread(tally.frame_ages).p50 > 500


def test_speed_is_that_of_the_newest_steps():
    tally = Tally()
    assert tally.tokens_per_second is None
    tally.step_seconds.extend([0.1, 0.3])
    assert tally.tokens_per_second == pytest.approx(5.0)


def test_to_dict_is_plain_json():
    some = Spread(0.1, 0.2, 0.3)
    whole = SessionStatistics(12.5, 10, 8, 2, 1, 3, 17, 4.0, some, some, some, 1024, 99)
    new = SessionStatistics(0.0, 0, 0, 0, 0, 0, 0, None, None, None, None, 0, 0)
    for statistics in (whole, new):
        value = json.loads(json.dumps(statistics.to_dict(), allow_nan=False))
        assert value["frames_seen"] == statistics.frames_seen
    assert whole.to_dict()["frame_age"] == {"p50": 0.1, "p95": 0.2, "maximum": 0.3}
    assert new.to_dict()["first_token_latency"] is None
