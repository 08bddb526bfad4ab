"""When to answer: StreamBridge's activation model, VideoLLM-online's silence and a fixed interval, on StreamWorld.

    python benchmarks/activation_policies.py --json benchmarks/activation_policies.json
    python benchmarks/activation_policies.py --render benchmarks/activation_policies.json

The activation model is trained by `recipes/streambridge/tiny_activation.yaml`; a VideoLLM-online on the same rows,
from the same beginning (`tiny_video_llm.yaml`) and for as many updates; each unless that is done in `--runs`. Both
then watch held-out worlds live. The policies are compared at as many alarms as the activation model raises at its
calibrated threshold. With `--render` the table goes into docs/streambridge_activation.md.
"""

import argparse
import json
import math
import time
from pathlib import Path

import yaml

from markers import between
from streamchat_hf import VideoLLMOnlineForConditionalGeneration, VideoLLMOnlineProcessor
from streamchat_hf.data.proactive_streamworld import TASKS, ProactiveStreamWorld
from streamchat_hf.evaluation.activation import TOLERANCE, event_f1, event_times, watch_rows
from streamchat_hf.evaluation.videollm_online_alerts import watch_row as listen_to
from streamchat_hf.modeling.modeling_streambridge_activation import StreamBridgeActivationModel
from streamchat_hf.training.__main__ import find_recipe

RECIPE, BEGINNING = "streambridge/tiny_activation.yaml", "streambridge/tiny_video_llm.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "streambridge_activation.md"
BEGIN = "<!-- policies: written by benchmarks/activation_policies.py -->\n"
END = "<!-- end of policies -->\n"
WORLDS = 240
SEED = 1000  # of the held-out worlds
BOUND = 0.85  # event F1 at least
CPU_MINUTES = 40.0  # of training at most: 20 minutes on two cores
# Where the silence threshold that gives as many alarms is looked for, as its logit, by so many halvings.
LOGITS, HALVINGS = (-4.0, 8.0), 6
FIXED, EOS, OURS = "fixed interval", "streaming-EOS", "activation"
COMMON = "what both begin with"


def held_out(worlds: int, num_frames: int) -> list[tuple[str, dict]]:
    """Rows of combinations that training never shows, as many of each task, each with its task."""
    found = []
    for task in TASKS:
        rows = ProactiveStreamWorld(worlds // len(TASKS), SEED, "heldout", num_frames=num_frames, tasks={task: 1.0})
        found += [(task, rows[i]) for i in range(len(rows))]
    return found


def fixed_interval(rows: list[tuple[str, dict]], alarms: int) -> list[list[float]]:
    """So many alarms, all equally far apart; the clock goes on from row to row."""
    frames = sum(len(row["frame_times"]) for _, row in rows)
    rings = {math.ceil((k + 0.5) * frames / alarms) - 1 for k in range(alarms)}
    found, before = [], 0
    for _, row in rows:
        found.append([t for k, t in enumerate(row["frame_times"]) if before + k in rings])
        before += len(row["frame_times"])
    return found


def best_interval(rows: list[tuple[str, dict]]) -> list[list[float]]:
    """The fixed interval of the best F1 on these very rows: what no clock can beat."""
    due = [event_times(row) for _, row in rows]
    frames = sum(len(row["frame_times"]) for _, row in rows)
    ways = [fixed_interval(rows, frames * k // 48) for k in range(2, 48)]
    return max(ways, key=lambda alarms: event_f1(due, alarms)["f1"])


def silence_alarms(model, processor, rows: list[tuple[str, dict]], threshold: float) -> list[list[float]]:
    """When a VideoLLM-online speaks by itself that hears itself speak."""
    found = []
    for _, row in rows:
        said = listen_to(model, processor, row, threshold=threshold, max_new_tokens=16)
        found.append([row["frame_times"][response.frame] for response in said])
    return found


def as_many(model, processor, rows: list[tuple[str, dict]], alarms: int) -> dict[float, list[list[float]]]:
    """Alarms at each silence threshold that was tried on the way to so many alarms."""
    low, high = LOGITS
    tried: dict[float, list[list[float]]] = {}
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        threshold = 1 / (1 + math.exp(-middle))
        tried[threshold] = silence_alarms(model, processor, rows, threshold)
        if sum(map(len, tried[threshold])) == alarms:
            break
        # The higher the threshold, the more has to be silent to be passed over, and the more is said.
        low, high = (low, middle) if sum(map(len, tried[threshold])) > alarms else (middle, high)
    return tried


def score(policy: str, rows: list[tuple[str, dict]], alarms: list[list[float]], **more) -> dict:
    """One line of the table, with what every task has of it."""
    due = [event_times(row) for _, row in rows]
    by_task = {}
    for task in dict.fromkeys(task for task, _ in rows):
        own = [k for k, (name, _) in enumerate(rows) if name == task]
        by_task[task] = event_f1([due[k] for k in own], [alarms[k] for k in own])
    return {"policy": policy, **more, **event_f1(due, alarms), "by_task": by_task, "alarm_times": alarms}


def verdict(result: dict) -> dict[str, bool]:
    """Whether the activation model keeps its bounds, and is ahead of the others at as many alarms."""
    by_policy = {row["policy"]: row for row in result["rows"]}
    others = [by_policy[name] for name in (FIXED, EOS) if name in by_policy]
    return {
        "event_f1": by_policy[OURS]["f1"] >= BOUND,
        "cpu_minutes": result["cpu_minutes"][COMMON] + result["cpu_minutes"][OURS] <= CPU_MINUTES,
        "ahead": len(others) == 2 and all(by_policy[OURS]["f1"] > other["f1"] for other in others),
    }


def table(result: dict) -> str:
    """All policies as a Markdown table, in per cent."""
    tasks = list(result["rows"][0]["by_task"])
    lines = [["policy", "event F1", "precision", "recall", "alarms", *tasks], ["---"] + ["---:"] * (4 + len(tasks))]
    for row in result["rows"]:
        shares = [f"{100 * row[name]:.1f}" for name in ("f1", "precision", "recall")]
        by_task = [f"{100 * row['by_task'][task]['f1']:.1f}" for task in tasks]
        lines.append([row["policy"], *shares, str(row["alarms"]), *by_task])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    minutes = ", ".join(f"{name} {value:.1f}" for name, value in result["cpu_minutes"].items())
    return (
        f"{body}\n\nPer cent, within {TOLERANCE:g} second; {result['worlds']} held-out worlds with "
        f"{result['rows'][0]['events']} events; by task the event F1. CPU minutes of training: {minutes}.\n"
    )


def train_once(folder: Path, recipe: dict, train) -> Path:
    """Trains by a recipe, unless that is done; the CPU minutes it took lie beside the result."""
    final, path = folder / "final", folder.with_suffix(".yaml")
    recipe = {**recipe, "output_dir": str(folder), "disable_tqdm": True}
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "cpu_minutes.json").is_file() or path.read_text() != yaml.safe_dump(recipe):
        path.write_text(yaml.safe_dump(recipe))
        begun = time.process_time()
        train(path)
        (folder / "cpu_minutes.json").write_text(json.dumps((time.process_time() - begun) / 60))
    return final


def as_videollm_online(recipe: dict) -> dict:
    """The same run for a VideoLLM-online: rows, what it begins with and updates stay as they are."""
    own = ("positive_share", "eval_datasets", "system_prompt")
    return {**{name: value for name, value in recipe.items() if name not in own}, "trainer": "live"}


def main() -> None:
    """Trains and measures, or renders what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=WORLDS)
    parser.add_argument("--set", type=yaml.safe_load, default={}, help="fields of the recipes, e.g. {max_steps: 20}")
    parser.add_argument("--runs", type=Path, default=Path("runs/activation_policies"))
    parser.add_argument("--json", type=Path, help="where the result goes")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(json.loads(options.render.read_text()))))
        return
    recipe, beginning = (yaml.safe_load(find_recipe(name).read_text()) | options.set for name in (RECIPE, BEGINNING))
    result = {**measure(options.runs, recipe, beginning, options.worlds), "set": options.set}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def measure(runs: Path, recipe: dict, beginning: dict, worlds: int) -> dict:
    """Trains what has not been trained, and lets every policy watch."""
    from streamchat_hf.training.activation import train
    from streamchat_hf.training.live import train as train_live

    rows = held_out(worlds, recipe["datasets"][0]["num_frames"])
    recipe["model_name_or_path"] = str(train_once(runs / "video_llm", beginning, train_live))
    final = train_once(runs / "activation", recipe, train)
    model = StreamBridgeActivationModel.from_pretrained(final).eval()
    result = watch_rows(model, VideoLLMOnlineProcessor.from_pretrained(final), [row for _, row in rows])
    alarms = [row["alarms"] for row in result["rows"]]
    number = sum(map(len, alarms))
    scored = [score(OURS, rows, alarms, threshold=result["threshold"])]
    print(f"{OURS}: event F1 {result['f1']:.3f}, {number} alarms", flush=True)

    final = train_once(runs / "videollm_online", as_videollm_online(recipe), train_live)
    speaker = VideoLLMOnlineForConditionalGeneration.from_pretrained(final).eval()
    tried = as_many(speaker, VideoLLMOnlineProcessor.from_pretrained(final), rows, number)
    silences = [score(EOS, rows, raised, threshold=threshold) for threshold, raised in tried.items()]
    scored.append(min(silences, key=lambda row: abs(row["alarms"] - number)))
    best = max(silences, key=lambda row: row["f1"])
    scored.append({**best, "policy": f"{EOS}, best threshold tried"})
    scored.append(score(FIXED, rows, fixed_interval(rows, number)))
    scored.append(score(f"{FIXED}, best", rows, best_interval(rows)))
    minutes = {COMMON: "video_llm", OURS: "activation", "VideoLLM-online": "videollm_online"}
    found = {
        "recipe": RECIPE,
        "worlds": len(rows),
        "cpu_minutes": {name: json.loads((runs / f / "cpu_minutes.json").read_text()) for name, f in minutes.items()},
        "calibration": json.loads((runs / "activation" / "final" / "training_log.json").read_text())["calibration"],
        "due": [event_times(row) for _, row in rows],
        "rows": scored,
    }
    return {**found, "verdict": verdict(found)}


if __name__ == "__main__":
    main()
