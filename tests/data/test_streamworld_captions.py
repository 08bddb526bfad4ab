import itertools
import json
import re

import pytest

from scripted_endpoint import asked_captions, streamworld_script
from streamchat_hf.data.streamworld import SPLITS, World
from streamchat_hf.data.streamworld_captions import streamworld_captions
from streamchat_hf.data.streamworld_dialogue import TELL, VALUES, WATCH, questions, vocabulary
from streamchat_hf.data.synthesize_prompt import build_messages, read_answer
from streamchat_hf.data.synthesize_segment import choose_segments, list_segments, read_captions

WORLDS = [World.sample(seed, split) for split in SPLITS for seed in range(20)]


def test_captions_follow_each_other_and_fill_the_world():
    for world in WORLDS:
        captions = streamworld_captions(world)
        assert [captions[0]["start"], captions[-1]["end"]] == [0.0, world.duration]
        assert all(a["end"] == b["start"] and a["text"] != b["text"] for a, b in itertools.pairwise(captions))


def test_a_caption_is_true_all_the_time():
    for world in WORLDS:
        for caption in streamworld_captions(world):
            middle = (caption["start"] + caption["end"]) / 2
            assert caption["text"] == world.state(caption["start"]).text == world.state(middle).text


def test_captions_use_words_of_the_vocabulary_only():
    texts = [caption["text"] for world in WORLDS for caption in streamworld_captions(world)]
    assert {word for text in texts for word in text.split()} <= set(vocabulary())
    assert {"nothing", "ones", ","} <= {word for text in texts for word in text.split()}


@pytest.mark.parametrize(("option", "word"), [({"palette": "tinted"}, "tint"), ({"shapes": "odd"}, "diamond|ring")])
def test_a_world_that_no_word_names_has_no_captions(option, word):
    with pytest.raises(ValueError, match=f"no word names .*({word})"):
        streamworld_captions(World.sample(1, **option))


def test_the_scripted_model_says_what_is_true_when_it_is_said(tmp_path):
    """From the captions alone: the end-to-end script trains on what this endpoint writes."""
    path = tmp_path / "captions.jsonl"
    rows = [{"video": str(i), "captions": streamworld_captions(world)} for i, world in enumerate(WORLDS)]
    path.write_text("\n".join(map(json.dumps, rows)))
    segments = choose_segments([list_segments(video) for video in read_captions(path)], limit=600)
    kinds = set()
    for segment in segments:
        messages = build_messages(segment, [])
        assert asked_captions(messages) == [(c.start, c.end, c.text) for c in segment.captions]
        draft = read_answer(streamworld_script(messages), segment)
        words = draft.answer.split()
        assert draft.end == draft.start + (len(words) - 1) / 2
        assert {*words, *draft.instruction.split()} <= set(vocabulary())
        told = re.search(f"({'|'.join(VALUES)})", draft.instruction)
        kinds.add(told[0] if told else WATCH)
        texts = [question.text for question in (questions(TELL, told[0]) if told else questions(WATCH))]
        assert draft.instruction in texts
        for i, word in enumerate(words):
            state = WORLDS[int(segment.video)].state(draft.start + i / 2)
            assert word in ([state.tell(told[0])] if told else ["now", ".", "a", ",", "ones", *state.text.split()])
    assert kinds == {"colour", "shape", "digit", "motion", "count", WATCH}
