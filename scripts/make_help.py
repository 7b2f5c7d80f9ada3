"""Write docs/help.md from the command line itself. With --check, say whether it is up to date."""

import sys
from pathlib import Path

import click
import typer

from reticent.cli import app

HELP = Path(__file__).parent.parent / "docs" / "help.md"


def help_page() -> str:
    """Every verb's --help, in the order in which the command line lists them."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    top = click.Context(group, info_name="reticent", terminal_width=100)
    parts = ["# reticent: the command line\n\nMade by scripts/make_help.py from `reticent --help`.\n", _block(top)]
    for name in group.list_commands(top):
        command = group.get_command(top, name)
        assert command is not None
        parts += [f"\n## {name}\n", _block(click.Context(command, info_name=name, parent=top, terminal_width=100))]
    return "\n".join(parts)


def _block(context: click.Context) -> str:
    return f"```\n{context.command.get_help(context)}\n```\n"


if sys.argv[1:] == ["--check"]:
    if not HELP.exists() or HELP.read_text() != help_page():
        sys.exit("docs/help.md is out of date; write it with: python scripts/make_help.py")
else:
    HELP.write_text(help_page())
