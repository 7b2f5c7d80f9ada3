"""What a report is made from: the content of report.json, as plain values."""

from typing import Any, NotRequired, TypedDict


class SitePromise(TypedDict):
    """What one site of a federation promises its own units.

    Where not ``known``, the site could no longer be asked: ``epsilon`` is all that its plan allows.
    """

    site: str
    units: int | None
    epsilon: float
    delta: float
    steps: int | None
    known: bool


class Guarantee(TypedDict):
    """What the ledger vouches for. ``epsilon`` is None where nothing is promised; then only ``limits`` is needed.

    In a federation with a promise to units, ``epsilon`` is that of the worst of ``sites``, and ``clients`` is a promise
    to whole sites, if there is one as well. With that alone the guarantee itself is it, of the unit "client".
    """

    epsilon: float | None
    delta: NotRequired[float | None]
    unit: NotRequired[str]  # "owner", "record", or "client" (a whole site)
    relation: NotRequired[str]  # "add-or-remove-one"
    mechanism: NotRequired[str]
    accountant: NotRequired[str]
    epsilon_rdp: NotRequired[float | None]  # the cross-check
    noise_multiplier: NotRequired[float | None]
    sampling_prob: NotRequired[float | None]
    steps: NotRequired[int | None]
    clip_norm: NotRequired[float | None]
    units: NotRequired[int | None]  # how many owners or records were trained on
    protects: NotRequired[str]  # whom, as in "one site with all its data"
    against: NotRequired[str]  # from whom, as in "the other sites and whoever has the model"
    limits: NotRequired[list[str]]  # what the promise does not cover, one sentence each
    sites: NotRequired[list[SitePromise]]
    clients: NotRequired["Guarantee | None"]


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


class Round(TypedDict):
    """One attempt at a round of a federation, in the order of the log.

    ``up`` and ``down``: bytes to the coordinator and from it, of all attempts at this round so far. ``left_out``: why,
    by site. ``lora_error``: relative error that averaging the LoRA factors apart makes or would make.
    """

    round: int
    attempt: int
    asked: int
    answered: int
    left_out: dict[str, str]
    up: int
    down: int
    seconds: float
    norm: float
    loss: float | None
    lora_error: float | None
    clip_norm: float | None
    epsilon: float | None


class Plots(TypedDict, total=False):
    """Each by model, "base", "twin" or "private", except silos; ``bytes_full``: of the whole model once, in float32."""

    exposure: dict[str, Exposures]
    roc: dict[str, Curve]
    loss: dict[str, list[LossPoint]]
    silos: Silos
    rounds: dict[str, list[Round]]
    bytes_full: int


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
