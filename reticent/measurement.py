"""A measured number with everything needed to read it. Reports read these and nothing else."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One number, measured on one model.

    ``interval`` is two-sided at ``level``. ``floor`` is what a model that knows nothing of the training data would give
    (the null), ``ceiling`` the most that this estimator can show at this ``n``. ``control`` is the same number on
    records that were never trained on. ``unit`` is the unit of ``value`` ("bits", "share", ...), ``counted`` what ``n``
    counts ("secrets", "questions", "owners", ...).
    """

    name: str
    model: str
    value: float
    interval: tuple[float, float] | None
    n: int
    unit: str
    counted: str
    method: str = ""
    level: float = 0.95
    floor: float | None = None
    ceiling: float | None = None
    control: float | None = None
    p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Measurement":
        """The inverse of `to_dict`."""
        interval = values.get("interval")
        return cls(**{**values, "interval": None if interval is None else (interval[0], interval[1])})
