"""StreamWorld through the live path: a perfect viewer of the frames it is given scores as the theory says."""

import sys

import pytest
import torch

from streamchat_hf import (
    StreamChatForConditionalGeneration,
    StreamChatProcessor,
    StreamFormerVideoProcessor,
    tiny_checkpoint,
)
from streamchat_hf.data.streamworld_dialogue import EOS, answer, build_tokenizer
from streamchat_hf.data.streamworld_english import english_answer, english_question
from streamchat_hf.evaluation import streamworld
from streamchat_hf.evaluation.streamworld_cases import streamworld_cases
from streamchat_hf.evaluation.streamworld_facts import streamworld_facts
from training_runs import bpe_tokenizer


@pytest.fixture
def processor():
    tokenizer = build_tokenizer()
    tokenizer.padding_side = "left"
    video_processor = StreamFormerVideoProcessor(size={"height": 48, "width": 48}, fps=2)
    return StreamChatProcessor(video_processor, tokenizer, chat_template=tokenizer.chat_template)


class PerfectViewer:
    """Speaks StreamWorld's scripted answers, with nothing but the times of the frames that really arrive."""

    device = "cpu"

    def __init__(self, cases, tokenizer):
        self.cases, self.vocabulary = iter(cases), tokenizer.get_vocab()
        self.tokenizer = tokenizer

    def generate(self, input_ids, attention_mask, frames, start_time, tokens_per_second, max_new_tokens, **options):
        assert options == {"do_sample": False, "return_dict_in_generate": True}
        times = [start_time + i / tokens_per_second for i in range(max_new_tokens)]
        rows, ages = [], []
        for ids, mask, stream in zip(input_ids.tolist(), attention_mask.tolist(), frames, strict=True):
            case = next(self.cases)
            prompt = [token for token, real in zip(ids, mask, strict=True) if real]
            assert prompt[1:-1] == self.tokenizer(case.question.text)["input_ids"] and start_time == case.ask_time
            seen = list(stream)
            if not any(frame.pixel_values.any() for frame in seen):
                said = ["nothing"] * max_new_tokens
            else:
                shown = [frame.t_sec for frame in seen]
                said = [w.text for w in answer(case.world, case.question, start_time, times, shown)]
            said += [EOS] * (max_new_tokens - len(said))
            rows.append([self.vocabulary[word] for word in said])
            ages.append([time - max(frame.t_sec for frame in seen if frame.t_sec <= time) for time in times])

        class Output:
            sequences = torch.cat((input_ids, torch.tensor(rows)), dim=1)
            token_times = torch.tensor([times] * len(rows), dtype=torch.float64)
            frame_age = torch.tensor(ages, dtype=torch.float64)

        return Output()


def test_perfect_viewers_fresh_frozen_and_blind(processor):
    batches = streamworld._batches(list(streamworld_cases(24, "heldout", 3)))
    cases = [case for batch in batches for _ in streamworld.VIEWERS for case in batch]
    result = streamworld.evaluate(
        PerfectViewer(cases, processor.tokenizer), processor, seed=3, split="heldout", clips=24, progress=False
    )
    score = result["state_accuracy"]
    assert score["fresh"] == 1.0 and score["frozen"] == pytest.approx(score["oracle"], abs=0.15)
    assert result["moved"]["frozen"]["accuracy"] == 0.0 and result["unmoved"]["frozen"]["accuracy"] == 1.0
    assert score["grey"] <= score["chance"] + 0.1
    assert result["changes"]["fresh"]["reported"] == 1.0 and result["changes"]["fresh"]["false_reports"] == 0.0
    assert result["n"] == sum(row["viewer"] == "fresh" for row in result["rows"]) > 150
    assert sum(kind["n"] for kind in result["by_kind"].values()) == result["n"]
    assert {"fresh", "frozen", "grey", "chance", "n"} == set(result["by_kind"]["colour"])
    assert (result["seed"], result["split"], result["clips"]) == (3, "heldout", 24)
    fresh, frozen, grey = (result["streaming_score"][viewer] for viewer in streamworld.VIEWERS)
    assert fresh["score"] == fresh["accuracy"] == 1.0 and fresh["missed"] == 0 < frozen["missed"]
    assert fresh["n"] == result["n"] and grey["score"] < frozen["score"] < 0.7
    assert frozen["accuracy"] == score["frozen"] and frozen["due"] == fresh["due"] == grey["due"]
    assert fresh["frame_age"]["max"] < 0.5 and 1 < frozen["frame_age"]["p50"] < frozen["frame_age"]["max"] <= 9.5
    assert fresh["dropped_frames"] == 0 and result["case_scores"] == [1.0] * 24


class EnglishViewer:
    """A perfect viewer with another tokenizer: its words are several tokens, all spoken at the word's time."""

    device = "cpu"

    def __init__(self, cases, tokenizer):
        self.cases, self.tokenizer = iter(cases), tokenizer

    def generate(self, input_ids, frames, start_time, tokens_per_second, max_new_tokens, **options):
        times = [start_time + i / tokens_per_second for i in range(max_new_tokens)]
        assert (input_ids[:, -1] != self.tokenizer.pad_token_id).all()  # on whichever side it pads by itself
        rows = []
        for ids, stream in zip(input_ids, frames, strict=True):
            case, shown = next(self.cases), [frame.t_sec for frame in stream]
            assert english_question(case.question.text) in self.tokenizer.decode(ids)
            words = english_answer([w.text for w in answer(case.world, case.question, start_time, times, shown)])
            pieces = [self.tokenizer(" " * (i > 0) + word)["input_ids"] for i, word in enumerate(words)]
            ages = [time - max(t for t in shown if t <= time) for time in times]
            rows.append([(p, t, a) for ps, t, a in zip(pieces, times, ages, strict=False) for p in ps])
        assert any(len(row) > 2 * max_new_tokens for row in rows)
        length = max(map(len, rows))
        rows = [row + [(self.tokenizer.eos_token_id, *row[-1][1:])] * (length - len(row)) for row in rows]

        class Output:
            sequences = torch.cat((input_ids, torch.tensor([[p for p, _, _ in row] for row in rows])), dim=1)
            token_times = torch.tensor([[t for _, t, _ in row] for row in rows], dtype=torch.float64)
            frame_age = torch.tensor([[a for _, _, a in row] for row in rows], dtype=torch.float64)

        return Output()


def test_english_words_of_several_tokens_are_put_together_and_understood():
    tokenizer = bpe_tokenizer()
    assert tokenizer.padding_side == "right"
    video_processor = StreamFormerVideoProcessor(size={"height": 48, "width": 48}, fps=2)
    processor = StreamChatProcessor(video_processor, tokenizer)
    batches = streamworld._batches(list(streamworld_cases(12, "heldout", 3)))
    cases = [case for batch in batches for _ in streamworld.VIEWERS for case in batch]
    result = streamworld.evaluate(
        EnglishViewer(cases, tokenizer), processor, seed=3, split="heldout", clips=12, progress=False
    )
    assert result["state_accuracy"]["fresh"] == 1.0 and result["streaming_score"]["fresh"]["score"] == 1.0
    assert result["case_scores"] == [1.0] * 12
    assert result["moved"]["frozen"]["accuracy"] == 0.0 and result["unmoved"]["frozen"]["accuracy"] == 1.0
    assert {"digit", "motion"} <= set(result["by_kind"])


def test_an_answer_that_ends_early_owes_what_it_left_out(processor):
    class Silent(PerfectViewer):
        def generate(self, **inputs):
            output = super().generate(**inputs)
            output.sequences[:, inputs["input_ids"].shape[1] :] = self.vocabulary[EOS]
            return output

    batches = list(streamworld._batches(list(streamworld_cases(6))))
    silent = Silent([case for batch in batches for _ in range(3) for case in batch], processor.tokenizer)
    result = streamworld.evaluate(silent, processor, split="seen", clips=6, progress=False)
    score = result["streaming_score"]["fresh"]
    due = sum(
        fact["due"]
        for batch in batches
        for case in batch
        for fact in streamworld_facts(case.world, case.question, case.ask_time, case.word_times)
    )
    assert result["n"] == score["words"] == 0 and score["score"] == 0.0 and score["missed"] == score["due"] == due > 12


def test_a_missing_library_is_known_before_the_long_part(monkeypatch):
    monkeypatch.setitem(sys.modules, "evaluate.loading", None)
    with pytest.raises(ImportError, match=r"pip install 'streamchat-hf\[eval\]'"):
        streamworld.evaluate(model=None, processor=None)


def test_batches_share_a_moment():
    batches = list(streamworld._batches(list(streamworld_cases(60, "seen", 0))))
    assert sum(map(len, batches)) == 60
    assert all(len({case.ask_time for case in batch}) == 1 and len(batch) <= streamworld.BATCH for batch in batches)


def test_the_shipped_checkpoint_watches():
    """Far from its full score's sample, but no model that ignores the frames, or only looks once, gets through."""
    model = StreamChatForConditionalGeneration.from_pretrained(tiny_checkpoint()).eval()
    processor = StreamChatProcessor.from_pretrained(tiny_checkpoint())
    result = streamworld.evaluate(model, processor, seed=5, clips=24, progress=False)
    score = result["state_accuracy"]
    assert result["n"] > 250
    assert score["fresh"] >= 0.85 and score["frozen"] <= 0.6 and score["grey"] <= score["chance"] + 0.1
    assert result["streaming_score"]["fresh"]["score"] >= 0.85 > 0.65 >= result["streaming_score"]["frozen"]["score"]
    assert result["moved"]["frozen"]["accuracy"] <= 0.2 and result["unmoved"]["frozen"]["accuracy"] >= 0.7


def test_the_mean_of_attributes_is_over_the_same_five_for_everybody():
    by_kind = {"colour": {"fresh": 1.0, "frozen": 0.5}, "digit": {"fresh": 0.5, "frozen": None}}
    assert streamworld.mean_of_attributes(by_kind, "fresh") == pytest.approx(1.5 / 5)
    assert streamworld.mean_of_attributes(by_kind, "frozen") == pytest.approx(0.5 / 5)
    by_kind["presence"] = {"fresh": 1.0, "frozen": 0.0}  # who sees nothing new cannot be right about it
    assert streamworld.mean_of_attributes(by_kind, "fresh") == pytest.approx(1.5 / 5)
    assert streamworld.mean_of_attributes({}, "fresh") == 0.0
