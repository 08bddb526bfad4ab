"""`streamchat bench`: at what cost."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from streamchat_cli.app import JsonOption, app, check_folders, one_line_errors, write_json

bench_app = typer.Typer(help="Measure what something costs.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")


@bench_app.command("decode")
@one_line_errors
def bench_decode(
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    repeats: Annotated[int, typer.Option(help="How often each way behind a ratio is timed.")] = 15,
    small: Annotated[bool, typer.Option("--small", help="A tiny model, in seconds; its times mean nothing.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw step time against frames seen.")] = None,
    json_file: JsonOption = None,
) -> None:
    """What a decoding step costs: with a new frame, without one, and with everything prefilled again."""
    from streamchat_hf.evaluation import decode_cost

    check_folders(plot, json_file)
    if plot is not None:
        from streamchat_hf.evaluation.decode_cost_plot import plot_decode_cost
    console = Console(highlight=False)
    size = decode_cost.SMALL if small else decode_cost.SMOLLM2
    result = decode_cost.measure_decode_cost(size, device, dtype, repeats, progress=console.is_terminal)
    write_json(json_file, result)
    _print_decode_cost(console, result, judge=not small)
    if plot is not None:
        plot_decode_cost(result, plot)
        console.print(f"plot: {plot}")


def _print_decode_cost(console: Console, result: dict[str, Any], judge: bool) -> None:
    """The ratios, each beside its bound and, if it is to be judged by it, the verdict; the curve; the memory."""
    from streamchat_hf.evaluation.decode_cost import CURVE, RATIOS, median_curve

    ratios = _ratio_table(RATIOS, result, judge)
    curve = Table("frames seen", *CURVE, title="One token, in ms", title_justify="left")
    for frames, seconds in median_curve(result["steps"]).items():
        curve.add_row(str(frames), *(f"{1000 * seconds[mode]:.1f}" for mode in CURVE))
    memory = Table("frames seen", "visual rows", "process", "CUDA", title="Memory, in MiB", title_justify="left")
    for frames, *sizes in (row.values() for row in result["memory"]):
        memory.add_row(str(frames), *("–" if size is None else f"{size / 2**20:.1f}" for size in sizes))
    for table in (ratios, curve, memory):
        console.print(table)


@bench_app.command("streamformer")
@one_line_errors
def bench_streamformer(
    repeats: Annotated[int, typer.Option(help="How often each way behind a ratio is timed.")] = 9,
    full: Annotated[bool, typer.Option("--full", help="More points on the curves, in about twice the time.")] = False,
    small: Annotated[bool, typer.Option("--small", help="A tiny model, in seconds; its times mean nothing.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw time and memory against frames seen.")] = None,
    json_file: JsonOption = None,
) -> None:
    """What a new frame costs the backbone: with the cache, and with the clip computed again."""
    from streamchat_hf.evaluation import streamformer_cost

    check_folders(plot, json_file)
    if full and small:
        raise typer.BadParameter("--full and --small exclude each other")
    if plot is not None:
        from streamchat_hf.evaluation.streamformer_cost_plot import plot_streamformer_cost
    console = Console(highlight=False)
    size = streamformer_cost.FULL if full else streamformer_cost.SMALL if small else streamformer_cost.BASE
    result = streamformer_cost.measure_streamformer_cost(size, repeats, progress=console.is_terminal)
    write_json(json_file, result)
    _print_streamformer_cost(console, result, judge=not small)
    if plot is not None:
        plot_streamformer_cost(result, plot)
        console.print(f"plot: {plot}")


def _print_streamformer_cost(console: Console, result: dict[str, Any], judge: bool) -> None:
    """The ratios beside their bounds and verdicts; the curves of each type; memory in the long run."""
    from streamchat_hf.evaluation.streamformer_cost import MODES, RATIOS, curves

    console.print(_ratio_table(RATIOS, result, judge))
    for dtype in ("float32", "bfloat16"):
        title = f"One new frame, {dtype}: CPU ms, and MiB of the cache"
        table = Table("frames seen", *MODES, "cache, MiB", title=title, title_justify="left")
        for history, modes in curves(result["rows"], dtype).items():
            times = (f"{1000 * modes[mode]['cpu_seconds_per_frame']:.1f}" if mode in modes else "–" for mode in MODES)
            held = f"{modes['cache']['cache_bytes'] / 2**20:.1f}" if "cache" in modes else "–"
            table.add_row(str(history), *times, held)
        console.print(table)
    memory = Table("frames seen", "cache", "process", title="Memory of the small model, in MiB", title_justify="left")
    for frames, *sizes in (row.values() for row in result["memory"]):
        memory.add_row(str(frames), *("–" if size is None else f"{size / 2**20:.1f}" for size in sizes))
    console.print(memory)


@bench_app.command("videollm-online")
@one_line_errors
def bench_videollm_online(
    repeats: Annotated[int, typer.Option(help="How often a silent frame is timed.")] = 9,
    small: Annotated[bool, typer.Option("--small", help="A tiny model, in seconds; its times mean nothing.")] = False,
    json_file: JsonOption = None,
) -> None:
    """What watching costs a model that chooses when to speak: a silent frame, and five minutes by each method."""
    from streamchat_hf.evaluation import videollm_online_cost

    check_folders(json_file)
    console = Console(highlight=False)
    size = videollm_online_cost.SMALL if small else videollm_online_cost.BASE
    result = videollm_online_cost.measure_live_cost(size, repeats, progress=console.is_terminal)
    write_json(json_file, result)
    silent = Table("frames seen", "tokens held", "CPU ms", title="A silent frame", title_justify="left")
    for row in result["silent_frame"]:
        silent.add_row(str(row["frames_seen"]), str(row["tokens"]), f"{1000 * row['cpu_seconds']:.1f}")
    title = f"{size.frames} frames, an answer every {size.every}"
    methods = Table("method", "tokens held", "cache, MiB", "frames a second", title=title, title_justify="left")
    for row in result["methods"]:
        held, rate = f"{row['cache_bytes'] / 2**20:.1f}", f"{row['frames_per_second']:.1f}"
        methods.add_row(row["method"], str(row["tokens"]), held, rate)
    for table in (silent, methods):
        console.print(table)


def _ratio_table(ratios: dict[str, Any], result: dict[str, Any], judge: bool) -> Table:
    """Every ratio beside its bound and, if it is to be judged by it, the verdict, and both medians."""
    from streamchat_hf.evaluation.timing import median_seconds

    table = Table("", "ratio", "bound", "holds", "ms", title="Medians, one over the other", title_justify="left")
    for name, ratio in ratios.items():
        times = (f"{1000 * median_seconds(result['steps'], mode):.1f}" for mode in (ratio.above, ratio.below))
        verdict = Text("yes", style="green") if ratio.holds(result[name]) else Text("no", style="bold red")
        bound = f"{'≥' if ratio.at_least else '≤'} {ratio.bound:.2f}"
        table.add_row(ratio.what, f"{result[name]:.3f}", bound, verdict if judge else "–", " / ".join(times))
    return table
