import json
import statistics
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import ablations
from streamchat_hf.data.annotations import BadRows, MediaFiles
from streamchat_hf.data.live_annotations import read_livechat
from streamchat_hf.data.streamworld_dataset import StreamWorldDataset, StreamWorldMix
from streamchat_hf.data.streamworld_dialogue import KIND_OF
from streamchat_hf.evaluation.streamworld_cases import streamworld_cases

ROOT = Path(__file__).parents[2]
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT |= {"model_type": "qwen2", "num_key_value_heads": 2}
SMALL = {"clips": 8, "max_steps": 2, "warmup_steps": 1, "bf16": False, "text_config": TEXT, "use_cpu": True}
SMALL |= {"per_device_train_batch_size": 2, "global_batch_size": 2, "logging_steps": 1}
MEASURED = ROOT / "benchmarks" / "ablations.json"


def recipe(variant):
    return yaml.safe_load((ROOT / "recipes" / "ablations" / f"{variant}.yaml").read_text())


def row(variant, seed, scores, **numbers):
    numbers = {"steps": 9, "parameters": 3_000_000, "score": 0.5, "fresh": 0.9, "frozen": 0.4, **numbers}
    numbers |= {"cpu_seconds": 900, "clips": len(scores)}
    return {"variant": variant, "seed": seed, "case_scores": scores, **numbers}


def changes(one, other):
    """What differs between two recipes, with dictionaries in them taken apart."""
    found = {}
    for key in one | other:
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found |= changes(a, b)
        elif a != b and key != "output_dir":
            found[key] = b
    return found


def test_each_recipe_differs_from_the_full_one_in_what_its_name_says():
    full = recipe("full")
    assert {name: changes(full, recipe(name)) for name in ablations.VARIANTS if name != "interleaved"} == {
        "full": {},
        "no_v_ffn": {"visual_ffn": False},
        "tanh_gate": {"gate": "tanh"},
        "own_parameters": {"share_cross_attention": False},
        "no_dense_instructions": {"datasets": [{**full["datasets"][0], "offline": True}]},
    }
    baseline = recipe("interleaved")
    same = ("max_steps", "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "adam_beta2", "bf16")
    assert [baseline[key] for key in same] == [full[key] for key in same]
    assert baseline["per_device_train_batch_size"] == full["global_batch_size"]
    assert set(ablations.VARIANTS) == {path.stem for path in (ROOT / "recipes" / "ablations").glob("*.yaml")}


def test_runs_of_a_seed_see_the_same_clips(tmp_path):
    made = {
        name: ablations.variant_recipe(name, 5, tmp_path / name, {"clips": 6, "max_steps": 7})
        for name in ablations.VARIANTS
    }
    assert {one["seed"] for one in made.values()} == {5} and {one["max_steps"] for one in made.values()} == {7}
    sources = {name: one["datasets"][0] for name, one in made.items()}
    del sources["interleaved"]
    assert all((source["clips"], source["seed"]) == (6, 5) for source in sources.values())
    assert "clips" not in made["full"]


def test_the_baseline_learns_from_as_many_rows_a_step(tmp_path):
    for batch in ({}, {"per_device_train_batch_size": 4}, {"per_device_train_batch_size": 4, "global_batch_size": 8}):
        full, baseline = (
            ablations.variant_recipe(name, 5, tmp_path / name, {"clips": 2, **batch})
            for name in ("full", "interleaved")
        )
        rows = baseline["per_device_train_batch_size"] * baseline["gradient_accumulation_steps"]
        assert rows == full["global_batch_size"]


def test_the_baseline_answers_from_what_has_been_seen_by_then(tmp_path):
    source = ablations.write_conversations(tmp_path / "rows.json", 8, 5)
    read = read_livechat(source["path"], BadRows(), MediaFiles(), source["folder"], from_start=source["from_start"])
    seen = [(row["frame_times"][0], row["conversation"][0].get("num_frames")) for row in read]
    samples = StreamWorldDataset(8, 5, "train", StreamWorldMix(stalled=0.0))
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert 6 <= len(rows) <= 8
    for line in rows:
        assert (Path(source["folder"]) / f"{line['video_uid']}.mp4").is_file()
        sample = samples[int(line["video_uid"])]
        asked = {turn.question.text: turn for turn in sample.turns}
        for question, said in zip(line["conversation"][::2], line["conversation"][1::2], strict=True):
            turn = asked[question["content"]]
            state = sample.world.state(turn.ask_time)
            words = said["content"].split()
            assert question["time"] == said["time"] == turn.ask_time and len(words) == len(turn.words)
            told = [word for word in words if KIND_OF.get(word, "presence") != "presence"]
            assert all(word == state.tell(KIND_OF[word]) for word in told)
    # All that had been seen when the first question came.
    asked = [line["conversation"][0]["time"] for line in rows]
    assert seen == [(0.0, int(2 * time) + 1) for time in asked]


def test_outcomes_are_counted_seed_by_seed_and_question_by_question():
    rows = [row("full", 0, [1.0, 0.5, None, 0.2]), row("tanh_gate", 0, [0.5, 0.5, 0.0, 0.4])]
    rows += [row("tanh_gate", 1, [1.0] * 4), row("full", 2, [0.0] * 4), row("tanh_gate", 2, [0.0, 1.0, 1.0, 1.0])]
    assert ablations.outcomes(rows, "tanh_gate") == [
        {"win": 25.0, "tie": 50.0, "loss": 25.0},
        {"win": 75.0, "tie": 25.0, "loss": 0.0},
    ]


def test_table_has_means_and_deviations():
    rows = [row("full", seed, [0.5, 0.5], score=0.8 + 0.1 * seed) for seed in range(2)]
    rows += [row("no_v_ffn", 0, [0.4, 0.5]), row("no_v_ffn", 1, [0.4, 0.6])]
    rows += [row("interleaved", 0, [0.9, 0.5]), row("interleaved", 1, [0.5, 0.5])]
    lines = ablations.table(rows).splitlines()
    assert lines[2] == "| StreamChat | 3.00 M | 0.850 ± 0.071 | 90.0 ± 0.0 | 40.0 ± 0.0 | – | – | – |"
    assert lines[3].endswith("| 25 / 25 / 50 | 25.0 ± 35.4 | 18 / 46 / 36 |")
    assert "| 25 / 75 / 0 | -25.0 ± 35.4 | 34 / 22 / 44 |" in lines[4]
    assert "Seeds: 2. Steps: 9. Questions: 2. Training: 1.5 CPU hours." in lines
    assert 'CPU hours. Unlike in the recipes: `{"max_steps": 9}`.' in ablations.table(rows, {"max_steps": 9})


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        ([20, 22, 30], "as in the paper"),
        ([-20, -22, -30], "**unlike in the paper**"),
        ([20, -1, 22], "no clear difference"),  # one seed says otherwise
        ([1, 2, 40], "no clear difference"),  # the spread is larger than the mean
        ([10, 20, 30], "no clear difference"),  # of three seeds chance shows as much in one of thirteen cases
        ([0, 0, 0], "no clear difference"),
        ([30], "no clear difference"),  # of one seed no spread is known
    ],
)
def test_only_what_is_clear_is_called_like_or_unlike_the_paper(behind, said):
    against = [{"win": 40.0, "tie": 60.0 - value, "loss": 40.0 + value} for value in behind]
    assert ablations.verdict("x", against, (18, 46, 36)).startswith(f"- x: {said}. ")


def test_chance_of_a_mean_is_students():
    # With two degrees of freedom the distribution has a closed form.
    for differences in ([20.0, 22.0, 30.0], [-3.0, 1.0, 5.0]):
        t = statistics.fmean(differences) / (statistics.stdev(differences) / 3**0.5)
        exact = 1 - abs(t) / (2 + t * t) ** 0.5
        assert ablations.chance_of_mean(differences) == pytest.approx(exact)
    assert ablations.chance_of_mean([5.0]) == ablations.chance_of_mean([0.0, 0.0]) == 1.0


def test_chance_is_that_of_tossing_a_coin():
    assert ablations.chance_of(0, 3) == ablations.chance_of(3, 0) == 0.25
    assert ablations.chance_of(2, 2) == ablations.chance_of(0, 0) == 1.0
    tosses = [bin(throw).count("1") for throw in range(2**12)]
    assert ablations.chance_of(3, 9) == sum(heads <= 3 or heads >= 9 for heads in tosses) / 2**12


def test_only_the_very_same_run_is_not_done_again(tmp_path, monkeypatch):
    made = []

    class Trainer:
        def __init__(self, variant, path):
            self.model, self.state = torch.nn.Linear(1, 1), SimpleNamespace(global_step=1, log_history=[])

        def train(self):
            made.append(1)
            if len(made) == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(ablations, "build", Trainer)
    monkeypatch.setattr(ablations, "measure", lambda trainer, variant, clips: {"case_scores": [0.0] * clips})

    def run(steps, clips):
        return ablations.run("full", 0, tmp_path, {"max_steps": steps}, clips)

    assert run(5, 2) == run(5, 2) and len(made) == 1
    assert len(run(5, 3)["case_scores"]) == 3 and len(made) == 2  # other questions
    with pytest.raises(KeyboardInterrupt):
        run(6, 3)  # another recipe, interrupted
    run(6, 3)
    assert len(made) == 4


def test_a_fixed_context_does_not_see_what_comes_after_the_question(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(ablations.variant_recipe("interleaved", 5, tmp_path, SMALL)))
    trainer = ablations.build("interleaved", path)
    viewer = ablations.FixedContext(trainer.model.eval(), trainer.processing_class)
    asker = viewer.asker()
    asker.tokenizer.padding_side = "left"
    case = next(iter(streamworld_cases(1)))

    class Frame:
        def __init__(self, t_sec, fill):
            self.t_sec, self.pixel_values = t_sec, torch.full((3, 48, 48), fill)

    inputs = asker.apply_chat_template(
        [[{"role": "user", "content": case.question.text}], [{"role": "user", "content": "what do you see ?"}]],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    said = []
    for later in (0.0, 1.0):
        streams = [[Frame(0.0, 0.1), Frame(0.5, 0.2), Frame(1.0, later)] for _ in range(2)]
        said.append(viewer.generate(**inputs, frames=streams, start_time=0.5, tokens_per_second=2.0, max_new_tokens=4))
    assert torch.equal(said[0].sequences, said[1].sequences)
    assert said[0].token_times[1].tolist()[:2] == [0.5, 1.0] and said[0].frame_age[1].tolist()[:2] == [0.0, 0.5]


@pytest.mark.slow
def test_every_variant_from_the_command_to_the_page(tmp_path, monkeypatch, capsys):
    result, page = tmp_path / "rows.json", tmp_path / "page.md"
    words = ["--seeds", "3", "--set", json.dumps(SMALL), "--clips", "3", "--runs", tmp_path / "runs", "--json", result]
    monkeypatch.setattr(ablations, "PAGE", page)
    monkeypatch.setattr(ablations, "PICTURE", tmp_path / "picture.png")
    monkeypatch.setattr(sys, "argv", ["ablations.py", *map(str, words)])
    ablations.main()
    printed, first = capsys.readouterr().out, result.read_text()
    assert [line["variant"] for line in json.loads(first)["rows"]] == list(ablations.VARIANTS)
    done = tmp_path / "runs" / "tanh_gate_3" / "row.json"
    when = done.stat().st_mtime_ns
    ablations.main()  # nothing is trained again
    assert result.read_text() == first and done.stat().st_mtime_ns == when
    page.write_text(f"# Page\n\n{ablations.BEGIN}old\n{ablations.END}")
    monkeypatch.setattr(sys, "argv", ["ablations.py", "--render", str(result)])
    ablations.main()
    assert "old" not in page.read_text() and printed.splitlines()[-5] in page.read_text()
    assert (tmp_path / "picture.png").stat().st_size > 1000


def measured():
    if not MEASURED.is_file():
        pytest.skip("the ablations have not been run")
    return json.loads(MEASURED.read_text())


def test_the_page_shows_what_was_measured():
    assert ablations.table(measured()["rows"]) in (ROOT / "docs" / "ablations.md").read_text()


@pytest.mark.slow
def test_fifty_steps_reproduce_the_first_logged_losses(tmp_path):
    """Of the first run of the full model, which is the one that all others are compared with."""
    from transformers import TrainerCallback

    class StopAtFifty(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step >= 50

    result = measured()
    first = next(line for line in result["rows"] if line["variant"] == "full")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(ablations.variant_recipe("full", first["seed"], tmp_path, result["set"])))
    trainer = ablations.build("full", path)
    trainer.add_callback(StopAtFifty())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses == pytest.approx(first["losses"], rel=0.005)
