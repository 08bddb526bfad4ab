import json
import math
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

import real_language_model
from streamchat_hf.evaluation.streamworld import VIEWERS
from streamchat_hf.training import alignment, sft
from training_runs import bpe_tokenizer, small_model

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes" / "smollm2"
MEASURED = [ROOT / "benchmarks" / f"real_language_model{run}.json" for run in ("", "_longer")]
PROMPTS = ["What is happening?", "The person is cooking."]


def result():
    shares = dict(zip(VIEWERS, (0.75, 0.25, None), strict=True))
    return {
        "prompts": 200,
        "identical_before": 200,
        "perplexity": {"language model": 2.0, "trained": 2.05},
        "parameters": 149_000_000,
        "stages": {stage: {"steps": 10, "seconds": 600} for stage in real_language_model.STAGES},
        "threads": 2,
        "clips": 200,
        "by_kind": {
            "colour": {**shares, "chance": 1 / 6, "n": 10},
            "presence": {**shares, "fresh": 1.0, "frozen": None, "chance": 1 / 3, "n": 10},
            "shape": {**shares, "fresh": 0.85, "grey": 0.25, "chance": 0.25, "n": 10},
        },
        "others_by_kind": {"colour": {"fresh": 0.5, "frozen": 0.25, "n": 10}},
        "score": {"fresh": 0.9, "frozen": 0.4, "grey": 0.1},
    }


def load_recipe(stage, path, words):
    return (alignment if stage == "alignment" else sft).load_recipe(path, words)


def test_the_prompts_are_two_hundred_short_ones():
    prompts = real_language_model.PROMPTS.read_text().splitlines()
    assert len(prompts) == len(set(prompts)) == 200
    assert all(prompt == prompt.strip() and 10 < len(prompt) < 60 and prompt[-1] in ".?" for prompt in prompts)


def test_each_stage_begins_with_what_the_one_before_leaves_behind():
    recipes = {stage: yaml.safe_load((RECIPES / f"{stage}.yaml").read_text()) for stage in real_language_model.STAGES}
    assert [recipe.get("stage") for recipe in recipes.values()] == [None, "pretrain_stage1", "pretrain_stage2", "sft"]
    assert recipes["stage1"]["model_name_or_path"] == f"{recipes['alignment']['output_dir']}/final"
    assert recipes["stage2"]["model_name_or_path"] == f"{recipes['stage1']['output_dir']}/final"
    assert recipes["sft"]["model_name_or_path"] == f"{recipes['stage2']['output_dir']}/final"
    for stage, recipe in recipes.items():
        assert recipe["max_frames"] <= 20 and (stage == "alignment" or recipe["datasets"][0]["english"])
        fields, _, _ = load_recipe(stage, RECIPES / f"{stage}.yaml", ["--use_cpu", "true", "--bf16", "false"])
        assert getattr(fields, "train_text", True) == (stage != "sft")
    assert len(recipes["alignment"]["model_config"]["cross_attention_layers"]) <= 6


def test_perplexity_is_the_mean_surprise_of_the_answers_tokens():
    model, processor = small_model(bpe_tokenizer())
    tokenizer = processor.tokenizer
    said = [tokenizer(" cooking now")["input_ids"], tokenizer("It's a red circle")["input_ids"]]
    surprises = []
    for prompt, answer in zip(PROMPTS, said, strict=True):
        read = real_language_model.prompt_tokens(tokenizer, prompt)
        for token in answer:  # one by one
            with torch.no_grad():
                logits = model.eval()(torch.tensor([read])).logits[0, -1]
            surprises.append(-float(logits.log_softmax(-1)[token]))
            read = [*read, token]
    found = real_language_model.perplexity(model.eval(), tokenizer, PROMPTS, said)
    assert found == pytest.approx(math.exp(sum(surprises) / len(surprises)), rel=1e-4)


def test_answers_are_what_the_model_would_choose():
    model, processor = small_model(bpe_tokenizer())
    tokenizer = processor.tokenizer
    said = real_language_model.answers(model.eval(), tokenizer, PROMPTS, most_tokens=4)
    for prompt, answer in zip(PROMPTS, said, strict=True):
        read = real_language_model.prompt_tokens(tokenizer, prompt)
        assert tokenizer.decode(read).endswith("<|im_start|>assistant\n") and prompt in tokenizer.decode(read)
        with torch.no_grad():
            logits = model(torch.tensor([read + answer])).logits[0, len(read) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer and 1 <= len(answer) <= 4


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The stages that are trained in an empty folder, each with its words; nothing really is."""
    stages = []

    def train(words):
        stage, ended = Path(words[0]).stem, {"step": 7, "train_runtime": 61.6}
        _, arguments, _ = load_recipe(stage, words[0], words[1:])
        stages.append((stage, words[1:]))
        final = Path(arguments.output_dir) / "final"
        final.mkdir(parents=True)
        (final / "training_log.json").write_text(json.dumps({"log": [{"step": 3, "loss": len(stages)}, ended]}))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(real_language_model, "train", train)
    return stages


WORDS = ["--use_cpu", "true", "--bf16", "false"]


def test_what_is_finished_is_not_trained_again(trained):
    first, second = (real_language_model.train_stages([], WORDS) for _ in range(2))
    assert [stage for stage, _ in trained] == list(real_language_model.STAGES) == list(first)
    assert [row["seconds"] for row in first.values()] == [62] * 4 and second == first
    assert first["sft"]["steps"] == 7 and first["sft"]["model"] == "runs/smollm2_sft/final"


def test_another_model_is_built_once_and_the_stages_go_on_with_it(trained):
    parts = ["--text_backbone", "another/model"]
    real_language_model.train_stages(parts, WORDS)
    assert [words for _, words in trained] == [[*parts, *WORDS], WORDS, WORDS, WORDS]


def test_what_another_recipe_has_begun_does_not_count(trained):
    real_language_model.train_stages([], WORDS)
    with pytest.raises(ValueError, match="smollm2_alignment holds a run of another recipe"):
        real_language_model.train_stages(["--text_backbone", "another/model"], WORDS)
    with pytest.raises(ValueError, match="smollm2_alignment holds a run of another recipe"):
        real_language_model.train_stages([], [*WORDS, "--max_steps", "7"])
    shutil.rmtree("runs/smollm2_stage1")  # and trained anew it is not what the next one went on with
    with pytest.raises(ValueError, match="smollm2_stage2 holds a run of .* after another stage: remove it"):
        real_language_model.train_stages([], WORDS)
    with pytest.raises(ValueError, match="one_for_all holds a run of another recipe"):
        real_language_model.train_stages([], [*WORDS, "--output_dir", "runs/one_for_all"])


def test_the_table_says_what_was_asked():
    text = real_language_model.table(result())
    assert "149 million parameters, 10 + 10 + 10 + 10 steps in 40 minutes; torch's threads: 2." in text
    assert (
        "200 of 200 answers are the same" in text and "2.0000 to itself and 2.0500 after all stages: +2.50 %." in text
    )
    assert "| colour | 75.0 | 25.0 | – | 16.7 | 10 |" in text
    assert "| **mean** | 86.7 | 16.7 | 8.3 | | |" in text
    # Of the five attributes two were named.
    assert "| **mean without presence** | 32.0 | 10.0 | 5.0 | | |" in text
    assert "+70.0 and +22.0 points ahead of looking once; on as many other questions +25.0 and +5.0." in text
    assert "The `streaming_score` of the two is 0.900 and 0.400." in text


def test_the_table_goes_into_the_page(tmp_path, monkeypatch):
    page, scores = tmp_path / "page.md", tmp_path / "scores.json"
    page.write_text(f"# Page\n\n{real_language_model.BEGIN}old\n{real_language_model.END}")
    scores.write_text(json.dumps(result()))
    monkeypatch.setattr(real_language_model, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["real_language_model.py", "--render", str(scores)])
    real_language_model.main()
    assert real_language_model.table(result()) in page.read_text() and "old" not in page.read_text()


def test_the_page_shows_what_was_measured():
    page = (ROOT / "docs" / "real_language_model.md").read_text()
    assert all(real_language_model.table(json.loads(path.read_text())) in page for path in MEASURED)
