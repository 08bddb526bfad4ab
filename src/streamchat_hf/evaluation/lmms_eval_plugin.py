"""The models of this package in lmms-eval, which knows hundreds of offline benchmarks: `--model streamchat`.

lmms-eval finds `manifest` by its entry point. A video is asked about when it has ended: frames spread evenly over it,
then the question, in a `StreamingSession`, which is how all our models watch and speak.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from lmms_eval.protocol import ChatMessages
from tqdm import tqdm

# Where a task does not say so.
MAX_NEW_TOKENS = 128
# Nothing happens any more while the answer is spoken, so that its speed means nothing.
ANY_SPEED = 1.0


def manifest() -> ModelManifest:
    """Say to lmms-eval which class stands behind which name."""
    path = f"{__name__}.{StreamingModel.__name__}"
    return ModelManifest(model_id="streamchat", chat_class_path=path, aliases=("streambridge", "videollm_online"))


class StreamingModel(lmms):
    """A StreamChat, a VideoLLM-online, or a video LLM of transformers behind a [`StreamBridge`].

    Args:
        pretrained: Folder or Hub id; default: the tiny StreamChat that comes with the package.
        max_frames: How many frames of a video are looked at.
        trust_remote_code: Whether to run the code that a checkpoint carries.
        device: Where the model runs.
        batch_size: 1; sessions are held one after the other.
        max_batch_size: Ignored.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        max_frames: int = 32,
        trust_remote_code: bool = False,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if int(batch_size) != 1:
            raise ValueError(f"batch_size={batch_size}: a session has one conversation, so give batch_size 1")
        if max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, not {max_frames}")
        self._max_frames = max_frames
        self._model, self._processor = _load(pretrained, trust_remote_code, device)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answer each request."""
        answers = []
        for request in tqdm(requests, desc="Model Responding", disable=self.rank != 0):
            context, doc_to_messages, options, doc_id, task, split = request.args
            messages = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            answers.append(self._answer(messages, dict(options)))
            self.cache_hook.add_partial("generate_until", (context, options), answers[-1])
        return answers

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuse: a video that is asked about several times is what `streamchat eval` is for."""
        raise NotImplementedError("tasks of several rounds need the stream itself: streamchat eval ovobench")

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refuse: a session speaks, and does not judge what others say."""
        raise NotImplementedError("a session has no likelihoods: take the task that lets the model generate")

    def _answer(self, messages: ChatMessages, options: dict[str, Any]) -> str:
        from streamchat_hf.streaming.events import ResponseEnded
        from streamchat_hf.streaming.session import StreamingSession

        system, question = _texts(messages)
        frames = list(_frames(messages, self._max_frames))
        temperature = options.get("temperature") or 0
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        with StreamingSession(
            self._model,
            self._processor,
            frames,
            policy="on-question",
            tokens_per_second=ANY_SPEED,
            max_new_tokens=options.get("max_new_tokens", MAX_NEW_TOKENS),
            system=system,
            **sampling,
        ) as session:
            session.ask(question, at=frames[-1][0] if frames else None)
            ids = next(event.answer.ids for event in session if isinstance(event, ResponseEnded))
        text = self._processor.tokenizer.decode(ids, skip_special_tokens=True)
        until = options.get("until") or []
        for stop in [until] if isinstance(until, str) else until:
            text = text.split(stop)[0] if stop else text
        return text.strip()


def _texts(messages: ChatMessages) -> tuple[str | None, str]:
    """The system prompt, if there is one, and the question."""
    texts: dict[str, list[str]] = {"system": [], "user": []}
    for message in messages.messages:
        if message.role not in texts:
            raise ValueError(f"a message of {message.role}: examples before the question are not supported")
        texts[message.role] += [part.text for part in message.content if part.type == "text"]
    return "\n".join(texts["system"]) or None, "\n".join(texts["user"])


def _frames(messages: ChatMessages, max_frames: int) -> Iterator[tuple[float, Any]]:
    """(seconds, image) of the one video, or of images, one a second."""
    from streamchat_hf.data.frame_sampling import Ticks, read_spread, read_ticks

    parts = [part for message in messages.messages for part in message.content if part.type != "text"]
    kinds = [part.type for part in parts]
    if kinds == ["image"] * len(kinds):
        # Frames that a task has chosen itself.
        yield from ((float(second), part.url) for second, part in enumerate(parts))
        return
    if kinds != ["video"]:
        raise ValueError(f"one video or images can be looked at, not {', '.join(kinds)}")
    (video,) = parts
    if video.end_time is None:
        read = read_spread(video.url, max_frames)
    else:
        start = video.start_time or 0.0
        fps = max_frames / (video.end_time - start)
        first = round(start * fps)
        read = read_ticks(video.url, Ticks(fps, first, first + max_frames - 1))
    yield from ((frame.t_sec, frame.pixel_values) for frame in read)


def _load(pretrained: str | None, trust_remote_code: bool, device: str | None) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoModel, AutoProcessor

    from streamchat_hf import tiny_checkpoint
    from streamchat_hf.bridge import StreamBridge
    from streamchat_hf.bridge.families import FAMILIES

    path = pretrained or str(tiny_checkpoint())
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if AutoConfig.from_pretrained(path, **how).model_type in FAMILIES:
        bridge = StreamBridge.from_pretrained(path, **how)
        bridge.model.to(device)
        return bridge, bridge.processor
    model = AutoModel.from_pretrained(path, **how).eval()
    return model.to(device), AutoProcessor.from_pretrained(path, **how)
