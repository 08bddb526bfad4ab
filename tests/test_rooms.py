"""The rules that let `modeling/` and `processing/` travel to the Hub as they stand, each with a source that breaks it.

Why the rules are what they are: transformers copies a checkpoint's code by following `from .name import` with a
regular expression, puts every file it finds into one folder, and executes a file loaded from a folder once for each
Auto class.
"""

import ast
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "streamchat_hf"
COMMANDS = SRC.with_name("streamchat_cli")
TESTS = Path(__file__).parent
ROOMS = ("modeling", "processing")
CORE = {"torch", "transformers", "huggingface_hub", "safetensors", "av", "PIL", "numpy"}
ROLES = (
    *("configuration", "modeling", "layers", "rotary", "timeline", "cache", "reader", "clock", "generation"),
    *("backbones", "loss", "sources", "frames", "video_processing", "processing", "labels"),
)
MODELS = ("streamformer", "streamchat", "videollm_online", "streambridge_activation")
FILE_NAME = re.compile(rf"({'|'.join(ROLES)})(_[a-z]+)*_({'|'.join(MODELS)})\.py|__init__\.py")
# The two expressions of transformers.dynamic_module_utils.get_relative_imports.
COPIED_BY_TRANSFORMERS = (re.compile(r"^\s*import\s+\.(\S+)\s*$"), re.compile(r"^\s*from\s+\.(\S+)\s+import"))

# Source files without a test file of their own name, each with its reason.
NO_TEST_OF_THEIR_OWN: dict[str, str] = {}

MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

Rule = Callable[[ast.Module, str, set[str]], list[str]]


def room_files() -> list[Path]:
    return sorted(path for room in ROOMS for path in (SRC / room).rglob("*.py"))


def imports(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def own_imports_are_flat(tree: ast.Module, source: str, siblings: set[str]) -> list[str]:
    """The only own import is `from .name import thing`, and `name` is a file of the same room."""
    found = []
    for node in imports(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] == "streamchat_hf"]
        elif node.level == 0:
            found += [node.module] if (node.module or "").split(".")[0] == "streamchat_hf" else []
        elif node.level != 1 or node.module is None or "." in node.module or node.module not in siblings:
            found.append("." * node.level + (node.module or ""))
    return found


def third_party_is_core_or_tried(tree: ast.Module, source: str, siblings: set[str]) -> list[str]:
    """What is neither the standard library nor a core dependency is imported in a `try:` at the top of the file."""
    tried = {id(node) for top in tree.body if isinstance(top, ast.Try) for node in ast.walk(top)}
    found = []
    for node in imports(tree):
        if id(node) in tried or (isinstance(node, ast.ImportFrom) and node.level > 0):
            continue
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        found += [n for n in names if n.split(".")[0] not in CORE | set(sys.stdlib_module_names) | {"streamchat_hf"}]
    return found


def no_future_annotations(tree: ast.Module, source: str, siblings: set[str]) -> list[str]:
    """With it `config: XConfig` leaves `config_class` a string."""
    return ["annotations" for n in imports(tree) if isinstance(n, ast.ImportFrom) and n.module == "__future__"]


def no_isinstance_of_siblings(tree: ast.Module, source: str, siblings: set[str]) -> list[str]:
    """Loaded from a folder, a sibling's class exists twice: `isinstance` would be False."""
    own = {
        alias.asname or alias.name
        for node in imports(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
        for alias in node.names
    }
    found = []
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", None) in {"isinstance", "issubclass"}:
            found += [n.id for n in ast.walk(call.args[1]) if isinstance(n, ast.Name) and n.id in own]
    return found


def no_import_in_prose(tree: ast.Module, source: str, siblings: set[str]) -> list[str]:
    """A line of a docstring that reads as a relative import makes `save_pretrained` look for that file."""
    real = {node.lineno for node in imports(tree)}
    lines = enumerate(source.splitlines(), start=1)
    return [line for n, line in lines if n not in real and any(e.match(line) for e in COPIED_BY_TRANSFORMERS)]


RULES: dict[Rule, list[str]] = {
    own_imports_are_flat: [
        "from . import cache_streamchat",
        "from .. import cli",
        "from ..processing.frames_streamchat import VideoFrame",
        "from .layers.attention import Attention",
        "from .frames_of_the_other_room import VideoFrame",
        "import streamchat_hf",
        "def f():\n    from streamchat_hf.modeling.cache_streamchat import StreamingCache",
    ],
    third_party_is_core_or_tried: [
        "import torchvision",
        "def f():\n    import decord",
        "def f():\n    try:\n        import decord\n    except ImportError:\n        pass",
    ],
    no_future_annotations: ["from __future__ import annotations"],
    no_isinstance_of_siblings: [
        "from .cache_streamchat import StreamingCache\nisinstance(x, (list, StreamingCache))",
        "from .cache_streamchat import StreamingCache as C\nissubclass(x, C)",
    ],
    no_import_in_prose: ['def f():\n    """Like this:\n\n        from .ghost import X\n    """'],
}
ALLOWED = (
    "import torch\nfrom .cache_streamchat import StreamingCache\n"
    "try:\n    import torchvision\nexcept ImportError:\n    torchvision = None\nisinstance(1, (int, torch.Tensor))"
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", room_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_rule_holds_in_every_file(rule: Rule, path: Path):
    source = path.read_text()
    assert rule(ast.parse(source), source, {p.stem for p in path.parent.glob("*.py")}) == []


@pytest.mark.parametrize(("rule", "source"), [(r, s) for r, bad in RULES.items() for s in bad])
def test_rule_rejects_what_breaks_it(rule: Rule, source: str):
    assert rule(ast.parse(source), source, {"cache_streamchat"}) != []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_lets_what_works_pass(rule: Rule):
    assert rule(ast.parse(ALLOWED), ALLOWED, {"cache_streamchat"}) == []


def test_rooms_are_flat_and_not_empty():
    for room in ROOMS:
        assert [path for path in (SRC / room).glob("*.py") if path.name != "__init__.py"]
        assert [path for path in (SRC / room).rglob("*.py") if path.parent != SRC / room] == []


def test_file_names_are_unique_over_both_rooms():
    names = [path.name for path in room_files() if path.name != "__init__.py"]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("path", room_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_file_names_give_the_role_then_the_model(path: Path):
    assert FILE_NAME.fullmatch(path.name)


@pytest.mark.parametrize("name", ["streamchat_modeling.py", "utils.py", "modeling.py", "modeling_streamchat_v2.py"])
def test_file_name_rule_rejects(name: str):
    assert not FILE_NAME.fullmatch(name)


def source_files() -> list[str]:
    """Both packages', the command's as in a folder `cli`, where its tests are."""
    paths = [path.relative_to(SRC) for path in SRC.rglob("*.py") if path.name != "__init__.py"]
    commands = [f"cli/{path.name}" for path in COMMANDS.glob("*.py") if not path.name.startswith("__")]
    return sorted([*(str(path) for path in paths if path.parts[0] != "assets"), *commands])


def source(name: str) -> str:
    return (COMMANDS / Path(name).name if name.startswith("cli/") else SRC / name).read_text()


@pytest.mark.parametrize("name", source_files())
def test_every_source_file_has_a_test_file(name: str):
    path = Path(name)
    mirrored = (TESTS / path.parent / f"test_{path.name}").is_file()
    assert mirrored != (name in NO_TEST_OF_THEIR_OWN), "write its test, or give the reason; drop a reason out of date"


def too_long(source: str) -> list[str]:
    """Functions longer than the bound, docstrings not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            prose = node.body[0] if ast.get_docstring(node) is not None else None
            lines = node.end_lineno - node.lineno + 1 - (prose.end_lineno - prose.lineno + 1 if prose else 0)
            found += [f"{node.name}: {lines} lines"] if lines > MAX_FUNCTION_LINES else []
    return found


@pytest.mark.parametrize("name", source_files())
def test_files_and_functions_stay_short(name: str):
    text = source(name)
    assert text.count("\n") <= MAX_FILE_LINES
    assert too_long(text) == []


def test_length_rule_rejects_a_long_function():
    body = "\n    x = 1" * MAX_FUNCTION_LINES
    assert too_long("def f():" + body) == [f"f: {MAX_FUNCTION_LINES + 1} lines"]
    assert too_long('def f():\n    """Prose.\n    """' + body[: -len("\n    x = 1")]) == []
