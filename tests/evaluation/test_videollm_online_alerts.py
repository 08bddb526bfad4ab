"""Watching live: who knows what is due says it in time by every learning method, and what others say is counted."""

import pytest
import torch

from live_training_runs import speaker as build
from streamchat_hf.data.live_methods import METHODS
from streamchat_hf.data.live_streamworld import LiveStreamWorld
from streamchat_hf.evaluation.videollm_online_alerts import (
    ALWAYS,
    Response,
    alert_metrics,
    expected_responses,
    match_responses,
    watch_row,
)

ALERTS = LiveStreamWorld(12, num_frames=14, kinds={"alert": 1.0}, max_queries=1, never=0.0)


def knowing_live(monkeypatch, model, processor, row, method, shift=0, wrong=False):
    """Lets the live path's logits know when what is due, `shift` frames later."""
    config, read = model.config, model._read
    due = {response.frame + shift: response.text for response in expected_responses(row)}

    def known(cache, ids, keep, frames=()):
        seen = len([token for token in cache.ids if token == config.v_placeholder_id])
        logits = torch.zeros_like(read(cache, ids, keep, frames))
        history = cache.ids[: len(cache.ids) - len(ids)] + ids
        for n, j in enumerate(keep):
            tokens = history[: len(history) - len(ids) + j + 1]
            frame = tokens.count(config.v_placeholder_id) // config.frame_num_tokens - 1
            text = due.get(frame)
            words = [] if text is None else processor.tokenizer(text)["input_ids"]
            words = words[::-1] if wrong else words
            if tokens[-1] == config.v_placeholder_id:
                # Who gives an answer to every frame decides by its words, not at the frame.
                speaks = text is not None and method != "per-frame"
                token = config.response_start_ids[0] if speaks else config.silence_token_id
            else:
                said = tokens[::-1].index(config.response_start_ids[-1])
                token = [*words, config.eos_token_id][min(said, len(words))]
            logits[n, token] = 50.0
        assert seen >= 0
        return logits

    monkeypatch.setattr(model, "_read", known)


@pytest.mark.parametrize("method", METHODS)
def test_the_live_path_finds_what_was_due(monkeypatch, method):
    model, processor = build()
    for i in range(6):
        row = ALERTS[i]
        due = expected_responses(row)
        with monkeypatch.context() as patch:
            knowing_live(patch, model, processor, row, method)
            result = alert_metrics(model, processor, [row], method=method)
            assert watch_row(model, processor, row, method) == due
        assert result["on_time"] == result["correct"] == 1.0 and result["events"] == len(due)
        assert result["false_alarms"] == result["frame_diff"] == result["missed"] == 0
        assert result["rows"] == [{"due": [tuple(one) for one in due], "said": [tuple(one) for one in due]}]


def test_late_and_wrong_answers_are_told_apart(monkeypatch):
    model, processor = build()
    row = next(ALERTS[i] for i in range(12) if expected_responses(ALERTS[i])[-1].frame < 11)
    due = expected_responses(row)
    knowing_live(monkeypatch, model, processor, row, "streaming", shift=2)
    for tolerance, share in ((1, 0.0), (2, 1.0)):
        result = alert_metrics(model, processor, [row], tolerance)
        assert result["on_time"] == share == 1 - result["false_alarms"] and result["frame_diff"] == 2.0
        assert result["correct"] == (1.0 if share else None)
    monkeypatch.undo()
    knowing_live(monkeypatch, model, processor, row, "streaming", wrong=True)
    result = alert_metrics(model, processor, [row])
    assert result["on_time"] == 1.0 and result["correct"] == 0.0 and result["events"] == len(due)


def test_who_says_nothing_misses_all_and_who_always_speaks_raises_false_alarms():
    model, processor = build()
    rows = [ALERTS[i] for i in range(3)]
    events = sum(len(expected_responses(row)) for row in rows)
    silent = alert_metrics(model, processor, rows, threshold=1e-12)
    assert silent["missed"] == silent["events"] == events and silent["false_alarms"] == 0.0 == silent["on_time"]
    loud = alert_metrics(model, processor, rows, threshold=ALWAYS, max_new_tokens=2)
    assert loud["on_time"] == 1.0 and loud["responses"] > 2 * events
    assert loud["false_alarms"] == pytest.approx(1 - events / loud["responses"])


def test_each_event_has_one_response_the_nearest_first():
    due = [Response(2, "a"), Response(6, "b"), Response(9, "c")]
    said = [Response(frame, "x") for frame in (1, 3, 7)]
    found = match_responses(due, said)
    assert [match.response for match in found] == [said[0], said[2], said[1]]
    assert [match.response for match in match_responses(due, said[:1])] == [said[0], None, None]
    assert match_responses([], said) == []


def test_frames_are_shown_as_asked(monkeypatch):
    """Shuffled frames are other frames: what a random model thinks of them changes."""
    model, processor = build()
    row, silence = ALERTS[0], []
    refresh = type(model).refresh_visual

    def watched(self, cache, frames, threshold=None):
        refresh(self, cache, frames, threshold)
        silence.extend(cache.silence)

    monkeypatch.setattr(type(model), "refresh_visual", watched)
    watch_row(model, processor, row, threshold=1e-12)
    watch_row(model, processor, row, threshold=1e-12, see=lambda pixels: pixels)
    watch_row(model, processor, row, threshold=1e-12, see=lambda pixels: pixels.flip(0))
    first, again, turned = torch.tensor(silence).view(3, -1)
    assert torch.equal(first, again) and not torch.allclose(first, turned)
