"""Whether the models recite: planted identifiers, and real records."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent.measurement import Measurement
from reticent.recipe import Extraction
from reticent.stages.attacking import Audited, Findings, Texts
from reticent.stages.inputs import AnyModel
from reticent.statistics import bootstrap_mean, clopper_pearson, newcombe_difference, paired
from reticent.tokens import Tokens

if TYPE_CHECKING:
    from reticent.attacks.compatibility import Probe
    from reticent.attacks.extraction import Rate
    from reticent.models.language_model import CausalModel, Sampling

ATTEMPTS = (1, 100, 10_000)
SHOWN = 100  # attempts, of the plot and of what each site planted
CHANCES = (0.1, 0.5, 0.9)
GENERATED = 16  # records of each kind whose suffix is really generated
_AT_ONCE = 1000  # records that are tokenised
_SAMPLE, _PLACES, _DRAWS = 30, 31, 32  # streams of chance


class _Records(NamedTuple):
    """Distinct real records, one piece of each, (records,): their units of privacy, and how often each is there."""

    tokens: list[Tokens]
    units: list[str]
    copies: list[int]


class _Probe(NamedTuple):
    """A suffix of the record with this index, given ``prefix`` tokens."""

    record: int
    prefix: int
    tokens: Tokens


class _Result(NamedTuple):
    """One suffix, given ``prefix`` tokens (None: all before): whether it was recited, and its log-probability."""

    record: int
    prefix: int | None
    hit: bool
    log: float


@dataclass
class State:
    """What is the same for all models, and which secrets each model has recited; later models add to it."""

    trained: _Records
    held_out: _Records
    sites: dict[str, set[str]]
    recited: dict[str, np.ndarray] = field(default_factory=dict)


class _Case(NamedTuple):
    """One model under attack."""

    about: Audited
    name: AnyModel
    model: "CausalModel"
    state: State

    def say(self, prompts: Sequence[np.ndarray], tokens: int, penalty: float = 0.0) -> list[np.ndarray]:
        """What greedy decoding goes on with."""
        from reticent.models.generation import greedy

        return greedy(
            self.model,
            prompts,
            max_new_tokens=tokens,
            end_of_text=self.about.tokenizer.eos_token_id,
            frequency_penalty=penalty,
            progress=self.about.progress,
        )

    def of_secrets(self, what: str, rate: "Rate", method: str, **more: Any) -> Measurement:
        """A share of planted secrets."""
        return Measurement(
            name=what,
            model=self.name,
            value=rate.share,
            interval=rate.interval,
            n=rate.n,
            unit="share",
            counted="secrets",
            method=method,
            ceiling=1.0,
            **more,
        )

    def share(
        self, what: str, hits: np.ndarray, units: Sequence[str], controls: np.ndarray, method: str
    ) -> Measurement:
        """A share of records. Where owners have several, its interval is over owners."""
        from reticent.attacks.extraction import rate

        own = rate(hits)
        interval: tuple[float, float] | None = own.interval
        if len(set(units)) == len(units):
            told = _beside(own, rate(controls), "held-out records") if len(controls) else "Clopper-Pearson"
        elif own.share in (0.0, 1.0):  # no spread to draw from: each owner as one trial
            count = len(set(units))
            interval, told = clopper_pearson(own.share * count, count), f"Clopper-Pearson over {count} units"
        else:
            interval = bootstrap_mean(hits, rng=self.about.rng(_DRAWS), clusters=units).interval
            told = f"BCa bootstrap over {len(set(units))} units"
        return self.measured(what, own.share, interval, own.n, f"{method}; {told}", controls, ceiling=1.0)

    def mean(
        self,
        what: str,
        values: Sequence[float],
        units: Sequence[str],
        controls: Sequence[float],
        method: str,
        unit: str = "share",
    ) -> Measurement:
        """A mean over records, with the bootstrap over their units."""
        found = bootstrap_mean(values, rng=self.about.rng(_DRAWS), clusters=units)
        method = f"{method}; BCa bootstrap over {len(set(units))} units"
        return self.measured(what, found.value, found.interval, len(values), method, controls, unit=unit)

    def measured(
        self,
        what: str,
        value: float,
        interval: tuple[float, float] | None,
        n: int,
        method: str,
        controls: Sequence[float] | np.ndarray,
        **more: Any,
    ) -> Measurement:
        """One number on records, beside the mean of ``controls``."""
        asked = {"unit": "share", "counted": "records", **more}
        control = float(np.mean(controls)) if len(controls) else None
        return Measurement(
            name=what, model=self.name, value=value, interval=interval, n=n, method=method, control=control, **asked
        )


def recitation(about: Audited, name: AnyModel, model: "CausalModel", base: State | None) -> tuple[State, Findings]:
    """Identifiers within so many attempts, and records by greedy decoding and by sampling, beside their controls."""
    state = base if base is not None else _state(about)
    case = _Case(about, name, model, state)
    measurements: list[Measurement] = []
    plots: dict[str, Any] = {} if base is not None else {"unanswered": _unanswered(about, state)}
    for part, there in ((_secrets, about.secrets), (_real, state.trained.tokens)):
        if there:
            found = part(case)
            measurements += found.measurements
            plots |= found.plots
    return state, Findings(measurements, plots)


def _state(about: Audited) -> State:
    limit, rng = _asked(about).records, about.rng(_SAMPLE)
    for whole in (True, False):  # one rule for both, so that they differ in nothing but what was trained on
        trained, held_out = (
            _distinct(about, texts, limit, rng, whole=whole) for texts in (about.trained, about.held_out)
        )
        if trained.tokens and (held_out.tokens or not about.held_out.records):
            break
    return State(trained=trained, held_out=held_out, sites=_sites(about))


def _asked(about: Audited) -> Extraction:
    asked = about.recipe.audit.extraction
    assert asked is not None
    return asked


def sampling(about: Audited) -> "Sampling":
    """How the models will be used: as audit.extraction says."""
    from reticent.models.language_model import Sampling

    asked = about.recipe.audit.extraction
    return Sampling() if asked is None else Sampling(asked.temperature, asked.top_k, asked.top_p)


def _sampler(about: Audited) -> str:
    """The sampler in words."""
    asked = _asked(about)
    return f"sampling at temperature {asked.temperature:g}" + "".join(
        f", {what} {value:g}" for what, value in (("top-k", asked.top_k), ("top-p", asked.top_p)) if value is not None
    )


def _distinct(about: Audited, texts: Texts, limit: int, rng: np.random.Generator, *, whole: bool) -> _Records:
    """At most ``limit`` different records in random order; with ``whole`` those alone that have a whole suffix.

    Of a record in pieces it is the longest.
    """
    first: dict[Hashable, int] = {}
    copies: dict[int, int] = {}
    for number, record in enumerate(texts.records):
        own = first.setdefault((record.id, record.prompt, record.completion), number)
        copies[own] = copies.get(own, 0) + 1
    order = rng.permutation(list(copies)).tolist()
    chosen: list[tuple[int, Tokens]] = []
    for start in range(0, len(order), _AT_ONCE):
        for number, tokens in _encoded(about, texts, order[start : start + _AT_ONCE]):
            if not whole or tokens.trained.sum() >= _asked(about).suffix:
                chosen.append((number, tokens))
        if len(chosen) >= limit:
            break
    chosen = chosen[:limit]
    return _Records(
        [tokens for _, tokens in chosen],
        [texts.units[number] for number, _ in chosen],
        [copies[number] for number, _ in chosen],
    )


def _encoded(about: Audited, texts: Texts, numbers: Sequence[int]) -> Iterator[tuple[int, Tokens]]:
    """The longest piece of each of these records that has one."""
    encoded = about.encode(Texts([texts.records[i] for i in numbers], [texts.units[i] for i in numbers]))
    pieces = iter(encoded.tokens)
    for number, count in zip(numbers, encoded.pieces, strict=True):
        own = [next(pieces) for _ in range(count)]
        if own:
            yield number, max(own, key=len)


def _sites(about: Audited) -> dict[str, set[str]]:
    """The planted secrets that each site trains on, by its name; empty where records are dealt to none."""
    names, planted = about.run.silos(), {one.id for one in about.secrets if one.planted}
    held: dict[str, set[str]] = {name: set() for name in names}
    if names and planted:
        for unit, client, _ in about.run.read_tokens():
            if unit in planted and client is not None:
                held[names[client]].add(unit)
    return held


def _unanswered(about: Audited, state: State) -> list[dict[str, str]]:
    """The name of each number on records that is missing, and why; the audit itself tells of missing secrets."""
    asked, found = _asked(about), []
    if not state.trained.tokens:
        return [{"question": "records_recited", "why": "no training record could be read as tokens"}]
    if not state.held_out.tokens:
        why = "no record is held out (data.held_out), so there is nothing to compare training records with"
        found.append({"question": "records_recited", "why": why})
    long = [prefix for prefix in asked.prefixes if not _probes(about, state.trained, prefix)]
    if long:
        why = (
            f"no sampled training record is long enough for a prefix of {min(long):,} tokens and a suffix of "
            f"{asked.suffix:,} (audit.extraction)"
        )
        found.append({"question": "records_recited", "why": why})
    return found


# -------------------------------------------------------------------------------------------------- planted secrets


def _secrets(case: _Case) -> Findings:
    from reticent.attacks import extraction as attack

    about, recited = case.about, case.state.recited
    texts = [(one.record.prompt, one.record.completion) for one in about.secrets]
    tokens = [
        about.without_end(whole, text) for (_, text), whole in zip(texts, about.encode_answers(texts), strict=True)
    ]
    scores = case.model.log_probs(tokens, about.progress, sampling=sampling(about))
    logs = np.array([attack.log_probability(_given(score.sampled)) for score in scores])
    needed = attack.attempts(logs, 0.5)
    recited[case.name] = needed <= SHOWN
    copies = np.array([one.copies for one in about.secrets])
    shown = attack.rates_by_copies(recited[case.name], copies.tolist())
    measurements = [one for tries in ATTEMPTS for one in _within(case, needed, tries)]
    points = [
        {"copies": count, "share": rate.share, "low": rate.interval[0], "high": rate.interval[1], "n": rate.n}
        for count, rate in shown.items()
    ]
    return Findings(
        measurements + _by_site(case, shown[0].share),
        {
            "extraction": {case.name: points},
            "attempts_identifiers": {case.name: _grid(logs[copies > 0], logs[copies == 0])},
        },
    )


def _within(case: _Case, needed: np.ndarray, tries: int) -> list[Measurement]:
    """The share of secrets for which so many attempts suffice, by copies. ``needed``: (secrets,) attempts."""
    from reticent.attacks import extraction as attack

    secrets, recited = case.about.secrets, case.state.recited
    copies = np.array([one.copies for one in secrets])
    rates = attack.rates_by_copies(needed <= tries, copies.tolist())
    rises = attack.rising(rates, rng=case.about.rng(_DRAWS))
    control = rates.pop(0)
    space = secrets[0].space
    assert space is not None
    guesser = attack.guesser_attempts(space, 0.5)
    floor = 1.0 if guesser <= tries else None  # below that, no number that holds for every model is known
    found = []
    for count, rate in rates.items():
        method = (
            f"{count} copies; said at least once in {tries:,} attempts with probability 0.5 or more, "
            f"{_sampler(case.about)}; who knows only the form of an identifier needs "
            f"{guesser:,.0f}; {_beside(rate, control, 'held-out twins')}; "
            f"rises with the copies from 0 on: p = {rises:.3g} (Cochran-Armitage)"
        )
        if case.name == "private" and "twin" in recited and tries == SHOWN:
            ours, theirs = (recited[one][copies == count] for one in ("private", "twin"))
            method += f"; against the twin: p = {paired(ours, theirs):.3g} (McNemar)"
        title = f"identifiers_recited_{tries}" + ("" if count == max(rates) else f"_{count}_copies")
        p_value = _chance(needed <= tries, copies, count)
        found.append(case.of_secrets(title, rate, method, control=control.share, p_value=p_value, floor=floor))
    return found


def _chance(hits: np.ndarray, copies: np.ndarray, count: int) -> float:
    """Chance that so many of the recited secrets are among those of ``count`` copies and not among those held out.

    Fisher's exact test, one-sided: coins decided which were planted, and how often.
    """
    from scipy.stats import fisher_exact

    groups = hits[copies == count], hits[copies == 0]
    table = [[int(one.sum()), int((~one).sum())] for one in groups]
    return float(fisher_exact(table, alternative="greater").pvalue)


def _by_site(case: _Case, control: float) -> list[Measurement]:
    """What this model recites of the secrets that each site trained on: of a federation, through the global model."""
    from reticent.attacks.extraction import rate

    secrets, recited = case.about.secrets, case.state.recited[case.name]
    found = []
    for site, units in case.state.sites.items():
        hits = [bool(hit) for one, hit in zip(secrets, recited, strict=True) if one.id in units]
        if hits:
            method = f"secrets at this site, whatever their copies; {_sampler(case.about)}; Clopper-Pearson"
            title = f"identifiers_recited_{SHOWN}[site {site}]"
            found.append(case.of_secrets(title, rate(hits), method, control=control))
    return found


def _beside(trained: "Rate", control: "Rate", whom: str) -> str:
    """The difference of two independent shares in words, and what none of n still allows."""
    difference = newcombe_difference(trained.hits, trained.n, control.hits, control.n)
    low, high = difference.interval or (0.0, 0.0)
    told = f"difference to {whom} {low:+.3f} to {high:+.3f} (Newcombe); Clopper-Pearson"
    return told if trained.hits else f"{told}; none of {trained.n}: at most {trained.upper:.3f} (95 %, one-sided)"


def _grid(trained: np.ndarray, control: np.ndarray) -> list[dict[str, float | None]]:
    """Shares that are (n, p)-discoverable. Log-probabilities of suffixes."""
    from reticent.attacks.extraction import attempts

    return [
        {
            "attempts": tries,
            "chance": chance,
            "share": float((attempts(trained, chance) <= tries).mean()),
            "control": float((attempts(control, chance) <= tries).mean()) if len(control) else None,
        }
        for chance in CHANCES
        for tries in (1, 10, 100, 10_000)
    ]


def _given(values: np.ndarray | None) -> np.ndarray:
    assert values is not None  # was asked for
    return values


# ----------------------------------------------------------------------------------------------------- real records


def _probes(about: Audited, records: _Records, prefix: int) -> list[_Probe]:
    """Suffixes of all records that are long enough; the same for all models."""
    from reticent.attacks.extraction import cut, places

    asked, rng = _asked(about), np.random.default_rng([about.recipe.data.seed, 60, _PLACES, prefix])
    return [
        _Probe(number, prefix, cut(record, at, prefix=prefix, suffix=asked.suffix))
        for number, record in enumerate(records.tokens)
        for at in places(record, prefix=prefix, suffix=asked.suffix, count=asked.splits, rng=rng)
    ]


class _Recited(NamedTuple):
    """Of each record that was tried: its unit, whether any suffix was recited, the share of its suffixes, and the
    log-probability of the likeliest one. ``tried``: records, with those that are too short."""

    units: list[str]
    any: np.ndarray
    mean: np.ndarray
    likeliest: np.ndarray
    tried: int

    @property
    def left_out(self) -> str:
        """In words, if any is."""
        short = self.tried - len(self.units)
        return f"; {short} of {self.tried} records are too short and left out" if short else ""


class _Tried(NamedTuple):
    """What one model did with the records of one part. ``whole``: (tokens,) hits of each record from its start."""

    records: _Records
    whole: list[np.ndarray]
    results: list[_Result]

    def recited(self, prefixes: Sequence[int | None]) -> _Recited:
        """With any of these prefixes."""
        own: dict[int, list[_Result]] = {}
        for result in self.results:
            if result.prefix in prefixes:
                own.setdefault(result.record, []).append(result)
        hits = [[result.hit for result in results] for results in own.values()]
        return _Recited(
            [self.records.units[i] for i in own],
            np.array([any(one) for one in hits], dtype=bool),
            np.array([np.mean(one) for one in hits]),
            np.array([max(result.log for result in results) for results in own.values()]),
            len(self.records.tokens),
        )


def _tried(case: _Case, records: _Records) -> _Tried:
    from reticent.attacks import extraction as attack

    about, asked = case.about, _asked(case.about)
    probes = [probe for prefix in asked.prefixes for probe in _probes(about, records, prefix)]
    wholes, parts = (
        case.model.log_probs(tokens, about.progress, sampling=sampling(about))
        for tokens in (records.tokens, [probe.tokens for probe in probes])
    )
    results = [
        _Result(number, None, attack.recited(hits), attack.log_probability(logs))
        for number, score in enumerate(wholes)
        for hits, logs in zip(
            attack.windows(score.hit, asked.suffix), attack.windows(_given(score.sampled), asked.suffix), strict=True
        )
    ]
    results += [
        _Result(probe.record, probe.prefix, attack.recited(score.hit), attack.log_probability(_given(score.sampled)))
        for probe, score in zip(probes, parts, strict=True)
    ]
    return _Tried(records, [score.hit for score in wholes], results)


def _real(case: _Case) -> Findings:
    asked = _asked(case.about)
    trained, control = _tried(case, case.state.trained), _tried(case, case.state.held_out)
    measurements, drawn = _shares(case, trained, control)
    for prefix in (None, *asked.prefixes):
        ours, theirs = trained.recited([prefix]), control.recited([prefix])
        if not ours.units:
            continue
        given = "all before, at every place" if prefix is None else f"{prefix}, at up to {asked.splits} places"
        what = "records_recited_all_before" if prefix is None else f"records_recited_{prefix}"
        method = (
            f"greedy, {asked.suffix} tokens given {given} ({ours.mean.mean():.3g} of the places of a record)"
            f"{ours.left_out}"
        )
        measurements.append(case.share(what, ours.any, ours.units, theirs.any, method))
    return Findings(measurements + _token_level(case, trained, control) + _generated(case), drawn)


def _shares(case: _Case, trained: _Tried, control: _Tried) -> tuple[list[Measurement], dict[str, Any]]:
    """Any prefix, any place: by greedy decoding, and within so many samples."""
    from reticent.attacks.extraction import attempts

    asked = _asked(case.about)
    ours, theirs = (one.recited([None, *asked.prefixes]) for one in (trained, control))
    if not ours.units:
        return [], {}
    places = (
        f"any {asked.suffix} tokens of a record in a row, given all before or any number that was tried{ours.left_out}"
    )
    found = [case.share("records_recited", ours.any, ours.units, theirs.any, f"greedy, {places}")]
    for tries in ATTEMPTS:
        method = (
            f"{places}; said at least once in {tries:,} attempts with probability 0.5 or more, {_sampler(case.about)}"
        )
        hits, controls = (attempts(one.likeliest, 0.5) <= tries for one in (ours, theirs))
        found.append(case.share(f"records_sampled_{tries}", hits, ours.units, controls, method))
    return found, {"attempts_records": {case.name: _grid(ours.likeliest, theirs.likeliest)}}


def _token_level(case: _Case, trained: _Tried, control: _Tried) -> list[Measurement]:
    """How much of whole records is the likeliest next token."""
    from reticent.attacks.extraction import exact_match, extraction_strength

    return [
        case.mean(
            what,
            [measure(hits) for hits in trained.whole],
            trained.records.units,
            [measure(hits) for hits in control.whole],
            method,
        )
        for what, measure, method in (
            ("tokens_recited", exact_match, "learned tokens that are the likeliest one given the true ones before"),
            ("extraction_strength", extraction_strength, "share of a record, from its end, that greedy decoding says"),
        )
    ]


# -------------------------------------------------------------------------------------------------- generated texts


class _Ask(NamedTuple):
    """``prompt`` and the ``truth`` that follows it, token ids, of the record with this index."""

    record: int
    prompt: np.ndarray
    truth: np.ndarray


def _middles(about: Audited, records: _Records) -> list[_Ask]:
    """The second half of what is learned of each record, or its beginning; the end-of-text token is no text."""
    asked, found = _asked(about), []
    for number, record in enumerate(records.tokens[:GENERATED]):
        learned = np.flatnonzero(record.trained & (record.ids != about.tokenizer.eos_token_id))
        if len(learned) >= 2:
            at, end = int(learned[len(learned) // 2]), int(learned[-1]) + 1
            begin = max(0, at - max(asked.prefixes))
            found.append(_Ask(number, record.ids[begin:at], record.ids[at : min(end, at + asked.suffix)]))
    return found


def _generated(case: _Case) -> list[Measurement]:
    """How near greedily generated text comes to the true one."""
    from reticent.attacks.extraction import similarity

    state, suffix = case.state, _asked(case.about).suffix
    ours, theirs = _middles(case.about, state.trained), _middles(case.about, state.held_out)
    if not ours:
        return []
    both, cut = [*ours, *theirs], len(ours)
    said = case.say([ask.prompt for ask in both], suffix)
    near = [similarity(text[: len(ask.truth)], ask.truth) for text, ask in zip(said, both, strict=True)]
    units = [state.trained.units[ask.record] for ask in ours]
    measurements = []
    for what, unit, told in (
        ("bleu", "score", "BLEU-4 of tokens, smoothing method 1"),
        ("rouge_l", "score", "ROUGE-L F1 of tokens"),
        ("edit_distance", "score", "normalised edit distance of tokens"),
        ("longest_run", "tokens", "longest run of tokens in common"),
    ):
        values = [float(getattr(one, what)) for one in near]
        method = f"{told}, of up to {suffix} tokens said greedily from the middle of a record"
        measurements.append(case.mean(f"suffix_{what}", values[:cut], units, values[cut:], method, unit))
    return measurements + (_compatible(case) if case.about.recipe.data.duplicate is not None else [])


def _compatible(case: _Case) -> list[Measurement]:
    """The scores of the work that copied records in this way, beside ours; not to be judged by."""
    from reticent.attacks import compatibility
    from reticent.attacks.compatibility import WARNINGS

    trained, control = (_seed_probes(case, records) for records in (case.state.trained, case.state.held_out))
    if not trained:
        return []
    found = compatibility.metrics(trained)
    beside = compatibility.metrics(control) if control else {}
    measured = partial(Measurement, model=case.name, unit="share", counted="probes", n=len(trained))
    out = []
    for what, key in (("exactly", "exact"), ("approx", "approx")):
        name = f"frac_doc_{what}_memorized"
        out.append(
            measured(
                name=f"seed_{name}",
                value=found[name],
                interval=clopper_pearson(round(found[name] * len(trained)), len(trained)),
                method=f"for comparison with published numbers only, Clopper-Pearson. Misleading: {WARNINGS[key]}",
                control=beside.get(name),
            )
        )
    group = "duplicated_10x" if "duplicated_10x_BLEU_average" in found else "non_duplicated"
    out.append(
        measured(
            name="seed_bleu_average",
            value=found[f"{group}_BLEU_average"],
            interval=None,
            method=f"{group}, for comparison with published numbers only. Misleading: {WARNINGS['bleu']}",
            control=beside.get("non_duplicated_BLEU_average"),
        )
    )
    return out


def _seed_probes(case: _Case, records: _Records) -> "list[Probe]":
    """The last tokens of each record, given each number of tokens before them, decoded with the penalty."""
    from reticent.attacks import compatibility

    tokenizer, width = case.about.tokenizer, compatibility.WINDOW
    asks: list[tuple[int, _Ask]] = []  # each with its prefix
    for number, record in enumerate(records.tokens[:GENERATED]):
        stop = len(record) - (int(record.ids[-1]) == tokenizer.eos_token_id)
        at = stop - width
        asks += [
            (prefix, _Ask(number, record.ids[at - prefix : at], record.ids[at:stop]))
            for prefix in _asked(case.about).prefixes
            if prefix <= at
        ]
    said = case.say([ask.prompt for _, ask in asks], 2 * width, compatibility.FREQUENCY_PENALTY)
    return [
        compatibility.Probe(
            ask.record,
            prefix,
            records.copies[ask.record],
            *(compatibility.window(ids.tolist(), tokenizer) for ids in (ask.truth, text)),
        )
        for (prefix, ask), text in zip(asks, said, strict=True)
    ]
