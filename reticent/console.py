"""What is shown on a terminal: tables and progress."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from reticent.measurement import Measurement
from reticent.progress import Progress, Task

if TYPE_CHECKING:
    from rich import progress as bars
    from rich.table import Table

MODELS = ("base", "twin", "private")
"""Columns of a table of measurements."""

_PLAIN_SECONDS = 10  # Between two lines of one task when progress is not drawn.


def columns(*names: str) -> "Table":
    """An empty table."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for name in names:
        table.add_column(name, overflow="fold", min_width=30 if name == "measure" else None)
    return table


def measured(measurements: Sequence[Measurement], models: Sequence[str] = MODELS) -> "Table":
    """Rows are measures, columns are ``models``; measures of none of them are left out."""
    measurements = [one for one in measurements if one.model in models]
    names = {(one.name, one.method) for one in measurements}
    several = {name for name, _ in names if sum(other == name for other, _ in names) > 1}
    cells: dict[str, dict[str, str]] = {}
    for one in measurements:
        label = f"{one.name} ({one.method})" if one.name in several else one.name
        interval = "" if one.interval is None else f" [{one.interval[0]:.3g}, {one.interval[1]:.3g}]"
        label = label if one.unit == one.name else f"{label}, {one.unit}"
        cells.setdefault(label, {})[one.model] = f"{one.value:.3g}{interval}"
    table = columns("measure", *models)
    for label, row in cells.items():
        table.add_row(label, *(row.get(model, "") for model in models))
    return table


def print_table(table: "Table") -> None:
    """Print it, 120 wide where that is not a terminal."""
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(table)


class RichProgress(Progress):
    """Bars on a terminal, now and then a line elsewhere; all on stderr."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, markup=False, highlight=False)
        self._bars: bars.Progress | None = None

    @contextmanager
    def task(self, description: str, total: float) -> Iterator[Task]:
        """See `Progress.task`."""
        if not self._console.is_terminal:
            lines = _Lines(self, description, total)
            yield lines
            lines.end()
            return
        outermost = self._bars is None
        if self._bars is None:
            self._bars = _new_bars(self._console)
            self._bars.start()
        try:
            yield _Bar(self._bars, self._bars.add_task(description, total=total, note=""))
        finally:
            if outermost:
                self._bars.stop()
                self._bars = None

    def say(self, message: str) -> None:
        """See `Progress.say`."""
        self._console.print(message, soft_wrap=True)


def _new_bars(console: Any) -> "bars.Progress":
    from rich import progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(bar_width=24),
        progress.TaskProgressColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


class _Bar(Task):
    """A drawn task."""

    def __init__(self, drawn: "bars.Progress", task: "bars.TaskID") -> None:
        self._drawn, self._task = drawn, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._drawn.update(self._task, advance=amount, note=note)


class _Lines(Task):
    """A task told in lines, for logs."""

    def __init__(self, progress: RichProgress, description: str, total: float) -> None:
        self._progress, self._description, self._total = progress, description, total
        self._done, self._note = 0.0, ""
        self._began = self._told = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._done, self._note = self._done + amount, note
        now = time.monotonic()
        if now - self._told >= _PLAIN_SECONDS:
            self._told = now
            left = (now - self._began) * max(self._total - self._done, 0) / max(self._done, 1e-9)
            share = self._done / self._total if self._total else 1
            far = (
                f"{share:.0%}, {left:.0f} s left" if self._done and self._total else f"{now - self._began:.0f} s"
            )  # of an unknown whole
            self._progress.say(f"{self._description}: {far}{self._noted()}")

    def end(self) -> None:
        """Say that the task is done."""
        self._progress.say(f"{self._description}: done in {time.monotonic() - self._began:.0f} s{self._noted()}")

    def _noted(self) -> str:
        return f", {self._note}" if self._note else ""
