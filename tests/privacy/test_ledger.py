"""The ledger: on disk first, never changed, and the only source of epsilon."""

import json
import os

import pytest

from reticent.errors import PrivacyError
from reticent.privacy.accounting import spent
from reticent.privacy.clipping import Quantile
from reticent.privacy.ledger import Ledger
from reticent.privacy.noise import mechanism_for
from reticent.privacy.plan import banded_plan, dpfedavg_plan, dpsgd_plan

GOOD = {"unit": "owner", "units": 100, "batch_size": 10, "steps": 5, "delta": 1e-3, "clip_norm": 1.0}
ENTRY = {"sampling_prob": 0.1, "noise_multiplier": 1.0, "clip_norm": 1.0}


@pytest.fixture
def plan():
    return dpsgd_plan(**GOOD, noise_multiplier=1.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def test_a_ledger_is_created_once(path, plan):
    Ledger.create(path, plan)
    with pytest.raises(FileExistsError):
        Ledger.create(path, plan)


def test_a_ledger_reads_back_as_it_was(path, plan):
    ledger = Ledger.create(path, plan)
    for _ in range(3):
        ledger.record(ENTRY)
    again = Ledger.open(path)
    assert again.plan == plan and len(again) == 3 and again.guarantee() == ledger.guarantee()


def test_a_release_is_on_disk_and_synced_when_record_returns(path, plan, monkeypatch):
    ledger, synced = Ledger.create(path, plan), []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(path.read_text().count("\n")))
    ledger.record(ENTRY)
    assert synced == [2]
    assert json.loads(path.read_text().splitlines()[1]) == {"release": 1, **ENTRY}


def test_a_release_that_cannot_be_written_is_an_error(path, plan, monkeypatch):
    ledger = Ledger.create(path, plan)

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        ledger.record(ENTRY)
    assert len(ledger) == 0


def test_lines_are_only_appended(path, plan):
    ledger, before = Ledger.create(path, plan), b""
    for _ in range(4):
        ledger.record(ENTRY)
        assert path.read_bytes().startswith(before)
        before = path.read_bytes()


@pytest.mark.parametrize("left", [1, 20, 40])
def test_a_torn_last_line_counts_as_a_release(path, plan, left):
    ledger = Ledger.create(path, plan)
    ledger.record(ENTRY)
    ledger.record(ENTRY)
    header, first, second = path.read_text().splitlines()
    path.write_text("\n".join([header, first, second[:left]]))
    torn = Ledger.open(path)
    assert len(torn) == 2
    torn.record(ENTRY)
    assert len(Ledger.open(path)) == 3 and Ledger.open(path).guarantee() == torn.guarantee()


@pytest.mark.parametrize("content", [b"", b"{}\n", b"hello\n", b'{"plan": {"units": 3}}\n', b"\xff\xfe\x00\x01"])
def test_another_file_is_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(PrivacyError, match="ledger.jsonl is not a readable ledger"):
        Ledger.open(path)


def test_epsilon_grows_with_every_release(path, plan):
    ledger, spending = Ledger.create(path, plan), []
    for _ in range(4):
        spending.append(ledger.guarantee().epsilon)
        ledger.record(ENTRY)
    assert spending[0] == 0 and spending == sorted(set(spending))


def test_the_guarantee_is_what_the_accountant_says_of_the_recorded_releases(path, plan):
    ledger = Ledger.create(path, plan)
    for _ in range(7):  # more than planned: it is what happened that counts
        ledger.record(ENTRY)
    guarantee, expected = ledger.guarantee(), spent([(plan.release, 7)], plan.delta)
    assert (guarantee.epsilon, guarantee.epsilon_rdp) == tuple(expected)
    assert (guarantee.steps, guarantee.delta, guarantee.unit) == (7, plan.delta, "owner")
    assert guarantee.relation == "add-or-remove-one" and guarantee.limits
    assert json.loads(json.dumps(guarantee.to_dict()))["epsilon"] == guarantee.epsilon


def test_a_line_of_another_release_is_refused(path, plan):
    Ledger.create(path, plan).record(ENTRY)
    with path.open("a") as file:
        file.write(json.dumps({"release": 2, **ENTRY, "noise_multiplier": 0.5}) + "\n")
    with pytest.raises(PrivacyError, match="ledger.jsonl, line 3: the release recorded there is not one of"):
        Ledger.open(path)


def test_a_release_of_another_noise_cannot_be_recorded(path, plan):
    ledger = Ledger.create(path, plan)
    with pytest.raises(PrivacyError, match="its noise_multiplier is 0.5, that of the plan is 1.0"):
        ledger.record({**ENTRY, "noise_multiplier": 0.5})
    with pytest.raises(PrivacyError, match="its sampling_prob is None"):
        ledger.record({"noise_multiplier": 1.0})
    assert len(ledger) == len(Ledger.open(path)) == 0


@pytest.mark.parametrize(
    "plan",
    [
        dpsgd_plan(**GOOD, clip_style="per-layer", noise_multiplier=1.0),
        dpsgd_plan(**GOOD, quantile=Quantile(target=0.4, rate=0.1, noise=3.0), noise_multiplier=1.0),
        banded_plan(**GOOD, bands=4, noise_multiplier=1.0),
        dpfedavg_plan(sites=20, per_round=5, rounds=9, delta=1e-3, clip_norm=0.5, noise_multiplier=2.0),
    ],
    ids=["per-layer", "quantile", "banded", "sites"],
)
def test_every_plan_reads_back_and_is_named_in_its_guarantee(path, plan):
    Ledger.create(path, plan).record(mechanism_for(plan).entry)
    ledger = Ledger.open(path)
    assert ledger.plan == plan and len(ledger) == 1 and ledger.guarantee().mechanism == plan.mechanism


def test_the_line_of_a_tracked_clip_norm_states_both_noises_and_the_norm(path):
    plan = dpsgd_plan(**GOOD, quantile=Quantile(target=0.4, rate=0.1, noise=3.0), noise_multiplier=1.0)
    mechanism = mechanism_for(plan, 0.7)
    Ledger.create(path, plan).record(mechanism.entry)
    line = json.loads(path.read_text().splitlines()[1])
    assert line == {"release": 1, **ENTRY, "clip_norm": 0.7, "sum_noise_multiplier": plan.sum_noise, "count_noise": 3.0}


def test_a_banded_plan_spends_what_its_busiest_group_took_part_in(path):
    """Seven steps of four groups: a unit takes part in two at most. The composition is made by hand."""
    import dp_accounting

    plan = banded_plan(**GOOD, bands=4, noise_multiplier=1.0)
    ledger = Ledger.create(path, plan)
    for _ in range(7):
        ledger.record(mechanism_for(plan).entry)
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(4 * 10 / 100, dp_accounting.GaussianDpEvent(1.0)), 2)
    assert ledger.guarantee().epsilon == pytest.approx(accountant.get_epsilon(1e-3), rel=1e-3)


# Rounds of a federation.

SITES = {"sites": 20, "per_round": 5, "rounds": 9, "delta": 1e-3, "clip_norm": 0.5, "noise_multiplier": 2.0}


@pytest.fixture
def shared():
    return dpfedavg_plan(**SITES, noise="distributed", threshold=4)


def test_the_guarantee_says_who_is_protected_against_whom(path, shared, plan, tmp_path):
    told = Ledger.create(path, shared).guarantee()
    assert told.protects == "one site with all its data"
    assert "also the server, if at least 4 of the sites that answer are honest" in told.against
    server = Ledger.create(tmp_path / "server", dpfedavg_plan(**SITES)).guarantee()
    assert server.protects == told.protects and server.against.endswith("not the server")
    inside = Ledger.create(tmp_path / "site", plan)
    assert inside.guarantee("a").protects == "one owner at site a"
    assert inside.guarantee("a").against == "everybody who sees an update of the site, the server included"
    assert inside.guarantee().protects == "one owner"


def test_the_line_of_a_round_says_how_many_were_asked_and_answered(path):
    plan = dpfedavg_plan(**SITES)
    Ledger.create(path, plan).record({**mechanism_for(plan).entry, "asked": 6, "answered": 3})
    assert json.loads(path.read_text().splitlines()[1]) == {
        "release": 1,
        "sampling_prob": 0.25,
        "noise_multiplier": 2.0,
        "clip_norm": 0.5,
        "asked": 6,
        "answered": 3,
    }
    assert len(Ledger.open(path)) == 1


def test_a_round_that_was_given_up_is_recorded_and_counts(path, shared):
    ledger = Ledger.create(path, shared)
    ledger.record_failure(asked=5, answered=2)
    ledger.record({**mechanism_for(shared).entry, "asked": 5, "answered": 4})
    again = Ledger.open(path)
    assert json.loads(path.read_text().splitlines()[1])["failed"] is True
    assert len(ledger) == len(again) == 2 and again.guarantee() == ledger.guarantee()
    assert again.guarantee().epsilon == pytest.approx(spent([(shared.release, 2)], shared.delta).epsilon)


def test_a_round_whose_draw_must_stay_hidden_cannot_be_given_up(path):
    ledger = Ledger.create(path, dpfedavg_plan(**SITES))
    with pytest.raises(PrivacyError, match="2 of 5 answers cannot be given up: the plan draws with probability 0.25"):
        ledger.record_failure(asked=5, answered=2)
    assert len(ledger) == 0


def test_a_line_of_too_few_answers_is_refused(path, shared):
    Ledger.create(path, shared)
    with path.open("a") as file:
        file.write(json.dumps({"release": 1, **mechanism_for(shared).entry, "asked": 5, "answered": 3}) + "\n")
    with pytest.raises(PrivacyError, match="ledger.jsonl, line 2: the release recorded there is not one of"):
        Ledger.open(path)


def test_discrete_noise_costs_its_slack(path, shared):
    ledger = Ledger.create(path, shared)
    assert ledger.guarantee().epsilon == 0
    ledger.record({**mechanism_for(shared).entry, "answered": 4})
    assert 0 < ledger.guarantee().epsilon - spent([(shared.release, 1)], shared.delta).epsilon < 1e-10
