"""What holds for the folder of every metric."""

import contextlib
import doctest
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from huggingface_hub import RepoCard

from streamchat_hf import metrics

METRICS = Path(metrics.__file__).parent


def check_imports(name: str, allowed: Sequence[str]) -> None:
    """`evaluate` copies the main file and those that it imports, so they stand alone, and it imports all of them."""
    sources = {path.stem: path.read_text() for path in (METRICS / name).glob("*.py") if path.stem != "__init__"}
    lines = [line for source in sources.values() for line in map(str.strip, source.splitlines())]
    imported = {line.split()[1] for line in lines if line.startswith(("import ", "from "))}
    third_party = {module.split(".")[0] for module in imported if not module.startswith(".")}
    assert third_party - set(sys.stdlib_module_names) <= set(allowed)
    assert {module.lstrip(".") for module in imported if module.startswith(".")} <= set(sources)
    assert [stem for stem in sources if stem != name and f"from .{stem} import" not in sources[name]] == []


def check_card(name: str) -> None:
    """The card is a Space's, and its examples give what they show."""
    card = RepoCard.load(METRICS / name / "README.md")
    assert card.data.title == name and {"evaluate", "metric"} <= set(card.data.tags)
    assert card.data.sdk == "static" and card.data.license == "apache-2.0"
    examples = ModuleType("card")
    examples.__doc__ = card.text.replace("```", "")
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    with contextlib.chdir(METRICS):
        for example in finder.find(examples, "card", globs={}):
            runner.run(example)
    assert runner.summarize(verbose=False).failed == 0 and runner.tries > 3
