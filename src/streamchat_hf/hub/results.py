"""What `streamchat eval streamworld --json` writes, as a table for people and as metadata for the Hub."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

# How a viewer saw the stream, and what the tables call it.
VIEWERS = {"fresh": "watching on", "frozen": "frozen", "grey": "blind"}

WHAT = {
    "heldout": """in clips of colours and shapes that were never
shown together in training.""",
    "seen": "in new clips of combinations that training shows.",
    "train": "in clips of the training split.",
}
INTRODUCTION = """How often a word is true of the world when it is spoken, {what} \
*Frozen*: the same model and clips, with the video stopped at the question.
*Blind*: with every frame grey."""
DETAILS = """A perfect viewer of the frozen picture would be right in {oracle} of the words. Where the state has moved
since the question: {moved_fresh} watching on, {moved_frozen} frozen; where it has not: {unmoved_fresh} and
{unmoved_frozen}. In combinations never shown in training: {held} of {held_n} words. Changes while it speaks:
{reported} of {events} are reported within two seconds, and {false} of {reports} reports are false."""

STREAMING_SCORE = """The metric `streaming_score`, from 0 to 1, also counts facts that were never told, and forgives
words that come a little late: {listed}."""


def results_table(scores: Mapping[str, Any]) -> str:
    """The scores in Markdown: watching on against frozen at the question, kind by kind.

    Args:
        scores: The content of `eval.json`.
    """
    rows = [*scores["by_kind"].items(), ("**all**", {**scores["state_accuracy"], "n": scores["n"]})]
    lines = [
        INTRODUCTION.format(what=WHAT[scores["split"]]),
        "",
        f"| words about | {' | '.join(VIEWERS.values())} | chance | words |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, row in rows:
        shares = " | ".join(share(row[viewer]) for viewer in (*VIEWERS, "chance"))
        lines.append(f"| {kind} | {shares} | {row['n']} |")
    if "streaming_score" in scores:
        lines += ["", _streaming_score(scores["streaming_score"])]
    settings = f"--split {scores['split']} --seed {scores['seed']} --clips {scores['clips']}"
    return "\n".join([*lines, "", _details(scores), "", f"From `streamchat eval streamworld {settings}`."])


def eval_results(scores: Mapping[str, Any]) -> list[EvalResult]:
    """The same for the metadata of a card, where the Hub reads it; what was not measured is left out."""
    found = []
    for viewer, name in VIEWERS.items():
        streaming = scores.get("streaming_score", {}).get(viewer, {}).get("score")
        for metric, label, value in (
            ("accuracy", "true words", scores["state_accuracy"][viewer]),
            ("streaming_score", "streaming score", streaming),
        ):
            if value is not None:
                found.append(
                    EvalResult(
                        task_type="video-text-to-text",
                        dataset_type="streamworld",
                        dataset_name="StreamWorld",
                        dataset_split=scores["split"],
                        dataset_args={"seed": scores["seed"], "clips": scores["clips"]},
                        metric_type=metric,
                        metric_name=f"{label}, {name}",
                        metric_value=round(value, 4),
                    )
                )
    return found


def dialogue_table(log: Mapping[str, Any]) -> str | None:
    """The last evaluation of a live training in Markdown; `None` if it had none.

    Args:
        log: The content of `training_log.json`.
    """
    measured = [row for row in log["log"] if "eval_fluency" in row]
    if not measured:
        return None
    values = measured[-1]
    cells = f"{values['eval_lm_ppl']:.2f} | {values['eval_time_diff']:.2f} s | {share(values['eval_fluency'])}"
    return f"| LM-PPL | TimeDiff | Fluency |\n|---:|---:|---:|\n| {cells} |"


def share(value: float | None) -> str:
    """A share of 1 in percent, a dash for what was not measured."""
    return "–" if value is None else f"{100 * value:.1f} %"


def _streaming_score(scores: Mapping[str, Any]) -> str:
    values = {name: scores.get(viewer, {}).get("score") for viewer, name in VIEWERS.items()}
    listed = ", ".join(f"{'–' if value is None else f'{value:.3f}'} {name}" for name, value in values.items())
    return STREAMING_SCORE.format(listed=listed)


def _details(scores: Mapping[str, Any]) -> str:
    """What the pooled numbers hide."""
    changes, held = scores["changes"]["fresh"], scores["in_heldout_combo"]["fresh"]
    parts = {
        f"{part}_{viewer}": share(scores[part][viewer]["accuracy"])
        for part in ("moved", "unmoved")
        for viewer in ("fresh", "frozen")
    }
    return DETAILS.format(
        oracle=share(scores["state_accuracy"]["oracle"]),
        held=share(held["accuracy"]),
        held_n=held["n"],
        reported=share(changes["reported"]),
        events=changes["n"],
        false=share(changes["false_reports"]),
        reports=changes["reports"],
        **parts,
    )
