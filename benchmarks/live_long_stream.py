"""Whether a VideoLLM-online that watches for hours still speaks at the right moment.

    streamchat train recipes/videollm_online/tiny_narration.yaml
    streamchat train recipes/videollm_online/tiny_long.yaml
    python benchmarks/live_long_stream.py --model runs/tiny_long/final --json benchmarks/live_long_stream.json
    python benchmarks/live_long_stream.py --render benchmarks/live_long_stream.json

It watches a StreamWorld of 10,000 frames with a window of 2048 tokens and tells what changes, for each seed. Every
thousand frames get an event F1 of their own, and the memory of the cache is noted. With `--render` the table goes into
docs/videollm_online.md.
"""

import argparse
import bisect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from tqdm.auto import tqdm
from transformers import AutoModel, AutoProcessor

import streamchat_hf  # noqa: F401  (registers the classes)
from markers import between
from streamchat_hf.data.live_streamworld import SYSTEM_PROMPT, frame_facts, watch_answers
from streamchat_hf.data.streamworld import World
from streamchat_hf.data.streamworld_dialogue import WATCH, questions
from streamchat_hf.data.streamworld_render import render
from streamchat_hf.evaluation.videollm_online_alerts import Response, match_responses
from streamchat_hf.training.commit import code_commit

PAGE = Path(__file__).parents[1] / "docs" / "videollm_online.md"
BEGIN = "<!-- long stream: written by benchmarks/live_long_stream.py -->\n"
END = "<!-- end of long stream -->\n"
TOLERANCE = 1  # frames


def event_f1(due: Sequence[Response], said: Sequence[Response], words: bool = False) -> float:
    """F1 of events that were told.

    Args:
        due: What was to be said, and with which frame.
        said: What was.
        words: Whether a response has to say the right words, too.
    """
    told = [
        match
        for match in match_responses(due, said)
        if match.response is not None
        and abs(match.response.frame - match.due.frame) <= TOLERANCE
        and (not words or match.response.text == match.due.text)
    ]
    return 2 * len(told) / (len(due) + len(said)) if due or said else 1.0


def shown_frames(world: World, times: Sequence[float], processor) -> Iterator[tuple[float, torch.Tensor]]:
    """The frames of a world at these times, rendered as they are needed, as the model takes them."""
    size = processor.video_processor.size["height"]
    for time in times:
        [[image]] = render([world], [[time]], size)
        yield time, processor.video_processor.preprocess_frame(image)


def watch(model, processor, seed: int, frames: int, part: int, context: int, threshold: float | None) -> list[dict]:
    """Lets a model watch one world, and scores every `part` frames by themselves.

    Returns:
        For each part the number of its `first_frame`, `f1`, `f1_words`, how many events were `due` and `said`, and
        the `cache_bytes` and the clock's `cached_tokens` at its end.
    """
    times = [i / model.config.frame_fps for i in range(frames)]
    world = World.sample(seed, "heldout", frames / model.config.frame_fps)
    due = [Response(frame, text) for frame, text in watch_answers(world.kind, frame_facts(world, times), 0)]
    question = [
        {"role": "system", "content": SYSTEM_PROMPT},
        {"role": "user", "content": questions(WATCH)[0].text},
    ]
    # The first answer is given with the first frame, so the question stands before it.
    prompt = processor.apply_chat_template(question, add_stream_prompt=True, tokenize=True, return_dict=True)
    ids = torch.tensor(prompt["input_ids"]).view(1, -1)
    cache, rows = model.new_cache(context), []
    for first in tqdm(range(0, frames, part), unit="part"):
        output = model.generate(
            input_ids=None if first else ids,
            frames=shown_frames(world, times[first : first + part], processor),
            past_key_values=cache,
            tokens_per_second=50.0,
            max_new_tokens=16,
            threshold=threshold,
            do_sample=False,
            return_dict_in_generate=True,
        )
        said = [
            Response(
                bisect.bisect_right(times, time) - 1,
                " ".join(processor.tokenizer.decode(tokens, skip_special_tokens=True).split()),
            )
            for time, tokens in output.responses
        ]
        in_part = [one for one in due if first <= one.frame < first + part]
        rows.append(
            {
                "first_frame": first,
                "f1": event_f1(in_part, said),
                "f1_words": event_f1(in_part, said, words=True),
                "due": len(in_part),
                "said": len(said),
                "cache_bytes": cache.visual_bytes,
                "cached_tokens": cache.get_seq_length(),
            }
        )
    return rows


def table(result: dict) -> str:
    """Every part as a line of a Markdown table: means over the streams, and the largest cache of any."""
    lines = [["frames", "event F1", "with the right words", "cache, MiB"], ["---", "---:", "---:", "---:"]]
    for parts in zip(*(stream["parts"] for stream in result["streams"]), strict=True):
        f1, words = (fmean(100 * part[name] for part in parts) for name in ("f1", "f1_words"))
        held = max(part["cache_bytes"] for part in parts) / 2**20
        lines.append([f"from {parts[0]['first_frame']}", f"{f1:.1f}", f"{words:.1f}", f"{held:.2f}"])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    seeds = ", ".join(str(stream["seed"]) for stream in result["streams"])
    return f"{body}\n\nPer cent; worlds of seeds {seeds}, a window of {result['context']} tokens.\n"


def main() -> None:
    """Watches, prints every part and writes the JSON; or renders one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a VideoLLM-online that tells changes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--part", type=int, default=1000)
    parser.add_argument("--context", type=int, default=2048, help="tokens of the window")
    parser.add_argument("--threshold", type=float, default=0.0, help="of silence; 0: the most probable token decides")
    parser.add_argument("--json", type=Path, help="where the numbers go, beside those of other seeds")
    parser.add_argument("--render", type=Path, help="write the table of such a file into the page, do nothing else")
    options = parser.parse_args()
    if options.render:
        PAGE.write_text(between(PAGE.read_text(), BEGIN, END, table(json.loads(options.render.read_text()))))
        return
    model = AutoModel.from_pretrained(options.model).eval()
    processor = AutoProcessor.from_pretrained(options.model)
    settings = {"frames": options.frames, "context": options.context, "threshold": options.threshold}
    streams = []
    if options.json and options.json.is_file():
        earlier = json.loads(options.json.read_text())
        same = settings == {name: earlier[name] for name in settings}
        streams = [stream for stream in earlier["streams"] if same and stream["seed"] not in options.seeds]
    for seed in options.seeds:
        rows = watch(model, processor, seed, options.frames, options.part, options.context, options.threshold)
        streams.append({"seed": seed, "commit": code_commit(), "parts": rows})
        streams.sort(key=lambda stream: stream["seed"])
        if options.json:
            options.json.write_text(json.dumps({**settings, "streams": streams}, indent=1) + "\n")
    print(table({**settings, "streams": streams}))


if __name__ == "__main__":
    main()
