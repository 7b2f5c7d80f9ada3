"""How long work says how far it is, without printing: the command line hands in a `Progress` that draws."""

from collections.abc import Iterator
from contextlib import contextmanager


class Task:
    """One piece of long work. This one is silent; `reticent.cli` draws."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        """``amount`` more of the total is done; ``note`` replaces the text at the end of the line."""


class Progress:
    """Silent progress, the default of every library function."""

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """A piece of work of ``total`` parts; it ends when the block ends."""
        yield Task()

    def say(self, message: str) -> None:
        """One line that the user should see."""


SILENT = Progress()
