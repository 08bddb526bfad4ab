"""All commands together, in the order of the help: what the `streamchat` script runs."""

# isort: off
from streamchat_cli.app import app
from streamchat_cli import watch, evaluate, measure, proactive, score, judge, make, publish  # noqa: F401 -- their commands

__all__ = ["app"]
