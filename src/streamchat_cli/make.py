"""`streamchat data`, `train` and `convert`: what makes data and models."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from streamchat_cli.app import JsonOption, app, check_folders, one_line_errors, write_json

if TYPE_CHECKING:
    from streamchat_hf.data.stream_eval_make import StreamEvalRun
    from streamchat_hf.data.synthesize import Synthesis

data_app = typer.Typer(help="Make data to train on, or to evaluate on.", no_args_is_help=True)
convert_app = typer.Typer(help="Turn a published checkpoint into ours.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(convert_app, name="convert")

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
STREAM_EVAL_MEANINGS = MEANINGS | {
    "unread": "in the review file, where nobody has kept them yet",
    "leaks": "quotes a caption, or speaks of captions or seconds",
    "not_visible": "says what cannot be seen around the question",
    "not_needed": "can be answered without that part of the video",
    "not_live": "nothing that is asked while watching live",
}
LIVE_MEANINGS = {
    "kept": "written",
    "empty": MEANINGS["empty"],
    "broken_json": MEANINGS["broken_json"],
    "missing_field": "an answer without time or text",
    "wrong_times": "not one answer for each moment",
    "tells_time": "speaks of seconds, which nobody sees",
    "http_error": MEANINGS["http_error"],
}


@data_app.command("synthesize")
@one_line_errors
def synthesize_command(
    captions: Annotated[Path, typer.Argument(help="Dense captions, one video per line of JSON.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; its log, for going on, lies beside it.")],
    model: Annotated[str, typer.Option(help="Hub id, folder or URL; with --base-url the name the server knows.")],
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint: http://host/v1.")] = None,
    workers: Annotated[int, typer.Option(help="How many conversations at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice of segments and examples.")] = 0,
    limit: Annotated[int | None, typer.Option(help="How many segments; default: one per video.")] = None,
    longest: Annotated[float, typer.Option(help="Length of a segment, in seconds.")] = 32.0,
    review: Annotated[Path | None, typer.Option(help="A YAML file to read through; its verdicts count.")] = None,
    unread: Annotated[int, typer.Option(help="How many entries may wait there for a verdict.")] = 200,
    embedder: Annotated[str | None, typer.Option(help="Sentence encoder that finds near duplicates.")] = None,
    threshold: Annotated[float, typer.Option(help="Cosine similarity that makes a near duplicate.")] = 0.85,
    json_file: JsonOption = None,
) -> None:
    """Let a language model make dense instructions out of dense captions."""
    from streamchat_hf.data.synthesize import synthesize
    from streamchat_hf.data.synthesize_dedup import SentenceEncoder
    from streamchat_hf.data.synthesize_llm import load_language_model

    check_folders(out, review, json_file)
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
    _print_run(console, result, MEANINGS, longest, out)
    if review is not None:
        console.print(f"to be read: {result.unread} entries of {review}")
    write_json(json_file, dataclasses.asdict(result))


def _print_run(
    console: Console, result: "Synthesis | StreamEvalRun", meanings: dict[str, str], longest: float, out: Path
) -> None:
    console.print(_outcomes(result.counts, meanings, "segments"))
    if result.silent_videos:
        console.print(f"videos without captions for a segment of at most {longest:g} s: {result.silent_videos}")
    console.print(f"answered in this run: {result.asked}")
    console.print(f"written: {out}")


def _outcomes(counts: dict[str, int], meanings: dict[str, str], noun: str) -> Table:
    table = Table("outcome", noun, "", title=f"{sum(counts.values())} {noun}", title_justify="left")
    table.columns[1].justify = "right"
    for outcome, count in counts.items():
        table.add_row(outcome.replace("_", " "), str(count), meanings[outcome], style=None if count else "dim")
    return table


@data_app.command("stream-eval")
@one_line_errors
def stream_eval_command(
    captions: Annotated[Path, typer.Argument(help="Dense captions, one video per line of JSON.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; its log, for going on, lies beside it.")],
    model: Annotated[str, typer.Option(help="Hub id, folder or URL; with --base-url the name the server knows.")],
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint: http://host/v1.")] = None,
    workers: Annotated[int, typer.Option(help="How many conversations at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice of segments.")] = 0,
    limit: Annotated[int | None, typer.Option(help="How many segments; default: one per video.")] = None,
    longest: Annotated[float, typer.Option(help="Length of a segment, in seconds.")] = 32.0,
    review: Annotated[Path | None, typer.Option(help="A YAML file to read; only what is kept goes out.")] = None,
    embedder: Annotated[str | None, typer.Option(help="Sentence encoder that finds near duplicates.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Let a language model make a StreamEval set out of dense captions: questions at a moment of a video."""
    from streamchat_hf.data.stream_eval_make import make_stream_eval
    from streamchat_hf.data.synthesize_dedup import SentenceEncoder
    from streamchat_hf.data.synthesize_llm import load_language_model

    check_folders(out, review, json_file)
    console = Console(highlight=False)
    result = make_stream_eval(
        captions,
        out,
        load_language_model(model, base_url),
        seed=seed,
        limit=limit,
        longest=longest,
        workers=workers,
        review=review,
        embed=SentenceEncoder(embedder) if embedder is not None else None,
        progress=console.is_terminal,
    )
    _print_run(console, result, STREAM_EVAL_MEANINGS, longest, out)
    if review is not None:
        console.print(f"to be read: {result.counts['unread']} entries of {review}")
    write_json(json_file, dataclasses.asdict(result))


@data_app.command("live-dialogues")
@one_line_errors
def live_dialogues_command(
    source: Annotated[Literal["coin", "goalstep"], typer.Argument(help="What the annotations are.")],
    annotations: Annotated[Path, typer.Argument(help="COIN.json (its training videos) or goalstep_train.json.")],
    out: Annotated[Path, typer.Option(help="The JSONL file to write; its log, for going on, lies beside it.")],
    model: Annotated[str, typer.Option(help="Hub id, folder or URL; with --base-url the name the server knows.")],
    base_url: Annotated[str | None, typer.Option(help="An OpenAI-compatible endpoint: http://host/v1.")] = None,
    workers: Annotated[int, typer.Option(help="How many conversations at once.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the choice of questions.")] = 0,
    queries: Annotated[int, typer.Option(help="How many questions about each video.")] = 10,
    json_file: JsonOption = None,
) -> None:
    """Let a language model make streaming dialogues out of the steps of COIN or Ego4D GoalStep."""
    from streamchat_hf.data.annotations import BadRows
    from streamchat_hf.data.live_annotations import coin_timeline, read_coin, read_goalstep
    from streamchat_hf.data.live_dialogue import write_live_dialogues
    from streamchat_hf.data.synthesize_llm import load_language_model

    check_folders(out, json_file)
    console, bad = Console(highlight=False), BadRows()
    if source == "coin":
        timelines = [coin_timeline(video, f"{video.id}.mp4") for video in read_coin(str(annotations), bad, "train")]
    else:
        timelines = list(read_goalstep(str(annotations), bad))
    result = write_live_dialogues(
        timelines,
        out,
        load_language_model(model, base_url),
        queries=queries,
        seed=seed,
        workers=workers,
        progress=console.is_terminal,
    )
    console.print(_outcomes(result.counts, LIVE_MEANINGS, "questions"))
    for problem, count in result.unfit.items():
        if count:
            console.print(f"not asked about, {problem.replace('_', ' ')}: {count}")
    if bad.counts:
        console.print(f"left out of {annotations}: {bad}", soft_wrap=True)
    console.print(f"answered in this run: {result.asked}")
    console.print(f"written: {out}")
    write_json(json_file, dataclasses.asdict(result) | {"bad_rows": bad.counts})


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)
@one_line_errors
def train(
    context: typer.Context,
    recipe: Annotated[str, typer.Argument(help="YAML file, or a shipped one, such as streamchat/sft.yaml.")],
) -> None:
    """Train a model by a recipe; `--key value` behind it wins over the file. The result is the folder `final`."""
    from streamchat_hf.training.__main__ import main

    Console(highlight=False).print(f"written: {main([recipe, *context.args])}")


@convert_app.command("streamformer")
@one_line_errors
def convert_streamformer_command(
    source: Annotated[str, typer.Argument(help="The published checkpoint, or SigLIP's: folder or Hub id.")],
    dest: Annotated[Path, typer.Argument(help="The folder to write.")],
    temporal_position: Annotated[
        str | None, typer.Option(help="rotary or learned; SigLIP has none. Default: rotary.")
    ] = None,
    num_frames: Annotated[int | None, typer.Option(help="Learned time embeddings beside SigLIP; default: 16.")] = None,
    lora_rank: Annotated[int | None, typer.Option(help="Fresh LoRA beside SigLIP; 0: none. Default: 32.")] = None,
    sliding_window: Annotated[int | None, typer.Option(help="Frames that a frame looks back; default: all.")] = None,
    json_file: JsonOption = None,
) -> None:
    """Turn the published StreamFormer checkpoint, or a SigLIP, into our StreamFormer."""
    from transformers.utils import logging as transformers_logging

    from streamchat_hf.convert.streamformer import convert_streamformer

    check_folders(json_file)
    transformers_logging.disable_progress_bar()
    options = {
        "temporal_position": temporal_position,
        "num_frames": num_frames,
        "lora_rank": lora_rank,
        "sliding_window": sliding_window,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    result = convert_streamformer(source, dest, **chosen)
    config = result.model.config
    console = Console(highlight=False)
    console.print(
        f"from {result.origin}: {result.model.num_parameters():,} parameters, LoRA rank {config.lora_rank}, "
        f"{config.temporal_position} positions in time",
        soft_wrap=True,
    )
    if result.ignored:
        console.print(
            "ignored: " + ", ".join(f"{kind} ({count})" for kind, count in result.ignored.items()), soft_wrap=True
        )
    console.print(f"written: {dest}", soft_wrap=True)
    summary = {
        "origin": result.origin,
        "parameters": result.model.num_parameters(),
        "ignored": result.ignored,
        **{name: getattr(config, name) for name in options},
    }
    write_json(json_file, {"source": source, "dest": str(dest), **summary})


@convert_app.command("videollm-online")
@one_line_errors
def convert_videollm_online_command(
    source: Annotated[str, typer.Argument(help="The published adapter: folder or Hub id.")],
    dest: Annotated[Path, typer.Argument(help="The folder to write.")],
    base: Annotated[str | None, typer.Option(help="Its language model; default: the one it names.")] = None,
    vision: Annotated[
        str, typer.Option(help="The SigLIP it was trained on: folder or Hub id.")
    ] = "google/siglip-large-patch16-384",
    json_file: JsonOption = None,
) -> None:
    """Turn the published VideoLLM-online adapter, its Llama and its SigLIP into one model of ours."""
    from transformers.utils import logging as transformers_logging

    from streamchat_hf.convert.videollm_online import convert_videollm_online

    check_folders(json_file)
    transformers_logging.disable_progress_bar()
    result = convert_videollm_online(source, dest, base, vision)
    parameters, tokens = result.model.num_parameters(), result.model.config.frame_num_tokens
    console = Console(highlight=False)
    console.print(
        f"from {result.base} and {result.vision}: {parameters:,} parameters, LoRA of rank {result.rank} merged into "
        f"{result.merged} matrices, {tokens} tokens a frame",
        soft_wrap=True,
    )
    console.print(f"written: {dest}", soft_wrap=True)
    summary = {"base": result.base, "vision": result.vision, "parameters": parameters, "frame_num_tokens": tokens}
    summary |= {"rank": result.rank, "merged": result.merged}
    write_json(json_file, {"source": source, "dest": str(dest), **summary})
