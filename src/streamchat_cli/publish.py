"""`streamchat push`: a checkpoint goes to the Hub."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamchat_cli.app import STDIN, JsonOption, app, check_folders, one_line_errors, write_json

if TYPE_CHECKING:
    from streamchat_hf.hub.push import PushReport


@app.command()
@one_line_errors
def push(
    repository: Annotated[str, typer.Argument(help="Where to: owner/name.")],
    model: Annotated[Path | None, typer.Option(help="A checkpoint's folder; default: the tiny checkpoint.")] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, such as apache-2.0; for the card.")] = None,
    base_model: Annotated[
        list[str] | None, typer.Option(help="Hub id of what the weights were made from; for the card.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="If the repository is new: for everybody to see.")] = False,
    revision: Annotated[str | None, typer.Option(help="The branch to commit to; default: main.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be pushed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Push a checkpoint to the Hub, private by default, and prove that it works there by itself.

    First it is run from a folder as it will be on the Hub; then you see what would change, and are asked.
    """
    from transformers.utils import logging as transformers_logging

    from streamchat_hf import tiny_checkpoint
    from streamchat_hf.hub.push import push as push_checkpoint

    check_folders(json_file)
    console = Console(highlight=False)
    if not (dry_run or yes or os.isatty(STDIN)):
        raise ValueError("there is nobody to ask: see what --dry-run shows, then pass --yes")
    transformers_logging.disable_progress_bar()
    working = console.status("running it as it will be on the Hub")

    def confirm(report: "PushReport") -> bool:
        working.stop()
        _print_report(console, report)
        go = yes or typer.confirm(f"push this to {report.repo_id}?")
        working.start()
        return go

    with working:
        report = push_checkpoint(
            repository,
            model or tiny_checkpoint(),
            private=not public,
            dry_run=dry_run,
            license=license,
            base_models=base_model or (),
            revision=revision,
            message=message,
            confirm=confirm,
        )
    if dry_run:
        _print_report(console, report)
    write_json(json_file, dataclasses.asdict(report))
    if report.commit is None:
        console.print("nothing was pushed")
    else:
        console.print(f"pushed: {report.url}\nit loads, runs and says the same from there")


def _print_report(console: Console, report: "PushReport") -> None:
    """The files and what becomes of them, the card, and who will see it."""
    marks = {"added": "new", "changed": "changed", "unchanged": "as it is", "deleted": "deleted", "kept": "not ours"}
    fate = {name: mark for field, mark in marks.items() for name in getattr(report, field)}
    table = Table("file", "bytes", "", title=f"{report.repo_id}, {report.branch}", title_justify="left")
    table.columns[1].justify = "right"
    for name in sorted(report.files.keys() | fate.keys()):
        size = report.files.get(name)
        table.add_row(name, "–" if size is None else f"{size:,}", fate.get(name, ""))
    console.print(table)
    console.print(Text(report.card, style="dim"))
    if report.private is not None:
        stays = " already, and stays so" if report.exists else ""
        console.print(f"the repository is {'private' if report.private else 'public'}{stays}")
    if report.note is not None:
        console.print(Text(report.note, style="yellow"))
