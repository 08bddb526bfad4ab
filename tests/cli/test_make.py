import inspect
import json
import re
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, BertConfig, BertModel, SiglipVisionConfig, SiglipVisionModel

from cli_helpers import run
from published_adapter import published
from scripted_endpoint import Reply, ScriptedEndpoint, streamworld_script
from streamchat_cli.make import (
    LIVE_MEANINGS,
    MEANINGS,
    STREAM_EVAL_MEANINGS,
    live_dialogues_command,
    stream_eval_command,
    synthesize_command,
)
from streamchat_hf.data import live_dialogue, stream_eval_make
from streamchat_hf.data.stream_eval_prompt import CHECK_SYSTEM
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_captions import streamworld_captions
from streamchat_hf.data.streamworld_dialogue import build_tokenizer
from streamchat_hf.data.synthesize import OUTCOMES
from streamchat_hf.data.synthesize import synthesize as synthesize_library
from streamchat_hf.modeling.modeling_streamformer import StreamFormerModel


@pytest.fixture
def captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    lines = [{"video": f"{i}.mp4", "captions": streamworld_captions(World.sample(i))} for i in range(10)]
    lines.append({"video": "short.mp4", "captions": [{"start": 0, "end": 1, "text": "nothing"}]})
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def synthesize(captions, *options, code=0):
    words = ("data", "synthesize", captions, "--out", captions.with_name("out.jsonl"), "--model", "tiny", *options)
    result = run(*words, code=code, COLUMNS="120")
    return " ".join(re.sub("[\u2500-\u257f]", " ", result.output).split())  # without the table's lines


def test_every_outcome_has_a_meaning():
    assert tuple(MEANINGS) == OUTCOMES
    assert set(STREAM_EVAL_MEANINGS) == set(stream_eval_make.OUTCOMES)
    assert tuple(LIVE_MEANINGS) == live_dialogue.OUTCOMES


def test_the_defaults_are_those_of_the_library():
    said, library = (inspect.signature(function).parameters for function in (synthesize_command, synthesize_library))
    for name in ("seed", "limit", "longest", "workers", "review", "unread", "threshold"):
        assert said[name].default == library[name].default
    functions = stream_eval_command, stream_eval_make.make_stream_eval
    said, library = (inspect.signature(function).parameters for function in functions)
    for name in ("seed", "limit", "longest", "workers", "review"):
        assert said[name].default == library[name].default
    functions = live_dialogues_command, live_dialogue.write_live_dialogues
    said, library = (inspect.signature(function).parameters for function in functions)
    for name in ("seed", "queries", "workers"):
        assert said[name].default == library[name].default


def test_a_run_writes_its_data_and_prints_its_counts(captions, tmp_path):
    options = ("--json", tmp_path / "run.json", "--review", tmp_path / "review.yaml", "--limit", 12, "--seed", 3)
    with ScriptedEndpoint(streamworld_script) as endpoint:
        output = synthesize(
            captions, "--base-url", endpoint.url, "--workers", 2, "--unread", 4, "--longest", 8, *options
        )
        assert {request.body["model"] for request in endpoint.requests} == {"tiny"}
    result = json.loads((tmp_path / "run.json").read_text())
    assert (result["asked"], result["unread"], result["silent_videos"]) == (12, 4, 1)
    assert result["counts"]["kept"] + result["counts"]["duplicate"] == 12
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == result["counts"]["kept"]
    assert rows[0]["made_by"]["seed"] == 3
    for said in (f"kept {len(rows)} written", "broken json 0", "answered in this run: 12", "to be read: 4 entries of"):
        assert said in output
    assert "videos without captions for a segment of at most 8 s: 1" in output


def test_a_stream_eval_set_is_made_and_its_counts_are_printed(captions, tmp_path):
    def script(messages, before):
        checks = messages[0]["content"] == CHECK_SYSTEM
        return '{"visible": true, "needed": true, "live": true}' if checks else streamworld_script(messages)

    out, review, summary = (tmp_path / name for name in ("set.jsonl", "review.yaml", "run.json"))
    with ScriptedEndpoint(script) as endpoint:
        words = ("data", "stream-eval", captions, "--out", out, "--model", "tiny", "--base-url", endpoint.url)
        run(*words, "--json", summary)
        counts = json.loads(summary.read_text())["counts"]
        assert counts["kept"] == len(out.read_text().splitlines()) > 0
        asked = len(endpoint.requests)
        output = " ".join(re.sub("[\u2500-\u257f]", " ", run(*words, "--review", review).output).split())
        assert len(endpoint.requests) == asked
    assert out.read_text() == ""
    for said in (f"unread {counts['kept']} in the review file", "answered in this run: 0", "to be read: "):
        assert said in output


def coin_video(**changes):
    steps = [{"segment": [20 * k, 20 * k + 15], "label": f"step {k}"} for k in range(4)]
    return {"duration": 90.0, "class": "MakeTea", "subset": "training", "annotation": steps, **changes}


def write_coin(path):
    videos = {"AbC": coin_video(), "brief": coin_video(annotation=coin_video()["annotation"][:1])}
    videos |= {"held": coin_video(subset="testing"), "bad": coin_video(duration=None)}
    path.write_text(json.dumps({"database": videos}))
    return "coin", path, ["AbC.mp4"], {"wrong layout": 1}


def write_goalstep(path):
    def steps(length, **more):
        names = "pour", "stir", "wait"
        return [
            {"start_time": k * length, "end_time": (k + 1) * length, "step_description": name, **more}
            for k, name in enumerate(names)
        ]

    segments = [*steps(40.0), {**steps(70.0)[0], "segments": steps(25.0)}, {**steps(9.0)[0], "segments": steps(2.0)}]
    videos = [{"video_uid": "v1", "goal_description": "make tea", "segments": segments}, {"video_uid": "v2"}]
    path.write_text(json.dumps({"videos": videos}))
    return "goalstep", path, ["v1.mp4", "v1.mp4"], {"wrong layout": 1}


def live_script(messages, before):
    """A good assistant: something else at each moment that it is asked about."""
    moments = json.loads(f"[{messages[-1]['content'].rpartition('speaks at: ')[2]}]")
    return json.dumps({"answers": [{"time": time, "text": f"You are at part {k}."} for k, time in enumerate(moments)]})


@pytest.mark.parametrize("write", [write_coin, write_goalstep])
def test_live_dialogues_are_made_of_annotated_steps_and_gone_on_with(tmp_path, write):
    kind, annotations, videos, bad = write(tmp_path / "annotations.json")
    out, summary = tmp_path / "live.jsonl", tmp_path / "run.json"

    def make(*options):
        words = ("data", "live-dialogues", kind, annotations, "--out", out, "--model", "tiny", *options)
        return " ".join(re.sub("[\u2500-\u257f]", " ", run(*words, "--json", summary).output).split())

    with ScriptedEndpoint(live_script) as endpoint:
        options = ("--base-url", endpoint.url, "--workers", 2, "--seed", 3)
        output = make(*options, "--queries", 2)
        count = 2 * len(videos)
        assert {request.body["model"] for request in endpoint.requests} == {"tiny"}
        assert len(endpoint.requests) == count
        result = json.loads(summary.read_text())
        assert (result["asked"], result["counts"]["kept"], result["bad_rows"]) == (count, count, bad)
        assert result["unfit"] == {"too_short": 1, "too_long": 0, "too_many_moments": 0}
        for said in (
            f"{count} questions",
            f"kept {count} written",
            "not asked about, too short: 1",
            f"left out of {annotations}: 1 × wrong layout",
            f"answered in this run: {count}",
        ):
            assert said in output
        assert "too long" not in output
        make(*options, "--queries", 3)
        assert len(endpoint.requests) == count + len(videos), "only what is new is asked"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["video"] for row in rows] == videos
    assert [len(row["queries"]) for row in rows] == [3] * len(videos)
    assert rows[0]["goal"] == "make tea" and rows[0]["made_by"]["seed"] == 3
    dataset = live_dialogue.LiveDialogues(out, "videos")
    assert [dataset[i]["media"] for i in range(len(dataset))] == [f"videos/{video}" for video in videos]


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("COIN.json", ["--base-url", "localhost"], "the address of an endpoint reads http://host/v1"),
        ("lost.json", [], "lost.json"),
        ("COIN.json", ["--out", "missing/live.jsonl"], "missing: no such folder"),
    ],
)
def test_live_dialogues_refuse_in_one_line(tmp_path, name, options, error):
    write_coin(tmp_path / "COIN.json")
    out = tmp_path / "live.jsonl"
    words = ("data", "live-dialogues", "coin", tmp_path / name, "--out", out, "--model", "http://127.0.0.1:1/v1")
    line = run(*words, *options, code=1).output
    assert line.startswith("error: ") and error in line and line.count("\n") == 1
    assert not out.exists()
    assert "'coin', 'goalstep'" in run("data", "live-dialogues", "ego4d", *words[3:], code=2, COLUMNS="120").output


def test_an_encoder_can_be_named(captions, tmp_path):
    tokenizer = build_tokenizer()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    with ScriptedEndpoint(streamworld_script) as endpoint:
        synthesize(
            captions, "--base-url", endpoint.url, "--json", tmp_path / "all.json", "--embedder", tmp_path / "encoder"
        )
        synthesize(
            captions,
            "--base-url",
            endpoint.url,
            "--json",
            tmp_path / "one.json",
            "--embedder",
            tmp_path / "encoder",
            "--threshold",
            "-1",
        )
    kept = [json.loads((tmp_path / name).read_text())["counts"]["kept"] for name in ("all.json", "one.json")]
    assert kept[0] > 1 == kept[1]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--base-url", "localhost"], "the address of an endpoint reads http://host/v1"),
        (["--review", "missing/review.yaml"], "missing: no such folder"),
        (["--workers", "0"], "max_workers"),
        (["--embedder", "missing"], "files"),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(captions, options, error):
    with ScriptedEndpoint(streamworld_script) as endpoint:
        output = synthesize(captions, "--base-url", endpoint.url, *options, code=1)
        assert endpoint.requests == []
    assert output.startswith("error: ")
    assert error in output


def test_a_wrong_key_ends_in_one_line_too(captions):
    with ScriptedEndpoint(lambda messages, before: Reply("wrong key", status=401)) as endpoint:
        output = synthesize(captions, "--base-url", endpoint.url, "--limit", "20", code=1)
    assert "error: no answer for 16 segments in a row; tiny: HTTP Error 401: Unauthorized: wrong key" in output


def test_a_url_is_a_model(captions):
    with ScriptedEndpoint(streamworld_script) as endpoint:
        synthesize(captions, "--model", endpoint.url)
        assert {request.body["model"] for request in endpoint.requests} == {"default"}


def test_train_runs_the_recipe(tmp_path, monkeypatch):
    calls = []
    module = type(sys)("streamchat_hf.training.streamworld")
    module.train = lambda *args, **kwargs: calls.append((*args, kwargs)) or tmp_path / "final"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 7\n")
    output = run("train", recipe, "--output_dir", tmp_path, "--no-resume").output
    assert calls == [(recipe, tmp_path, {"resume": False})]
    assert output.replace("\n", "") == f"written: {tmp_path / 'final'}"


CASE = Path(__file__).parents[1] / "fixtures" / "streamformer_case_a"


def test_convert_says_what_it_did(tmp_path):
    output = run("convert", "streamformer", CASE, tmp_path / "ours", "--json", tmp_path / "said.json").output
    assert output.splitlines() == [
        "from StreamFormer: 264,003 parameters, LoRA rank 32, learned positions in time",
        "ignored: causal masks (3)",
        f"written: {tmp_path / 'ours'}",
    ]
    assert json.loads((tmp_path / "said.json").read_text()) == {
        "source": str(CASE),
        "dest": str(tmp_path / "ours"),
        "origin": "StreamFormer",
        "parameters": 264_003,
        "ignored": {"causal masks": 3},
        "temporal_position": "learned",
        "num_frames": 8,
        "lora_rank": 32,
        "sliding_window": None,
    }
    assert StreamFormerModel.from_pretrained(tmp_path / "ours").config.num_frames == 8


def test_convert_takes_what_siglip_does_not_decide(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    SiglipVisionModel(SiglipVisionConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path / "siglip")
    chosen = ("--temporal-position", "learned", "--num-frames", 5, "--lora-rank", 0, "--sliding-window", 3)
    output = run("convert", "streamformer", tmp_path / "siglip", tmp_path / "ours", *chosen).output
    assert output.startswith("from SigLIP: ")
    assert "ignored" not in output
    config = StreamFormerModel.from_pretrained(tmp_path / "ours").config
    assert (config.temporal_position, config.num_frames, config.lora_rank, config.sliding_window) == (
        "learned",
        5,
        0,
        3,
    )


def test_convert_refuses_in_one_line_and_writes_nothing(tmp_path):
    wrong = ("--temporal-position", "sideways"), ("--lora-rank", 4)
    for words in wrong:
        line = run("convert", "streamformer", CASE, tmp_path / "ours", *words, code=1).output
        assert line.startswith(f"error: {CASE} decides ")
        assert line.count("\n") == 1
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text((CASE / "config.json").read_text())
    (damaged / "model.safetensors").write_bytes((CASE / "model.safetensors").read_bytes()[:-1])
    line = run("convert", "streamformer", damaged, tmp_path / "ours", "--json", tmp_path / "said.json", code=1).output
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert not (tmp_path / "ours").exists()
    assert not (tmp_path / "said.json").exists()
    line = run(
        "convert", "streamformer", CASE, tmp_path / "ours", "--json", tmp_path / "no" / "said.json", code=1
    ).output
    assert "no such folder" in line
    assert not (tmp_path / "ours").exists()


def test_convert_merges_an_adapter(tmp_path):
    published(tmp_path)
    adapter, ours, siglip = tmp_path / "adapter", tmp_path / "ours", tmp_path / "siglip"
    options = ("--vision", siglip, "--json", tmp_path / "said.json")
    output = run("convert", "videollm-online", adapter, ours, *options).output
    model = AutoModelForCausalLM.from_pretrained(ours)
    assert output.splitlines() == [
        f"from {tmp_path / 'base'} and {siglip}: {model.num_parameters():,} parameters, LoRA of rank 4 merged into "
        "22 matrices, 10 tokens a frame",
        f"written: {ours}",
    ]
    assert json.loads((tmp_path / "said.json").read_text()) == {
        **{"source": str(adapter), "dest": str(ours), "base": str(tmp_path / "base"), "vision": str(siglip)},
        **{"parameters": model.num_parameters(), "frame_num_tokens": 10, "rank": 4, "merged": 22},
    }
    missing = tmp_path / "nowhere"
    for words in ((ours, missing), (adapter, missing, "--base", tmp_path / "siglip")):
        line = run("convert", "videollm-online", *words, "--vision", siglip, code=1).output
        assert line.startswith("error: ") and line.count("\n") == 1
    assert not missing.exists()
