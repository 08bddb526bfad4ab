import threading

import pytest
import transformers

from cli_helpers import runner
from streamchat_cli import app as application
from streamchat_cli.main import app
from streamchat_hf import tiny_checkpoint
from streamchat_hf.streaming import session


@pytest.mark.parametrize("model", [None, "me/x"])
def test_remote_code_runs_only_when_asked_for(model, monkeypatch):
    seen = []

    class Auto:
        @classmethod
        def from_pretrained(cls, path, trust_remote_code):
            seen.append((path, trust_remote_code))
            return cls()

        def eval(self):
            return self

    monkeypatch.setattr(transformers, "AutoModel", Auto)
    monkeypatch.setattr(transformers, "AutoProcessor", Auto)
    application.load(model, False)
    assert seen == [(model or str(tiny_checkpoint()), False)] * 2


def test_a_source_that_hangs_does_not_keep_the_command(monkeypatch):
    ended, plugged_in = [], threading.Event()
    monkeypatch.setattr(application.os, "_exit", ended.append)
    hanging = threading.Thread(target=plugged_in.wait, name="streamchat grab", daemon=True)
    hanging.start()
    with pytest.raises(SystemExit):
        app(["no-such-command"])
    assert ended == [2]
    plugged_in.set()
    hanging.join()


def test_a_defect_keeps_its_traceback(fake, monkeypatch):
    monkeypatch.setattr(session, "StreamingSession", lambda *args, **kwargs: {}["typo"])
    result = runner.invoke(app, ["chat", "clip", "?"])
    assert isinstance(result.exception, KeyError)
