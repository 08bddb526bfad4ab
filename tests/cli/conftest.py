import pytest

from fake_talker import FakeProcessor, scripted_talker
from streamchat_cli import evaluate, watch

SCRIPT = "a red circle , left now blue . <eos>"


@pytest.fixture
def fake(monkeypatch):
    """A processor that comes with a talker of this script, whatever model a command names."""
    processor = FakeProcessor()
    talker = scripted_talker(processor.tokenizer, SCRIPT)
    loaded = []
    for module in (watch, evaluate):
        monkeypatch.setattr(module, "load", lambda *args: loaded.append(args) or (talker, processor))
    processor.loaded, processor.script = loaded, SCRIPT
    return processor
