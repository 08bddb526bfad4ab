"""`streamchat score`: what a benchmark's own script says of answers, whoever gave them."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamchat_cli.app import JsonOption, app, check_folders, one_line_errors, write_json

score_app = typer.Typer(help="Score answers as a benchmark's own script does.", no_args_is_help=True)
app.add_typer(score_app, name="score")

_MOST_WARNINGS = 10


@score_app.command("ovobench")
@one_line_errors
def score_ovobench(
    file: Annotated[Path, typer.Argument(help="A result file, or the folder of one model's.")],
    json_file: JsonOption = None,
) -> None:
    """OVO-Bench: accuracy by task, the average of each group, and the average of these."""
    check_folders(json_file)
    # Files of several tasks that were put together may stand under `results`.
    contents = [content.get("results", content) for content in _read(file, dict)]
    result = _compute("ovobench", contents)
    table = Table("task", "group", "right", "of", "accuracy", title="OVO-Bench, in percent", title_justify="left")
    for task, row in result["tasks"].items():
        table.add_row(task, row["group"], str(row["correct"]), str(row["n"]), f"{row['acc']:.2f}")
    table.add_section()
    for group, average in [*result["groups"].items(), ("total", result["total"])]:
        table.add_row("average", group, "", "", "–" if average is None else f"{average:.2f}")
    Console().print(table)
    write_json(json_file, result)


@score_app.command("streamingbench")
@one_line_errors
def score_streamingbench(
    file: Annotated[Path, typer.Argument(help="An output file.")],
    task: Annotated[str, typer.Option(help="real, omni, sqa or proactive.")],
    model: Annotated[str, typer.Option(help="The name under which the answers stand.")],
    json_file: JsonOption = None,
) -> None:
    """StreamingBench: accuracy by type of question."""
    check_folders(json_file)
    (entries,) = _read(file, list)
    result = _compute("streamingbench", entries, task=task, model=model)
    shares = [name for name in ("time", "answer") if task == "proactive"] or [""]
    heads = [f"{share} right".strip() for share in shares]
    table = Table("questions", "of", *heads, title=f"StreamingBench, {task}, in percent", title_justify="left")
    for kind, row in sorted(result.items(), key=lambda item: item[0] == "total"):
        accuracies = (row[f"{share}_accuracy".lstrip("_")] for share in shares)
        table.add_row(kind, str(row["total"]), *(f"{100 * accuracy:.2f}" for accuracy in accuracies))
    Console().print(table)
    write_json(json_file, result)


@score_app.command("etbench")
@one_line_errors
def score_etbench(
    file: Annotated[Path, typer.Argument(help="A prediction file, or a folder of several.")],
    subset: Annotated[Path | None, typer.Option(help="Score only these: a file with idx by task and source.")] = None,
    seed: Annotated[int, typer.Option(help="Of the random letters in the similarity of captions.")] = 0,
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder; default: all-MiniLM-L6-v2.")] = None,
    json_file: JsonOption = None,
) -> None:
    """ET-Bench: scores by task and source, and the columns that papers print."""
    from transformers.utils import logging as transformers_logging

    from streamchat_hf.metrics.etbench.etbench_summary import summarize

    check_folders(json_file)
    transformers_logging.disable_progress_bar()
    chosen = None if subset is None else _read(subset, dict)[0]
    samples = [sample for content in _read(file, list) for sample in content]
    result = _compute("etbench", samples, seed=seed, encoder=encoder, subset=chosen)
    names = ("Total", "Failed", "Acc", "F1", "mRec", "SentSim")
    table = Table("task", "source", *names, title="ET-Bench", title_justify="left")
    for task, sources in result.items():
        for source, row in sources.items():
            table.add_row(task, source, *(str(row.get(name, "–")) for name in names))
    console = Console()
    console.print(table)
    for title, row in summarize(result).items():
        averages = Table("", "percent", title=title.capitalize(), title_justify="left")
        for name, value in row.items():
            averages.add_row(name, "–" if value is None else str(value))
        console.print(averages)
    write_json(json_file, result)


@score_app.command("coin-lta")
@one_line_errors
def score_coin_lta(
    file: Annotated[Path, typer.Argument(help="A prediction file, which names its benchmark.")],
    json_file: JsonOption = None,
) -> None:
    """COIN: accuracy of steps, tasks and procedures; Ego4D LTA: edit distances of what comes next."""
    from streamchat_hf.evaluation.videollm_online_offline import score_offline

    check_folders(json_file)
    (content,) = _read(file, dict)
    result = score_offline(file)
    if "accuracy" in result:
        table = Table("benchmark", "of", "accuracy", title="COIN, in percent", title_justify="left")
        accuracy = result["accuracy"]
        table.add_row(content["benchmark"], str(result["n"]), "–" if accuracy is None else f"{accuracy:.2f}")
    else:
        table = Table("", "ED", "AUED", title=f"Ego4D LTA, {result['n']} clips", title_justify="left")
        for kind in ("verb", "noun", "action"):
            table.add_row(kind, *("–" if value is None else f"{value:.4f}" for value in result[kind].values()))
    Console().print(table)
    write_json(json_file, result)


def _compute(name: str, predictions: Sequence[Any], **options: Any) -> dict[str, Any]:
    """The metric's result; what it warns of goes to standard error, one line each."""
    from streamchat_hf import metrics

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        result = metrics.load(name).compute(predictions=predictions, **options)
    lines = [str(warning.message) for warning in caught if str(warning.message).startswith(f"{name}: ")]
    more = [f"and {len(lines) - _MOST_WARNINGS} more"] if len(lines) > _MOST_WARNINGS else []
    console = Console(stderr=True, highlight=False)
    for line in lines[:_MOST_WARNINGS] + more:
        console.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)
    return result


def _read(path: Path, kind: type) -> list[Any]:
    """What stands in a file of JSON or lines of it, or in all of a folder; each must be a list or a dict."""
    if path.is_dir():
        # metrics.json is what ET-Bench's own script leaves beside the predictions.
        files = [file for file in sorted(path.iterdir()) if file.suffix in (".json", ".jsonl")]
        files = [file for file in files if file.name != "metrics.json"]
        if not files:
            raise FileNotFoundError(f"{path}: no JSON file in this folder")
    else:
        files = [path]
    contents = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        try:
            content = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}: no JSON: {error}") from None
        if not isinstance(content, kind):
            raise ValueError(f"{file}: a JSON {'list' if kind is list else 'object'} was expected")
        contents.append(content)
    return contents
