import json

from streamchat_hf import tiny_checkpoint
from streamchat_hf.hub.training_facts import Stage, describe, training_facts


def test_a_log_of_one_stage(sft_log):
    facts = training_facts(sft_log)
    assert facts.stages == (Stage("sft", 40, 3.0),)
    assert facts.data == ("`streamworld`, split seen, weight 0.25", "`acme/talks`, weight 0.5", "`jsonl`, weight 0.25")
    assert facts.datasets == ("acme/talks",) and facts.base_models == ("Qwen/Qwen2-7B-Instruct",)
    assert (facts.seed, facts.commit, facts.only_streamworld) == (5, None, False)


def test_what_only_ever_saw_streamworld_is_known(sft_log):
    sft_log["recipe"] |= {"text_backbone": None, "vision_backbone": None, "datasets": [{"name": "streamworld"}]}
    assert training_facts(sft_log).only_streamworld
    assert not training_facts({**sft_log, "model": {"model_name_or_path": "acme/talker"}}).only_streamworld
    sft_log["recipe"]["datasets"].append({"name": "narrations", "annotations": "rows.json"})
    assert not training_facts(sft_log).only_streamworld


def test_paths_of_data_lose_their_folders(sft_log):
    sft_log["recipe"]["datasets"] = [{"path": "/data/secret/rows", "split": "train"}]
    facts = training_facts(sft_log)
    assert facts.data == ("`rows`, split train",) and facts.datasets == ()


def test_what_a_run_went_on_from_is_a_base_model_unless_it_is_a_folder(sft_log, tmp_path, monkeypatch):
    sft_log["recipe"] |= {"text_backbone": None, "vision_backbone": None, "datasets": None}
    monkeypatch.chdir(tmp_path)
    for name, base_models in {
        "acme/streamchat": ("acme/streamchat",),
        "runs/stage2/final": (),
        "./final": (),
        "/data/final": (),
        "runs/final": (),
    }.items():
        (tmp_path / "runs" / "final").mkdir(parents=True, exist_ok=True)
        assert training_facts({**sft_log, "model": {"model_name_or_path": name}}).base_models == base_models


def test_a_log_of_several_stages():
    log = json.loads((tiny_checkpoint() / "training_log.json").read_text())
    facts = training_facts(log)
    names = ["align", "refine", "talk", "practise", "untie", "settle"]
    assert [stage.name for stage in facts.stages] == list(log["log"]) == names
    for stage, rows in zip(facts.stages, log["log"].values(), strict=True):
        assert stage.steps == log["recipe"][stage.name]["trainer"]["max_steps"]
        assert stage.minutes == rows[-1]["train_runtime"] / 60
    assert (facts.seed, facts.commit) == (log["recipe"]["seed"], log["commit"]) and facts.only_streamworld


def test_the_description_leaves_out_what_is_not_known(sft_log):
    assert "Trained with `streamchat train`, seed 5. The recipe" in describe(training_facts(sft_log))
    assert "| sft | 40 | 3.0 |" in describe(training_facts(sft_log))
    bare = {"recipe": {**sft_log["recipe"], "datasets": None}, "arguments": {}, "log": []}
    text = describe(training_facts(bare))
    assert "Trained with `streamchat train`. The recipe" in text and "| sft | – | – |" in text
    assert "Data" not in text and "None" not in text and "commit" not in text
    assert "at commit `0123abc`" in describe(training_facts({**bare, "commit": "0123abc"}))
