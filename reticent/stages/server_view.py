"""What the coordinator of a federation would read from one site's update: which tokens it was made of.

Updates are made of real training records with the run's base model, adapter, loss, clipping and noise, and read by
`reticent.attacks.server_probe`. They are of one local step: what an optimiser or more steps make of it is harder to
read for this probe. Nothing of them leaves the audit but counts.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent import asked
from reticent.measurement import Measurement
from reticent.recipe import Lora, Private
from reticent.stages.attacking import Audited, Findings
from reticent.statistics import clopper_pearson
from reticent.tokens import Tokens

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from reticent.attacks.server_probe import Overlap
    from reticent.gradients.engines import Engine
    from reticent.gradients.rows import Unit
    from reticent.privacy.noise import Mechanism

    Update = dict[str, torch.Tensor]

SIZES = (8, 32, 128)  # tokens of an update, before that of a real batch
_REPEATS = 4  # of the smallest updates, which show most and are the numbers of page 1
_BATCH = 256  # tokens of a real batch that are taken: fewer are easier to read
_TOGETHER = 3  # sites that are summed where the run has none
_MOST_SITES = 5
_INPUTS = 2**28  # numbers of the first layer's inputs that are kept: 1 GiB


def server_view(about: Audited) -> Findings:
    """Recall and precision of the tokens of an update, by its size and by what is done to it before it is sent."""
    view = _View(about)
    if not view.readable:
        why = "the adapter changes no layer that reads tokens directly, and this probe reads no other"
        return Findings([], {"unanswered": [{"question": "What does the coordinating server see?", "why": why}]})
    rows: list[_Row] = []
    with about.progress.task("reading updates", total=len(SIZES) + 1) as task:
        for size in (*SIZES, None):
            rows += view.rows(size)
            task.advance(1)
    plots: dict[str, Any] = {"server": [row.point() for row in rows]}
    if view.noised_by_the_coordinator:
        why = "the coordinator adds the noise itself: what it reads is the clipped update"
        plots["unanswered"] = [{"question": "What does the noise hide from the coordinating server?", "why": why}]
    return Findings([one for row in rows if row.told for one in view.measured(row)], plots)


class _Row(NamedTuple):
    """What was read of updates of about ``tokens`` tokens, and ``how``; ``told``: on page 1.

    ``guessed``: what naming as many of the likeliest tokens finds; ``control``: what was read, held against text that
    was in none of them.
    """

    tokens: int
    setting: str
    found: "Overlap"
    guessed: "Overlap"
    control: "Overlap | None"
    how: str
    told: bool

    def point(self) -> dict[str, Any]:
        """As the plot takes it."""
        return {
            "tokens": self.tokens,
            "setting": self.setting,
            "recall": self.found.recall,
            "precision": self.found.precision,
        }


class _Made(NamedTuple):
    """Updates of several sites as they arrive, by setting, and the distinct tokens of each."""

    settings: "dict[str, list[Update]]"
    there: list[np.ndarray]
    tokens: int


class _View:
    """The model, the sites and the settings of the run."""

    def __init__(self, about: Audited) -> None:
        from reticent.attacks.server_probe import first_layer
        from reticent.gradients.engines import engine_for

        recipe = about.recipe
        self._recipe, self._federation = recipe, asked.federated(recipe)
        self._rng = about.rng(9)
        sites = _sites(about, self._rng)
        self._units = {name: len(units) for name, units in sites.items()}
        self._sites = [units for units in sites.values() if units][:_MOST_SITES]
        self._model = _in_a_round(about)
        longest = max(len(record) for units in self._sites for unit in units for record in unit.records)
        self._layer = first_layer(self._model, positions=_positions(self._model, longest))
        options: dict[str, Any] = {"loss": recipe.train.loss, "micro_batch_tokens": 1024}
        self._plain = engine_for(self._model, clipping=None, **options)
        self._clients = None if self._federation is None else asked.client_plan(recipe, "private", len(self._units))
        self._bounded: Engine | None = None
        if isinstance(recipe.privacy, Private):
            self._bounded = engine_for(self._model, clipping=self._mechanism().clipping, **options)
        held_out = about.encode(about.held_out).tokens if about.held_out.records else []
        self._held_out = _as_units(held_out)
        ids = np.concatenate([tokens.ids for tokens in held_out]) if held_out else np.empty(0, dtype=np.int64)
        self._likeliest = np.argsort(-np.bincount(ids, minlength=self._vocabulary), kind="stable")

    @property
    def _vocabulary(self) -> int:
        return len(self._layer.inputs[0])

    @property
    def readable(self) -> bool:
        """Whether what is trained includes anything that the probe reads."""
        from reticent.gradients.engines import trained

        return bool(self._layer.names & trained(self._model).keys())

    @property
    def noised_by_the_coordinator(self) -> bool:
        """Whether the only noise is added to what it has already read."""
        return self._bounded is None and self._clients is not None and self._clients.noise == "server"

    def rows(self, size: int | None) -> list[_Row]:
        """What is read of updates of ``size`` tokens, None: of a real batch; one of each site, and their sum."""
        smallest = size == SIZES[0]
        updates: dict[str, list[Update]] = {}
        there: dict[str, list[np.ndarray]] = {}
        for made in [self._made(size) for _ in range(_REPEATS if smallest else 1)]:
            union = [np.unique(np.concatenate(made.there))]
            for setting, own in made.settings.items():
                updates.setdefault(setting, []).extend(own)
                there.setdefault(setting, []).extend(made.there if len(own) == len(made.there) else union)
        return [self._row(made.tokens, name, own, there[name], told=smallest) for name, own in updates.items()]

    def _made(self, size: int | None) -> _Made:
        batches = [self._batch(units, size) for units in self._sites]
        plain, bounded = [], []
        for batch in batches:
            update, norm = self._gradient(self._plain, batch)
            plain.append(update)
            if self._bounded is not None:
                bounded.append(self._gradient(self._bounded, batch)[0])
            else:
                factor = min(1.0, self._clip_norm / norm) if norm else 1.0
                bounded.append({name: value * factor for name, value in update.items()})
        settings = {"plain": plain, "clipped": bounded}
        together = _sum(plain)
        if self._bounded is not None:
            settings["private"] = [self._noised(update) for update in bounded]
            together = _sum(settings["private"])
        elif self._clients is not None and self._clients.noise == "distributed":
            together = self._noised_sum(bounded)
        if len(plain) > 1:  # one site alone knows of no other
            settings[f"sum of {len(plain)}"] = [together]
        return _Made(settings, [_distinct(batch) for batch in batches], round(np.mean([_count(b) for b in batches])))

    def _batch(self, units: "Sequence[Unit]", size: int | None) -> "list[Unit]":
        """Units in random order: the end of one record of each, ``size`` tokens in all; None: a real batch."""
        from reticent.gradients.rows import Unit

        taken: list[Unit] = []
        left, most = size or _BATCH, len(units) if size else self._recipe.train.batch_size
        for i in self._rng.permutation(len(units))[:most]:
            records, parts = units[i].records, []
            for record in records if size is None else (records[self._rng.integers(len(records))],):
                if (part := _end(record, left)) is not None:
                    parts.append(part)
                    left -= len(part)
            if parts:
                taken.append(Unit(units[i].id, tuple(parts)))
        return taken

    def _gradient(self, engine: "Engine", batch: "Sequence[Unit]") -> "tuple[Update, float]":
        """What the probe reads of the sum of gradients, and the norm of all of it."""
        self._model.train()  # dropout is part of what is sent
        try:
            found = engine.unit_sum(batch).gradient
        finally:
            self._model.eval()
        norm = math.sqrt(sum(float(value.double().square().sum()) for value in found.values()))
        return {name: value.cpu() for name, value in found.items() if name in self._layer.names}, norm

    @property
    def _clip_norm(self) -> float:
        """Of a whole site's update; without one any will do, for alone it hides nothing."""
        if self._clients is not None:
            return self._clients.clip_norm
        return (self._federation.clip_norm if self._federation is not None else None) or 1.0

    def _mechanism(self) -> "Mechanism":
        """A new one, with the noise of one site: what is made for the audit is never sent."""
        from reticent.privacy.noise import mechanism_for
        from reticent.privacy.plan import NonPrivatePlan

        if self._federation is None:
            plan = asked.plan_for(self._recipe, "private", sum(self._units.values()))
        else:
            plan = next(iter(asked.site_plans(self._recipe, "private", self._units).values()))
        assert not isinstance(plan, NonPrivatePlan)
        return mechanism_for(plan)

    def _noised(self, update: "Update") -> "Update":
        noised = {name: value.clone() for name, value in update.items()}
        self._mechanism().add_noise(noised)
        return noised

    def _noised_sum(self, updates: "Sequence[Update]") -> "Update":
        """A sum to which the sites have added the noise of the promise to whole sites."""
        from reticent.privacy.entropy import SystemWords
        from reticent.privacy.noise import add_noise

        assert self._clients is not None
        total = _sum(updates)
        add_noise(total, self._clients.sum_noise * self._clients.clip_norm, SystemWords())
        return total

    def _row(
        self, tokens: int, setting: str, updates: "Sequence[Update]", there: Sequence[np.ndarray], *, told: bool
    ) -> _Row:
        from reticent.attacks.server_probe import overlap, probe

        found, guessed, control, how = [], [], [], ""
        for update, own in zip(updates, there, strict=True):
            reading = probe(update, self._layer, told=len(own))
            found.append(overlap(reading.tokens, own))
            guessed.append(self._guess(own))
            how = reading.how
            if self._held_out:
                control.append(overlap(reading.tokens, _distinct(self._batch(self._held_out, tokens))))
        return _Row(tokens, setting, _total(found), _total(guessed), _total(control) if control else None, how, told)

    def _guess(self, there: np.ndarray) -> "Overlap":
        """Who reads nothing names as many of the likeliest tokens, or any where no text tells them."""
        from reticent.attacks.server_probe import at_random, overlap

        if not self._held_out:
            return at_random(len(there), len(there), self._vocabulary)
        return overlap(self._likeliest[: len(there)], there)

    def measured(self, row: _Row) -> list[Measurement]:
        """Recall and precision of one setting; none of settings that only the plot shows."""
        kind = "sum" if row.setting.startswith("sum") else row.setting
        if kind == "clipped":
            return []
        model = asked.trained_models(self._recipe)[-1]
        shared: dict[str, Any] = {"model": model, "unit": "share", "method": self._method(row)}
        found, named = row.found, row.found.named
        return [
            Measurement(
                name=f"tokens_seen_{kind}",
                value=found.recall,
                interval=clopper_pearson(found.found, found.there),
                n=found.there,
                counted="distinct tokens",
                floor=row.guessed.recall,
                ceiling=1.0,
                control=None if row.control is None else row.control.recall,
                **shared,
            ),
            Measurement(
                name=f"tokens_precision_{kind}",
                value=found.precision,
                interval=clopper_pearson(found.found, named) if named else None,
                n=named,
                counted="tokens named",
                floor=row.guessed.precision,
                ceiling=1.0,
                control=None if row.control is None else row.control.precision,
                **shared,
            ),
        ]

    def _method(self, row: _Row) -> str:
        from reticent.attacks.server_probe import CAVEAT

        if self._federation is None:
            where = "this run trained in one place: this is what a coordinator would have read"
        elif self._federation.secure_sum and row.setting == "plain":
            where = "this run is federated, and its secure sum hides this from the coordinator"
        else:
            where = "this run is federated"
        many = "of the union, of which no token is assigned to a site, " if row.setting.startswith("sum") else ""
        return (
            f"{where}; one local step of about {row.tokens} tokens a site, as one short text has (more show "
            f"less), {row.setting}; {many}read by {row.how}; the attacker is told how many distinct tokens there are; "
            "floor: naming as many of the likeliest tokens of held-out text; the interval takes tokens for "
            f"independent. {CAVEAT}"
        )


def _sites(about: Audited, rng: np.random.Generator) -> "dict[str, list[Unit]]":
    """The units of each site; where there are none, dealt to as many as are summed."""
    if about.run.is_site():
        return {"this site": asked.units_of(about.run)}
    if asked.federated(about.recipe) is not None:
        return asked.units_by_site(about.run)
    units = asked.units_of(about.run)
    order = rng.permutation(len(units))
    return {str(i): [units[j] for j in order[i::_TOGETHER]] for i in range(_TOGETHER)}


def _in_a_round(about: Audited) -> "PreTrainedModel":
    """The model as a round begins with it: the last weights of LoRA whose A travels, else the first ones.

    While B is zero A does not move, and its gradient shows more than B's.
    """
    from reticent.gradients.engines import trained
    from reticent.models.adapter import load_trained

    recipe = about.recipe
    model: PreTrainedModel = asked.prepared(recipe, asked.base_model(recipe).model)
    parameters = trained(model)
    folder = about.run.model_folder(asked.trained_models(recipe)[-1])
    if isinstance(recipe.model.adapter, Lora) and any(".lora_A." in name for name in parameters):
        last = dict(load_trained(recipe.model.base, folder).model.named_parameters())
        if all(name in last and last[name].shape == value.shape for name, value in parameters.items()):
            for name, value in parameters.items():
                value.data.copy_(last[name])
    return model


def _positions(model: "PreTrainedModel", longest: int) -> int:
    """How many positions are tried where they matter: those of the longest record, if memory allows."""
    size: int = model.get_input_embeddings().weight.numel()  # type: ignore[operator]  # it is an embedding
    return max(1, min(longest, _INPUTS // size))


def _as_units(tokens: Sequence[Tokens]) -> "list[Unit]":
    from reticent.gradients.rows import Unit

    return [Unit(str(i), (one,)) for i, one in enumerate(tokens)]


def _end(record: Tokens, most: int) -> Tokens | None:
    """The last ``most`` tokens up to the last that is trained; None if nothing would be."""
    stop = int(np.flatnonzero(record.trained)[-1]) + 1 if record.trained.any() else 0
    start = max(0, stop - most)
    if stop - start < 2:
        return None
    trained = record.trained[start:stop].copy()
    trained[0] = False
    return Tokens(record.ids[start:stop], trained)


def _distinct(batch: "Sequence[Unit]") -> np.ndarray:
    return np.unique(np.concatenate([record.ids for unit in batch for record in unit.records]))


def _count(batch: "Sequence[Unit]") -> int:
    return sum(len(record) for unit in batch for record in unit.records)


def _sum(updates: "Sequence[Update]") -> "Update":
    total = {name: value.clone() for name, value in updates[0].items()}
    for update in updates[1:]:
        for name, value in update.items():
            total[name] += value
    return total


def _total(parts: "Sequence[Overlap]") -> "Overlap":
    from reticent.attacks.server_probe import Overlap

    return Overlap(*(sum(column) for column in zip(*parts, strict=True)))
