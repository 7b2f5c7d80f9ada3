"""``python -m reticent`` is ``reticent``."""

from reticent.cli import app

app()
