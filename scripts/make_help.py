"""Write docs/help.md from the command line itself. With --check, say whether it is up to date."""

import sys
from collections.abc import Iterator
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
    for context in _below(top):
        parts += [f"\n## {context.command_path.removeprefix('reticent ')}\n", _block(context)]
    return "\n".join(parts)


def _below(context: click.Context) -> Iterator[click.Context]:
    """Every command under one, each group before its own."""
    assert isinstance(context.command, click.Group)
    for name in context.command.list_commands(context):
        command = context.command.get_command(context, name)
        assert command is not None
        child = click.Context(command, info_name=name, parent=context, terminal_width=100)
        yield child
        if isinstance(command, click.Group):
            yield from _below(child)


def _block(context: click.Context) -> str:
    return f"```\n{context.command.get_help(context)}\n```\n"


if sys.argv[1:] == ["--check"]:
    if not HELP.exists() or HELP.read_text() != help_page():
        sys.exit("docs/help.md is out of date; write it with: python scripts/make_help.py")
else:
    HELP.write_text(help_page())
