"""What a report is made from: the content of report.json, as plain values."""

from typing import Any, NotRequired, TypedDict


class Guarantee(TypedDict):
    """What the ledger vouches for. ``epsilon`` is None where nothing is promised; then only ``limits`` is needed."""

    epsilon: float | None
    delta: NotRequired[float | None]
    unit: NotRequired[str]  # "owner" or "record"
    relation: NotRequired[str]  # "add-or-remove-one"
    mechanism: NotRequired[str]
    accountant: NotRequired[str]
    epsilon_rdp: NotRequired[float | None]  # the cross-check
    noise_multiplier: NotRequired[float | None]
    sampling_prob: NotRequired[float | None]
    steps: NotRequired[int | None]
    clip_norm: NotRequired[float | None]
    units: NotRequired[int | None]  # how many owners or records were trained on
    limits: NotRequired[list[str]]  # what the promise does not cover, one sentence each


class Exposures(TypedDict):
    """Bits, one number per secret."""

    planted: list[float]
    held_out: list[float]


class Curve(TypedDict):
    """A ROC curve from (0, 0) to (1, 1) and how many scores it stands on."""

    fpr: list[float]
    tpr: list[float]
    members: int
    others: int


class LossPoint(TypedDict):
    """``loss`` in nats per token; ``epsilon`` spent so far, None where none is counted."""

    step: int
    loss: float
    epsilon: float | None


class Silo(TypedDict):
    """What one silo holds; ``origins``: its units by the origin of their records."""

    units: int
    records: int
    bytes: int
    origins: dict[str, int]


class Silos(TypedDict):
    """Silos by name; ``title`` says how the units were dealt to them."""

    title: str
    silos: dict[str, Silo]


class Plots(TypedDict, total=False):
    """Each by model, "base", "twin" or "private", except silos."""

    exposure: dict[str, Exposures]
    roc: dict[str, Curve]
    loss: dict[str, list[LossPoint]]
    silos: Silos


class Report(TypedDict):
    """``measurements`` are `Measurement.to_dict` values; the first one of a name and model is the one on page 1."""

    title: str
    created: str
    guarantee: Guarantee
    measurements: list[dict[str, Any]]
    plots: NotRequired[Plots]
    data: NotRequired[dict[str, Any]]
    recipe: NotRequired[str]
    provenance: NotRequired[dict[str, Any]]
