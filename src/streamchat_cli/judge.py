"""`streamchat judge`: which of two models answers better."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from streamchat_cli.app import app, check_folders, one_line_errors, write_json


@app.command("judge")
@one_line_errors
def judge_command(
    answers_a: Annotated[Path, typer.Argument(help="What model A answered, as `eval streamchat-eval` writes it.")],
    answers_b: Annotated[Path, typer.Argument(help="What model B answered to the same questions.")],
    json_file: Annotated[Path, typer.Option("--json", help="The JSON file to write; its log lies beside it.")],
    endpoint: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint: http://host/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="The judge: Hub id or folder; the endpoint's name for it.")] = None,
    questions: Annotated[Path | None, typer.Option(help="The StreamEval set, for its reference answers.")] = None,
    workers: Annotated[int, typer.Option(help="How many conversations at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also draw wins, ties and losses.")] = None,
) -> None:
    """Let a language model judge whose answers are better: in both orders, and what depends on the order is a tie."""
    from streamchat_hf.data.synthesize_llm import load_language_model
    from streamchat_hf.evaluation.pairwise_judge import judge_answers

    check_folders(json_file, plot)
    if plot is not None:
        from streamchat_hf.evaluation.pairwise_judge_plot import plot_judgement
    if model is None:  # the name tells whose verdicts the log has, so an endpoint alone is not enough
        raise ValueError("who judges? Name a --model; with an --endpoint, by the name that the server knows")
    console = Console(highlight=False)
    result = judge_answers(
        answers_a,
        answers_b,
        load_language_model(model, endpoint),
        json_file.with_suffix(".progress.jsonl"),
        questions=questions,
        seed=seed,
        workers=workers,
        progress=console.is_terminal,
    )
    write_json(json_file, result)
    _print_judgement(console, result)
    if plot is not None:
        plot_judgement(result, plot)
        console.print(f"plot: {plot}", soft_wrap=True)


def _print_judgement(console: Console, result: dict[str, Any]) -> None:
    """The shares with their intervals, what was not judged, and how much the order decided."""
    outcomes = {"win": "A wins", "tie": "tie", "loss": "A loses", "win_or_tie": "A wins or ties"}
    title = f"A: {result['models']['a']}, B: {result['models']['b']}; in percent, with intervals of 95 %"
    table = Table("", *outcomes.values(), title=title, title_justify="left")
    for name, score in result["scores"].items():
        table.add_row(name, *(_percent(**score[outcome]) for outcome in outcomes))
    console.print(table)
    console.print("questions: " + ", ".join(f"{outcome} {n}" for outcome, n in result["counts"].items()))
    if not result["references"]:
        console.print("the judge saw no reference answers: --questions names the set that has them")
    if result["same_in_both_orders"] is not None:
        preferred = ", ".join(f"{choice} {n}" for choice, n in result["preferred"].items())
        console.print(f"the same in both orders: {100 * result['same_in_both_orders']:.0f} %; preferred: {preferred}")


def _percent(n: int, share: float | None, interval: list[float] | None) -> str:
    if share is None:
        return "–"
    low_to_high = "" if interval is None else " [{:.0f}, {:.0f}]".format(*(100 * edge for edge in interval))
    return f"{100 * share:.0f}{low_to_high}"
