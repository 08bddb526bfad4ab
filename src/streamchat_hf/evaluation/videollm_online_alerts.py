"""When a VideoLLM-online speaks that watches: the live path, `generate(frames=...)`, and when an answer was due."""

import bisect
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch

from streamchat_hf.data.live_conversation import LiveSample
from streamchat_hf.data.live_methods import check_method
from streamchat_hf.training.live_collator import LiveCollator

# A threshold that no probability of silence reaches: with it every frame is answered.
ALWAYS = 2.0


class Response(NamedTuple):
    """What a model said.

    Attributes:
        frame: number of the newest frame it had seen; -1 before the first.
        text: the words.
    """

    frame: int
    text: str


def expected_responses(row: LiveSample) -> list[Response]:
    """The answers of a row and the frames that they come with."""
    found, seen = [], 0
    for message in row["conversation"]:
        seen += message.get("num_frames", 0)
        if message["role"] == "assistant":
            found.append(Response(seen - 1, message["content"]))
    return found


@torch.no_grad()
def watch_row(
    model: Any,
    processor: Any,
    row: LiveSample,
    method: str = "streaming",
    tokens_per_second: float = 20.0,
    threshold: float | None = None,
    see: Callable[[torch.Tensor], torch.Tensor] | None = None,
    **kwargs: Any,
) -> list[Response]:
    """Lets a model watch a row's frames and hear its questions, under the simulated clock, and gives what it says.

    Args:
        model: A VideoLLM-online.
        processor: Its processor.
        row: Of its answers only one thing is used: a question that is answered at once is put as such.
        method: How the model was trained; `per-frame` answers every frame, in silence by an empty answer.
        tokens_per_second: How fast it speaks.
        threshold: Of silence; `None`: the model's own for `streaming`, otherwise what is most probable.
        see: Changes the pixels `(T, C, height, width)` before they are shown.
        **kwargs: For `generate`, such as `max_new_tokens`.
    """
    if check_method(method) != "streaming":
        threshold = ALWAYS if method == "per-frame" else 0.0 if threshold is None else threshold
    pixels = LiveCollator(processor).sample(dict(row)).pixels
    frames = list(zip(row["frame_times"], pixels if see is None else see(pixels), strict=True))
    messages = list(row["conversation"])
    system = processor.system_prompt
    if messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    cache, said, seen = model.new_cache(), [], 0
    prompt = [{"role": "system", "content": system}]
    for message, follower in zip(messages, [*messages[1:], {"role": ""}], strict=True):
        if message["role"] == "assistant":
            continue
        text = None
        if message["role"] == "user":
            at_once = follower["role"] == "assistant"
            if not cache.ids:  # before the first frame: part of the prompt
                prompt.append({"role": "user", "content": message["content"]})
                if not at_once:
                    continue
            else:
                text = ("]" if cache.open_run else "") + f"\nUser: {message['content']}"
                text += "\nAssistant:" if at_once else "\n["
        count = message.get("num_frames", 0)
        if text is None and not cache.ids:
            ending = {"add_stream_prompt": True} if count else {"add_generation_prompt": True}
            ids = processor.apply_chat_template(prompt, **ending, tokenize=True, return_dict=True)["input_ids"]
            ids = ids[0] if isinstance(ids[0], list) else ids
        else:
            ids = None if text is None else processor.piece_ids(text)
        output = model.generate(
            input_ids=None if ids is None else torch.tensor([ids], device=model.device),
            frames=frames[seen : seen + count],
            past_key_values=cache,
            tokens_per_second=tokens_per_second,
            threshold=threshold,
            do_sample=False,
            return_dict_in_generate=True,
            **kwargs,
        )
        seen += count
        said += output.responses
    responses = [
        Response(bisect.bisect_right(row["frame_times"], time) - 1, _text(processor, ids)) for time, ids in said
    ]
    return [response for response in responses if response.text]


def _text(processor: Any, ids: Any) -> str:
    return " ".join(processor.tokenizer.decode(ids, skip_special_tokens=True).split())


class Match(NamedTuple):
    """An answer that was due.

    Attributes:
        due: When, and what.
        response: What was said to it, `None` if nothing was.
    """

    due: Response
    response: Response | None


def match_responses(due: Sequence[Response], said: Sequence[Response]) -> list[Match]:
    """Gives each answer that was due at most one response, the nearest pairs first."""
    pairs = sorted((abs(one.frame - other.frame), i, j) for i, one in enumerate(due) for j, other in enumerate(said))
    of_due: dict[int, int] = {}
    for _, i, j in pairs:
        if i not in of_due and j not in of_due.values():
            of_due[i] = j
    return [Match(one, said[of_due[i]] if i in of_due else None) for i, one in enumerate(due)]


def alert_metrics(
    model: Any, processor: Any, rows: Iterable[LiveSample], tolerance: int = 1, **kwargs: Any
) -> dict[str, Any]:
    """Scores when a model that watches speaks.

    Args:
        model: A VideoLLM-online.
        processor: Its processor.
        rows: What is asked and shown, and when which answer is due.
        tolerance: Frames by which a response may be early or late.
        **kwargs: For [`watch_row`].

    Returns:
        `on_time`, the share of events with a response within the tolerance; `frame_diff`, the mean distance in frames
        of those that have one at all; `missed`, how many have none; `false_alarms`, the share of responses that are
        none of an event's within the tolerance, so that a second one to the same event is one as well (0 if nothing
        was said); `correct`, the share of responses on time that say the right words (`None` without any); `events`,
        `responses` and `rows`, per row what was due and said.
    """
    raw, matches, responses = [], [], 0
    was_training = model.training
    model.eval()
    for row in rows:
        due, said = expected_responses(row), watch_row(model, processor, row, **kwargs)
        found = match_responses(due, said)
        matches += found
        responses += len(said)
        raw.append({"due": [tuple(one) for one in due], "said": [tuple(one) for one in said]})
    model.train(was_training)
    pairs = [(match.due, match.response) for match in matches if match.response is not None]
    distances = [abs(response.frame - one.frame) for one, response in pairs]
    on_time = [pair for pair, distance in zip(pairs, distances, strict=True) if distance <= tolerance]
    right = [response.text == _text(processor, _ids(processor, one.text)) for one, response in on_time]
    return {
        "on_time": len(on_time) / len(matches) if matches else None,
        "frame_diff": fmean(distances) if distances else None,
        "missed": len(matches) - len(distances),
        "false_alarms": (responses - len(on_time)) / responses if responses else 0.0,
        "correct": fmean(right) if right else None,
        "events": len(matches),
        "responses": responses,
        "rows": raw,
    }


def _ids(processor: Any, text: str) -> list[int]:
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]
