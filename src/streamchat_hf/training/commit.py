"""Which code a run was made with."""

import subprocess
from pathlib import Path


def code_commit() -> str | None:
    """The commit of the checkout this package is imported from, for the card; `None` outside of one."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None
