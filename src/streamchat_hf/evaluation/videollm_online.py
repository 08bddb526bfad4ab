"""The paper's metrics of a VideoLLM-online on written dialogues, for every learning method (2406.11816, section 4)."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch

from streamchat_hf.data.live_conversation import LiveMessage, LiveSample
from streamchat_hf.data.live_methods import check_method, per_frame
from streamchat_hf.metrics.videollm_online.live_metrics import live_metrics
from streamchat_hf.training.live_collator import LiveCollator

MEANS = ("lm_ppl", "frame_diff", "time_diff", "fluency", "lm_correctness")


class Written(NamedTuple):
    """A row as one dialogue, and where in another layout of it the same things are decided.

    Attributes:
        ids: L tokens as a stream has them, on which the metrics are defined.
        labels: L pre-shifted targets: of frames, silence or anything else; of the words of answers.
        read: L' tokens that the model reads.
        places: for each labelled position of `ids` the one of `read` whose logits decide it.
        frames: for each frame the position of `read` at which it is decided whether to speak.
        empty: what is read from there on if nothing is said, before the next frame.
        silence: the token predicted there that means silence.
    """

    ids: list[int]
    labels: list[int]
    read: list[int]
    places: list[int]
    frames: list[int]
    empty: list[int]
    silence: int


@torch.no_grad()
def dialogue_metrics(
    model: Any,
    processor: Any,
    rows: Iterable[LiveSample],
    method: str = "streaming",
    threshold: float | None = None,
    compat: bool = False,
) -> dict[str, Any]:
    """Scores written dialogues, each by a forward pass and as many as it takes to look ahead.

    Every method decides in its own way: `streaming` and `interleaved` on a frame, by anything but silence; `per-frame`
    behind `Assistant:`, by an answer that is not empty. Everything else is the same: turns, words and frames are those
    of the stream, so that the numbers can be compared.

    Args:
        model: A VideoLLM-online, or one with PEFT's adapters.
        processor: Its processor.
        rows: Dialogues with `learn` flags.
        method: How the model was trained, one of `METHODS`.
        threshold: A frame is answered, too, if silence is less probable. `None`: if silence is not the most probable.
        compat: Whether to score as the authors' code does, see the metric.

    Returns:
        `lm_ppl`, `frame_diff`, `time_diff` (seconds), `fluency` and `lm_correctness`, means over the dialogues that
        have them (`None` if none has); `missed`, the number of answers that never came; `loud`, the share of silent
        frames that were answered; `n`, the number of dialogues.

    Raises:
        ValueError: For an unknown method or a row that cannot be used.
    """
    was_training = model.training
    model.eval()
    dialogues = [_score(model, processor, row, check_method(method), threshold, compat) for row in rows]
    model.train(was_training)
    result: dict[str, Any] = {}
    for name in MEANS:
        known = [dialogue[name] for dialogue in dialogues if dialogue[name] is not None]
        result[name] = fmean(known) if known else None
    silent = sum(dialogue["silent"] for dialogue in dialogues)
    result["missed"] = sum(dialogue["missed"] for dialogue in dialogues)
    result["loud"] = sum(dialogue["loud"] for dialogue in dialogues) / silent if silent else None
    return {**result, "n": len(dialogues)}


def _score(
    model: Any, processor: Any, row: LiveSample, method: str, threshold: float | None, compat: bool
) -> dict[str, Any]:
    collator, config = LiveCollator(processor), model.config
    sample = collator.sample(dict(row))
    features, _ = model.get_video_features(sample.pixels[None].to(model.device))
    features = features[0]  # (T, K, D_v)
    written = write(processor, row, method)

    def logits_at(ids: list[int], places: list[int], frames: int) -> torch.Tensor:
        """Logits `(n, V)` at n places of a dialogue about the first so many frames."""
        output = model(
            input_ids=torch.tensor([ids], device=model.device),
            frame_features=features[:frames],
            logits_to_keep=torch.tensor(places, device=model.device),
            use_cache=False,
        )
        return output.logits[0]

    def look_ahead(past_len: int, first_frame: int, n_frames: int) -> torch.Tensor:
        ids, places = _watch_on(written, config, first_frame, n_frames)
        return logits_at(ids, places, first_frame + n_frames)

    logits = logits_at(written.read, written.places, len(features))
    score = live_metrics(
        torch.tensor(written.ids),
        torch.tensor(written.labels),
        logits,
        frame_num_tokens=config.frame_num_tokens,
        v_placeholder_id=config.v_placeholder_id,
        eos_token_id=config.eos_token_id,
        frame_token_interval_id=None if written.silence == config.eos_token_id else written.silence,
        threshold=threshold,
        look_ahead=look_ahead,
        compat=compat,
    )
    targets = torch.tensor([label for label in written.labels if label != -100], device=logits.device)
    at_frame = torch.tensor(
        [i == config.v_placeholder_id for i, label in zip(written.ids, written.labels, strict=True) if label != -100],
        device=logits.device,
    )
    silent = at_frame & (targets == written.silence)
    probabilities = logits.float().softmax(-1)
    loud = probabilities.argmax(-1) != written.silence
    if threshold:
        loud |= probabilities[:, written.silence] < threshold
    diff = score["frame_diff"]
    return {
        **score,
        "time_diff": None if diff is None else diff / config.frame_fps,
        "silent": int(silent.sum()),
        "loud": int((loud & silent).sum()),
    }


def write(processor: Any, row: LiveSample, method: str = "streaming") -> Written:
    """Writes a row down for the metrics, and for a model of a learning method to read.

    Of the words, those of answers are scored, from `Assistant` to the end; what closes a run of frames is not, because
    it stands there whatever the model says.
    """
    conversation = list(row["conversation"])
    if conversation[0]["role"] != "system":
        conversation.insert(0, {"role": "system", "content": processor.system_prompt})
    known = processor.token_ids()
    v = known["v_placeholder_id"]
    text = processor.training_inputs(conversation)
    ids = text["input_ids"]
    unlearned = [{**message, "learn": False} if message["role"] == "stream" else message for message in conversation]
    words = processor.training_inputs(unlearned)["labels"]
    labels = [label if token == v else word for token, label, word in zip(ids, text["labels"], words, strict=True)]
    last = _last_of_frames(ids, v, processor.frame_num_tokens)
    places = [j for j, label in enumerate(labels) if label != -100]
    interval = known["frame_token_interval_id"]
    silence = known["eos_token_id"] if interval is None else interval
    written = Written(ids, labels, ids, places, last, [] if interval is None else [interval], silence)
    return _apart(processor, conversation, written, known) if method == "per-frame" else written


def _apart(processor: Any, conversation: list[LiveMessage], written: Written, known: dict[str, Any]) -> Written:
    """The same dialogue, to be read with every frame as a turn."""
    v, eos, closing = known["v_placeholder_id"], known["eos_token_id"], known["response_start_ids"]
    laid_out = per_frame({"conversation": conversation, "frame_times": [], "media": None})["conversation"]
    read = processor.training_inputs(laid_out)["input_ids"]
    empty = processor.piece_ids(f"]\nAssistant: {processor.tokenizer.eos_token}")[len(closing) :]
    decided = [j + len(closing) for j in _last_of_frames(read, v, processor.frame_num_tokens)]
    place_of = dict(zip(written.frames, decided, strict=True))
    # The words of an answer stand as far before its end as they do in the stream.
    says = [message["content"] != "" for message in laid_out if message["role"] == "assistant"]
    ends = [j for j, said in zip(_places(read, eos), says, strict=True) if said]
    word = 0
    for end, end_apart in zip(_places(written.ids, eos), ends, strict=True):
        place_of |= {j: end_apart - (end - j) for j in range(word, end) if written.ids[j] != v}
        word = end + 1
    labels = [
        empty[0] if token == v and label == written.silence else label
        for token, label in zip(written.ids, written.labels, strict=True)
    ]
    return Written(written.ids, labels, read, [place_of[j] for j in written.places], decided, empty, empty[0])


def _places(ids: Sequence[int], token: int) -> list[int]:
    return [j for j, other in enumerate(ids) if other == token]


def _last_of_frames(ids: Sequence[int], v: int, tokens: int) -> list[int]:
    """Where the last token of each frame stands."""
    return _places(ids, v)[tokens - 1 :: tokens]


def _watch_on(written: Written, config: Any, first_frame: int, n_frames: int) -> tuple[list[int], list[int]]:
    """What is read if nothing is said before n more frames, and where each of those is decided."""
    per_turn = written.read is not written.ids
    before = [*written.empty, *config.stream_start_ids] if per_turn else written.empty
    frame = [config.v_placeholder_id] * config.frame_num_tokens
    behind = list(config.response_start_ids) if per_turn else []
    ids, places = written.read[: written.frames[first_frame - 1] + 1], []
    for _ in range(n_frames):
        ids = [*ids, *before, *frame, *behind]
        places.append(len(ids) - 1)
    return ids, places
