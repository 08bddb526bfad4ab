"""The `streamchat data` commands that make data."""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from streamchat_hf.data.synthesize import UNREAD, synthesize
from streamchat_hf.data.synthesize_dedup import THRESHOLD, SentenceEncoder
from streamchat_hf.data.synthesize_llm import load_language_model
from streamchat_hf.data.synthesize_segment import LONGEST

data_app = typer.Typer(help="Make training data.", no_args_is_help=True)

MEANINGS = {
    "kept": "written",
    "duplicate": "says the same as one that is kept",
    "dropped": "by a person, in the review file",
    "refused": "the model would not",
    "broken_json": "no JSON object in the answer",
    "missing_field": "a field missing, or of the wrong kind",
    "empty": "no words",
    "times_outside": "times outside the segment, or backwards",
    "too_fast": "more words per second than anybody follows",
    "too_slow": "hardly any words for all that time",
    "http_error": "no answer; asked again by the next run",
}


def _one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """The command line's own way with errors; looked up late, because the command line imports this file."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        from streamchat_hf.cli import one_line_errors

        one_line_errors(command)(*args, **kwargs)

    return run


@data_app.command("synthesize")
@_one_line_errors
def synthesize_command(
    captions: Annotated[Path, typer.Argument(help="Dense captions, one video per line of JSON.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; its log, for going on, lies beside it.")],
    model: Annotated[str, typer.Option(help="Hub id, folder or URL; with --base-url the name the server knows.")],
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint: http://host/v1.")] = None,
    workers: Annotated[int, typer.Option(help="How many conversations at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice of segments and examples.")] = 0,
    limit: Annotated[int | None, typer.Option(help="How many segments; default: one per video.")] = None,
    longest: Annotated[float, typer.Option(help="Length of a segment, in seconds.")] = LONGEST,
    review: Annotated[Path | None, typer.Option(help="A YAML file to read through; its verdicts count.")] = None,
    unread: Annotated[int, typer.Option(help="How many entries may wait there for a verdict.")] = UNREAD,
    embedder: Annotated[str | None, typer.Option(help="Sentence encoder that finds near duplicates.")] = None,
    threshold: Annotated[float, typer.Option(help="Cosine similarity that makes a near duplicate.")] = THRESHOLD,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")] = None,
) -> None:
    """Let a language model make dense instructions out of dense captions."""
    for path in (out, review, json_file):  # rather than when everything has been asked
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder")
    console = Console(highlight=False)
    result = synthesize(
        captions,
        out,
        load_language_model(model, base_url),
        seed=seed,
        limit=limit,
        longest=longest,
        workers=workers,
        review=review,
        unread=unread,
        embed=SentenceEncoder(embedder) if embedder is not None else None,
        threshold=threshold,
        progress=console.is_terminal,
    )
    table = Table("outcome", "segments", "", title=f"{sum(result.counts.values())} segments", title_justify="left")
    table.columns[1].justify = "right"
    for outcome, count in result.counts.items():
        table.add_row(outcome.replace("_", " "), str(count), MEANINGS[outcome], style=None if count else "dim")
    console.print(table)
    if result.silent_videos:
        console.print(f"videos without captions for a segment of at most {longest:g} s: {result.silent_videos}")
    console.print(f"answered in this run: {result.asked}")
    console.print(f"written: {out}")
    if review is not None:
        console.print(f"to be read: {result.unread} entries of {review}")
    if json_file is not None:
        json_file.write_text(json.dumps(dataclasses.asdict(result), indent=1) + "\n")
