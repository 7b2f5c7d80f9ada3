"""The coordinator: it asks sites in rounds, checks what they answer, joins it and moves the joint weights.

The order of a round: draw the sites, ask them, add up what is sound, add noise and write the ledger where sites are
promised something, move the weights, save. The saved state is complete: a killed coordinator goes on with the round
that it was in, and sites that have answered answer the same again. Releases that were recorded but not saved count as
rounds done: the budget is not there twice.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reticent import asked
from reticent.errors import FederationError, PrivacyError, ReticentError
from reticent.federation import compress, messages
from reticent.federation.aggregate import WeightedMean
from reticent.federation.algorithms import strategy_for
from reticent.federation.channel import Channel, Failure
from reticent.federation.client_privacy import (
    BoundedSum,
    check_update,
    encoding_for,
    read_sum,
    release_shared,
)
from reticent.federation.joining import Joined, joining_for, shapes_of
from reticent.federation.secure_sum import Collector
from reticent.federation.secure_values import as_array, as_bytes, check_room, context_of, length, read_values
from reticent.federation.terms import Terms, differing, digest
from reticent.federation.traffic import Traffic, Transfer
from reticent.privacy.ledger import Guarantee
from reticent.privacy.noise import Mechanism, mechanism_for
from reticent.privacy.sampling import PoissonSampler
from reticent.progress import SILENT, Progress
from reticent.recipe import Recipe
from reticent.run import ModelName
from reticent.training import checkpoint, loop

Update = dict[str, torch.Tensor]


class Files(NamedTuple):
    """Where the coordinator keeps its state: a folder, a log of rounds, a ledger of promises to sites."""

    state: Path
    log: Path
    ledger: Path


class Start(NamedTuple):
    """What the rounds begin with.

    ``weights``: joint weights by name. ``terms``: what sites must agree with. ``mode``: how adapters are joined,
    "whole" without any. ``identities``: the sites' public identity keys, raw; needed for a secure sum.
    """

    weights: Update
    terms: Terms
    mode: str
    identities: dict[str, bytes]


class Joint(NamedTuple):
    """What came out: the weights, what is added to the base beside them, and what each site promised and spent."""

    weights: Update
    base: Update
    sites: dict[str, dict[str, Any]]


class Round(NamedTuple):
    """One line of the log. Bytes are those of requests (down) and answers (up); ``left_out``: why, by site.

    ``loss``: mean of the sites' that may tell theirs. ``lora_error``: relative error that averaging A and B apart makes
    or would make. ``norm``: of the joint step.
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


@dataclass
class _State:
    """What a resumed coordinator goes on with. ``base``: dense arrays by layer, or factors ``LAYER/a``, ``LAYER/b``.

    ``opened``: the last round in which sites began to give a secure sum what they give once only. ``met``: what each
    site said about itself.
    """

    round: int
    weights: Update
    base: Update
    strategy: dict[str, Any]
    clip_norm: float | None
    transfers: list[tuple[int, str, int, int]]
    met: dict[str, dict[str, Any]]
    opened: int = 0


@dataclass
class _Line:
    """What a round comes to know about itself."""

    round: int
    attempt: int
    asked: int
    began: float = field(default_factory=time.monotonic)
    left_out: dict[str, str] = field(default_factory=dict)
    answered: int = 0
    losses: list[tuple[float, int]] = field(default_factory=list)
    clip_norm: float | None = None
    asked_for: bool = False
    masked: bool = False
    unmasked: bool = False

    def hear(self, message: messages.Message, units: int) -> None:
        """Counts a sound answer; ``units``: of its site."""
        self.answered += 1
        loss = message.fields.get("loss")
        if isinstance(loss, float):
            self.losses.append((loss, units))


class Coordinator:
    """One federated training of one model.

    Args:
        sites: Names of all sites that may take part: the population that is drawn from.
        run: An identifier of this training, the same after a resume.

    Raises:
        FederationError: A site differs in what all must share, or too few sites answer.
        PrivacyError: A promise cannot be kept.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: ModelName,
        channel: Channel,
        sites: Sequence[str],
        files: Files,
        start: Start,
        *,
        run: str,
        progress: Progress = SILENT,
    ) -> None:
        assert recipe.federation is not None
        self._recipe, self._asked, self._model = recipe, recipe.federation, model
        self._channel, self._names, self._files, self._start = channel, sorted(sites), files, start
        self._run, self._progress = run, progress
        self._shapes = shapes_of(start.mode, start.weights)
        self._plan = asked.client_plan(recipe, model, len(self._names))
        self._ledger = None if self._plan is None else loop.open_ledger(files.ledger, self._plan)
        self._strategy = strategy_for(self._asked.algorithm, **asked.strategy_settings(self._asked))
        self._state = self._resumed()
        self._traffic = Traffic(Transfer(*one) for one in self._state.transfers)
        self._mechanism: Mechanism | None = None
        self._sampler: PoissonSampler | None = None
        if self._plan is not None:
            self._mechanism = mechanism_for(self._plan, self._state.clip_norm)
            self._sampler = PoissonSampler(len(self._names), self._plan.sampling_prob)
        asked.check_sites(recipe, self._plan, self._names)
        if self._asked.secure_sum:
            check_room(len(self._names), self._asked.max_norm)

    def _resumed(self) -> _State:
        values = checkpoint.read(self._files.state)
        state = _State(0, dict(self._start.weights), {}, {}, None, [], {}) if values is None else _State(**values)
        self._strategy.load(state.strategy)
        if self._noisy and self._ledger is not None and len(self._ledger) < state.opened:
            self._ledger.record_failure(asked=len(self._names), answered=0)
        done = max(state.opened, 0 if self._ledger is None else len(self._ledger))
        if done > state.round:
            self._progress.say(f"{done - state.round} rounds after the last save are lost; they stay counted")
            state.round = done
        return state

    @property
    def _noisy(self) -> bool:
        """Whether sites add the noise."""
        return self._plan is not None and self._plan.noise == "distributed"

    # ------------------------------------------------------------------------------------------------- the rounds

    def train(self) -> Joint:
        """Makes all rounds that are left."""
        self._meet(self._names)
        if not self._state.met:
            raise FederationError(
                f"none of the sites answers ({', '.join(self._names)}); start them, then run this again"
            )
        total = self._asked.rounds
        with (
            loop.log_to(self._files.log, keep=self._state.round, by="round") as log,
            self._progress.task(f"federation of {len(self._names)} sites", total=total) as task,
        ):
            task.advance(self._state.round)
            for number in range(self._state.round + 1, total + 1):
                line = self._round(number, log)
                task.advance(1, note=_note(line))
        return Joint(self._state.weights, self._state.base, self._part())

    def _meet(self, sites: Sequence[str]) -> None:
        """Hears what sites say about themselves."""
        line = _Line(self._state.round, 1, len(sites))
        hello = messages.pack("hello", {"run": self._run, "model": self._model}, {})
        for site, message in self._ask(dict.fromkeys(sites, hello), "site", line):
            told = message.fields
            if not _sound(told):
                line.left_out[site] = "what it says about itself is malformed"
                continue
            if wrong := differing(told["terms"], self._start.terms):
                why = (
                    f"site {site} cannot take part: it differs in {'; '.join(wrong)}. Give all sites the same recipe, "
                    "model and versions."
                )
                if not self._state.round:  # nothing is lost yet
                    raise FederationError(why)
                line.left_out[site] = why
                continue
            self._state.met[site] = {key: told[key] for key in ("units", "epsilon", "delta")}
        for site, why in line.left_out.items():
            self._progress.say(f"site {site} is not there: {why}")

    def _part(self) -> dict[str, dict[str, Any]]:
        """Gives the sites the result: what each promised, and what it says it has spent, if it can still be asked."""
        line = _Line(self._state.round, 1, len(self._names))
        end = messages.pack("finish", {"run": self._run, "model": self._model}, self._sent())
        said = {
            site: message.fields.get("guarantee")
            for site, message in self._ask(dict.fromkeys(self._names, end), "done", line)
        }
        self._save()
        return {
            site: {
                "units": met["units"],
                "promise": {key: met[key] for key in ("epsilon", "delta")},
                "guarantee": told if _spent(told := said.get(site)) else None,
            }
            for site, met in sorted(self._state.met.items())
        }

    def _round(self, number: int, log: Callable[[Round], None]) -> Round:
        """One round: repeated while too few answer, unless it is paid for already."""
        for attempt in range(1, self._asked.attempts + 1):
            self._meet([site for site in self._channel.sites() if site in self._names and site not in self._state.met])
            drawn = self._draw(number, attempt)
            line = _Line(number, attempt, len(drawn))
            joined = self._secure(drawn, line) if self._asked.secure_sum else self._plain(drawn, line)
            norm = 0.0 if joined is None else self._move(joined, line)
            # Sites that helped to unmask never give the same values again: two sums could show what is in one only.
            paid = line.unmasked or (self._ledger is not None and len(self._ledger) >= number)
            told = self._told(line, norm, None if joined is None else joined.error)
            log(told)  # before it is saved: a round that is made again drops its line
            for site, why in line.left_out.items():
                self._progress.say(f"round {number}: {site} is left out: {why}")
            if joined is not None or paid:
                self._state.round = number
                self._save()
                return told
        self._save()  # what has travelled
        raise FederationError(
            f"round {number} had {line.answered} of {line.asked} sites, too few, in {self._asked.attempts} attempts; "
            "see that the sites run, then start this again: it goes on here"
        )

    def _draw(self, number: int, attempt: int) -> list[str]:
        """The sites of a round. With a promise to sites each is drawn by itself, so there may be none."""
        if self._sampler is not None:
            return [self._names[i] for i in self._sampler.draw(number)]
        count = min(self._asked.per_round or len(self._names), len(self._names))
        rng = np.random.default_rng([self._recipe.train.seed, 40, number, attempt])
        return [self._names[i] for i in sorted(rng.choice(len(self._names), count, replace=False))]

    def _move(self, joined: Joined, line: _Line) -> float:
        """Moves the joint weights: the norm of the step."""
        before, state = self._state.weights, self._state
        if joined.change is not None:
            state.weights = self._strategy.step(
                before, joined.change, control_delta=joined.control, share=line.answered / len(self._names) or 1.0
            )
        else:
            assert joined.weights is not None
            state.weights = joined.weights
        if joined.base is not None:
            state.base = joined.base
        return math.sqrt(sum(float((value - before[name]).square().sum()) for name, value in state.weights.items()))

    def _save(self) -> None:
        self._state.transfers = [tuple(one) for one in self._traffic.transfers()]  # type: ignore[misc]  # mypy forgets the length
        self._state.strategy = self._strategy.state()
        self._state.clip_norm = None if self._mechanism is None else self._mechanism.clip_norm
        checkpoint.write(self._files.state, dict(vars(self._state)))

    def _told(self, line: _Line, norm: float, error: float | None) -> Round:
        here = next((one for one in self._traffic.per_round() if one.round == line.round), None)
        counted = sum(count for _, count in line.losses)
        return Round(
            round=line.round,
            attempt=line.attempt,
            asked=line.asked,
            answered=line.answered,
            left_out=line.left_out,
            up=0 if here is None else here.up,
            down=0 if here is None else here.down,
            seconds=time.monotonic() - line.began,
            norm=norm,
            loss=sum(loss * count for loss, count in line.losses) / counted if counted else None,
            lora_error=error,
            clip_norm=line.clip_norm,
            epsilon=None if self._ledger is None else self._ledger.epsilon(),
        )

    # -------------------------------------------------------------------------------------------- asking for updates

    def _ask(self, requests: Mapping[str, bytes], expected: str, line: _Line) -> Iterator[tuple[str, messages.Message]]:
        """The sound answers as they arrive; why the others are none is noted."""
        for site, answer in self._channel.ask(requests, self._asked.deadline):
            received = 0 if isinstance(answer, Failure) else len(answer)
            self._traffic.add(line.round, site, received, len(requests[site]))
            try:
                if isinstance(answer, Failure):
                    raise FederationError(answer.reason)
                if received > self._most:
                    raise FederationError(f"its answer has {received:,} bytes, the most is {self._most:,}")
                message = messages.unpack(answer)
                if message.kind == "refused":
                    reason = str(message.fields.get("reason"))[:500]
                    raise FederationError("".join(one if one.isprintable() else " " for one in reason))
                if message.kind != expected or message.fields.get("site") != site:
                    raise FederationError(f"it answers {message.kind!r} where its {expected!r} is due")
                if line.asked_for and message.fields.get("round") != [line.round, line.attempt]:
                    raise FederationError("it answers for another round")
            except ReticentError as error:
                line.left_out[site] = str(error)
                continue
            yield site, message

    @property
    def _most(self) -> int:
        """The most bytes of an honest answer: two vectors of 8 bytes a number, and what stands around them."""
        return 2**20 + 4096 * len(self._names) + 16 * sum(math.prod(shape) for shape in self._shapes.values())

    def _fields(self, line: _Line) -> dict[str, Any]:
        return {
            "run": self._run,
            "model": self._model,
            "round": [line.round, line.attempt],
            "terms": self._start.terms,
            "clip_norm": line.clip_norm,
        }

    def _sent(self) -> Update:
        """What sites begin a round with."""
        return {
            **{f"w/{name}": value for name, value in self._state.weights.items()},
            **{f"c/{name}": value for name, value in (self._strategy.control or {}).items()},
            **{f"d/{name}": value for name, value in self._state.base.items()},
        }

    def _weight(self, site: str) -> float:
        """By how much a site counts."""
        if self._plan is not None or self._asked.weights == "equal":
            return 1.0
        return float(self._state.met[site]["units"] or 1)

    def _plain(self, drawn: list[str], line: _Line) -> Joined | None:
        """What the drawn sites' updates are together; None below the quorum."""
        self._begin(line)
        request = messages.pack("train", self._fields(line), self._sent())
        bounded = None
        if self._plan is not None and self._mechanism is not None:
            bounded = BoundedSum(self._shapes, self._plan, self._mechanism)
        joining = joining_for(self._start.mode, self._state.weights, self._state.base, seed=line.round)
        controls = WeightedMean()
        for site, message in self._ask(dict.fromkeys(drawn, request), "update", line):
            try:
                if site not in self._state.met:
                    raise FederationError("it has not said what it is")
                update, control = self._update(message, line.clip_norm)
            except FederationError as error:
                line.left_out[site] = str(error)
                continue
            if bounded is not None:
                bounded.add(update, below=bool(message.fields.get("below")))
            else:
                joining.add(update, self._weight(site))
            if control:
                controls.add(control, 1.0)
            line.hear(message, self._state.met[site]["units"] or 1)
        if bounded is not None:  # however few answered: a draw that is to stay hidden is never given up for its size
            assert self._ledger is not None
            return Joined(change=bounded.release(self._ledger, len(drawn)).mean)
        if line.answered < asked.quorum(self._asked, len(drawn)):
            return None
        joined = joining.result()
        return joined._replace(control=controls.result()) if controls.weight else joined

    def _begin(self, line: _Line) -> None:
        line.asked_for = True
        line.clip_norm = self._asked.clip_norm if self._mechanism is None else self._mechanism.clip_norm

    def _update(self, message: messages.Message, clip_norm: float | None) -> tuple[Update, Update]:
        """A site's update, bounded, and SCAFFOLD's control, if it sends one.

        Raises:
            FederationError: they are not what they must be.
        """
        parts = messages.split(message.arrays)
        update = compress.decode(parts.get("u", {}), self._shapes)
        clipped = check_update(update, self._shapes, self._asked.max_norm if clip_norm is None else clip_norm)
        if clip_norm is None and not clipped.below:
            raise FederationError(
                f"its update has norm {clipped.norm:.3g}, above federation.max_norm {self._asked.max_norm:g}"
            )
        if ("c" in parts) != (self._asked.algorithm == "scaffold"):
            raise FederationError("it must send a control with algorithm: scaffold, and only then")
        control = compress.decode(parts["c"], self._shapes) if "c" in parts else {}
        if control and not check_update(control, self._shapes, self._asked.max_norm).below:
            raise FederationError(f"its control is longer than federation.max_norm {self._asked.max_norm:g}")
        return clipped.update, control

    # ---------------------------------------------------------------------------------------------------- secure sum

    def _secure(self, drawn: list[str], line: _Line) -> Joined | None:
        """The same without seeing any single update; None if too few stay to the end."""
        self._begin(line)
        encoding, noisy = None, self._noisy
        if noisy:
            assert self._plan is not None and self._mechanism is not None
            encoding = encoding_for(self._plan, self._mechanism.clip_norm, self._shapes)
        try:
            total = self._sum(drawn, line, length(self._shapes, noisy=noisy))
        except PrivacyError as error:
            self._progress.say(f"round {line.round}: no sum: {error}")
            if noisy and self._ledger is not None and line.masked and not line.unmasked:
                self._ledger.record_failure(asked=len(drawn), answered=line.answered)
            return None
        if encoding is not None:
            assert self._plan is not None and self._mechanism is not None
            found = read_sum(total, encoding, self._shapes)
            return Joined(change=release_shared(found, self._plan, self._mechanism, line.answered).mean)
        values = read_values(total, self._shapes)
        if self._plan is None:
            return Joined(change={name: value / values.weight for name, value in values.update.items()})
        assert self._mechanism is not None and self._ledger is not None
        self._mechanism.add_noise(values.update)
        self._record(line)
        self._mechanism.follow(below=values.votes, drawn=line.answered)
        return Joined(change={name: value / self._plan.batch_size for name, value in values.update.items()})

    def _open(self, line: _Line) -> None:
        """Saves that this round cannot be begun anew: sites add noise, or help to unmask, once a round."""
        self._state.opened = line.round
        self._save()

    def _record(self, line: _Line) -> None:
        assert self._mechanism is not None and self._ledger is not None
        self._ledger.record({**self._mechanism.entry, "asked": line.asked, "answered": line.answered})

    def _sum(self, drawn: list[str], line: _Line, size: int) -> np.ndarray:
        """The secure sum of the drawn sites' vectors, of those that stay to the end.

        Raises:
            PrivacyError: fewer than the threshold did.
        """
        sent, fields = self._sent(), self._fields(line)
        invited = sorted(drawn)
        fields |= {
            "sites": invited,
            "threshold": asked.secure_threshold(self._asked, self._plan, len(invited)),
            "weights": digest(sent),
        }
        collector = Collector(
            self._start.identities,
            context=context_of(fields),
            threshold=fields["threshold"],
            sites=invited,
            length=size,
        )

        def phase(kind: str, sites: Sequence[str], arrays: Callable[[str], Update], take: Callable[..., None]) -> None:
            requests = {site: messages.pack(kind, fields, arrays(site)) for site in sites}
            for site, message in self._ask(requests, f"{kind} done", line):
                try:
                    take(site, message.arrays)
                except (KeyError, TypeError, ValueError, PrivacyError) as error:
                    line.left_out[site] = str(error) if isinstance(error, PrivacyError) else "its answer is malformed"

        phase(
            "keys", invited, lambda site: {}, lambda site, arrays: collector.advertise(site, as_bytes(arrays["keys"]))
        )
        advertised = collector.advertised()
        sealed = _arrays(advertised)
        phase(
            "shares",
            sorted(advertised),
            lambda site: sealed,
            lambda site, arrays: collector.share(site, {peer: as_bytes(value) for peer, value in arrays.items()}),
        )
        shared = collector.shared()
        if self._noisy:
            self._open(line)
        line.masked = True  # from here on vectors may have left the sites
        phase(
            "masked",
            sorted(shared),
            lambda site: {**sent, **{f"s/{peer}": value for peer, value in _arrays(shared[site]).items()}},
            lambda site, arrays: collector.mask(site, arrays["masked"].numpy().view(np.uint64)),
        )
        survivors = collector.survivors()
        line.answered = len(survivors)
        fields["survivors"] = survivors
        phase(
            "confirm",
            survivors,
            lambda site: {},
            lambda site, arrays: collector.confirm(site, as_bytes(arrays["signature"])),
        )
        confirmations = collector.confirmations()
        if self._noisy:
            self._record(line)  # before the sum is unmasked
        else:
            self._open(line)
        signed = _arrays(confirmations)
        line.unmasked = True
        phase(
            "unmask",
            sorted(confirmations),
            lambda site: signed,
            lambda site, arrays: collector.unmask(site, as_bytes(arrays["shares"])),
        )
        return collector.finish()


def serve(folder: Path, channel: Channel) -> None:
    """Runs the rounds of the coordinator's run in ``folder``, and keeps the model and what was promised."""
    from reticent.federation import keys, local
    from reticent.federation.site import Host
    from reticent.models import adapter
    from reticent.models.load import load_tokenizer
    from reticent.run import Run

    run = Run.open(folder)
    recipe = run.recipe
    name = asked.trained_models(recipe)[-1]
    if recipe.data.silos is None:
        roster = keys.read_roster(run.federation_folder() / "roster.json")
        identities = {site: member.identity for site, member in roster.items()}
    else:
        identities = dict.fromkeys(run.silos(), b"")  # a simulation has no secure sum
    host = Host(recipe)
    coordinator = Coordinator(
        recipe,
        name,
        channel,
        list(identities),
        local.files(run, name),
        host.start(identities),
        run=run.read_provenance()["recipe"],
    )
    joint = coordinator.train()
    if recipe.data.silos is not None:  # else the sites keep their logs
        local.write_log(run, name, list(identities))
    run.write_federation(name, local.facts(run, name, joint, host))
    with run.replacing(run.model_folder(name)) as place:
        adapter.save(host.finished(joint.weights, joint.base), place, base=asked.public_name(recipe.model.base))
        load_tokenizer(recipe.model.base).save_pretrained(place)


def _sound(told: Mapping[str, Any]) -> bool:
    """Whether this is what a site says about itself."""
    units, promise = told.get("units"), [told.get(key) for key in ("epsilon", "delta")]
    return (
        isinstance(told.get("terms"), dict)
        and (units is None or (isinstance(units, int) and 0 < units < 2**40))
        and (promise == [None, None] or all(isinstance(one, float) for one in promise))
    )


def _spent(told: Any) -> bool:
    """Whether this is a guarantee, as `Guarantee.to_dict` gives it."""
    return (
        isinstance(told, dict)
        and told.keys() == {field.name for field in fields(Guarantee)}
        and all(isinstance(told[key], int | float) for key in ("epsilon", "delta", "steps"))
    )


def _arrays(values: Mapping[str, bytes]) -> Update:
    return {name: as_array(value) for name, value in values.items()}


def _note(line: Round) -> str:
    loss = "" if line.loss is None else f"loss {line.loss:.3f}  "
    epsilon = "" if line.epsilon is None else f"epsilon {line.epsilon:.2f}  "
    return f"{loss}{epsilon}{line.answered} of {line.asked} sites, {(line.up + line.down) / 2**20:.1f} MiB"
