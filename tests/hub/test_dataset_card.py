import json

import pytest

from streamchat_hf.data.dense_instruction import FEATURES, DenseInstruction
from streamchat_hf.hub.dataset_card import render_dataset_card

ROW = {"id": "a", "kind": "text", "turns": [{"instruction": "what is red ?", "answer": "a colour"}]}


@pytest.fixture
def builder(tmp_path):
    rows = tmp_path / "rows.jsonl"
    broken = {**ROW, "turns": [{"instruction": "", "answer": "a colour"}]}
    rows.write_text("".join(json.dumps(row) + "\n" for row in [ROW] * 1200 + [broken]))
    return DenseInstruction(config_name="jsonl", annotations=rows, cache_dir=tmp_path / "cache")


def test_card_says_what_the_builder_knows(builder, hub):
    builder.download_and_prepare()
    card = render_dataset_card(builder, "me/talks", "cc-by-4.0")
    assert (card.data.license, card.data.pretty_name) == ("cc-by-4.0", "talks")
    assert card.data.size_categories == ["1K<n<10K"]
    lines = card.content.splitlines()
    assert "| train | 1,200 |" in lines and 'rows = load_dataset("me/talks", split="train")' in lines
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == [
        *(name for name in FEATURES),
        *(f"turns.{name}" for name in FEATURES["turns"].feature),
    ]
    assert "| `turns.word_times` | list of float64 | when each word is spoken |" in lines
    [reason] = builder.bad_rows.counts
    assert f"Left out while reading, because it could not be used: 1 x {reason}." in lines
    card.validate()
    assert [request.status for request in hub.requests] == [200]


def test_tables_have_no_gaps(builder):
    builder.download_and_prepare()
    assert "|\n\n|" not in render_dataset_card(builder, "me/talks").content


def test_rows_have_to_be_there(builder):
    with pytest.raises(ValueError, match="call download_and_prepare"):
        render_dataset_card(builder, "me/talks")
