"""`streamchat bench proactive`: models and policies that speak by themselves, side by side."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from streamchat_cli.app import (
    ActivationOption,
    JsonOption,
    RemoteCodeOption,
    check_folders,
    load,
    load_activation,
    one_line_errors,
    write_json,
)
from streamchat_cli.measure import bench_app


@bench_app.command("proactive")
@one_line_errors
def bench_proactive(
    models: Annotated[
        list[str] | None, typer.Argument(help="Folders or Hub ids; default: the tiny checkpoint.")
    ] = None,
    activation: ActivationOption = None,
    split: Annotated[str, typer.Option(help="seen or heldout combinations.")] = "heldout",
    seed: Annotated[int, typer.Option(help="Of the worlds.")] = 0,
    worlds: Annotated[int, typer.Option(help="How many, a third for each task.")] = 30,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """When models speak who watch the same worlds, by every policy they know, and by ACTIVATION if it is given.

    An answer is in time within a second of the moment at which it is due.
    """
    from streamchat_hf.evaluation.proactive import compare_policies, contestants, proactive_rows

    check_folders(json_file)
    console = Console(highlight=False)
    rows = proactive_rows(split, seed, worlds)
    watcher = load_activation(activation, trust_remote_code)
    names: list[str | None] = list(models) if models else [None]
    entered = [
        one
        for name in names
        for one in contestants(name or "tiny checkpoint", *load(name, trust_remote_code), watcher)
    ]
    progress = (lambda one: console.print(f"{one.name}, {one.policy} ...")) if console.is_terminal else None
    result = compare_policies(entered, rows, progress=progress)
    write_json(json_file, {"split": split, "seed": seed, "worlds": len(rows), **result})
    console.print(_table(result, split, len(rows)))


def _table(result: dict[str, Any], split: str, worlds: int) -> Table:
    title = f"{worlds} StreamWorlds, {split}: event F1 within {result['tolerance']:g} s"
    tasks = list(result["runs"][0]["by_task"])
    table = Table(
        "model", "policy", *tasks, "all", "right words", "alarms", "events", title=title, title_justify="left"
    )
    for run in result["runs"]:
        scores = (*(run["by_task"][task]["f1"] for task in tasks), run["f1"], run["right_words"])
        shown = ("–" if score is None else f"{score:.3f}" for score in scores)
        table.add_row(Path(run["model"]).name, run["policy"], *shown, str(run["alarms"]), str(run["events"]))
    return table
