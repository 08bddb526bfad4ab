"""`streamchat demo`, `chat` and `replay`: a model in front of a stream."""

import functools
import itertools
import math
import os
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from streamchat_cli.app import (
    STDIN,
    ActivationOption,
    JsonOption,
    ModelOption,
    RemoteCodeOption,
    app,
    load,
    load_activation,
    one_line_errors,
    write_json,
)

if TYPE_CHECKING:
    from streamchat_hf.streaming.answer import Answer
    from streamchat_hf.streaming.recorder import FrameRecorder
    from streamchat_hf.streaming.session import StreamingSession
    from streamchat_hf.streaming.terminal import Chat


PolicyOption = Annotated[
    str | None, typer.Option(help="on-question, streaming-eos or activation; default: the model's own.")
]


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
    from PIL import Image

    from streamchat_hf.data.streamworld import World
    from streamchat_hf.data.streamworld_render import render, write_mp4
    from streamchat_hf.streaming.answer import ask
    from streamchat_hf.streaming.filmstrip import draw_filmstrip
    from streamchat_hf.streaming.terminal import live_word_table

    fps, words_per_second, question = 2.0, 2.0, "what do you see ?"
    console = Console(highlight=False)
    talker, processor = load(model, trust_remote_code)
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
    write_json(json_file, {"seed": seed, "duration": duration, "live": live.to_dict(), "frozen": frozen.to_dict()})


@app.command()
@one_line_errors
def chat(
    source: Annotated[str, typer.Argument(help="File, URL, RTSP stream, camera:0, screen or folder of images.")],
    question: Annotated[str | None, typer.Argument(help="What to ask; default: every line of the input.")] = None,
    at: Annotated[float, typer.Option(help="When QUESTION is asked, in seconds.")] = 0.0,
    fps: Annotated[float | None, typer.Option(help="Frames per second to look at; default: its own, or all.")] = None,
    tokens_per_second: Annotated[
        float | None, typer.Option(help="Speed of a simulated clock; default: the wall clock.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Where an answer is cut.")] = 64,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    policy: PolicyOption = None,
    activation: ActivationOption = None,
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
    A model that speaks by itself is watched until the source ends. With --activation it answers the newest question
    whenever that model says so, and not when it is asked.
    """
    from streamchat_hf.streaming.session import GRACE, StreamingSession
    from streamchat_hf.streaming.terminal import Chat

    if filmstrip is not None and question is None:
        raise ValueError("a film strip needs a QUESTION")
    console = Console(highlight=False)
    (talker, processor), watcher = load(model, trust_remote_code), load_activation(activation, trust_remote_code)
    policy = _choose_policy(talker, policy, watcher, filmstrip)
    fps = watcher[1].frame_fps if fps is None and watcher is not None else fps
    watch = functools.partial(processor.stream, source, fps=fps, live=live, stall_timeout=stall_timeout)
    speak = functools.partial(StreamingSession, talker, processor, system=system, do_sample=False)
    frames = _keep_images(watch(), processor.video_processor) if filmstrip else watch()
    _find_out_if_live(frames)
    session = speak(
        frames,
        policy=policy,
        activation=watcher,
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
    if not (conversation.answers or typing) and policy == "on-question":
        raise ValueError("nothing was asked: give a QUESTION, or lines to read")
    if filmstrip is not None:
        [answer] = conversation.answers
        # A live source cannot be watched again.
        frozen = None if frames.live else _frozen_answer(speak, answer, watch())
        _draw_answer(console, answer, frozen, frames.images, filmstrip, at)


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
    from streamchat_hf.streaming.recording import Recording
    from streamchat_hf.streaming.session import StreamingSession
    from streamchat_hf.streaming.terminal import Chat

    console = Console(highlight=False)
    recording = Recording(folder)
    talker, processor = load(model, trust_remote_code)
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


def _choose_policy(talker: Any, policy: str | None, activation: Any, filmstrip: Path | None) -> str:
    """The policy of a chat, if all that was asked for goes together."""
    from streamchat_hf.streaming.talker import choose_policy

    if activation is not None and policy not in (None, "activation"):
        raise ValueError(f"--activation says when to answer, and so does --policy {policy}: leave one out")
    policy = choose_policy(talker, policy, activation)
    if filmstrip is not None and policy != "on-question":
        raise ValueError("a film strip shows the answer to one QUESTION: add --policy on-question")
    return policy


def _keep_images(frames: Any, video_processor: Any) -> "FrameRecorder":
    """The same frames, kept as pictures for the film strip."""
    from streamchat_hf.streaming.recorder import FrameRecorder

    normalised = (video_processor.image_mean, video_processor.image_std) if video_processor.do_normalize else ()
    return FrameRecorder(frames, *normalised)


def _find_out_if_live(frames: Any) -> None:
    """Looks into a playlist on the network, if it is one, beside the main thread: Ctrl-C could not end it there."""
    look = threading.Thread(target=lambda: frames.live, name="streamchat source", daemon=True)
    look.start()
    look.join()


def _run(console: Console, session: "StreamingSession", conversation: "Chat", json_file: Path | None) -> None:
    """Shows a session until it ends; whatever ends it, its statistics and what was said are kept."""
    from streamchat_hf.streaming.terminal import statistics_table

    completed = False
    try:
        conversation.run()
        completed = True
    finally:
        statistics, answers = session.statistics(), [answer.to_dict() for answer in conversation.answers]
        if len(answers) > 1 or not completed:
            console.print(statistics_table(statistics))
        said = answers[0] if len(answers) == 1 else {**(answers[0] if answers else {}), "answers": answers}
        write_json(json_file, {**said, "statistics": statistics.to_dict()})


def _frozen_answer(speak: Callable[..., "StreamingSession"], answer: "Answer", frames: Any) -> "Answer":
    """The same question with the video stopped when it was asked, spoken at the pace of `answer`."""
    from streamchat_hf.streaming.events import ResponseEnded

    seconds = answer.token_times[-1] - answer.token_times[0] if answer.ids else 0.0
    session = speak(
        itertools.takewhile(lambda frame: frame[0] <= answer.start_time, frames),
        tokens_per_second=(len(answer.ids) - 1) / seconds if seconds else 1.0,
        max_new_tokens=max(len(answer.ids), 1),
    )
    with closing(frames), session:
        session.ask(answer.question, answer.start_time)
        return next(event.answer for event in session if isinstance(event, ResponseEnded))


def _draw_answer(
    console: Console, answer: "Answer", frozen: "Answer | None", images: list, filmstrip: Path, at: float
) -> None:
    """An answer as a film strip, beside the one with the video frozen if there is one."""
    from streamchat_hf.streaming.filmstrip import draw_filmstrip

    if frozen is not None:
        _print_both(console, answer, frozen)
    draw_filmstrip(answer.words, images, filmstrip, answer.question, at, frozen.words if frozen else ())
    console.print(f"film strip: {filmstrip}")


def _print_both(console: Console, live: "Answer", frozen: "Answer") -> None:
    """Both answers as sentences, with what watching changed in colour."""
    sentence = Text("watching on:  ", style="dim")
    for word, other in itertools.zip_longest(live.words, frozen.words):
        if word is not None:
            same = other is not None and word.text == other.text
            sentence.append(f"{word.text} ", style="not dim" if same else "not dim bold yellow")
    console.print(sentence)
    console.print(Text(f"frozen:       {frozen.text}", style="dim"))
