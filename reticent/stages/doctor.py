"""The doctor: the recipe's own private training, on its own model and on this machine, checked from inside."""

import json
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reticent import asked
from reticent.data import canary
from reticent.errors import PrivacyError, RunError
from reticent.gradients.engines import Sums, UnitSum, trained
from reticent.gradients.rows import Unit
from reticent.measurement import Measurement
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import mechanism_for
from reticent.privacy.plan import BandedPlan, DPSGDPlan, NonPrivatePlan, PrivatePlan
from reticent.privacy.sampling import Sampler
from reticent.privacy.selfcheck import Check, Observed, RecordedWords, selfcheck
from reticent.progress import Progress
from reticent.recipe import Private, Recipe
from reticent.run import Run
from reticent.stages.attacking import Audited, Findings
from reticent.stages.canaries import canaries_of, stand_in
from reticent.stages.reading import read
from reticent.stages.silos import deal, sizes
from reticent.tokens import Tokens
from reticent.training.distributed import Team
from reticent.training.loop import Settings, Trainer, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHORT, LONG = 24, 256  # tokens of an ordinary unit, and at most of the longest one
MANY = 10_000  # copies of a record, for a large gradient
MICRO_BATCH = 512  # tokens, where the recipe leaves them to be searched for


def doctor(recipe: Recipe, progress: Progress) -> list[Check]:
    """Checks what the recipe would train; reads the data for the number of units, trains nothing.

    Raises:
        PrivacyError: nothing is promised, so there is nothing to check.
    """
    _refuse_no_promise(recipe)
    return _trainer_checks(recipe, _count(recipe), [], progress)


def implementation_checks(run: Run, progress: Progress) -> list[Check]:
    """Checks what a run trains, with units of its own; of a finished training also its ledger and weights.

    Raises:
        PrivacyError: nothing is promised, so there is nothing to check.
    """
    recipe = run.recipe
    _refuse_no_promise(recipe)
    units: list[Unit] = _units(run) if run.finished("prepare") and not run.is_site() else []
    try:
        checks = _trainer_checks(recipe, len(units) or _count(recipe), units, progress)
    except OSError as error:
        raise RunError(
            f"the checks of the training cannot write their ledger to {tempfile.gettempdir()}: {error.strerror}; make "
            "room there, or name another folder with TMPDIR"
        ) from None
    return checks + (_finished_checks(run, units) if run.finished("train") and units else [])


def checks(about: Audited) -> Findings:
    """The same for the audit: as one number and a list."""
    found = implementation_checks(about.run, about.progress)
    measured = Measurement(
        name="implementation_checks",
        model="private",
        value=sum(one.passed for one in found) / len(found),
        interval=None,
        n=len(found),
        unit="share",
        counted="checks",
        method="the training itself on neighbouring data with the same chance (Cebere et al., arXiv:2602.17454)",
        ceiling=1.0,
    )
    told = [{**one._asdict(), "measured": _plain(one.measured), "bound": _plain(one.bound)} for one in found]
    return Findings([measured], {"checks": told})


def _plain(value: float) -> float | str:
    """JSON has no infinity."""
    return value if isfinite(value) else "not finite"


def _refuse_no_promise(recipe: Recipe) -> None:
    if not isinstance(recipe.privacy, Private):
        whole = asked.federated(recipe)
        only = " (federation.privacy is kept by the coordinator)" if whole is not None and whole.privacy else ""
        raise PrivacyError(
            f"nothing is promised to the units that are trained on{only}, so there is nothing to check. Say privacy: "
            "{kind: dp-sgd, ...} for a promise to each of them."
        )


def _units(run: Run) -> list[Unit]:
    """The training units; of the site with the fewest, in a federation."""
    if asked.federated(run.recipe) is None:
        return asked.units_of(run)
    return min(asked.units_by_site(run).values(), key=len)


def _count(recipe: Recipe) -> int:
    """How many units would be trained on; at the site with the fewest, in a federation."""
    found, canaries = read(recipe), canaries_of(recipe, stand_in())
    planted = [unit for _, unit in canary.planted_records(canaries)]
    dealt = deal(recipe, found, canaries)
    by_site = None if dealt is None else sizes(dealt, planted)
    if asked.federated(recipe) is not None and by_site:
        return min(by_site.values())
    only = None if by_site is None else asked.only_site(recipe, by_site)
    return only or found.unit_count("train") + len(set(planted))


def _trainer_checks(recipe: Recipe, count: int, units: Sequence[Unit], progress: Progress) -> list[Check]:
    from reticent.models.load import load_tokenizer

    plan = asked.plan_for(recipe, "private", count)
    assert not isinstance(plan, NonPrivatePlan)
    model = asked.prepared(recipe, asked.base_model(recipe).model)
    end = int(load_tokenizer(recipe.model.base).eos_token_id)
    tokens = recipe.train.micro_batch_tokens
    settings = asked.settings(recipe, MICRO_BATCH if tokens == "auto" else tokens)
    few = handful(model, units, end_of_text=end, longest=min(recipe.data.max_tokens, LONG))
    with tempfile.TemporaryDirectory() as folder:
        return selfcheck(RealTrainee(model, plan, settings, few, Path(folder)), progress)


# ------------------------------------------------------------------------------------------------- a finished training


def _finished_checks(run: Run, units: Sequence[Unit]) -> list[Check]:
    recipe = run.recipe
    if asked.federated(recipe) is not None:
        found = []
        for site, own in asked.units_by_site(run).items():
            path = run.site_folder("private", site) / "ledger.jsonl"
            found += _ledger_checks(f"run at {site}", path, recipe, len(own))
        return found
    path = run.ledger_path("private")
    found = _ledger_checks("run", path, recipe, len(units))
    return [*found, *([_told(run, path)] if len(found) > 1 else []), _weights_moved(run)]


def _ledger_checks(name: str, path: Path, recipe: Recipe, units: int) -> list[Check]:
    """The ledger on disk against the recipe."""
    plan = asked.plan_for(recipe, "private", units)
    try:
        ledger = Ledger.open(path)
    except (OSError, PrivacyError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return [Check(f"{name}: ledger", False, 1.0, 0.0, f"cannot be read: {why}")]
    steps = len(ledger)
    same = ledger.plan == plan
    return [
        Check(
            f"{name}: ledger", same, float(not same), 0.0, "whether it was begun with another plan than the recipe's"
        ),
        Check(
            f"{name}: releases", steps == plan.steps, float(steps), float(plan.steps), "in the ledger; steps planned"
        ),
    ]


def _told(run: Run, path: Path) -> Check:
    """The epsilon that the run shows."""
    shown, spent = float(run.facts("train")["guarantee"]["epsilon"]), Ledger.open(path).guarantee().epsilon
    return Check("run: epsilon shown", shown >= spent, shown, spent, "in the run's facts; by its ledger, at least that")


def _weights_moved(run: Run) -> Check:
    """Every trained tensor of the saved model differs from what it was before."""
    from safetensors.torch import load_file

    from reticent.models.adapter import load_trained

    recipe, folder = run.recipe, run.model_folder("private")
    before = trained(asked.prepared(recipe, asked.base_model(recipe, torch.device("cpu")).model))
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        after = load_file(adapter)
        still = [name for name, value in before.items() if _same(value, after.get(name.replace(".default", "")))]
    else:
        whole = dict(load_trained(recipe.model.base, folder).model.named_parameters())
        still = [name for name, value in before.items() if _same(value, whole.get(name))]
    first = f", the first is {min(still)}" if still else ""
    told = f"of {len(before)} trained tensors, as they were before training{first}"
    return Check("run: every trained tensor moved", not still, float(len(still)), 0.0, told)


def _same(before: torch.Tensor, after: torch.Tensor | None) -> bool:
    return after is None or torch.equal(before.detach().cpu(), after.detach().cpu().to(before.dtype))


# ------------------------------------------------------------------------------------------------------------ units


@dataclass(frozen=True)
class Handful:
    """Two ordinary units, and units that no bound may break on. ``poison``: the token that no number comes out of."""

    members: tuple[Unit, Unit]
    adversaries: Mapping[str, Unit]
    poison: int


def handful(model: "PreTrainedModel", units: Sequence[Unit], *, end_of_text: int, longest: int) -> Handful:
    """Two of ``units``, cut short, or invented ones; adversaries of up to ``longest`` tokens."""
    vocabulary = model.config.get_text_config().vocab_size
    rng = np.random.default_rng(0)

    short = min(SHORT, longest)
    own = [Tokens(r.ids[:short], r.trained[:short]) for unit in units[:100] for r in unit.records[:1]]
    own = [record for record in own if record.trained.any()][:2]
    used = {end_of_text, *(int(i) for record in own for i in record.ids)}
    poison = next(i for i in reversed(range(vocabulary)) if i not in used)

    def invented(length: int) -> Tokens:
        ids = rng.integers(0, vocabulary - 1, length)
        return _learned(ids + (ids >= poison))

    first, second = own if len(own) == 2 else (invented(short), invented(short))
    others = {
        "a large gradient": (invented(short),) * MANY,
        "one token": (invented(2),),
        "the longest text": (invented(longest),),
        "nothing but end of text": (_learned(np.full(short, end_of_text)),),
        "a copy of a member": (first,),
        "one owner of many records": tuple(invented(max(2, short // 4)) for _ in range(4)),
        "a gradient that is not finite": (invented(short),),
    }
    others["a gradient that is not finite"][0].ids[1] = poison
    members = (Unit("member", (first,)), Unit("other member", (second,)))
    return Handful(members, {name: Unit(name, records) for name, records in others.items()}, poison)


def _named(number: int) -> Unit:
    """A unit that is only counted."""
    return Unit(str(number), (_learned(np.array([number, number])),))


def _learned(ids: np.ndarray) -> Tokens:
    return Tokens(ids.astype(np.int64), np.arange(len(ids)) > 0)


# ------------------------------------------------------------------------------------------------- the real trainer


class RealTrainee:
    """`reticent.training.loop.Trainer` with its engine, mechanism, optimiser and ledger, under observation."""

    tolerance: float

    def __init__(
        self, model: "PreTrainedModel", plan: PrivatePlan, settings: Settings, units: Handful, folder: Path
    ) -> None:
        self.plan, self._model, self._settings, self._folder = plan, model, settings, folder
        self.trainable = set(trained(model))
        self._units = [*units.members, *units.adversaries.values()]
        self._poison = units.poison
        self.members = [0, 1]
        self.adversaries = {name: index for index, name in enumerate(units.adversaries, start=2)}
        self.tolerance = 1e-5 if model.dtype == torch.float32 else 1e-3
        self._first = _clones(weights(model))
        self._initial = {name: _off_zero(value, settings.seed) for name, value in self._first.items()}
        self._trainers = 0
        self._samplers: list[Sampler] = []

    def steps(self, draws: Sequence[Sequence[int]], words: RecordedWords | None = None) -> Iterator[Observed]:
        """A new trainer's steps on the given draws, each from the same weights and the first clip norm."""
        with _same_global_chance(self._settings.seed), _poisoned(self._model, self._poison):
            trainer = self._trainer(draws, words)
            hook = trainer.optimizer.register_step_pre_hook(trainer.look)
            try:
                for _ in trainer.steps(0, len(draws), lambda step: self._settings.learning_rate):
                    yield trainer.observed()
            finally:
                hook.remove()
                self._put(self._first)

    def draws(self, count: int) -> list[np.ndarray]:
        """What the production sampler of a trainer draws in its first ``count`` steps."""
        if not self._samplers:
            self._trainer([], None)
        sampler = self._samplers.pop()
        return [sampler.draw(step) for step in range(1, count + 1)]

    def counts(self, count: int) -> np.ndarray | None:
        """So many noisy counts of an empty draw; None where the clip norm is fixed."""
        plan = self.plan
        if not isinstance(plan, DPSGDPlan) or plan.quantile is None:
            return None
        mechanism, found = mechanism_for(plan), []
        for _ in range(count):
            mechanism.clip_norm = plan.clip_norm
            mechanism.follow(below=0, drawn=0)
            moved = -np.log(mechanism.clip_norm / plan.clip_norm) / plan.quantile.rate
            found.append((moved + plan.quantile.target - 0.5) * plan.batch_size)
        return np.array(found)

    def epsilon(self) -> float:
        """What the ledger says has been spent after all steps of the plan."""
        return Ledger(self._folder / "none", self.plan, self.plan.steps).guarantee().epsilon

    def _trainer(self, draws: Sequence[Sequence[int]], words: RecordedWords | None) -> "_Watched":
        """Made on the weights that training begins with: they decide on the engine."""
        self._trainers += 1
        path = self._folder / f"{self._trainers}.jsonl"
        made = _Watched(
            self._model,
            self._units,
            self.plan,
            self._settings,
            path,
            draws,
            words,
            lambda: self._put(self._initial),
        )
        self._samplers.append(made.production)
        return made

    def _put(self, values: Sums) -> None:
        with torch.no_grad():
            for name, parameter in trained(self._model).items():
                parameter.copy_(values[name])


class _Team(Team):
    """One process alone, which keeps the sums that pass through it."""

    clipped: Sums
    noised: Sums

    def unit_sum(self, engine: Any, units: Sequence[Unit]) -> UnitSum:
        """What ``engine`` finds."""
        found = super().unit_sum(engine, units)
        self.clipped = _clones(found.gradient)
        return found

    def sum(self, sums: Sums) -> Sums:
        """The same sums, after noise."""
        self.noised = _clones(sums)
        return super().sum(sums)


class _Ledger(Ledger):
    """The real one, without the figure that a training shows on its way and that takes a second."""

    def epsilon(self) -> float:
        """Nothing: `RealTrainee.epsilon` asks for the whole training at once."""
        return 0.0


class _Script:
    """A sampler that draws what it is told, after everything is as it was before the first step."""

    def __init__(self, draws: Sequence[Sequence[int]], before: Callable[[], None]) -> None:
        self._draws, self._before = draws, before

    def draw(self, step: int) -> np.ndarray:
        """The draw of ``step``."""
        self._before()
        return np.array(self._draws[step - 1], dtype=np.int64)


class _Watched(Trainer):
    """The real trainer on scripted draws: its sampler is replaced, and its words if others are given.

    Dropout is off, or neighbouring draws would have other masks; its chance does not hang on the data.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        units: Sequence[Unit],
        plan: PrivatePlan,
        settings: Settings,
        ledger: Path,
        draws: Sequence[Sequence[int]],
        words: RecordedWords | None,
        set_back: Callable[[], None],
    ) -> None:
        self._watch = _Team()
        # The sampler is told of as many units as the plan is for, and dp-mf groups them by content; the scripted draws
        # are of ``units``.
        everyone = [_named(i) for i in range(plan.units)] if isinstance(plan, BandedPlan) else [_named(0)] * plan.units
        super().__init__(model, everyone, plan, settings, _Ledger.create(ledger, plan), team=self._watch)
        self.production, self._sampler = self._sampler, _Script(draws, self._before)
        self._units, self._path, self._words, self._restore = units, ledger, words, set_back
        self._first_norm = self.clip_norm
        if words is not None:
            self._mechanism = mechanism_for(plan, source=words)
        self._given: Sums = {}
        self._entries: tuple[dict[str, float], ...] = ()
        self._marks: dict[str, int] = {}

    def _before(self) -> None:
        self._restore()
        self._model.eval()
        if self._words is not None:
            self._words.rewind()
        assert self._mechanism is not None and self._first_norm is not None
        self._mechanism.clip_norm = self._first_norm
        self._engine.clipping = self._mechanism.clipping  # type: ignore[attr-defined]  # engines that clip have it
        self._given, self._marks = {}, self._marked()

    def _marked(self) -> dict[str, int]:
        """Of all tensors where noise is as in production: one look is enough, and a large model takes a while."""
        return _marks(self._model) if self._words is None else {}

    def look(self, *_: object) -> None:
        """What the optimiser is given, and what is in the ledger by then."""
        self._given = {name: p.grad.detach().clone() for name, p in trained(self._model).items() if p.grad is not None}
        lines = self._path.read_text(encoding="utf-8").splitlines()[1:]
        self._entries = tuple(json.loads(line) for line in lines)

    def observed(self) -> Observed:
        """The step that was made."""
        after = self._marked()
        return Observed(
            clipped=self._watch.clipped,
            noised=self._watch.noised,
            given=self._given,
            moved=frozenset(name for name, mark in after.items() if mark != self._marks[name]),
            words=() if self._words is None else tuple(self._words.counts),
            entries=self._entries,
        )


def _off_zero(value: torch.Tensor, seed: int) -> torch.Tensor:
    """A copy; small numbers for zeros, since nothing reaches the A of an adapter whose B is zero."""
    if value.any():
        return value.clone()
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(value.shape, generator=rng) * 0.02).to(value)


def _clones(sums: Sums) -> Sums:
    return {name: value.clone() for name, value in sums.items()}


def _marks(model: "PreTrainedModel") -> dict[str, int]:
    """A checksum of every tensor of ``model``."""
    return {name: _mark(value) for name, value in (*model.named_parameters(), *model.named_buffers())}


def _mark(value: torch.Tensor) -> int:
    flat = value.detach().flatten().contiguous()
    whole = flat.numel() * flat.element_size() % 4 == 0
    return int(flat.view(torch.int32 if whole else torch.uint8).sum(dtype=torch.int64))


@contextmanager
def _same_global_chance(seed: int) -> Iterator[None]:
    """Within the block every global generator begins at the recipe's seed, so that noise of one of them is found."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(seed)
        np.random.seed(seed)  # it is the global generator that is under suspicion
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextmanager
def _poisoned(model: "PreTrainedModel", token: int) -> Iterator[None]:
    """Within the block the embedding of ``token`` is infinite."""

    def spoil(module: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return torch.where((inputs[0] == token)[..., None], torch.inf, output)

    hook = model.get_input_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        hook.remove()
