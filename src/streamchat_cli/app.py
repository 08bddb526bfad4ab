"""The application, and what its commands share."""

import atexit
import functools
import gc
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.text import Text
except ImportError as error:
    raise SystemExit(f"the streamchat command needs {error.name}: pip install 'streamchat-hf[cli]'") from None

from jinja2 import TemplateError


class App(typer.Typer):
    """A command line that does not wait for a source that hangs."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the command and ends the process.

        A thread that hangs in FFmpeg takes hold of the interpreter every tenth of a second, to see whether its time is
        up. One that is being taken down crashes on that.
        """
        try:
            return super().__call__(*args, **kwargs)
        except SystemExit as end:
            if any(thread.name.startswith("streamchat") for thread in threading.enumerate()):
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(int(end.code or 0))
            raise


app = App(
    help="Video language models that keep watching while they talk.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# The interpreter's last collection, over all that torch and transformers hold, would make Ctrl-C take over a second.
atexit.register(gc.freeze)
STDIN = 0

ModelOption = Annotated[str | None, typer.Option("--model", help="Folder or Hub id; default: the tiny checkpoint.")]
ActivationOption = Annotated[
    str | None, typer.Option("--activation", help="Folder or Hub id of a model that says when to answer.")
]
RemoteCodeOption = Annotated[bool, typer.Option("--trust-remote-code", help="Run the code a checkpoint carries.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write everything to this JSON file.")]


def one_line_errors(command: Callable[..., None]) -> Callable[..., None]:
    """What a user can cause ends in one line and exit code 1; a defect of ours keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (OSError, ValueError, RuntimeError, ImportError, TemplateError) as error:
            line = " ".join(str(error).split()) or type(error).__name__
            Console(stderr=True, highlight=False).print(Text(f"error: {line}", style="red"), soft_wrap=True)
            raise typer.Exit(1) from None

    return run


def load(model: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Model, ready to watch and to speak, and processor. A video LLM that ships in transformers is bridged.

    Raises:
        ValueError: If it is a model that cannot watch a stream.
    """
    from transformers import AutoConfig, AutoModel, AutoProcessor
    from transformers.utils import logging as transformers_logging

    from streamchat_hf import tiny_checkpoint
    from streamchat_hf.bridge.families import FAMILIES

    transformers_logging.disable_progress_bar()
    path = model or str(tiny_checkpoint())
    kind = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).model_type
    if kind in FAMILIES:
        from streamchat_hf.bridge import StreamBridge

        bridge = StreamBridge.from_pretrained(path, trust_remote_code=trust_remote_code)
        return bridge, bridge.processor
    talker = AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code, use_safetensors=True).eval()
    if not hasattr(talker, "open_clock"):
        known = ", ".join(FAMILIES)
        raise ValueError(
            f"{path}: a {kind} cannot watch a stream; give a StreamChat, a VideoLLM-online, or one of {known}"
        )
    return talker, AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)


def load_activation(path: str | None, trust_remote_code: bool) -> tuple[Any, Any] | None:
    """An activation model, which says when to answer, and its processor; `None` without a path.

    Raises:
        ValueError: If it is another model.
    """
    from transformers import AutoModel, AutoProcessor

    if path is None:
        return None
    model = AutoModel.from_pretrained(path, trust_remote_code=trust_remote_code, use_safetensors=True).eval()
    if not hasattr(model, "watch"):
        raise ValueError(f"{path}: a {model.config.model_type} does not say when to answer; give an activation model")
    return model, AutoProcessor.from_pretrained(path, trust_remote_code=trust_remote_code)


def check_folders(*paths: Path | None) -> None:
    """Raises a `FileNotFoundError` if one of the files cannot be written, before the work rather than behind it."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent}: no such folder")


def write_json(path: Path | None, value: Any) -> None:
    """Writes what `--json` asks for, if it does."""
    if path is not None:
        path.write_text(json.dumps(value, indent=1) + "\n")
