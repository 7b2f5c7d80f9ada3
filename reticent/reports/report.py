"""What a report is made from: the content of report.json, as plain values."""

from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, GetPydanticSchema, with_config
from typing_extensions import TypedDict  # pydantic reads that of the standard library from 3.12 on

from reticent.measurement import Measurement

_CLOSED = ConfigDict(extra="forbid")  # a key by another name is a mistake


@with_config(_CLOSED)
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


@with_config(_CLOSED)
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
    broken: NotRequired[list[str]]  # checks of the training that failed; then epsilon is None
    limits: NotRequired[list[str]]  # what the promise does not cover, one sentence each
    sites: NotRequired[list[SitePromise]]
    clients: NotRequired["Guarantee | None"]


@with_config(_CLOSED)
class Exposures(TypedDict):
    """Bits, one number per secret."""

    planted: list[float]
    held_out: list[float]


@with_config(_CLOSED)
class Curve(TypedDict):
    """A ROC curve from (0, 0) to (1, 1) and how many scores it stands on."""

    fpr: list[float]
    tpr: list[float]
    members: int
    others: int


@with_config(_CLOSED)
class LossPoint(TypedDict):
    """``loss`` in nats per token; ``epsilon`` spent so far, None where none is counted."""

    step: int
    loss: float
    epsilon: float | None


@with_config(_CLOSED)
class Silo(TypedDict):
    """What one silo holds; ``origins``: its units by the origin of their records."""

    units: int
    records: int
    bytes: int
    origins: dict[str, int]


@with_config(_CLOSED)
class Silos(TypedDict):
    """Silos by name; ``title`` says how the units were dealt to them."""

    title: str
    silos: dict[str, Silo]


@with_config(_CLOSED)
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


@with_config(_CLOSED)
class Rate(TypedDict):
    """The share of ``n`` secrets of so many ``copies`` that came out, with its interval; 0 copies: held out."""

    copies: int
    share: float
    low: float
    high: float
    n: int


@with_config(_CLOSED)
class Scores(TypedDict):
    """One score per canary, higher = more likely trained on."""

    planted: list[float]
    held_out: list[float]


@with_config(_CLOSED)
class Ladder(TypedDict, total=False):
    """Values of epsilon.

    ``claimed``: by the ledger. ``ideal``: what the best attacker would prove in half of all audits. ``measured``: the
    lower bound that the audit proved. ``ceiling``: the most that it could prove. ``detectable``: the smallest true one
    that it would notice in 9 of 10 repeats.
    """

    claimed: float | None
    ideal: float | None
    measured: float | None
    ceiling: float | None
    detectable: float | None


@with_config(_CLOSED)
class Checked(TypedDict):
    """One check of the training code; ``measured`` must keep to ``bound``."""

    name: str
    passed: bool
    measured: float | str | None
    bound: float | str | None
    detail: NotRequired[str]


@with_config(_CLOSED)
class Seen(TypedDict):
    """What the server reads of one update of ``tokens`` tokens; ``setting``: "plain", "clipped", "sum of 3", ..."""

    tokens: int
    setting: str
    recall: float
    precision: float | None


@with_config(_CLOSED)
class NotRun(TypedDict):
    """An attack that was left out, and why."""

    attack: str
    why: str


@with_config(_CLOSED)
class Paired(TypedDict):
    """McNemar's test of two models on the same questions: how many only the one, only the other answered rightly."""

    one: str
    other: str
    only_one: int
    only_other: int
    p_value: float | None


@with_config(_CLOSED)
class Subject(TypedDict):
    """``accuracy`` of each model on the ``questions`` of one subject."""

    questions: int
    accuracy: dict[str, float]


@with_config(_CLOSED)
class Examination(TypedDict):
    """One benchmark; its scores are the measurements ``accuracy[NAME]`` and so on.

    ``scorer``: how an answer is read. ``shots``: solved examples before each question. ``chance`` and ``majority``:
    shares that guessing, and the most frequent answer alone, get right. ``contaminated``: questions found in the
    training data. ``truncated``: questions that were cut to the model's context. ``duplicates``: items that repeat
    another one, and were left out.
    """

    name: str
    questions: int
    scorer: str
    shots: int
    chance: NotRequired[float | None]
    majority: NotRequired[float | None]
    contaminated: NotRequired[int]
    truncated: NotRequired[int]
    duplicates: NotRequired[int]
    subjects: NotRequired[dict[str, Subject]]
    mcnemar: NotRequired[list[Paired]]


@with_config(_CLOSED)
class Answered(TypedDict):
    """What each model answered to public questions, one text for each; models without a promise are ``withheld``."""

    questions: list[str]
    answers: dict[str, list[str]]
    withheld: list[str]


@with_config(_CLOSED)
class Unanswered(TypedDict):
    """What could not be measured, and why.

    ``question`` is a key of `reticent.reports.answers.QUESTIONS`, the name of a measurement or its beginning
    ("record_membership"), or else free text, which then stands below the table.
    """

    question: str
    why: str


@with_config(_CLOSED)
class SyntheticText(TypedDict, total=False):
    """The corpus that the private model wrote.

    ``funnel``: "sampled", then the texts left out by reason, then "kept". ``labels``: texts of each public label.
    ``lengths``: of "real" and "synthetic" texts, (lower edge in tokens, share) of each bin. ``frontier``: points of the
    divergence curve, from (0, 1) to (1, 0). ``samples``: a few texts; none where nothing is promised.
    """

    funnel: dict[str, int]
    labels: dict[str, int]
    lengths: dict[str, list[list[float]]]
    frontier: list[list[float]]
    samples: list[str]
    unanswered: list[Unanswered]


@with_config(_CLOSED)
class AuditFacts(TypedDict, total=False):
    """What was fixed before training and what was done, for the annex. Keys that are not known are left out.

    ``pre_registered``: whether the audit's settings were the same before training. ``changed``: settings of the audit
    that were changed after training, as "audit.primary: loss -> wbc". ``commitment``: the digest of canaries, coins and
    seed that was stored before training. ``primary``: the attack that the verdict rests on. ``attacks``: those that
    were run. ``family``: the tests that p-values of exploratory attacks are corrected for, and how. ``sent``: what a
    coordinator really receives, of "plain", "private" and "sum"; nothing where the model was trained in one place.
    ``threats``: what the page's table of attackers cannot know, by attacker: "synthetic", "text", "probabilities",
    "weights", "server".
    """

    pre_registered: bool
    changed: list[str]
    recipe_digest: str
    commitment: str
    primary: str
    attacks: list[str]
    not_run: list[NotRun]
    family: str
    sent: list[str]
    threats: dict[str, str]
    units: dict[str, int]
    seeds: dict[str, int]
    digests: dict[str, str]


@with_config(ConfigDict(extra="allow"))
class Plots(TypedDict, total=False):
    """Each by model, "base", "twin" or "private", except where it is a list or said otherwise.

    Attacks may add points that the page does not draw.
    ``extraction``: within 100 attempts. ``roc`` and ``scores`` are of canaries, ``record_roc`` of real records.
    ``bytes_full``: of the whole model once, in float32.
    """

    extraction: dict[str, list[Rate]]
    exposure: dict[str, Exposures]
    roc: dict[str, Curve]
    record_roc: dict[str, Curve]
    scores: dict[str, Scores]
    epsilon: Ladder
    checks: list[Checked]
    server: list[Seen]
    unanswered: list[Unanswered]
    loss: dict[str, list[LossPoint]]
    silos: Silos
    rounds: dict[str, list[Round]]
    bytes_full: int | None
    benchmarks: list[Examination]
    synthetic: SyntheticText


Measured = Annotated[dict[str, Any], GetPydanticSchema(lambda _, handler: handler.generate_schema(Measurement))]
"""What `Measurement.to_dict` gives."""


@with_config(_CLOSED)
class Report(TypedDict):
    """The first of ``measurements`` of a name and model is the one on page 1.

    ``recipe`` is YAML, without paths of the machine. What ``unanswered`` holds may stand in ``plots`` as well.
    """

    title: str
    created: str
    guarantee: Guarantee
    measurements: list[Measured]
    plots: NotRequired[Plots]
    data: NotRequired[dict[str, Any]]
    recipe: NotRequired[str]
    provenance: NotRequired[dict[str, Any]]
    audit: NotRequired[AuditFacts]
    unanswered: NotRequired[list[Unanswered]]
    answers: NotRequired[Answered]
