"""`streamchat eval`: a model before a benchmark, on the path that a user has."""

import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from streamchat_cli.app import (
    ActivationOption,
    JsonOption,
    ModelOption,
    RemoteCodeOption,
    app,
    check_folders,
    load,
    load_activation,
    one_line_errors,
    write_json,
)

if TYPE_CHECKING:
    from streamchat_hf.evaluation.benchmark_protocol import Viewer
    from streamchat_hf.evaluation.benchmark_run import Benchmark

# A model's files are told apart by all their bytes if they have at most SMALL, else by BLOCKS blocks of BLOCK bytes.
SMALL, BLOCK, BLOCKS = 2**25, 2**14, 512

eval_app = typer.Typer(help="Score a model.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")

Videos = Annotated[Path, typer.Argument(help="The folder of its videos.")]
Out = Annotated[Path, typer.Option(help="The folder for results and log; a run that was killed goes on from there.")]
ProtocolOption = Annotated[str, typer.Option(help="official (their clips) or streaming (by the clock).")]
Clock = Annotated[str, typer.Option(help="simulated or wall; of streaming alone.")]
Speed = Annotated[float | None, typer.Option("--tokens-per-second", help="Speed of the simulated clock.")]
Deadline = Annotated[float, typer.Option(help="Seconds after a question by which it must be answered.")]
Fps = Annotated[float, typer.Option(help="Frames per second that the model sees.")]
MaxNewTokens = Annotated[int, typer.Option(help="Where an answer is cut.")]
Jobs = Annotated[int, typer.Option(help="How many processes share the videos; each loads the model.")]


@eval_app.command("streamworld")
@one_line_errors
def eval_streamworld(
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="First clip's seed.")] = 0,
    split: Annotated[str, typer.Option(help="seen or heldout combinations.")] = "heldout",
    clips: Annotated[int, typer.Option(help="How many clips.")] = 300,
    protocol: Annotated[
        str | None, typer.Option(help="official or streaming: questions with deadlines instead; see --out.")
    ] = None,
    clock: Clock = "simulated",
    tokens_per_second: Annotated[
        float | None, typer.Option(help="With --protocol: speed of the simulated clock.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="With --protocol: the folder for results and log.")] = None,
    jobs: Jobs = 1,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """How often a word is true of the world when it is spoken: watching on, frozen at the question, and blind.

    With --protocol: how often a fact that is asked for is told while it is still true.
    """
    if protocol is not None:
        from streamchat_hf.evaluation.benchmark_protocol import Conditions
        from streamchat_hf.evaluation.benchmark_streamworld import FPS, MAX_NEW_TOKENS, StreamWorldBenchmark

        if out is None:
            raise ValueError("a --protocol needs --out, the folder for its results")
        how = Conditions(protocol, FPS, clock, tokens_per_second, max_new_tokens=MAX_NEW_TOKENS)
        benchmark = StreamWorldBenchmark(how, _name(model), seed, split, clips)
        _run(benchmark, model, trust_remote_code, out, jobs, json_file)
        return
    given = {"--out": out is not None, "--jobs": jobs != 1, "--clock": clock != "simulated"}
    given["--tokens-per-second"] = tokens_per_second is not None
    if alone := ", ".join(name for name, is_given in given.items() if is_given):
        raise ValueError(f"{alone}: only together with --protocol official or streaming")
    from streamchat_hf.evaluation.streamworld import evaluate

    console = Console()
    talker, processor = load(model, trust_remote_code)
    result = evaluate(talker, processor, seed=seed, split=split, clips=clips, progress=console.is_terminal)
    viewers = {"fresh": "watching on", "frozen": "frozen", "grey": "blind", "chance": "chance"}
    table = Table(title=f"StreamWorld, {split}: words true of the world when spoken, in percent", title_justify="left")
    table.add_column("about")
    for name in (*viewers.values(), "words"):
        table.add_column(name, justify="right")
    for kind, score in [*result["by_kind"].items(), ("all", {**result["state_accuracy"], "n": result["n"]})]:
        shares = (score.get(viewer) for viewer in viewers)
        table.add_row(kind, *("–" if share is None else f"{100 * share:.1f}" for share in shares), str(score["n"]))
    console.print(table)
    scores = {viewers[viewer]: values["score"] for viewer, values in result["streaming_score"].items()}
    said = ", ".join(f"{name} {'–' if score is None else f'{score:.3f}'}" for name, score in scores.items())
    console.print(f"streaming score: {said}")
    write_json(json_file, result)


@eval_app.command("ovobench")
@one_line_errors
def eval_ovobench(
    annotations: Annotated[Path, typer.Argument(help="ovo_bench_new.json.")],
    videos: Videos,
    out: Out,
    model: ModelOption = None,
    protocol: ProtocolOption = "streaming",
    clock: Clock = "simulated",
    tokens_per_second: Speed = None,
    deadline: Deadline = 2.0,
    fps: Fps = 1.0,
    max_new_tokens: MaxNewTokens = 32,
    jobs: Jobs = 1,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """OVO-Bench: what happened before, what happens now, and whether the time has come to answer."""
    from streamchat_hf.evaluation.benchmark_ovobench import OVOBench
    from streamchat_hf.evaluation.benchmark_protocol import Conditions

    how = Conditions(protocol, fps, clock, tokens_per_second, deadline, max_new_tokens)
    _run(OVOBench(annotations, videos, how, _name(model)), model, trust_remote_code, out, jobs, json_file)


@eval_app.command("streamingbench")
@one_line_errors
def eval_streamingbench(
    annotations: Annotated[Path, typer.Argument(help="questions_real.json, _omni, _sqa or _proactive.")],
    videos: Videos,
    out: Out,
    model: ModelOption = None,
    protocol: ProtocolOption = "streaming",
    clock: Clock = "simulated",
    tokens_per_second: Speed = None,
    deadline: Deadline = 2.0,
    fps: Fps = 1.0,
    max_new_tokens: MaxNewTokens = 32,
    context_time: Annotated[int, typer.Option(help="Seconds shown before a question; 0: all. Not proactive.")] = 60,
    activation: ActivationOption = None,
    jobs: Jobs = 1,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """StreamingBench: questions at a time of the video, and outputs that are due when something has happened."""
    from streamchat_hf.evaluation.benchmark_protocol import Conditions
    from streamchat_hf.evaluation.benchmark_streamingbench import StreamingBench

    how = Conditions(protocol, fps, clock, tokens_per_second, deadline, max_new_tokens)
    benchmark = StreamingBench(annotations, videos, how, _name(model), context_time, activation and _name(activation))
    _run(benchmark, model, trust_remote_code, out, jobs, json_file, activation)


@eval_app.command("etbench")
@one_line_errors
def eval_etbench(
    annotations: Annotated[Path, typer.Argument(help="etbench_txt_v1.0.json.")],
    videos: Videos,
    out: Out,
    model: ModelOption = None,
    protocol: ProtocolOption = "streaming",
    clock: Clock = "simulated",
    tokens_per_second: Speed = None,
    fps: Fps = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Annotated[int, typer.Option(help="Of the random captions that the scorer compares with.")] = 0,
    activation: ActivationOption = None,
    jobs: Jobs = 1,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """ET-Bench: when did it happen. Under streaming it is asked at the start, and must be answered by the end."""
    from streamchat_hf.evaluation.benchmark_etbench import ETBench
    from streamchat_hf.evaluation.benchmark_protocol import Conditions

    how = Conditions(protocol, fps, clock, tokens_per_second, max_new_tokens=max_new_tokens)
    benchmark = ETBench(annotations, videos, how, _name(model), seed, activation and _name(activation))
    _run(benchmark, model, trust_remote_code, out, jobs, json_file, activation)


@eval_app.command("streamchat-eval")
@one_line_errors
def eval_streamchat_eval(
    annotations: Annotated[Path, typer.Argument(help="Questions as JSONL: id, video, time, question, end.")],
    videos: Videos,
    out: Out,
    model: ModelOption = None,
    protocol: ProtocolOption = "streaming",
    clock: Clock = "simulated",
    tokens_per_second: Speed = None,
    fps: Fps = 5.0,
    frames: Annotated[int, typer.Option(help="How many frames are seen before a question.")] = 32,
    max_new_tokens: MaxNewTokens = 256,
    jobs: Jobs = 1,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """Answers to questions about a video at their times, for `streamchat judge` to compare."""
    from streamchat_hf.evaluation.benchmark_protocol import Conditions
    from streamchat_hf.evaluation.benchmark_streamchat_eval import StreamChatEval

    how = Conditions(protocol, fps, clock, tokens_per_second, max_new_tokens=max_new_tokens)
    benchmark = StreamChatEval(annotations, videos, how, _name(model), frames)
    _run(benchmark, model, trust_remote_code, out, jobs, json_file)


def _name(model: str | None) -> str:
    """What a model is called in results: nobody else has the folder it lies in."""
    if model is None:
        return "streamchat-tiny"
    return Path(model).resolve().name if Path(model).exists() else model


def _digest(model: str | None) -> str | None:
    """What tells a local model from others whose folders have its name; the Hub's names need none."""
    if model is None or not Path(model).is_dir():
        return None
    found = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.name != "config.json" and path.suffix not in {".safetensors", ".gguf"}:
            continue
        size = path.stat().st_size
        found.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            # Training changes weights everywhere, so blocks from all over a large file tell.
            for position in range(0, size, BLOCK if size <= SMALL else size // BLOCKS):
                file.seek(position)
                found.update(file.read(BLOCK))
    return found.hexdigest()[:12]


def _viewer(model: str | None, activation: str | None, trust_remote_code: bool) -> "Viewer":
    from streamchat_hf.evaluation.benchmark_protocol import Viewer

    return Viewer(*load(model, trust_remote_code), load_activation(activation, trust_remote_code))


def _run(
    benchmark: "Benchmark",
    model: str | None,
    trust_remote_code: bool,
    out: Path,
    jobs: int,
    json_file: Path | None,
    activation: str | None = None,
) -> None:
    from streamchat_hf.evaluation.benchmark_results import conditions, number
    from streamchat_hf.evaluation.benchmark_run import run

    check_folders(json_file)
    console = Console(highlight=False)
    viewer = functools.partial(_viewer, model, activation, trust_remote_code)
    weights = {"model": _digest(model), "activation": _digest(activation)}
    results: dict[str, Any] = run(benchmark, viewer, out, jobs, console.is_terminal, weights)
    title = f"{benchmark.name}, {results['model']}: {conditions(results)}"
    table = Table("", "metric", "score", "questions", title=title, title_justify="left")
    for column in table.columns[2:]:
        column.justify = "right"
    for score in benchmark.headline(results["scores"]):
        table.add_row(score.label, score.metric, number(score.value), number(score.questions))
    console.print(table)
    console.print(f"written: {out}", soft_wrap=True)
    write_json(json_file, results)
