"""Whether the models recite: planted identifiers, and real records."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reticent.data.canary import Canary
from reticent.measurement import Measurement
from reticent.recipe import Extraction
from reticent.stages.attacking import Audited, Findings, Texts
from reticent.stages.inputs import AnyModel
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


def recitation(about: Audited, name: AnyModel, model: "CausalModel", base: State | None) -> tuple[State, Findings]:
    """Identifiers within so many attempts, and records by greedy decoding and by sampling, beside their controls."""
    state = base if base is not None else _state(about)
    measurements: list[Measurement] = []
    plots: dict[str, Any] = {} if base is not None else {"unanswered": _unanswered(about, state)}
    if about.secrets:
        found = _secrets(about, name, model, state)
        measurements += found.measurements
        plots |= found.plots
    if state.trained.tokens:
        found = _real(about, name, model, state)
        measurements += found.measurements
        plots |= found.plots
    return state, Findings(measurements, plots)


def _state(about: Audited) -> State:
    limit, rng = _asked(about).records, about.rng(_SAMPLE)
    return State(
        trained=_distinct(about, about.trained, limit, rng),
        held_out=_distinct(about, about.held_out, limit, rng),
        sites=_sites(about),
    )


def _asked(about: Audited) -> Extraction:
    asked = about.recipe.audit.extraction
    assert asked is not None
    return asked


def _sampling(about: Audited) -> "Sampling":
    from reticent.models.language_model import Sampling

    asked = _asked(about)
    return Sampling(asked.temperature, asked.top_k, asked.top_p)


def _sampler(about: Audited) -> str:
    """The sampler in words."""
    asked = _asked(about)
    return f"sampling at temperature {asked.temperature:g}" + "".join(
        f", {what} {value:g}" for what, value in (("top-k", asked.top_k), ("top-p", asked.top_p)) if value is not None
    )


def _distinct(about: Audited, texts: Texts, limit: int, rng: np.random.Generator) -> _Records:
    """At most ``limit`` different records in random order: those with a whole suffix first, then shorter ones.

    Of a record in pieces it is the longest.
    """
    first: dict[Hashable, int] = {}
    copies: dict[int, int] = {}
    for number, record in enumerate(texts.records):
        own = first.setdefault((record.id, record.prompt, record.completion), number)
        copies[own] = copies.get(own, 0) + 1
    order = rng.permutation(list(copies)).tolist()
    whole: list[tuple[int, Tokens]] = []
    short: list[tuple[int, Tokens]] = []
    for start in range(0, len(order), _AT_ONCE):
        for number, tokens in _encoded(about, texts, order[start : start + _AT_ONCE]):
            (whole if tokens.trained.sum() >= _asked(about).suffix else short).append((number, tokens))
        if len(whole) >= limit:
            break
    chosen = [*whole, *short][:limit]
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
    """The name of each number that is missing, and why."""
    asked, found = _asked(about), []
    if not about.secrets:
        why = "fewer than two secrets were planted, or fewer than two held out (data.canaries.pairs)"
        found.append({"question": f"identifiers_recited_{SHOWN}", "why": why})
    if not state.trained.tokens:
        return [*found, {"question": "records_recited", "why": "no training record could be read as tokens"}]
    if not state.held_out.tokens:
        why = "no record is held out (data.held_out), so there is nothing to compare training records with"
        found.append({"question": "records_recited", "why": why})
    long = [f"{prefix:,}" for prefix in asked.prefixes if not _probes(about, state.trained, prefix)]
    if long:
        why = f"no sampled training record has {' or '.join(long)} tokens and {asked.suffix} learned ones behind them"
        found.append({"question": "records_recited", "why": why})
    return found


# -------------------------------------------------------------------------------------------------- planted secrets


def _secret(about: Audited, one: Canary) -> Tokens:
    """The identifier alone, given the prompt as it was trained: without what ends the text."""
    whole = about.encode_answer(one.record.prompt, one.record.completion)
    end = int(np.argmax(whole.trained)) + len(about.tokenizer.encode(one.record.completion, add_special_tokens=False))
    return Tokens(whole.ids[:end], whole.trained[:end])


def _secrets(about: Audited, name: AnyModel, model: "CausalModel", state: State) -> Findings:
    from reticent.attacks import extraction as attack

    secrets, copies = about.secrets, [one.copies for one in about.secrets]
    scores = model.log_probs([_secret(about, one) for one in secrets], about.progress, sampling=_sampling(about))
    logs = np.array([attack.log_probability(_given(score.sampled)) for score in scores])
    needed = attack.attempts(logs, 0.5)
    state.recited[name] = needed <= SHOWN
    measurements = [one for tries in ATTEMPTS for one in _within(about, name, state, needed, tries)]
    shown = attack.rates_by_copies(state.recited[name], copies)
    measurements += _by_site(about, name, state, shown[0].share)
    points = [
        {"copies": count, "share": rate.share, "low": rate.interval[0], "high": rate.interval[1], "n": rate.n}
        for count, rate in shown.items()
    ]
    planted = np.array(copies) > 0
    return Findings(
        measurements,
        {"extraction": {name: points}, "attempts_identifiers": {name: _grid(logs[planted], logs[~planted])}},
    )


def _within(about: Audited, name: AnyModel, state: State, needed: np.ndarray, tries: int) -> list[Measurement]:
    """The share of secrets for which so many attempts suffice, by copies. ``needed``: (secrets,) attempts."""
    from reticent.attacks import extraction as attack

    copies = np.array([one.copies for one in about.secrets])
    rates = attack.rates_by_copies(needed <= tries, copies.tolist())
    rises = attack.rising(rates, rng=about.rng(_DRAWS))
    control = rates.pop(0)
    space = about.secrets[0].space
    assert space is not None
    found = []
    for count, rate in rates.items():
        method = (
            f"{count} copies; said at least once in {tries:,} attempts with probability 0.5 or more, "
            f"{_sampler(about)}; who knows only the form of an identifier needs "
            f"{attack.guesser_attempts(space, 0.5):,.0f}; {_beside(rate, control, 'held-out twins')}; "
            f"rises with the copies from 0 on: p = {rises:.3g} (Cochran-Armitage)"
        )
        if name == "private" and "twin" in state.recited and tries == SHOWN:
            ours, theirs = (state.recited[one][copies == count] for one in ("private", "twin"))
            method += f"; against the twin: p = {attack.paired(ours, theirs):.3g} (McNemar)"
        found.append(
            Measurement(
                name=f"identifiers_recited_{tries}" + ("" if count == max(rates) else f"_{count}_copies"),
                model=name,
                value=rate.share,
                interval=rate.interval,
                n=rate.n,
                unit="share",
                counted="secrets",
                method=method,
                ceiling=1.0,
                control=control.share,
                p_value=_coin_p_value(about.secrets, needed <= tries, count),
            )
        )
    return found


def _coin_p_value(secrets: Sequence[Canary], hits: np.ndarray, copies: int) -> float | None:
    """Whether of a pair the planted one is recited more often than chance: its coin decided which one it is."""
    from reticent.attacks.extraction import paired

    by_pair: dict[int | None, dict[bool, bool]] = {}
    for one, hit in zip(secrets, hits, strict=True):
        by_pair.setdefault(one.pair, {})[one.planted] = bool(hit)
    chosen = {one.pair for one in secrets if one.copies == copies}
    both = [pair for number, pair in by_pair.items() if number in chosen and len(pair) == 2]
    return paired([pair[True] for pair in both], [pair[False] for pair in both]) if both else None


def _by_site(about: Audited, name: AnyModel, state: State, control: float) -> list[Measurement]:
    """What this model recites of the secrets that each site trained on: of a federation, through the global model."""
    from reticent.attacks.extraction import rate

    found = []
    for site, units in state.sites.items():
        hits = [bool(hit) for one, hit in zip(about.secrets, state.recited[name], strict=True) if one.id in units]
        if hits:
            own = rate(hits)
            found.append(
                Measurement(
                    name=f"identifiers_recited_{SHOWN}[site {site}]",
                    model=name,
                    value=own.share,
                    interval=own.interval,
                    n=own.n,
                    unit="share",
                    counted="secrets",
                    method=f"secrets at this site, whatever their copies; {_sampler(about)}; Clopper-Pearson",
                    ceiling=1.0,
                    control=control,
                )
            )
    return found


def _beside(trained: "Rate", control: "Rate", whom: str) -> str:
    """The difference of two independent shares in words, and what none of n still allows."""
    from reticent.attacks.extraction import above_control

    low, high = above_control(trained, control).interval or (0.0, 0.0)
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
    """Of each record that was tried: its index, whether any suffix was recited, the share of its suffixes, and the
    log-probability of the likeliest one."""

    records: list[int]
    any: np.ndarray
    mean: np.ndarray
    likeliest: np.ndarray


class _Tried(NamedTuple):
    """What one model did with the records of one part. ``whole``: (tokens,) hits of each record from its start."""

    records: _Records
    whole: list[np.ndarray]
    results: list[_Result]

    def recited(self, prefixes: Sequence[int | None]) -> _Recited:
        """With any of these prefixes."""
        from reticent.attacks.extraction import over_splits

        own: dict[int, list[_Result]] = {}
        for result in self.results:
            if result.prefix in prefixes:
                own.setdefault(result.record, []).append(result)
        splits = [over_splits([result.hit for result in results]) for results in own.values()]
        return _Recited(
            list(own),
            np.array([split.any for split in splits], dtype=bool),
            np.array([split.mean for split in splits]),
            np.array([max(result.log for result in results) for results in own.values()]),
        )

    def units(self, found: _Recited) -> list[str]:
        """The unit of each record found."""
        return [self.records.units[i] for i in found.records]


def _tried(about: Audited, model: "CausalModel", records: _Records) -> _Tried:
    from reticent.attacks import extraction as attack

    asked, sampling = _asked(about), _sampling(about)
    wholes = model.log_probs(records.tokens, about.progress, sampling=sampling)
    probes = [probe for prefix in asked.prefixes for probe in _probes(about, records, prefix)]
    scores = model.log_probs([probe.tokens for probe in probes], about.progress, sampling=sampling)
    results = [
        _Result(number, None, attack.recited(hits), attack.log_probability(logs))
        for number, score in enumerate(wholes)
        for hits, logs in zip(
            attack.windows(score.hit, asked.suffix), attack.windows(_given(score.sampled), asked.suffix), strict=True
        )
    ]
    results += [
        _Result(probe.record, probe.prefix, attack.recited(score.hit), attack.log_probability(_given(score.sampled)))
        for probe, score in zip(probes, scores, strict=True)
    ]
    return _Tried(records, [score.hit for score in wholes], results)


def _real(about: Audited, name: AnyModel, model: "CausalModel", state: State) -> Findings:
    asked = _asked(about)
    trained, control = _tried(about, model, state.trained), _tried(about, model, state.held_out)
    measurements, drawn = _shares(about, name, trained, control)
    for prefix in (None, *asked.prefixes):
        ours, theirs = trained.recited([prefix]), control.recited([prefix])
        if not ours.records:
            continue
        given = "all before, at every place" if prefix is None else f"{prefix}, at up to {asked.splits} places"
        what = "records_recited_all_before" if prefix is None else f"records_recited_{prefix}"
        method = (
            f"greedy, {asked.suffix} tokens given {given} ({ours.mean.mean():.3g} of the places of a record)"
            f"{_left_out(trained, ours)}"
        )
        measurements.append(_share(about, name, what, ours.any, trained.units(ours), theirs.any, method))
    measurements += _token_level(about, name, trained, control) + _generated(about, name, model, state)
    return Findings(measurements, drawn)


def _left_out(trained: _Tried, found: _Recited) -> str:
    short = len(trained.records.tokens) - len(found.records)
    return f"; {short} of {len(trained.records.tokens)} records are too short and left out" if short else ""


def _shares(
    about: Audited, name: AnyModel, trained: _Tried, control: _Tried
) -> tuple[list[Measurement], dict[str, Any]]:
    """Any prefix, any place: by greedy decoding, and within so many samples."""
    from reticent.attacks.extraction import attempts

    asked = _asked(about)
    ours, theirs = (one.recited([None, *asked.prefixes]) for one in (trained, control))
    if not ours.records:
        return [], {}
    units = trained.units(ours)
    places = (
        f"any {asked.suffix} tokens of a record in a row, given all before or any number that was tried"
        f"{_left_out(trained, ours)}"
    )
    found = [_share(about, name, "records_recited", ours.any, units, theirs.any, f"greedy, {places}")]
    for tries in ATTEMPTS:
        method = f"{places}; said at least once in {tries:,} attempts with probability 0.5 or more, {_sampler(about)}"
        hits, controls = (attempts(one.likeliest, 0.5) <= tries for one in (ours, theirs))
        found.append(_share(about, name, f"records_sampled_{tries}", hits, units, controls, method))
    return found, {"attempts_records": {name: _grid(ours.likeliest, theirs.likeliest)}}


def _share(
    about: Audited,
    name: AnyModel,
    what: str,
    hits: np.ndarray,
    units: Sequence[str],
    controls: np.ndarray,
    method: str,
) -> Measurement:
    """A share of records. Where owners have several, its interval is over owners."""
    from reticent.attacks.extraction import rate
    from reticent.statistics import bootstrap_mean, clopper_pearson

    own = rate(hits)
    interval: tuple[float, float] | None = own.interval
    if len(set(units)) == len(units):
        told = _beside(own, rate(controls), "held-out records") if len(controls) else "Clopper-Pearson"
    elif own.share in (0.0, 1.0):  # no spread to draw from: each owner as one trial
        count = len(set(units))
        interval, told = clopper_pearson(own.share * count, count), f"Clopper-Pearson over {count} units"
    else:
        interval = bootstrap_mean(hits, rng=about.rng(_DRAWS), clusters=units).interval
        told = f"BCa bootstrap over {len(set(units))} units"
    return Measurement(
        name=what,
        model=name,
        value=own.share,
        interval=interval,
        n=own.n,
        unit="share",
        counted="records",
        method=f"{method}; {told}",
        ceiling=1.0,
        control=float(controls.mean()) if len(controls) else None,
    )


def _mean(
    about: Audited,
    name: AnyModel,
    what: str,
    values: Sequence[float],
    units: Sequence[str],
    controls: Sequence[float],
    *,
    unit: str,
    method: str,
) -> Measurement:
    """A mean over records, with the bootstrap over their units."""
    from reticent.statistics import bootstrap_mean

    found = bootstrap_mean(values, rng=about.rng(_DRAWS), clusters=units)
    return Measurement(
        name=what,
        model=name,
        value=found.value,
        interval=found.interval,
        n=len(values),
        unit=unit,
        counted="records",
        method=f"{method}; BCa bootstrap over {len(set(units))} units",
        control=float(np.mean(controls)) if len(controls) else None,
    )


def _token_level(about: Audited, name: AnyModel, trained: _Tried, control: _Tried) -> list[Measurement]:
    """How much of whole records is the likeliest next token."""
    from reticent.attacks.extraction import exact_match, extraction_strength

    return [
        _mean(
            about,
            name,
            what,
            [measure(hits) for hits in trained.whole],
            trained.records.units,
            [measure(hits) for hits in control.whole],
            unit="share",
            method=method,
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


def _generated(about: Audited, name: AnyModel, model: "CausalModel", state: State) -> list[Measurement]:
    """How near greedily generated text comes to the true one."""
    from reticent.attacks.extraction import similarity
    from reticent.models.generation import greedy

    ours, theirs = _middles(about, state.trained), _middles(about, state.held_out)
    said = greedy(
        model,
        [ask.prompt for ask in [*ours, *theirs]],
        max_new_tokens=_asked(about).suffix,
        end_of_text=about.tokenizer.eos_token_id,
        progress=about.progress,
    )
    near = [similarity(text[: len(ask.truth)], ask.truth) for text, ask in zip(said, [*ours, *theirs], strict=True)]
    units = [state.trained.units[ask.record] for ask in ours]
    if not ours:
        return []
    return [
        _mean(
            about,
            name,
            f"suffix_{what}",
            [float(getattr(one, what)) for one in near[: len(ours)]],
            units,
            [float(getattr(one, what)) for one in near[len(ours) :]],
            unit=unit,
            method=f"{told}, of up to {_asked(about).suffix} tokens said greedily from the middle of a record",
        )
        for what, unit, told in (
            ("bleu", "score", "BLEU-4 of tokens, smoothing method 1"),
            ("rouge_l", "score", "ROUGE-L F1 of tokens"),
            ("edit_distance", "score", "normalised edit distance of tokens"),
            ("longest_run", "tokens", "longest run of tokens in common"),
        )
    ] + (_compatible(about, name, model, state) if about.recipe.data.duplicate is not None else [])


def _compatible(about: Audited, name: AnyModel, model: "CausalModel", state: State) -> list[Measurement]:
    """The scores of the work that copied records in this way, beside ours; not to be judged by."""
    from reticent.attacks import compatibility
    from reticent.attacks.compatibility import WARNINGS
    from reticent.statistics import clopper_pearson

    trained, control = (_seed_probes(about, model, records) for records in (state.trained, state.held_out))
    if not trained:
        return []
    found = compatibility.metrics(trained)
    beside = compatibility.metrics(control) if control else {}
    measured = partial(Measurement, model=name, unit="share", counted="probes", n=len(trained))
    names = {"exactly": "exact", "approx": "approx"}
    out = [
        measured(
            name=f"seed_frac_doc_{what}_memorized",
            value=found[f"frac_doc_{what}_memorized"],
            interval=clopper_pearson(round(found[f"frac_doc_{what}_memorized"] * len(trained)), len(trained)),
            method=f"for comparison with published numbers only, Clopper-Pearson. Misleading: {WARNINGS[key]}",
            control=beside.get(f"frac_doc_{what}_memorized"),
        )
        for what, key in names.items()
    ]
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


def _seed_probes(about: Audited, model: "CausalModel", records: _Records) -> "list[Probe]":
    """The last tokens of each record, given each number of tokens before them, decoded with the penalty."""
    from reticent.attacks import compatibility
    from reticent.models.generation import greedy

    asked, end = _asked(about), about.tokenizer.eos_token_id
    cuts = []
    for number, record in enumerate(records.tokens[:GENERATED]):
        stop = len(record) - (int(record.ids[-1]) == end)
        at = stop - compatibility.WINDOW
        cuts += [
            (number, prefix, record.ids[at - prefix : at], record.ids[at:stop])
            for prefix in asked.prefixes
            if prefix <= at
        ]
    said = greedy(
        model,
        [prompt for _, _, prompt, _ in cuts],
        max_new_tokens=2 * compatibility.WINDOW,
        end_of_text=end,
        frequency_penalty=compatibility.FREQUENCY_PENALTY,
        progress=about.progress,
    )
    return [
        compatibility.Probe(
            number,
            prefix,
            records.copies[number],
            compatibility.window(truth.tolist(), about.tokenizer),
            compatibility.window(text.tolist(), about.tokenizer),
        )
        for (number, prefix, _, truth), text in zip(cuts, said, strict=True)
    ]
