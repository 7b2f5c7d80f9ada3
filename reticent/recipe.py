"""Every setting, once: what was asked of a run, and how it is read and written.

Frozen pydantic models; an unknown key is refused. The text under each field is the help that ``reticent new`` writes
into a recipe. Paths are relative to the recipe file; those in an override (``-s key=value``) to the current folder.
"""

import difflib
import hashlib
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import ErrorDetails

from reticent.errors import RecipeError


class Section(BaseModel):
    """A part of a recipe: frozen, unknown keys refused."""

    # validate_default: a default of 32 for a float is stored as 32.0, so that reading back what was written is equal.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Source(Section):
    """Where records come from, and which field is what."""

    name: str | None = None
    """A data set of the catalog (see: reticent data list), from the hub or, with path, from a copy of it."""
    path: str | None = None
    """A .jsonl, .json (list of objects, or object of lists), .csv, .parquet or .txt file, plain or .gz; a .zip or .tar
    archive or a folder of them."""
    hub: str | None = None
    """A data set id on the Hugging Face hub, instead of a path."""
    split: str | None = None
    """Which split of the hub data set (train) or of the catalog's (its own)."""
    config: str | None = None
    """Which configuration of the hub data set."""
    revision: str | None = None
    """Which revision of the hub data set; name one, and the data stay what they are."""
    template: Literal["alpaca", "vicuna", "course", "question"] | None = None
    """A data set of the catalog in this template of another system, with data.template: verbatim; null: its own."""
    options: dict[str, str | int] = {}
    """What only one data set of the catalog knows, as {label_base: 1} for medmcqa; see: reticent data show NAME."""
    format: Literal["fields", "chat", "alpaca", "documents"] = "fields"
    """What a record is: a row with the fields named below, chat messages, or instruction, input and output; or a whole
    .txt file."""
    prompt: str | None = None
    """Field that the model is given. Leave out for plain text."""
    completion: str | None = None
    """Field that the model learns to say."""
    text: str | None = None
    """Field of plain text, instead of prompt and completion."""
    owner: str | None = None
    """Field that says whose text it is. Left out: every record is its own owner."""
    id: str | None = None
    """Field that names the record. Left out: file name and row."""
    silo: str | None = None
    """Field that names the institution that holds it."""
    limit: int | None = Field(default=None, ge=1)
    """Read at most this many records. One more in front of them moves the last one out: the promise is to what was
    read."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of the owners that is taken, drawn by data.seed; one owner more or less moves nobody else."""
    per_owner: int | None = Field(default=None, ge=1)
    """Of each owner take at most its first so many records."""

    def told(self) -> str:
        """What it is called."""
        return self.name or self.hub or str(self.path)

    @model_validator(mode="after")
    def _one_place_and_one_layout(self) -> Self:
        fields = [key for key in ("prompt", "completion", "text", "owner", "id") if getattr(self, key) is not None]
        if own := sorted(set(self.options) & {*type(self).model_fields, "length", "max_length", "counts"}):
            raise ValueError(f"{own[0]} is no option of a data set; see: reticent data show NAME")
        if self.name is not None:
            given = [key for key in ("hub", "config", "revision", *fields) if getattr(self, key) is not None]
            if given or self.format != "fields":
                named = ", ".join(given) or "format"
                raise ValueError(f"the catalog knows where {self.name} is and what is in it; leave out {named}")
            return self
        if self.template is not None or self.options:
            raise ValueError("template and options are for a data set of the catalog; give its name, or leave them out")
        _exactly_one(self, "path", "hub")
        if self.format != "fields":
            if given := [key for key in fields if key in ("prompt", "completion", "text")]:
                raise ValueError(f"format: {self.format} says where the text is; leave out {' and '.join(given)}")
            return self
        if self.path is not None and self.path.endswith(".txt"):
            if fields:
                raise ValueError(f"a .txt file has no fields; leave out {' and '.join(fields)}")
            return self
        _exactly_one(self, "text", "completion")
        if self.prompt is not None and self.completion is None:
            raise ValueError("prompt needs completion; plain text has neither")
        return self


Family = Literal["fake-patient", "rare-suffix", "high-temperature", "new-token"]


class Canaries(Section):
    """Invented secrets, planted so that leaks can be measured. They count as training data."""

    pairs: int = Field(default=20, ge=0)
    """Pairs of invented secrets; a coin decides which one is planted, the other is the held-out twin."""
    copies: Annotated[int, Field(ge=1)] | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = 10
    """Times each planted secret is repeated; all copies are one unit of privacy. A list, as [1, 10, 100], deals its
    numbers over the pairs."""
    digits: int = Field(default=4, ge=1, le=5)
    """Digits of each secret: it is ranked among all 10^digits."""
    candidates: Annotated[int, Field(ge=0)] | dict[Family, Annotated[int, Field(ge=0)]] = 100
    """Invented records, each planted once if its own coin says so: the membership test. A number is of fake-patient;
    other families are named, as {fake-patient: 50, rare-suffix: 50}: rare-suffix, high-temperature (sampled from the
    base model), new-token (a token that texts hardly ever use: an audit by whoever has the model alone)."""

    @model_validator(mode="after")
    def _some_are_planted(self) -> Self:
        levels = (self.copies,) if isinstance(self.copies, int) else self.copies
        if not any(levels):
            raise ValueError(f"copies must hold a number above 0, got {list(levels)}; it is what is planted")
        return self


class Scrub(Section):
    """Finds what identifies people and replaces it. A record that cannot be scrubbed is never used as it is."""

    recognisers: tuple[str, ...] = ("clinical", "spacy", "proper-nouns")
    """What finds it: clinical, presidio, spacy, proper-nouns, flair, transformers:MODEL, gliner:MODEL, private-ai:URL;
    several together mask what any of them finds."""
    entities: tuple[str, ...] | None = None
    """Only these kinds, as PERSON or DATE; null: all."""
    style: Literal["tag", "mask", "pseudonym", "redact"] = "tag"
    """What stands in its place: <PERSON>, <MASK>, an invented name that is the same all through an owner's records, or
    nothing."""
    on_error: Literal["drop", "stop"] = "drop"
    """Whether a record that cannot be scrubbed is dropped and counted, or ends the run."""
    processes: int = Field(default=1, ge=1)
    """Processes that scrub side by side."""
    plants: int = Field(default=400, ge=0)
    """Copies of records with an invented identifier, scrubbed to measure what is found and then thrown away."""
    map_key: str | None = None
    """A file with a secret; the replacements are then kept in the run folder, encrypted with it. null: not kept."""


class Benchmarks(Section):
    """What is evaluated on, by runs of 13 words."""

    files: tuple[str, ...]
    """Files whose texts must not be trained on."""
    action: Literal["drop", "count"] = "drop"
    """Drop training records that hold such a run, or only count them."""


class Duplicate(Section):
    """Some records several times; copies stay in one unit of privacy and one part."""

    share: float = Field(default=0.3, gt=0, le=1)
    """Share of the training records that is repeated; each by a coin of its own, drawn by data.seed."""
    copies: int = Field(default=10, ge=2)
    """Times each of them occurs."""


class Silos(Section):
    """Who holds what."""

    kind: Literal["iid", "by-owner", "by-key", "dirichlet", "by-origin"] = "by-owner"
    """Units shuffled and cut evenly; owners dealt; the field data.source.silo; classes dealt unevenly (a class is a
    record's origin); or each source by itself."""
    clients: int = Field(default=3, ge=2)
    """Institutions; for by-key and by-origin the data say how many."""
    alpha: float = Field(default=0.5, gt=0)
    """dirichlet only: how even; small is uneven."""
    sensitive: tuple[str, ...] = ()
    """Origins whose units are dealt to the others' silos in proportion to their bytes."""
    canaries: Literal["same-client", "spread"] = "same-client"
    """Whether the copies of a planted secret are all with one institution."""


def _kind_of_source(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "mixture"
    return "fields" if isinstance(value, dict | Source) else "bundled"


class Data(Section):
    """The private text."""

    source: Annotated[
        Annotated[Literal["bundled/clinic"], Tag("bundled")]
        | Annotated[Source, Tag("fields")]
        | Annotated[tuple[Source, ...], Field(min_length=1), Tag("mixture")],
        Discriminator(_kind_of_source),
    ]
    """Records: a bundled generator, a data set of the catalog, a source with a field map, or a list of several."""
    patients: int = Field(default=150, ge=2)
    """bundled/clinic only: invented patients."""
    questions: int = Field(default=600, ge=4)
    """bundled/clinic only: clinical coding questions."""
    held_out: float = Field(default=0.1, gt=0, lt=1)
    """Share of owners never trained on."""
    calibration: float = Field(default=0.0, ge=0, lt=1)
    """Share of owners never trained on, to set the thresholds of audits on."""
    scrub: Scrub | None = None
    """Replace what identifies people before anything else sees the text; null: no."""
    benchmarks: Benchmarks | None = None
    """Texts that usefulness is measured on, which must not be trained on; null: no check."""
    near_duplicates: float | None = Field(default=0.8, gt=0, le=1)
    """Texts at least this similar (Jaccard, 5-word shingles) belong to one unit of privacy; null: only equal ones."""
    canaries: Canaries | None = Canaries()
    """Planted secrets; null plants none."""
    duplicate: Duplicate | None = None
    """Repeat some training records, as the study of memorisation in federated learning does; null: no."""
    silos: Silos | None = None
    """Deal the training records to institutions; null: no."""
    template: Literal["chat", "plain", "verbatim"] = "chat"
    """The model's chat template, prompt and completion on two lines, or joined as they are in the data set's own
    template."""
    train_on_prompt: bool = False
    """Whether the prompt's own tokens are learned too."""
    max_tokens: int = Field(default=512, ge=8)
    """Longest record, in tokens."""
    long_records: Literal["cut", "split", "drop"] = "split"
    """What happens to longer ones: cut at the end, split into pieces of the same owner, or dropped."""
    seed: int = Field(default=0, ge=0)
    """Splits, generated data and canaries follow from it."""


class Lora(Section):
    """Low-rank adapters on linear layers; the base model stays as it is."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(default=16, ge=1)
    """Rank of each adapter."""
    alpha: float = Field(default=32, gt=0)
    """Scale: adapters are multiplied by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapters' input."""
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    """Names of the linear layers that get an adapter."""


class FullFineTuning(Section):
    """Every weight is trained."""

    kind: Literal["full"] = "full"


class Model(Section):
    """The model to fine-tune."""

    base: str = "bundled/smollm2-135m"
    """bundled/smollm2-135m, a local folder, or a Hugging Face hub id."""
    adapter: Annotated[Lora | FullFineTuning, Field(discriminator="kind")] = Lora()
    """What is trained: lora or full."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the frozen base while training; auto: bfloat16 where the machine computes in it. Trained weights,
    norms, sums and noise are float32, and so is every measurement."""
    quantize: Literal["4bit", "8bit"] | None = None
    """Hold the frozen base in 4 or 8 bits while training adapters (needs an NVIDIA GPU and bitsandbytes); 4bit or 8bit,
    null: no. The trained model is measured, and meant to be used, on the base as it is: not quantised."""

    @model_validator(mode="after")
    def _quantized_is_frozen(self) -> Self:
        if self.quantize is not None and not isinstance(self.adapter, Lora):
            raise ValueError(
                f"quantize: {self.quantize} is for a base that stays as it is; it needs adapter: {{kind: lora}}, got "
                f"{self.adapter.kind}"
            )
        return self


class Train(Section):
    """How the weights move."""

    steps: int = Field(default=300, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=32, ge=1)
    """Expected number of units in a Poisson batch: a public constant, and the divisor of each step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate."""
    optimizer: Literal["adamw", "sgd", "dp-adam"] = "adamw"
    """AdamW, SGD, or AdamW with the noise's part of the second moment taken off (DP-AdamBC); needs noise."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """sgd only: share of the last move that is kept."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """adamw and dp-adam: decay of the mean gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """adamw and dp-adam: decay of the mean squared gradient."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate after the warm-up."""
    min_learning_rate: float = Field(default=0.0, ge=0)
    """What linear and cosine fall to; at most learning_rate."""
    warmup: int = Field(default=0, ge=0)
    """Steps of linear warm-up."""
    loss: Literal["sum", "mean"] = "sum"
    """Of a record's own tokens."""
    micro_batch_tokens: Annotated[int, Field(ge=16)] | Literal["auto"] = 2048
    """Tokens computed at once: memory, never the result. auto: the most that fit, searched for before training."""
    gradient_checkpointing: bool = False
    """Compute each layer again on the way back instead of keeping it: less memory, about a third more time."""
    checkpoint_every: int = Field(default=20, ge=1)
    """Steps between checkpoints."""
    shard: bool = False
    """With several processes (torchrun): split the weights over them (FSDP2), where a model does not fit into one."""
    seed: int = Field(default=0, ge=0)
    """Initial adapter weights and non-private batches. Privacy noise never depends on it."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup > self.steps:
            raise ValueError(f"warmup must be <= steps ({self.steps}), got {self.warmup}")
        return self

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate must be <= learning_rate ({self.learning_rate:g}), got {self.min_learning_rate:g}"
            )
        return self

    @model_validator(mode="after")
    def _searched_where_it_is_trained(self) -> Self:
        if self.shard and self.micro_batch_tokens == "auto":
            raise ValueError("micro_batch_tokens: auto tries the whole model in one process; with shard, set a number")
        return self

    @model_validator(mode="after")
    def _momentum_is_used(self) -> Self:
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum needs optimizer: sgd, got {self.optimizer}; its own is beta1")
        return self


class NonPrivate(Section):
    """No promise."""

    kind: Literal["none"] = "none"
    unit: Literal["record", "owner"] = "owner"
    """What a batch draws."""


class ClipQuantile(Section):
    """A clip norm that follows a quantile of the units' gradient norms, privately (Andrew et al. 2021)."""

    target: float = Field(default=0.5, gt=0, lt=1)
    """Share of the drawn units that is left unclipped."""
    rate: float = Field(default=0.2, gt=0)
    """How fast the clip norm moves."""
    noise: float = Field(default=10.0, gt=0)
    """Noise standard deviation on the number of unclipped units; part of the promise, above half the noise
    multiplier."""


class Private(Section):
    """What every mechanism with a promise is told."""

    kind: Literal["dp-sgd", "dp-mf"]
    unit: Literal["record", "owner"] = "owner"
    """Whose presence is hidden: one record, or everything of one owner."""
    epsilon: float | None = Field(default=None, gt=0)
    """The promise; the noise is calibrated to it. Give this or noise_multiplier."""
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Noise standard deviation over clip_norm. Give this or epsilon."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Must be below 1 / units."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest L2 norm of one unit's gradient."""
    clip_style: Literal["flat", "per-layer", "automatic", "normalised"] = "flat"
    """Shorten longer gradients as a whole or layer by layer, or bring all to the clip norm (almost or exactly)."""

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        _exactly_one(self, "epsilon", "noise_multiplier")
        return self


class DPSGD(Private):
    """Differentially private SGD: clip each unit, add noise, account."""

    kind: Literal["dp-sgd"] = "dp-sgd"
    clip_quantile: ClipQuantile | None = None
    """Let the clip norm follow a quantile of the norms, from clip_norm on; null keeps it."""

    @model_validator(mode="after")
    def _quantile_is_flat(self) -> Self:
        if self.clip_quantile is not None and self.clip_style != "flat":
            raise ValueError(f"clip_quantile needs clip_style: flat, got {self.clip_style}")
        return self


class DPMF(Private):
    """The same with noise that is correlated over steps (banded matrix factorisation): less of it adds up."""

    kind: Literal["dp-mf"] = "dp-mf"
    bands: int = Field(default=8, ge=1)
    """Steps over which noise is correlated; each step draws from one of as many groups of units. At most units /
    batch_size."""


class ClientPrivacy(Section):
    """A promise to each site as a whole, all its text together: DP-FedAvg (McMahan et al. 2018)."""

    kind: Literal["dp-fedavg"] = "dp-fedavg"
    epsilon: float | None = Field(default=None, gt=0)
    """The promise; the noise is calibrated to it. Give this or noise_multiplier."""
    noise_multiplier: float | None = Field(default=None, gt=0)
    """Noise standard deviation over clip_norm. Give this or epsilon."""
    delta: float = Field(default=1e-3, gt=0, lt=1)
    """Must be below 1 / sites."""
    clip_norm: float = Field(default=0.5, gt=0)
    """Largest L2 norm of one site's update."""
    clip_quantile: ClipQuantile | None = None
    """Let the clip norm follow a quantile of the updates' norms; null keeps it."""
    noise: Literal["server", "distributed"] = "server"
    """Who adds the noise: the coordinator, which sees each update; or each site a share of it, under secure_sum."""
    few_clients: bool = False
    """Go on with fewer than 10 sites, where the noise drowns what they have to say."""

    @model_validator(mode="after")
    def _one_promise(self) -> Self:
        _exactly_one(self, "epsilon", "noise_multiplier")
        return self


class Federation(Section):
    """Sites train in rounds and send what changed; a coordinator joins it. The text stays where it is."""

    rounds: int = Field(default=5, ge=1)
    """Rounds; each makes train.steps / rounds steps at each site."""
    per_round: int | None = Field(default=None, ge=1)
    """Sites in a round, drawn anew each time (with federation.privacy: the expected number); null: all."""
    local: Literal["steps", "epoch"] = "steps"
    """What a site does in a round: train.steps / rounds steps, or as many as draw each of its units once on average."""
    algorithm: Literal["fedavg", "fedprox", "scaffold", "fedavgm", "fedadagrad", "fedyogi", "fedadam"] = "fedavg"
    """How sites are kept together and their mean change is applied."""
    mu: float = Field(default=0.01, ge=0)
    """fedprox only: pull towards the joint weights."""
    server_learning_rate: float | None = Field(default=None, gt=0)
    """Of the joint step, for fedavgm (null: 1), fedadagrad, fedyogi and fedadam (null: 1e-3)."""
    server_beta1: float = Field(default=0.9, ge=0, lt=1)
    """fedavgm, fedadam, fedyogi, fedadagrad: share of the last joint step that is kept."""
    server_beta2: float = Field(default=0.99, ge=0, lt=1)
    """fedadam, fedyogi: decay of the mean squared change."""
    tau: float = Field(default=1e-3, gt=0)
    """fedadagrad, fedyogi, fedadam: floor of the joint step's divisor."""
    weights: Literal["units", "equal"] = "units"
    """Whether a site counts by its number of units, which then is public."""
    lora: Literal["freeze-a", "average", "product", "residual", "merged"] = "freeze-a"
    """How adapters are joined: only B is trained, and the mean is exact; A and B apart, which is not exact; the mean of
    B A, brought back to the rank; A and B apart, with what that misses kept beside them; or the whole product, as
    merged models would (dense, large), with a fresh adapter each round."""
    schedule: Literal["rounds", "steps"] = "rounds"
    """Whether the learning rate is constant inside a round or moves with every step."""
    learning_rates: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Learning rates of single sites by name, instead of train.learning_rate."""
    only: str | None = None
    """Train on the records of this site alone, for comparison; null: no."""
    compress: Literal["none", "lossless", "bf16", "int8", "top-k"] = "none"
    """How updates travel. int8 and top-k send the next time what they left out."""
    top_k: float = Field(default=0.01, gt=0, le=1)
    """top-k only: share of the numbers that is sent."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Shorten longer updates to this norm, without a promise; null: no."""
    max_norm: float = Field(default=1000.0, gt=0)
    """An update of a larger norm is left out of its round."""
    secure_sum: bool = False
    """The coordinator learns the sum of a round's updates and no single one (Bonawitz et al. 2017)."""
    threshold: int | None = Field(default=None, ge=2)
    """secure_sum: fewest sites that a sum may be of; null: two thirds of those asked."""
    quorum: int | None = Field(default=None, ge=1)
    """Fewest updates that make a round; null: half of the sites asked, with federation.privacy any number."""
    attempts: int = Field(default=3, ge=1)
    """How often a round below the quorum is tried before the run stops; it can be resumed."""
    deadline: float = Field(default=3600.0, gt=0)
    """Seconds after which a site that has not answered is left out of the round."""
    privacy: ClientPrivacy | None = None
    """A promise to each site as a whole; null: none but that of the privacy section, which each site keeps itself."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        exact = self.lora in ("product", "residual", "merged")
        for wrong, told in (
            (
                exact and self.algorithm not in ("fedavg", "fedprox"),
                f"lora: {self.lora} joins what sites send in its own way and needs algorithm: fedavg or fedprox, got "
                f"{self.algorithm}",
            ),
            (
                exact and (self.secure_sum or self.privacy or self.clip_norm),
                f"lora: {self.lora} needs each site's own factors, so no secure_sum, privacy or clip_norm of sums; say "
                "lora: freeze-a",
            ),
            (
                self.secure_sum and self.compress != "none",
                f"secure_sum adds whole numbers; compress must be none, got {self.compress}",
            ),
            (
                self.algorithm == "scaffold" and (self.secure_sum or self.privacy is not None),
                "algorithm: scaffold sends a second vector that neither secure_sum nor privacy covers; choose another",
            ),
            (
                self.privacy is not None and self.weights != "equal",
                "privacy hides one site among equals; say weights: equal",
            ),
            (
                self.privacy is not None and self.clip_norm is not None,
                "privacy has its own clip_norm; leave out federation.clip_norm",
            ),
            (
                self.privacy is not None and self.privacy.noise == "distributed" and not self.secure_sum,
                "privacy.noise: distributed hides nothing unless updates are only seen as a sum; say secure_sum: true",
            ),
            (
                self.privacy is not None and self.secure_sum and self.per_round is not None,
                "secure_sum shows who takes part, so sites cannot be drawn in secret; leave out per_round",
            ),
            (
                self.privacy is not None and self.quorum is not None,
                "with privacy a round goes on however few answer (distributed noise has a threshold); leave out quorum",
            ),
            (
                self.secure_sum and self.quorum is not None,
                "the quorum of a secure sum is its threshold; leave out quorum",
            ),
            (
                self.threshold is not None and not self.secure_sum,
                "threshold is that of a secure sum; say secure_sum: true, or leave it out",
            ),
            (
                self.quorum is not None and self.per_round is not None and self.quorum > self.per_round,
                f"quorum must be <= per_round ({self.per_round}), got {self.quorum}",
            ),
        ):
            if wrong:
                raise ValueError(told)
        return self


Attack = Literal[
    "loss",
    "loss-difference",
    "loss-ratio",
    "zlib",
    "lowercase",
    "min-k",
    "min-k++",
    "wbc",
    "ez",
    "recall",
    "window",
    "gradient-norm",
]


class Extraction(Section):
    """Whether the models recite records: the next tokens of a record from those before."""

    records: int = Field(default=50, ge=1)
    """At most this many training records, and as many held-out ones."""
    prefixes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (10, 50, 100, 200, 500)
    """Tokens that the model is given, one test each. Records too short for one are left out of it, and counted."""
    suffix: int = Field(default=50, ge=1)
    """Tokens that it must say."""
    splits: int = Field(default=2, ge=1)
    """Places in each record at which it is tried."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampler that people will use the model with."""
    top_k: int | None = Field(default=40, ge=1)
    """Its likeliest tokens that are kept; null: all."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Share of the probability that is kept; null: all."""


class Identifiers(Section):
    """Whether names, numbers and addresses of the training data come out, or can be filled in."""

    samples: int = Field(default=64, ge=1)
    """Texts that each model writes freely."""
    tokens: int = Field(default=64, ge=1)
    """Tokens of each."""
    candidates: int = Field(default=100, ge=2)
    """Choices among which the missing identifier is guessed."""
    items: int = Field(default=30, ge=1)
    """Identifiers that are tried."""
    recognisers: tuple[str, ...] = ("clinical",)
    """What finds identifiers in text; as in data.scrub.recognisers."""


class Shadows(Section):
    """More trainings, each on a random half of the units: what a text's presence changes, record by record."""

    count: int = Field(default=8, ge=4)
    """Trainings."""
    private: bool = False
    """Whether they are trained as the private model is; then they also test its promise."""


class Audit(Section):
    """Attacks on the trained models. All of it is fixed before they are trained; a later change is told."""

    twin: bool = True
    """Also train the same recipe without privacy, to show what would leak."""
    exposure: bool = True
    """Rank each planted secret among all possible ones."""
    membership: bool = True
    """Tell planted records from held-out ones, and real training records from held-out ones."""
    primary: Attack = "loss-difference"
    """The membership attack that the verdict rests on."""
    attacks: tuple[Attack, ...] = ("loss", "zlib", "min-k", "min-k++", "wbc", "ez")
    """Others, shown beside it and corrected for their number."""
    false_alarms: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    """Shares of outsiders that may be accused wrongly; each needs 3 / share units that were not trained on. null:
    those of 0.1, 0.01 and 0.001 for which there are enough."""
    records: int = Field(default=500, ge=2)
    """At most this many training units, and as many held-out ones, in the membership test on real records."""
    extraction: Extraction | None = Extraction()
    """Recite records; null: no."""
    identifiers: Identifiers | None = Identifiers()
    """Identifiers; null: no."""
    shadows: Shadows | None = None
    """More trainings; null: none."""
    server_view: bool = True
    """What the coordinator of a federation would read from one site's update."""
    selfcheck: bool = True
    """Test the training itself: clipping, noise, sampling, ledger (reticent doctor)."""


Scorer = Literal["options", "options-per-token", "options-per-byte", "letter", "generate"]


class Benchmark(Section):
    """Questions with options, or to be answered by yes, no or maybe."""

    name: str
    """One of mmlu-medical, pubmedqa, medmcqa, medqa, medqa4; or any other name, with a path."""
    path: str | None = None
    """Its file or folder in its own schema; of another name: lines {question, options, answer}. null: from the hub."""
    split: str | None = None
    """null: the one that the field reports on."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many questions, drawn by data.seed."""
    scorers: Annotated[tuple[Scorer, ...], Field(min_length=1)] = ("letter",)
    """How an answer is read: the likeliest option (its whole text, or per token or byte of it), the likeliest letter,
    or what the model writes. The first one counts, the others stand beside it."""
    shots: int = Field(default=0, ge=0)
    """Solved examples before each question, the same for all (drawn by seed 1234)."""
    demonstrations: str | None = None
    """A file of them, in the same schema; null: the set's training split."""
    system: str | None = "source"
    """What stands first; source: the source system's text for this set; null: nothing."""
    template: Literal["source", "chat"] = "source"
    """The source system's prompt as it is, or as a turn of the model's own chat template."""
    chain_of_thought: bool = False
    """Let the model reason before it answers (scorer generate)."""
    branches: int = Field(default=1, ge=1)
    """Sampled answers to each question, the most frequent of which counts (scorer generate)."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Tokens that it may write; null: those of the longest answer and 8 more, or 256 with chain_of_thought."""

    @model_validator(mode="after")
    def _reasoning_is_written(self) -> Self:
        if (self.chain_of_thought or self.branches > 1) and "generate" not in self.scorers:
            raise ValueError(
                f"benchmark {self.name}: chain_of_thought and branches need text that the model writes; say scorers: "
                "[generate]"
            )
        return self


class Questions(Section):
    """Public questions that every model answers, set as the records are."""

    path: str
    """A file of lines {prompt}, or one question a line."""
    limit: int = Field(default=12, ge=1)
    """At most this many, the first ones."""
    max_new_tokens: int = Field(default=80, ge=1)
    """Tokens of an answer, at most; decoding is greedy."""


class Evaluate(Section):
    """Usefulness."""

    perplexity: bool = True
    """On held-out owners, weighted by tokens."""
    choices: bool = True
    """Accuracy on held-out multiple-choice questions."""
    normalise: Literal["sum", "tokens"] = "sum"
    """An option's score: the log-likelihood of its text, or that per token."""
    limit: int | None = Field(default=None, ge=1)
    """At most this many held-out records."""
    benchmarks: tuple[Benchmark, ...] = ()
    """Public examinations that every model takes."""
    questions: Questions | None = None
    """Public questions whose answers by every model stand side by side; null: none."""


class Synthetic(Section):
    """A corpus that may be given away: sampled from the private model, filtered, judged and audited."""

    records: int = Field(default=500, ge=1)
    """Texts to keep."""
    attempts: int = Field(default=3, ge=1)
    """At most this many samples for each text to keep."""
    prompts: str | None = None
    """A file of public prompts, lines {prompt, label, count}; null: the model begins by itself."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Tokens of a text, at most; one that does not end by then is left out. With its prompt it must fit the context."""
    min_words: int = Field(default=5, ge=1)
    """Words of a text, at least."""
    temperature: float = Field(default=1.0, gt=0)
    """Of the sampler."""
    top_k: int | None = Field(default=None, ge=1)
    """Its likeliest tokens that are kept; null: all."""
    top_p: float | None = Field(default=0.95, gt=0, le=1)
    """Share of the probability that is kept; null: all."""
    near_duplicates: float | None = Field(default=0.8, gt=0, le=1)
    """Of two texts, with their prompts, at least this similar (Jaccard, 5-word shingles), the later one is left out;
    null: both stay."""
    judge: bool = True
    """Train a small model on it and on as much real text, and compare the two."""
    audit: bool = True
    """Fine-tune the base model on it and look for the planted secrets there."""
    seed: int = Field(default=0, ge=0)
    """Of the sampler."""


class Recipe(Section):
    """What was asked."""

    data: Data
    model: Model = Model()
    train: Train = Train()
    privacy: Annotated[NonPrivate | DPSGD | DPMF, Field(discriminator="kind")]
    federation: Federation | None = None
    """Train across sites: those that data.silos deals, or real ones (see: reticent federate -h); null: no."""
    audit: Audit = Audit()
    evaluate: Evaluate = Evaluate()
    synthetic: Synthetic | None = None
    """Text that may be given away in place of the data; null: none."""

    @property
    def promises(self) -> bool:
        """Whether the trained model comes with a promise, to units or to whole sites."""
        whole_sites = self.federation is not None and self.federation.privacy is not None
        return whole_sites or isinstance(self.privacy, Private)

    @model_validator(mode="after")
    def _prefix_is_of_outsiders(self) -> Self:
        if "recall" in (self.audit.primary, *self.audit.attacks) and not self.data.calibration:
            raise ValueError(
                "audit: recall sets texts of outsiders before a record; keep some apart with data.calibration: 0.05"
            )
        return self

    @model_validator(mode="after")
    def _benchmarks_have_names_of_their_own(self) -> Self:
        names = [one.name for one in self.evaluate.benchmarks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"evaluate.benchmarks: two are called {twice[0]}; give each a name of its own, or one of them more "
                "scorers"
            )
        return self

    @model_validator(mode="after")
    def _synthetic_text_is_private(self) -> Self:
        if self.synthetic is not None and not self.promises:
            raise ValueError(
                "synthetic: text of a model without a promise is as private as the data; say privacy: {kind: dp-sgd, "
                "...}, or synthetic: null"
            )
        return self

    @model_validator(mode="after")
    def _shadows_are_like_a_model(self) -> Self:
        asked = self.audit.shadows
        if asked is None:
            return self
        if self.federation is not None:
            raise ValueError("audit.shadows are trained in one place; with federation say audit.shadows: null")
        if asked.private and not isinstance(self.privacy, Private):
            raise ValueError(
                "audit.shadows.private trains as the private model is, and privacy.kind is none; say false"
            )
        if not asked.private and isinstance(self.privacy, Private) and not self.audit.twin:
            raise ValueError(
                "audit.shadows are compared with the twin; say audit.twin: true, or audit.shadows.private: true"
            )
        return self

    @model_validator(mode="after")
    def _federation_fits(self) -> Self:
        asked = self.federation
        if asked is None or asked.only is not None:
            return self
        if asked.local == "steps" and self.train.steps % asked.rounds:
            raise ValueError(
                f"train.steps must be a multiple of federation.rounds ({asked.rounds}), got {self.train.steps}; each "
                "round makes train.steps / rounds steps at each site"
            )
        if self.train.shard:
            raise ValueError("train.shard spreads one training over processes; with federation say shard: false")
        low = sorted(name for name, rate in asked.learning_rates.items() if rate < self.train.min_learning_rate)
        if low:
            raise ValueError(
                f"federation.learning_rates of {low[0]} must be >= train.min_learning_rate "
                f"({self.train.min_learning_rate:g}), got {asked.learning_rates[low[0]]:g}"
            )
        if asked.lora in ("residual", "merged") and self.model.dtype != "float32" and self._has_lora:
            raise ValueError(
                f"federation.lora: {asked.lora} adds to the base model's weights, which must not be rounded; say "
                f"model.dtype: float32, got {self.model.dtype}"
            )
        if self.model.quantize is not None:
            raise ValueError("federation needs the same base at every site; say model.quantize: null")
        return self

    @property
    def _has_lora(self) -> bool:
        return isinstance(self.model.adapter, Lora)

    @model_validator(mode="after")
    def _quantized_is_whole(self) -> Self:
        if self.model.quantize is not None and self.train.shard:
            raise ValueError(
                f"model.quantize: {self.model.quantize} holds the whole model on one GPU; say train.shard: false, or "
                "model.quantize: null"
            )
        return self

    @model_validator(mode="after")
    def _dp_adam_has_noise(self) -> Self:
        if self.train.optimizer == "dp-adam" and not isinstance(self.privacy, Private):
            raise ValueError(
                "train.optimizer: dp-adam takes noise off, and privacy: {kind: none} has none; say train.optimizer: "
                "adamw"
            )
        return self


def _exactly_one(section: Section, first: str, second: str) -> None:
    given = [key for key in (first, second) if getattr(section, key) is not None]
    if len(given) != 1:
        raise ValueError(
            f"exactly one of {first} and {second} is needed, got {'both' if given else 'neither'}"
            + (f"; set one of them to null, as in {second}: null" if given else "")
        )


# ---------------------------------------------------------------------------------------------------- read and write


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with overrides such as ``train.steps=10`` on top.

    An override of a ``kind`` that changes it replaces the section, because the other kind has other keys.

    Raises:
        RecipeError: The file cannot be read, or a setting is unknown, missing or out of its bounds.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}; write one with: reticent new") from None
    except UnicodeDecodeError:
        raise RecipeError(f"the recipe {path} is not UTF-8 text") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"the recipe {path} must be a mapping of sections such as data and privacy")
    _resolve_paths(values, path.parent)
    return from_dict(_override(values, overrides))


def from_dict(values: dict[str, Any]) -> Recipe:
    """A recipe from plain values, as YAML gives them.

    Raises:
        RecipeError: Names each wrong key, its bound and its value.
    """
    try:
        values = json.loads(json.dumps(values))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"a recipe holds only text, numbers, lists and mappings: {error}") from None
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("adapter"), dict):
        model["adapter"].setdefault("kind", "lora")
    try:
        # Strict, and through JSON: "10" is not a number and true is not 1, but a list may be a tuple.
        return Recipe.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise RecipeError(_explain(error, values)) from None


def dump(recipe: Recipe) -> str:
    """The whole recipe as YAML, every setting stated."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def digest(recipe: Recipe) -> str:
    """SHA-256 of the recipe as canonical JSON, in hexadecimal."""
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as ``{"train.steps": 300, ...}``."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


PRESETS: dict[str, tuple[str, Recipe]] = {
    "clinic": (
        "Generated clinical notes and coding questions, trained with DP-SGD per patient.",
        Recipe(data=Data(source="bundled/clinic"), privacy=DPSGD(epsilon=8)),
    ),
    "file": (
        "Your own file, trained with DP-SGD per owner. Change the names of the fields below.",
        Recipe(
            data=Data(source=Source(path="notes.jsonl", prompt="question", completion="answer", owner="patient")),
            privacy=DPSGD(epsilon=8),
        ),
    ),
}


def commented(name: str) -> str:
    """A complete recipe to start from, each key under its help. ``name`` is one of `PRESETS`."""
    purpose, recipe = PRESETS[name]
    head = f"# {purpose}\n# See the plan with: reticent check FILE. Do it all with: reticent run FILE"
    return "\n".join([head, *_commented(recipe, depth=0)]) + "\n"


def _commented(section: Section, *, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        help_text = field.description or (type(value).__doc__ or "" if isinstance(value, Section) else "")
        choices = " | ".join(_choices(field.annotation))
        help_text += f" [{choices}]" if choices else ""
        if depth == 0:
            yield ""
        if help_text:
            yield from textwrap.wrap(help_text, 100, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        if isinstance(value, Section):
            yield f"{indent}{key}:"
            yield from _commented(value, depth=depth + 1)
        else:
            flow = isinstance(value, tuple)  # in one line
            line = yaml.dump(
                list(value) if flow else {key: value}, Dumper=_Dumper, allow_unicode=True, default_flow_style=flow
            ).rstrip()
            yield f"{indent}{key}: {line}" if flow else indent + line


def _choices(annotation: Any) -> list[str]:
    """The words a field may hold, if it holds one of several words."""
    return list(get_args(annotation)) if get_origin(annotation) is Literal and len(get_args(annotation)) > 1 else []


# ------------------------------------------------------------------------------------------------------------- YAML

# The scalars of YAML 1.2's core schema. YAML 1.1, PyYAML's own, reads 1e-4 as text, 1:30 as 90, 010 as 8 and off as
# false.
_SCALARS = (
    ("tag:yaml.org,2002:null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"(?:(?=.*[.eE])[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan)$",
        list("-+0123456789."),
    ),
    ("tag:yaml.org,2002:merge", r"<<$", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars; a key given twice is refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice, first in line {seen[key.value]}", problem_mark=key.start_mark
                )
            seen[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would not read as text."""


_Loader.yaml_implicit_resolvers, _Dumper.yaml_implicit_resolvers = {}, {}
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)
    _Dumper.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _parse(text: str, origin: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{origin}{line}: {error.problem or 'not valid YAML'}") from None
    except yaml.reader.ReaderError as error:
        line = f", line {text.count(chr(10), 0, error.position) + 1}"
        raise RecipeError(f"{origin}{line}: {error.reason}") from None
    except ValueError as error:
        raise RecipeError(f"{origin}: not valid YAML: {error}") from None


def _override(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    parsed: list[tuple[list[str], Any]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise RecipeError(f"an override must look like train.steps=10, got {override!r}")
        parsed.append((key.strip().split("."), _parse(text, f"-s {override}")))
    # Kinds first: the keys of the new kind may stand in any order beside it.
    for keys, value in sorted(parsed, key=lambda pair: pair[0][-1] != "kind"):
        section = values
        for key in keys[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        if keys[-1] == "kind" and section.get("kind") != value:
            section.clear()
        section[keys[-1]] = value
    if any(keys[0] in ("data", "model", "evaluate", "synthetic") for keys, _ in parsed):
        _resolve_paths(values, Path.cwd())  # What came from the file is absolute by now.
    return values


def _resolve_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the recipe's paths absolute, ``model.base`` where it is plainly a path and no hub id."""
    for section, key in paths(values):
        section[key] = str((folder / Path(section[key]).expanduser()).resolve())
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("base"), str) and model["base"].startswith((".", "~")):
        model["base"] = str((folder / Path(model["base"]).expanduser()).resolve())


_PATHS = (
    ("data", "source", "path"),
    ("data", "scrub", "map_key"),
    ("data", "benchmarks", "files"),
    ("evaluate", "benchmarks", "path"),
    ("evaluate", "benchmarks", "demonstrations"),
    ("evaluate", "questions", "path"),
    ("synthetic", "prompts"),
)


def paths(values: Any) -> Iterator[tuple[Any, Any]]:
    """Where paths stand in a recipe's values: the mapping or list, and its key."""
    for keys in _PATHS:
        found: list[tuple[Any, Any]] = [({"": values}, "")]
        for key in keys:
            below = [mapping for holder, at in found for mapping in _each(holder[at])]
            found = [(one, key) for one in below if isinstance(one, dict) and key in one]
        for holder, at in found:
            if isinstance(holder[at], list):
                yield from ((holder[at], i) for i, one in enumerate(holder[at]) if isinstance(one, str))
            elif isinstance(holder[at], str):
                yield holder, at


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


# ---------------------------------------------------------------------------------------------------------- mistakes

_PLAIN = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid string": "text",
    "a valid boolean": "true or false",
    "a valid array": "a list",
    "Tuple should have at least 1 item after validation, not 0": "a list that is not empty",
    "an object": "a mapping of keys",
}


def _explain(error: ValidationError, values: dict[str, Any]) -> str:
    """One line for each wrong key: the key, the bound, the value, and what it may have been meant to be."""
    told = [(".".join(_keys(details, values)), details) for details in error.errors()]
    return "\n".join(
        _sentence(key, [details for _, details in group], values)
        for key, group in groupby(told, key=lambda pair: pair[0])
    )


def _keys(details: ErrorDetails, values: Any) -> list[str]:
    """The keys of an error's location, without the union members that pydantic names between them."""
    keys: list[str] = []
    for position, part in enumerate(details["loc"]):
        missing = details["type"] == "missing" and position == len(details["loc"]) - 1
        if isinstance(values, dict) and (part in values or missing):
            keys.append(str(part))
            values = values.get(part)
    return keys


def _sentence(key: str, errors: list[ErrorDetails], values: dict[str, Any]) -> str:
    context = errors[0].get("ctx", {})
    match errors[0]["type"]:
        case "extra_forbidden":
            return _unknown(key, values)
        case "missing":
            return f"{key} is missing; it must be set"
        case "union_tag_not_found":
            return f"{key}.kind is missing; it must be one of {', '.join(map(repr, _members(key)))}"
        case "union_tag_invalid":
            return f"{key}.kind must be one of {context['expected_tags']}, got {context['tag']!r}"
        case "value_error":
            return f"{key}: {context['error']}" if key else str(context["error"])
    bounds = [error["msg"].removeprefix("Input should be ") for error in errors]
    return f"{key} must be {' or '.join(_PLAIN.get(bound, bound) for bound in bounds)}, got {errors[0]['input']!r}"


def _unknown(key: str, values: dict[str, Any]) -> str:
    name, _, last = key.rpartition(".")
    kind = _at(values, name).get("kind")
    members = _members(name)
    section = members.get(kind) or next(iter(members.values()))
    valid = [f"{name}.{other}" if name else other for other in section.model_fields]
    others = [str(other) for other, member in members.items() if last in member.model_fields]
    if others:
        meant = f"; {kind!r} has no such key, {' and '.join(others)} {'has' if len(others) == 1 else 'have'}."
    else:
        elsewhere = [other for other in flatten(PRESETS["clinic"][1].model_dump()) if other.endswith(f".{last}")]
        near = difflib.get_close_matches(key, valid, n=1) or elsewhere
        meant = f"; did you mean {near[0]}?" if near else "."
    return f"unknown key {key}{meant} Valid: {', '.join(valid)}"


def _at(values: Any, key: str) -> Any:
    for part in filter(None, key.split(".")):
        values = values[part]
    return values


def _members(key: str) -> dict[str | None, type[Section]]:
    """The kinds of section that may stand at a dotted key, by the word in ``kind``."""
    sections: list[type[Section]] = [Recipe]
    for part in filter(None, key.split(".")):
        sections = [
            member
            for section in sections
            if part in section.model_fields
            for member in _sections(section.model_fields[part].annotation)
        ]
    return {
        section.model_fields["kind"].default if "kind" in section.model_fields else None: section
        for section in sections
    }


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for member in get_args(annotation):
        yield from _sections(member)
