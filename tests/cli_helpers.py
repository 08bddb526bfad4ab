"""Runs the `streamchat` command in this process."""

from typer.testing import CliRunner, Result

from streamchat_cli.main import app

runner = CliRunner()


def run(*args: object, code: int = 0, typed: str | None = None, **environment: str) -> Result:
    """Runs it, and expects its exit code."""
    result = runner.invoke(app, [str(arg) for arg in args], input=typed, env=environment)
    assert result.exit_code == code, result.output
    return result


def table_rows(output: str) -> list[list[str]]:
    """The cells of all tables in an output, without their heads."""
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if line.startswith("│")]
