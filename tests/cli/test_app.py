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
        model_type = "streamchat"
        open_clock = None

        @classmethod
        def from_pretrained(cls, path, trust_remote_code, use_safetensors=None):
            seen.append((path, trust_remote_code))
            return cls()

        def eval(self):
            return self

    for name in ("AutoConfig", "AutoModel", "AutoProcessor"):
        monkeypatch.setattr(transformers, name, Auto)
    application.load(model, False)
    assert seen == [(model or str(tiny_checkpoint()), False)] * 3


def test_a_model_that_cannot_watch_is_refused(tmp_path):
    transformers.Qwen2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(tmp_path)).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="a qwen2 cannot watch a stream; give a StreamChat, .* llava_onevision, qwen2_5_vl"
    ):
        application.load(str(tmp_path), False)
    with pytest.raises(ValueError, match="a qwen2 does not say when to answer"):
        application.load_activation(str(tmp_path), False)
    assert application.load_activation(None, False) is None


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
