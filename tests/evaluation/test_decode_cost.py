"""What is measured and how it is counted; never how long it takes."""

import json
import sys
from statistics import median

import pytest
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM
from typer.testing import CliRunner

from streamchat_cli.main import app
from streamchat_hf.evaluation import decode_cost
from streamchat_hf.evaluation.decode_cost import CURVE, RATIOS, SMALL, SMOLLM2, measure_decode_cost
from streamchat_hf.evaluation.timing import one_thread

REPEATS = 9
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def result():
    return measure_decode_cost(SMALL, repeats=REPEATS, progress=False)


@pytest.fixture(scope="module")
def scene():
    with torch.no_grad():
        yield decode_cost._make_scene(SMALL, CPU, torch.float32)


def rows_of(result, mode):
    return [row for row in result["steps"] if row["mode"] == mode]


def test_every_ratio_is_that_of_the_medians_of_its_raw_rows(result):
    above_and_below = {
        "new_frame_over_none": ("new_frame", "no_frame"),
        "reprefill_over_append": ("reprefill_window", "append"),
        "text_only_over_qwen2": ("qwen2", "text_only"),  # tokens per second: the seconds upside down
        "late_over_full": ("late", "full"),
    }
    for name, modes in above_and_below.items():
        above, below = (median(row["seconds"] for row in rows_of(result, mode)) for mode in modes)
        assert result[name] == above / below
    assert set(above_and_below) == set(RATIOS)


def test_every_way_has_one_row_per_repeat(result):
    ratio_modes = [mode for ratio in RATIOS.values() for mode in (ratio.above, ratio.below)]
    for mode in ratio_modes:
        assert sorted(row["repeat"] for row in rows_of(result, mode)) == list(range(REPEATS))
    for mode in CURVE:
        seen = [(row["frames_seen"], row["repeat"]) for row in rows_of(result, mode)]
        assert sorted(seen) == [(frames, repeat) for frames in SMALL.frames_seen for repeat in range(7)]
    assert {row["mode"] for row in result["steps"]} == {*ratio_modes, *CURVE}
    assert all(row["seconds"] > 0 for row in result["steps"])


def test_rows_say_what_was_seen_and_spoken(result):
    seen = {mode: rows_of(result, mode)[0]["frames_seen"] for mode in ("qwen2", "no_frame", "append", "full", "late")}
    assert seen == {"qwen2": 0, "no_frame": 4, "append": 4, "full": 5, "late": 101}
    tokens = {row["mode"]: row["tokens"] for row in result["steps"]}
    assert (tokens["qwen2"], tokens["text_only"], tokens["fresh"], tokens["append"]) == (4, 4, 1, 1)


def test_all_of_it_can_be_written_as_json(result):
    value = json.loads(json.dumps(result))
    assert value["steps"] == result["steps"]
    assert value["settings"]["device"] == "cpu" and value["settings"]["repeats"] == REPEATS
    assert value["settings"]["frames_seen"] == list(SMALL.frames_seen)
    assert value["versions"]["torch"] == torch.__version__


def test_visual_memory_is_that_of_the_window_however_long_it_watched(result):
    full, late = result["memory"]
    cross_layers, kv_heads, head_dim, float32 = 1, 2, 16, 4
    expected = 2 * cross_layers * kv_heads * SMALL.window * SMALL.side**2 * head_dim * float32
    assert (full["frames_seen"], late["frames_seen"]) == (4, 100)
    assert full["visual_bytes"] == late["visual_bytes"] == expected
    assert full["cuda_bytes"] is None


def test_a_streamed_step_and_a_reprefill_compute_the_same(result, scene):
    assert result["reprefill_logit_difference"] < 1e-4
    for frames in (1, 2, 4):
        fresh, _, reprefill = (way.run(way.prepare()) for way in decode_cost._curve_ways(scene, frames))
        torch.testing.assert_close(fresh, reprefill, atol=1e-4, rtol=0)
    append, reprefill = decode_cost._appending(scene), decode_cost._reprefilling(scene, "", 4)
    torch.testing.assert_close(append.run(append.prepare()), reprefill.run(reprefill.prepare()), atol=1e-4, rtol=0)


def test_other_frames_are_found_out(scene):
    with pytest.raises(RuntimeError, match="differ by"):
        decode_cost._check_reprefill(scene._replace(visual=scene.visual.flip(0)))


def test_in_half_precision_the_difference_is_only_told():
    with torch.no_grad():
        scene = decode_cost._make_scene(SMALL, CPU, torch.bfloat16)
        decode_cost._check_text_only(scene)
        assert decode_cost._check_reprefill(scene._replace(visual=scene.visual.flip(0))) > 0
    assert scene.visual.dtype == scene.qwen2.dtype == torch.bfloat16


def test_other_logits_than_those_of_qwen2_are_found_out(scene):
    decode_cost._check_text_only(scene)
    config = scene.model.config.text_config
    with pytest.raises(RuntimeError, match="not those of Qwen2"):
        decode_cost._check_text_only(scene._replace(qwen2=Qwen2ForCausalLM(config).eval()))


def test_qwen2_has_the_models_own_weights(scene):
    assert scene.qwen2.model.norm.weight.data_ptr() == scene.model.model.language_model.norm.weight.data_ptr()


@pytest.mark.parametrize("new_frame", [True, False])
def test_every_repeat_begins_from_the_same_state(scene, new_frame):
    cache = decode_cost._watched(scene, 3)
    way = decode_cost._stepping(scene, "step", cache, new_frame)
    first, second = (way.run(way.prepare()) for _ in range(2))
    assert torch.equal(first, second)
    assert cache.get_seq_length() == SMALL.text_tokens - 1 and cache.streams[0].frames_taken == 3
    assert way.frames_seen == 3 + new_frame


def test_a_broken_bound_is_measured_once_more_and_the_second_time_counts(monkeypatch):
    calls = []

    def fake(ways, repeats, device):
        modes = [way.mode for way in ways]
        calls.append(modes)
        seconds = dict.fromkeys(modes, 1.0)
        if "no_frame" in modes:  # broken, then kept
            seconds["new_frame"] = (1.5, 1.05)[calls.count(modes) - 1]
        if "append" in modes:  # broken twice
            seconds["reprefill_window"] = (3.0, 4.0)[calls.count(modes) - 1]
        return [{"mode": way.mode, "frames_seen": way.frames_seen, "seconds": seconds[way.mode]} for way in ways]

    monkeypatch.setattr(decode_cost, "time_in_turn", fake)
    result = measure_decode_cost(SMALL, repeats=7, progress=False)
    assert (result["new_frame_over_none"], result["reprefill_over_append"]) == (1.05, 4.0)
    assert (result["text_only_over_qwen2"], result["late_over_full"]) == (1.0, 1.0)
    assert result["measured_again"] == ["new_frame_over_none", "reprefill_over_append"]
    assert [len(rows_of(result, mode)) for mode in ("new_frame", "append", "late")] == [1, 1, 1]
    assert len(calls) == 4 + 2 + len(SMALL.frames_seen)


def test_the_measured_text_model_has_the_size_of_smollm2():
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**SMOLLM2.text_config, tie_word_embeddings=True))
    biases = 30 * (576 + 192 + 192)  # of queries, keys and values, which SmolLM2 does not have
    assert sum(parameter.numel() for parameter in model.parameters()) - biases == 134_515_008
    assert (SMOLLM2.window, SMOLLM2.side**2, SMOLLM2.text_tokens, SMOLLM2.late) == (32, 64, 64, 10**4)


def test_threads_and_random_numbers_are_left_as_they_were(result, monkeypatch):
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    before = torch.get_rng_state()
    with one_thread():
        decode_cost._make_scene(SMALL, CPU, torch.float32)
    assert threads == [1, torch.get_num_threads()]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "meta"}, "'meta' cannot be measured"),
        ({"dtype": "float64"}, "'float64' must be one of float32, bfloat16"),
        ({"repeats": 6}, "6 repeats are too few"),
    ],
)
def test_what_cannot_be_measured_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        measure_decode_cost(SMALL, **options)


def test_cuda_is_refused_where_there_is_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'cuda' cannot be measured here"):
        measure_decode_cost(SMALL, device="cuda")


def run(*args, code=0):
    outcome = CliRunner().invoke(app, ["bench", "decode", *map(str, args)])
    assert outcome.exit_code == code, outcome.output
    return outcome


def cells(output):
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]


@pytest.fixture
def measured(result, monkeypatch):
    calls = []
    monkeypatch.setattr(decode_cost, "measure_decode_cost", lambda *args, **kwargs: calls.append(args) or result)
    monkeypatch.setenv("COLUMNS", "160")
    return calls


def test_the_command_prints_tables_and_writes_rows_and_plot(result, measured, tmp_path):
    path, plot = tmp_path / "decode.json", tmp_path / "decode.png"
    output = run("--small", "--json", path, "--plot", plot, "--repeats", 8, "--dtype", "bfloat16").output
    assert measured == [(SMALL, "cpu", "bfloat16", 8)]
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert Image.open(plot).format == "PNG" and f"plot: {plot}" in output.replace("\n", "")
    table = cells(output)
    assert [row[1] for row in table[:4]] == [f"{result[name]:.3f}" for name in RATIOS]
    assert [row[2:4] for row in table[:4]] == [["≥ 0.97", "–"], ["≤ 1.10", "–"], ["≥ 12.00", "–"], ["≤ 1.05", "–"]]
    assert [row[0] for row in table[4:8]] == [str(frames) for frames in SMALL.frames_seen]
    assert table[-1][0] == "100" and table[-1][-1] == "–"


def test_at_full_size_the_command_says_which_bounds_hold(result, measured):
    result["new_frame_over_none"], before = 1.2, result["new_frame_over_none"]
    try:
        verdicts = [row[3] for row in cells(run().output)[:4]]
    finally:
        result["new_frame_over_none"] = before
    assert measured == [(SMOLLM2, "cpu", "float32", 15)]
    assert verdicts == [
        "no" if name == "new_frame_over_none" or not RATIOS[name].holds(result[name]) else "yes" for name in RATIOS
    ]


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_missing_folder_is_told_before_anything_is_measured(measured, option):
    outcome = run(option, "/no/such/folder/file.png", code=1)
    assert outcome.stderr == "error: /no/such/folder: no such folder\n" and measured == []


def test_without_matplotlib_one_line_says_which_extra_to_install(measured, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "streamchat_hf.evaluation.decode_cost_plot", raising=False)
    outcome = run("--plot", tmp_path / "plot.png", code=1)
    assert outcome.stderr == "error: a plot needs matplotlib.figure: pip install 'streamchat-hf[bench]'\n"
    assert measured == [] and "error" not in run().output
