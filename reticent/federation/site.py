"""One institution in a federation: it trains on its own text and answers the coordinator's requests, with bytes.

What leaves it: its name, digests and versions, the number of its units, what it promises, and in each round one update:
clipped, noised, compressed or masked as the recipe says. A loss leaves it only where nothing is promised.

An update that was made is kept, so that a request that comes again, as after a crash of the coordinator, gets the same
one: nothing is released twice. What a killed site had released to itself only stays counted.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from transformers.pytorch_utils import Conv1D

from reticent import asked
from reticent.errors import FederationError, PrivacyError
from reticent.federation import joining, lora, messages
from reticent.federation.algorithms import strategy_for
from reticent.federation.client_privacy import clip_update, contribution, encoding_for
from reticent.federation.compress import Compressor, compressor_for
from reticent.federation.secure_sum import Participant
from reticent.federation.secure_values import as_array, as_bytes, context_of, values_of
from reticent.federation.terms import Terms, differing, digest, terms
from reticent.gradients.engines import trained
from reticent.gradients.rows import Unit
from reticent.privacy.accounting import spent
from reticent.privacy.ledger import Ledger
from reticent.privacy.plan import DPFedAvgPlan, NonPrivatePlan, Plan
from reticent.progress import SILENT, Progress
from reticent.recipe import Lora, Private, Recipe
from reticent.run import ModelName, Run
from reticent.training import checkpoint, loop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from reticent.federation.server import Start

Update = dict[str, torch.Tensor]


class Host:
    """The base model in this process and what is trained on it; all sites in the process share it."""

    def __init__(self, recipe: Recipe, progress: Progress = SILENT) -> None:
        self.recipe, self.progress = recipe, progress
        self._added = ""  # digest of what the base's weights hold beyond the base
        self._pristine: Update = {}

    @cached_property
    def model(self) -> "PreTrainedModel":
        """The model, with the weights that training begins with."""
        model: PreTrainedModel = asked.prepared(self.recipe, asked.base_model(self.recipe).model)
        return model

    @property
    def mode(self) -> str:
        """How adapters are joined; "whole" where there are none."""
        assert self.recipe.federation is not None
        return self.recipe.federation.lora if isinstance(self.recipe.model.adapter, Lora) else "whole"

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        adapter = self.recipe.model.adapter
        return adapter.alpha / adapter.rank if isinstance(adapter, Lora) else 1.0

    @cached_property
    def initial(self) -> Update:
        """The weights that training begins with."""
        return {name: value.float().cpu().clone() for name, value in loop.weights(self.model).items()}

    @cached_property
    def terms(self) -> Terms:
        """What this process must have in common with the others."""
        initial = self.initial  # before anything is trained
        frozen = {n: p for n, p in self.model.named_parameters() if "lora_" in n and n not in initial}
        return terms(self.recipe, {**initial, **frozen})

    def start(self, identities: Mapping[str, bytes] | None = None) -> "Start":
        """What a coordinator begins with; ``identities``: the sites' public identity keys, raw."""
        from reticent.federation.server import Start

        return Start(self.initial, self.terms, self.mode, dict(identities or {}))

    def begin(self, weights: Mapping[str, torch.Tensor], base: Mapping[str, torch.Tensor]) -> None:
        """Sets the trained weights, and what is added to the base's: dense, by layer.

        Raises:
            FederationError: they are not those of this model.
        """
        parameters = trained(self.model)
        if {n: p.shape for n, p in parameters.items()} != {n: w.shape for n, w in weights.items()}:
            raise FederationError("the weights that were sent are not those that this recipe trains")
        with torch.no_grad():
            for name, value in weights.items():
                parameters[name].copy_(value)
        if (added := digest(base) if base else "") != self._added:
            self._added = "nobody knows"  # until all of it is there
            self._add(joining.added(base, self.scale))
            self._added = added

    @torch.no_grad()
    def _add(self, base: Mapping[str, torch.Tensor]) -> None:
        parameters = dict(self.model.named_parameters())
        for name, value in self._pristine.items():
            parameters[name].copy_(value)
        for layer, value in base.items():
            name = f"{layer}.base_layer.weight"
            value = _as_stored(self.model, f"{layer}.base_layer", value)
            if name not in parameters or parameters[name].shape != value.shape:
                raise FederationError(f"the layer {layer} that was sent is not one of this model's")
            if name not in self._pristine:
                self._pristine[name] = parameters[name].detach().clone()
            parameters[name].add_(value.to(parameters[name].device))

    def change(self, before: Mapping[str, torch.Tensor]) -> Update:
        """What a site sends: how the trained weights differ from ``before``; or the whole product of each layer."""
        after = {name: value.float().cpu() for name, value in loop.weights(self.model).items()}
        if self.mode == "merged":
            return lora.dense(lora.factors(after), self.scale)
        return {name: value - before[name] for name, value in after.items()}

    def finished(self, weights: Update, base: Update) -> Any:
        """A model to be saved: the adapter, of a higher rank where something was kept beside it, or whole if merged."""
        from reticent.models import adapter

        if not base:
            self.begin(weights, {})
            return self.model
        model = asked.base_model(self.recipe).model
        made = self.recipe.model.adapter
        assert isinstance(made, Lora)
        if self.mode == "merged":
            parameters = dict(model.named_parameters())
            with torch.no_grad():
                for layer, value in base.items():
                    name = layer.removeprefix("base_model.model.")
                    parameters[f"{name}.weight"].add_(_as_stored(model, name, value))
            return model
        whole = lora.one_adapter(lora.factors(weights), joining.factored(base), self.scale)
        wrapped = adapter.add_lora(model, rank=whole.rank, alpha=whole.alpha, dropout=0.0, targets=made.targets, seed=0)
        with torch.no_grad():
            for name, value in lora.named(whole.factors, trained(wrapped)).items():
                trained(wrapped)[name].copy_(value)
        return wrapped


def _as_stored(model: "PreTrainedModel", layer: str, value: torch.Tensor) -> torch.Tensor:
    """``value``, (out, in), as the layer stores its weight: GPT-2's are (in, out)."""
    return value.T if any(name == layer and isinstance(one, Conv1D) for name, one in model.named_modules()) else value


class Identity(NamedTuple):
    """What a site signs with in a secure sum, and the public identity keys of all sites, raw, by name."""

    key: Ed25519PrivateKey
    roster: dict[str, bytes]


class _Made(NamedTuple):
    """What a site made in a round: the update's ``arrays``, SCAFFOLD's ``control``, and what else may be said of it."""

    arrays: Update
    control: Update
    facts: dict[str, Any]


class Site:
    """A site's part in the training of one model.

    Args:
        name: As the others know it.
        host: The model.
        model: Which of the recipe's models is trained.
        units: What it trains on.
        folder: Where its ledger, log and state are.
        identity: Needed for a secure sum.
        unchanged: Says whether the data on disk are still those of ``units``.
        finished: Gets the joint weights and what is added to the base, once the rounds are over.
    """

    def __init__(
        self,
        name: str,
        host: Host,
        model: ModelName,
        units: Sequence[Unit],
        folder: Path,
        *,
        identity: Identity | None = None,
        unchanged: Callable[[], bool] = lambda: True,
        finished: Callable[[Update, Update], None] = lambda weights, base: None,
    ) -> None:
        self.name, self._host, self._model, self._units, self._folder = name, host, model, units, folder
        self._recipe, self._identity = host.recipe, identity
        self._unchanged, self._finished = unchanged, finished
        assert self._recipe.federation is not None
        self._asked = self._recipe.federation
        folder.mkdir(parents=True, exist_ok=True)
        self._state: dict[str, Any] = {
            **{
                "key": "",
                "made": None,
                "control": None,
                "feedback": None,
                "clip_norm": None,
                "noised": 0,
                "unmasked": 0,
            },
            **(checkpoint.read(folder / "state") or {}),
        }
        self.plan: Plan = asked.site_plans(self._recipe, model, {name: len(units)})[name]
        self._open = model == "twin" or not self._recipe.promises
        self._participant: tuple[bytes, Participant] | None = None

    # ------------------------------------------------------------------------------------------------- answering

    def answer(self, request: bytes) -> bytes:
        """The answer to one request. A refusal says why; it never holds text of a record."""
        answers: dict[str, Callable[[messages.Message], bytes]] = {
            "hello": self._hello,
            "train": self._train,
            "keys": self._keys,
            "shares": self._shares,
            "masked": self._masked,
            "confirm": self._confirm,
            "unmask": self._unmask,
            "finish": self._finish,
        }
        try:
            message = messages.unpack(request)
            if message.kind not in answers:
                raise FederationError(f"a site does not answer {message.kind!r}")
            if message.fields.get("model") != self._model:
                raise FederationError(f"site {self.name} trains the model {self._model!r}")
            return answers[message.kind](message)
        except (FederationError, PrivacyError) as error:
            return messages.pack("refused", {"reason": str(error)}, {})

    def _hello(self, message: messages.Message) -> bytes:
        # Where it serves neither the mean nor a promise to units, the number of units stays here.
        counts = self._asked.weights == "units" and not self._asked.secure_sum
        told = counts or isinstance(self._recipe.privacy, Private)
        units = len(self._units) if told else None
        return messages.pack(
            "site", {"site": self.name, "units": units, "terms": self._host.terms, **self._promise()}, {}
        )

    def _finish(self, message: messages.Message) -> bytes:
        parts = messages.split(message.arrays)
        self._finished(parts.get("w", {}), parts.get("d", {}))
        return messages.pack("done", {"site": self.name, "guarantee": self.guarantee()}, {})

    def _promise(self) -> dict[str, Any]:
        """What its plan promises when every step of every round has been made."""
        if isinstance(self.plan, NonPrivatePlan):
            return {"epsilon": None, "delta": None}
        return {
            "epsilon": spent(self.plan.spent_events(self.plan.steps), self.plan.delta).epsilon,
            "delta": self.plan.delta,
        }

    def guarantee(self) -> dict[str, Any] | None:
        """What it has spent, by its own ledger; None without a promise."""
        return None if self._ledger is None else self._ledger.guarantee(self.name).to_dict()

    # -------------------------------------------------------------------------------------------------- training

    @cached_property
    def _clients(self) -> DPFedAvgPlan | None:
        """The promise to whole sites; the coordinator's, as this site works it out itself."""
        return asked.client_plan(self._recipe, self._model, len(self._signs.roster))

    @property
    def _signs(self) -> Identity:
        if self._identity is None:
            raise PrivacyError(f"site {self.name} has no roster of identities, so no sum can hide its update")
        return self._identity

    @cached_property
    def _ledger(self) -> Ledger | None:
        return loop.open_ledger(self._folder / "ledger.jsonl", self.plan)

    @cached_property
    def _settings(self) -> loop.Settings:
        made = asked.settings(self._recipe, 0)
        own = int.from_bytes(hashlib.sha256(f"{self._recipe.train.seed}:{self.name}".encode()).digest()[:6])
        return made._replace(seed=own, learning_rate=self._asked.learning_rates.get(self.name, made.learning_rate))

    @cached_property
    def _trainer(self) -> loop.Trainer:
        host = self._host
        tokens = asked.micro_batch_tokens(self._recipe, self.plan, self._units, host.model, host.progress)
        return loop.Trainer(
            host.model,
            self._units,
            self.plan,
            self._settings._replace(micro_batch_tokens=tokens),
            self._ledger,
            clip_norm=self._state["clip_norm"],
            progress=host.progress,
        )

    @cached_property
    def _compressor(self) -> Compressor:
        made = compressor_for(self._asked.compress, top_k=self._asked.top_k, seed=self._settings.seed)
        if self._state["feedback"]:
            made.load(self._state["feedback"])
        return made

    def _train(self, message: messages.Message) -> bytes:
        if self._asked.secure_sum:
            raise PrivacyError(f"site {self.name} gives its update only to a sum: the recipe says secure_sum")
        made = self._made(message)
        arrays = {f"u/{name}": value for name, value in made.arrays.items()}
        control = {f"c/{name}": value for name, value in made.control.items()}
        return messages.pack("update", self._about(message) | made.facts, arrays | control)

    def _about(self, message: messages.Message) -> dict[str, Any]:
        return {"site": self.name, "round": message.fields["round"]}

    def _made(self, message: messages.Message) -> _Made:
        """The update of this round: the one that is kept, if the same was asked for before."""
        fields = message.fields
        if wrong := differing(fields["terms"], self._host.terms):
            raise FederationError(f"site {self.name} cannot take part: it differs in {'; '.join(wrong)}")
        if not self._unchanged():
            raise FederationError(
                f"the data of site {self.name} are not those it began with; put them back, or begin a new federation"
            )
        parts = messages.split(message.arrays)
        begun = {f"{part}/{name}": value for part in ("w", "c", "d") for name, value in parts.get(part, {}).items()}
        key = f"{fields['run']} {fields['round'][0]} {fields['clip_norm']} {digest(begun)}"
        if self._state["key"] != key:
            made = self._make(int(fields["round"][0]), fields["clip_norm"], parts)
            self._state |= {"key": key, "made": made._asdict()}
            checkpoint.write(self._folder / "state", self._state)
        return _Made(**self._state["made"])

    def _make(self, number: int, clip_norm: float | None, parts: dict[str, Update]) -> _Made:
        """Trains one round."""
        weights = parts.get("w", {})
        count = self.plan.steps // self._asked.rounds
        start = (number - 1) * count if self._ledger is None else len(self._ledger)
        stop = min(start + count, self.plan.steps)
        if not 1 <= number <= self._asked.rounds or stop == start:
            raise PrivacyError(f"site {self.name} has made all {start} steps that its plan allows")
        self._host.begin(weights, parts.get("d", {}))
        strategy = strategy_for(self._asked.algorithm, **asked.strategy_settings(self._asked))
        correction = strategy.correction(weights, parts.get("c"), self._state["control"])
        try:
            with self._seeded(number):
                facts = self._steps(start, stop, number, correction.apply)
        finally:
            self._trainer.restart()  # also after steps that failed
        change = self._host.change(weights)
        if clip_norm is None:
            self._check_norm(change)
        elif not self._asked.secure_sum:  # there it is clipped as it is encoded
            clipped = clip_update(change, clip_norm)
            change = clipped.update
            promise = None if self._model == "twin" else self._asked.privacy
            if promise is not None and promise.clip_quantile is not None:
                facts["below"] = clipped.below  # to be counted, with noise
        sent, own = correction.finish()
        arrays = self._compressor.encode(change)
        self._state |= {
            "control": own,
            "feedback": self._compressor.state(),
            "clip_norm": self._trainer.clip_norm,
        }
        return _Made(arrays, sent or {}, facts)

    @contextmanager
    def _seeded(self, number: int) -> Iterator[None]:
        """Dropout follows from recipe, site and round, whatever else this process has made."""
        device = next(self._host.model.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self._settings.seed + number)
            yield

    def _steps(self, start: int, stop: int, number: int, correct: loop.Correct) -> dict[str, Any]:
        """Makes the steps of a round: what may be said about them."""
        settings, total = self._settings, self.plan.steps
        first = (number - 1) * (total // self._asked.rounds) + 1
        constant = loop.rate(settings, first, total)
        along = self._asked.schedule == "steps"
        losses: list[tuple[float, int]] = []
        with loop.log_to(self._folder / "log.jsonl", keep=start) as log:
            for line in self._trainer.steps(
                start, stop, lambda step: loop.rate(settings, step, total) if along else constant, correct
            ):
                log(line)
                if line.loss is not None:
                    losses.append((line.loss, line.records))
        records = sum(count for _, count in losses)
        mean = sum(loss * count for loss, count in losses) / records if records else None
        return {"loss": mean} if self._open and mean is not None and math.isfinite(mean) else {}

    def _check_norm(self, change: Update) -> None:
        if not clip_update(change, self._asked.max_norm).below:
            raise FederationError(
                f"the update of site {self.name} is longer than federation.max_norm, {self._asked.max_norm:g}; lower "
                "train.learning_rate"
            )

    # ------------------------------------------------------------------------------------------------ secure sum

    def _keys(self, message: messages.Message) -> bytes:
        fields = message.fields
        if self._state["unmasked"] >= fields["round"][0]:
            raise PrivacyError(f"site {self.name} has helped to open a sum of round {fields['round'][0]} already")
        drawn = min(self._asked.per_round or len(self._signs.roster), len(self._signs.roster))
        if len(fields["sites"]) != drawn:  # a sum over two sites hides neither from the other
            raise PrivacyError(f"the sum is to be over {len(fields['sites'])} sites, and the recipe draws {drawn}")
        if fields["threshold"] != asked.secure_threshold(self._asked, self._clients, len(fields["sites"])):
            raise PrivacyError(f"the sum is to be of {fields['threshold']} sites, which is not what the recipe says")
        context = context_of(fields)
        self._participant = (
            context,
            Participant(
                self.name,
                self._signs.key,
                self._signs.roster,
                context=context,
                threshold=fields["threshold"],
                sites=fields["sites"],
            ),
        )
        return self._said(message, {"keys": as_array(self._part(message).advertise())})

    def _shares(self, message: messages.Message) -> bytes:
        shares = self._part(message).share({name: as_bytes(value) for name, value in message.arrays.items()})
        return self._said(message, {peer: as_array(value) for peer, value in shares.items()})

    def _masked(self, message: messages.Message) -> bytes:
        part, fields = self._part(message), message.fields
        sealed = messages.split(message.arrays).get("s", {})
        if digest({name: value for name, value in message.arrays.items() if name[:2] != "s/"}) != fields["weights"]:
            raise PrivacyError("the weights are not those that this sum was begun for")
        values = self._values(message)
        return self._said(
            message,
            {
                "masked": torch.from_numpy(
                    part.mask(values, {name: as_bytes(value) for name, value in sealed.items()}).view(np.int64)
                )
            },
        )

    def _values(self, message: messages.Message) -> np.ndarray:
        """This round's update as whole numbers, with this site's share of the noise, if the sites add it."""
        update, clip_norm = self._made(message).arrays, message.fields["clip_norm"]
        plan = self._clients
        if plan is not None and clip_norm is None:
            raise PrivacyError("the coordinator sent no clip norm, and the promise needs one")
        if plan is None or plan.noise == "server":
            units = len(self._units) if self._asked.weights == "units" else None
            if clip_norm is None:
                return values_of(update, units, vote=True)
            clipped = clip_update(update, clip_norm)
            return values_of(clipped.update, units, clipped.below)
        if self._state["noised"] >= self._asked.rounds:
            raise PrivacyError(f"site {self.name} has added noise for all {self._asked.rounds} rounds of the promise")
        shapes = {name: tuple(value.shape) for name, value in update.items()}
        self._state["noised"] += 1
        checkpoint.write(self._folder / "state", self._state)
        return contribution(update, encoding_for(plan, clip_norm, shapes))

    def _confirm(self, message: messages.Message) -> bytes:
        return self._said(message, {"signature": as_array(self._part(message).confirm(message.fields["survivors"]))})

    def _unmask(self, message: messages.Message) -> bytes:
        signed = {name: as_bytes(value) for name, value in message.arrays.items()}
        part, number = self._part(message), message.fields["round"][0]
        self._state["unmasked"] = number
        checkpoint.write(self._folder / "state", self._state)
        return self._said(message, {"shares": as_array(part.unmask(message.fields["survivors"], signed))})

    def _part(self, message: messages.Message) -> Participant:
        """This site in the sum that the message is about."""
        if self._participant is None or self._participant[0] != context_of(message.fields):
            raise PrivacyError(f"site {self.name} is not part of this sum; it may have been restarted")
        return self._participant[1]

    def _said(self, message: messages.Message, arrays: Update) -> bytes:
        return messages.pack(f"{message.kind} done", self._about(message), arrays)


def simulated(folder: Path, index: int) -> Callable[[bytes], bytes]:
    """The site of a simulation by its number: a silo of the run in ``folder``, in this process.

    It is made anew for each message, since the next one may go to another process.
    """
    run, host, units = _simulation(folder)
    name, model = list(units)[index], asked.trained_models(run.recipe)[-1]
    return Site(name, host, model, units[name], run.site_folder(model, name)).answer


@cache
def _simulation(folder: Path) -> tuple[Run, Host, dict[str, list[Unit]]]:
    run = Run.open(folder)
    return run, Host(run.recipe), asked.units_by_site(run)
