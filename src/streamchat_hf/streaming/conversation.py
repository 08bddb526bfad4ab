"""The turns of a conversation, as messages and as the tokens that continue a chat template."""

from typing import Any

# Stands for the last answer while its surroundings are rendered. One plain word, or a template might change it.
_PLACEHOLDER = "streamchatanswer"


class Conversation:
    """Keeps what was said, word for word, and renders each new question behind it.

    An answer is never tokenised again: its tokens stay as the model spoke them, and only what the template puts
    between them and the next answer is new.

    Args:
        processor: A processor with a chat template and a `tokenizer`.
        system: The system prompt, if there is one.

    Attributes:
        messages: The conversation as far as it is remembered, `{"role": ..., "content": ...}`.
        system_tokens: How many tokens the system prompt takes.
    """

    def __init__(self, processor: Any, system: str | None = None):
        self.messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self._processor = processor
        self.system_tokens = len(self._tokens(self._render(self.messages, False))) if self.messages else 0
        self._last_token: int | None = None

    def ask(self, question: str) -> list[int]:
        """Adds a user's turn and gives the tokens to be read before the answer.

        Raises:
            ValueError: If the chat template does not show an answer as it is.
        """
        self.messages.append({"role": "user", "content": question})
        if self._last_token is None:
            return self._tokens(self._render(self.messages))
        shown = [dict(message) for message in self.messages]
        placeholder = _PLACEHOLDER
        while any(placeholder in message["content"] for message in shown):
            placeholder += _PLACEHOLDER
        shown[-2]["content"] = placeholder
        _, found, after = self._render(shown).partition(placeholder)
        if not found or placeholder in after:
            raise ValueError("the chat template must show an answer once, as it is, for a conversation to go on")
        tokens = self._tokens(after)
        # An answer that came to its end has spoken the end-of-turn token; one that was cut off has not.
        return tokens[1:] if tokens[:1] == [self._last_token] else tokens

    def answered(self, text: str, ids: list[int]) -> None:
        """Adds the model's turn, with exactly the tokens that were delivered."""
        self.messages.append({"role": "assistant", "content": text})
        self._last_token = ids[-1]

    def forget_oldest(self) -> None:
        """Forgets the oldest question and its answer."""
        first = int(self.system_tokens > 0)
        del self.messages[first : first + 2]

    def _render(self, messages: list[dict[str, str]], prompt: bool = True) -> str:
        return self._processor.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)

    def _tokens(self, text: str) -> list[int]:
        return self._processor.tokenizer(text, add_special_tokens=False)["input_ids"]
