"""Processor of VideoLLM-online: conversations with frames among the messages, and sources of frames, to inputs."""

from collections.abc import Sequence
from typing import Any

from transformers.tokenization_utils_base import AddedToken

from .labels_videollm_online import CLOSE, Marks, labels_from_ranges, learn_ranges, message_texts
from .processing_frames_streamchat import FrameProcessorMixin
from .video_processing_streamformer import NEVER

SYSTEM_PROMPT = (
    "A multimodal AI assistant is helping users with some activities. Below is their conversation, interleaved with "
    "the list of video frames received by the assistant."
)
# The authors' text. FRAME and INTERVAL are filled in for each processor, so that what it saves stands alone.
CHAT_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'system' and loop.first %}
        {{- (bos_token or '') + message['content'] + '\\n' }}
    {%- elif message['role'] == 'user' %}
        {{- (']' if add_stream_query_prompt else '') + '\\nUser: ' + message['content'] }}
    {%- elif message['role'] == 'assistant' %}
        {{- '\\nAssistant: ' }}
        {%- generation %}
        {{- message['content'] + eos_token }}
        {%- endgeneration %}
    {%- elif message['role'] == 'stream' %}
        {%- if message['num_frames'] > 0 %}
            {{- '\\n[' + ([FRAME] * message['num_frames']) | join(INTERVAL) + ']' }}
        {%- endif %}
    {%- else %}
        {{- raise_exception('the role is system (first), user, assistant or stream, not ' + message['role']) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '\\nAssistant:' }}
{%- elif add_stream_prompt %}
    {{- '\\n[' }}
{%- elif add_stream_generation_prompt %}
    {{- ']\\nAssistant:' }}
{%- endif %}
"""


class VideoLLMOnlineProcessor(FrameProcessorMixin):
    r"""Wraps a [`StreamFormerVideoProcessor`] and a tokenizer, which gets a token for frames if it has none.

    A conversation has the roles `system` (first; it writes the token that begins a text), `user`, `assistant` and
    `stream`, a run of frames: `{"role": "stream", "num_frames": n}`. `apply_chat_template` ends it with, if asked for,

    - `add_generation_prompt`: `\nAssistant:`
    - `add_stream_prompt`: `\n[`, which opens a run of frames,
    - `add_stream_generation_prompt`: `]\nAssistant:`, which closes one and begins an answer;
    - and `add_stream_query_prompt` makes a user's message close one first: `]\nUser: `.

    **Pieces and wholes.** A training text is tokenised whole, a stream piece by piece. Tokenizers split at special
    tokens, `<v>` and the end of an answer, before anything else, and every piece of a stream follows one: `\n[` and a
    question an answer's end, `,` and `]\nAssistant:` a frame. So both give the same tokens, whatever else a tokenizer
    merges (`]\n` is one token of Llama 3, two of others). Two things to know: a prompt that frames are to follow is
    given with `add_stream_prompt=True`, since `?\n` may be one token too; and an answer begins with a space, which no
    tokenizer in use merges with the colon before it. `piece_ids` tokenises a piece.

    **Pixels.** For SigLIP as in the published model, frames keep their shape in a black square:
    `StreamFormerVideoProcessor(size={"height": 384, "width": 384}, do_pad=True)`, with its mean and deviation of 0.5;
    all of it is saved. CLIP's `image_mean` and `image_std` are arguments of it too. Of a clip longer than its
    `max_frames` that many are taken evenly, at a lower rate; a stream has no limit.

    Args:
        video_processor: turns frames into pixels.
        tokenizer: turns text into tokens, a fast one. Without a token for padding it pads with its `eos_token`.
        chat_template: Jinja template; `None`: the authors', whatever the tokenizer has. Another one cannot be used for
            training inputs.
        frame_num_tokens: tokens of a frame, K.
        frame_token_interval: text of one token between two frames, which also means silence; `None` or empty: none,
            and the tokenizer's `eos_token` means silence.
        v_placeholder: the token that stands for a token of a frame.
        frame_fps: frames per second of streams and clips.
        system_prompt: for conversations that bring none.

    Raises:
        ValueError: if the tokenizer has no `eos_token`, or `frame_num_tokens` is less than 1.

    Example:
    ```python
    clip = processor(videos="kitchen.mp4", return_tensors="pt")  # pixel_values_videos (1, T, ...), frame_mask (1, T)
    conversation = [
        {"role": "system", "content": processor.system_prompt},
        {"role": "user", "content": "What is the action in the video?"},
        {"role": "stream", "num_frames": clip["pixel_values_videos"].shape[1]},
    ]
    inputs = processor.apply_chat_template(
        conversation, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    logits = model(**inputs, **clip).logits

    prompt = processor.apply_chat_template(
        conversation[:2], add_stream_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    model.generate(**prompt, frames=processor.stream("kitchen.mp4"))
    ```
    """

    text_kwargs = {"padding": True, "padding_side": "left", "add_special_tokens": False}

    def __init__(
        self,
        video_processor=None,
        tokenizer=None,
        chat_template: str | dict | None = None,
        frame_num_tokens: int = 1,
        frame_token_interval: str | None = ",",
        v_placeholder: str = "<v>",
        frame_fps: float = 2.0,
        system_prompt: str = SYSTEM_PROMPT,
    ):
        if tokenizer is not None:
            _prepare(tokenizer, v_placeholder)
        if frame_num_tokens < 1:
            raise ValueError(f"frame_num_tokens={frame_num_tokens}: a frame needs a token")
        self.frame_num_tokens = frame_num_tokens
        self.frame_token_interval = frame_token_interval or None
        self.v_placeholder = v_placeholder
        self.frame_fps = frame_fps
        self.system_prompt = system_prompt
        if chat_template is None:
            frame, interval = v_placeholder * frame_num_tokens, frame_token_interval or ""
            chat_template = CHAT_TEMPLATE.replace("FRAME", repr(frame)).replace("INTERVAL", repr(interval))
        super().__init__(video_processor, tokenizer, chat_template=chat_template)

    @property
    def unused_input_names(self) -> list[str]:
        """What tokenizers and video processors return and the model does not take."""
        return ["token_type_ids", "frame_times"]

    @property
    def marks(self) -> Marks:
        """What a conversation is written with."""
        bos, eos = self.tokenizer.bos_token or "", self.tokenizer.eos_token
        return Marks(self.v_placeholder, self.frame_num_tokens, self.frame_token_interval or "", bos, eos)

    def token_ids(self) -> dict[str, Any]:
        r"""The ids that `VideoLLMOnlineConfig` takes: `VideoLLMOnlineConfig(**processor.token_ids(), ...)`.

        Returns:
            `v_placeholder_id`, `frame_token_interval_id` (`None` without an interval), `eos_token_id`,
            `stream_start_ids` of `\n[` and `response_start_ids` of `]\nAssistant:`.

        Raises:
            ValueError: if the tokenizer does not know one of these texts, takes more or less than one token for the
                interval, gives the same token for silence and for speaking, or merges so much that the end of a
                prompt does not tell whether frames or an answer come next.
        """
        interval = None
        if self.frame_token_interval is not None:
            ids = self._known(self.frame_token_interval)
            if len(ids) != 1:
                raise ValueError(f"frame_token_interval={self.frame_token_interval!r} is {len(ids)} tokens, not one")
            interval = ids[0]
        response_start = self._known(CLOSE + "Assistant:")
        if response_start[0] == interval:
            raise ValueError(f"{self.frame_token_interval!r} and {CLOSE!r} begin with the same token, {interval}")
        stream_start = self._known("\n[")
        # By these a prompt is seen to end in an open run of frames, or in the beginning of an answer.
        for text, end in (("?\n[", stream_start[-1:]), ("?\nAssistant:", response_start[1:])):
            if end != self.piece_ids(text)[-len(end) :]:
                raise ValueError(f"the tokenizer merges across line breaks: {self.tokenizer.tokenize(text)}")
        return {
            "v_placeholder_id": self.tokenizer.convert_tokens_to_ids(self.v_placeholder),
            "frame_token_interval_id": interval,
            "eos_token_id": self.tokenizer.eos_token_id,
            "stream_start_ids": stream_start,
            "response_start_ids": response_start,
        }

    def piece_ids(self, text: str) -> list[int]:
        """Tokens of a text that follows a frame or the end of an answer, as they are in the whole conversation.

        Some tokenizers treat the beginning of a text in a way of its own, which a piece is not.
        """
        encoded = self.tokenizer(self.v_placeholder + text, add_special_tokens=False)
        return encoded["input_ids"][1:]

    def training_inputs(self, conversation: Sequence[dict[str, Any]], compat: bool = False) -> dict[str, list[int]]:
        """Tokenises a whole conversation and marks what is learned.

        Args:
            conversation: messages with `learn` flags, as for `learn_ranges`.
            compat: labels as the authors' code makes them, see `learn_ranges` and `labels_from_ranges`.

        Returns:
            `input_ids` and pre-shifted `labels`, L each: `labels[j]` is the target of `logits[j]`, or -100.

        Raises:
            ValueError: for a conversation that cannot be written, a chat template that is not the authors', or a
                tokenizer that merges `Assistant:` with the answer, so that a stream would have other tokens.
            RuntimeError: with `compat`, where the authors' code raises it.
        """
        text = "".join(message_texts(conversation, self.marks))
        if self.apply_chat_template(list(conversation)) != text:
            raise ValueError("the chat template writes another text than the one whose learned characters are known")
        self._check_answers(conversation)
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
        ranges = learn_ranges(conversation, self.marks, compat)
        placeholder, eos = self.tokenizer.convert_tokens_to_ids(self.v_placeholder), self.tokenizer.eos_token_id
        return {"input_ids": ids, "labels": labels_from_ranges(ids, offsets, ranges, placeholder, eos, compat)}

    def _check_answers(self, conversation: Sequence[dict[str, Any]]) -> None:
        """Makes sure that learned answers begin with the very tokens that a stream begins them with."""
        opening = CLOSE + "Assistant:"
        start = self.piece_ids(opening)
        for message in conversation:
            learned = message["role"] == "assistant" and message.get("learn")
            if learned and self.piece_ids(f"{opening} {message['content']}")[: len(start)] != start:
                raise ValueError(
                    f"the tokenizer merges 'Assistant:' with the answer {message['content']!r}: what is learned "
                    "would never be streamed"
                )

    def _known(self, text: str) -> list[int]:
        ids = self.piece_ids(text)
        if not ids or self.tokenizer.unk_token_id in ids:
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            raise ValueError(f"the tokenizer does not know all of {text!r}: {tokens}")
        return ids

    def _process_videos(self, videos: Any, **kwargs) -> tuple:
        # Tensors come in any case and are converted at the end.
        kwargs.pop("return_tensors", None)
        if kwargs.get("num_frames") is None and kwargs.get("do_sample_frames") is not False:
            kwargs["fps"] = kwargs.get("fps") or self.frame_fps
        features = self.video_processor(videos, **kwargs)
        features["frame_mask"] = (features["frame_times"] != NEVER).long()
        return features, []

    def _normalize_conversations(self, conversation) -> tuple[list, bool]:
        # A list of texts becomes a text, so that the template needs to know strings only.
        conversations, is_batched = super()._normalize_conversations(conversation)
        for message in (message for messages in conversations for message in messages):
            content = message.get("content")
            if isinstance(content, list | tuple):
                if any(item["type"] != "text" for item in content):
                    raise ValueError("frames are messages of their own here: {'role': 'stream', 'num_frames': n}")
                message["content"] = "".join(item["text"] for item in content)
        return conversations, is_batched

    def _multimodal_inputs_from_conversations(self, conversations, *args, **kwargs) -> tuple:
        nothing: list[list] = [[] for _ in conversations]
        return nothing, nothing, [], {}


def _prepare(tokenizer: Any, v_placeholder: str) -> None:
    """Makes sure that there are tokens for frames, for the end of an answer, and for padding."""
    if tokenizer.eos_token is None:
        raise ValueError("the tokenizer has no eos_token, which ends every answer")
    if v_placeholder not in tokenizer.all_special_tokens:
        tokenizer.add_tokens([AddedToken(v_placeholder, special=True, normalized=False)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token


VideoLLMOnlineProcessor.register_for_auto_class()
