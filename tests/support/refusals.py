"""Refusals of commands that were run in this process."""

from typer.testing import Result


def said(result: Result) -> str:
    """What a command that refused said on stderr, in one line."""
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.split())
