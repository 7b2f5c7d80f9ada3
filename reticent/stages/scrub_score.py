"""What recognisers find in text whose identifiers are marked."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from reticent.data import gold, recognise
from reticent.data.scrub_score import Family, Scored, compare
from reticent.data.spans import Labelled
from reticent.progress import Progress, Task

GENERATED = "bundled/clinic"
"""In place of a file: generated visit notes, whose identifiers are all known."""
NOTES = 1000


def scores(file: Path, names: Sequence[str], *, each: bool, progress: Progress) -> dict[str, list[Scored]]:
    """The scores of all recognisers together, and with ``each`` before them of every one alone.

    Raises:
        DataError: The file has no marked text, a recogniser is unknown or cannot be loaded, or it fails.
    """
    generated = str(file) == GENERATED
    form = "spans" if generated else gold.form_of(file)
    families: tuple[Family, ...] = ("tab", "i2b2") if form == "i2b2" else ("tab",)
    alone = each or len(names) == 1
    recognisers = (
        {name: recognise.build([name]) for name in names} if alone else {" + ".join(names): recognise.build(names)}
    )
    combinations = [tuple(names)] if each and len(names) > 1 else []
    texts = gold.generated_notes(NOTES, seed=0) if generated else gold.read(file, form)
    with progress.task("scoring", total=1) as task:
        found = compare(_counted(texts, task), recognisers, combinations=combinations, families=families)
        task.advance(1)
    return found


def _counted(texts: Iterator[Labelled], task: Task) -> Iterator[Labelled]:
    for number, text in enumerate(texts, start=1):
        task.advance(0, note=f"{number:,} texts")
        yield text
