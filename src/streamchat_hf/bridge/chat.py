"""A family's chat template, taken apart into the pieces that a conversation grows by.

A template writes whole conversations; a stream adds frames, questions and answers one at a time. The pieces are
found by rendering short conversations, once, and put together they give what the template gives for the whole.
"""

from typing import Any

# Stands for what somebody says while the template's own words are looked for. One plain word, or it might be changed.
WORD = "streambridgeword"

Message = dict[str, Any]


class ChatPieces:
    """The words of a chat template around what is seen and said, as tokens.

    Args:
        tokenizer: the family's.
        video_token: its text for a visual token.
        chat_template: Jinja template of the processor; `None`: the tokenizer's.

    Attributes:
        video_token: as given.
        opening: what a user's message writes before its video.
        silence: what closes that message if nothing is asked.
        answer_opening: what comes before an answer.
        answer_closing: what comes after one.
        end: the token by which a model ends one: the first of these if it is special, else the tokenizer's own.

    Raises:
        ValueError: if the template does not write messages one behind the other, each as it is, and a video before
            the question about it.
    """

    def __init__(self, tokenizer: Any, video_token: str, chat_template: str | None = None):
        self._tokenizer, self.video_token, self._template = tokenizer, video_token, chat_template
        self._middle = [_says("user", WORD), _says("assistant", WORD)]  # what other messages follow
        whole = self._render(self._middle)
        self.answer_opening = self._ids(_rest(self._render(self._middle, prompt=True), whole))
        self.answer_closing = self._ids(whole.rpartition(WORD)[2])
        closing = self.answer_closing[:1]
        self.end: int = closing[0] if set(closing) & set(tokenizer.all_special_ids) else tokenizer.eos_token_id
        self._opening, silence = self._around_video([{"type": "video"}])
        self.opening, self.silence = self._ids(self._opening), self._ids(silence)
        # Else they would be found out in the middle of a stream.
        self.front(None)
        self.question(WORD, after_frames=True)

    def front(self, system: str | None) -> list[int]:
        """What a conversation begins with: the system prompt, or the template's own."""
        beginning = [] if system is None else [_says("system", system)]
        message = _says("user", WORD)
        first, later = self._render([*beginning, message]), self._message(message)
        if not first.endswith(later):
            raise ValueError(f"the chat template writes a first message unlike one behind others: {first!r}")
        return self._tokenizer(first.removesuffix(later), add_special_tokens=False)["input_ids"]

    def question(self, text: str, after_frames: bool) -> list[int]:
        """A question: a message of its own, or what ends the one that began with frames."""
        said = _says("user", text)
        if not after_frames:
            return self._ids(self._message(said))
        opening, rest = self._around_video([{"type": "video"}, *said["content"]])
        if opening != self._opening:
            raise ValueError(f"the chat template writes a question before the video that it follows: {opening!r}")
        return self._ids(rest)

    def text(self, ids: list[int]) -> str:
        """What tokens say."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def _around_video(self, content: list[dict[str, str]]) -> tuple[str, str]:
        message = self._message({"role": "user", "content": content})
        opening, found, rest = message.partition(self.video_token)
        if not found:
            raise ValueError(f"the chat template does not show a video as {self.video_token}: {message!r}")
        return opening, rest

    def _message(self, message: Message) -> str:
        """A message as it is written behind others."""
        return _rest(self._render([*self._middle, message]), self._render(self._middle))

    def _render(self, messages: list[Message], prompt: bool = False) -> str:
        return self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, add_generation_prompt=prompt, tokenize=False
        )

    def _ids(self, text: str) -> list[int]:
        """Tokens of a piece. Some tokenizers treat the beginning of a text in a way of its own; a piece is none."""
        return self._tokenizer(self.video_token + text, add_special_tokens=False)["input_ids"][1:]


def _says(role: str, text: str) -> Message:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def _rest(whole: str, beginning: str) -> str:
    if not whole.startswith(beginning) or whole == beginning:
        raise ValueError(f"the chat template must write messages one behind the other: {beginning!r}, then {whole!r}")
    return whole.removeprefix(beginning)
