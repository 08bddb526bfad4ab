"""Language models that write instructions: an OpenAI-compatible endpoint, the Hub's inference, or a local folder."""

import email.utils
import http.client
import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import InferenceClient

# HTTPError: every failure of the HTTP library beneath the Hub's client; only some of them are an OSError.
from huggingface_hub.errors import HTTPError as HubTransportError
from huggingface_hub.errors import OfflineModeIsEnabled

from streamchat_hf.data.synthesize_prompt import Messages

TIMEOUT = 120.0  # seconds
MAX_NEW_TOKENS = 1024
_LONGEST_WAIT = 60.0  # seconds, where the server has named none
_LONGEST_OBEYED = 86_400.0  # and where it has

Complete = Callable[[Messages], str]


class NoAnswer(OSError):
    """The model could not be reached, or would not be bothered, after all attempts."""


@dataclass(frozen=True)
class LanguageModel:
    """A model and how patiently it is asked.

    Attributes:
        name: Stands in the data that it makes.
        complete: Returns the next message of a conversation; called by several threads at once.
        attempts: How often one conversation is sent before it is given up.
        delay: Seconds before the second attempt; each later wait is twice as long, up to a minute. A server that says
            when to come back (`Retry-After`) is obeyed.
    """

    name: str
    complete: Complete
    attempts: int = 6
    delay: float = 1.0

    def ask(self, messages: Messages, stop: threading.Event) -> str:
        """Return the model's answer.

        Args:
            messages: The conversation.
            stop: Ends the waiting once it is set.

        Raises:
            NoAnswer: After the last attempt; at once where another one would end the same way.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return self.complete(messages)
            except OfflineModeIsEnabled:  # waiting does not help against one's own settings
                raise
            except (OSError, http.client.HTTPException, HubTransportError) as error:
                transient, wait = _patience(error)
                if wait is None:  # the random part keeps workers that failed together from coming back together
                    wait = min(self.delay * 2 ** (attempt - 1), _LONGEST_WAIT) * random.uniform(0.75, 1.25)
                if not transient or attempt >= self.attempts or stop.wait(wait):
                    raise NoAnswer(f"{self.name}: {str(error) or type(error).__name__}") from error


def _patience(error: Exception) -> tuple[bool, float | None]:
    """Whether another attempt may end otherwise, and the seconds after which the server wants it."""
    response: Any = getattr(error, "response", error)  # the Hub's errors have one, urllib's are one
    status = getattr(response, "status_code", getattr(response, "code", None))
    if status is None:  # no answer at all: timeouts, refused and broken connections
        return True, None
    if status not in (408, 409, 425, 429) and status < 500:
        return False, None
    after = (response.headers.get("Retry-After") or "").strip()
    try:
        seconds = float(after)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
        except ValueError:
            return True, None
    return True, min(max(seconds, 0.0), _LONGEST_OBEYED)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key that was meant for one host is not carried to another."""

    def redirect_request(self, *args: Any) -> None:
        """Leave the answer as it is: an error of its status."""


class Endpoint:
    """Any server that speaks OpenAI's `/chat/completions`.

    The standard library calls it, because `HF_HUB_OFFLINE` forbids the Hub's client every address, the server next
    door included, and because that client sends the Hub's token wherever it is sent. The key is `OPENAI_API_KEY` of
    the environment; a server that wants none gets none. Only the model's name and the messages are sent: everything
    else, such as a limit of length, goes by another name somewhere.

    Args:
        url: Up to and without `/chat/completions`: `"http://localhost:8000/v1"`.
        model: The name that the server knows.
        timeout: Seconds of silence after which an attempt has failed.
    """

    def __init__(self, url: str, model: str, timeout: float = TIMEOUT):
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError("the address of an endpoint reads http://host/v1; its key is in OPENAI_API_KEY")
        self.url, self.model, self.timeout = url.rstrip("/") + "/chat/completions", model, timeout
        self._opener = urllib.request.build_opener(_NoRedirects)

    def __call__(self, messages: Messages) -> str:
        """Return the answer, or a refusal that the server has put elsewhere."""
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY", "").strip():
            headers["Authorization"] = f"Bearer {key}"
        body = json.dumps({"model": self.model, "messages": messages}).encode()
        try:
            with self._opener.open(urllib.request.Request(self.url, body, headers), timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:  # what the server says about it is worth more than the status
                error.msg = f"{error.msg}: {error.read(300).decode(errors='replace')}"
            raise
        return _content(lambda: json.loads(text)["choices"][0]["message"])


class HubModel:
    """A model on the Hub, run by an inference provider. The token is the one that `huggingface_hub` finds.

    Args:
        model: Hub id.
        timeout: Seconds of silence after which an attempt has failed.
    """

    def __init__(self, model: str, timeout: float = TIMEOUT):
        self._client = InferenceClient(model, timeout=timeout)

    def __call__(self, messages: Messages) -> str:
        """Return the answer."""
        # Without a limit providers cut after a hundred tokens.
        return _content(lambda: self._client.chat_completion(messages, max_tokens=MAX_NEW_TOKENS).choices[0].message)


def _content(read: Callable[[], Any]) -> str:
    """Return the words of the message that `read` finds in a response, if it is one."""
    try:
        message = read()
        content = message.get("content") or message.get("refusal") or ""
    except (json.JSONDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ConnectionError("the server sent no chat completion") from error
    if not isinstance(content, str):
        raise ConnectionError(f"the server sent no words but {content!r}")
    return content


class LocalModel:
    """A transformers model on this machine.

    Args:
        folder: Of a causal language model whose tokenizer has a chat template.
    """

    def __init__(self, folder: str | os.PathLike):
        from transformers import pipeline

        self._pipeline = pipeline("text-generation", model=os.fspath(folder))
        if not self._pipeline.tokenizer.chat_template:
            raise ValueError(f"{os.fspath(folder)} has no chat template")
        self._lock = threading.Lock()  # one model, and tokenizers are not to be shared by threads

    def __call__(self, messages: Messages) -> str:
        """Return the answer."""
        with self._lock:
            output = self._pipeline(messages, max_new_tokens=MAX_NEW_TOKENS, return_full_text=False)
        return output[0]["generated_text"]


def load_language_model(model: str, base_url: str | None = None) -> LanguageModel:
    """Return the model that a command line names; a folder's is called as the folder is.

    Args:
        model: With a base URL the name that the server knows; else the URL of an endpoint, a folder, or a Hub id.
        base_url: Of an OpenAI-compatible endpoint.

    Raises:
        ValueError: If the address is none, or a folder's tokenizer has no chat template.
    """
    if base_url is not None:
        return LanguageModel(model, Endpoint(base_url, model))
    if model.startswith(("http://", "https://")):
        return LanguageModel(model, Endpoint(model, "default"))
    if Path(model).is_dir():
        # Where a folder lies is nothing for the data that are made with it.
        return LanguageModel(Path(model).resolve().name, LocalModel(model))
    return LanguageModel(model, HubModel(model))
