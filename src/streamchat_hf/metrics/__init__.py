"""The package's `evaluate` metrics, one folder each: `metrics.load("streaming_score").compute(...)`."""

import tempfile
from pathlib import Path
from typing import Any


def load(name: str) -> Any:
    """Return a metric of this package, which needs the `eval` extra.

    It is the class that `evaluate.load` finds in the metric's folder, made without copying code or writing a file:
    predictions stay in memory, so any number of processes can have one. To gather predictions over several processes
    give the folder to `evaluate.load` with `num_process` and `process_id`.

    Args:
        name: A folder beside this file, such as `"streaming_score"`.

    Raises:
        ValueError: For an unknown name.
        ImportError: Without `evaluate`.
    """
    names = sorted(path.stem for path in Path(__file__).parent.glob("*/*.py") if path.stem == path.parent.name)
    if name not in names:
        raise ValueError(f"there is no metric {name!r}, only: {', '.join(names)}")
    try:
        from evaluate.loading import import_main_class
    except ImportError as error:
        raise ImportError("metrics need evaluate: pip install 'streamchat-hf[eval]'") from error
    # The library makes an empty folder for a metric's files even if it keeps them in memory and will never open it.
    with tempfile.TemporaryDirectory() as unused:
        return import_main_class(f"{__name__}.{name}.{name}")(keep_in_memory=True, cache_dir=unused)
