"""Sites that fail, lie or hang, and processes that are killed: the round goes on, or the next process does."""

import json
from itertools import pairwise

import pytest
import torch

from reticent.errors import FederationError
from reticent.federation import client_privacy, messages, server
from reticent.federation.channel import Failure
from reticent.federation.guarantee import guarantee
from reticent.privacy import ledger as ledgers
from reticent.privacy import noise
from reticent.training import checkpoint, loop

WHOLE = {"noise_multiplier": 1, "delta": 1e-2, "few_clients": True}
DPSGD = {"kind": "dp-sgd", "noise_multiplier": 1, "delta": 1e-3}


def close(found, expected, atol=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=atol, rtol=1e-5)


def changed(change):
    """A site whose updates are changed on their way."""

    def fault(kind, request, answer):
        told = messages.unpack(answer(request))
        return answer(request) if told.kind != "update" else change(told)

    return fault


def arrays(change):
    def repacked(told):
        return messages.pack(told.kind, told.fields, change(dict(told.arrays)))

    return changed(repacked)


def fields(**changes):
    return changed(lambda told: messages.pack(told.kind, {**told.fields, **changes}, told.arrays))


def raises(kind, request, answer):
    if kind == "train":
        raise RuntimeError("out of memory while reading: Anna Bauer, born 1951")
    return answer(request)


def on_train(answered):
    def fault(kind, request, answer):
        return answered if kind == "train" else answer(request)

    return fault


def _with_nan(found):
    name = next(iter(found))
    return {**found, name: torch.full_like(found[name], torch.nan)}


def _turned(found):
    name = next(iter(found))
    return {**found, name: found[name].T.contiguous()}


def _renamed(found):
    name, *others = found
    return {"u/other": found[name], **{other: found[other] for other in others}}


FAULTS = {
    "raises": (raises, "RuntimeError"),
    "hangs": (on_train(Failure("no answer within 3600 s")), "no answer within 3600 s"),
    "nan": (arrays(_with_nan), "not finite"),
    "shapes": (arrays(_turned), "float32"),
    "names": (arrays(_renamed), "no array"),
    "missing": (arrays(lambda found: dict(list(found.items())[1:])), "no array"),
    "one-more": (arrays(lambda found: {**found, "u/more": torch.zeros(3)}), "unknown arrays"),
    "type": (arrays(lambda found: {name: value.long() for name, value in found.items()}), "float32"),
    "huge": (arrays(lambda found: {name: value * 1e9 for name, value in found.items()}), "federation.max_norm 1000"),
    "infinite-norm": (arrays(lambda found: {n: torch.full_like(v, 3e38) for n, v in found.items()}), "max_norm"),
    "control": (arrays(lambda found: {**found, "c/x": torch.zeros(3)}), "control"),
    "another-round": (fields(round=[2, 1]), "another round"),
    "another-attempt": (fields(round=[1, 2]), "another round"),
    "another-site": (fields(site="site-1"), "'update'"),
    "another-kind": (changed(lambda told: messages.pack("site", told.fields, {})), "'site' where its 'update' is due"),
    "garbage": (on_train(b"\x00" * 900), "no message of reticent"),
    "nothing": (on_train(b""), "cut short"),
    "too-many-bytes": (on_train(bytes(2**21)), "bytes, the most is"),
    "longer": (changed(lambda told: messages.pack(told.kind, told.fields, told.arrays) * 10), "bytes"),
    "says-controls": (on_train(messages.pack("refused", {"reason": "a\x1b[2Jb\nc"}, {})), "a [2Jb c"),
    "refuses": (on_train(messages.pack("refused", {"reason": "closed on Sundays"}, {})), "closed on Sundays"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_site_that_fails_is_left_out_and_the_round_counts(world, name):
    fault, why = FAULTS[name]
    trial = world(rounds=1)
    trial.wire.faults["site-2"] = fault
    joint = trial.train()
    (line,) = trial.log
    assert (line["asked"], line["answered"]) == (3, 2)
    assert list(line["left_out"]) == ["site-2"]
    assert why in line["left_out"]["site-2"]
    assert any("site-2 is left out" in said for said in trial.said.lines)
    kept = {s: messages.split(told.arrays)["u"] for s, told in trial.wire.answers("update") if s != "site-2"}
    for tensor, begun in trial.start.weights.items():
        mean = (6 * kept["site-1"][tensor] + 10 * kept["site-3"][tensor]) / 16
        torch.testing.assert_close(joint.weights[tensor], begun + mean, atol=1e-6, rtol=1e-5)


def test_the_text_of_an_exception_of_a_site_goes_nowhere(world):
    trial = world(2, rounds=1)
    trial.wire.faults = dict.fromkeys(trial.units, raises)
    with pytest.raises(FederationError) as caught:
        trial.train()
    told = [str(caught.value), *trial.said.lines, trial.files.log.read_text()]
    assert not [text for text in told if "Anna" in text]
    assert caught.value.__cause__ is None


def test_a_site_whose_control_is_huge_is_left_out(world):
    trial = world(rounds=1, algorithm="scaffold")
    trial.wire.faults["site-2"] = arrays(lambda found: {n: v * 1e30 if n[0] == "c" else v for n, v in found.items()})
    trial.train()
    assert "site-2" in trial.log[0]["left_out"]


@pytest.mark.parametrize("array", ["keys", "masked", "signature", "shares"])
@pytest.mark.parametrize(
    "value", [torch.ones(5, dtype=torch.bfloat16), torch.ones((2, 3), dtype=torch.int8), torch.ones(())]
)
def test_a_site_that_spoils_a_secure_sum_is_left_out(world, array, value):
    trial = world(4, rounds=1, secure_sum=True)

    def spoil(kind, request, answer):
        told = messages.unpack(answer(request))
        return messages.pack(told.kind, told.fields, {array: value}) if array in told.arrays else answer(request)

    trial.wire.faults["site-2"] = spoil
    trial.train()
    assert list(trial.log[0]["left_out"]) == ["site-2"]


@pytest.mark.parametrize(
    "spoilt",
    [
        {},
        {"units": 0},
        {"units": -5},
        {"units": "many"},
        {"units": 1e300},
        {"terms": 3},
        {"epsilon": "low"},
    ],
)
def test_a_site_that_says_nonsense_about_itself_is_not_met(world, spoilt):
    trial = world(rounds=1)

    def nonsense(kind, request, answer):
        told = messages.unpack(answer(request))
        if told.kind == "site":
            return messages.pack("site", {**told.fields, **spoilt} if spoilt else {"site": "site-2"}, {})
        return answer(request)

    trial.wire.faults["site-2"] = nonsense
    joint = trial.train()
    assert trial.log[0]["left_out"] == {"site-2": "it has not said what it is"}
    assert "site site-2 is not there: what it says about itself is malformed" in trial.said.lines
    assert list(joint.sites) == ["site-1", "site-3"]


@pytest.mark.parametrize("told", [{}, {"guarantee": 3}, {"guarantee": {"epsilon": "low"}}])
def test_a_site_that_says_nonsense_at_the_end_spent_what_nobody_knows(world, told):
    trial = world(2, rounds=1, sections={"privacy": DPSGD})
    trial.wire.faults["site-2"] = lambda kind, request, answer: (
        messages.pack("done", {"site": "site-2", **told}, {}) if kind == "finish" else answer(request)
    )
    joint = trial.train()
    assert joint.sites["site-2"]["guarantee"] is None
    assert joint.sites["site-1"]["guarantee"]["steps"] == 4


def test_a_site_that_never_came_has_no_part_in_the_guarantee(world):
    trial = world(rounds=1, sections={"privacy": DPSGD})
    trial.wire.faults["site-2"] = lambda *_: Failure("gone")
    joint = trial.train()
    found = guarantee(trial.recipe, joint.sites, None)
    assert [row["site"] for row in found["sites"]] == ["site-1", "site-3"]


def test_a_site_that_left_has_spent_its_promise_also_after_a_restart(world, killed):
    trial = world(sections={"privacy": DPSGD})

    def die(kind, request, answer):
        if kind == "train" and messages.unpack(request).fields["round"][0] == 2:
            raise killed
        return answer(request)

    trial.wire.faults["site-1"] = die
    with pytest.raises(killed):
        trial.train()
    trial.wire.faults = {"site-2": lambda *_: Failure("gone")}
    found = guarantee(trial.recipe, trial.train().sites, None)
    row = next(row for row in found["sites"] if row["site"] == "site-2")
    assert (row["epsilon"], row["known"]) == (4.0, False)


@pytest.mark.parametrize("secure", [False, True])
def test_a_site_that_comes_late_takes_part(world, secure):
    trial = world(4, secure_sum=secure)

    def late(kind, request, answer):
        return answer(request) if trial.log else Failure("gone")

    trial.wire.faults["site-2"] = late
    joint = trial.train()
    assert [line["answered"] for line in trial.log] == [3, 4]
    kept = {site: one._state["made"]["arrays"] for site, one in trial.sites.items()}
    begun = messages.split(next(m for _, m, _ in reversed(trial.wire.seen) if m.kind in ("train", "masked")).arrays)[
        "w"
    ]
    counts = {site: len(units) for site, units in trial.units.items()}
    for name, value in begun.items():
        mean = sum(counts[site] * update[name] for site, update in kept.items()) / sum(counts.values())
        torch.testing.assert_close(joint.weights[name], value + mean, atol=1e-6, rtol=1e-4)


def test_a_site_that_comes_late_and_differs_is_left_out(world):
    trial = world(3)

    def late(kind, request, answer):
        if not trial.log:
            return Failure("gone")
        if kind != "hello":
            return answer(request)
        told = messages.unpack(answer(request))
        fields = {**told.fields, "terms": {**told.fields["terms"], "recipe": "another"}}
        return messages.pack(told.kind, fields, {})

    trial.wire.faults["site-2"] = late
    trial.train()
    assert [line["answered"] for line in trial.log] == [2, 2]
    assert any("site-2 cannot take part: it differs in recipe (another" in line for line in trial.said.lines)


def test_without_any_site_nothing_begins(world):
    trial = world(2)
    trial.wire.faults = dict.fromkeys(trial.units, lambda *_: Failure("gone"))
    with pytest.raises(FederationError, match=r"none of the sites answers \(site-1, site-2\); start them"):
        trial.train()


def test_below_the_quorum_a_round_is_tried_again_and_then_resumed(world, steps):
    trial = world(rounds=2, quorum=3, attempts=2)

    def second_round(kind, request, answer):
        gone = kind == "train" and messages.unpack(request).fields["round"][0] == 2
        return Failure("gone") if gone else answer(request)

    trial.wire.faults["site-2"] = second_round
    with pytest.raises(FederationError, match="round 2 had 2 of 3 sites, too few, in 2 attempts; .*it goes on here"):
        trial.train()
    assert [(line["round"], line["attempt"]) for line in trial.log] == [(1, 1), (2, 1), (2, 2)]
    trial.wire.faults.clear()
    found = trial.train().weights
    assert [(line["round"], line["answered"]) for line in trial.log] == [(1, 3), (2, 3)]
    assert len(steps) == 3 * 4  # nothing was made twice
    close(found, world(rounds=2).train().weights, atol=0)


def test_bytes_of_attempts_that_failed_are_counted(world):
    trial = world(rounds=1, quorum=3, attempts=2)
    trial.wire.faults["site-2"] = on_train(Failure("gone"))
    with pytest.raises(FederationError):
        trial.train()
    trial.wire.faults.clear()
    trial.train()
    trains = [size for (_, m, _), size in zip(trial.wire.seen, trial.wire.bytes, strict=True) if m.kind == "train"]
    assert len(trains) == 9
    assert (trial.log[0]["down"], trial.log[0]["up"]) == (sum(one[1] for one in trains), sum(one[2] for one in trains))


# Killed processes.


class Kill:
    """Ends the process once, when it gets to a place."""

    def __init__(self, monkeypatch, killed):
        self._patch, self._killed = monkeypatch, killed

    def at(self, module, name, time=1, *, when=lambda *arguments: True, after=False):
        real, seen = getattr(module, name), []

        def stop(*arguments, **options):
            if when(*arguments):
                seen.append(1)
            made = real(*arguments, **options) if after or len(seen) != time else None
            if len(seen) == time and when(*arguments):
                seen.append(1)
                raise self._killed
            return made

        self._patch.setattr(module, name, stop)


@pytest.fixture
def kill(monkeypatch, killed):
    return Kill(monkeypatch, killed)


def _coordinators(folder, values):
    return folder.name == "rounds"


def _strategy(name):
    return type(server.strategy_for(name))


POINTS = {
    "before-saving-round-1": lambda kill: kill.at(checkpoint, "write", 1, when=_coordinators),
    "after-saving-round-1": lambda kill: kill.at(checkpoint, "write", 1, when=_coordinators, after=True),
    "before-saving-round-2": lambda kill: kill.at(checkpoint, "write", 2, when=_coordinators),
    "after-saving-round-2": lambda kill: kill.at(checkpoint, "write", 2, when=_coordinators, after=True),
    "moving-in-round-1": lambda kill: kill.at(server.Coordinator, "_move", 1),
    "moved-in-round-2": lambda kill: kill.at(server.Coordinator, "_move", 2, after=True),
    "an-answer-in-round-1": lambda kill: kill.at(server.Coordinator, "_update", 2),
    "an-answer-in-round-2": lambda kill: kill.at(server.Coordinator, "_update", 5, after=True),
}


@pytest.mark.parametrize(
    ("algorithm", "point"),
    [
        *(("fedavg", point) for point in POINTS),
        ("scaffold", "moved-in-round-2"),
        ("scaffold", "after-saving-round-1"),
        ("fedadam", "before-saving-round-2"),
    ],
)
def test_a_killed_coordinator_comes_to_the_same_end(world, kill, killed, steps, monkeypatch, algorithm, point):
    asked_for = {"algorithm": algorithm, "compress": "int8" if algorithm == "fedavg" else "none"}
    expected = world(**asked_for).train().weights
    steps.clear()
    trial = world(**asked_for)
    with monkeypatch.context() as patch:
        kill._patch = patch
        POINTS[point](kill)
        with pytest.raises(killed):
            trial.train()
    trial.restart()
    close(trial.train().weights, expected, atol=0)
    assert len(steps) == 3 * 4
    assert [line["round"] for line in trial.log] == [1, 2]


@pytest.mark.parametrize(
    ("point", "noisy", "logged"),
    [
        (lambda kill: kill.at(ledgers.Ledger, "record", 1), False, [1, 2]),  # nothing was released: it is made again
        (lambda kill: kill.at(ledgers.Ledger, "record", 1, after=True), False, [2]),
        (lambda kill: kill.at(ledgers.Ledger, "record", 1), True, [2]),
        (lambda kill: kill.at(ledgers.Ledger, "record", 1, after=True), True, [2]),
        (lambda kill: kill.at(server.Coordinator, "_move", 1), False, [2]),
        (lambda kill: kill.at(server.Coordinator, "_move", 1), True, [2]),
        (lambda kill: kill.at(checkpoint, "write", 1, when=_coordinators), False, [1, 2]),
        (lambda kill: kill.at(checkpoint, "write", 2, when=_coordinators), True, [1, 2]),
        (lambda kill: kill.at(checkpoint, "write", 1, when=_coordinators, after=True), True, [2]),
        (lambda kill: kill.at(checkpoint, "write", 2, when=_coordinators, after=True), True, [1, 2]),
    ],
)
def test_a_release_is_never_lost_and_never_there_twice(world, kill, killed, monkeypatch, point, noisy, logged):
    promise = {**WHOLE, "noise": "distributed" if noisy else "server"}
    trial = world(weights="equal", privacy=promise, secure_sum=noisy)
    with monkeypatch.context() as patch:
        kill._patch = patch
        point(kill)
        with pytest.raises(killed):
            trial.train()
    trial.restart()
    trial.train()
    assert trial.releases() == 2
    assert [line["round"] for line in trial.log] == logged
    assert trial.log[-1]["norm"] > 0


@pytest.mark.parametrize("promise", [None, "server", "distributed"])
@pytest.mark.parametrize("phase", ["masked", "confirm", "unmask"])
def test_a_coordinator_killed_in_a_secure_sum_comes_to_the_end(world, killed, phase, promise):
    privacy = None if promise is None else {**WHOLE, "noise": promise}
    trial = world(weights="equal", secure_sum=True, privacy=privacy)

    def die(kind, request, answer):
        if kind == phase and messages.unpack(request).fields["round"][0] == 1:
            answer(request)
            raise killed
        return answer(request)

    trial.wire.faults["site-3"] = die  # the last to be asked
    with pytest.raises(killed):
        trial.train()
    trial.wire.faults.clear()
    trial.train()
    assert trial.log[-1]["round"] == 2
    assert trial.log[-1]["answered"] == 3
    lost = phase == "unmask" or promise == "distributed"
    assert [line["round"] for line in trial.log] == ([2] if lost else [1, 2])
    assert promise != "distributed" or trial.releases() == 2  # also of a round in which masked values had left sites


@pytest.mark.parametrize("sections", [{}, {"privacy": DPSGD}], ids=["open", "private"])
def test_a_site_killed_in_a_round_is_left_out_and_comes_back(world, monkeypatch, sections):
    trial = world(sections=sections)
    real, made = loop._apply, []

    def apply(*arguments):
        made.append(1)
        if len(made) == 4:  # the second step of site-2
            raise RuntimeError("killed")
        real(*arguments)

    monkeypatch.setattr(loop, "_apply", apply)

    def restarted(kind, request, answer):
        if kind == "train" and messages.unpack(request).fields["round"][0] == 2:
            trial.restart("site-2")
            return trial.sites["site-2"].answer(request)
        return answer(request)

    trial.wire.faults["site-2"] = restarted
    joint = trial.train()
    assert [list(line["left_out"]) for line in trial.log] == [["site-2"], []]
    if sections:
        assert {site: trial.releases(site) for site in trial.units} == dict.fromkeys(trial.units, 4)
        assert joint.sites["site-2"]["guarantee"]["steps"] == 4


def test_a_site_that_failed_in_a_round_begins_the_next_attempt_as_new(world, monkeypatch):
    """The optimiser of the steps that failed is not gone on with."""
    adamw = {"train": {"optimizer": "adamw"}}
    expected = world(1, sections=adamw).train().weights
    trial = world(1, sections=adamw)
    real, made = loop._apply, []

    def apply(*arguments):
        made.append(1)
        if len(made) == 2:
            raise RuntimeError("a moment of weakness")
        real(*arguments)

    monkeypatch.setattr(loop, "_apply", apply)
    close(trial.train().weights, expected, atol=0)
    assert [(line["round"], line["attempt"]) for line in trial.log] == [(1, 1), (1, 2), (2, 1)]


@pytest.mark.parametrize(
    "asked_for",
    [
        {"algorithm": "scaffold"},
        {"compress": "int8"},
        {"compress": "top-k", "top_k": 0.1},
        {"lora": "residual"},
        {"lora": "merged"},
        {"algorithm": "fedyogi"},
    ],
    ids=lambda asked_for: "-".join(map(str, asked_for.values())),
)
def test_what_is_kept_between_rounds_outlives_every_process(world, killed, asked_for):
    expected = world(rounds=4, **asked_for).train().weights
    trial = world(rounds=4, **asked_for)
    for number in (2, 3, 4):

        def die(kind, request, answer, number=number):
            if kind == "train" and messages.unpack(request).fields["round"][0] == number:
                raise killed
            return answer(request)

        trial.wire.faults["site-1"] = die
        with pytest.raises(killed):
            trial.train()
        trial.host.begin(trial.host.initial, {})  # another process begins with the base as it was
        trial.restart()
    trial.wire.faults.clear()
    close(trial.train().weights, expected, atol=0)


def test_the_clip_norm_that_follows_a_quantile_outlives_every_process(world, killed, monkeypatch):
    monkeypatch.setattr(noise, "add_noise", lambda sums, std, source: None)
    monkeypatch.setattr(noise, "add_normals", lambda values, std, source: None)
    monkeypatch.setattr(loop, "_check_moved", lambda *arguments: None)
    follow = {"target": 0.5, "rate": 0.2, "noise": 5}
    trial = world(
        weights="equal",
        privacy={**WHOLE, "clip_norm": 10.0, "clip_quantile": follow},
        sections={"privacy": {**DPSGD, "clip_norm": 1e-6, "clip_quantile": follow}},
    )

    def die(kind, request, answer):
        if kind == "train" and messages.unpack(request).fields["round"][0] == 2:
            raise killed
        return answer(request)

    trial.wire.faults["site-1"] = die
    with pytest.raises(killed):
        trial.train()
    trial.wire.faults.clear()
    trial.restart()
    trial.train()
    first, second = (line["clip_norm"] for line in trial.log)
    assert second < first == 10.0
    own = [json.loads(line)["clip_norm"] for line in (trial.folder / "site-1" / "log.jsonl").read_text().splitlines()]
    assert own[0] == 1e-6
    assert len(set(own)) > 1
    again = [json.loads(line) for line in (trial.folder / "site-1" / "ledger.jsonl").read_text().splitlines()[1:]]
    assert [line["clip_norm"] for line in again] == own


def test_an_update_is_clipped_whatever_the_compression_carries(world, monkeypatch):
    monkeypatch.setattr(noise, "add_noise", lambda sums, std, source: None)
    trial = world(1, rounds=4, compress="top-k", top_k=0.02, weights="equal", privacy={**WHOLE, "clip_norm": 0.02})
    trial.train()
    sent = [m for _, m, _ in trial.wire.seen if m.kind == "train"]
    weights = [messages.split(message.arrays)["w"] for message in sent]
    moved = [{name: b[name] - a[name] for name in a} for a, b in pairwise(weights)]
    assert max(client_privacy.clip_update(change, 1.0).norm for change in moved) < 0.02 * (1 + 1e-4)


def test_dropout_follows_from_the_recipe(world):
    """Whatever else the process has drawn, as sites that share one do."""
    sections = {"model": {"adapter": {"kind": "lora", "rank": 2, "dropout": 0.5}}}
    found = []
    for seed in (3, 4):
        trial = world(2, sections=sections)
        torch.manual_seed(seed)
        found.append(trial.train().weights)
    close(*found, atol=0)
    assert any(not torch.equal(value, world(2).train().weights[name]) for name, value in found[0].items())
