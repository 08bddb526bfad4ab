"""The `streamchat` command: watch a model talk, score it, convert a checkpoint."""

import atexit
import functools
import gc
import itertools
import json
import math
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise SystemExit(f"the streamchat command needs {error.name}: pip install 'streamchat-hf[cli]'") from None

from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging as transformers_logging

from streamchat_hf import tiny_checkpoint
from streamchat_hf.data.synthesize_cli import data_app
from streamchat_hf.streaming.answer import Answer, ask
from streamchat_hf.streaming.events import ResponseEnded
from streamchat_hf.streaming.filmstrip import draw_filmstrip
from streamchat_hf.streaming.recorder import FrameRecorder
from streamchat_hf.streaming.recording import Recording
from streamchat_hf.streaming.session import GRACE, StreamingSession
from streamchat_hf.streaming.terminal import Chat, live_word_table, statistics_table


class App(typer.Typer):
    """A command line that does not wait for a source that hangs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command and ends the process.

        A thread that hangs in FFmpeg takes hold of the interpreter every tenth of a second, to see whether its time is
        up. One that is being taken down crashes on that.
        """
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if any(thread.name.startswith("streamchat") for thread in threading.enumerate()):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(end.code or 0))
            raise


app = App(
    help="Video language models that keep watching while they talk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
eval_app = typer.Typer(help="Score a model.", no_args_is_help=True)
convert_app = typer.Typer(help="Turn a published checkpoint into ours.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
app.add_typer(data_app, name="data")
app.add_typer(convert_app, name="convert")
bench_app = typer.Typer(help="Measure what something costs.", no_args_is_help=True)
app.add_typer(bench_app, name="bench")

# The interpreter's last collection, over all that torch and transformers hold, would make Ctrl-C take over a second.
atexit.register(gc.freeze)
STDIN = 0

ModelOption = Annotated[str | None, typer.Option("--model", help="Folder or Hub id; default: the tiny checkpoint.")]
RemoteCodeOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code a checkpoint carries.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What a user can cause ends in one line and exit code 1; a defect of ours keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (OSError, ValueError, RuntimeError, ImportError, TemplateError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            Console(stderr=True, highlight=False).print(Text(f"error: {line}", style="red"), soft_wrap=True)
            raise typer.Exit(1) from None

    return run


@app.command()
@one_line_errors
def demo(
    out: Annotated[Path, typer.Option(help="The film strip to draw.")] = Path("filmstrip.png"),
    seed: Annotated[int, typer.Option(help="Which clip; the default is one in which much happens.")] = 57,
    at: Annotated[float, typer.Option(help="When the question is asked, in seconds.")] = 2.0,
    duration: Annotated[float, typer.Option(help="Length of the clip, in seconds.")] = 12.0,
    model: ModelOption = None,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """A tiny model watches a clip while it answers; then again, with the video frozen at the question."""
    from streamchat_hf.data.streamworld import World
    from streamchat_hf.data.streamworld_render import render, write_mp4

    fps, words_per_second, question = 2.0, 2.0, "what do you see ?"
    console = Console(highlight=False)
    talker, processor = _load(model, trust_remote_code)
    world = World.sample(seed, split="heldout", duration=duration)
    speak = functools.partial(
        ask,
        talker,
        processor,
        question,
        start_time=at,
        tokens_per_second=words_per_second,
        max_new_tokens=math.floor((duration - at) * words_per_second),
    )
    console.print(f"a clip of {duration:g} s at {fps:g} frames per second, {words_per_second:g} words per second")
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        write_mp4(world, clip, fps=10, size=96)
        with closing(processor.stream(str(clip), fps=fps)) as frames, live_word_table(console, question, at) as show:
            live = speak(frames, on_words=show)
        with closing(processor.stream(str(clip), fps=fps)) as frames:
            frozen = speak(itertools.takewhile(lambda frame: frame[0] <= at, frames))
    _print_both(console, live, frozen)
    times = [i / fps for i in range(math.ceil(duration * fps))]
    pictures = render([world], [times], size=168)[0].permute(0, 2, 3, 1).numpy()
    images = [(time, Image.fromarray(picture)) for time, picture in zip(times, pictures, strict=True)]
    draw_filmstrip(live.words, images, out, question, at, frozen.words)
    console.print(f"film strip: {out}")
    _write_json(json_file, {"seed": seed, "duration": duration, "live": live.to_dict(), "frozen": frozen.to_dict()})


@app.command()
@one_line_errors
def chat(
    source: Annotated[str, typer.Argument(help="File, URL, RTSP stream, camera:0, screen or folder of images.")],
    question: Annotated[str | None, typer.Argument(help="What to ask; default: every line of the input.")] = None,
    at: Annotated[float, typer.Option(help="When QUESTION is asked, in seconds.")] = 0.0,
    fps: Annotated[float | None, typer.Option(help="Frames per second to look at; default: all.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Speed of a simulated clock; default: the wall clock.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where an answer is cut.")] = 64,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    policy: Annotated[str, typer.Option(help="When to speak: on-question.")] = "on-question",
    backpressure: Annotated[
        str, typer.Option(help="When frames come too fast: latest (keep the newest), drop_oldest or block.")
    ] = "latest",
    live: Annotated[bool | None, typer.Option(help="Whether frames happen now; default: by the source.")] = None,
    stall_timeout: Annotated[float, typer.Option(help="Seconds a live source may be silent.")] = 30.0,
    model: ModelOption = None,
    trust_remote_code: RemoteCodeOption = False,
    record: Annotated[Path | None, typer.Option(help="Also write a recording into this folder.")] = None,
    filmstrip: Annotated[
        Path | None, typer.Option(help="Also draw the answer to QUESTION as a film strip; the chat ends with it.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Chat about a stream while it goes on; every word sees the newest frame.

    With QUESTION the chat ends with its answer, unless more can be typed. A question interrupts the answer under way.
    """
    if filmstrip is not None and question is None:
        raise ValueError("a film strip needs a QUESTION")
    console = Console(highlight=False)
    talker, processor = _load(model, trust_remote_code)
    watch = functools.partial(processor.stream, source, fps=fps, live=live, stall_timeout=stall_timeout)
    speak = functools.partial(StreamingSession, talker, processor, system=system, do_sample=False)
    video = processor.video_processor
    normalised = (video.image_mean, video.image_std) if video.do_normalize else ()
    frames = FrameRecorder(watch(), *normalised) if filmstrip else watch()
    _find_out_if_live(frames)
    session = speak(
        frames,
        policy=policy,
        tokens_per_second=tokens_per_second,
        backpressure=backpressure,
        max_new_tokens=max_new_tokens,
        record=record,
        frame_timeout=stall_timeout + GRACE,  # the stream itself says more
    )
    typing = os.isatty(STDIN) and console.is_interactive and filmstrip is None
    conversation = Chat(session, processor.tokenizer, console, STDIN if typing or question is None else None)
    if question is not None:
        conversation.ask(question, at)
    _run(console, session, conversation, json_file)
    if not conversation.answers and not typing:
        raise ValueError("nothing was asked: give a QUESTION, or lines to read")
    if filmstrip is not None:
        [answer], frozen = conversation.answers, None
        if not frames.live:  # a live source cannot be watched again
            frozen = _frozen_answer(speak, answer, watch())
            _print_both(console, answer, frozen)
        draw_filmstrip(answer.words, frames.images, filmstrip, answer.question, at, frozen.words if frozen else ())
        console.print(f"film strip: {filmstrip}")


@app.command()
@one_line_errors
def replay(
    folder: Annotated[Path, typer.Argument(help="What `chat --record` has written.")],
    max_new_tokens: Annotated[int, typer.Option(help="As it was in the recorded chat.")] = 64,
    system: Annotated[str | None, typer.Option(help="As it was in the recorded chat.")] = None,
    model: ModelOption = None,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """Play a recorded chat again, and tell whether the model says the same."""
    console = Console(highlight=False)
    recording = Recording(folder)
    talker, processor = _load(model, trust_remote_code)
    session = StreamingSession(
        talker, processor, recording, max_new_tokens=max_new_tokens, system=system, do_sample=False
    )
    conversation = Chat(session, processor.tokenizer, console)
    _run(console, session, conversation, json_file)
    said = [token for answer in conversation.answers for token in answer.ids]
    if said != recording.tokens:
        pairs = enumerate(itertools.zip_longest(said, recording.tokens), start=1)
        first = next(number for number, (now, then) in pairs if now != then)
        raise ValueError(f"said otherwise than recorded, from token {first} of {len(recording.tokens)} on")
    console.print(f"the same {len(said)} tokens as recorded")


@eval_app.command("streamworld")
@one_line_errors
def eval_streamworld(
    model: ModelOption = None,
    seed: Annotated[int, typer.Option(help="First clip's seed.")] = 0,
    split: Annotated[str, typer.Option(help="seen or heldout combinations.")] = "heldout",
    clips: Annotated[int, typer.Option(help="How many clips.")] = 300,
    trust_remote_code: RemoteCodeOption = False,
    json_file: JsonOption = None,
) -> None:
    """How often a word is true of the world when it is spoken: watching on, frozen at the question, and blind."""
    from streamchat_hf.evaluation.streamworld import evaluate

    console = Console()
    talker, processor = _load(model, trust_remote_code)
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
    _write_json(json_file, result)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
@one_line_errors
def train(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/streamchat/sft.yaml.")],
) -> None:
    """Train a model by a recipe; `--key value` behind it wins over the file. The result is the folder `final`."""
    from streamchat_hf.training.__main__ import main

    Console(highlight=False).print(f"written: {main([str(recipe), *context.args])}")


@convert_app.command("streamformer")
@one_line_errors
def convert_streamformer_command(
    source: Annotated[str, typer.Argument(help="The published checkpoint: folder or Hub id.")],
    dest: Annotated[Path, typer.Argument(help="The folder to write.")],
) -> None:
    """Turn the published StreamFormer checkpoint into ours."""
    from streamchat_hf.convert.streamformer import convert_streamformer

    convert_streamformer(source, dest)
    Console(highlight=False).print(f"written: {dest}")


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

    for path in (plot, json_file):  # rather than after minutes of measuring
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder")
    if plot is not None:
        from streamchat_hf.evaluation.decode_cost_plot import plot_decode_cost
    console = Console(highlight=False)
    size = decode_cost.SMALL if small else decode_cost.SMOLLM2
    result = decode_cost.measure_decode_cost(size, device, dtype, repeats, progress=console.is_terminal)
    _write_json(json_file, result)
    _print_decode_cost(console, result, judge=not small)
    if plot is not None:
        plot_decode_cost(result, plot)
        console.print(f"plot: {plot}")


def _print_decode_cost(console: Console, result: dict[str, Any], judge: bool) -> None:
    """The ratios, each beside its bound and, if it is to be judged by it, the verdict; the curve; the memory."""
    from streamchat_hf.evaluation.decode_cost import CURVE, RATIOS, median_curve, median_seconds

    ratios = Table("", "ratio", "bound", "holds", "ms", title="Medians, one over the other", title_justify="left")
    for name, ratio in RATIOS.items():
        times = (f"{1000 * median_seconds(result['steps'], mode):.1f}" for mode in (ratio.above, ratio.below))
        verdict = Text("yes", style="green") if ratio.holds(result[name]) else Text("no", style="bold red")
        bound = f"{'≥' if ratio.at_least else '≤'} {ratio.bound:.2f}"
        ratios.add_row(ratio.what, f"{result[name]:.3f}", bound, verdict if judge else "–", " / ".join(times))
    curve = Table("frames seen", *CURVE, title="One token, in ms", title_justify="left")
    for frames, seconds in median_curve(result["steps"]).items():
        curve.add_row(str(frames), *(f"{1000 * seconds[mode]:.1f}" for mode in CURVE))
    memory = Table("frames seen", "visual rows", "process", "CUDA", title="Memory, in MiB", title_justify="left")
    for frames, *sizes in (row.values() for row in result["memory"]):
        memory.add_row(str(frames), *("–" if size is None else f"{size / 2**20:.1f}" for size in sizes))
    for table in (ratios, curve, memory):
        console.print(table)


def _load(model: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model, ready to speak, and processor."""
    transformers_logging.disable_progress_bar()
    path = model or str(tiny_checkpoint())
    return (
        AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code).eval(),
        AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code),
    )


def _find_out_if_live(frames: Any) -> None:
    """Looks into a playlist on the network, if it is one, beside the main thread: Ctrl-C could not end it there."""
    look = threading.Thread(target=lambda: frames.live, name="streamchat source", daemon=True)
    look.start()
    look.join()


def _run(console: Console, session: StreamingSession, conversation: Chat, json_file: Path | None) -> None:
    """Shows a session until it ends; whatever ends it, its statistics and what was said are kept."""
    completed = False
    try:
        conversation.run()
        completed = True
    finally:
        statistics, answers = session.statistics(), [answer.to_dict() for answer in conversation.answers]
        if len(answers) > 1 or not completed:
            console.print(statistics_table(statistics))
        said = answers[0] if len(answers) == 1 else {**(answers[0] if answers else {}), "answers": answers}
        _write_json(json_file, {**said, "statistics": statistics.to_dict()})


def _frozen_answer(speak: Callable[..., StreamingSession], answer: Answer, frames: Any) -> Answer:
    """The same question with the video stopped when it was asked, spoken at the pace of `answer`."""
    seconds = answer.token_times[-1] - answer.token_times[0] if answer.ids else 0.0
    session = speak(
        itertools.takewhile(lambda frame: frame[0] <= answer.start_time, frames),
        tokens_per_second=(len(answer.ids) - 1) / seconds if seconds else 1.0,
        max_new_tokens=max(len(answer.ids), 1),
    )
    with closing(frames), session:
        session.ask(answer.question, answer.start_time)
        return next(event.answer for event in session if isinstance(event, ResponseEnded))


def _print_both(console: Console, live: Answer, frozen: Answer) -> None:
    """Both answers as sentences, with what watching changed in colour."""
    sentence = Text("watching on:  ", style="dim")
    for word, other in itertools.zip_longest(live.words, frozen.words):
        if word is not None:
            same = other is not None and word.text == other.text
            sentence.append(f"{word.text} ", style="not dim" if same else "not dim bold yellow")
    console.print(sentence)
    console.print(Text(f"frozen:       {frozen.text}", style="dim"))


def _write_json(path: Path | None, value: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(value, indent=1) + "\n")
