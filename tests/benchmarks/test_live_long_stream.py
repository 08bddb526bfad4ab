import json
import sys
from statistics import fmean

import live_long_stream
from live_training_runs import write_recipe
from streamchat_hf.evaluation.videollm_online_alerts import Response
from streamchat_hf.training.live import train

RESULT = live_long_stream.Path(live_long_stream.__file__).with_name("live_long_stream.json")


def test_event_f1():
    due = [Response(3, "now red"), Response(9, "now gone")]
    assert live_long_stream.event_f1(due, due) == 1
    assert live_long_stream.event_f1(due, [Response(4, "now blue"), Response(8, "now gone")]) == 1
    assert live_long_stream.event_f1(due, [Response(4, "now blue"), Response(8, "now gone")], words=True) == 0.5
    assert live_long_stream.event_f1(due, [Response(5, "now red"), Response(9, "now gone")]) == 0.5
    # one told, one not, one said twice: 2 * 1 / (2 + 2)
    assert live_long_stream.event_f1(due, [Response(3, "now red"), Response(3, "now red")]) == 0.5
    assert live_long_stream.event_f1(due, []) == 0
    assert live_long_stream.event_f1([], [Response(1, "")]) == 0
    assert live_long_stream.event_f1([], []) == 1


def test_a_stream_in_parts_is_watched_with_one_cache(tmp_path, monkeypatch, capsys):
    final = train(write_recipe(tmp_path, max_steps=1, save_strategy="no"))
    words = ["--model", final, "--frames", 40, "--part", 10, "--context", 96, "--json", tmp_path / "long.json"]
    monkeypatch.setattr(sys, "argv", ["live_long_stream.py", *map(str, words)])
    live_long_stream.main()
    [stream] = json.loads((tmp_path / "long.json").read_text())["streams"]
    assert [row["first_frame"] for row in stream["parts"]] == [0, 10, 20, 30]
    assert all(0 <= row["f1_words"] <= row["f1"] <= 1 for row in stream["parts"])
    assert stream["parts"][0]["due"] >= 1  # what is there is told with the first frame
    assert len({row["cache_bytes"] for row in stream["parts"][1:]}) == 1
    assert max(row["cached_tokens"] for row in stream["parts"]) <= 96
    assert "| from 30 |" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n{live_long_stream.BEGIN}old\n{live_long_stream.END}")
    monkeypatch.setattr(live_long_stream, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["live_long_stream.py", "--render", str(tmp_path / "long.json")])
    live_long_stream.main()
    assert "old" not in page.read_text() and "worlds of seeds 0, a window of 96 tokens" in page.read_text()


def test_hours_do_not_change_how_well_it_speaks():
    result = json.loads(RESULT.read_text())
    assert (result["frames"], result["context"]) == (10_000, 2048)
    assert live_long_stream.table(result) in live_long_stream.PAGE.read_text()
    first, last = (fmean(stream["parts"][at]["f1"] for stream in result["streams"]) for at in (0, -1))
    assert abs(first - last) <= 0.05
    for stream in result["streams"]:
        assert len({part["cache_bytes"] for part in stream["parts"]}) == 1
