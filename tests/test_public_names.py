"""What others rely on: the names, what the Auto classes know, and the shipped checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

import streamchat_hf

NAMES = [
    "StaticStreamingCache",
    "StreamBridge",
    "StreamBridgeActivationConfig",
    "StreamBridgeActivationModel",
    "StreamChatConfig",
    "StreamChatForConditionalGeneration",
    "StreamChatModel",
    "StreamChatProcessor",
    "StreamFormerCache",
    "StreamFormerConfig",
    "StreamFormerModel",
    "StreamFormerVideoProcessor",
    "StreamingCache",
    "StreamingGenerationMixin",
    "StreamingSession",
    "VideoFrame",
    "VideoLLMOnlineConfig",
    "VideoLLMOnlineForConditionalGeneration",
    "VideoLLMOnlineProcessor",
    "VideoStream",
    "timeline",
    "tiny_checkpoint",
]


def test_public_names_are_these():
    assert sorted(streamchat_hf.__all__) == NAMES
    assert all(hasattr(streamchat_hf, name) for name in NAMES)


def test_version_is_the_installed_one():
    from importlib.metadata import version

    assert streamchat_hf.__version__ == version("streamchat-hf")


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("streamchat", "StreamChat"),
        ("streamformer", "StreamFormer"),
        ("videollm_online", "VideoLLMOnline"),
        ("streambridge_activation", "StreamBridgeActivation"),
    ],
)
def test_auto_config_knows_the_model_type(model_type: str, name: str):
    assert type(transformers.AutoConfig.for_model(model_type)) is getattr(streamchat_hf, f"{name}Config")


@pytest.mark.parametrize("talker", ["StreamChat", "VideoLLMOnline"])
@pytest.mark.parametrize("auto", ["Model", "ModelForCausalLM", "ModelForImageTextToText", "ModelForMultimodalLM"])
def test_every_auto_class_gives_the_talker_that_generates(auto: str, talker: str):
    mapping = getattr(transformers, f"Auto{auto}")._model_mapping
    config, model = (getattr(streamchat_hf, f"{talker}{kind}") for kind in ("Config", "ForConditionalGeneration"))
    assert mapping[config] is model


def test_other_auto_classes_know_ours():
    assert transformers.AutoModel._model_mapping[streamchat_hf.StreamFormerConfig] is streamchat_hf.StreamFormerModel
    assert PROCESSOR_MAPPING[streamchat_hf.StreamChatConfig] is streamchat_hf.StreamChatProcessor
    assert PROCESSOR_MAPPING[streamchat_hf.VideoLLMOnlineConfig] is streamchat_hf.VideoLLMOnlineProcessor
    activation = streamchat_hf.StreamBridgeActivationConfig
    assert transformers.AutoModel._model_mapping[activation] is streamchat_hf.StreamBridgeActivationModel
    assert PROCESSOR_MAPPING[activation] is streamchat_hf.VideoLLMOnlineProcessor


def test_tiny_checkpoint_loads_as_our_classes():
    folder = streamchat_hf.tiny_checkpoint()
    model = transformers.AutoModel.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert type(model) is streamchat_hf.StreamChatForConditionalGeneration
    assert type(processor) is streamchat_hf.StreamChatProcessor
    assert type(AutoVideoProcessor.from_pretrained(folder)) is streamchat_hf.StreamFormerVideoProcessor
    assert processor.tokenizer.vocab_size <= model.config.text_config.vocab_size


def test_code_in_the_tiny_checkpoint_is_that_of_the_rooms():
    package = Path(streamchat_hf.__file__).parent
    paths = [path for room in ("modeling", "processing") for path in (package / room).glob("*.py")]
    rooms = {path.name: path.read_text() for path in paths}
    carried = {path.name: path.read_text() for path in streamchat_hf.tiny_checkpoint().glob("*.py")}
    assert {name for name, source in carried.items() if source != rooms.get(name)} == set()
    assert {"modeling_streamchat.py", "processing_streamchat.py"} <= set(carried)


def test_importing_prints_nothing_and_loads_no_extra():
    extras = ["trl", "datasets", "peft", "evaluate", "matplotlib", "typer", "rich", "torchvision"]
    code = f"import streamchat_hf, sys; loaded = [m for m in {extras} if m in sys.modules]; assert not loaded, loaded"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
