import email.utils
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from scripted_endpoint import Reply, ScriptedEndpoint
from streamchat_hf.data import synthesize_llm
from streamchat_hf.data.synthesize_llm import (
    Endpoint,
    HubModel,
    LanguageModel,
    LocalModel,
    NoAnswer,
    load_language_model,
)

MESSAGES = [{"role": "user", "content": "now"}]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def ask(complete, attempts=6, delay=0.01, stop=None):
    return LanguageModel("tiny", complete, attempts, delay).ask(MESSAGES, stop or threading.Event())


def answering(*replies):
    """An endpoint that gives these answers, then the last one for ever."""
    return ScriptedEndpoint(lambda messages, before: replies[min(before, len(replies) - 1)])


BACKENDS = {"endpoint": lambda url, **options: Endpoint(url, "tiny", **options), "hub": HubModel}


@pytest.fixture(params=BACKENDS)
def backend(request, online):
    return BACKENDS[request.param]


def test_the_model_and_the_messages_are_sent_and_the_answer_comes_back(backend):
    with answering("yes") as server:
        assert backend(server.url)(MESSAGES) == "yes"
        assert server.requests[0].messages == MESSAGES


FAILURES = {
    "busy": Reply(status=429, headers={"Retry-After": "0"}),
    "busy for ever, it says": Reply(status=503, headers={"Retry-After": "never"}),
    "broken": Reply(status=500, text="oops"),
    "overloaded": Reply(status=529),
    "hung up": Reply(drop=True),
    "hung up halfway": Reply("yes", drop="late"),
    "slow": Reply("yes", delay=1.5),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_passes_is_waited_for(backend, failure):
    with answering(failure, failure, "yes") as server:
        assert ask(backend(server.url, timeout=0.75 if failure.delay else 10.0)) == "yes"
        assert len(server.requests) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"{}",
        b'{"choices": []}',
        b'{"error": {"code": 429}}',
        b'{"choices": [{"message": {"content": [1]}}]}',
    ],
)
def test_a_page_instead_of_a_completion_is_a_failure_too(backend, body):
    with answering(Reply(body=body), "yes") as server:
        assert ask(backend(server.url)) == "yes"
        assert len(server.requests) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_does_not_pass_is_not_repeated(backend, status):
    with answering(Reply(status=status, text="no such model")) as server:
        with pytest.raises(NoAnswer, match="(?s)tiny: .*no such model"):
            ask(backend(server.url))
        assert len(server.requests) == 1


def test_attempts_come_to_an_end(backend):
    with answering(Reply(status=500)) as server:
        with pytest.raises(NoAnswer, match="500"):
            ask(backend(server.url), attempts=4)
        assert len(server.requests) == 4


def gaps(server):
    return [b.time - a.time for a, b in itertools.pairwise(server.requests)]


def test_waits_grow(backend):
    with answering(Reply(status=500)) as server:
        with pytest.raises(NoAnswer):
            ask(backend(server.url), attempts=4, delay=0.1)
        assert all(gap >= 0.75 * 0.1 * 2**i for i, gap in enumerate(gaps(server)))


@pytest.mark.parametrize("after", ["0.5", "date"])
def test_the_server_says_when(backend, after):
    seconds = 0.5
    if after == "date":  # whole seconds: between one and two from now
        after, seconds = email.utils.formatdate(time.time() + 2, usegmt=True), 1.0
    with answering(Reply(status=429, headers={"Retry-After": after}), "yes") as server:
        assert ask(backend(server.url)) == "yes"
        assert gaps(server)[0] >= seconds - 0.05


def test_waiting_can_be_ended():
    stop = threading.Event()
    with answering(Reply(status=429, headers={"Retry-After": "3600"})) as server, ThreadPoolExecutor() as pool:
        future = pool.submit(ask, Endpoint(server.url, "tiny"), stop=stop)
        while not server.requests:
            time.sleep(0.01)
        stop.set()
        with pytest.raises(NoAnswer, match="429"):
            future.result()
        assert len(server.requests) == 1


def test_a_refusal_that_stands_elsewhere_is_the_answer():
    refusal = Reply(message={"role": "assistant", "content": None, "refusal": "I'm sorry."})
    with answering(refusal, Reply(message={"role": "assistant", "content": None})) as server:
        endpoint = Endpoint(server.url, "tiny")
        assert [endpoint(MESSAGES), endpoint(MESSAGES)] == ["I'm sorry.", ""]


def test_an_endpoint_gets_its_own_key_and_never_the_hubs(monkeypatch):
    with answering("yes") as server:
        Endpoint(server.url, "tiny")(MESSAGES)
        assert "authorization" not in server.requests[-1].headers
        monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\n")
        Endpoint(server.url, "tiny")(MESSAGES)
        assert server.requests[-1].headers["authorization"] == "Bearer sk-secret"
        assert server.requests[-1].body.keys() == {"model", "messages"}


def test_a_key_does_not_follow_a_redirect(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with answering("yes") as other:
        for status in (301, 302, 303, 307, 308):
            moved = Reply(status=status, body=b"", headers={"Location": f"{other.url}/chat/completions"})
            with answering(moved) as server, pytest.raises(NoAnswer, match=str(status)):
                ask(Endpoint(server.url, "tiny"))
        assert other.requests == []


@pytest.mark.parametrize(
    "url", ["localhost:8000", "file:///etc/passwd", "http://", "http://key@host/v1", "http://h/v1?key=1"]
)
def test_an_address_that_is_none_or_holds_a_key_is_refused(url):
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        Endpoint(url, "tiny")


def test_an_endpoint_works_where_the_hub_is_forbidden(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with answering("yes") as server:
        assert ask(Endpoint(server.url, "tiny")) == "yes"
    with pytest.raises(OfflineModeIsEnabled):
        ask(HubModel("org/model"), delay=3600)


def test_a_server_that_is_not_there(backend):
    with answering("yes") as server:
        url = server.url
    with pytest.raises(NoAnswer, match="refused"):
        ask(backend(url), attempts=2)


def tokenizer(chat_template):
    """One token per byte."""
    vocabulary = {byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(vocabulary, [], chat_template=chat_template)


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    Qwen2ForCausalLM(Qwen2Config(vocab_size=300, intermediate_size=16, **size)).save_pretrained(folder)
    tokenizer("{% for message in messages %}{{ message['content'] }} {% endfor %}").save_pretrained(folder)
    return folder


def test_a_local_model_answers_with_what_is_new_from_any_thread(tiny_folder, monkeypatch):
    monkeypatch.setattr(synthesize_llm, "MAX_NEW_TOKENS", 6)
    model = load_language_model(str(tiny_folder))
    conversations = [
        [{"role": "system", "content": "now"}, {"role": "user", "content": text}] for text in ("red", "blue")
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(model.complete, conversations * 4))
    assert all(isinstance(text, str) and 0 < len(text) <= 6 for text in answers)


def test_a_local_model_is_asked_one_thing_at_a_time(tiny_folder):
    model, alone = LocalModel(tiny_folder), threading.Lock()

    def pipeline(messages, **options):
        assert alone.acquire(blocking=False)
        time.sleep(0.01)
        alone.release()
        return [{"generated_text": "yes"}]

    model._pipeline = pipeline
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(model, [MESSAGES] * 8)) == ["yes"] * 8


def test_a_local_model_without_a_chat_template_is_refused(tiny_folder, tmp_path):
    Qwen2ForCausalLM.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no chat template"):
        LocalModel(tmp_path)


def test_a_command_line_names_each_of_them(tiny_folder):
    named = [("name", "http://h/v1"), ("http://h/v1", None), (f"{tiny_folder}/", None), ("org/model", None)]
    models = [load_language_model(*names) for names in named]
    assert [type(model.complete) for model in models] == [Endpoint, Endpoint, LocalModel, HubModel]
    assert [model.name for model in models] == ["name", "http://h/v1", tiny_folder.name, "org/model"]
    assert (models[0].complete.model, models[0].complete.url) == ("name", "http://h/v1/chat/completions")
