"""The `streamchat` command: watch a model talk, score it, convert a checkpoint."""

import functools
import itertools
import json
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text
except ImportError as error:
    raise SystemExit(f"the streamchat command needs {error.name}: pip install 'streamchat-hf[cli]'") from None

from PIL import Image
from transformers import AutoModel, AutoProcessor
from transformers.utils import logging as transformers_logging

from streamchat_hf import tiny_checkpoint
from streamchat_hf.streaming.answer import Answer, ask
from streamchat_hf.streaming.filmstrip import draw_filmstrip
from streamchat_hf.streaming.recorder import FrameRecorder
from streamchat_hf.streaming.words import SpokenWord

app = typer.Typer(
    help="Video language models that keep watching while they talk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
eval_app = typer.Typer(help="Score a model.", no_args_is_help=True)
convert_app = typer.Typer(help="Turn a published checkpoint into ours.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
app.add_typer(convert_app, name="convert")

ModelOption = Annotated[str | None, typer.Option("--model", help="Folder or Hub id; default: the tiny checkpoint.")]
RemoteCodeOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code a checkpoint carries.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What a user can cause ends in one line and exit code 1; a defect of ours keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (OSError, ValueError, RuntimeError, ImportError) as error:
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
        with closing(processor.stream(str(clip), fps=fps)) as frames, _live_table(console, question, at) as show:
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
    source: Annotated[str, typer.Argument(help="File, URL, RTSP stream, webcam or folder of images.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    at: Annotated[float, typer.Option(help="When the question is asked, in seconds.")] = 0.0,
    fps: Annotated[float | None, typer.Option(help="Frames per second to look at; default: all.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Speed of a simulated clock; default: the wall clock.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where the answer is cut.")] = 64,
    model: ModelOption = None,
    trust_remote_code: RemoteCodeOption = False,
    filmstrip: Annotated[Path | None, typer.Option(help="Also draw the answer as a film strip.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Ask one question about a stream; every word sees the newest frame."""
    console = Console(highlight=False)
    talker, processor = _load(model, trust_remote_code)
    with closing(processor.stream(source, fps=fps)) as stream, _live_table(console, question, at) as show:
        video = processor.video_processor
        normalised = (video.image_mean, video.image_std) if video.do_normalize else ()
        frames = FrameRecorder(stream, *normalised) if filmstrip else stream
        answer = ask(
            talker,
            processor,
            question,
            frames,
            start_time=at,
            tokens_per_second=tokens_per_second,
            max_new_tokens=max_new_tokens,
            on_words=show,
        )
    frozen = None
    if filmstrip and not getattr(stream, "live", False):  # a live source cannot be watched again
        with closing(processor.stream(source, fps=fps)) as past:
            frozen = _frozen_answer(talker, processor, answer, past)
        _print_both(console, answer, frozen)
    else:
        console.print(Text(answer.text))
    if filmstrip:
        draw_filmstrip(answer.words, frames.images, filmstrip, question, at, frozen.words if frozen else ())
        console.print(f"film strip: {filmstrip}")
    _write_json(json_file, answer.to_dict())


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


@app.command()
@one_line_errors
def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file, such as recipes/streamchat/streamworld.yaml.")],
    output_dir: Annotated[Path, typer.Option("--output-dir", "--output_dir", help="Where everything goes.")],
    resume: Annotated[bool, typer.Option(help="Go on where an interrupted run stopped.")] = True,
) -> None:
    """Train a model by a recipe; model and processor end up in the folder `final` of the output."""
    from streamchat_hf.training.streamworld import train as run_recipe

    Console(highlight=False).print(f"written: {run_recipe(recipe, output_dir, resume=resume)}")


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


def _load(model: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model, ready to speak, and processor."""
    transformers_logging.disable_progress_bar()
    path = model or str(tiny_checkpoint())
    return (
        AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code).eval(),
        AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code),
    )


@contextmanager
def _live_table(console: Console, question: str, at: float) -> Iterator[Callable[[list[SpokenWord]], None]]:
    """A table that grows while words are spoken; on a screen too small it shows the newest ones until the end."""

    def table(words: list[SpokenWord]) -> Table:
        view = Table(title=Text(f"{at:.1f} s  {question}", style="bold"), title_justify="left")
        view.add_column("spoken at", justify="right")
        view.add_column("word")
        view.add_column("newest frame", justify="right")
        view.add_column("frame age", justify="right")
        for word in words:
            view.add_row(_seconds(word.time), Text(word.text), _seconds(word.frame_time), _seconds(word.frame_age))
        return view

    spoken: list[SpokenWord] = []
    room = max(console.height - 6, 1)
    with Live(table(spoken), console=console, auto_refresh=False) as live:

        def show(words: list[SpokenWord]) -> None:
            spoken[:] = words
            live.update(table(words[-room:]), refresh=True)

        yield show
        live.update(table(spoken))
    if not console.is_terminal:
        console.print()  # there rich leaves the last line open


def _seconds(time: float) -> str:
    return "–" if math.isnan(time) else f"{time:.2f} s"


def _frozen_answer(talker: Any, processor: Any, answer: Answer, frames: Iterable[Any]) -> Answer:
    """The same question with the video stopped when it was asked, spoken at the pace of `answer`."""
    seconds = answer.token_times[-1] - answer.token_times[0] if answer.ids else 0.0
    return ask(
        talker,
        processor,
        answer.question,
        itertools.takewhile(lambda frame: frame[0] <= answer.start_time, frames),
        start_time=answer.start_time,
        tokens_per_second=(len(answer.ids) - 1) / seconds if seconds else 1.0,
        max_new_tokens=max(len(answer.ids), 1),
    )


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
