from streamchat_hf.metrics.etbench.etbench_summary import summarize


def test_a_task_is_the_mean_over_its_sources_and_a_capability_that_over_its_tasks():
    scores = {
        "rar": {"a": {"Total": 100, "Acc": 0.2}, "b": {"Total": 1, "Acc": 0.4}},
        "eca": {"a": {"Acc": 0.5}},
        "rvq": {"a": {"Acc": 0.12345}},
        "dvc": {"a": {"F1": 0.5, "SentSim": 0.25}},
    }
    summary = summarize(scores)
    assert list(summary["overall"])[:4] == ["RAR (Acc)", "EVC (Acc)", "RVQ (Acc)", "TVG (F1)"]
    assert [summary["overall"][name] for name in ("RAR (Acc)", "EVC (Acc)", "RVQ (Acc)")] == [30.0, 50.0, 12.3]
    assert [summary["overall"][name] for name in ("DVC (F1)", "DVC (Sim)", "SLC (F1)")] == [50.0, 25.0, None]
    assert summary["merged"] == {
        "Acc (ref)": 30.8,
        "F1 (gnd)": None,
        "F1 (cap)": None,
        "Sim (cap)": None,
        "Rec (com)": None,
    }
